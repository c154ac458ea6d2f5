"""One self-contained page over all results of a preset: claims and verdicts, figures, tables, provenance."""

import base64
import io
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

import nbformat
import pandas as pd
from jinja2 import Environment, FileSystemLoader, StrictUndefined, Template, select_autoescape
from markupsafe import Markup, escape
from nbconvert.filters.markdown_mistune import markdown2html_mistune
from PIL import Image

from leaklearn.files import Paths, write_text
from leaklearn.project import PROJECT
from leaklearn.report import results
from leaklearn.report.claims import judge, read_tables, summarise_verdicts, verdict_line
from leaklearn.report.findings import OPENING, finding
from leaklearn.report.names import label
from leaklearn.report.paper import KNOWN, STATEMENTS
from leaklearn.report.tables import Table, short, shown

CHECK_TAG = "nbval-check-output"
MARKS = {"reproduced": "✓", "partly": "◐", "not reproduced": "✗"}
MARKS |= {"measured": "=", "not comparable": "≠", "not run": "–"}
SHORTEST_FOLDED = (
    13  # rows: a longer table, or list of single numbers, is opened by a click, so that figures stay close
)
WIDEST_IN_PRINT = 8  # columns: a wider table is printed smaller
COVERS = ("fig_pairs.png", "fig_reconstructions.png")
"""Figures that may open the page, the best first."""
TOLD = {"device", "git", "parameters", "peak_memory_mib", "seconds", "started", "versions"}
"""What the page tells of every run."""
SCREEN_DPI = 96  # pixels of a browser in an inch


@dataclass(frozen=True)
class Figure:
    """A PNG as a data URI, with its file's name, caption, alternative text, and the size it was drawn for in pixels.

    `pdf` is the name of the same figure as a PDF; empty where there is none.
    """

    file: str
    source: str
    caption: str
    alt: str
    width: int
    height: int
    pdf: str


@dataclass(frozen=True)
class Section:
    """What one notebook left behind.

    Parameters
    ----------
    name, title, body, headline : str
        The notebook's name, its first heading, the rest of its first cell and what it found in full, as HTML.
    finding : str
        What it found, in one sentence.
    executed : bool
        Whether its executed copy is there to be opened.
    ran : dict
        Its `provenance.json`; empty when there is no complete run.
    error : str
        The last failure that no later success has followed, and the files that are damaged; empty when all is well.
    checks : list of str
        Printed lines of the cells whose outputs the tests compare.
    figures, tables, metrics
        Figures, tables by name with their captions, and single numbers.
    """

    name: str
    title: str
    body: str
    headline: str = ""
    finding: str = ""
    executed: bool = False
    ran: dict = field(default_factory=dict)
    error: str = ""
    checks: list[str] = field(default_factory=list)
    figures: list[Figure] = field(default_factory=list)
    tables: list[tuple[str, str, Table]] = field(default_factory=list)
    metrics: dict[str, str] = field(default_factory=dict)


def write(preset: str, paths: Paths = PROJECT) -> Path:
    """Write `outputs/<preset>/report.html` from what the preset's folder holds, and return its path."""
    file = paths.outputs / preset / "report.html"
    file.parent.mkdir(parents=True, exist_ok=True)
    return write_text(file, render(preset, paths))


def render(preset: str, paths: Paths = PROJECT) -> str:
    """The page as HTML text; nothing in it is fetched from anywhere."""
    claims = judge(read_tables(preset, paths))
    sections = [section(name, preset, paths) for name in paths.notebook_names()]
    return template("report.html.j2").render(
        preset=preset,
        opening=_opening(sections),
        cover=_cover(sections),
        style=style(),
        written=now(),
        groups=_groups(claims),
        judged=(sum(each.claim for each in STATEMENTS), sum(not each.claim for each in STATEMENTS)),
        known=KNOWN,
        line=verdict_line(claims),
        counts=summarise_verdicts(claims).to_dict("records"),
        marks=MARKS,
        sections=sections,
        environments=list(dict.fromkeys(environment_of(each.ran) for each in sections if each.ran)),
        environment_of=environment_of,
        shortest_folded=SHORTEST_FOLDED,
        linked={each.name for each in sections},
        drawn={f"{each.name}/{figure.file}" for each in sections for figure in each.figures},
    )


