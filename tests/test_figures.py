"""Figures and widgets: they draw what the tables say, and react."""

import matplotlib.pyplot as plt
import pandas as pd
import pytest

from leaklearn.report.curves import accuracy_chart, crowd_chart, layer_sizes_chart, leak_rate_panels, rounds_chart


@pytest.fixture(autouse=True)
def _close_figures():
    yield
    plt.close("all")


def leakage_table():
    rows = []
    for protocol, attack in (("fedsgd", "robbing_the_fed"), ("fedavg", "loki"), ("fedavg+secagg", "loki")):
        for factor in (1.0, 4.0):
            for seed in range(3):
                rows.append(
                    {"dataset": "mnist5k", "seed": seed, "attack": attack, "protocol": protocol, "fc_factor": factor}
                    | {"clients": 10 * factor, "images_per_client": 64, "local_steps": 8 if "avg" in protocol else 1}
                    | {"leak_rate": 0.2 * factor + 0.01 * seed, "expected_leak_rate": 0.2 * factor}
                )
    return pd.DataFrame(rows)


def test_leak_rate_panels_draw_means_and_closed_forms():
    fig = leak_rate_panels(leakage_table())
    left = fig.axes[0]
    mean = next(line for line in left.lines if line.get_label() == "Robbing the Fed")
    assert mean.get_ydata().tolist() == pytest.approx([0.21, 0.81])
    dashed = next(line for line in left.lines if line.get_linestyle() == "--" and len(line.get_ydata()))
    assert dashed.get_ydata().tolist() == pytest.approx([0.2, 0.8])
    assert [text.get_text() for text in left.get_legend().get_texts()] == ["Robbing the Fed", "closed form"]


def test_crowd_chart_shows_sums_only():
    ax = crowd_chart(leakage_table()).axes[0]
    assert [line.get_label() for line in ax.lines if line.get_label()[0] != "_"] == ["LOKI", "closed form"]


@pytest.mark.parametrize(("dataset", "references"), [("mnist5k", 0), ("cifar10", 2)])
def test_accuracy_chart_draws_the_papers_numbers_for_their_data_set_only(dataset, references):
    rows = [
        {"dataset": dataset, "seed": seed, "source": source, "accuracy": 0.7 + 0.01 * seed}
        for source in ("fedavg", "lll", "centralised")
        for seed in range(3)
    ]
    ax = accuracy_chart(pd.DataFrame(rows)).axes[0]
    paper = [line for line in ax.lines if str(line.get_label()).startswith("paper")]
    assert len(paper) == references
    history = pd.DataFrame({"dataset": dataset, "seed": [0, 0], "round": [1, 2], "accuracy": [0.5, 0.6]})
    assert len(rounds_chart(history, pd.DataFrame(rows)).axes) == 1
    rates = {"leak_rate": 0.6, "expected_leak_rate": 0.61, "accuracy": 0.7}
    sizes = [{"dataset": dataset, "seed": s, "fc_factor": f, **rates} for s in range(2) for f in (4.0, 1.0)]
    marks = [line for line in layer_sizes_chart(pd.DataFrame(sizes)).axes[0].lines if line.get_marker() == "x"]
    assert [line.get_ydata().tolist() for line in marks] == [[78.93, 76.61, 75.15]] * (references > 0)
