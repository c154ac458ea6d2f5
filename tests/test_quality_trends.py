"""What drives quality: values of the factors by hand, measurements at tiny sizes, and charts."""

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import torch
from tiny import image_set

from leaklearn.attacks import Loki, RobbingTheFed, TrapWeights
from leaklearn.attacks.inversion import GradientInversion
from leaklearn.attacks.linear.bins import Bins
from leaklearn.data import load
from leaklearn.data.images import Dataset
from leaklearn.experiments.bench import Bench
from leaklearn.experiments.quality_trends import (
    arrange,
    brighten,
    measure_inversion_trends,
    measure_linear_trends,
    occupancy,
    others_alike,
    ranks,
    total_variation,
    veiled,
)
from leaklearn.experiments.rounds import Round
from leaklearn.federated import FedSGD
from leaklearn.report.figures_inversion import inversion_factors, linear_factors

COLUMNS = ["dataset", "seed", "attack", "factor", "value", "psnr", "psnr_median", "ssim", "leak_rate", "images"]


@pytest.fixture(autouse=True)
def _close_figures():
    yield
    plt.close("all")


@pytest.fixture(scope="module")
def bench():
    whole = load("mnist5k")
    return Bench(Dataset(whole.train[:400], whole.test[:200]), progress=False)


def inversion_trends(bench, network="convnet-gelu", attack="fast", **sizes):
    return measure_inversion_trends(bench, GradientInversion(attack), network, **sizes)


def linear_trends(bench, attack, clients, shifts):
    attacked = Round(attack, FedSGD(attack.images_per_client), clients)
    return measure_linear_trends(bench, attacked, veiled(bench, attacked, shifts))


@pytest.fixture(scope="module")
def inverted(bench):
    return inversion_trends(bench, images=16, batch_sizes=[1, 16], epochs=[0, 1], iterations=[3, 20])


@pytest.fixture(scope="module")
def leaked(bench):
    return linear_trends(bench, RobbingTheFed(4.0, 32), 6, [0.0, 2.0])


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
    assert occupancy(images, Bins(vector, low, high)).tolist() == [[0, 2, 2, 0], [0, 2, 2, 1]]
    endless = torch.tensor([0.3, float("inf")])
    assert occupancy(images, Bins(vector, low, endless)).tolist() == [[0, 2, 2, 1], [2, 2, 2, 2]]


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


# ---- gradient inversion ----------------------------------------------------------------------------------------------
def test_each_factor_of_inversion_has_its_rows(inverted):
    table, _ = inverted
    assert set(table.columns) == {*COLUMNS, "psnr_of_mean_colour", "psnr_of_mean_image", "readable"}
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
    psnr = inverted[0].set_index(["factor", "value"])["psnr"]
    assert psnr["batch_size", 1] > psnr["batch_size", 16] + 10
    assert psnr["repeated_labels", 0] > psnr["repeated_labels", 1] + 5
    assert psnr["iterations", 20] > psnr["iterations", 3] + 5


def test_examples_are_in_the_order_of_the_truth(inverted):
    table, examples = inverted
    assert list(examples) == ["four classes", "two classes", "one class", "four classes,\ntrained model"]
    first = examples["four classes"]
    for truth, images, psnr in examples.values():
        assert torch.equal(truth, first.truth)
        error = ((images - truth.float() / 255) ** 2).flatten(1).mean(1)
        torch.testing.assert_close(-10 * error.log10(), torch.tensor(psnr), atol=1e-2, rtol=1e-3)
    assert np.mean(first.psnr) == pytest.approx(rows(table, "iterations").loc[20, "psnr"], abs=1e-3)


def test_blanks_and_readable_images_stand_beside(inverted):
    table = inverted[0]
    assert (table["readable"] <= table["leak_rate"]).all()
    end = rows(table, "iterations")
    assert end["psnr_of_mean_image"].nunique() == 1  # the same images
    assert end.loc[20, "readable"] > 0.5
    assert end.loc[3, "readable"] == 0


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
def test_bad_settings_of_inversion_are_refused(bench, wrong, message):
    with pytest.raises(ValueError, match=message):
        inversion_trends(bench, **{"batch_sizes": [4], "images": 4} | wrong)
    with pytest.raises(ValueError, match="seeds is empty"):
        inversion_trends(Bench(bench.data, seeds=[]))


