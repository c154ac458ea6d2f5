"""Explorers: what they say is what was measured, they react to every control, and compute nothing twice."""

import matplotlib.pyplot as plt
import pandas as pd
import pytest
import torch

from leaklearn.auditing.sweep import PROTOCOLS, Sweep, sweep
from leaklearn.data import load
from leaklearn.data.images import DataInfo, ImageSet
from leaklearn.data.views import Views
from leaklearn.experiments.reconstruction_quality import MEASURES, Graded, QualityComparison
from leaklearn.experiments.rounds import Round
from leaklearn.experiments.semi_supervised import SemiComparison
from leaklearn.leaks import Leak
from leaklearn.widgets import (
    explore_audit,
    explore_labelling,
    explore_layer,
    explore_matching,
    explore_pair,
    explore_peeling,
    explore_quality,
    parts,
)

PNG = b"\x89PNG"


@pytest.fixture(scope="module")
def data():
    return load("mnist5k")


def leak_of(count, labels=None, confidence=None):
    number = torch.arange(count)
    images = torch.rand(count, 1, 12, 12, generator=torch.Generator().manual_seed(0))
    return Leak(images, torch.ones(count), number, number, number, labels, {}, confidence)


def pictures(widget, moves):
    """The picture at first and after each move (control, value)."""
    *controls, line, picture = widget.children
    seen, lines = [bytes(picture.value)], [line.value]
    for control, value in moves:
        controls[control].value = value
        seen.append(bytes(picture.value))
        lines.append(line.value)
    assert all(each.startswith(PNG) for each in seen)
    return seen, lines


def test_layer_says_what_the_attack_scores_and_computes_it_once(data, monkeypatch):
    scored, real = [], Round.run

    def counted(*arguments, **options):
        scored.append(real(*arguments, **options))
        return scored[-1]

    monkeypatch.setattr(Round, "run", counted)
    widget = explore_layer(data, fc_factors=[0.5, 4.0], images_per_client=[8, 16])
    seen, lines = pictures(widget, [(0, 0.5), (1, 8), (2, 3), (2, 0), (1, 16), (0, 4.0)])
    assert len(scored) == 4  # the last three had been asked for before
    assert seen[-1] == seen[0]
    assert len(set(seen)) >= 4
    assert lines[0].startswith(f"<b>{100 * scored[0].score.leak_rate:.0f} % of 16 images leak</b> through 64 neurons")
    assert f"{100 * (1 - 1 / 64) ** 15:.1f} %" in lines[0]


def test_peeling_tells_how_many_images_are_taken_with_and_without_splitting(data):
    widget = explore_peeling(data, fc_factors=[1.0, 4.0], measurements=[1, 3], images_per_client=16)
    seen, lines = pictures(widget, [(2, False), (0, 4.0), (1, 3), (2, True)])
    taken = [int(line.removeprefix("<b>").split()[0]) for line in lines]
    assert all("of 16 images" in line for line in lines)
    assert taken[0] > taken[1]  # split or not
    assert taken[2] > taken[1]
    assert taken[3] == 16  # enough neurons, and three chances to be alone
    assert taken[4] >= taken[3]
    assert "0 of them split" in lines[1]
    assert len(set(seen)) >= 4  # where nothing is left to split, the picture is the same


def test_a_pair_is_told_apart_but_where_its_share_is_a_fraction(data):
    widget = explore_pair(data, pairs=2)
    seen, lines = pictures(widget, [(1, 0.5), (1, 0.4), (0, 1), (1, 0.2371), (0, 0)])
    assert "bit by bit" in lines[0]
    assert "not split" in lines[1]
    assert "λ = 0.4000" in lines[2]
    assert lines[5] == lines[0]
    assert seen[5] == seen[0]
    assert not any("not the true ones" in line for line in lines)


def test_matching_counts_the_labels_that_it_keeps():
    labels, truth = torch.tensor([3, 1, 4, 1]), torch.tensor([3, 1, 4, 2])
    by_method = {
        "combined": leak_of(4, labels, torch.tensor([0.999, 0.96, 0.6, 0.85])),
        "bin_scan": leak_of(4, truth, torch.full((4,), 0.7)),
    }
    widget = explore_matching({"base": (by_method, truth)})
    # Of one setting only.
    assert [control.description for control in widget.children[:-2]] == ["method", "at least so sure"]
    seen, lines = pictures(widget, [(1, 0.8), (1, 0.99), (0, "bin_scan"), (1, 0.0)])
    assert "4 of 4 labels kept, 75.0 % of them right" in lines[0]
    assert "3 of 4 labels kept, 66.7 % of them right" in lines[1]
    assert "1 of 4 labels kept, 100.0 % of them right" in lines[2]
    assert "0 of 4 labels kept, none of them right" in lines[3]
    assert "4 of 4 labels kept, 100.0 % of them right" in lines[4]
    assert len(set(seen)) >= 4  # where nothing is left to split, the picture is the same
    with pytest.raises(ValueError, match="no examples"):
        explore_matching({})


