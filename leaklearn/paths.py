"""Where the project keeps its files. Every folder comes from here, absolute: nothing depends on the working directory.

The runner and the reports take a `Paths`; only their default, `REPOSITORY`, knows the checkout that this package was
imported from.
"""

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Paths:
    """The folders under one root.

    Parameters
    ----------
    root : Path
        Absolute path of the repository, or of a folder laid out like it.
    """

    root: Path

    @property
    def notebooks(self) -> Path:
        """Folder of `NN_section.ipynb`."""
        return self.root / "notebooks"

    @property
    def params(self) -> Path:
        """Folder of `<preset>/NN_section.yaml`."""
        return self.root / "params"

    @property
    def outputs(self) -> Path:
        """Folder of `<preset>/<notebook>/` and `<preset>/report.html`."""
        return self.root / "outputs"

    @property
    def cache(self) -> Path:
        """Folder of what can be made again (leaks, trained models), shared by notebooks and presets."""
        return self.outputs / ".cache"

    def notebook(self, name: str) -> Path:
        """Path of the notebook called `name`, whether or not it exists."""
        return self.notebooks / f"{name}.ipynb"

    def results(self, preset: str, notebook: str) -> Path:
        """Folder of the results of `notebook` under `preset`, whether or not it exists."""
        return self.outputs / preset / notebook

    def notebook_names(self) -> list[str]:
        """Names of the notebooks in the order they run, which is that of their numbers."""
        return sorted(path.stem for path in self.notebooks.glob("[0-9][0-9]_*.ipynb"))


REPOSITORY = Paths(Path(__file__).resolve().parents[1])
