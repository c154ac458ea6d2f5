"""Explorer of one attacked round: a client's images among the bins, and what the attacker reads from each."""

from __future__ import annotations

from functools import cache

import ipywidgets as widgets
from matplotlib.figure import Figure

from leaklearn.attacks.linear.base import LinearLeakage
from leaklearn.evaluation import Truth
from leaklearn.experiments.overview import dissect
from leaklearn.federated import Payload, Updates
from leaklearn.report.pictures import client_view
from leaklearn.widgets.parts import explorer, slider


def explore_clients(attack: LinearLeakage, payload: Payload, updates: Updates, truth: Truth) -> widgets.VBox:
    """Pick a client and one of its images: its bin, the truth, and what the attacker reads from that bin.

    Parameters
    ----------
    attack, payload, updates, truth
        A round attacked by Robbing the Fed or LOKI, as for `leaklearn.experiments.overview.dissect`.

    Returns
    -------
    ipywidgets.VBox
        Two sliders, a line of text and a picture; each client's update is taken apart once and kept.
    """
    anatomy = cache(lambda client: dissect(attack, payload, updates, truth, client))
    client = slider("client", 0, len(updates.tensors["block.fc1.weight"]) - 1, 0)
    last = truth.images.shape[1] - 1
    image = slider("image, dark to bright", 0, last, last // 2)

    def view() -> tuple[str, Figure]:
        seen = anatomy(client.value)
        leaked = f"<b>{int(seen.accepted.sum())} of {len(seen.images)}</b> images of this client leaked"
        return f"{leaked}. Blue: alone in its bin. Orange: only a mixture.", client_view(seen, image.value)

    return explorer([client, image], view)
