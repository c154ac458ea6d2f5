"""Verdicts on gradient inversion: each rule on tables made to hold, to fail, and to say too little."""

import numpy as np
import pandas as pd
import pytest

from leaklearn.report.claims import judge
from leaklearn.report.paper import statement
from leaklearn.report.rules_inversion import (
    FACTORS,
    breach,
    changes,
    cost,
    days_number,
    psnr_number,
    quality_drivers,
    quality_falls,
)

P4, P5 = statement("P4").value, statement("P5").value


def quality(dataset="cifar10", model="convnet", attack="fast", seeds=3, spread=0.1, **by_batch):
    """Rows of gi_quality; `b4=28.0` is a PSNR of 28 dB at batch size 4."""
    return pd.DataFrame(
        [
            {"dataset": dataset, "seed": seed, "model": model, "attack": attack, "batch_size": int(name[1:])}
            | {"iterations": 400, "psnr": psnr + spread * (seed - 1), "ssim": 0.5, "label_accuracy": 1.0}
            for name, psnr in by_batch.items()
            for seed in range(seeds)
        ]
    )


def costs(dataset="cifar10", model="resnet18", device="cpu", batch_size=4, seeds=3, **days):
    return pd.DataFrame(
        [
            {"dataset": dataset, "seed": seed, "model": model, "attack": attack, "batch_size": batch_size}
            | {"device": device, "seconds_per_iteration": 0.1, "iterations": 24000 if attack[0] == "i" else 400}
            | {"images": 64, "days_for_50k": value * (1 + 0.01 * (seed - 1))}
            for attack, value in days.items()
            for seed in range(seeds)
        ]
    )


def only(findings):
    assert len(findings) == 1
    return findings[0]


FALLING = {"b1": 35.0, "b4": 28.0, "b16": 21.0}


def worth(table, slope=-0.02, noise=0.001):
    """With accuracies that change by `slope` for each doubling of the batch."""
    accuracy = 0.9 + slope * np.log2(table["batch_size"]) + noise * ((table["seed"] - 1) * table["batch_size"] % 3)
    return table.assign(accuracy=accuracy)


def test_quality_that_falls_at_every_step():
    table = quality(**FALLING)
    found = only(quality_falls(table))
    assert found.verdict == "partly"
    assert "downstream accuracy not measured" in found.why
    assert found.measured == pytest.approx(-7)
    assert found.high < 0
    whole = only(quality_falls(worth(table, slope=-0.1)))
    assert whole.verdict == "reproduced"
    assert "2 of 2 steps of accuracy fall for sure" in whole.why
    assert only(quality_falls(worth(quality(seeds=2, **FALLING), slope=-0.1))).verdict == "partly"
    assert only(quality_falls(quality(seeds=1, **FALLING))).verdict == "partly"
    assert only(quality_falls(quality(b4=20.5))).verdict == "not run"


def test_quality_that_rises_at_a_step():
    # Lower at the end than at the beginning, yet it rises in between: a straight line would not see it.
    bent = quality(b1=17.0, b4=12.5, b16=12.9, b100=13.3)
    found = only(quality_falls(bent))
    assert found.verdict == "not reproduced"
    assert "1 of 3 steps of PSNR fall for sure, it rises from 4 to 16 by +0.40" in found.why
    assert "16 to 100 by +0.40" in found.why
    assert found.measured == pytest.approx(0.4)
    assert only(quality_falls(quality(b1=20.0, b4=20.0))).verdict == "not reproduced"  # nothing falls
    mixed = only(quality_falls(pd.concat([quality(**FALLING), quality(model="lenet", b1=20.0, b4=20.5)])))
    assert mixed.verdict == "partly"
    assert "LeNet, fast (ours), 400 iterations: 0 of 1 steps" in mixed.why
    assert only(quality_falls(worth(quality(**FALLING), slope=0.1))).verdict == "partly"


def test_a_step_that_is_not_sure_leaves_the_claim_open():
    table = quality(b1=35.0, b4=28.0, b16=27.9)
    table.loc[table["batch_size"] == 16, "psnr"] += [0.5, -0.5, 0.0]
    found = only(quality_falls(worth(table, slope=-0.1)))
    assert found.verdict == "partly"
    assert "1 of 2 steps of PSNR fall for sure, weakest from 4 to 16" in found.why


def test_two_lengths_of_one_attack_are_two_curves():
    longer = quality(**{name: psnr + 5 for name, psnr in FALLING.items()}).assign(iterations=1000)
    found = only(quality_falls(pd.concat([quality(**FALLING), longer])))
    assert "ConvNet, fast (ours), 400 iterations: 2 of 2" in found.why
    assert "ConvNet, fast (ours), 1,000 iterations: 2 of 2" in found.why


def test_the_cost_is_told_and_how_far_it_is_cut():
    table = pd.concat([costs(inverting_gradients=60.0, fast=1.0), costs(model="lenet", inverting_gradients=0.2)])
    resnet, lenet = cost(table)
    assert (resnet.verdict, resnet.detail) == ("measured", "ResNet-18 on cpu")
    assert resnet.measured == pytest.approx(60)
    assert resnet.low < 60 < resnet.high
    assert "the cheapest, fast (ours), takes 1 [" in resnet.why
    assert "60 [60, 60] times less" in resnet.why  # of each seed's own ratio
    assert "24,000 iterations" in resnet.why
    assert lenet.verdict == "measured"  # a question: a small price is an answer too
    assert only(cost(costs(fast=1.0))).verdict == "not run"
    assert "batch size 8" in only(cost(costs(batch_size=8, inverting_gradients=2.0))).why


