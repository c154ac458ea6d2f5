"""One self-contained page over all results of a preset: claims and verdicts, figures, tables, provenance."""

import base64
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

import nbformat
import pandas as pd
from jinja2 import Environment, FileSystemLoader, StrictUndefined, select_autoescape
from nbconvert.filters.markdown_mistune import markdown2html_mistune

from leaklearn.files import read_json, write_text
from leaklearn.paths import REPOSITORY, Paths
from leaklearn.report.claims import judge, read_tables, summarise_verdicts
from leaklearn.report.paper import CLAIMS
from leaklearn.report.tables import Table, short, shown

CHECK_TAG = "nbval-check-output"
MARKS = {"reproduced": "✓", "partly": "◐", "not reproduced": "✗", "not run": "–"}


@dataclass(frozen=True)
class Figure:
    """A PNG as a data URI, with its file's name, caption and alternative text."""

    file: str
    source: str
    caption: str
    alt: str


@dataclass(frozen=True)
class Section:
    """What one notebook left behind.

    Parameters
    ----------
    name, title, body : str
        The notebook's name, its first heading, and the rest of its first cell as HTML.
    ran : dict
        Its `provenance.json`; empty when there is no complete run.
    error : str
        The last failure that no later success has followed; empty when there is none.
    checks : list of str
        Printed lines of the cells whose outputs the tests compare.
    figures, tables, metrics
        Figures, tables by name with their captions, and single numbers.
    """

    name: str
    title: str
    body: str
    ran: dict = field(default_factory=dict)
    error: str = ""
    checks: list[str] = field(default_factory=list)
    figures: list[Figure] = field(default_factory=list)
    tables: list[tuple[str, str, Table]] = field(default_factory=list)
    metrics: dict[str, str] = field(default_factory=dict)


def write(preset: str, paths: Paths = REPOSITORY) -> Path:
    """Write `outputs/<preset>/report.html` from what the preset's folder holds, and return its path."""
    file = paths.outputs / preset / "report.html"
    file.parent.mkdir(parents=True, exist_ok=True)
    return write_text(file, render(preset, paths))


def render(preset: str, paths: Paths = REPOSITORY) -> str:
    """The page as HTML text; nothing in it is fetched from anywhere."""
    claims = judge(read_tables(preset, paths))
    sections = [section(name, preset, paths) for name in paths.notebook_names()]
    here = Path(__file__).parent
    environment = Environment(
        loader=FileSystemLoader(here),
        autoescape=select_autoescape(default=True),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["short"] = short
    return environment.get_template("report.html.j2").render(
        preset=preset,
        style=(here / "report.css").read_text(encoding="utf-8"),
        written=datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        groups=_groups(claims),
        counts=summarise_verdicts(claims).to_dict("records"),
        marks=MARKS,
        sections=sections,
        linked={each.name for each in sections},
        drawn={f"{each.name}/{figure.file}" for each in sections for figure in each.figures},
    )


def _groups(claims: pd.DataFrame) -> list[tuple[str, list[dict]]]:
    """Rows of the claims table in two groups: claims, and numbers."""
    ids = {claim.id for claim in CLAIMS}
    rows = claims.to_dict("records")
    spans = claims["claim"].value_counts()
    for row, first in zip(rows, ~claims["claim"].duplicated(), strict=True):
        row["span"] = spans[row["claim"]] if first else 0  # the claim's own cells reach over all its rows
        bounds = f" [{row['low']:.2f}, {row['high']:.2f}]" if row["low"] == row["low"] else ""
        row["value"] = f"{row['measured']:.2f}{bounds}" if row["measured"] == row["measured"] else "–"
    return [
        ("Claims", [row for row in rows if row["claim"] in ids]),
        ("Numbers", [row for row in rows if row["claim"] not in ids]),
    ]


def section(name: str, preset: str, paths: Paths) -> Section:
    """Collect what the notebook `name` left under `preset`."""
    title, body = _heading(paths.notebook(name))
    folder = paths.results(preset, name)
    ran = read_json(folder / "provenance.json")
    captions = ran.get("captions", {})
    there = sorted(path.name for path in folder.glob("*"))
    files = [*(name for name in captions if name in there), *(name for name in there if name not in captions)]
    tables = []
    for file in files:
        if file.endswith(".csv") and file != "claims.csv":  # the claims open the page
            tables.append((file, captions.get(file, ""), shown(pd.read_csv(folder / file))))
    return Section(
        name=name,
        title=title,
        body=body,
        ran=ran,
        error=_failure(folder / "notebook.failed.ipynb"),
        checks=_checks(folder / "notebook.ipynb"),
        figures=[_figure(folder / file, captions.get(file, ""), title) for file in files if file.endswith(".png")],
        tables=tables,
        metrics={key.replace("_", " "): short(value) for key, value in read_json(folder / "metrics.json").items()},
    )


def _heading(notebook: Path) -> tuple[str, str]:
    """Title and the rest of the first Markdown cell, as text and HTML."""
    cells = [cell for cell in nbformat.read(notebook, as_version=4).cells if cell.cell_type == "markdown"]
    first, _, rest = (cells[0].source if cells else notebook.stem).partition("\n")
    return first.lstrip("# ").strip(), markdown2html_mistune(rest)


def _figure(file: Path, caption: str, title: str) -> Figure:
    encoded = base64.b64encode(file.read_bytes()).decode("ascii")
    alt = caption or f"{file.stem.removeprefix('fig_').replace('_', ' ')} ({title})"
    return Figure(file.name, f"data:image/png;base64,{encoded}", caption, alt)


def _checks(notebook: Path) -> list[str]:
    """What the cells that must hold printed."""
    if not notebook.is_file():
        return []
    cells = nbformat.read(notebook, as_version=4).cells
    outputs = [out for cell in cells if CHECK_TAG in cell.metadata.get("tags", []) for out in cell.get("outputs", [])]
    return [line for out in outputs if out.output_type == "stream" for line in out.text.splitlines() if line.strip()]


def _failure(notebook: Path) -> str:
    """The error that stopped a failed copy, in one line."""
    if not notebook.is_file():
        return ""
    cells = nbformat.read(notebook, as_version=4).cells
    errors = [out for cell in cells for out in cell.get("outputs", []) if out.output_type == "error"]
    return " ".join(f"{errors[-1].ename}: {errors[-1].evalue}".split()) if errors else "it stopped without an error"
