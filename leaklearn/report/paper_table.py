"""The README's table on the paper's own data sets: what the paper preset has measured, from its tables alone.

The tables are kept in the repository under `outputs/paper/`, so that the table can be made again without running
anything, and a test compares the two. A row whose table is not there, or lacks a data set, has a dash.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import pandas as pd

from leaklearn.paths import REPOSITORY, Paths
from leaklearn.report.tables import row, spread

BEGIN = "<!-- This table on the paper's data sets is written by `make readme`. -->"
END = "<!-- End of the table on the paper's data sets. -->"
SETS = {"cifar10": "CIFAR-10", "mnist": "MNIST", "tinyimagenet-100": "Tiny ImageNet¹"}
FACTORS = [4.0, 2.0, 1.0]


@dataclass(frozen=True)
class Line:
    """One measurement: which table of which notebook it is from, and how a data set's rows become a text."""

    what: str
    paper: str
    notebook: str
    table: str
    tell: Callable[[pd.DataFrame], str]


def _one_step(rows: pd.DataFrame) -> str:
    return row(rows, "leak_rate", protocol="fedsgd", attack="robbing_the_fed", clients=60, fc_factor=FACTORS)


def _loki(rows: pd.DataFrame) -> str:
    return row(rows, "leak_rate", protocol="fedavg", attack="loki", clients=60, fc_factor=FACTORS)


def _crowd(rows: pd.DataFrame) -> str:
    return row(rows, "leak_rate", protocol="fedavg+secagg", attack="loki", clients=100)


def _adaptive(rows: pd.DataFrame) -> str:
    return row(rows, "leak_rate", draw="same", bins="adaptive", fc_factor=1.0, round=[1, 2, 3, 5])


def _spear(rows: pd.DataFrame) -> str:
    return row(rows, "exact", attack="spear_reweighted", batch_size=[16, 32])


def _matched(rows: pd.DataFrame) -> str:
    rows = rows[rows["method"] == "combined"].assign(value=lambda r: r["value"].fillna(""))
    return row(rows, "label_accuracy", value=["", "buffers", "skip", "skip and buffers"])


def _psnr(rows: pd.DataFrame) -> str:
    return row(rows, "psnr", 1, model="convnet-gelu", attack="fast", batch_size=[1, 4, 16, 100])


def _kinked(rows: pd.DataFrame) -> str:
    return row(rows, "psnr", 1, model="convnet-relu", attack="fast", batch_size=[1, 4, 16, 100])


def _days(rows: pd.DataFrame) -> str:
    days = rows[rows["batch_size"] == 4].groupby(["model", "attack"])["days_for_50k"].mean()
    names = {"lenet": "LeNet", "convnet-gelu": "ConvNet", "resnet18": "ResNet-18"}
    return "; ".join(
        f"{names[model]} {days[model, 'inverting_gradients']:,.3g}, by `fast` {days[model, 'fast']:.2g}"
        for model in names
        if model in days.index
    )


def _sources(rows: pd.DataFrame) -> str:
    return row(rows, "accuracy", source=["fedavg", "gi", "lll", "centralised"])


def _worth(rows: pd.DataFrame) -> str:
    rates = " / ".join(spread(rows.loc[rows["fc_factor"] == factor, "leak_rate"], digits=0) for factor in FACTORS)
    return f"{row(rows, 'accuracy', fc_factor=FACTORS)} (of {rates} % of all images)"


LINES = (
    Line(
        "leak rate, Robbing the Fed, one step, FC factor 4 / 2 / 1 (%)",
        "78.93 / 76.61 / 75.15; closed form 78.1 / 61.0 / 37.1",
        "02_linear_layer_leakage",
        "lll_leakage",
        _one_step,
    ),
    Line(
        "accuracy of training on leaks of one step, FC factor 4 / 2 / 1 (%)",
        "the same three numbers, read as accuracies",
        "03_training_on_leaked_data",
        "layer_sizes",
        _worth,
    ),
    Line(
        "leak rate, LOKI, 8 local steps, FC factor 4 / 2 / 1 (%)",
        "closed form 87.4 / 76.8 / 60.1",
        "02_linear_layer_leakage",
        "lll_leakage",
        _loki,
    ),
    Line(
        "the same in a sum over 100 clients, factor 4 (%)",
        "closed form 87.6",
        "02_linear_layer_leakage",
        "lll_leakage",
        _crowd,
    ),
    Line(
        "adaptive bins, factor 1, after round 1 / 2 / 3 / 5 (%)",
        "independent rounds 37.1 / 60.4 / 75.1 / 90.1",
        "02_linear_layer_leakage",
        "adaptive",
        _adaptive,
    ),
    Line(
        "SPEAR on an honest layer, exact images, batch size 16 / 32 (%)",
        "",
        "02_linear_layer_leakage",
        "passive",
        _spear,
    ),
    Line(
        "labels matched, ResNet-18; without buffers / skip / both (%)",
        "open problem",
        "09_label_matching",
        "label_matching",
        _matched,
    ),
    Line(
        "gradient inversion, GELU ConvNet, batch size 1 / 4 / 16 / 100 (dB)",
        "27.88 at 4",
        "01_gradient_inversion",
        "gi_quality",
        _psnr,
    ),
    Line("the same, ReLU ConvNet (dB)", "27.88 at 4", "01_gradient_inversion", "gi_quality", _kinked),
    Line(
        "days for 50,000 images on this CPU, attack as published (estimated)",
        "61.17 on an A100",
        "01_gradient_inversion",
        "gi_cost",
        _days,
    ),
    Line(
        "test accuracy: federated / GI / LLL / centralised (%)²",
        "72.76 / 90.34 / 93.16 / unknown",
        "03_training_on_leaked_data",
        "training",
        _sources,
    ),
)


def table(paths: Paths = REPOSITORY) -> str:
    """The Markdown table of what stands under `outputs/paper/`."""
    lines = [f"| | the paper (CIFAR-10), or theory | {' | '.join(SETS.values())} |", "|---" * (2 + len(SETS)) + "|"]
    for line in LINES:
        file = paths.results("paper", line.notebook) / f"{line.table}.csv"
        rows = pd.read_csv(file) if file.is_file() else pd.DataFrame({"dataset": []})
        texts = [_told(line, rows[rows["dataset"] == name]) for name in SETS]
        lines.append(f"| [{line.what}](outputs/paper/{line.notebook}) | {line.paper or '–'} | {' | '.join(texts)} |")
    return "\n".join(lines)


def _told(line: Line, rows: pd.DataFrame) -> str:
    return line.tell(rows) if len(rows) else "–"
