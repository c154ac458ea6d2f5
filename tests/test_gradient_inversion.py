"""Gradient inversion measured at tiny sizes, its figures and its widgets."""

import io

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import torch

from leaklearn.attacks.inversion import GradientInversion
from leaklearn.data import load
from leaklearn.evaluation import psnr
from leaklearn.experiments.bench import Bench
from leaklearn.experiments.gradient_inversion import (
    ALL_IMAGES,
    check,
    course,
    draw_clients,
    invert,
    measure_cost,
    measure_labels,
    measure_networks,
    measure_quality,
    pictures,
)
from leaklearn.learning import Recipe
from leaklearn.models import VARIANTS, build
from leaklearn.report.figures_inversion import (
    cost_chart,
    course_chart,
    networks_chart,
    pictures_chart,
    quality_chart,
    trained_chart,
)
from leaklearn.report.tables import check_keys, over_seeds
from leaklearn.widgets import compare_attacks, scrub_iterations

QUALITY = "dataset seed model attack batch_size iterations psnr ssim psnr_of_mean_colour psnr_of_mean_image readable"
QUALITY += " label_accuracy seconds_per_image clients leak_rate images readable_images accuracy accuracy_of_truth"
COST = "dataset seed model attack batch_size device seconds_per_iteration iterations images days_for_50k"
SIZES = (1, 4, 100)


@pytest.fixture(autouse=True)
def _close_figures():
    yield
    plt.close("all")


@pytest.fixture(scope="module")
def bench():
    return Bench(load("mnist5k"), "lenet", recipe=Recipe(steps=3), progress=False)


@pytest.fixture(scope="module")
def fast():
    return GradientInversion("fast").replace(iterations=25)


@pytest.fixture(scope="module")
def measured(bench, fast):
    return measure_quality(bench, [fast], ["convnet-gelu"], [1, 4, 6], 4)


# ---- measurements ----------------------------------------------------------------------------------------------------
def test_quality_falls_from_single_images_to_larger_batches(measured):
    table, _ = measured
    assert list(table.columns) == QUALITY.split()
    assert table["clients"].tolist() == [4, 1, 1]
    assert table["images"].tolist() == [4, 4, 6]
    assert table["psnr"].iloc[0] > 30 > table["psnr"].iloc[2]
    assert (table["label_accuracy"] == 1).all()
    assert table["leak_rate"].iloc[0] == table["readable"].iloc[0] == 1
    assert table["readable_images"].iloc[0] == 4


def test_every_batch_size_is_cut_from_the_same_images(measured, bench):
    table, examples = measured
    shown = [examples["convnet-gelu", "fast", size] for size in (1, 4, 6)]
    for other in shown[1:]:
        assert torch.equal(shown[0].truth[:4], other.truth[:4])
    for each, psnr_mean in zip(shown[:2], table["psnr"], strict=False):
        error = ((each.truth.float() / 255 - each.images) ** 2).flatten(1).mean(1)
        torch.testing.assert_close(-10 * error.log10(), torch.tensor(each.psnr), atol=1e-3, rtol=1e-4)
        assert np.mean(each.psnr) == pytest.approx(psnr_mean, abs=1e-4)
    # Blanks, from the definition, on the images that all batch sizes share.
    images = shown[0].truth.float() / 255
    colour = -10 * images.var((1, 2, 3), correction=0).log10()
    mean = bench.data.test.images.double().mean(0) / 255
    usual = -10 * ((images.double() - mean) ** 2).flatten(1).mean(1).log10()
    assert table["psnr_of_mean_colour"].iloc[0] == pytest.approx(float(colour.mean()), abs=1e-4)
    assert table["psnr_of_mean_image"].iloc[1] == pytest.approx(float(usual.mean()), abs=1e-4)


def test_what_reconstructions_are_worth_stands_beside_their_quality(measured, bench, fast):
    table, _ = measured
    assert table["accuracy"].between(0, 1).all()
    assert table["accuracy_of_truth"].nunique() == 1
    twice, _ = measure_quality(bench, [fast.replace(iterations=1)], ["convnet-gelu", "lenet"], [4], 4)
    assert twice["accuracy"].notna().tolist() == [True, False]  # the first network's only


