"""Pictures of reconstructions: pairs of truth and reconstruction, and one update's bins."""

from __future__ import annotations

from collections.abc import Sequence

import matplotlib.pyplot as plt
import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from leaklearn.experiments.overview import Anatomy
from leaklearn.report.names import PALETTE, PAPER_COLOUR

LEAKED, COLLIDED, OUTSIDE = PALETTE["blue"], PALETTE["vermilion"], PAPER_COLOUR


def draw_image(image: Tensor, ax: Axes, title: str = "", colour: str | None = None) -> Axes:
    """Draw one (C, H, W) image in [0, 1] without axes; with a colour it gets a frame."""
    pixels = image.detach().cpu().clamp(0, 1).permute(1, 2, 0).numpy()
    grey = pixels.shape[2] == 1
    ax.imshow(pixels[..., 0] if grey else pixels, cmap="gray" if grey else None, vmin=0, vmax=1)
    ax.set_xticks([])
    ax.set_yticks([])
    ax.grid(False)
    for spine in ax.spines.values():
        spine.set_visible(colour is not None)
        spine.set_color(colour)
        spine.set_linewidth(2.5)
    if title:
        ax.set_title(title, fontsize=9, loc="center", pad=3)
    return ax


def image_grid(images: Tensor, columns: int = 16, title: str = "") -> Figure:
    """(M, C, H, W) images as one picture, `columns` in a row."""
    count, channels, height, width = images.shape
    rows = -(-count // columns)
    sheet = torch.ones(rows * columns, channels, height, width)
    sheet[:count] = images.detach().cpu().clamp(0, 1)
    sheet = torch.nn.functional.pad(sheet, (1, 1, 1, 1), value=1.0)
    sheet = sheet.view(rows, columns, channels, height + 2, width + 2).permute(2, 0, 3, 1, 4)
    sheet = sheet.reshape(channels, rows * (height + 2), columns * (width + 2))
    fig, ax = plt.subplots(figsize=(8, 8 * rows / columns + 0.4))
    draw_image(sheet, ax)
    ax.set_title(title)
    return fig


def labelled_rows(rows: Sequence[tuple[str, Tensor, Sequence[str]]], title: str = "", width: float = 8) -> Figure:
    """Rows of images, each with its name at the left and a note beneath every image.

    Parameters
    ----------
    rows
        Name, images (n, C, H, W) in [0, 1] or uint8, and n notes, or none at all.
    title
        Of the whole picture.
    width
        In inches, names included.
    """
    columns = max(len(images) for _, images, _ in rows)
    side = min(1.6, (width - 1.2) / columns)
    noted = sum(bool(notes) for _, _, notes in rows)
    size = (side * columns + 1.2, 1.08 * side * len(rows) + 0.25 * noted + 0.5)
    fig, grid = plt.subplots(len(rows), columns, figsize=size, squeeze=False)
    for ax in grid.flat:
        ax.axis("off")
    for line, (name, images, notes) in zip(grid, rows, strict=True):
        images = images / 255 if images.dtype == torch.uint8 else images
        for ax, image in zip(line, images, strict=False):
            draw_image(image, ax).axis("on")
        for ax, note in zip(line, notes, strict=False):
            ax.set_xlabel(note, fontsize=9, labelpad=2)
        line[0].set_ylabel(name, rotation=0, ha="right", va="center", fontsize=10)
    fig.suptitle(title, x=0.01, ha="left")
    return fig


def pairs(anatomy: Anatomy, columns: int = 12, rows: int = 2) -> Figure:
    """Truth above what the attacker reads from its bin, evenly chosen from dark to bright.

    Blue frames: the attacker accepts the image; orange: it rejects a mixture of several. The number is the PSNR in dB.
    """
    count = min(columns * rows, len(anatomy.images))
    chosen = np.linspace(0, len(anatomy.images) - 1, count).round().astype(int)
    fig, grid = plt.subplots(2 * rows, columns, figsize=(8, 8 / columns * 2.42 * rows + 0.5), squeeze=False)
    for ax in grid.flat:
        ax.axis("off")
    for place, i in enumerate(chosen):
        top, column = 2 * (place // columns), place % columns
        colour = LEAKED if anatomy.accepted[i] else COLLIDED
        draw_image(anatomy.images[i], grid[top, column]).axis("on")
        draw_image(anatomy.found[i], grid[top + 1, column], f"{anatomy.psnr[i]:.0f} dB", colour).axis("on")
    accepted = int(anatomy.accepted.sum())
    title = f"One update: {accepted} of {len(anatomy.images)} images leaked (blue frames); truth above"
    fig.suptitle(title, x=0.01, ha="left")
    return fig


def bins_chart(anatomy: Anatomy, highlight: int | None = None, ax: Axes | None = None) -> Axes:
    """Every image of one client over its brightness, stacked where several share a bin.

    Alone in its bin (blue) an image leaks exactly; with others (orange) only their mixture does.
    """
    if ax is None:
        _, ax = plt.subplots(figsize=(8, 2.6))
    seen: dict[int, int] = {}
    for i, which in enumerate(anatomy.bin.tolist()):
        height = seen.get(which, 0) if which >= 0 else 0
        seen[which] = height + 1
        shared = which >= 0 and anatomy.occupancy[which] > 1
        colour = OUTSIDE if which < 0 else COLLIDED if shared else LEAKED
        marker = "x" if which < 0 else "s" if shared else "o"
        ring = {"markeredgecolor": "black", "markeredgewidth": 2, "markersize": 11} if i == highlight else {}
        ax.plot(float(anatomy.measured[i]), height + 0.5, marker, color=colour, **{"markersize": 6, **ring})
    first, last = float(anatomy.measured[0]), float(anatomy.measured[-1])
    margin = 0.03 * (last - first)
    edges = [edge for edge in anatomy.low.tolist() if first - margin <= edge <= last + margin]
    ax.vlines(edges, 0, 0.18, color=PAPER_COLOUR, linewidth=0.6)
    ax.set_xlim(first - margin, last + margin)
    ax.set_ylim(0, max(seen.values()) + 0.4)
    ax.set_yticks([])
    ax.grid(False)
    ax.set_xlabel("brightness of the image (mean pixel); ticks: edges of the bins")
    alone = int((anatomy.occupancy == 1).sum())
    ax.set_title(f"{alone} of {len(anatomy.bin)} images are alone in one of {len(anatomy.low)} bins (blue circles)")
    return ax


def client_view(anatomy: Anatomy, image: int) -> Figure:
    """One image of one client: where it lies among the bins, the truth, and what the attacker reads from its bin."""
    fig = plt.figure(figsize=(8, 4.6))
    top, bottom = fig.subfigures(2, 1, height_ratios=(1, 1))
    bins_chart(anatomy, image, top.subplots())
    truth, found = bottom.subplots(1, 2)
    which = int(anatomy.bin[image])
    others = int(anatomy.occupancy[which]) - 1 if which >= 0 else 0
    accepted = bool(anatomy.accepted[image])
    draw_image(anatomy.images[image], truth, f"truth: label {int(anatomy.labels[image])}")
    reason = f"bin {which}, " + (f"shared with {others} more" if others else "alone")
    if which < 0:
        reason = "outside of all bins"
    verdict = "accepted by the attacker" if accepted else "rejected by the attacker"
    colour = LEAKED if accepted else COLLIDED
    draw_image(anatomy.found[image], found, f"{reason}: {anatomy.psnr[image]:.0f} dB, {verdict}", colour)
    return fig
