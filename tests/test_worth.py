"""What reconstructions are worth: data-equivalent size by hand, network distances layer by layer, groups of quality."""

import io
from itertools import pairwise
from math import inf, isnan, log, nan

import pandas as pd
import pytest
import torch
from tiny import image_set

from leaklearn.data.images import Dataset
from leaklearn.evaluation.perceptual import network_distances
from leaklearn.evaluation.statistics import interval
from leaklearn.evaluation.worth import equivalent_size, equivalent_sizes
from leaklearn.experiments.harvest import InversionSettings
from leaklearn.experiments.quality_groups import (
    MEASURES,
    Graded,
    compare_groups,
    rank_correlations,
    trainings,
    worth_in_clean_images,
)
from leaklearn.leaks import Leak
from leaklearn.learning import Recipe
from leaklearn.models import build
from leaklearn.report.claims import judge
from leaklearn.report.learning_rules import poor_help
from leaklearn.report.quality import correlation_chart, groups_chart, mixtures_chart, worth_chart


def rungs(seed=0, **accuracy):
    return pd.DataFrame([{"seed": seed, "images": int(n[1:]), "accuracy": a} for n, a in accuracy.items()])


def test_equivalent_size_by_hand():
    ladder = rungs(n10=0.5, n100=0.7, n1000=0.9)
    assert equivalent_size(ladder, 0.7) == pytest.approx(100)
    assert equivalent_size(ladder, 0.6) == pytest.approx(10**1.5)
    assert equivalent_size(ladder, 0.85) == pytest.approx(10**2.75)
    assert equivalent_size(ladder, 0.5) == pytest.approx(10)
    assert equivalent_size(ladder, 0.49) == 0
    assert equivalent_size(ladder, 0.91) == inf
    falling = rungs(n10=0.5, n100=0.8, n1000=0.6)  # pooled: both larger sizes give 0.7
    assert equivalent_size(falling, 0.6) == pytest.approx(10**1.5)
    assert equivalent_size(falling, 0.7) == pytest.approx(100)
    with pytest.raises(ValueError, match="two sizes"):
        equivalent_size(rungs(n10=0.5), 0.4)


def test_equivalent_sizes_by_hand():
    """Straight ladders of one slope: the gap at n is a_s - n's accuracy, so the interval's ends can be solved for."""
    ladder = pd.concat([rungs(s, n10=0.5 + d, n1000=0.9 + d) for s, d in ((0, 0.0), (1, 0.02), (2, -0.02))])
    leaks = pd.DataFrame({"seed": [0, 1, 2], "accuracy": [0.71, 0.71, 0.68]})
    gaps = interval([0.71 - 0.7, 0.71 - 0.72, 0.68 - 0.68])  # at 100 images; 0.2 more for ten times as many
    found = equivalent_sizes(ladder, leaks)
    assert found.mean == pytest.approx(100)
    assert found.low == pytest.approx(10 ** (2 + gaps.low / 0.2), rel=0.03)
    assert found.high == pytest.approx(10 ** (2 + gaps.high / 0.2), rel=0.03)
    assert found.n == 3


def test_equivalent_sizes_beyond_the_ladder():
    ladder = pd.concat([rungs(s, n10=0.5 + s / 1000, n1000=0.9 + s / 1000) for s in range(3)])
    above = equivalent_sizes(ladder, pd.DataFrame({"seed": range(3), "accuracy": [0.95, 0.951, 0.952]}))
    assert (above.low, above.mean, above.high) == (pytest.approx(1000), inf, inf)
    below = equivalent_sizes(ladder, pd.DataFrame({"seed": range(3), "accuracy": [0.1, 0.1, 0.1]}))
    assert (below.low, below.mean, below.high) == (0, 0, pytest.approx(10))
    vague = equivalent_sizes(ladder, pd.DataFrame({"seed": range(3), "accuracy": [0.2, 0.7, 1.0]}))
    assert (vague.low, vague.high) == (0, inf)
    one = equivalent_sizes(ladder, pd.DataFrame({"seed": [1], "accuracy": [0.701]}))
    assert one.mean == pytest.approx(100)
    assert isnan(one.low)
    with pytest.raises(ValueError, match="no ladder for seed 7"):
        equivalent_sizes(ladder, pd.DataFrame({"seed": [7], "accuracy": [0.7]}))


