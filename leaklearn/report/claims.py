"""The table of claims: every claim and number of the paper, what was measured, and the verdict."""

import logging
from collections.abc import Mapping
from dataclasses import asdict

import pandas as pd

from leaklearn.files import Paths
from leaklearn.project import PROJECT
from leaklearn.report import results
from leaklearn.report.paper import STATEMENTS, Statement
from leaklearn.report.verdicts import NOT_RUN, VERDICTS, Finding

log = logging.getLogger(__name__)

COLUMNS = ["claim", "detail", "dataset", "paper", "measured", "low", "high", "unit", "target", "verdict", "why"]
COLUMNS += ["notebook", "figure", "text"]


def read_tables(preset: str, paths: Paths = PROJECT) -> dict[str, pd.DataFrame]:
    """The result tables of a preset that claims are decided by, by name.

    One that no notebook has written is absent, and one that is damaged, which a warning names.
    """
    wanted = dict.fromkeys(f"{name}.csv" for each in STATEMENTS for name in each.tables)
    found = {}
    for folder in sorted((paths.outputs / preset).glob("[0-9]*")):
        damage = results.damage(folder)
        for name in wanted:
            if name in damage:
                log.warning("%s; no claim is decided by it: run %s again", damage[name], folder.name)
            elif (folder / name).is_file():
                found[name.removesuffix(".csv")] = results.table(folder / name)
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
        seeds, in `unit`), `target` (the paper's figure as a number in that unit), `verdict` (one of `VERDICTS`), `why`,
        `notebook` and `figure` (which show it), `detail` (which part of the claim) and `text`.
    """
    rows = []
    for statement in STATEMENTS:
        for finding in _findings(statement, tables):
            about = {"claim": statement.id, "text": statement.text, "notebook": statement.notebook}
            about["figure"] = f"fig_{statement.figure}.png"
            rows.append({**asdict(finding), **about, "paper": finding.paper or statement.paper})
    return pd.DataFrame(rows)[COLUMNS]


def _findings(statement: Statement, tables: Mapping[str, pd.DataFrame]) -> list[Finding]:
    """What the claim's rule finds, or the one reason why it finds nothing."""
    for name, columns in statement.tables.items():
        if name not in tables:
            return [Finding("", NOT_RUN, f"no table {name} yet: run {statement.notebook}")]
        missing = {"dataset", "seed", *columns} - set(tables[name].columns)
        if missing:
            return [Finding("", NOT_RUN, f"the table {name} lacks {', '.join(sorted(missing))}")]
    names = ", ".join(statement.tables)
    found = statement.findings(*(tables[name] for name in statement.tables))
    return found or [Finding("", NOT_RUN, f"nothing in the table {names} bears on it")]


def weakest_verdicts(claims: pd.DataFrame) -> pd.Series:
    """Verdict of each claim and number, by its id: where data sets differ, the weakest that was measured."""
    ran = claims[claims["verdict"] != NOT_RUN]
    order = {verdict: place for place, verdict in enumerate(VERDICTS)}
    # A number that was measured on the paper's data set has the verdict from there, whatever else it was measured on.
    judged = ran[ran["verdict"] != "not comparable"]
    ran = ran[~(ran["claim"].isin(judged["claim"]) & (ran["verdict"] == "not comparable"))]
    weakest = ran["verdict"].map(order).groupby(ran["claim"]).max().map(VERDICTS.__getitem__)
    return weakest.reindex(claims["claim"].unique(), fill_value=NOT_RUN)


def summarise_verdicts(claims: pd.DataFrame) -> pd.DataFrame:
    """How many claims and numbers have each verdict; where data sets differ, the weakest that was measured counts.

    Returns
    -------
    DataFrame
        Columns `verdict` and `claims`, in the order of `VERDICTS`.
    """
    counts = weakest_verdicts(claims).value_counts()
    return pd.DataFrame({"verdict": VERDICTS, "claims": [int(counts.get(name, 0)) for name in VERDICTS]})


def verdict_line(claims: pd.DataFrame) -> str:
    """The verdicts on the claims in one sentence: `C2, C4 reproduced; C5 not reproduced`."""
    weakest = weakest_verdicts(claims[claims["claim"].str.startswith("C")])
    groups = [(verdict, weakest.index[weakest == verdict]) for verdict in VERDICTS]
    return "; ".join(f"{', '.join(names)} {verdict}" for verdict, names in groups if len(names))
