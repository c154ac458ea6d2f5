"""Build the site: README, docs, executed notebooks, reports and an API reference, as pages that need no server.

    python docs/site/pages.py    # to build/site

The sources are put together in `build/site-source` in the layout of the repository, so that the links between README,
docs and notebooks lead where they lead on GitHub. Nothing is run: notebooks and the report of the preset laptop come
from docs/executed (see light.py), the paper preset's report from the tables in outputs/paper. GitHub's workflows set
GITHUB_REPOSITORY (owner/name); only with it are there buttons for Colab and Binder, and links to source files.
"""

import ast
import inspect
import os
import re
import shutil
import sys
from collections.abc import Callable
from datetime import datetime
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

import nbformat
from light import PRESETS
from sphinx.cmd.build import build_main
from sphinx.ext.autodoc.mock import mock

from leaklearn import _ORIGIN as WHERE
from leaklearn import __all__ as PUBLIC
from leaklearn.files import REPOSITORY as HERE
from leaklearn.files import Paths
from leaklearn.report import html

PAGES = {
    "leaklearn.data": ("leaklearn.data",),
    "leaklearn.models": ("leaklearn.models",),
    "leaklearn.federated": ("leaklearn.federated", "leaklearn.federated.detection", "leaklearn.federated.flower"),
    "leaklearn.leaks": ("leaklearn.leaks",),
    "leaklearn.attacks": (
        "leaklearn.attacks",
        "leaklearn.attacks.inversion",
        "leaklearn.attacks.labels",
        "leaklearn.attacks.linear",
    ),
    "leaklearn.learning": ("leaklearn.learning", "leaklearn.learning.semi_supervised"),
    "leaklearn.evaluation": ("leaklearn.evaluation",),
    "leaklearn.auditing": ("leaklearn.auditing",),
    "leaklearn.report": ("leaklearn.report",),
    "leaklearn.widgets": ("leaklearn.widgets",),
    "leaklearn.store": ("leaklearn.store",),
}
"""Pages of the reference, in the order in which data flows, and the modules that each tells of."""
NAVIGATION = {
    "Use it": {
        "How to, by task": "docs/howto",
        "Commands and data": "docs/usage",
        "Audit": "docs/audit",
        "Flower": "docs/flower",
    },
    "What was found": {
        "Reports": "reports",
        "Every notebook's figures": "docs/results",
        "The paper preset": "docs/paper_preset",
        "Benchmarks": "docs/benchmarks",
        "Sources": "docs/sources",
    },
    "Notebooks": {},
    "Reference": {},
    "Take part": {"What is where": "docs/architecture", "Contribute": "CONTRIBUTING", "Changes": "CHANGELOG"},
}
"""What stands at the side of every page; notebooks and reference are filled in."""
NOT_HERE = [] if find_spec("flwr") else ["flwr"]
"""Packages of extras that the reference does without: only their names are needed."""
LINK = re.compile(r"(!?)\[([^\]]*)\]\(([^)\s]+)\)")


def public_names(module: str) -> list[str]:
    """What a module offers: its `__all__`, else the functions and classes that it defines and that have a docstring."""
    with mock(NOT_HERE):
        found = import_module(module)
    if hasattr(found, "__all__"):
        return list(found.__all__)
    own = {name: value for name, value in vars(found).items() if getattr(value, "__module__", None) == module}
    return [name for name, value in own.items() if not name.startswith("_") and inspect.getdoc(value)]


def as_written(lines: list[str]) -> None:
    """Make reStructuredText of a docstring, in place.

    Here an indented paragraph under an unindented one is code, and |x| is a length.
    """
    for at in range(len(lines) - 1, 0, -1):
        lines[at] = escaped(lines[at])
        if lines[at].startswith("    ") and not lines[at - 1].strip():
            above = next((line for line in lines[at - 1 :: -1] if line.strip()), "")
            if above and not above.startswith((" ", ":", "..", "-", "*")) and not above.endswith("::"):
                lines[at:at] = ["::", ""]
    lines[:1] = [escaped(line) for line in lines[:1]]


def escaped(line: str) -> str:
    """A line whose bars stand for themselves, and whose code begins within a word too: ``-`x`..`y` ``."""
    parts = re.split(r"(``.+?``|`[^`]+`)", line)
    for at, part in enumerate(parts):
        if not at % 2:
            parts[at] = part.replace("|", r"\|")
        elif re.search(r"[^\s(\[:/\"'-]$", parts[at - 1]):
            parts[at] = rf"\ {part}"
    return "".join(parts)


