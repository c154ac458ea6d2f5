"""Intervals over seeds and test images: by hand, against SciPy, and their coverage by simulation."""

from math import hypot, inf, nan, sqrt

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from leaklearn.evaluation import Interval, equivalent, interval, summarise


def test_interval_by_hand():
    found = interval([1.0, 2.0, 3.0])
    half = 4.302653 / np.sqrt(3)  # t(0.975, 2) from a table, standard deviation 1
    assert (found.mean, found.n) == (2.0, 3)
    assert (found.low, found.high) == pytest.approx((2 - half, 2 + half), abs=1e-5)
    assert found.half == pytest.approx(half, abs=1e-5)


@pytest.mark.parametrize("level", [0.8, 0.95, 0.99])
def test_interval_against_scipy(level):
    values = np.random.default_rng(0).normal(3, 2, size=7)
    found = interval(values, level)
    assert (found.low, found.high) == pytest.approx(stats.t.interval(level, 6, values.mean(), stats.sem(values)))


def test_one_value_has_no_interval():
    found = interval([0.5])
    assert found.mean == 0.5
    assert np.isnan([found.low, found.high]).all()
    assert "no interval" in str(found)


def test_intervals_in_percent():
    found = interval([0.1, 0.2, 0.3]).scaled(100)
    assert found.mean == pytest.approx(20)
    assert found.low < 20 < found.high
    assert str(found) == "20 ± 24.8 (n=3)"


@pytest.mark.parametrize("values", [[], [1.0, float("nan")], [1.0, float("inf")]])
def test_values_without_a_mean(values):
    with pytest.raises(ValueError, match=r"no values|1 of 2 values are not finite"):
        interval(values)


def test_interval_needs_a_coverage():
    with pytest.raises(ValueError, match="level is 95"):
        interval([1.0, 2.0], level=95)


def test_summaries_of_a_tidy_table():
    table = pd.DataFrame(
        {
            "source": ["lll", "lll", "fedavg", "fedavg"],
            "seed": [0, 1, 0, 1],
            "accuracy": [0.9, 0.8, 0.5, 0.7],
            "psnr": [60.0, np.nan, np.nan, np.nan],
        }
    )
    found = summarise(table, "source", ["accuracy", "psnr"])
    assert list(found.columns) == ["source", "measure", "mean", "low", "high", "n"]
    assert found["source"].tolist() == ["lll", "lll", "fedavg", "fedavg"]
    assert found["mean"].tolist()[:3] == pytest.approx([0.85, 60, 0.6])
    assert found["n"].tolist() == [2, 1, 2, 0]
    assert found.loc[0, "low"] == pytest.approx(interval([0.9, 0.8]).low)
    assert np.isnan(found.loc[3, "mean"])
    two = summarise(table.assign(dataset="mnist5k"), ["dataset", "source"], "accuracy")
    assert two[["dataset", "source"]].drop_duplicates().shape == (2, 2)
    with pytest.raises(ValueError, match="no column acc; the table has source"):
        summarise(table, "source", "acc")


def test_ends_stay_within_the_bounds():
    free, cut = (interval([0.98, 1.0, 0.97], bounds=bounds) for bounds in (None, (0, 1)))
    assert free.high > 1 == cut.high
    assert (cut.low, cut.mean, cut.n) == (free.low, free.mean, 3)
    assert str(cut) == "0.9833 [0.9454, 1] (n=3)"  # no "±" where the two sides differ
    assert interval([0.01, 0.0, 0.02], bounds=(0, inf)).low == 0
    with pytest.raises(ValueError, match="the mean 97 is beyond its bounds, 0 to 1"):
        interval([97.0, 97.0], bounds=(0, 1))


@pytest.mark.parametrize(("right", "images"), [(0, 50), (7, 50), (930, 1000), (1000, 1000)])
@pytest.mark.parametrize("level", [0.9, 0.95])
def test_seeds_that_agree_leave_wilsons_interval(right, images, level):
    found = interval([right / images] * 3, level, test_images=images)
    wilson = stats.binomtest(right, images).proportion_ci(level, "wilson")
    assert (found.low, found.high) == pytest.approx((wilson.low, wilson.high), abs=1e-12)


