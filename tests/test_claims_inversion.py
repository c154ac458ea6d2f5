"""Verdicts on gradient inversion: each rule on tables made to hold, to fail, and to say too little."""

import pandas as pd
import pytest

from leaklearn.report.claims import judge
from leaklearn.report.inversion_rules import breach, cost, days_number, psnr_number, quality_falls


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


def test_quality_that_falls_with_the_batch_is_half_of_the_claim():
    found = only(quality_falls(quality(**FALLING)))
    assert found.verdict == "partly"
    assert "downstream accuracy not measured" in found.why
    assert found.measured == pytest.approx(-3.5)
    assert "dB a doubling" in found.unit
    table = quality(**FALLING)
    whole = only(quality_falls(table.assign(accuracy=0.9 - 0.001 * table["batch_size"])))
    assert whole.verdict == "reproduced"
    rising = only(quality_falls(table.assign(accuracy=0.9 + 0.001 * table["batch_size"])))
    assert rising.verdict == "partly"


def test_quality_that_does_not_fall():
    assert only(quality_falls(quality(b1=20.0, b4=20.5))).verdict == "not reproduced"
    mixed = pd.concat([quality(**FALLING), quality(model="lenet", b1=20.0, b4=20.5)])
    found = only(quality_falls(mixed))
    assert found.verdict == "partly"
    assert found.measured == pytest.approx(0.25)  # the flattest curve is told
    assert "lenet, fast: +0.25" in found.why
    assert only(quality_falls(quality(b4=20.5))).verdict == "not run"


def test_two_lengths_of_one_attack_are_two_curves():
    longer = quality(**{name: psnr + 5 for name, psnr in FALLING.items()}).assign(iterations=1000)
    found = only(quality_falls(pd.concat([quality(**FALLING), longer])))
    assert "convnet, fast, 400: -3.50" in found.why
    assert "convnet, fast, 1000: -3.50" in found.why


def test_the_cost_and_how_far_it_is_cut():
    table = pd.concat([costs(inverting_gradients=60.0, fast=1.0), costs(model="lenet", inverting_gradients=0.2)])
    resnet, lenet = cost(table)
    assert (resnet.verdict, resnet.detail) == ("reproduced", "resnet18 on cpu")
    assert resnet.measured == pytest.approx(60)
    assert "fast takes 1 days, 60 times less" in resnet.why
    assert "24,000 iterations" in resnet.why
    assert lenet.verdict == "not reproduced"
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
    found = only(psnr_number(quality(seeds=seeds, b4=psnr, b1=40.0)))
    assert found.verdict == verdict
    assert found.target == 27.88
    assert found.measured == pytest.approx(psnr, abs=0.11)
    assert "network is unknown" in found.why


def test_p4_rests_on_the_best_network_and_tells_the_others():
    found = only(psnr_number(pd.concat([quality(model="resnet18", b4=14.0), quality(b4=28.0)])))
    assert found.measured == pytest.approx(28.0)
    assert found.why.startswith("convnet, fast, 400 iterations, batch size 4: +0.12 dB")
    assert "resnet18, fast, 400 iterations, batch size 4: 14.00 dB" in found.why
    other = only(psnr_number(quality("mnist5k", b4=28.0)))
    assert other.verdict == "not run"
    assert "the paper's number is for CIFAR-10" in other.why


@pytest.mark.parametrize(
    ("device", "days", "verdict"),
    [
        ("NVIDIA A100", 50.0, "reproduced"),
        ("NVIDIA A100", 5.0, "partly"),
        ("NVIDIA H100", 40.0, "partly"),
        ("NVIDIA A100", 200.0, "not reproduced"),
        ("cpu", 50.0, "not run"),
    ],
)
def test_days_beside_p5(device, days, verdict):
    found = only(days_number(costs(device=device, inverting_gradients=days, fast=0.1)))
    assert found.verdict == verdict
    assert (found.target, found.unit) == (61.17, "days")
    assert found.measured == pytest.approx(days)
    assert "times" in found.why


def test_a_breach_at_batch_size_100():
    mean = quality(b100=14.0, b4=30.0)
    found = only(breach(mean))
    assert found.verdict == "not run"
    assert "share of readable images is not known" in found.why
    assert only(breach(quality(b100=21.0))).verdict == "reproduced"
    shares = only(breach(mean.assign(leak_rate=0.05)))
    assert (shares.verdict, shares.unit) == ("reproduced", "% of images")
    assert shares.measured == pytest.approx(5)
    assert only(breach(mean.assign(leak_rate=0.0))).verdict == "not reproduced"
    few = only(breach(mean.assign(leak_rate=[0.01 * (i % 3 == 0) for i in range(len(mean))])))
    assert (few.verdict, few.low < 0) == ("partly", True)
    elsewhere = quality("mnist5k", b100=21.0)
    assert only(breach(elsewhere)).verdict == "partly"
    found = only(breach(elsewhere.assign(leak_rate=0.0)))
    assert found.verdict == "not run"
    assert found.why.startswith("measured on mnist5k")
    assert breach(quality(b64=21.0)) == []


def test_claims_are_decided_by_both_tables():
    tables = {"gi_quality": quality(**FALLING), "gi_cost": costs(inverting_gradients=60.0, fast=1.0)}
    claims = judge(tables).set_index("claim")
    assert claims.loc["C2", "verdict"] == "partly"
    assert claims.loc["C3", "verdict"] == "reproduced"
    assert claims.loc["P4", "verdict"] == "reproduced"
    assert claims.loc["P5", "verdict"] == "not run"
    assert "nothing in the table gi_quality" in claims.loc["P7", "why"]
