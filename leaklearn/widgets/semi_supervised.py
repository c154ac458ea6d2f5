"""Explorer of notebook 05: a leaked image as semi-supervised learners see it."""

from __future__ import annotations

import ipywidgets as widgets
import torch
from matplotlib.figure import Figure

from leaklearn.data.views import Views
from leaklearn.experiments.semi_supervised import SemiComparison
from leaklearn.report.names import label
from leaklearn.report.pictures import labelled_rows
from leaklearn.widgets.parts import choices, explorer, slider


def explore_labelling(comparison: SemiComparison, views: Views, *, images: int = 20, draws: int = 8) -> widgets.VBox:
    """Slide the labels of each class and look at an image as the learners see it: weak, strong and contrastive views.

    Parameters
    ----------
    comparison
        What `leaklearn.experiments.semi_supervised.compare_labelling` measured.
    views
        The views that it was trained with.
    images
        How many of the leaked images the slider goes over.
    draws
        Views of each kind.

    Returns
    -------
    ipywidgets.VBox
        Two sliders, a line of text with the accuracy of each method, and a picture.
    """
    table, leak = comparison.table.dropna(subset=["labels_per_class"]), comparison.leak
    mean = table.groupby(["labels_per_class", "method"], sort=False)["accuracy"].mean()
    labels = choices("labels of each class", sorted({int(count) for count, _ in mean.index}))
    image = slider("image", 0, min(images, len(leak)) - 1, 0)

    def view() -> tuple[str, Figure]:
        line = "; ".join(f"{label(name)} <b>{100 * value:.1f} %</b>" for name, value in mean[labels.value].items())
        copies = leak.images[image.value].expand(draws, *leak.images.shape[1:])
        generator = torch.Generator().manual_seed(image.value)
        rows = [
            (kind, getattr(views, kind)(copies, generator).clamp(0, 1), [])
            for kind in ("weak", "strong", "contrastive")
        ]
        return line, labelled_rows(rows, f"Leaked image {image.value}, as the learner sees it")

    return explorer([labels, image], view)