def test_quality_goes_from_the_worst_to_the_best():
    count, generator = 40, torch.Generator().manual_seed(1)
    measures = pd.DataFrame({name: torch.rand(count, generator=generator).numpy() for name in MEASURES})
    pixels = torch.randint(0, 256, (count, 1, 12, 12), dtype=torch.uint8, generator=generator)
    info = DataInfo("tiny", ("a",), (1, 12, 12), (0.3,), (0.2,), False)
    images = ImageSet(pixels, torch.zeros(count, dtype=torch.long), torch.arange(count), info)
    rows = [
        {"measure": name, "group": str(group), "labels": "right", "images": 10, "accuracy": 0.1 * group, name: value}
        for name, better in MEASURES.items()
        for group, value in zip((1, 2, 3), (0.1, 0.5, 0.9) if better else (0.9, 0.5, 0.1), strict=True)
    ]
    rows.append({**rows[0], "labels": "wrong", "accuracy": 0.99})
    ladder = pd.DataFrame({"images": [10, 100], "accuracy": [0.1, 0.2]})
    graded = {0: Graded(images, measures, images)}
    widget = explore_quality(QualityComparison(pd.DataFrame(rows), pd.DataFrame(), ladder, graded))
    seen, lines = pictures(widget, [(1, 0), (1, 100), (0, "feature")])
    assert "PSNR 0.1 on average: 10 reconstructions train to <b>10.0 %</b>, as <b>10 clean images</b>" in lines[1]
    assert "PSNR 0.9 on average: 10 reconstructions train to <b>30.0 %</b>, as <b>more than 100 clean" in lines[2]
    assert "has feature distance 0.1 on average" in lines[3]
    assert len(set(seen)) == 4


def test_labelling_shows_accuracies_and_views():
    rows = [
        {"method": method, "labels_per_class": count, "seed": seed, "accuracy": accuracy}
        for method, accuracy in (("labelled_only", 0.5), ("fixmatch", 0.75), ("comatch", 0.8))
        for count in (1, 4)
        for seed in (0, 1)
    ]
    rows.append({"method": "all_labels", "labels_per_class": None, "seed": 0, "accuracy": 0.97})
    table = pd.DataFrame(rows)
    table.loc[(table["method"] == "comatch") & (table["labels_per_class"] == 4), "accuracy"] = 0.9
    comparison = SemiComparison(table, pd.DataFrame(), leak_of(5), torch.arange(2))
    seen, lines = pictures(explore_labelling(comparison, Views(pad=1, cutout=4)), [(1, 2), (0, 4), (1, 0)])
    assert lines[0] == "labelled images alone <b>50.0 %</b>; FixMatch <b>75.0 %</b>; CoMatch <b>80.0 %</b>"
    assert lines[2].endswith("CoMatch <b>90.0 %</b>")
    assert seen[0] == seen[3] != seen[1]


def test_a_control_is_shown_while_it_can_be_moved():
    kind, strength = parts.menu("kind", ["a", "b"]), parts.choices("strength", [1])

    def view():
        strength.options = [1] if kind.value == "a" else [1, 2]
        return kind.value, plt.figure(figsize=(1, 1))

    widget = parts.explorer([kind, strength, parts.slider("client", 0, 0, 0)], view)
    shown = lambda: [control.description for control in widget.children[:-2]]  # noqa: E731
    assert shown() == ["kind"]
    kind.value = "b"
    assert shown() == ["kind", "strength"]
    kind.value = "a"
    assert shown() == ["kind"]


def test_an_audit_is_explored_by_protocol_and_batch_size(data):
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(784, 20), torch.nn.GELU(), torch.nn.Linear(20, 10))
    about = {"clients": 1, "seconds": 0.0, "progress": False}
    found = sweep(model, data.train[:30], ["fedsgd", "fedavg+secagg"], [2, 4], local_steps=2, seeds=[0, 1], **about)
    keys = ["protocol", "batch_size", "attack", "seed"]
    assert not found.table.duplicated(keys).any()
    assert set(found.table["seed"]) == {0, 1}
    assert found.audits["fedavg+secagg", 4].setting.startswith(
        "The model Sequential; 1 client, each sending the change"
    )
    assert found.audits["fedsgd", 2].defences.empty
    seen, lines = pictures(explore_audit(found), [(2, 4)])
    assert found.audits["fedsgd", 2].verdict in lines[0]
    assert found.audits["fedsgd", 4].verdict in lines[1]
    assert seen[0] != seen[1]
    box = explore_audit(found)
    protocol, shown, _, line, picture = box.children
    before = bytes(picture.value)
    shown.value = shown.options[1][1]
    assert bytes(picture.value) != before
    protocol.value = "fedavg+secagg"
    assert line.value.startswith(PROTOCOLS["fedavg+secagg"])
    with pytest.raises(ValueError, match="unknown protocol 'fedsdg'; choose some of fedsgd"):
        sweep(model, data.train[:30], ["fedsdg"], [2])
    with pytest.raises(ValueError, match="no audit to explore"):
        explore_audit(Sweep(pd.DataFrame(), {}))
