"""What the paper says: every claim and every number, with the table that decides it and the rule.

Source: J. C. Zhao, A. Dabholkar, A. Sharma, S. Bagchi, "Leak and Learn", CVPR 2024, arXiv 2403.18144. We knew its
abstract, summaries and numbers, not its body: what stands here is all that we know, all of it is for CIFAR-10, and no
other number in this project is the paper's. How sure we are of each number is said with it.

A new claim is one entry here: its text, the table that its notebook writes with the columns it needs, and a rule
(`leaklearn.report.verdicts`) that gives findings from that table.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from functools import partial

import pandas as pd

from leaklearn.report import rules_inversion, rules_leakage, rules_learning, rules_training
from leaklearn.report.verdicts import DATASET, Finding

KNOWN = (
    "Of the paper we knew its abstract, summaries and numbers, not its body: its federation, networks and training "
    "recipes are not known to us, and ours are stated beside every result."
)
"""Said once in README and report."""


@dataclass(frozen=True)
class Statement:
    """A claim or a number of the paper.

    Parameters
    ----------
    id : str
        `C1` to `C10` for claims, `P1` to `P7` for numbers.
    text : str
        What it says.
    notebook, figure : str
        The notebook that tests it, and the figure of this that shows it best.
    tables : mapping of str to collection of str
        The tables that decide it, by name, and the columns that the rule needs beside dataset and seed.
    rule : callable
        From these tables, in order (then `value`, if there is one), to findings.
    paper : str
        The paper's figure with its unit and how sure we are of it; empty when we know none.
    value
        That figure as a number, or by setting, in the rule's unit.
    """

    id: str
    text: str
    notebook: str
    figure: str
    tables: Mapping[str, Collection[str]]
    rule: Callable[..., list[Finding]]
    paper: str = ""
    value: float | Mapping[float, float] | None = None
    claim: bool = field(init=False, default=True)

    def __post_init__(self) -> None:
        object.__setattr__(self, "claim", self.id.startswith("C"))

    def findings(self, *tables: pd.DataFrame) -> list[Finding]:
        """What the rule finds in its tables."""
        return self.rule(*tables) if self.value is None else self.rule(*tables, self.value)


_TRAINING = {"training": ("source", "accuracy")}
_QUALITY = {"gi_quality": ("model", "attack", "batch_size", "iterations", "psnr")}
_BREACH = ("readable", "readable_images", "images", "psnr_of_mean_colour", "psnr_of_mean_image")
_COST = {"gi_cost": ("model", "attack", "batch_size", "device", "iterations", "days_for_50k")}
_LEAKAGE = {"lll_leakage": (*rules_leakage.SETTING, "leak_rate", "expected_leak_rate")}

STATEMENTS = (
    Statement(
        "C1",
        "Leaked data train better models than benign FL: FL < GI-leaked ≤ LLL-leaked (ideal labels) ≤ centralised.",
        "03_training_on_leaked_data",
        "accuracy",
        {**_TRAINING, "rounds": ("alpha", "round", "accuracy")},
        rules_training.training_order,
        "72.76 < 90.34 ≤ 93.16 % ≤ unknown",
    ),
    Statement(
        "C2",
        "GI: quality and downstream accuracy fall as the batch grows.",
        "01_gradient_inversion",
        "quality",
        _QUALITY,
        rules_inversion.quality_falls,
        "27.88 dB at batch size 4",
    ),
    Statement(
        "C3",
        "GI: the cost is enormous; how far can it be cut?",
        "01_gradient_inversion",
        "cost",
        _COST,
        rules_inversion.cost,
        "61.17 days",
    ),
    Statement(
        "C4",
        "LLL: the leak rate depends on FC factor, clients and local steps as the closed form says.",
        "02_linear_layer_leakage",
        "leak_rate",
        _LEAKAGE,
        rules_leakage.closed_form,
        "78.93 / 76.61 / 75.15 % for FC sizes 4, 2, 1 (meaning doubtful)",
    ),
    Statement(
        "C5",
        "Poor reconstructions with correct labels still help; PSNR and SSIM rank usefulness badly.",
        "07_reconstruction_quality",
        "added",
        {
            "quality_groups": ("measure", "group", "labels", "psnr", "ssim", "perceptual", "feature", "accuracy"),
            "poor_added": ("added", "added_images", "good_images", "psnr_good", "psnr_added", "accuracy"),
        },
        rules_learning.poor_help,
    ),
    Statement(
        "C6",
        "CoMatch recovers most of what missing labels cost.",
        "05_semi_supervised",
        "accuracy",
        {"semi_supervised": ("method", "labels_per_class", "batches", "accuracy")},
        rules_learning.recovered,
    ),
    Statement(
        "C7",
        "A small leak improves the federated model.",
        "06_federated_initialisation",
        "gain",
        {"initialisation": ("start", "leaked_images", "accuracy")},
        rules_learning.improved,
    ),
    Statement(
        "C8",
        "FedAvg's local steps: what leaks and what it is worth.",
        "04_fedavg",
        "local_steps",
        {
            "fedavg": ("attack", "local_steps", "local_epochs", "leak_rate", "expected_leak_rate", "psnr", "accuracy"),
            "leak_by_round": ("round", "source", "accuracy"),
        },
        rules_training.local_steps,
    ),
    Statement(
        "C9",
        "Quality depends on batch size, class, repeated labels, training stage and iterations.",
        "08_quality_trends",
        "inversion",
        {"quality_trends": ("factor", "value", "psnr")},
        rules_inversion.quality_drivers,
    ),
    Statement(
        "C10",
        "Non-IID clients change both attacks.",
        "10_non_iid",
        "non_iid",
        {"non_iid": ("alpha", "source", "leak_rate", "psnr")},
        rules_leakage.both_attacks_change,
    ),
    Statement(
        "P1",
        "Accuracy of the benign FL model.",
        "03_training_on_leaked_data",
        "accuracy",
        _TRAINING,
        partial(rules_training.accuracy_number, source="fedavg"),
        "72.76 %",
        72.76,
    ),
    Statement(
        "P2",
        "Accuracy when trained on GI-leaked data, ideal conditions.",
        "03_training_on_leaked_data",
        "accuracy",
        _TRAINING,
        partial(rules_training.accuracy_number, source="gi"),
        "90.34 %",
        90.34,
    ),
    Statement(
        "P3",
        "Accuracy when trained on LLL-leaked data, ideal conditions.",
        "03_training_on_leaked_data",
        "accuracy",
        _TRAINING,
        partial(rules_training.accuracy_number, source="lll"),
        "93.16 %",
        93.16,
    ),
    Statement(
        "P4",
        "PSNR of GI reconstructions at batch size 4.",
        "01_gradient_inversion",
        "quality",
        _QUALITY,
        rules_inversion.psnr_number,
        "27.88 dB",
        {4: 27.88},
    ),
    Statement(
        "P5",
        "Time to invert CIFAR-10 (read as its 50,000 training images) at batch size 4 on one A100.",
        "01_gradient_inversion",
        "cost",
        _COST,
        rules_inversion.days_number,
        "61.17 days (number sure, reading inferred)",
        {4: 61.17},
    ),
    Statement(
        "P6",
        "Images leaked by LLL for FC sizes of 4, 2 and 1 units per image.",
        "02_linear_layer_leakage",
        "leak_rate",
        _LEAKAGE,
        rules_leakage.leaked_share,
        "78.93 / 76.61 / 75.15 % (numbers sure, meaning doubtful)",
        {4: 78.93, 2: 76.61, 1: 75.15},
    ),
    Statement(
        "P7",
        "GI can breach privacy at batch size 100.",
        "01_gradient_inversion",
        "reconstructions",
        {"gi_quality": (*_QUALITY["gi_quality"], *_BREACH)},
        rules_inversion.breach,
        "batch size 100",
        100,
    ),
)


def statement(name: str) -> Statement:
    """A claim or number by its id; a ValueError for an unknown one."""
    for each in STATEMENTS:
        if each.id == name:
            return each
    raise ValueError(f"no claim or number {name!r}; there are {', '.join(each.id for each in STATEMENTS)}")


def lines_of(*names: str) -> dict[str, dict[str, float]]:
    """The paper's accuracies as levels for `lines` and `points`, on its data set alone: `paper, P3: 93.16 %`."""
    found = map(statement, names)
    return {f"paper, {each.id}: {each.paper.split(' (')[0]}": {DATASET: each.value / 100} for each in found}