def table(rows: dict[str, str]) -> list[str]:
    """The source of a table of two columns."""
    cells = [line for name, told in rows.items() for line in (f"   * - {name}", f"     - {told}")]
    return [".. list-table::", "   :widths: 1 3", "   :class: names", "", *cells, ""]


def first_words(value: object) -> str:
    """The first paragraph of a docstring."""
    return escaped(" ".join((inspect.getdoc(value) or "").split("\n\n")[0].split()))


def reference(page: str) -> str:
    """The source of one page of the reference: the modules' own words, a table of names, then each name."""
    text, shown = [], set()
    for module in PAGES[page]:
        values = {name: getattr(import_module(module), name) for name in public_names(module) if name not in shown}
        shown |= set(values)
        text += [module, ("=" if module == page else "-") * len(module), "", f".. automodule:: {module}"]
        text += ["   :no-members:", "", f".. currentmodule:: {module}", ""]
        told = {name: first_words(value) for name, value in values.items() if callable(value)}
        text += table({f":py:obj:`{name}`": words for name, words in told.items()})
        for name, value in values.items():
            if callable(value):
                text += [f".. auto{'class' if inspect.isclass(value) else 'function'}:: {name}", ""]
            else:
                text += [f".. py:data:: {name}", "", f"   {', '.join(f'``{key}``' for key in value)}", ""]
    return "\n".join(text) + "\n"


def first_page() -> str:
    """The reference's first page: every name of `leaklearn` itself, and where it is told."""
    rows = {}
    for name in PUBLIC:
        if name in WHERE:
            module = f"leaklearn.{WHERE[name]}"
            told = first_words(getattr(import_module(module), name))
            rows[f":py:obj:`ll.{name} <{module}.{name}>`"] = told
        else:
            rows[f":doc:`ll.{name} </api/leaklearn.{name}>`"] = first_words(import_module(f"leaklearn.{name}"))
    opening = ["leaklearn", "=========", "", ".. automodule:: leaklearn", "   :no-members:", ""]
    return "\n".join([*opening, "What ``import leaklearn as ll`` offers:", "", *table(rows)]) + "\n"


def experiments() -> str:
    """A page that says what each file of the experiments computes."""
    rows = {}
    for file in sorted((HERE.root / "leaklearn" / "experiments").glob("[a-z]*.py")):
        told = ast.get_docstring(ast.parse(file.read_text(encoding="utf-8")))
        rows[f"``{file.stem}``"] = " ".join(told.split("\n\n")[0].split())
    title = "leaklearn.experiments"
    return (
        "\n".join([title, "=" * len(title), "", f".. automodule:: {title}", "   :no-members:", "", *table(rows)]) + "\n"
    )


def settled(text: str, at: Path, there: Callable[[Path], bool], repository: str) -> str:
    """A Markdown text whose links to what the site does not have lead to GitHub, or are plain text.

    Parameters
    ----------
    text
        The page.
    at
        Its folder, as a path within the repository.
    there
        Whether the site has a file, given as a path within the repository.
    repository
        ``owner/name`` on GitHub; empty where it is not known.
    """

    def settle(found: re.Match) -> str:
        picture, words, target = found.groups()
        if re.match(r"[a-z]+:|#", target):
            return found[0]
        file = Path(os.path.normpath(at / target.partition("#")[0]))
        if there(file):
            return found[0]
        if repository and (HERE.root / file).exists():
            kind = "tree" if (HERE.root / file).is_dir() else "blob"
            return f"{picture}[{words}](https://github.com/{repository}/{kind}/main/{file.as_posix()})"
        return words

    return LINK.sub(settle, text)


def sources(notebook: nbformat.NotebookNode) -> list[str]:
    """What a notebook's cells say, without the parameters that a run puts in."""
    return [cell.source for cell in notebook.cells if "injected-parameters" not in cell.metadata.get("tags", [])]