def test_any_preset_and_settings_of_ones_own_are_measured_by_name(bench, fast):
    own = fast.replace(name="mine", iterations=2)
    table, examples = measure_quality(bench, [own, GradientInversion("dlg").replace(iterations=2)], ["lenet"], [1], 1)
    assert table["attack"].tolist() == ["mine", "dlg"]
    assert [name for _, name, _ in examples] == ["mine", "dlg"]
    assert "LeNet, mine" in legend(quality_chart(table))


def test_course_of_an_attack(bench, fast):
    clients = draw_clients(bench.data, 2, 4, 0)
    found = invert(bench, fast, build("convnet-gelu", bench.data), clients, 0, snapshots=[0, 25])
    way = course(found)
    assert set(way["client"]) == {0, 1}
    ends = way[way["iteration"].isin([0, 25])].groupby("iteration")["psnr"].mean()
    assert ends[25] > ends[0] + 5
    assert way.loc[way["iteration"] == 10, "psnr"].isna().all()
    at_end = way[way["iteration"] == 25]["psnr"].mean()
    assert at_end == pytest.approx(found.quality["psnr"].mean(), abs=1e-3)
    assert found.label_accuracy == 1


def test_given_clients_and_network_are_what_is_attacked(bench, fast):
    clients, short = draw_clients(bench.data, 2, 4, 1), fast.replace(iterations=3)
    plain = invert(bench, short, build("convnet-gelu", bench.data, seed=1), clients, 1)
    turned = invert(bench, short, build("convnet-gelu", bench.data, seed=1), clients[::-1], 1)
    assert torch.equal(turned.truth.images, plain.truth.images.flip(0))
    other = invert(bench, short, build("convnet-gelu", bench.data, seed=2), clients, 1)
    assert not torch.allclose(other.leak.images, plain.leak.images)
    found = plain.beside_truth().flatten(0, 1)
    decibel = psnr(found, plain.truth.images.flatten(0, 1).float() / 255)
    np.testing.assert_allclose(decibel, plain.quality["psnr"], atol=1e-3)
    assert pictures(plain, [2]).psnr == [plain.quality["psnr"][2]]


def test_cost_is_extrapolated_from_the_iterations_of_each_attack(bench):
    attacks = [GradientInversion(name) for name in ("inverting_gradients", "fast", "dlg")]
    table = measure_cost(bench, attacks, ["lenet"], [1, 4], images=8)
    assert list(table.columns) == COST.split()
    assert (table["images"] == 8).all()
    assert table.groupby("attack")["iterations"].first()["inverting_gradients"] == 24_000
    days = table["seconds_per_iteration"] * table["iterations"] * ALL_IMAGES / table["batch_size"] / 86_400
    assert (table["days_for_50k"] / days).sub(1).abs().max() < 1e-9
    assert (table["seconds_per_iteration"] > 0).all()
    cost_chart(table)


def test_labels_are_restored_by_every_rule(bench):
    table = measure_labels(bench, ["lenet", "convnet"], [2], ["gradinversion", "auto"], draws=3, epochs=[0])
    assert len(table) == 4
    assert table["label_accuracy"].between(0, 1).all()
    assert table["accuracy_of_network"].isna().all()
    trained = measure_labels(bench, ["lenet"], [11], ["gradinversion", "auto"], draws=2, epochs=[1])
    assert trained["method"].tolist() == ["auto"]  # a batch of more images than classes
    assert trained["accuracy_of_network"].between(0, 1).all()
    with pytest.raises(ValueError, match="unknown methods"):
        measure_labels(bench, ["lenet"], [2], ["magic"])
    with pytest.raises(ValueError, match="20000 images are more than the 4000"):
        measure_labels(bench, ["lenet"], [1000])


