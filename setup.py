"""Puts the notebooks and presets into the wheel, as leaklearn/packed; everything else is in pyproject.toml."""

from pathlib import Path
from shutil import copytree, ignore_patterns, rmtree

from setuptools import setup
from setuptools.command.build_py import build_py


class WithProject(build_py):
    """Builds the package, then copies what `leaklearn init` writes. An editable install has the checkout instead."""

    def run(self) -> None:
        """Build as ever, and copy."""
        super().run()
        if self.editable_mode:
            return
        packed = Path(self.build_lib, "leaklearn", "packed")
        rmtree(packed, ignore_errors=True)  # of an earlier build
        for name in ("notebooks", "params"):
            copytree(name, packed / name, ignore=ignore_patterns(".*"))


setup(cmdclass={"build_py": WithProject})
