"""Long runs in slices of a fixed length, for machines that are lent for minutes: what is done stays, the rest goes on.

A slice ends with its kernels killed in the middle of a cell. The next one skips the notebooks that are finished, runs
the one that was not from its first cell, and finds the long computations of that notebook where they were left
(`leaklearn.store`).
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager

from leaklearn import parameters
from leaklearn.files import plain, read_json
from leaklearn.paths import Paths
from leaklearn.report import provenance
from leaklearn.settings import Job
from leaklearn.store import FOLDER


def is_finished(job: Job, preset: str, paths: Paths) -> bool:
    """Whether the results of a notebook are there, made with these parameters by this very version of the sources.

    A checkout with changes is no version: its commit does not tell what ran.
    """
    made = read_json(paths.results(preset, job.notebook) / "provenance.json")
    declared = {each.name: each.default for each in parameters.read(paths.notebook(job.notebook)).values()}
    version = provenance.commit(paths.root)
    same = made.get("parameters") == plain(declared | job.parameters) and made.get("git") == version
    return same and not version["dirty"]


@contextmanager
def kept_states(paths: Paths) -> Iterator[None]:
    """Have the kernels store all that takes long in the cache, or where the user says."""
    if os.environ.get(FOLDER):
        yield
        return
    os.environ[FOLDER] = str(paths.cache)
    try:
        yield
    finally:
        del os.environ[FOLDER]
