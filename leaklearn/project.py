"""The project that commands and notebooks work in: a checkout, or a folder that `leaklearn init` wrote."""

from pathlib import Path

from leaklearn.files import Paths

PACKED = Path(__file__).resolve().with_name("packed")
"""Notebooks and presets inside a package from a wheel: see setup.py. A checkout does not have this folder."""


def project(packed: Path, working: Path) -> Paths:
    """The checkout that this package was imported from, whatever the working directory.

    A package from a wheel has no checkout (`packed` is there). Then it is the nearest folder with `notebooks/` and
    `params/`, at `working` or above it, or else `working` itself.
    """
    if not packed.is_dir():
        return Paths(packed.parents[1])
    laid_out = (at for at in (working, *working.parents) if (at / "notebooks").is_dir() and (at / "params").is_dir())
    return Paths(next(laid_out, working))


PROJECT = project(PACKED, Path.cwd())
"""Of this process."""
