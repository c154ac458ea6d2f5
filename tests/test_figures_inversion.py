"""Charts and widgets of gradient inversion: they draw what the tables say, and react."""

import io

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import torch

from leaklearn.report.inversion import (
    cost_chart,
    label_chart,
    objective_chart,
    quality_chart,
)
from leaklearn.report.pictures import reconstruction_grid
from leaklearn.report.tables import over_seeds
from leaklearn.widgets import compare_attacks, scrub_iterations

SIZES = (1, 4, 100)


@pytest.fixture(autouse=True)
def _close_figures():
    yield
    plt.close("all")


def tables(dataset="cifar10", device="cpu"):
    quality, cost = [], []
    for model, base in (("lenet", 30.0), ("resnet18", 15.0)):
        for attack, iterations in (("inverting_gradients", 24000), ("fast", 400)):
            for size in SIZES:
                for seed in range(3):
                    key = {"dataset": dataset, "seed": seed, "model": model, "attack": attack, "batch_size": size}
                    key["iterations"] = iterations
                    measured = {"psnr": base - np.log2(size) + seed - 1, "ssim": 0.5, "label_accuracy": 1.0}
                    quality.append(key | measured | {"seconds_per_image": 0.1})
                    cost.append(key | {"device": device, "images": 64, "seconds_per_iteration": 0.01})
                    cost[-1]["days_for_50k"] = iterations / 400 * (1 + 0.1 * seed)
    return pd.DataFrame(quality), pd.DataFrame(cost)


def lines(ax):
    return {line.get_label(): line for line in ax.lines if not str(line.get_label()).startswith("_")}


def legend(fig):
    return [text.get_text() for text in fig.legends[0].get_texts()]


def test_quality_chart_draws_means_over_seeds_and_p4():
    ax = quality_chart(tables()[0]).axes[0]
    drawn = lines(ax)
    assert drawn["LeNet, fast (ours)"].get_xdata().tolist() == [1, 4, 100]
    np.testing.assert_allclose(drawn["LeNet, fast (ours)"].get_ydata(), [30, 28, 30 - np.log2(100)])
    star = drawn["paper, P4: 27.88 dB at batch size 4"]
    assert (star.get_xdata()[0], star.get_ydata()[0]) == (4, 27.88)
    assert [tick.get_text() for tick in ax.get_xticklabels()] == ["1", "4", "100"]
    assert len(ax.collections) == 4  # an interval for each line
    assert "dB" in ax.get_ylabel()


def test_p4_is_drawn_for_its_data_set_only():
    both = pd.concat([tables()[0], tables("mnist5k")[0]])
    fig = quality_chart(both)
    drawn = [any(name.startswith("paper") for name in lines(ax)) for ax in fig.axes]
    assert drawn == [True, False]
    assert len(legend(fig)) == len(set(legend(fig))) == 5


def test_two_lengths_of_an_attack_are_two_lines():
    table = tables()[0]
    longer = table[table["attack"] == "fast"].assign(iterations=1000, psnr=lambda rows: rows["psnr"] + 3)
    names = legend(quality_chart(pd.concat([table, longer])))
    assert "LeNet, fast (ours), 400 iterations" in names
    assert "LeNet, fast (ours), 1,000 iterations" in names


def test_cost_chart_draws_days_on_a_log_axis_beside_p5():
    ax = cost_chart(tables()[1]).axes[0]
    drawn = lines(ax)
    assert ax.get_yscale() == "log"
    np.testing.assert_allclose(drawn["ResNet-18, Inverting Gradients"].get_ydata(), [66, 66, 66])
    reference = drawn["paper, P5: 61.17 days, one A100, batch size 4"]
    assert set(reference.get_ydata()) == {61.17}
    assert "1 month" in [text.get_text() for text in ax.texts]
    assert "a CPU" in ax.get_title()


def test_cost_on_two_devices_has_two_panels_and_one_legend():
    fig = cost_chart(pd.concat([tables()[1], tables(device="NVIDIA H100")[1]]))
    assert [ax.get_title().rsplit("on ")[-1] for ax in fig.axes] == ["a CPU?", "NVIDIA H100?"]
    assert len(legend(fig)) == 5


def test_one_seed_or_one_batch_size_is_drawn_too():
    quality, cost = tables()
    fig = quality_chart(quality[(quality["seed"] == 0) & (quality["batch_size"] == 4)])
    fig.savefig(io.BytesIO())
    cost_chart(cost[(cost["seed"] == 0) & (cost["batch_size"] == 4)]).savefig(io.BytesIO())


def test_reconstruction_grid_pairs_truth_and_reconstruction():
    originals = {size: torch.randint(0, 256, (min(size, 5), 3, 8, 8)).to(torch.uint8) for size in SIZES}
    found = {size: images / 255 for size, images in originals.items()}
    fig = reconstruction_grid(originals, found, {size: [20.0] * len(images) for size, images in found.items()})
    shown = [ax for ax in fig.axes if ax.images]
    assert len(shown) == 2 * (1 + 4 + 5)
    assert sum(ax.get_xlabel() == "20.0 dB" for ax in shown) == 10
    assert [ax.get_ylabel().split("\n")[0] for ax in shown if "truth" in ax.get_ylabel()] == [
        "batch size 1",
        "batch size 4",
        "batch size 100",
    ]
    np.testing.assert_allclose(shown[0].images[0].get_array(), originals[1][0].permute(1, 2, 0) / 255, atol=1e-6)


