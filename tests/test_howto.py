"""The how-to does what it says: its blocks run one after another, as a reader would run them."""

import re
from importlib.util import find_spec

import pytest
import torch

from leaklearn.files import REPOSITORY

PAGE = (REPOSITORY.root / "docs" / "howto.md").read_text(encoding="utf-8")
SECTIONS = re.split(r"^(?=## )", PAGE, flags=re.M)
TASKS = ["Audit your model", "Use your data", "Look at your own loop's gradients", "Audit FedAvg"]
TASKS += ["Audit a Flower app", "Choose a defence"]
BLOCK = re.compile(r"^```python\n(.*?)^```", re.M | re.S)


@pytest.fixture(scope="module")
def space(tmp_path_factory):
    """The names that the blocks before left behind."""
    torch.manual_seed(0)
    names = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("howto"))
        exec(compile(BLOCK.search(SECTIONS[0])[1], "docs/howto.md", "exec"), names)
        yield names


def test_there_is_a_section_for_each_task():
    assert [section.splitlines()[0].removeprefix("## ") for section in SECTIONS[1:]] == TASKS


@pytest.mark.parametrize("task", TASKS)
def test_the_blocks_of_a_task_run(space, task):
    if "Flower" in task and find_spec("flwr") is None:
        pytest.skip("Flower is not installed: make test-flower")
    blocks = BLOCK.findall(SECTIONS[1 + TASKS.index(task)])
    assert blocks
    for block in blocks:
        exec(compile(block, f"docs/howto.md, {task}", "exec"), space)
