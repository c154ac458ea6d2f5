"""The two charts: means and intervals are those of the table, in range, and every case is told."""

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest

from leaklearn.report.lines import lines, points
from leaklearn.report.tables import fold


@pytest.fixture
def table():
    rows = [
        {"dataset": name, "seed": seed, "attack": attack, "fc_factor": factor, "expected_leak_rate": 0.1 * factor}
        | {"leak_rate": min(1.0, 0.2 * factor + 0.05 * seed + (attack == "loki") * 0.05)}
        for name in ("mnist5k", "cifar10")
        for seed in range(3)
        for attack in ("loki", "my_attack")
        for factor in (1.0, 2.0, 4.0)
    ]
    yield pd.DataFrame(rows)
    plt.close("all")


def test_a_line_is_the_mean_over_seeds_and_its_band_the_interval(table):
    fig = lines(table, "fc_factor", "leak_rate", "attack", law="expected_leak_rate", log=2)
    assert [ax.get_title() for ax in fig.axes] == ["mnist5k", "CIFAR-10"]
    ax = fig.axes[0]
    mine = table[(table["dataset"] == "mnist5k") & (table["attack"] == "loki")]
    wanted = mine.groupby("fc_factor")["leak_rate"].mean()
    (line,) = [line for line in ax.lines if line.get_label() == "LOKI"]
    np.testing.assert_allclose(line.get_ydata(), wanted)
    ends = [fold(part["leak_rate"], "leak_rate") for _, part in mine.groupby("fc_factor")]
    drawn = ax.collections[0].get_paths()[0].vertices[:, 1]
    assert drawn.max() == pytest.approx(max(end.high for end in ends))
    assert drawn.max() <= 1.0
    told = [text.get_text() for text in fig.legends[0].get_texts()]
    assert sorted(told) == ["LOKI", "closed form", "my_attack"]


def test_levels_of_the_paper_and_several_measures(table):
    fig = lines(table, "fc_factor", ["leak_rate", "expected_leak_rate"], "attack", rows="dataset", across={"P": 0.5})
    assert len(fig.axes) == 4
    assert all(any(list(line.get_ydata()) == [0.5, 0.5] for line in ax.lines) for ax in fig.axes)


@pytest.mark.parametrize("horizontal", [False, True])
def test_points_stand_at_their_categories_in_order(table, horizontal):
    fig = points(table, "fc_factor", "leak_rate", "attack", order=[4.0, 1.0], horizontal=horizontal)
    ax = fig.axes[0]
    ticks = ax.get_yticklabels() if horizontal else ax.get_xticklabels()
    assert [tick.get_text() for tick in ticks] == ["4", "1"]
    assert len(ax.containers) == 2


def test_one_seed_has_no_interval(table):
    fig = lines(table[table["seed"] == 0], "fc_factor", "leak_rate", "attack")
    heights = fig.axes[0].collections[0].get_paths()[0].vertices[:, 1]
    assert set(np.round(heights, 6)) <= set(np.round(fig.axes[0].lines[0].get_ydata(), 6))
