"""README's findings and docs/results.md, written from results: nobody types a number.

Of every notebook README has its question and one plain sentence (`leaklearn.report.findings`), on the paper's data
where the paper preset has measured it, else on the laptop preset's digits; `docs/results.md` has the paper's figure and
the notebook's own headline (`run.headline`, in its `provenance.json`) from both presets. The paper preset's results are
in the repository under `outputs/paper/`; the laptop preset's are kept in `docs/results.json`. So both pages can be made
again without running anything, and a test compares them.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import ceil

import nbformat

from leaklearn.files import Paths, read_json, write_json, write_text
from leaklearn.project import PROJECT
from leaklearn.report.findings import OPENING, dataset, finding
from leaklearn.report.paper import STATEMENTS
from leaklearn.report.results import damage, provenance

MARKS = {
    "findings": ("<!-- These findings are written by `make readme`. -->", "<!-- End of the findings. -->"),
    "table": ("<!-- This table is written by `make readme`. -->", "<!-- End of the table. -->"),
}
"""Lines around what is written, by its name."""
FIRST = OPENING[:3]
"""Notebooks whose findings open README."""
PAPER = "paper"
VERDICTS = "90_report"
"""The notebook whose headline is the verdicts on all claims; it stands above the table."""

Results = Mapping[str, Mapping[str, object]]


def update(preset: str = "laptop", paths: Paths = PROJECT) -> Results:
    """Write `docs/results.json`, `docs/results.md` and README's parts from the results of a preset; gives the first.

    What `docs/results.json` has of this preset stays for the notebooks that were not run here.

    Raises
    ------
    ValueError
        If a notebook has no complete run under the preset, now or before, a damaged file, or no headline, or a page
        lacks the marks around what is written.
    """
    file = paths.root / "docs" / "results.json"
    kept = {name: each for name, each in read_json(file).items() if each["preset"] == preset}
    results = {name: _result(name, preset, paths) or kept.get(name, {}) for name in paths.notebook_names()}
    for name, each in results.items():
        if not each:
            folder = paths.results(preset, name)
            raise ValueError(f"{name} has no complete run in {folder}: run `make reproduce PRESET={preset}` first")
    new = pages(results, paths)
    write_json(file, results)
    for file, text in new.items():
        write_text(paths.root / file, text)
    return results


def pages(results: Results, paths: Paths = PROJECT) -> dict[str, str]:
    """README.md and docs/results.md with what is written in them, from `results` and the paper preset's."""
    readme = (paths.root / "README.md").read_text(encoding="utf-8")
    papers = {name: _result(name, PAPER, paths) for name in results}
    readme = replaced(readme, "findings", findings(results, papers))
    details = (paths.root / "docs" / "results.md").read_text(encoding="utf-8")
    return {
        "README.md": replaced(readme, "table", table(results, papers, paths)),
        "docs/results.md": replaced(details, "table", details_table(results, papers, paths)),
    }


def _result(name: str, preset: str, paths: Paths) -> dict[str, object]:
    """Minutes, headline, finding, data set and preset of a complete run; empty where there is none."""
    folder = paths.results(preset, name)
    for reason in damage(folder).values():
        raise ValueError(f"{reason}; run `leaklearn reproduce --preset {preset} --only {name[:2]}` first")
    ran = provenance(folder)
    if not ran:
        return {}
    if not ran.get("headline"):
        raise ValueError(f"{name} said no headline under the preset {preset}: run it again")
    about = {"finding": finding(name, preset, paths), "dataset": dataset(name, preset, paths), "preset": preset}
    return {"minutes": max(0.1, round(ran["seconds"] / 60, 1)), "headline": ran["headline"], **about}


def _told(name: str, results: Results, papers: Results) -> tuple[str, str]:
    """The finding of a notebook and its data set: the paper preset's where there is one; else a dash."""
    for each in (papers[name], results[name]):
        if each.get("finding"):
            return str(each["finding"]), str(each["dataset"])
    return "–", "–"


def findings(results: Results, papers: Results) -> str:
    """The findings that open README, as a Markdown list; `papers` are the paper preset's results, as far as it ran."""
    names = [name for first in FIRST for name in results if name.startswith(first)]
    told = [_told(name, results, papers) for name in names]
    return "\n".join(
        f"- {text} ({where}, notebook {name[:2]})" for name, (text, where) in zip(names, told, strict=True)
    )


def table(results: Results, papers: Results, paths: Paths = PROJECT) -> str:
    """README's Markdown table, a row a notebook, with the verdicts above it."""
    lines = [*_verdicts(results, papers), "| notebook | found | data | minutes of `make reproduce` |", "|---" * 4 + "|"]
    for name in _sections(results):
        link = f"[{name[:2]}: {question(name, paths)}](notebooks/{name}.ipynb)"
        cells = (link, *_told(name, results, papers), ceil(results[name]["minutes"]))
        lines.append(f"| {' | '.join(map(str, cells))} |")
    return "\n".join(lines)


def details_table(results: Results, papers: Results, paths: Paths = PROJECT) -> str:
    """The Markdown sections of docs/results.md: each notebook's figure of the paper and headlines of both presets."""
    lines = []
    for name in _sections(results):
        mine = results[name]
        lines += [f"## [{name[:2]}: {question(name, paths)}](../notebooks/{name}.ipynb)", ""]
        told = {"The paper (CIFAR-10)": papers_figures(name), "Preset paper": papers[name].get("headline")}
        told[f"Preset {mine['preset']}, {mine['minutes']:g} minutes"] = mine["headline"]
        lines += [line for what, text in told.items() if text for line in (f"**{what}:** {text}", "")]
    return "\n".join(lines).rstrip()


def _sections(results: Results) -> list[str]:
    return [name for name in results if name != VERDICTS]


def _verdicts(results: Results, papers: Results) -> list[str]:
    """What of the paper holds, on its own data sets first."""
    told = {"On the paper's data sets": papers.get(VERDICTS, {})}
    told["On digits"] = results.get(VERDICTS, {})
    return [line for name, each in told.items() if each for line in (f"**{name}:** {each['headline']}.", "")]


def question(name: str, paths: Paths = PROJECT) -> str:
    """What a notebook asks: its first heading."""
    first = nbformat.read(paths.notebook(name), as_version=4).cells[0].source
    return first.partition("\n")[0].lstrip("# ").strip()


def papers_figures(name: str) -> str:
    """The paper's figures that a notebook is compared with, each once; empty where there is none."""
    numbers = [each.paper for each in STATEMENTS if each.notebook == name and not each.claim and each.paper]
    return "; ".join(numbers)


def replaced(page: str, name: str, new: str) -> str:
    """The page with another text between the marks of this name; a ValueError if it lacks them."""
    first, last = MARKS[name]
    before, found, rest = page.partition(first)
    _, end, after = rest.partition(last)
    if not found or not end:
        raise ValueError(f"the page lacks the line {last if found else first!r} around its {name}")
    return f"{before}{first}\n\n{new}\n\n{last}{after}"