def test_a_large_test_set_leaves_the_seeds_interval():
    values = [0.61, 0.64, 0.60]
    seeds, all_images = interval(values), interval(values, test_images=10**12)
    assert (all_images.low, all_images.high) == pytest.approx((seeds.low, seeds.high), abs=1e-5)


def test_seeds_and_test_images_add_as_squares():
    values = np.array([0.61, 0.64, 0.60, 0.63])
    found = interval(values, test_images=10_000)
    p = values.mean()
    half = hypot(stats.t.ppf(0.975, 3) * values.std(ddof=1) / 2, stats.norm.ppf(0.975) * sqrt(p * (1 - p) / 10_000))
    assert found.half == pytest.approx(half, rel=1e-3)
    assert interval([0.61], test_images=100).n == 1
    assert np.isnan(interval([0.61], test_images=100).half)


def test_accuracies_of_all_or_nothing_keep_a_width_within_the_range():
    nothing, everything = (interval([value] * 3, test_images=100) for value in (0.0, 1.0))
    assert (nothing.low, everything.high) == pytest.approx((0, 1), abs=1e-15)
    assert nothing.high == pytest.approx(1 - everything.low)
    assert 0.03 < nothing.high < 0.04
    assert interval([0.999, 1.0, 0.98], test_images=100).high == 1


def test_differences_are_paired_and_add_the_sampling_of_both():
    a, b = np.array([0.71, 0.75, 0.70]), np.array([0.61, 0.66, 0.59])
    seeds = interval(a, minus=b)
    paired = stats.t.interval(0.95, 2, 0.1, 0.01 / sqrt(3))  # differences 0.10, 0.09, 0.11
    assert (seeds.mean, seeds.low, seeds.high) == pytest.approx((0.1, *paired))
    found = interval(a, minus=b, test_images=1000)
    wilson = [stats.binomtest(round(1000 * x.mean()), 1000).proportion_ci(method="wilson") for x in (a, b)]
    low = found.mean - hypot(seeds.mean - seeds.low, a.mean() - wilson[0].low, wilson[1].high - b.mean())
    high = found.mean + hypot(seeds.mean - seeds.low, wilson[0].high - a.mean(), b.mean() - wilson[1].low)
    assert (found.low, found.high) == pytest.approx((low, high), abs=1e-12)
    turned = interval(b, minus=a, test_images=1000)
    assert (turned.low, turned.high) == pytest.approx((-found.high, -found.low))
    with pytest.raises(ValueError, match="3 values minus 2: differences are paired"):
        interval(a, minus=b[:2])


@pytest.mark.parametrize(
    ("values", "images", "message"),
    [([50.0, 60.0], 100, r"accuracies in 0\.\.1, not 50\.\.60"), ([0.5, 0.6], 0, "test_images is 0")],
)
def test_what_is_no_accuracy_has_no_test_set(values, images, message):
    with pytest.raises(ValueError, match=message):
        interval(values, test_images=images)


def worlds(seed, *, shared=1.0, trials=1000, images=300, seeds=5):
    """(trials, seeds) accuracies of two learners, a new test set each trial, and their true means over all images.

    A logit is skill + the seed's luck + the image's difficulty, of which the share `shared` is common to both learners:
    seeds of a learner err on the same images, and the learners partly so.
    """
    generator = np.random.default_rng(seed)
    skill = np.array([0.5, 0.8])[:, None, None, None]
    scatter = 0.05 * generator.standard_normal((2, trials, seeds, 1))

    def chance(count, number, scatter):
        common, own = (generator.standard_normal((n, count, 1, number)) for n in (1, 2))
        return 1 / (1 + np.exp(-(skill + scatter + 3 * (sqrt(shared) * common + sqrt(1 - shared) * own))))

    truth = chance(1, 400_000, 0).mean((1, 2, 3))
    q = chance(trials, images, scatter)
    return *(generator.random(q.shape) < q).mean(-1), *truth