def test_what_cannot_work_is_refused_before_work(bench, fast):
    for name in VARIANTS:
        assert build(name, bench.data).head.out_features == 10
    with pytest.raises(ValueError, match="unknown network 'convnet-glue'"):
        measure_quality(bench, [fast], ["convnet-glue"], [1], 4)
    with pytest.raises(ValueError, match="unknown attack 'slow'"):
        GradientInversion("slow")
    with pytest.raises(ValueError, match=r"attacks .* has a value twice"):
        measure_quality(bench, [fast, fast], ["lenet"], [1], 4)
    with pytest.raises(ValueError, match="more than the 4000 training images"):
        measure_quality(bench, [fast], ["lenet"], [1, 4001], 4)
    for wrong, message in (([], "is empty"), ([1, 1], "a value twice"), ([0], "the least is 1")):
        with pytest.raises(ValueError, match=message):
            check(bench, [], images=wrong)
    check(bench, ["lenet"], 4000, least=0, epochs=[0], names=["a", "b"])


# ---- figures ---------------------------------------------------------------------------------------------------------
def tables(dataset="cifar10", device="cpu"):
    quality, cost = [], []
    for model, base in (("lenet", 30.0), ("resnet18", 15.0)):
        for attack, iterations in (("inverting_gradients", 24000), ("fast", 400)):
            for size in SIZES:
                for seed in range(3):
                    key = {"dataset": dataset, "seed": seed, "model": model, "attack": attack, "batch_size": size}
                    key["iterations"] = iterations
                    measured = {"psnr": base - np.log2(size) + seed - 1, "ssim": 0.5, "label_accuracy": 1.0}
                    measured |= {"psnr_of_mean_colour": 12.0, "psnr_of_mean_image": 11.0}
                    quality.append(key | measured | {"seconds_per_image": 0.1})
                    cost.append(key | {"device": device, "images": 64, "seconds_per_iteration": 0.01})
                    cost[-1]["days_for_50k"] = iterations / 400 * (1 + 0.1 * seed)
    return pd.DataFrame(quality), pd.DataFrame(cost)


def drawn(ax):
    return {line.get_label(): line for line in ax.lines if not str(line.get_label()).startswith("_")}


def legend(fig):
    return [text.get_text() for text in fig.legends[0].get_texts()]


def test_quality_chart_draws_means_over_seeds_blanks_and_p4():
    ax = quality_chart(tables()[0]).axes[0]
    lines = drawn(ax)
    np.testing.assert_allclose(lines["LeNet, fast (ours)"].get_xdata(), [1, 4, 100], rtol=0.04)
    np.testing.assert_allclose(lines["LeNet, fast (ours)"].get_ydata(), [30, 28, 30 - np.log2(100)])
    assert set(lines["blank: the image's own mean colour"].get_ydata()) == {12.0}
    assert set(lines["blank: the mean of the attacker's images"].get_ydata()) == {11.0}
    star = lines["paper, P4: 27.88 dB at batch size 4"]
    assert (star.get_xdata()[0], star.get_ydata()[0]) == (4, 27.88)
    assert [tick.get_text() for tick in ax.get_xticklabels()] == ["1", "4", "100"]
    assert "dB" in ax.get_ylabel()


def test_the_papers_numbers_are_drawn_for_its_data_set_only():
    both = pd.concat([tables()[0], tables("mnist5k")[0]])
    fig = quality_chart(both)
    assert [any(name.startswith("paper") for name in drawn(ax)) for ax in fig.axes] == [True, False]
    assert len(legend(fig)) == len(set(legend(fig))) == 8
    assert not any(name.startswith("paper") for name in drawn(cost_chart(tables("mnist5k")[1]).axes[0]))


def test_cost_chart_draws_days_on_a_log_axis_beside_p5():
    ax = cost_chart(tables()[1]).axes[0]
    assert ax.get_yscale() == "log"
    np.testing.assert_allclose(drawn(ax)["ResNet-18, Inverting Gradients"].get_ydata(), [66, 66, 66])
    star = drawn(ax)["paper, P5: 61.17 days, one A100, batch size 4"]
    assert (star.get_xdata()[0], star.get_ydata()[0]) == (4, 61.17)
    assert "1 month" in [text.get_text() for text in ax.texts]
    assert "cpu" in ax.get_title()
    two = cost_chart(pd.concat([tables()[1], tables(device="NVIDIA H100")[1]]))
    assert ["NVIDIA H100" in ax.get_title() for ax in two.axes] == [False, True]
    assert len(legend(two)) == 5


