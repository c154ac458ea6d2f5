"""What reconstructions are worth: groups of quality, trained on and judged."""

import io
from itertools import pairwise
from math import inf, log, nan

import pandas as pd
import pytest
import torch
from tiny import image_set

from leaklearn.data.images import Dataset
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
from leaklearn.report.claims import judge
from leaklearn.report.quality import correlation_chart, groups_chart, mixtures_chart, worth_chart
from leaklearn.report.rules_learning import poor_help


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
