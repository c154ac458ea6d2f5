"""What drives quality: values of the factors by hand, measurements at tiny sizes, charts, and the verdict on C9."""

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import torch
from tiny import image_set

from leaklearn.data import load
from leaklearn.data.images import Dataset
from leaklearn.experiments import Setting
from leaklearn.experiments.batches import attack_batches, attacked_network, draw_clients
from leaklearn.experiments.factors import arrange, brighten, fold, occupancy, others_alike, ranks, total_variation
from leaklearn.experiments.linear_trends import measure_linear_trends
from leaklearn.experiments.trends import measure_inversion_trends
from leaklearn.report.trend_rules import FACTORS, changes, quality_drivers
from leaklearn.report.trends import examples_chart, inversion_chart, linear_chart

COLUMNS = ["dataset", "seed", "attack", "factor", "value", "psnr", "ssim", "leak_rate", "images"]


@pytest.fixture(autouse=True)
def _close_figures():
    yield
    plt.close("all")


@pytest.fixture(scope="module")
def data():
    whole = load("mnist5k")
    return Dataset(whole.train[:400], whole.test[:200])


@pytest.fixture(scope="module")
def inverted(data):
    sizes = {"images": 16, "batch_sizes": [1, 16], "epochs": [0, 1], "iterations": [3, 20]}
    return measure_inversion_trends(data, [0], **sizes, progress=False)


@pytest.fixture(scope="module")
def leaked(data):
    setting = Setting("robbing_the_fed", clients=6, images_per_client=32)
    return measure_linear_trends(data, setting, [0], shifts=[0.0, 2.0], progress=False)


def rows(table, factor):
    return table[table["factor"] == factor].set_index("value")


# ---- factors ---------------------------------------------------------------------------------------------------------
def test_repeated_labels_are_counted_within_a_batch():
    labels = torch.tensor([[1, 1, 2, 3], [5, 5, 5, 5], [1, 2, 3, 4]])
    assert others_alike(labels).tolist() == [[1, 1, 0, 0], [3, 3, 3, 3], [0, 0, 0, 0]]


def test_arrangements_deal_out_the_same_images():
    labels = torch.tensor([3, 1, 0, 2, 2, 0, 1, 3, 0, 1, 2, 3, 3, 2, 1, 0])
    for name, alike in (("apart", 0), ("pairs", 1), ("together", 3)):
        order = arrange(labels, 4)[name]
        assert sorted(order.tolist()) == list(range(16))
        assert (others_alike(labels[order].view(4, 4)) == alike).all(), name
    with pytest.raises(ValueError, match="15 images cannot be cut"):
        arrange(labels[:15], 4)
    with pytest.raises(ValueError, match="batches of 3"):
        arrange(labels[:15], 3)


def test_total_variation_and_thirds_by_hand():
    image = torch.tensor([[0, 255], [0, 0]], dtype=torch.uint8)
    # Below: |0-0|, |0-255|, mean 1/2; beside: |255-0|, |0-0|, mean 1/2.
    flat = torch.zeros(1, 1, 2, 2, dtype=torch.uint8)
    torch.testing.assert_close(total_variation(torch.cat([image.view(1, 1, 2, 2), flat])), torch.tensor([1.0, 0.0]))
    assert ranks(torch.tensor([0.9, 0.1, 0.5, 0.7, 0.2, 0.3]), 3).tolist() == [3, 1, 2, 3, 1, 2]


def test_occupancy_of_bins_by_hand():
    pixels = torch.tensor([[[0, 0], [51, 51], [0, 102], [255, 255]], [[255, 255], [51, 0], [102, 0], [102, 102]]])
    images = pixels.view(2, 4, 1, 1, 2).to(torch.uint8)  # means 0, 0.2, 0.2, 1 and 1, 0.1, 0.2, 0.4
    vector, low, high = torch.tensor([0.5, 0.5]), torch.tensor([0.05, 0.3]), torch.tensor([0.3, 0.9])
    assert occupancy(images, vector, low, high).tolist() == [[0, 2, 2, 0], [0, 2, 2, 1]]
    endless = torch.tensor([0.3, float("inf")])
    assert occupancy(images, vector, low, endless).tolist() == [[0, 2, 2, 1], [2, 2, 2, 2]]


def test_a_veil_shifts_the_mean_brightness():
    images = image_set(60)
    means = images.float().flatten(1).mean(1)
    for shift in (0.5, 2.0):
        veiled = brighten(images, shift).float().flatten(1).mean(1)
        moved = (veiled.mean() - means.mean()) / means.std()
        assert float(moved) == pytest.approx(shift, abs=0.01)
    assert brighten(images, 0.0) is images
    for shift in (-1.0, 100.0, float("nan")):
        with pytest.raises(ValueError, match=f"a shift of {shift}"):
            brighten(images, shift)