def test_network_distances_layer_by_layer():
    data = image_set(6)
    network = build("lenet", data, width=3)
    a, b = torch.rand(6, 1, 16, 16), data.images
    perceptual, feature = network_distances(network, a, b, batch_size=4)
    for n in range(6):
        x, y, total = network.normalise(a[n : n + 1]), network.normalise(b[n : n + 1].float() / 255), 0.0
        for block in network.body:
            x, y = block[0](x), block[0](y)
            for i in range(x.shape[2]):
                for j in range(x.shape[3]):
                    difference = x[0, :, i, j] / x[0, :, i, j].norm() - y[0, :, i, j] / y[0, :, i, j].norm()
                    total += float(difference.detach().square().sum()) / x[0, 0].numel()
            x, y = block[1:](x), block[1:](y)
        assert float(perceptual[n]) == pytest.approx(total, rel=1e-4)
        assert float(feature[n]) == pytest.approx(float(((x - y).norm() / y.norm()).detach()), rel=1e-4)
    same = network_distances(network, b, b)
    assert float(torch.stack(same).abs().max()) == 0


def graded(count=40):
    number = torch.arange(count)
    leak = Leak(torch.rand(count, 1, 16, 16), torch.ones(count), number, number, number, number % 4)
    frame = {name: torch.rand(count, generator=torch.Generator().manual_seed(i)) for i, name in enumerate(MEASURES)}
    return Graded(leak, pd.DataFrame(frame).assign(attack="fast"), (255 * leak.images).to(torch.uint8))


def test_groups_are_cut_from_the_worst_and_wrong_labels_are_wrong():
    case = graded()
    truth, jobs = case.leak.labels, trainings(graded(), 4, 4, seed=0)
    by_name = {(about["measure"], about["group"], about["labels"]): (which, labels) for about, which, labels in jobs}
    assert len(by_name) == len(jobs) == 4 * 4 + 4 + 3 + 1
    for measure, more_is_better in MEASURES.items():
        values = torch.tensor(case.measures[measure].to_numpy())
        cuts = [by_name[measure, str(group), "right"][0] for group in (1, 2, 3, 4)]
        assert sorted(torch.cat(cuts).tolist()) == list(range(40))
        for worse, better in pairwise(cuts):
            if more_is_better:
                assert values[worse].max() <= values[better].min()
            else:
                assert values[worse].min() >= values[better].max()
    for (_, group, kind), (which, labels) in by_name.items():
        right = labels == truth[which]
        if kind == "worst_wrong":
            assert group == "1-4"
            assert not right[:10].any()
            assert right[10:].all()
        else:
            assert right.all() if kind == "right" else not right.any()
    best = by_name["psnr", "4", "right"][0]
    assert set(best.tolist()) < set(by_name["psnr", "3-4", "right"][0].tolist())
    assert len(by_name["psnr", "1-4", "right"][0]) == 40


def test_comparison_end_to_end():
    data = Dataset(image_set(160), image_set(40, seed=1))
    attacks = [InversionSettings(16, size, iterations=2) for size in (2, 4)]
    options = {"groups": 2, "ladder": [8, 64], "recipe": Recipe(steps=3, batch_size=8, pad=0), "clients": 10}
    found = compare_groups(data, attacks, seeds=[0, 1], width=4, progress=False, **options)
    assert len(found.graded.leak) == 32
    assert len(found.table) == 2 * (4 * 2 + 2 + 1 + 1)
    assert found.table["accuracy"].between(0, 1).all()
    assert set(found.ladder["images"]) == {8, 64}
    assert set(found.table.loc[found.table["group"] == "1", "images"]) == {16}
    assert rank_correlations(found.table)["correlation"].dropna().between(-1, 1).all()


