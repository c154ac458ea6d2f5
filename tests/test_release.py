"""What is told about a version is told alike everywhere, and the workflows call what the Makefile has."""

import json
import re
import tomllib

import pytest
import yaml

from leaklearn.files import REPOSITORY

ROOT = REPOSITORY.root
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))


def test_the_version_is_one():
    version = PROJECT["version"]
    assert yaml.safe_load((ROOT / "CITATION.cff").read_text())["version"] == version
    assert json.loads((ROOT / ".zenodo.json").read_text())["version"] == version
    assert f"## {version}" in (ROOT / "CHANGELOG.md").read_text()


def test_title_and_licence_are_one():
    cited = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    deposited = json.loads((ROOT / ".zenodo.json").read_text())
    assert cited["title"] == deposited["title"]
    assert cited["license"] == deposited["license"] == PROJECT["license"]


@pytest.mark.parametrize("file", WORKFLOWS, ids=lambda file: file.stem)
def test_workflows_call_targets_that_there_are(file):
    jobs = yaml.safe_load(file.read_text())["jobs"]
    commands = "\n".join(step.get("run", "") for job in jobs.values() for step in job["steps"])
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.M))
    assert set(re.findall(r"\bmake ([a-z-]+)", commands)) <= targets
    assert all(job["timeout-minutes"] for job in jobs.values())


def test_every_python_that_is_allowed_is_tested():
    matrix = yaml.safe_load((ROOT / ".github" / "workflows" / "tests.yml").read_text())["jobs"]["locked"]["strategy"]
    versions = matrix["matrix"]["python"]
    assert f">={versions[0]}" == PROJECT["requires-python"]
    assert versions == ["3.11", "3.12", "3.13", "3.14"]


@pytest.mark.parametrize("page", ["CONTRIBUTING.md", "CHANGELOG.md"])
def test_files_that_are_named_are_there(page):
    text = (ROOT / page).read_text(encoding="utf-8")
    named = re.findall(r"`((?:leaklearn|tests|docs|report|attacks)/[a-z_/]+(?:\.py|\.md|/))`", text)
    named += re.findall(r"\]\(([^):]+)\)", text)
    lacking = [name for name in named if not (ROOT / name).exists() and not (ROOT / "leaklearn" / name).exists()]
    assert not lacking
