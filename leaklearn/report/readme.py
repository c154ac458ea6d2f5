"""The README's table: every notebook's question, minutes, the paper's figure, and its own headline from two presets.

A notebook says its headline itself (`run.headline`), and it stands in its `provenance.json`. The paper preset's are in
the repository under `outputs/paper/`; the laptop preset's are kept in `docs/results.json`. So the table can be made
again without running anything, and a test compares the two.
"""

from __future__ import annotations

from collections.abc import Mapping

import nbformat

from leaklearn.files import REPOSITORY, Paths, read_json, write_json, write_text
from leaklearn.report.paper import STATEMENTS

BEGIN = "<!-- This table is written by `make readme`. -->"
END = "<!-- End of the table. -->"
HEADER = "| notebook | the paper (CIFAR-10) | the paper's data sets, ours | digits, preset {}¹ | minutes² |"
PAPER = "paper"
VERDICTS = "90_report"
"""The notebook whose headline is the verdicts on all claims; it stands above the table."""

Results = Mapping[str, Mapping[str, object]]


def update(preset: str = "laptop", paths: Paths = REPOSITORY) -> Results:
    """Write `docs/results.json` and the README's table from the results of a preset, and return the former.

    Raises
    ------
    ValueError
        If a notebook has no complete run under the preset, or no headline, or the README lacks the marks around its
        table.
    """
    file = paths.root / "README.md"
    readme = file.read_text(encoding="utf-8")
    results = {name: _result(name, preset, paths) for name in paths.notebook_names()}
    for name, each in results.items():
        if not each:
            folder = paths.results(preset, name)
            raise ValueError(f"{name} has no complete run in {folder}: run `make reproduce PRESET={preset}` first")
    new = replaced(readme, table(results, paths))
    write_json(paths.root / "docs" / "results.json", results)
    write_text(file, new)
    return results


def _result(name: str, preset: str, paths: Paths) -> dict[str, object]:
    """Minutes, headline and preset of a complete run; empty where there is none."""
    ran = read_json(paths.results(preset, name) / "provenance.json")
    if not ran:
        return {}
    if not ran.get("headline"):
        raise ValueError(f"{name} said no headline under the preset {preset}: run it again")
    return {"minutes": max(0.1, round(ran["seconds"] / 60, 1)), "headline": ran["headline"], "preset": preset}


def table(results: Results, paths: Paths = REPOSITORY) -> str:
    """The Markdown table of `results` (the laptop preset's, as `update` gives them) and of `outputs/paper/`."""
    presets = ", ".join(dict.fromkeys(str(each["preset"]) for each in results.values()))
    lines = [*_verdicts(results, paths), HEADER.format(presets), "|---" * 5 + "|"]
    for name in paths.notebook_names():
        if name == VERDICTS:
            continue
        mine, link = results[name], f"[{name[:2]}: {question(name, paths)}](notebooks/{name}.ipynb)"
        papers = _result(name, PAPER, paths).get("headline", "")
        cells = (link, papers_figures(name), papers or "–", mine["headline"], f"{mine['minutes']:g}")
        lines.append(f"| {' | '.join(map(str, cells))} |")
    return "\n".join(lines)


def _verdicts(results: Results, paths: Paths) -> list[str]:
    """What of the paper holds, on its own data sets first."""
    told = {"On the paper's data sets": _result(VERDICTS, PAPER, paths)}
    told["On digits"] = results.get(VERDICTS, {})
    return [line for name, each in told.items() if each for line in (f"**{name}:** {each['headline']}.", "")]


def question(name: str, paths: Paths = REPOSITORY) -> str:
    """What a notebook asks: its first heading."""
    first = nbformat.read(paths.notebook(name), as_version=4).cells[0].source
    return first.partition("\n")[0].lstrip("# ").strip()


def papers_figures(name: str) -> str:
    """The paper's figures that a notebook is compared with, each once."""
    numbers = [each.paper for each in STATEMENTS if each.notebook == name and not each.claim and each.paper]
    return "; ".join(numbers) or "–"


def replaced(readme: str, new: str) -> str:
    """The README with another table between its marks; a ValueError if it lacks them."""
    before, first, rest = readme.partition(BEGIN)
    _, last, after = rest.partition(END)
    if not first or not last:
        raise ValueError(f"README.md lacks the line {END if first else BEGIN!r} around its table")
    return f"{before}{BEGIN}\n\n{new}\n\n{END}{after}"
