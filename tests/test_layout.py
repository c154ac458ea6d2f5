"""The shape of the project: imports flow one way, modules stay small, notebooks follow one form."""

import ast
import re
import sys
import tomllib
from importlib.metadata import packages_distributions

import nbformat
import pytest
import yaml

from leaklearn import parameters
from leaklearn.files import REPOSITORY

PACKAGE = REPOSITORY.root / "leaklearn"

# A part may import what stands before it, and itself. Leaks come before attacks: they are what an attack gives.
ORDER = [
    "files",
    "project",
    "store",
    "parameters",
    "ranges",
    "torchvision_compat",
    "data",
    "models",
    "federated",
    "leaks",
    "attacks",
    "learning",
    "evaluation",
    "experiments",
    "report",
    "auditing",
    "widgets",
    "runner",
    "cli",
    "__main__",
]
MODULES = sorted(PACKAGE.rglob("*.py"))
NOTEBOOKS = sorted(REPOSITORY.notebooks.glob("*.ipynb"))
PRESETS = sorted(REPOSITORY.params.glob("*/*.yaml"))

LONGEST_MODULE = 400
LONGEST_CELL = 12


def part(file):
    return file.relative_to(PACKAGE).parts[0].removesuffix(".py")


def name_of(file):
    return str(file.relative_to(REPOSITORY.root))


def imported_parts(file):
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{name_of(file)}: imports are absolute"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        for name in names:
            if name.startswith("leaklearn."):
                yield name.split(".")[1]


@pytest.mark.parametrize("file", [file for file in MODULES if file != PACKAGE / "__init__.py"], ids=name_of)
def test_imports_flow_one_way(file):
    assert part(file) in ORDER, f"{part(file)} has no place in the order of parts"
    beyond = [name for name in imported_parts(file) if ORDER.index(name) > ORDER.index(part(file))]
    assert not beyond, f"{name_of(file)} imports {beyond}, which come after it"


@pytest.mark.parametrize("file", MODULES, ids=name_of)
def test_modules_are_small_and_told(file):
    source = file.read_text(encoding="utf-8")
    assert len(source.splitlines()) <= LONGEST_MODULE
    assert not source.strip() or ast.get_docstring(ast.parse(source)), "a module begins with what it is for"
    assert file.stem not in ("utils", "util", "helpers", "misc", "common")


def test_no_library_code_asserts():
    for file in MODULES:
        nodes = ast.walk(ast.parse(file.read_text(encoding="utf-8")))
        assert not [node for node in nodes if isinstance(node, ast.Assert)], f"{name_of(file)}: raise ValueError"


def test_files_of_the_report_are_packaged():
    project = tomllib.loads((REPOSITORY.root / "pyproject.toml").read_text())
    patterns = project["tool"]["setuptools"]["package-data"]["leaklearn"]
    packaged = {path for pattern in patterns for path in PACKAGE.glob(pattern)}
    assert packaged >= {path for path in (PACKAGE / "report").iterdir() if path.is_file() and path.suffix != ".py"}


