"""Explorers for JupyterLab: thin skins over the functions that also draw the static figures."""

from __future__ import annotations

import io
from functools import lru_cache

import ipywidgets as widgets
import matplotlib.pyplot as plt

from leaklearn.experiments.anatomy import dissect
from leaklearn.experiments.leakage import AttackedRound
from leaklearn.report.pictures import client_view


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
    wide = {"layout": widgets.Layout(width="34em"), "continuous_update": False}
    client = widgets.IntSlider(0, 0, last_client, description="client", **wide)
    image = widgets.IntSlider(last_image // 2, 0, last_image, description="image", **wide)
    hint = widgets.HTML("Images go from dark to bright. Blue: alone in its bin, leaked. Orange: only a mixture.")
    picture = widgets.Image(format="png")

    def redraw(_: object = None) -> None:
        fig = client_view(anatomy(client.value), image.value)
        buffer = io.BytesIO()
        fig.savefig(buffer, format="png", dpi=100)
        plt.close(fig)
        picture.value = buffer.getvalue()

    client.observe(redraw, names="value")
    image.observe(redraw, names="value")
    redraw()
    return widgets.VBox([client, image, hint, picture])
