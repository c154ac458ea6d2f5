"""Explorer of notebook 02: the size of the malicious layer, and the batch."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

import ipywidgets as widgets
from matplotlib.figure import Figure

from leaklearn.attacks import RobbingTheFed
from leaklearn.data.images import Dataset
from leaklearn.experiments.bench import Bench, Exchange
from leaklearn.experiments.overview import dissect
from leaklearn.experiments.rounds import Round
from leaklearn.federated import FedSGD, make_clients
from leaklearn.report.pictures import pairs
from leaklearn.widgets.parts import choices, explorer, slider


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
    bench = Bench(data, progress=False)
    clients = make_clients(data.train, len(data.train) // max(images_per_client), seed=seed)

    @cache
    def attacked(fc_factor: float, images: int, client: int) -> tuple[float, Exchange]:
        one = Round(RobbingTheFed(fc_factor, images), FedSGD(images), clients=1)
        return one.expected_leak_rate, one.run(bench, seed, clients[client:])

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