def template(name: str) -> Template:
    """A template of this folder, with the filters that all of them use."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=select_autoescape(default=True),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "short": short,
        "signed": signed,
        "moment": moment,
        "words": words,
        "held": held,
        "label": label,
        "coded": coded,
    }
    environment.globals["widest_in_print"] = WIDEST_IN_PRINT
    return environment.get_template(name)


def style() -> str:
    """The one style sheet."""
    return Path(__file__).with_name("report.css").read_text(encoding="utf-8")


def now() -> str:
    """The present time as a reader writes it."""
    return datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC")


def _opening(sections: Sequence[Section]) -> list[Section]:
    """The sections whose findings open the page, as many as `OPENING` names where there are so many."""
    found = [each for each in sections if each.finding]
    first = sorted((each for each in found if each.name[:2] in OPENING), key=lambda each: OPENING.index(each.name[:2]))
    return [*first, *(each for each in found if each not in first)][: len(OPENING)]


def _cover(sections: Sequence[Section]) -> Figure | None:
    """The picture that opens the page: what a client trained on, above what the server read."""
    figures = {figure.file: figure for each in reversed(sections) for figure in each.figures}
    return next((figures[name] for name in COVERS if name in figures), None)


def signed(text: str) -> str:
    """The text with true minus signs before its numbers; hyphens in names stay."""
    return re.sub(r"(?<![\w.-])-(?=\d)", "−", text)


def moment(started: str) -> str:
    """An ISO time of UTC as a reader writes it."""
    return f"{started[:16].replace('T', ' ')} UTC"


def coded(text: str) -> Markup:
    """A text as HTML, with what stands between backticks as code."""
    return Markup(re.sub(r"`([^`]+)`", r"<code>\1</code>", str(escape(text))))


def words(name: str) -> str:
    """A file's name as words: `fig_leak_rate.png` gives `leak rate`."""
    return Path(name).stem.removeprefix("fig_").replace("_", " ")


def held(line: str) -> tuple[bool, str]:
    """Whether a printed line says `: True` only, and its text without that.

    A line with a `: False` stays as it is and counts neither way: of a defence, say, it is a finding, not a failure.
    """
    found = re.findall(r": (True|False)\b", line)
    true = bool(found) and "False" not in found
    return true, re.sub(r": True\b", "", line) if true else line


def environment_of(ran: dict) -> str:
    """Machine and versions of a run in one line, so that runs of one environment can share it."""
    device, versions = ran["device"], ran["versions"]
    threads = f"{device['threads']} thread{'' if device['threads'] == 1 else 's'}"
    machine = f"{device['gpu'] or device['cpu']}, {threads}, {device['platform']}"
    return f"{machine}; {', '.join(f'{name} {version}' for name, version in versions.items())}"


def _groups(claims: pd.DataFrame) -> list[tuple[str, list[dict]]]:
    """Claims, and numbers: each with its id, its text and its rows of the claims table."""
    ids = {each.id for each in STATEMENTS if each.claim}
    found = {"Claims": [], "Numbers": []}
    for (name, text), part in claims.groupby(["claim", "text"], sort=False):
        rows = part.to_dict("records")
        for row in rows:
            bounds = f" [{row['low']:,.2f}, {row['high']:,.2f}]" if row["low"] == row["low"] else ""
            row["value"] = f"{row['measured']:,.2f}{bounds}" if row["measured"] == row["measured"] else "–"
        found["Claims" if name in ids else "Numbers"].append({"id": name, "text": text, "rows": rows})
    return list(found.items())