def imported_packages(code):
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.Import):
            yield from (alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.module.partition(".")[0]


def test_every_imported_package_is_declared():
    file = tomllib.loads((REPOSITORY.root / "pyproject.toml").read_text())
    parts = {"": file["project"]["dependencies"], **file["project"]["optional-dependencies"]}
    parts["build"] = file["build-system"]["requires"]
    declared = {part: {re.match(r"[\w.-]+", line)[0].lower() for line in lines} for part, lines in parts.items()}
    optional = dict.fromkeys(("federated/flower", "auditing/flower.py", "auditing/app.py"), "flower")
    optional["experiments/cluster.py"] = "cluster"
    places = []
    for file in MODULES:
        extras = [extra for place, extra in optional.items() if file.relative_to(PACKAGE).as_posix().startswith(place)]
        places.append(("".join(extras), file.read_text(encoding="utf-8")))
    places += [("", parameters.code(file).replace("\n%", "\n#").removeprefix("%")) for file in NOTEBOOKS]
    for folder, extra in (("tests", "test"), ("benchmarks", "bench"), ("docs/site", "site")):
        places += [(extra, file.read_text(encoding="utf-8")) for file in (REPOSITORY.root / folder).glob("*.py")]
    scripts = [
        file for folder in ("tests", "benchmarks", "docs/site") for file in (REPOSITORY.root / folder).glob("*.py")
    ]
    own = {file.stem for file in scripts}
    names = packages_distributions()
    for extra, code in places:
        for package in set(imported_packages(code)) - set(sys.stdlib_module_names) - own - {"leaklearn"}:
            known = {name.lower() for name in names.get(package, [package])}
            allowed = declared[""] | (
                set().union(*declared.values()) if extra in ("test", "bench") else declared[extra]
            )
            assert known & allowed, f"{package} is imported, but not declared in pyproject.toml"


@pytest.fixture(params=NOTEBOOKS, ids=lambda file: file.stem)
def cells(request):
    return nbformat.read(request.param, as_version=4).cells


def tags(cell):
    return cell.metadata.get("tags", [])


def code(cells):
    return [cell for cell in cells if cell.cell_type == "code"]


def test_notebook_begins_with_its_question(cells):
    assert cells[0].cell_type == "markdown"
    assert cells[0].source.startswith("# ")


def test_notebook_has_imports_then_parameters(cells):
    first, second = code(cells)[:2]
    assert all(isinstance(node, ast.Import | ast.ImportFrom | ast.Expr) for node in ast.parse(first.source).body)
    assert tags(second) == ["parameters"]
    assert sum("parameters" in tags(cell) for cell in cells) == 1
    declared = parameters.parse(second.source)  # refuses what is no literal
    assert "preset" in declared
    assert declared["preset"].default == "smoke"
    assert all(parameter.help for parameter in declared.values())


def test_cells_are_short_and_define_nothing(cells):
    for cell in code(cells)[1:]:
        tree = ast.parse("\n".join(line for line in cell.source.splitlines() if not line.startswith("%")))
        assert not [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.ClassDef)], cell.source
        if "parameters" not in tags(cell):
            assert len(cell.source.splitlines()) <= LONGEST_CELL, cell.source


def test_only_kept_cells_have_outputs(cells):
    for cell in code(cells):
        if "keep_output" not in tags(cell):
            assert not cell.outputs, f"run `make strip`: output in {cell.source!r}"


def test_a_checked_cell_is_stored_with_output_and_count(cells):
    checked = [cell for cell in code(cells) if "nbval-check-output" in tags(cell)]
    assert checked, "no cell is compared by nbval"
    for cell in checked:
        assert "keep_output" in tags(cell)
        assert cell.execution_count, "nbval never compares a cell without execution_count: run `make refresh`"
        assert cell.outputs


def test_notebook_reports_and_finishes(cells):
    source = "\n".join(cell.source for cell in code(cells))
    assert "start(" in source
    assert "finish()" in code(cells)[-1].source


@pytest.mark.parametrize("file", PRESETS, ids=name_of)
def test_a_preset_belongs_to_a_notebook_and_names_itself(file):
    assert file.stem in REPOSITORY.notebook_names()
    values = yaml.safe_load(file.read_text())
    assert values["preset"] == file.parent.name  # so that plain papermill writes to the right folder too
    declared = parameters.read(REPOSITORY.notebook(file.stem))
    same = [name for name in values if name != "preset" and values[name] == declared[name].default]
    assert not same, f"{same} have the notebook's own defaults: leave them out"


def test_every_preset_can_be_planned_and_the_report_comes_last():
    from leaklearn.runner.plan import plan, presets

    for preset in presets(REPOSITORY):
        jobs = plan(preset, [], [], REPOSITORY)
        assert [job.notebook for job in jobs if job.reads_others] == ["90_report"]
