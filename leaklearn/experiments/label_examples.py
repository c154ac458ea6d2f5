"""Single attacked rounds with the labels that each method gives their images, for the explorer of notebook 09."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

from leaklearn.data.images import Dataset
from leaklearn.experiments.label_matching import MatchingCase, leak_with_updates, match_each
from leaklearn.leaks import Leak

METHODS = ("combined", "regression", "bin_scan")


@dataclass(frozen=True, eq=False)
class MatchedExample:
    """What leaked in one round, with matched labels.

    Attributes
    ----------
    by_method : mapping of str to Leak
        The same images with the labels and the confidence of each of `METHODS`.
    truth : Tensor
        (M,) the labels that they really have.
    """

    by_method: Mapping[str, Leak]
    truth: Tensor


def match_examples(
    data: Dataset, cases: Sequence[MatchingCase], *, model: str = "convnet", width: int | None = None, seed: int = 0
) -> dict[str, MatchedExample]:
    """One round of each case, by what is told apart from the base case; images that show nothing are left out."""
    found = {}
    for case in cases:
        payload, updates, leak, truth, _ = leak_with_updates(data, case, model=model, width=width, seed=seed)
        shows = (truth >= 0).nonzero().flatten()
        matched = match_each(payload, updates, leak, METHODS)
        name = f"{case.varied}: {case.value}" if case.value else case.varied
        found[name] = MatchedExample({method: matched[method][shows] for method in METHODS}, truth[shows])
    return found
