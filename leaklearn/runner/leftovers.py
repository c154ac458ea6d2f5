"""What a run that was killed has left: results on the way to their place are put there, temporary files removed."""

import os
import re
from pathlib import Path

from leaklearn.files import Paths
from leaklearn.report.run import is_gone, recover
from leaklearn.store import FOLDER

TEMPORARY = re.compile(r"\..+\.(\d+)\.tmp")
"""Name of a file that is being written, with the process that writes it (`leaklearn.files.write_bytes`)."""


def tidy(preset: str, paths: Paths) -> None:
    """Finish what killed runs had begun: all results of a preset, and temporary files wherever this project writes."""
    results = [paths.results(preset, name) for name in paths.notebook_names()]
    for folder in results:
        recover(folder)
    store = os.environ.get(FOLDER)
    written = [paths.outputs / preset, *results, paths.cache, paths.root, paths.root / "docs"]
    for folder in [*written, *([Path(store).expanduser()] if store else [])]:
        for file in folder.glob(".*.tmp"):
            named = TEMPORARY.fullmatch(file.name)
            if named and is_gone(int(named[1]), file):
                file.unlink(missing_ok=True)