def section(name: str, preset: str, paths: Paths) -> Section:
    """Collect what the notebook `name` left under `preset`."""
    title, body = _heading(paths.notebook(name))
    folder = paths.results(preset, name)
    damage = results.damage(folder)
    ran = {} if "provenance.json" in damage else results.provenance(folder)
    if lacking := sorted(TOLD - set(ran)) if ran else []:
        damage["provenance.json"] = f"{folder / 'provenance.json'} is damaged: it lacks {', '.join(lacking)}"
        ran = {}
    captions, keys = ran.get("captions", {}), ran.get("keys", {})
    there = sorted(path.name for path in folder.glob("*") if path.name not in damage)
    files = [*(name for name in captions if name in there), *(name for name in there if name not in captions)]
    tables = []
    for file in files:
        if file.endswith(".csv") and file != "claims.csv":  # the claims open the page
            tables.append((file, captions.get(file, ""), shown(results.table(folder / file), keys.get(file))))
    pictures = []
    for file in (file for file in files if file.endswith(".png")):
        try:
            pictures.append(_figure(folder / file, captions.get(file, ""), title, bool(tables)))
        except (OSError, ValueError, Image.DecompressionBombError) as error:
            damage[file] = f"{folder / file} is damaged: {error}"
    metrics = {} if "metrics.json" in damage else results.record(folder / "metrics.json")
    lost = [f"{reason.removeprefix(f'{folder}/')}: run the notebook again" for reason in damage.values()]
    return Section(
        name=name,
        title=title,
        body=body,
        ran=ran,
        executed="notebook.ipynb" in there,
        error="; ".join(filter(None, [_failure(folder / "notebook.failed.ipynb"), *lost])),
        checks=_checks(folder / "notebook.ipynb"),
        figures=pictures,
        tables=tables,
        headline=markdown2html_mistune(ran.get("headline", "")),
        finding=finding(name, preset, paths) if ran and not damage else "",
        metrics={key.replace("_", " "): short(value) for key, value in metrics.items()},
    )


def _heading(notebook: Path) -> tuple[str, str]:
    """Title and the rest of the first Markdown cell, as text and HTML."""
    cells = [cell for cell in nbformat.read(notebook, as_version=4).cells if cell.cell_type == "markdown"]
    first, _, rest = (cells[0].source if cells else notebook.stem).partition("\n")
    return first.lstrip("# ").strip(), markdown2html_mistune(rest)


def _figure(file: Path, caption: str, title: str, tables: bool) -> Figure:
    # The caption is read out beside it: the alternative text says which figure this is and where its numbers are.
    alt = f"Figure {words(file.name)}, to the question: {title.rstrip('?.')}?"
    alt += " It is described in its caption." if caption else ""
    alt += " The tables of this section hold its numbers." if tables else ""
    pdf = file.with_suffix(".pdf")
    return embedded(file.name, file.read_bytes(), caption, alt, pdf.name if pdf.is_file() else "")


def embedded(name: str, png: bytes, caption: str, alt: str, pdf: str = "") -> Figure:
    """A PNG as a page holds it; `alt` says what it shows where it is not seen, `pdf` is the file that it links.

    The page holds it as lossless WebP, less than half as large.
    """
    with Image.open(io.BytesIO(png)) as image:
        scale = SCREEN_DPI / image.info.get("dpi", (SCREEN_DPI,))[0]
        width, height = (round(length * scale) for length in image.size)
        buffer = io.BytesIO()
        image.save(buffer, "WEBP", lossless=True, quality=20, method=1)  # of the effort, not of what is seen
    encoded = base64.b64encode(buffer.getvalue()).decode("ascii")
    return Figure(name, f"data:image/webp;base64,{encoded}", caption, alt, width, height, pdf)


def _checks(notebook: Path) -> list[str]:
    """What the cells that must hold printed."""
    cells = _executed(notebook) or []
    outputs = [out for cell in cells if CHECK_TAG in cell.metadata.get("tags", []) for out in cell.get("outputs", [])]
    return [line for out in outputs if out.output_type == "stream" for line in out.text.splitlines() if line.strip()]


def _failure(notebook: Path) -> str:
    """The error that stopped a failed copy, in one line."""
    if not notebook.is_file():
        return ""
    cells = _executed(notebook)
    if cells is None:
        return f"its copy {notebook.name} is damaged: delete it, or run the notebook again"
    errors = [out for cell in cells for out in cell.get("outputs", []) if out.output_type == "error"]
    return " ".join(f"{errors[-1].ename}: {errors[-1].evalue}".split()) if errors else "it stopped without an error"


def _executed(notebook: Path) -> list[nbformat.NotebookNode] | None:
    """Cells of an executed copy, None where it is missing or damaged: the rest of the page is still worth having."""
    try:
        return nbformat.read(notebook, as_version=4).cells
    except FileNotFoundError:
        return None
    except (ValueError, TypeError, LookupError, AttributeError):  # nbformat's own errors, and of JSON of another form
        return None
