"""A folder laid out like the repository, with notebooks small enough to be run many times in a test."""

from collections.abc import Sequence
from pathlib import Path

import nbformat

from leaklearn.files import Paths

PARAMETERS = """\
preset: str = "smoke"  # folder under outputs/
rate: float = 0.5  # a rate
steps: int = 3  # how many steps
flag: bool = False  # on or off
seeds: list[int] = [0, 1]  # seeds
"""


def make(root: Path) -> Paths:
    """An empty project under `root`, with the presets smoke, laptop and paper."""
    paths = Paths(root)
    paths.notebooks.mkdir(parents=True)
    for preset in ("laptop", "paper"):
        (paths.params / preset).mkdir(parents=True)
    return paths


def add_notebook(paths: Paths, name: str, *cells: str, parameters: str = PARAMETERS, tags: Sequence[str] = ()) -> Path:
    """Add a notebook with a title, the parameters and the given code cells, which have these tags."""
    made = [nbformat.v4.new_markdown_cell(f"# Title of {name}\n\nIts *question*.")]
    made.append(nbformat.v4.new_code_cell(parameters.strip(), metadata={"tags": ["parameters"]}))
    made += [nbformat.v4.new_code_cell(source, metadata={"tags": list(tags)}) for source in cells]
    kernel = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
    nbformat.write(nbformat.v4.new_notebook(cells=made, metadata=kernel), paths.notebook(name))
    return paths.notebook(name)


def reporting_cells(paths: Paths, name: str, before_finish: str = "") -> Sequence[str]:
    """Cells that save one table by way of `leaklearn.report` under this project's folders."""
    begin = (
        "from pathlib import Path\n"
        "import pandas as pd\n"
        "from leaklearn.files import Paths\n"
        "from leaklearn.report import start\n"
        f"run = start({name!r}, globals(), paths=Paths(Path({str(paths.root)!r})))\n"
        "run.table(pd.DataFrame({'steps': [steps]}), 'numbers', by=['steps'], caption='The steps.')\n"
    )
    return [cell for cell in (begin, before_finish, "run.finish()") if cell]


def write_preset(paths: Paths, preset: str, name: str, text: str) -> Path:
    """Write `params/<preset>/<name>.yaml`."""
    file = paths.params / preset / f"{name}.yaml"
    file.write_text(text)
    return file
