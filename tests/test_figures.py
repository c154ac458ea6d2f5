"""Figures and widgets: they draw what the tables say, and react."""

import matplotlib.pyplot as plt
import pandas as pd
import pytest

from leaklearn.report.curves import crowd_chart, leak_rate_panels


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