def test_one_seed_or_one_batch_size_is_drawn_too():
    quality, cost = tables()
    fig = quality_chart(quality[(quality["seed"] == 0) & (quality["batch_size"] == 4)])
    fig.savefig(io.BytesIO())
    cost_chart(cost[(cost["seed"] == 0) & (cost["batch_size"] == 4)]).savefig(io.BytesIO())


def test_pictures_stand_below_their_truth(measured):
    examples = {f"batch size {size}": shown for (_, _, size), shown in measured[1].items()}
    fig = pictures_chart(examples, count=3)
    shown = [ax for ax in fig.axes if ax.images]
    assert len(shown) == 4 * 3
    names = [ax.get_ylabel() for ax in fig.axes if ax.get_ylabel()]
    assert names == ["truth", "batch size 1", "batch size 4", "batch size 6"]
    first = examples["batch size 1"]
    np.testing.assert_allclose(shown[0].images[0].get_array(), first.truth[0, 0] / 255, atol=1e-6)
    assert shown[3].get_xlabel() == f"{first.psnr[0]:.1f} dB"


def test_course_chart_draws_medians():
    rows = [
        {"attack": attack, "client": k, "iteration": i, "objective": (k + 1) / (i + 1), "psnr": 10.0 + i}
        for attack in ("modern", "fast")
        for k in range(3)
        for i in (0, 10, 20)
    ]
    top, bottom = course_chart(pd.DataFrame(rows)).axes
    np.testing.assert_allclose(drawn(top)["fast (ours)"].get_ydata(), [2, 2 / 11, 2 / 21])
    assert bottom.lines[0].get_ydata().tolist() == [10, 20, 30]


def test_tables_of_gradient_inversion_are_folded_over_seeds():
    quality, cost = tables()
    keys = ["dataset", "model", "attack", "batch_size"]
    quality, cost = over_seeds(quality, [*keys, "iterations"]), over_seeds(cost, [*keys, "device"])
    assert len(quality) == len(cost) == 12
    assert quality.loc[0, "psnr"].startswith("30 [")
    assert cost.loc[0, "days_for_50k"].startswith("66 [")


# ---- widgets ---------------------------------------------------------------------------------------------------------
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


def test_networks_of_several_widths_and_trainings(bench, fast):
    short = fast.replace(iterations=4)
    table = measure_networks(bench, short, "convnet-gelu", [1, 2], 2, widths=[4, None])
    check_keys(table, ["dataset", "model", "width", "epochs", "batch_size"])
    assert table["width"].tolist() == [4, 4, 16, 16]
    assert table["accuracy_of_network"].isna().all()
    whole, _ = measure_quality(bench, [short], ["convnet-gelu"], [2], 2)  # the same images, network and attack
    mine = table[(table["width"] == 16) & (table["batch_size"] == 2)]
    assert mine["psnr"].tolist() == pytest.approx(whole["psnr"].tolist(), abs=1e-4)
    trained = measure_networks(bench, short, "lenet", [1], 1, epochs=[0, 1])
    assert trained["epochs"].tolist() == [0, 1]
    assert trained["accuracy_of_network"].isna().tolist() == [True, False]
    fig = networks_chart(table, ["width"], "{}", {4: "narrow", 16: "wide"})
    assert {"narrow", "wide"} <= set(legend(fig))
    published = trained.assign(dataset="cifar10", model="resnet18")
    texts = legend(trained_chart(published))
    assert "12 channels, untrained" in texts
    assert any(text.startswith("12 channels, after 1 epoch (") for text in texts)
    assert any("Guo" in text for text in texts)
    assert not any("Guo" in text for text in legend(trained_chart(trained)))
    with pytest.raises(ValueError, match="widths is empty"):
        measure_networks(bench, short, "lenet", [1], 1, widths=[])
