"""Explorer of notebook 09: the labels of what leaked, and how sure the attacker is of each."""

from __future__ import annotations

from collections.abc import Mapping

import ipywidgets as widgets
import torch
from matplotlib.figure import Figure
from torch import Tensor

from leaklearn.leaks import Leak
from leaklearn.report.figures_leakage import matched_pictures
from leaklearn.report.names import label
from leaklearn.widgets.parts import choices, explorer, menu


def explore_matching(examples: Mapping[str, tuple[Mapping[str, Leak], Tensor]], *, images: int = 20) -> widgets.VBox:
    """Choose a setting and a method and slide the confidence: which leaked images keep a label, and which is right.

    Parameters
    ----------
    examples
        One attacked round by setting: its leak with labels by each method, and the true labels (`match_examples`).
    images
        How many of the leaked images to show.

    Returns
    -------
    ipywidgets.VBox
        Two menus, a slider, a line of text and a picture; nothing is computed anew. It begins with the last setting.

    Raises
    ------
    ValueError
        Without an example.
    """
    if not examples:
        raise ValueError("no examples; give at least one as {setting: (leaks by method, true labels)}")
    methods = [(label(name), name) for name in next(iter(examples.values()))[0]]
    setting, method = menu("setting", examples), menu("method", methods)
    setting.value = list(examples)[-1]
    sure = choices("at least so sure", [0.0, 0.5, 0.8, 0.9, 0.95, 0.99, 0.999])

    def view() -> tuple[str, Figure]:
        by_method, truth = examples[setting.value]
        leak = by_method[method.value]
        enough = leak.label_confidence >= sure.value
        right = (leak.labels == truth)[enough]
        share = f"{100 * right.float().mean():.1f} %" if len(right) else "none"
        told = f"{int(enough.sum())} of {len(enough)} labels kept, {share} of them right"
        shown = torch.arange(min(images, len(leak)))
        fig = matched_pictures(leak[shown], truth[shown], sure.value)
        return f"{label(method.value)}, at least {sure.value:g} sure: <b>{told}</b>", fig

    return explorer([setting, method, sure], view)