def test_images_are_folded_to_rows():
    part = pd.DataFrame({"psnr": [10.0, 20.0, 60.0], "ssim": [np.nan, 0.5, 0.7], "leaked": [False, True, True]})
    part = part.assign(dataset="d", seed=0, attack="a", factor="f", value=[2, 1, 1])
    more = part.assign(factor="e", psnr=[1.0, 2.0, 3.0], value=7)
    table = fold([part, more], "median")
    assert list(table.columns) == COLUMNS
    assert table["factor"].tolist() == ["f", "f", "e"]  # as they came, values rising
    assert table[["value", "psnr", "leak_rate", "images"]].values.tolist() == [[1, 40, 1, 2], [2, 10, 0, 1],
                                                                               [7, 2, 2 / 3, 3]]  # fmt: skip
    assert table["ssim"].tolist()[0] == pytest.approx(0.6)
    assert np.isnan(table["ssim"][1])
    assert fold([more], "mean")["psnr"].tolist() == [2.0]


# ---- gradient inversion ----------------------------------------------------------------------------------------------
def test_each_factor_of_inversion_has_its_rows(inverted):
    table = inverted.table
    assert list(table.columns) == COLUMNS
    assert set(table["attack"]) == {"fast"}
    assert rows(table, "batch_size")["images"].tolist() == [16, 16]
    assert rows(table, "repeated_labels")["images"].sum() == 48  # each image in three arrangements
    assert rows(table, "class")["images"].sum() == 16
    assert rows(table, "smoothness")["images"].tolist() == [6, 5, 5]
    assert rows(table, "training_stage")["images"].tolist() == [16, 16]
    assert rows(table, "iterations").index.tolist() == [3, 20]
    # Untrained, at the last iteration: one and the same run.
    end = rows(table, "iterations").loc[20]
    for factor, value in (("training_stage", 0), ("training_stage_right_labels", 0)):
        assert rows(table, factor).loc[value, "psnr"] == pytest.approx(end["psnr"], abs=1e-4)
    weighted = rows(table, "class").eval("psnr * images").sum() / 16
    assert weighted == pytest.approx(end["psnr"], abs=1e-4)


def test_factors_move_quality_as_they_should(inverted):
    psnr = inverted.table.set_index(["factor", "value"])["psnr"]
    assert psnr["batch_size", 1] > psnr["batch_size", 16] + 10
    assert psnr["repeated_labels", 0] > psnr["repeated_labels", 1] + 5
    assert psnr["iterations", 20] > psnr["iterations", 3] + 5


def test_examples_are_in_the_order_of_the_truth(inverted):
    truth = inverted.truth.float() / 255
    assert list(inverted.examples) == ["four classes", "two classes", "one class", "four classes,\ntrained model"]
    for images, psnr in inverted.examples.values():
        error = ((images - truth) ** 2).flatten(1).mean(1)
        torch.testing.assert_close(-10 * error.log10(), torch.tensor(psnr), atol=1e-2, rtol=1e-3)
    best = inverted.examples["four classes"][1]
    assert np.mean(best) == pytest.approx(rows(inverted.table, "iterations").loc[20, "psnr"], abs=1e-3)
    assert examples_chart(inverted.truth[:3], inverted.examples, "title").get_suptitle() == "title"


def test_given_clients_and_network_are_what_is_attacked(data):
    options = {"images": 4, "seed": 1, "iterations": 3}
    plain = attack_batches(data, "convnet-gelu", "fast", 2, **options)
    clients, network = draw_clients(data, 2, 4, 1), attacked_network("convnet-gelu", data, 1)
    same = attack_batches(data, "convnet-gelu", "fast", 2, clients=clients, network=network, **options)
    assert torch.equal(plain.inversion.leak.images, same.inversion.leak.images)
    turned = attack_batches(data, "convnet-gelu", "fast", 2, clients=clients[::-1], **options)
    assert torch.equal(turned.truth.images, plain.truth.images.flip(0))
    other = attack_batches(
        data, "convnet-gelu", "fast", 2, network=attacked_network("convnet-gelu", data, 2), **options
    )
    assert not torch.allclose(other.inversion.leak.images, plain.inversion.leak.images)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"images": 24, "batch_sizes": [16]}, "images is 24; take a multiple of 16"),
        ({"images": 6, "batch_sizes": [2]}, "take a multiple of 4"),
        ({"images": 0}, "images is 0"),
        ({"batch_sizes": [0]}, r"batch_sizes \[0\] has 0; the least is 1"),
        ({"batch_sizes": []}, "batch_sizes is empty"),
        ({"epochs": [0, -1]}, "epochs"),
        ({"iterations": [5, 5]}, "iterations .* has a value twice"),
        ({"network": "lenett"}, "unknown network 'lenett'"),
        ({"attack": "slow"}, "unknown attack 'slow'"),
        ({"images": 480}, "more than the 400 training images"),
    ],
)
def test_bad_settings_of_inversion_are_refused(data, wrong, message):
    with pytest.raises(ValueError, match=message):
        measure_inversion_trends(data, [0], **{"batch_sizes": [4], "images": 4} | wrong, progress=False)
    with pytest.raises(ValueError, match="seeds is empty"):
        measure_inversion_trends(data, [], progress=False)