def test_reconstruction_grid_shows_a_truth_that_all_share_once():
    truth = torch.rand(5, 1, 8, 8)
    fig = reconstruction_grid({1: truth, 4: truth.clone()}, {1: truth, 4: truth}, {1: [9.0] * 5, 4: [8.0] * 5})
    assert [ax.get_ylabel() for ax in fig.axes if ax.get_ylabel()] == ["truth", "batch size 1", "batch size 4"]
    assert sum(bool(ax.images) for ax in fig.axes) == 15


def test_label_chart_has_a_panel_for_untrained_and_trained():
    rows = [
        {"model": model, "trained": trained, "batch_size": size, "method": method, "seed": seed}
        | {"label_accuracy": 0.9 - 0.2 * trained - 0.1 * (method == "idlg")}
        for model in ("lenet", "convnet")
        for trained in (False, True)
        for size in (8, 64)
        for method in ("ilrg", "idlg")
        for seed in range(3)
    ]
    fig = label_chart(pd.DataFrame(rows))
    titles = [ax.get_title() for ax in fig.axes]
    assert titles == ["LeNet, untrained", "LeNet, trained", "ConvNet, untrained", "ConvNet, trained"]
    np.testing.assert_allclose(lines(fig.axes[1])["iDLG"].get_ydata(), [0.6, 0.6])
    assert legend(fig) == ["iLRG", "iDLG"]
    assert len(label_chart(pd.DataFrame(rows)[lambda table: ~table["trained"]]).axes) == 2


def test_objective_chart_draws_medians_and_psnr_where_known():
    rows = [
        {"attack": attack, "client": k, "iteration": i, "objective": (k + 1) / (i + 1), "psnr": 10.0 + i}
        for attack in ("modern", "fast")
        for k in range(3)
        for i in (0, 10, 20)
    ]
    history = pd.DataFrame(rows)
    top, bottom = objective_chart(history).axes
    np.testing.assert_allclose(lines(top)["fast (ours)"].get_ydata(), [2, 2 / 11, 2 / 21])
    assert bottom.lines[0].get_ydata().tolist() == [10, 20, 30]
    assert len(objective_chart(history.drop(columns="psnr")).axes) == 1
    assert len(objective_chart(history.drop(columns="attack").assign(psnr=float("nan"))).axes) == 1


def test_tables_of_gradient_inversion_are_folded_over_seeds():
    quality, cost = (over_seeds(table) for table in tables())
    assert len(quality) == len(cost) == 12
    assert quality.loc[0, "psnr"].startswith("30 [")
    assert cost.loc[0, "days_for_50k"].startswith("66 [")
    assert list(quality["iterations"].unique()) == [24000, 400]


def shuffled(images, seed=0):
    """Each client's images in another order."""
    generator = torch.Generator().manual_seed(seed)
    return torch.stack([one[torch.randperm(len(one), generator=generator)] for one in images])


def test_scrubbing_changes_the_picture_and_keeps_places(monkeypatch):
    truth = torch.rand(2, 3, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    last = shuffled(truth)
    drawn = []
    monkeypatch.setattr(
        "leaklearn.widgets.inversion.labelled_rows", lambda rows, title: drawn.append(rows) or plt.figure()
    )
    step, client, *_ = scrub_iterations({0: 0.5 * last, 50: 0.9 * last, 100: last}, truth).children
    assert step.options == (0, 50, 100)
    step.value = 50
    client.value = 1
    (_, true, _), (name, found, notes) = drawn[-1]
    assert torch.equal(true, truth[1])
    torch.testing.assert_close(found, 0.9 * truth[1])
    assert name.endswith("50")
    assert all(note.endswith(" dB") for note in notes)
    assert len(drawn) == 3


def test_widgets_show_pictures_that_react():
    truth = torch.randint(0, 256, (2, 3, 1, 8, 8), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    images = truth / 255
    first = scrub_iterations({0: torch.rand(images.shape), 9: shuffled(images)}, truth)
    second = compare_attacks({"dlg": 0.7 * images, "fast": shuffled(images)}, truth)
    for widget, changes in ((first, (0, 1)), (second, (1, 2))):
        *controls, line, picture = widget.children
        seen = {bytes(picture.value)}
        for control, value in zip(controls, changes, strict=True):
            control.value = value
            seen.add(bytes(picture.value))
        assert len(seen) == 3
        assert all(value.startswith(b"\x89PNG") for value in seen)
        assert " dB</b>" in line.value
    assert not plt.get_fignums()


def test_comparison_shows_each_attack_with_its_own_assignment(monkeypatch):
    truth = torch.rand(2, 4, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    drawn = []
    monkeypatch.setattr(
        "leaklearn.widgets.inversion.labelled_rows", lambda rows, title: drawn.append(rows) or plt.figure()
    )
    widget = compare_attacks({"a": shuffled(truth, 1), "b": shuffled(truth, 2)}, truth)
    widget.children[0].value = 1
    widget.children[1].value = 3
    ((_, images, notes),) = drawn[-1]
    assert all(torch.equal(image, truth[1, 3]) for image in images)
    assert notes == ["truth", "a\n150.0 dB", "b\n150.0 dB"]


def test_widgets_refuse_what_they_cannot_show():
    truth = torch.rand(2, 3, 1, 8, 8)
    with pytest.raises(ValueError, match="no snapshots"):
        scrub_iterations({}, truth)
    with pytest.raises(ValueError, match="no attack"):
        compare_attacks({}, truth)
    with pytest.raises(ValueError, match="differ in shape"):
        compare_attacks({"a": truth[:, :2]}, truth)
