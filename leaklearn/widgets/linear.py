"""Explorers of linear layer leakage: the size of the layer, and the labels of what leaked."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache

import ipywidgets as widgets
import torch
from matplotlib.figure import Figure

from leaklearn.data.images import Dataset
from leaklearn.experiments.label_examples import MatchedExample
from leaklearn.experiments.leakage import AttackedRound, attack_round
from leaklearn.experiments.overview import dissect
from leaklearn.experiments.setting import Setting
from leaklearn.federated import make_clients
from leaklearn.report.label_matching import METHODS, matched_pictures
from leaklearn.report.pictures import pairs
from leaklearn.widgets.parts import choices, explorer, menu, slider


def explore_layer(
    data: Dataset,
    *,
    fc_factors: Sequence[float] = (0.5, 1.0, 2.0, 4.0, 8.0),
    images_per_client: Sequence[int] = (8, 16, 32, 64, 128),
    seed: int = 0,
) -> widgets.VBox:
    """Slide the size of the malicious layer and the batch: what leaks of a client, beside the closed form.

    Parameters
    ----------
    data
        Its training images are the clients'; the attacker knows the brightness of its test images.
    fc_factors
        Neurons of the layer for each image.
    images_per_client
        Images behind the update.
    seed
        Of partition and weights.

    Returns
    -------
    ipywidgets.VBox
        Three sliders, a line of text and a picture; every attack is computed when it is first asked for, and kept.
    """
    clients = make_clients(data.train, len(data.train) // max(images_per_client), seed=seed)

    @cache
    def attacked(fc_factor: float, images: int, client: int) -> tuple[float, AttackedRound]:
        setting = Setting("robbing_the_fed", fc_factor=fc_factor, clients=1, images_per_client=images)
        found = attack_round(setting, clients[client:], data.test, seed=seed, with_ssim=False)
        return setting.expected_leak_rate, found

    factor = choices("neurons an image", fc_factors, fc_factors[3 * len(fc_factors) // 4])
    size = choices("images in the batch", images_per_client, images_per_client[3 * len(images_per_client) // 4])
    client = slider("client", 0, len(clients) - 1, 0)

    def view() -> tuple[str, Figure]:
        expected, found = attacked(factor.value, size.value, client.value)
        rate, neurons = found.score.leak_rate, round(factor.value * size.value)
        line = (
            f"<b>{100 * rate:.0f} % of {size.value} images leak</b> through {neurons} neurons; closed form, over many "
            f"clients: {100 * expected:.1f} %"
        )
        return line, pairs(dissect(found.attack, found.payload, found.updates, found.truth), columns=10, rows=1)

    return explorer([factor, size, client], view)


def explore_matching(examples: Mapping[str, MatchedExample], *, images: int = 20) -> widgets.VBox:
    """Choose a setting and a method and slide the confidence: which leaked images keep a label, and which is right.

    Parameters
    ----------
    examples
        One attacked round with its matched labels by setting, as `match_examples` gives them.
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
        raise ValueError("no examples; give at least one as {setting: MatchedExample}")
    methods = [(METHODS[name][0], name) for name in next(iter(examples.values())).by_method]
    setting, method = menu("setting", examples), menu("method", methods)
    setting.value = list(examples)[-1]
    sure = choices("at least so sure", [0.0, 0.5, 0.8, 0.9, 0.95, 0.99, 0.999])

    def view() -> tuple[str, Figure]:
        example = examples[setting.value]
        leak = example.by_method[method.value]
        kept = leak.label_confidence >= sure.value
        right = (leak.labels == example.truth)[kept]
        share = f"{100 * right.float().mean():.1f} %" if len(right) else "none"
        told = f"{int(kept.sum())} of {len(kept)} labels kept, {share} of them right"
        shown = torch.arange(min(images, len(leak)))
        fig = matched_pictures(leak[shown], example.truth[shown], sure.value)
        return f"{METHODS[method.value][0]}, at least {sure.value:g} sure: <b>{told}</b>", fig

    return explorer([setting, method, sure], view)
