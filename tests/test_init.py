"""`leaklearn init`, and what the wheel brings for it: the notebooks and presets, whole, and never over other files."""

import importlib.util
import tomllib
from pathlib import Path

import pytest

from leaklearn import cli
from leaklearn.files import REPOSITORY, Paths
from leaklearn.project import PACKED, project
from leaklearn.runner import init

PARTS = ("notebooks", "params")


def contents(root):
    """Every visible file under notebooks/ and params/, with its bytes."""
    files = [file for part in PARTS for file in (root / part).rglob("*") if file.is_file()]
    places = {file.relative_to(root): file.read_bytes() for file in files}
    return {place: content for place, content in places.items() if not any(p.startswith(".") for p in place.parts)}


def test_what_is_written_is_what_the_checkout_has(tmp_path, capsys):
    assert cli.main(["init", str(tmp_path / "a" / "demo")]) == 0
    written = contents(tmp_path / "a" / "demo")
    assert written == contents(REPOSITORY.root)
    assert {place.parts[1] for place in written if place.parts[0] == "params"} >= {"laptop", "paper"}
    assert f"cd {tmp_path / 'a' / 'demo'} && leaklearn reproduce --preset smoke" in capsys.readouterr().out


def test_an_empty_folder_will_do(tmp_path):
    assert len(init.init(tmp_path)) == len(contents(REPOSITORY.root))


@pytest.mark.parametrize("there", ["folder", "file"])
def test_nothing_is_overwritten(there, tmp_path, capsys):
    mine = tmp_path / "demo" / "mine.txt" if there == "folder" else tmp_path / "demo"
    mine.parent.mkdir(exist_ok=True)
    mine.write_text("mine")
    assert cli.main(["init", str(tmp_path / "demo")]) == 2
    said = capsys.readouterr().err
    assert str(tmp_path / "demo") in said
    assert "name a new folder" in said
    assert said.count("\n") == 1
    assert sum(file.is_file() for file in tmp_path.rglob("*")) == 1


def setup_py(monkeypatch):
    """The module setup.py, which builds nothing here."""
    setuptools = pytest.importorskip("setuptools")
    monkeypatch.setattr(setuptools, "setup", lambda **given: None)
    spec = importlib.util.spec_from_file_location("setup_of_leaklearn", REPOSITORY.root / "setup.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("editable", [False, True])
def test_the_wheel_brings_all_notebooks_and_presets(editable, tmp_path, monkeypatch):
    module = setup_py(monkeypatch)
    from setuptools import Distribution

    monkeypatch.setattr(module.build_py, "run", lambda self: None)
    stale = tmp_path / "leaklearn" / "packed" / "notebooks" / "99_gone.ipynb"
    stale.parent.mkdir(parents=True)
    stale.touch()
    monkeypatch.chdir(REPOSITORY.root)
    build = module.WithProject(Distribution())
    build.build_lib, build.editable_mode = str(tmp_path), editable
    build.run()
    if editable:
        assert stale.exists()  # nothing is done
    else:
        assert contents(tmp_path / "leaklearn" / "packed") == contents(REPOSITORY.root)


def test_the_source_archive_has_what_the_wheel_is_built_from():
    manifest = (REPOSITORY.root / "MANIFEST.in").read_text().splitlines()
    assert [f"graft {part}" for part in PARTS] == manifest[:2]


def test_every_file_of_the_package_that_is_not_python_is_packaged():
    told = tomllib.loads((REPOSITORY.root / "pyproject.toml").read_text())["tool"]["setuptools"]["package-data"]
    package = REPOSITORY.root / "leaklearn"
    packaged = {file for pattern in told["leaklearn"] for file in package.glob(pattern)}
    files = {file for file in package.rglob("*") if file.is_file() and "__pycache__" not in file.parts}
    assert {file for file in files if file.suffix != ".py"} == packaged


def test_a_checkout_is_its_own_project_wherever_one_works(tmp_path):
    assert not PACKED.exists()
    assert project(PACKED, tmp_path).root == Path(cli.__file__).resolve().parents[1]


def test_a_wheel_works_in_the_nearest_folder_laid_out_like_a_project(tmp_path):
    packed = tmp_path / "site-packages" / "leaklearn" / "packed"
    packed.mkdir(parents=True)
    inside = tmp_path / "demo" / "notebooks"
    for part in PARTS:
        (tmp_path / "demo" / part).mkdir(parents=True)
    assert project(packed, tmp_path).root == tmp_path
    assert project(packed, tmp_path / "demo").root == tmp_path / "demo"
    assert project(packed, inside).root == tmp_path / "demo"  # JupyterLab's kernels start beside their notebook


def test_a_wheel_writes_what_it_packs(tmp_path, monkeypatch):
    packed = Paths(tmp_path / "packed")
    packed.notebooks.mkdir(parents=True)
    packed.notebook("00_only").write_text("{}")
    monkeypatch.setattr(init, "PACKED", packed.root)
    assert init.init(tmp_path / "demo") == [tmp_path / "demo" / "notebooks" / "00_only.ipynb"]


@pytest.mark.parametrize("command", ["reproduce", "status"])
def test_without_notebooks_the_way_to_get_them_is_named(command, tmp_path, capsys):
    assert cli.main([command], Paths(tmp_path)) == 2
    assert capsys.readouterr().err == (
        f"leaklearn: {tmp_path} has no notebooks: `leaklearn init FOLDER` writes them; then run this in FOLDER\n"
    )
