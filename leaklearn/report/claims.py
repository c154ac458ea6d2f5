"""The table of claims: every claim and number of the paper, what was measured, and the verdict."""

from collections.abc import Callable, Mapping
from dataclasses import asdict
from functools import partial

import pandas as pd

from leaklearn.experiments.quality_groups import MEASURES
from leaklearn.paths import REPOSITORY, Paths
from leaklearn.report import inversion_rules, learning_rules, non_iid_rules, paper, rules, trend_rules
from leaklearn.report.rules import NOT_RUN, Finding

COLUMNS = ["claim", "detail", "dataset", "paper", "measured", "low", "high", "unit", "target", "verdict", "why"]
COLUMNS += ["notebook", "figure", "text"]

Rule = Callable[[pd.DataFrame], list[Finding]]

# Which table a claim is decided by, the columns it needs, and how. A claim that is not here is "not run".
RULES: dict[str, tuple[str, Rule]] = {
    "C1": ("training", rules.training_order),
    "C2": ("gi_quality", inversion_rules.quality_falls),
    "C3": ("gi_cost", inversion_rules.cost),
    "C4": ("lll_leakage", rules.closed_form),
    "C5": ("quality_groups", learning_rules.poor_help),
    "C6": ("semi_supervised", learning_rules.recovered),
    "C7": ("initialisation", learning_rules.improved),
    "C8": ("fedavg", learning_rules.local_steps),
    "C9": ("quality_trends", trend_rules.quality_drivers),
    "C10": ("non_iid", non_iid_rules.both_attacks_change),
    "P1": ("training", partial(rules.accuracy_number, number="P1")),
    "P2": ("training", partial(rules.accuracy_number, number="P2")),
    "P3": ("training", partial(rules.accuracy_number, number="P3")),
    "P4": ("gi_quality", inversion_rules.psnr_number),
    "P5": ("gi_cost", inversion_rules.days_number),
    "P6": ("lll_leakage", rules.leaked_share),
    "P7": ("gi_quality", inversion_rules.breach),
}
NEEDED = {
    "training": {"dataset", "seed", "source", "accuracy"},
    "lll_leakage": {"dataset", "seed", *rules.SETTING, "leak_rate", "expected_leak_rate"},
    "gi_quality": {"dataset", "seed", "model", "attack", "batch_size", "psnr"},
    "gi_cost": {"dataset", "seed", "model", "attack", "batch_size", "device", "iterations", "days_for_50k"},
    "quality_groups": {"dataset", "seed", "measure", "group", "labels", *MEASURES, "accuracy"},
    "semi_supervised": {"dataset", "seed", "method", "labels_per_class", "accuracy"},
    "fedavg": {
        "dataset",
        "seed",
        "attack",
        "local_steps",
        "local_epochs",
        "leak_rate",
        "expected_leak_rate",
        "psnr",
        "accuracy",
    },
    "quality_trends": {"dataset", "seed", "factor", "value", "psnr"},
    "initialisation": {"dataset", "seed", "start", "leaked_images", "accuracy"},
    "non_iid": {"dataset", "seed", "alpha", "source", "leak_rate", "psnr"},
}


def read_tables(preset: str, paths: Paths = REPOSITORY) -> dict[str, pd.DataFrame]:
    """The result tables of a preset that claims are decided by, by name; one that no notebook has written is absent."""
    found = {}
    for name in NEEDED:
        for file in sorted((paths.outputs / preset).glob(f"[0-9]*/{name}.csv")):
            found[name] = pd.read_csv(file)
    return found


def judge(tables: Mapping[str, pd.DataFrame]) -> pd.DataFrame:
    """A verdict on every claim and number.

    Parameters
    ----------
    tables : mapping of str to DataFrame
        Result tables by name, as `read_tables` gives them.

    Returns
    -------
    DataFrame
        At least one row for each of C1 to C10 and P1 to P7, one for each data set measured. Columns: `claim`,
        `dataset`, `paper` (the paper's figure, for CIFAR-10), `measured`, `low`, `high` (mean and 95 % interval over
        seeds, in `unit`), `target` (the paper's figure as a number in that unit), `verdict` (reproduced, partly, not
        reproduced, not run), `why`, `notebook` and `figure` (which show it), `detail` (which part of the claim) and
        `text`.
    """
    rows = []
    for statement in (*paper.CLAIMS, *paper.NUMBERS):
        for finding in _findings(statement, tables):
            about = {"claim": statement.id, "text": statement.text, "notebook": statement.notebook}
            about["figure"] = f"fig_{statement.figure}.png"
            rows.append({**asdict(finding), **about, "paper": finding.paper or statement.paper})
    return pd.DataFrame(rows)[COLUMNS]


def _findings(statement: paper.Statement, tables: Mapping[str, pd.DataFrame]) -> list[Finding]:
    """What the claim's rule finds, or the one reason why it finds nothing."""
    if statement.id not in RULES:
        return [Finding("", NOT_RUN, f"tested by {statement.notebook}")]
    table, rule = RULES[statement.id]
    if table not in tables:
        return [Finding("", NOT_RUN, f"no table {table} yet: run {statement.notebook}")]
    missing = NEEDED[table] - set(tables[table].columns)
    if missing:
        return [Finding("", NOT_RUN, f"the table {table} lacks {', '.join(sorted(missing))}")]
    return rule(tables[table]) or [Finding("", NOT_RUN, f"nothing in the table {table} bears on it")]


def weakest_verdicts(claims: pd.DataFrame) -> pd.Series:
    """Verdict of each claim and number, by its id: where data sets differ, the weakest that was measured."""
    ran = claims[claims["verdict"] != NOT_RUN]
    weakest = ran["verdict"].map(rules.VERDICTS.index).groupby(ran["claim"]).max().map(rules.VERDICTS.__getitem__)
    return weakest.reindex(claims["claim"].unique(), fill_value=NOT_RUN)


def summarise_verdicts(claims: pd.DataFrame) -> pd.DataFrame:
    """How many claims and numbers have each verdict; where data sets differ, the weakest that was measured counts.

    Returns
    -------
    DataFrame
        Columns `verdict` and `claims`, in the order of `rules.VERDICTS`.
    """
    counts = weakest_verdicts(claims).value_counts()
    return pd.DataFrame({"verdict": rules.VERDICTS, "claims": [int(counts.get(name, 0)) for name in rules.VERDICTS]})
