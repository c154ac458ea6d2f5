"""What the general charts do not draw of linear layer leakage: labels matched with images, and peeling by waves."""

from __future__ import annotations

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from torch import Tensor

from leaklearn.attacks.linear.unmix import differences
from leaklearn.experiments.linear_layer_leakage import Course, Mixture
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


SHADES = {"empty": "#ffffff", "one image": "green", "two": "orange", "three or more": "vermilion"}
"""Of a neuron, by how many images are left in it."""


def peeling(course: Course, columns: int = 16, most: int = 64) -> Figure:
    """Neurons over waves, coloured by how many images are left in them; and the images in the order they were taken."""
    colours = [PALETTE.get(shade, shade) for shade in SHADES.values()]
    shown = min(most, len(course.images))
    lines = max(1, -(-shown // columns))
    fig = plt.figure(figsize=(9.5, 4.2 + 0.75 * lines))
    top, bottom = fig.subfigures(2, 1, height_ratios=[3.6, 0.75 * lines + 0.6])
    ax = top.subplots()
    picture = course.left.clamp_max(3).numpy()
    ax.imshow(picture, cmap=ListedColormap(colours), vmin=-0.5, vmax=3.5, aspect="auto", interpolation="nearest")
    edges = np.cumsum(course.shares)
    for edge in edges[:-1]:
        ax.axvline(edge - 0.5, color=PAPER_COLOUR, linewidth=1)
    middles = edges - np.array(course.shares) / 2 - 0.5
    names = ["mean brightness"] + [f"random direction {i}" for i in range(1, len(edges))]
    ax.set_xticks(middles, [f"{n} bins: {name}" for n, name in zip(course.shares, names, strict=True)])
    ax.tick_params(axis="x", length=0)
    ax.grid(False)
    ax.set(ylabel="after wave", xlabel=f"{sum(course.shares)} neurons of {course.attacked} images")
    handles = [Patch(facecolor=c, edgecolor="0.7", label=n) for n, c in zip(SHADES, colours, strict=True)]
    about = {"loc": "lower center", "bbox_to_anchor": (0.5, 1.0), "ncols": 4, "frameon": False}
    ax.legend(handles=handles, title="images left in a neuron", **about)
    grid = bottom.subplots(lines, columns, squeeze=False)
    for axis in grid.flat:
        axis.axis("off")
    order = course.wave.argsort(stable=True)[:shown].tolist()
    for axis, i in zip(grid.flat, order, strict=False):
        frame = "orange" if course.split[i] else "blue" if course.wave[i] == 0 else "green"
        draw_image(course.images[i], axis, f"{int(course.wave[i]) + 1}", PALETTE[frame]).axis("on")
    how = "blue: alone at once; green: alone once others were taken away; orange: one of two, split"
    title = f"The first {shown} of {len(course.images)} images taken, by wave\n{how}"
    bottom.suptitle(title, x=0.01, ha="left", fontsize="small")
    return fig


def lattice(mixture: Mixture, multiples: int = 3) -> Figure:
    """A mixture of two images, the piles of its pixels' differences at multiples of their share, and the images."""
    fig, (first, middle, *last) = plt.subplots(1, 4, figsize=(9.5, 2.6), width_ratios=[1, 2.6, 1, 1])
    draw_image(mixture.mixed, first, "a neuron holds")
    steps = differences(255 * mixture.mixed.double().flatten(), tuple(mixture.mixed.shape))
    parts = (steps - steps.round()).abs()
    parts = parts[parts > 1e-3].numpy()  # two neighbours of which both images are flat tell nothing
    middle.hist(parts, bins=np.linspace(0, 0.5, 251), color=PALETTE["blue"])
    middle.set(xlim=(0, 0.5), xlabel="distance of a difference to a whole grey level", ylabel="pairs of pixels")
    if mixture.images is not None:
        places = [abs(k * mixture.share - round(k * mixture.share)) for k in range(1, multiples + 1)]
        for k, place in enumerate(places, 1):
            middle.axvline(place, color=PALETTE["vermilion"], linestyle=":", linewidth=1)
            middle.annotate(f"{k}λ" if k > 1 else "λ", (place, 1.01), xycoords=("data", "axes fraction"), ha="center",
                            va="bottom", fontsize="small", color=PALETTE["vermilion"])  # fmt: skip
        middle.set_xlabel(f"distance of a difference to a whole grey level; λ = {mixture.share:.5f}")
    for ax, which in zip(last, range(2), strict=True):
        ax.axis("off")
        if mixture.images is not None:
            share = mixture.share if which == 0 else 1 - mixture.share
            draw_image(mixture.images[which].float() / 255, ax, f"{100 * share:.1f} % of this").axis("on")
        elif which == 0:
            ax.text(
                0.0, 0.5, "not split:\nnothing is returned\nthat is not proved", transform=ax.transAxes, va="center"
            )
    return fig