@pytest.mark.parametrize(
    ("psnr", "seeds", "verdict"),
    [
        (27.0, 3, "reproduced"),
        (31.0, 3, "reproduced"),
        (31.0, 1, "partly"),
        (25.5, 3, "partly"),
        (20.0, 3, "not reproduced"),
    ],
)
def test_psnr_beside_p4(psnr, seeds, verdict):
    found = only(psnr_number(quality(seeds=seeds, b4=psnr, b1=40.0), P4))
    assert found.verdict == verdict
    assert found.target == 27.88
    assert found.measured == pytest.approx(psnr, abs=0.11)
    assert "network is unknown" in found.why


def test_p4_rests_on_the_best_network_and_tells_the_others():
    found = only(psnr_number(pd.concat([quality(model="resnet18", b4=14.0), quality(b4=28.0)]), P4))
    assert found.measured == pytest.approx(28.0)
    assert found.why.startswith("ConvNet, fast (ours), 400 iterations, batch size 4: +0.12 dB")
    assert "ResNet-18, fast (ours), 400 iterations, batch size 4: 14.00 dB" in found.why
    other = only(psnr_number(quality("mnist5k", b4=28.0), P4))
    assert other.verdict == "not comparable"
    assert "the paper's number is for CIFAR-10" in other.why


@pytest.mark.parametrize(
    ("device", "days", "verdict"),
    [
        ("NVIDIA A100", 50.0, "reproduced"),
        ("NVIDIA A100", 5.0, "partly"),
        ("NVIDIA H100", 40.0, "partly"),
        ("NVIDIA A100", 200.0, "not reproduced"),
        ("cpu", 50.0, "not comparable"),
    ],
)
def test_days_beside_p5(device, days, verdict):
    found = only(days_number(costs(device=device, inverting_gradients=days, fast=0.1), P5))
    assert found.verdict == verdict
    assert (found.target, found.unit) == (61.17, "days")
    assert found.measured == pytest.approx(days)
    assert "times" in found.why


def breached(readable, dataset="cifar10", seeds=3, **columns):
    """Batches of 100 of which so many images are readable, for each seed."""
    table = quality(dataset, seeds=seeds, b100=14.0)
    blanks = {"psnr_of_mean_colour": 12.0, "psnr_of_mean_image": 11.0}
    return table.assign(readable_images=readable, readable=np.array(readable) / 100, images=100, **blanks | columns)


def test_a_breach_at_batch_size_100():
    found = only(breach(breached([5, 6, 7]), 100))
    assert (found.verdict, found.unit) == ("reproduced", "% of images")
    assert found.measured == pytest.approx(6)
    assert "18 of 300 images reach 20 dB and stand 3 dB above the better blank" in found.why
    assert "blanks 12.0 (own mean colour) and 11.0 (mean image)" in found.why
    assert only(breach(breached([30, 0, 0]), 100)).verdict == "partly"  # the interval reaches down to none
    assert only(breach(breached([20, 20], seeds=2), 100)).verdict == "partly"
    two = only(breach(breached([1, 0, 1]), 100))  # never earned by two images
    assert (two.verdict, two.measured) == ("not reproduced", pytest.approx(2 / 3))
    assert only(breach(breached([3, 3, 3]), 100)).verdict == "not reproduced"  # sure, but nine images
    assert only(breach(breached([0, 0, 0]), 100)).verdict == "not reproduced"
    elsewhere = only(breach(breached([50, 50, 50], "mnist5k"), 100))
    assert elsewhere.verdict == "not comparable"
    assert elsewhere.why.startswith("measured on mnist5k")
    assert breach(breached([5, 6, 7]).assign(batch_size=64), 100) == []


def test_a_table_without_blanks_is_no_test_of_the_breach():
    claims = judge({"gi_quality": quality(b100=14.0, b4=28.0).assign(leak_rate=0.01)}).set_index("claim")
    assert claims.loc["P7", "verdict"] == "not run"
    assert "lacks images, psnr_of_mean_colour, psnr_of_mean_image, readable" in claims.loc["P7", "why"]
    assert claims.loc["P4", "verdict"] == "reproduced"


def test_claims_are_decided_by_both_tables():
    tables = {"gi_quality": quality(**FALLING), "gi_cost": costs(inverting_gradients=60.0, fast=1.0)}
    claims = judge(tables).set_index("claim")
    assert claims.loc["C2", "verdict"] == "partly"
    assert claims.loc["C3", "verdict"] == "measured"
    assert claims.loc["P4", "verdict"] == "reproduced"
    assert claims.loc["P5", "verdict"] == "not comparable"
    everything = judge({"gi_quality": breached([5, 6, 7]).assign(batch_size=64)}).set_index("claim")
    assert "nothing in the table gi_quality" in everything.loc["P7", "why"]


# ---- what drives quality ---------------------------------------------------------------------------------------------
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


def test_all_five_factors_count():
    found = only(quality_drivers(trends()))
    assert (found.dataset, found.verdict) == ("cifar10", "reproduced")
    assert found.measured == pytest.approx(3.0)  # of the classes
    assert found.low > 0
    assert "dB" in found.unit
    for words in (
        "batch size 1 to 16: -30.0 [-30.2, -29.8] dB (counts)",
        "best less worst",
        "others of the class 0 to 2",
    ):
        assert words in found.why
    assert "smooth" not in found.why
    assert found.why.endswith("3 seeds")


def test_some_or_no_factors_count():
    still = {factor: {0: 20.0, 2: 20.0} for factor in FACTORS}
    found = only(quality_drivers(trends(batch_size={1: 20.0, 4: 20.0})))
    assert found.verdict == "partly"
    assert found.measured == pytest.approx(0)
    assert "0.0 [-0.2, +0.2] dB (open)" in found.why
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
