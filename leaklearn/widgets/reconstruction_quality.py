"""Explorer of notebook 07: reconstructions from the worst to the best, and what such images are worth."""

from __future__ import annotations

import ipywidgets as widgets
import torch
from matplotlib.figure import Figure

from leaklearn.evaluation.worth import equivalent_size
from leaklearn.experiments.reconstruction_quality import MEASURES, QualityComparison
from leaklearn.report.names import label
from leaklearn.report.pictures import labelled_rows
from leaklearn.widgets.parts import explorer, menu, slider


def explore_quality(comparison: QualityComparison, *, images: int = 10) -> widgets.VBox:
    """Slide from the worst reconstruction to the best: what they look like, and what a group of such images is worth.

    Parameters
    ----------
    comparison
        What `leaklearn.experiments.reconstruction_quality.compare_quality` measured.
    images
        How many reconstructions to show, of neighbouring quality.

    Returns
    -------
    ipywidgets.VBox
        A menu of measures, a slider, a line of text and a picture. The group told of is the one whose mean is nearest.
    """
    graded = list(comparison.graded.values())[-1]
    right = comparison.groups[comparison.groups["labels"] == "right"]
    measure = menu("measure", [(label(name), name) for name in MEASURES if (right["measure"] == name).any()])
    place = slider("from worst to best, %", 0, 100, 25)

    def view() -> tuple[str, Figure]:
        name = measure.value
        order = graded.measures[name].sort_values(ascending=MEASURES[name]).index.to_numpy()
        first = round((len(order) - min(images, len(order))) * place.value / 100)
        chosen = torch.tensor(order[first : first + images])
        values = graded.measures[name][chosen.tolist()]
        means = right[right["measure"] == name].groupby("group")[[name, "accuracy", "images"]].mean()
        nearest = means.loc[(means[name] - values.mean()).abs().idxmin()]
        worth, most = equivalent_size(comparison.ladder, nearest["accuracy"]), comparison.ladder["images"].max()
        clean = f"{worth:.0f}" if worth <= most else f"more than {most}"
        line = (
            f"The nearest group has {label(name)} {nearest[name]:.3g} on average: {nearest['images']:.0f} "
            f"reconstructions train to <b>{100 * nearest['accuracy']:.1f} %</b>, as <b>{clean} clean images</b> do"
        )
        notes = [f"{value:.3g}" for value in values]
        rows = [
            ("truth", graded.truth.images[chosen], []),
            ("read from\nthe update", graded.images.images[chosen], notes),
        ]
        return line, labelled_rows(rows, f"{label(name)} beneath each; images from {first + 1} of {len(order)}")

    return explorer([measure, place], view)
