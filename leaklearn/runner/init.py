"""Write the notebooks and their presets into a folder, so that an installed package works without a checkout."""

from pathlib import Path

from leaklearn.files import Paths, write_bytes
from leaklearn.project import PACKED, PROJECT


def init(folder: Path) -> list[Path]:
    """Write `notebooks/` and `params/` into a new or empty folder, and return the files.

    Inside that folder every command finds them, and writes its results to `outputs/` beside them.

    Parameters
    ----------
    folder
        Where to write; made where it is not there.

    Raises
    ------
    ValueError
        If the folder is not empty, or is a file: nothing is ever overwritten.
    """
    if folder.is_file() or (folder.is_dir() and any(folder.iterdir())):
        why = "is a file" if folder.is_file() else "is not empty"
        raise ValueError(f"{folder} {why}, and nothing is overwritten: name a new folder")
    source = Paths(PACKED) if PACKED.is_dir() else PROJECT
    written = []
    for part in (source.notebooks, source.params):
        for file in sorted(part.rglob("[!.]*")):
            place = file.relative_to(source.root)
            if file.is_file() and not any(name.startswith(".") for name in place.parts):
                (folder / place).parent.mkdir(parents=True, exist_ok=True)
                written.append(write_bytes(folder / place, file.read_bytes()))
    return written
