"""Explorers of gradient inversion: an attack as it goes on, and attacks side by side."""

from __future__ import annotations

from collections.abc import Mapping
from textwrap import fill

import ipywidgets as widgets
import torch
from matplotlib.figure import Figure
from torch import Tensor

from leaklearn.evaluation import assign, psnr
from leaklearn.report.pictures import labelled_rows
from leaklearn.widgets.parts import choices, explorer, slider


def scrub_iterations(snapshots: Mapping[int, Tensor], originals: Tensor, *, images: int = 8) -> widgets.VBox:
    """Scrub through an attack: a client's images as they come out of the noise, below the true ones.

    Parameters
    ----------
    snapshots
        Images (K, N, C, H, W) in [0, 1] by iteration, as an `Inversion` holds them.
    originals
        (K, N, C, H, W) true images, uint8 or in [0, 1].
    images
        How many of a client's images to show.

    Returns
    -------
    ipywidgets.VBox
        Sliders over the iterations and the clients, a line of text and a picture. Which reconstruction stands below
        which image is decided once, by the last snapshot, so that no image jumps from place to place.

    Raises
    ------
    ValueError
        If there are no snapshots, or shapes differ.
    """
    if not snapshots:
        raise ValueError("no snapshots: name the iterations to keep when the attack runs (snapshots=...)")
    truth, steps = _unit(originals), sorted(snapshots)
    order = _order(snapshots[steps[-1]], truth)
    step = choices("iteration", steps, steps[-1])
    client = slider("client", 0, len(truth) - 1, 0)

    def view() -> tuple[str, Figure]:
        k = client.value
        found, true = snapshots[step.value][k][order[k]][:images], truth[k][:images]
        decibel = psnr(found, true)
        notes = [f"{db:.1f} dB" for db in decibel.tolist()]
        rows = [("truth", true, []), (f"iteration\n{step.value}", found, notes)]
        line = f"<b>{decibel.mean():.1f} dB</b> on average after {step.value} of {steps[-1]} iterations"
        return line, labelled_rows(rows, f"Client {k} after {step.value} of {steps[-1]} iterations")

    return explorer([step, client], view)


def compare_attacks(attacks: Mapping[str, Tensor], originals: Tensor) -> widgets.VBox:
    """Pick an image of a client: the truth and what each attack makes of it, side by side with the PSNR.

    Parameters
    ----------
    attacks
        Reconstructions (K, N, C, H, W) in [0, 1] by name; each attack's are assigned to the true images by themselves.
    originals
        (K, N, C, H, W) true images, uint8 or in [0, 1].

    Returns
    -------
    ipywidgets.VBox
        A slider over clients, one over images, a line of text and a picture.

    Raises
    ------
    ValueError
        If there is no attack, or shapes differ.
    """
    if not attacks:
        raise ValueError("no attack to compare; give at least one as {name: images}")
    truth = _unit(originals)
    orders = {name: _order(found, truth) for name, found in attacks.items()}
    client = slider("client", 0, len(truth) - 1, 0)
    image = slider("image", 0, truth.shape[1] - 1, 0)

    def view() -> tuple[str, Figure]:
        k, i = client.value, image.value
        found = torch.stack([images[k][orders[name][k, i]] for name, images in attacks.items()])
        decibel = psnr(found, truth[k, i].expand_as(found)).tolist()
        names = [fill(name, 13, break_long_words=False) for name in attacks]  # as wide as a picture
        notes = ["truth", *(f"{name}\n{db:.1f} dB" for name, db in zip(names, decibel, strict=True))]
        rows = [("", torch.cat([truth[k, i : i + 1], found]), notes)]
        best = max(range(len(names)), key=decibel.__getitem__)
        line = f"The best here: <b>{list(attacks)[best]}</b> with <b>{decibel[best]:.1f} dB</b>"
        return line, labelled_rows(rows, f"Client {k}, image {i}, as each attack sees it")

    return explorer([client, image], view)


def _unit(images: Tensor) -> Tensor:
    return images.cpu().float() / 255 if images.dtype == torch.uint8 else images.cpu().float()


def _order(found: Tensor, truth: Tensor) -> Tensor:
    """(K, N): which reconstruction stands for each true image."""
    if found.shape != truth.shape:
        raise ValueError(f"reconstructions {tuple(found.shape)} and true images {tuple(truth.shape)} differ in shape")
    rows, columns = assign(found.nan_to_num(0.5), truth)
    return torch.zeros_like(rows).scatter_(1, columns, rows)