def told_of(notebook: nbformat.NotebookNode, name: str, repository: str, *, changed: bool, on_paper: bool) -> str:
    """The line under a notebook's title: of which run it is, and where it can be run.

    `changed`: the notebook is another one since; `on_paper`: there are results of the preset paper, in its report.
    """
    ran = notebook.metadata.get("leaklearn")
    if ran:
        day = datetime.fromisoformat(ran["started"]).strftime("%d %B %Y").lstrip("0")
        minutes = f"{ran['seconds'] / 60:.0f} minutes" if ran["seconds"] >= 90 else f"{ran['seconds']:.0f} seconds"
        text = f"Executed with the preset <b>{ran['preset']}</b> on {day} in {minutes}: "
        text += f"leaklearn {ran['version']}, commit {ran['commit'][:7]}."
        if changed:
            text += " The notebook has changed since."
        if ran["preset"] != PRESETS[0] and on_paper:
            text += f' Results on the paper\'s data sets: <a href="../outputs/paper/report.html#{name}">report</a>.'
        elif ran["preset"] != PRESETS[0]:
            text += " On the paper's data sets it was not run yet."
    else:
        text = "<b>Not run yet</b> with a preset that is shown here: most cells are without their outputs."
    if repository:
        colab = f"https://colab.research.google.com/github/{repository}/blob/gh-pages/colab/{name}.ipynb"
        binder = f"https://mybinder.org/v2/gh/{repository}/main?urlpath=lab/tree/notebooks/{name}.ipynb"
        text += f'<br><a class="button" href="{colab}">Open in Colab</a>'
        text += f'<a class="button" href="{binder}">Open on Binder</a>'
    return f'<div class="ran">{text}</div>'


def for_colab(notebook: nbformat.NotebookNode, repository: str) -> nbformat.NotebookNode:
    """A notebook, with its own defaults, that begins by installing the package and going to a folder of its own."""
    lines = [
        "# On Colab: install leaklearn (some minutes), and work in a folder with its notebooks and presets.",
        f'%pip install --quiet "git+https://github.com/{repository}"',
        "!leaklearn init work",
        "%cd work",
    ]
    setup = nbformat.v4.new_code_cell("\n".join(lines), id="on-colab")
    return nbformat.v4.new_notebook(cells=[setup, *notebook.cells], metadata=notebook.metadata)


def assemble(source: Path, out: Path, repository: str = "", paths: Paths = HERE) -> None:
    """Write the pages' sources to `source`, and what needs no Sphinx to `out`."""
    executed, names = paths.root / "docs" / "executed", paths.notebook_names()
    pages = ["README.md", "CONTRIBUTING.md", "CHANGELOG.md"]
    pages += [f"docs/{file.name}" for file in sorted((paths.root / "docs").glob("*.md"))]
    texts = {Path(page): (paths.root / page).read_text(encoding="utf-8") for page in pages}
    pictures = set()
    for page, text in texts.items():
        local = (page.parent / target for mark, _, target in LINK.findall(text) if mark and ":" not in target)
        pictures |= {Path(os.path.normpath(file)) for file in local}
    notebooks = {Path("notebooks") / f"{name}.ipynb" for name in names}
    has = {*texts, *pictures, *notebooks}
    for page, text in texts.items():
        name = Path("index.md") if page == Path("README.md") else page
        text = settled(text, page.parent, has.__contains__, repository).replace("README.md)", "index.md)")
        put(source / name, text + (navigation(names) if name == Path("index.md") else ""))
    for picture in pictures:
        put(source / picture, (paths.root / picture).read_bytes())
    for name in names:
        notebook = present = nbformat.read(paths.notebook(name), as_version=4)
        if (executed / f"{name}.ipynb").is_file():
            notebook = nbformat.read(executed / f"{name}.ipynb", as_version=4)
        changed = sources(notebook) != sources(present)
        if repository:
            put(out / "colab" / f"{name}.ipynb", nbformat.writes(for_colab(present, repository)))
        on_paper = (paths.results("paper", name) / "provenance.json").is_file()
        told = told_of(notebook, name, repository, changed=changed, on_paper=on_paper)
        for cell in notebook.cells:
            if cell.cell_type == "markdown":
                cell.source = settled(cell.source, Path("notebooks"), has.__contains__, repository)
        title, _, rest = notebook.cells[0].source.partition("\n")
        begin = {"title": title, "of-this-run": told, "begin": rest.strip()}
        notebook.cells[:1] = [nbformat.v4.new_markdown_cell(text, id=name) for name, text in begin.items()]
        put(source / "notebooks" / f"{name}.ipynb", nbformat.writes(notebook))
    put(source / "api" / "leaklearn.rst", first_page())
    put(source / "api" / "leaklearn.experiments.rst", experiments())
    for page in PAGES:
        put(source / "api" / f"{page}.rst", reference(page))
    put(source / "reports.md", reports(executed, out, paths, names))