def coverage(found, truth):
    return np.mean([each.low <= truth <= each.high for each in found])


def test_coverage_over_test_sets():
    """The seeds' interval alone speaks of one test set; new test sets are covered only with their sampling."""
    accuracies, _, truth, _ = worlds(seed=0)
    assert coverage([interval(each) for each in accuracies], truth) < 0.75
    assert 0.95 <= coverage([interval(each, test_images=300) for each in accuracies], truth) < 0.999


@pytest.mark.parametrize(("shared", "seeds_alone"), [(1.0, 0.95), (0.5, 0.76)])
def test_coverage_of_differences(shared, seeds_alone):
    """Where both learners err on the same images the seeds' interval is enough; where they do not, its bound covers."""
    a, b, mean_a, mean_b = worlds(seed=1, shared=shared)
    alone, bound = ([interval(y, minus=x, test_images=n) for x, y in zip(a, b, strict=True)] for n in (None, 300))
    assert coverage(alone, mean_b - mean_a) == pytest.approx(seeds_alone, abs=0.05)
    assert coverage(bound, mean_b - mean_a) >= 0.95


def test_summaries_with_bounds_and_test_sets():
    table = pd.DataFrame(
        {
            "dataset": ["small"] * 3 + ["large"] * 3,
            "accuracy": [0.9, 0.95, 1.0] * 2,
            "psnr": [20.0, 21.0, 22.0] * 2,
            "test": [100] * 3 + [10_000] * 3,
        }
    )
    found = summarise(table, "dataset", ["accuracy", "psnr"], test_images={"accuracy": "test"})
    values = [0.9, 0.95, 1.0]
    expected = [interval(values, test_images=100), interval([20, 21, 22]), interval(values, test_images=10_000)]
    for i, each in enumerate(expected):
        assert (found.loc[i, "low"], found.loc[i, "high"]) == pytest.approx((each.low, each.high))
    same = summarise(table, "dataset", "accuracy", test_images=100)
    assert same["low"].tolist() == pytest.approx([expected[0].low] * 2)
    assert (summarise(table, "dataset", "accuracy", bounds=(0, 1))["high"] == 1).all()
    cut = summarise(table, "dataset", ["accuracy", "psnr"], bounds={"accuracy": (0, 1)})
    assert (cut["high"] > 1).tolist() == [False, True] * 2
    with pytest.raises(ValueError, match="within the group"):
        summarise(table.assign(all="one"), "all", "accuracy", test_images="test")
    with pytest.raises(ValueError, match="no column tests"):
        summarise(table, "dataset", "accuracy", test_images="tests")
    with pytest.raises(ValueError, match="accuracies in 0"):
        summarise(table, "dataset", ["accuracy", "psnr"], test_images=100)


@pytest.mark.parametrize(
    ("low", "high", "verdict"),
    [
        (-0.5, 0.9, "equivalent"),
        (-1.0, 1.0, "equivalent"),
        (-0.5, 1.1, "open"),
        (0.2, 3.0, "open"),  # apart from 0, and perhaps by more than matters
        (1.1, 3.0, "different"),
        (-3.0, -1.1, "different"),
        (-2.0, 2.0, "open"),
        (nan, nan, "open"),
    ],
)
def test_equivalence_is_decided_by_the_whole_interval(low, high, verdict):
    assert equivalent(Interval((low + high) / 2, low, high, 3), margin=1.0) == verdict


@pytest.mark.parametrize("margin", [0.0, -1.0, nan])
def test_equivalence_needs_a_margin(margin):
    with pytest.raises(ValueError, match="margin is"):
        equivalent(Interval(0.0, -1.0, 1.0, 3), margin)


def test_equivalence_errs_no_more_often_than_its_tests():
    """At a true difference of exactly the margin, one of the two one-sided tests of 2.5 % is wrong."""
    generator = np.random.default_rng(2)
    found = [equivalent(interval(generator.normal(1, 0.2, size=5)), 1.0) for _ in range(2000)]
    assert 0.015 <= found.count("equivalent") / 2000 <= 0.035
    assert 0.015 <= found.count("different") / 2000 <= 0.035
