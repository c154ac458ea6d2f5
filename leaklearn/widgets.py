"""Explorers for JupyterLab: thin skins over the functions that also draw the static figures."""

from __future__ import annotations

import io
from collections.abc import Mapping
from functools import lru_cache
from textwrap import fill

import ipywidgets as widgets
import matplotlib.pyplot as plt
import pandas as pd
import torch
from matplotlib.figure import Figure
from torch import Tensor

from leaklearn.evaluation import assign, psnr
from leaklearn.experiments.anatomy import dissect
from leaklearn.experiments.defences import DefenceStudy
from leaklearn.experiments.leakage import AttackedRound
from leaklearn.report.defences import case_name, defended_pictures, summary_line
from leaklearn.report.pictures import client_view, labelled_rows

WIDE = {"layout": widgets.Layout(width="34em"), "continuous_update": False}


def explore_clients(attacked: AttackedRound) -> widgets.VBox:
    """Pick a client and one of its images: its bin, the truth, and what the attacker reads from that bin.

    Parameters
    ----------
    attacked
        A round attacked by Robbing the Fed or LOKI.

    Returns
    -------
    ipywidgets.VBox
        Two sliders and a picture; each client's update is taken apart once and kept.
    """
    anatomy = lru_cache(maxsize=None)(lambda client: dissect(attacked, client))
    last_client = len(attacked.updates.tensors["block.fc1.weight"]) - 1
    last_image = len(anatomy(0).images) - 1
    client = widgets.IntSlider(0, 0, last_client, description="client", **WIDE)
    image = widgets.IntSlider(last_image // 2, 0, last_image, description="image", **WIDE)
    hint = widgets.HTML("Images go from dark to bright. Blue: alone in its bin, leaked. Orange: only a mixture.")
    picture = widgets.Image(format="png")

    def redraw(_: object = None) -> None:
        picture.value = _png(client_view(anatomy(client.value), image.value))

    client.observe(redraw, names="value")
    image.observe(redraw, names="value")
    redraw()
    return widgets.VBox([client, image, hint, picture])


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
        A slider over the iterations, a client dropdown and a picture. Which reconstruction stands below which image is
        decided once, by the last snapshot, so that no image jumps from place to place.

    Raises
    ------
    ValueError
        If there are no snapshots, or shapes differ.
    """
    if not snapshots:
        raise ValueError("no snapshots: name the iterations to keep when the attack runs (snapshots=...)")
    truth, steps = _unit(originals), sorted(snapshots)
    order = _order(snapshots[steps[-1]], truth)
    step = widgets.SelectionSlider(options=steps, value=steps[-1], description="iteration", **WIDE)
    client = widgets.Dropdown(options=range(len(truth)), description="client", layout=WIDE["layout"])
    picture = widgets.Image(format="png")

    def redraw(_: object = None) -> None:
        k = client.value
        found, true = snapshots[step.value][k][order[k]][:images], truth[k][:images]
        notes = [f"{db:.1f} dB" for db in psnr(found, true).tolist()]
        rows = [("truth", true, []), (f"iteration\n{step.value}", found, notes)]
        picture.value = _png(labelled_rows(rows, f"Client {k} after {step.value} of {steps[-1]} iterations"))

    step.observe(redraw, names="value")
    client.observe(redraw, names="value")
    redraw()
    return widgets.VBox([step, client, picture])


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
        A slider over clients, one over images and a picture.

    Raises
    ------
    ValueError
        If there is no attack, or shapes differ.
    """
    if not attacks:
        raise ValueError("no attack to compare; give at least one as {name: images}")
    truth = _unit(originals)
    orders = {name: _order(found, truth) for name, found in attacks.items()}
    client = widgets.IntSlider(0, 0, len(truth) - 1, description="client", **WIDE)
    image = widgets.IntSlider(0, 0, truth.shape[1] - 1, description="image", **WIDE)
    picture = widgets.Image(format="png")

    def redraw(_: object = None) -> None:
        k, i = client.value, image.value
        found = torch.stack([images[k][orders[name][k, i]] for name, images in attacks.items()])
        decibel = psnr(found, truth[k, i].expand_as(found)).tolist()
        names = [fill(name, 13, break_long_words=False) for name in attacks]  # as wide as a picture
        notes = ["truth", *(f"{name}\n{db:.1f} dB" for name, db in zip(names, decibel, strict=True))]
        rows = [("", torch.cat([truth[k, i : i + 1], found]), notes)]
        picture.value = _png(labelled_rows(rows, f"Client {k}, image {i}, as each attack sees it"))

    client.observe(redraw, names="value")
    image.observe(redraw, names="value")
    redraw()
    return widgets.VBox([client, image, picture])


def explore_defence(study: DefenceStudy) -> widgets.VBox:
    """Pick an attack and a defence, slide its strength: the reconstructions, what they are worth, and the federation.

    Parameters
    ----------
    study
        What `leaklearn.experiments.defences.study_defences` measured; nothing is computed anew.

    Returns
    -------
    ipywidgets.VBox
        Two dropdowns, a slider over the measured strengths, a line of text and a picture.
    """
    table = study.table
    attack = widgets.Dropdown(options=list(dict.fromkeys(table["attack"])), description="attack", layout=WIDE["layout"])
    defences = [name for name in dict.fromkeys(table["defence"]) if name != "none"]
    defence = widgets.Dropdown(options=defences or ["none"], description="defence", layout=WIDE["layout"])
    strength = widgets.SelectionSlider(options=strengths(table, defence.value), description="strength", **WIDE)
    line, picture = widgets.HTML(), widgets.Image(format="png")

    def redraw(_: object = None) -> None:
        case = (defence.value, strength.value)
        line.value = summary_line(table, *case, attack.value)
        picture.value = _png(defended_pictures(study.examples, attack.value, [("none", 0.0), case]))

    def other_defence(_: object = None) -> None:
        strength.unobserve(redraw, names="value")
        strength.options = strengths(table, defence.value)
        strength.observe(redraw, names="value")
        redraw()

    attack.observe(redraw, names="value")
    defence.observe(other_defence, names="value")
    strength.observe(redraw, names="value")
    redraw()
    return widgets.VBox([attack, defence, strength, line, picture])


def strengths(table: pd.DataFrame, defence: str) -> list[tuple[str, float]]:
    """Options of a slider: every measured strength of a defence, named in words."""
    values = dict.fromkeys(table.loc[table["defence"] == defence, "strength"])
    return [(case_name(defence, value), value) for value in values]


def _unit(images: Tensor) -> Tensor:
    return images.cpu().float() / 255 if images.dtype == torch.uint8 else images.cpu().float()


def _order(found: Tensor, truth: Tensor) -> Tensor:
    """(K, N): which reconstruction stands for each true image."""
    if found.shape != truth.shape:
        raise ValueError(f"reconstructions {tuple(found.shape)} and true images {tuple(truth.shape)} differ in shape")
    rows, columns = assign(found.nan_to_num(0.5), truth)
    return torch.zeros_like(rows).scatter_(1, columns, rows)


def _png(fig: Figure) -> bytes:
    """A figure as a picture; output widgets would wait for ever where no browser answers."""
    buffer = io.BytesIO()
    fig.savefig(buffer, format="png", dpi=100, bbox_inches="tight")
    plt.close(fig)
    return buffer.getvalue()