def reports(executed: Path, out: Path, paths: Paths, names: list[str]) -> str:
    """Write the reports as they are, with the tables that git has, and return the page that leads to them."""
    text = ["# Reports", ""]
    text += [
        "One page over all results of a preset: what was found, the paper's claims with a verdict and its reason, every"
    ]
    text += ["figure and table, and with which versions and on which machine it was run.", ""]
    for preset in PRESETS:
        light = executed / f"report_{preset}.html"
        if not light.is_file() and not any(paths.outputs.glob(f"{preset}/*/provenance.json")):
            continue
        report = light.read_text(encoding="utf-8") if light.is_file() else html.render(preset, paths)
        place = out / "outputs" / preset
        if preset == "paper":
            for table in paths.outputs.glob("paper/*/*.csv"):
                put(place / table.parent.name / table.name, table.read_bytes())
        put(place / "report.html", linked(report, place, names))
        what = "CIFAR-10, MNIST and Tiny ImageNet, as far as they were run" if preset == "paper" else "5,000 digits"
        where = "" if light.is_file() else " Of its figures git has only one."
        link = f'<a href="outputs/{preset}/report.html">Report of the preset {preset}</a>'
        text += [f"- {link}: {what}.{where}"]
    return "\n".join(text) + "\n"


def linked(report: str, place: Path, names: list[str]) -> str:
    """A report whose links to executed notebooks lead to their pages; links to files that are not kept become text."""

    def link(found: re.Match) -> str:
        folder, _, file = found[1].partition("/")
        if folder in names and file == "notebook.ipynb":
            return f'<a href="../../notebooks/{folder}.html">{found[2]}</a>'
        return found[0] if (place / found[1]).is_file() else found[2]

    report = re.sub(r' <small>\(<a href="([\w.]+/[\w.]+\.pdf)">PDF</a>\)</small>', "", report)
    report = re.sub(r'<a href="([\w.]+/[\w.]+)">([^<]*)</a>', link, report)
    home = '<p style="margin: 0 0 0.6rem"><a href="../../index.html">All pages of leaklearn</a></p>'
    return report.replace("<header>", f"<header>\n{home}", 1)


def navigation(names: list[str]) -> str:
    """What stands at the side of every page."""
    notebooks = {f"{name[:2]} {name[3:].replace('_', ' ')}": f"notebooks/{name}" for name in names}
    api = {name: f"api/{name}" for name in ("leaklearn", *PAGES, "leaklearn.experiments")}
    text = []
    for caption, pages in (NAVIGATION | {"Notebooks": notebooks, "Reference": api}).items():
        entries = [f"{title} <{page}>" for title, page in pages.items()]
        text += ["", "```{toctree}", ":hidden:", f":caption: {caption}", "", *entries, "```"]
    return "\n".join(text) + "\n"


def put(file: Path, content: str | bytes) -> None:
    """Write a file, and the folders that it needs."""
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(content.encode() if isinstance(content, str) else content)


def build(folder: Path, repository: str = "") -> Path:
    """Build the whole site in `folder`, and return the folder of its pages.

    Raises
    ------
    RuntimeError
        If Sphinx fails, or warns: a link that leads nowhere, a docstring that cannot be read.
    """
    source, out = folder / "site-source", folder / "site"
    for old in (source, out):
        shutil.rmtree(old, ignore_errors=True)
    assemble(source, out, repository)
    told = [
        "-c",
        str(Path(__file__).parent),
        "-b",
        "html",
        "-q",
        "--keep-going",
        "-W",
        "-d",
        str(folder / "site-cache"),
    ]
    if build_main([*told, str(source), str(out)]):
        raise RuntimeError(f"the site has the faults above; what could be built of it is in {out}")
    return out


if __name__ == "__main__":
    try:
        made = build(HERE.root / "build", os.environ.get("GITHUB_REPOSITORY", ""))
    except RuntimeError as error:
        sys.exit(f"make site: {error}")
    size = sum(file.stat().st_size for file in made.rglob("*") if file.is_file())
    print(f"{made / 'index.html'} ({size / 2**20:.0f} MiB): open it in a browser")