# ---- linear layer leakage --------------------------------------------------------------------------------------------
def test_an_image_leaks_when_it_is_alone_in_its_bin(leaked):
    assert list(leaked.columns) == COLUMNS
    found = rows(leaked, "occupancy")
    assert found["images"].sum() == 192
    assert found.loc[1, "leak_rate"] == 1
    assert found.loc[1, "psnr"] > 80
    assert found.loc[1, "ssim"] == pytest.approx(1, abs=1e-3)
    shared = found[found.index > 1]
    assert shared["images"].sum() > 20
    assert (shared["leak_rate"] * shared["images"]).sum() <= 2  # of a mixture one image may stand out
    assert (shared["psnr"] < 20).all()


def test_brightness_and_bins_that_do_not_fit(leaked):
    assert rows(leaked, "brightness")["images"].tolist() == [39, 39, 38, 38, 38]
    fit, misfit = rows(leaked, "bin_mismatch")["leak_rate"]
    assert fit > misfit + 0.2
    share = rows(leaked, "brightness").eval("leak_rate * images").sum() / 192
    assert share == pytest.approx(fit)


def test_images_outside_of_bounded_bins_have_none(data):
    setting = Setting("loki", clients=6, images_per_client=32, fc_factor=0.25)
    found = rows(measure_linear_trends(data, setting, [0], shifts=[0.0], progress=False), "occupancy")
    assert found["images"].sum() == 192
    assert found.loc[0, "images"] >= 20  # of 8 bins, each tail holds a mass of 1/10
    assert found.loc[0, "leak_rate"] == 0
    assert found.loc[4, "images"] > 80


@pytest.mark.parametrize(
    ("setting", "shifts", "message"),
    [
        (Setting("trap_weights", clients=2), [0.0], "trap_weights has no bins"),
        (Setting("loki", clients=2), [0.5], "add 0.0"),
        (Setting("loki", clients=2), [0.0, -1.0], "the least is 0"),
        (Setting("loki", clients=2), [0.0, 99.0], "a shift of 99.0"),
        (Setting("loki", clients=60), [0.0], "has 400 training images"),
    ],
)
def test_bad_settings_of_linear_leakage_are_refused(data, setting, shifts, message):
    with pytest.raises(ValueError, match=message):
        measure_linear_trends(data, setting, [0], shifts=shifts, progress=False)


# ---- the verdict -----------------------------------------------------------------------------------------------------
MOVING = {
    "batch_size": {1: 45.0, 4: 30.0, 16: 15.0},
    "class": {0: 30.0, 1: 33.0, 2: 31.0},
    "repeated_labels": {0: 40.0, 1: 16.0, 2: 12.0},
    "training_stage": {0: 40.0, 3: 9.0},
    "iterations": {5: 12.0, 40: 40.0},
    "smoothness": {1: 30.0, 3: 30.0},
}


def trends(seeds=3, spread=0.1, dataset="cifar10", **factors):
    """Rows of quality_trends; the seeds differ by `spread` dB at the last value of each factor."""
    return pd.DataFrame(
        [
            {"dataset": dataset, "seed": seed, "attack": "fast", "factor": factor, "value": float(value)}
            | {"psnr": psnr + 5 * seed + (spread * (seed - 1) if value == max(values) else 0)}
            for factor, values in (MOVING | factors).items()
            for value, psnr in values.items()
            for seed in range(seeds)
        ]
    )


def only(findings):
    assert len(findings) == 1
    return findings[0]


def test_all_five_factors_count():
    found = only(quality_drivers(trends()))
    assert (found.dataset, found.verdict) == ("cifar10", "reproduced")
    assert found.measured == pytest.approx(3.0)  # of the classes
    assert found.low > 0
    assert "dB" in found.unit
    for words in ("batch size 1 to 16: -30.0 ± 0.2 dB (counts)", "class, best less worst", "repeated labels 0 to 2+"):
        assert words in found.why
    assert "smooth" not in found.why
    assert found.why.endswith("3 seeds")


