"""What the general charts do not draw of linear layer leakage: leaked images with the labels they are matched with."""

from __future__ import annotations

import matplotlib.pyplot as plt
from matplotlib.figure import Figure
from torch import Tensor

from leaklearn.leaks import Leak
from leaklearn.report.names import PALETTE, PAPER_COLOUR
from leaklearn.report.pictures import draw_image


def matched_pictures(leak: Leak, truth: Tensor, sure: float, columns: int = 10) -> Figure:
    """Leaked images with their matched labels: blue frames are right, orange ones wrong, grey ones not sure enough.

    Parameters
    ----------
    leak
        M images with labels and their confidence.
    truth
        (M,) the labels that they really have.
    sure
        Confidence from which on a label is kept, 0..1.
    columns
        Images in a row.
    """
    lines = max(1, -(-len(leak) // columns))
    fig, grid = plt.subplots(lines, columns, figsize=(0.95 * columns, 1.35 * lines + 0.4), squeeze=False)
    for ax in grid.flat:
        ax.axis("off")
    rows = zip(leak.images, leak.labels.tolist(), truth.tolist(), leak.label_confidence.tolist(), strict=True)
    for ax, (image, label, true, confidence) in zip(grid.flat, rows, strict=False):
        right = label == true
        colour = PAPER_COLOUR if confidence < sure else PALETTE["blue" if right else "vermilion"]
        text = f"{label}" if right else f"{label}, not {true}"
        draw_image(image, ax, f"{text}\n{confidence:.2f}", colour).axis("on")
    fig.suptitle("What the attacker takes each image for, and how sure it is", x=0.01, ha="left")
    return fig