# ---- linear layer leakage --------------------------------------------------------------------------------------------
def test_an_image_leaks_when_it_is_alone_in_its_bin(leaked):
    assert set(leaked.columns) == {*COLUMNS} - {"ssim"}
    found = rows(leaked, "occupancy")
    assert found["images"].sum() == 192
    assert found.loc[1, "leak_rate"] == 1
    assert found.loc[1, "psnr"] > 80
    shared = found[found.index > 1]
    assert shared["images"].sum() > 20
    assert (shared["leak_rate"] * shared["images"]).sum() <= 2  # of a mixture one image may stand out
    assert (shared["psnr_median"] < 20).all()


def test_brightness_and_bins_that_do_not_fit(leaked):
    assert rows(leaked, "brightness")["images"].tolist() == [39, 39, 38, 38, 38]
    fit, misfit = rows(leaked, "bin_mismatch")["leak_rate"]
    assert fit > misfit + 0.2
    share = rows(leaked, "brightness").eval("leak_rate * images").sum() / 192
    assert share == pytest.approx(fit)


def test_images_outside_of_bounded_bins_have_none(bench):
    found = rows(linear_trends(bench, Loki(0.25, 32), 6, [0.0]), "occupancy")
    assert found["images"].sum() == 192
    assert found.loc[0, "images"] >= 20  # of 8 bins, each tail holds a mass of 1/10
    assert found.loc[0, "leak_rate"] == 0
    assert found.loc[4, "images"] > 80


@pytest.mark.parametrize(
    ("attack", "clients", "shifts", "message"),
    [
        (TrapWeights(), 2, [0.0], "trap_weights has no bins"),
        (Loki(), 2, [0.5], "add 0.0"),
        (Loki(), 2, [0.0, -1.0], "the least is 0"),
        (Loki(), 2, [0.0, 99.0], "a shift of 99.0"),
        (Loki(), 60, [0.0], "has 400 training images"),
    ],
)
def test_bad_settings_of_linear_leakage_are_refused(bench, attack, clients, shifts, message):
    with pytest.raises(ValueError, match=message):
        linear_trends(bench, attack, clients, shifts)


# ---- charts ----------------------------------------------------------------------------------------------------------
def several(table, seeds=3):
    return pd.concat([table.assign(seed=seed, psnr=table["psnr"] + seed) for seed in range(seeds)])


def test_the_chart_of_inversion_has_a_panel_for_each_factor(inverted, bench):
    fig = inversion_factors(several(inverted[0]), bench.data.classes)
    by_axis = {ax.get_xlabel(): ax for ax in fig.axes}
    assert len(by_axis) == 6
    batch = by_axis["images behind one update"]
    expected = rows(inverted[0], "batch_size")["psnr"] + 1  # the mean of three seeds
    assert any(np.allclose(line.get_ydata(), expected) for line in batch.lines if len(line.get_ydata()) == 2)
    assert [tick.get_text() for tick in batch.get_xticklabels()] == ["1", "16"]
    assert all("dB" in ax.get_ylabel() for ax in fig.axes)
    texts = [text.get_text() for text in fig.legends[0].get_texts()]
    assert "blank: the image's own mean colour" in texts
    dots = [line for line in by_axis["class"].lines if line.get_marker() == "."]
    assert np.mean([line.get_ydata() for line in dots]) == pytest.approx(0, abs=1e-9)  # from each seed's own mean
    longer = inversion_factors(inverted[0].assign(dataset="cifar10"), [f"a long name {i}" for i in range(10)])
    assert longer.get_suptitle().startswith("CIFAR-10")


def test_the_chart_of_linear_leakage_shows_shares_and_the_closed_form(leaked):
    fig = linear_factors(leaked, 0.78)
    first, second, third = fig.axes
    assert fig.get_suptitle() == "mnist5k, Robbing the Fed: which images leak?"
    ticks = [tick.get_text() for tick in first.get_xticklabels()]
    share = 100 * rows(leaked, "occupancy").loc[1, "images"] / 192
    assert ticks[0] == f"1\n({share:.0f} %)"
    assert [tick.get_text() for tick in third.get_xticklabels()] == ["0", "2"]
    levels = [{y for part in ax.collections for y in np.ravel(part.get_segments())[1::2]} for ax in (first, second)]
    assert 0.78 not in levels[0]
    assert 0.78 in levels[1]