def test_some_or_no_factors_count():
    still = {factor: {0: 20.0, 2: 20.0} for factor in FACTORS}
    found = only(quality_drivers(trends(batch_size={1: 20.0, 4: 20.0})))
    assert found.verdict == "partly"
    assert found.measured == pytest.approx(0)
    assert "batch size 1 to 4: -0.0 ± 0.2 dB (open)" in found.why or "+0.0 ± 0.2 dB (open)" in found.why
    assert only(quality_drivers(trends(**still))).verdict == "not reproduced"
    assert only(quality_drivers(trends(spread=12.2))).verdict == "partly"  # an interval of ±30.3: 31 dB counts
    assert only(quality_drivers(trends(spread=50.0))).verdict == "not reproduced"
    table = trends()
    found = only(quality_drivers(table[table["factor"] != "iterations"]))
    assert found.verdict == "partly"
    assert "iterations not run" in found.why
    assert [f.dataset for f in quality_drivers(pd.concat([table, trends(dataset="mnist5k")]))] == ["cifar10", "mnist5k"]


def test_too_few_seeds_give_no_verdict():
    for seeds in (1, 2):
        found = only(quality_drivers(trends(seeds=seeds)))
        assert found.verdict == "not run"
        assert "an interval is asked for over 3" in found.why
        assert "nan" not in found.why
    table = trends()
    alone = table[table["factor"] == "smoothness"]
    assert only(quality_drivers(alone)).verdict == "not run"


def test_choosing_classes_on_other_seeds_finds_nothing_in_noise():
    # Each seed has another best class; on the other two seeds the three are chosen among by their means.
    psnr = {0: (9.0, 0.0, 3.0), 1: (0.0, 6.0, 3.0), 2: (3.0, 0.0, 6.0)}
    table = pd.DataFrame(
        [{"seed": s, "factor": "class", "value": c, "psnr": v} for s, row in psnr.items() for c, v in enumerate(row)]
    )
    # Without seed 0: means 1.5, 3, 4.5, so class 2 less 0: 3 - 9; without 1: 6, 0, 4.5: 0 - 6; without 2: 4.5, 3, 3: 3.
    found = changes(table)["class"]
    assert found.n == 3
    assert found.mean == pytest.approx((-6 - 6 + 3) / 3)
    assert not changes(table[table["seed"] == 0])
    missing = table.drop(index=0)  # seed 0 has no class 0: 2 less 1 there; the others choose without it
    assert changes(missing)["class"].n == 3


# ---- charts ----------------------------------------------------------------------------------------------------------
def test_inversion_chart_has_a_panel_for_each_factor(inverted, data):
    fig = inversion_chart(inverted.table, data.classes)
    by_axis = {ax.get_xlabel(): ax for ax in fig.axes}
    assert len(by_axis) == 6
    batch = by_axis["images behind one update"]
    expected = rows(inverted.table, "batch_size")["psnr"].tolist()
    assert any(list(line.get_ydata()) == expected for line in batch.lines)
    assert [tick.get_text() for tick in batch.get_xticklabels()] == ["1", "16"]
    assert all("dB" in ax.get_ylabel() for ax in fig.axes)
    named = inverted.table.assign(dataset="cifar10")
    inversion_chart(named, [f"a long name {i}" for i in range(10)])


def test_charts_draw_the_mean_over_seeds_beside_them():
    table = trends(training_stage_right_labels={0: 40.0})
    fig = inversion_chart(table, list("abc"))
    classes = next(ax for ax in fig.axes if ax.get_xlabel() == "class")
    assert [tick.get_text() for tick in classes.get_xticklabels()] == ["a", "b", "c"]
    dots = [line for line in classes.lines if line.get_marker() == "."]
    assert len(dots[0].get_ydata()) == 9
    assert np.mean(dots[0].get_ydata()) == pytest.approx(0)  # differences from each seed's mean


def test_linear_chart_shows_shares_and_the_closed_form(leaked):
    fig = linear_chart(leaked, 0.78)
    first, second, third = fig.axes
    assert fig.get_suptitle() == "mnist5k, Robbing the Fed: which images leak?"
    ticks = [tick.get_text() for tick in first.get_xticklabels()]
    share = 100 * rows(leaked, "occupancy").loc[1, "images"] / 192
    assert ticks[0] == f"1\n({share:.0f} %)"
    assert [tick.get_text() for tick in third.get_xticklabels()] == ["0", "2"]
    assert any(set(line.get_ydata()) == {0.78} for line in second.lines)
    assert not linear_chart(leaked).axes[1].get_legend()