@pytest.mark.parametrize(
    ("changes", "message"),
    [({"groups": 1}, "at least a bad"), ({"ladder": [8, 900]}, "training images"), ({"ladder": []}, "ladder")],
)
def test_bad_settings(changes, message):
    data = Dataset(image_set(160), image_set(40, seed=1))
    arguments = {"groups": 2, "ladder": [8, 64], "recipe": Recipe(steps=3), "seeds": [0], **changes}
    with pytest.raises(ValueError, match=message):
        compare_groups(data, [InversionSettings(16, 4, iterations=2)], clients=10, **arguments)


def groups(worst=0.6, wrong=0.1, seeds=3, by="psnr"):
    """Rows of quality_groups: accuracy rises with the group, for all measures cut alike."""
    rows = []
    for seed in range(seeds):
        about = {"dataset": "mnist5k", "seed": seed, "attack": "fast", "images": 100}
        for measure in MEASURES:
            for group in range(1, 5):
                means = {
                    name: (group if name == by else group % 3) * (1 if MEASURES[name] else -1) for name in MEASURES
                }
                accuracy = worst + 0.05 * (group - 1) + 0.002 * (seed - 1)
                row = {**about, "measure": measure, "group": str(group), "labels": "right", **means}
                rows.append({**row, "accuracy": accuracy, "equivalent_images": 50.0 * group, "utility": 0.5})
        without = worst + 0.2
        for group, labels, accuracy in (
            ("3-4", "right", without), ("2-4", "right", without),
            ("1-4", "right", without + 0.01 * (worst > 0.5) + 0.001 * seed),
            ("1-4", "worst_wrong", without - 0.1), ("1", "wrong", wrong), ("4", "wrong", wrong),
        ):  # fmt: skip
            row = {**about, "measure": "psnr", "group": group, "labels": labels, **dict.fromkeys(MEASURES, 1.0)}
            rows.append({**row, "accuracy": accuracy, "equivalent_images": 100.0, "utility": 1.0})
    return pd.DataFrame(rows)


def test_rank_correlation_is_spearmans_over_single_groups():
    found = rank_correlations(groups()).groupby("measure")["correlation"].mean()
    assert found["psnr"] == pytest.approx(1)
    assert found["ssim"] < 0.5


def test_verdict_on_c5():
    (found,) = poor_help(groups())
    assert found.verdict == "partly"  # PSNR ranks perfectly here, against the second half of the claim
    (other,) = poor_help(groups(by="feature"))
    assert other.verdict == "reproduced"
    (none,) = poor_help(groups(worst=0.24, by="feature"))
    assert none.verdict in ("partly", "not reproduced")
    (one,) = poor_help(groups(seeds=1, by="feature"))
    assert one.verdict == "partly"
    claims = judge({"quality_groups": groups(by="feature")}).set_index("claim")
    assert claims.loc["C5", "verdict"] in ("reproduced", "partly")


def test_charts():
    table = groups()
    ladder = pd.DataFrame(
        [{"dataset": "mnist5k", "seed": s, "images": n, "accuracy": 0.1 * log(n)} for s in range(3) for n in (10, 100)]
    )
    worth = worth_in_clean_images(table, ladder)
    assert list(worth["group"]) == ["1", "2", "3", "4", "3-4", "2-4", "1-4"]
    best = worth.set_index("group").loc["1-4"]  # every seed's accuracy lies above the ladder, which ends at 0.46
    assert (best["equivalent_images"], best["high"]) == (inf, inf)
    assert best["low"] == pytest.approx(100)
    for fig in (groups_chart(table), mixtures_chart(table), correlation_chart(rank_correlations(table))):
        fig.savefig(io.BytesIO())
    ax = worth_chart(worth, ladder).axes[0]
    assert {"group 1 (1 dB)", "groups 1-4"} <= {text.get_text() for text in ax.get_yticklabels()}
    assert worth_chart(worth.assign(low=nan, high=nan), ladder) is not None  # one seed
