"""Explorers of notebook 02: the size of the layer and the batch, the number of measurements, two images in a neuron."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

import ipywidgets as widgets
import torch
from matplotlib.figure import Figure

from leaklearn.attacks import PeeledBins, RobbingTheFed
from leaklearn.data.images import Dataset
from leaklearn.experiments.bench import Bench, Exchange
from leaklearn.experiments.linear_layer_leakage import Course, Mixture, peel_one
from leaklearn.experiments.overview import dissect
from leaklearn.experiments.rounds import Round
from leaklearn.federated import FedSGD, make_clients
from leaklearn.report.figures_leakage import lattice, peeling
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


def explore_peeling(
    data: Dataset,
    *,
    fc_factors: Sequence[float] = (0.75, 1.0, 1.5, 2.0, 4.0),
    measurements: Sequence[int] = (1, 2, 3, 4),
    images_per_client: int = 64,
    seed: int = 0,
) -> widgets.VBox:
    """Slide the number of measurements that the neurons are spent on, and the neurons: how one client is peeled.

    Returns three controls (the third: whether neurons of two are split), a line of text and the picture of the waves.
    """
    bench = Bench(data, "lenet", progress=False)

    @cache
    def course(factor: float, count: int, split: bool) -> Course:
        return peel_one(bench, PeeledBins(factor, images_per_client, measurements=count, split=split), seed)

    factor = choices("neurons an image", fc_factors, fc_factors[len(fc_factors) // 4])
    count = choices("measurements", measurements, measurements[len(measurements) // 3])
    split = choices("split neurons of two", [("no", False), ("yes", True)], True)

    def view() -> tuple[str, Figure]:
        found = course(factor.value, count.value, split.value)
        taken, waves = len(found.images), len(found.left) - 1
        line = f"<b>{taken} of {found.attacked} images</b> from {sum(found.shares)} neurons, in {waves} waves; "
        return line + f"{int(found.split.sum())} of them split from neurons of two", peeling(found)

    return explorer([factor, count, split], view)


def explore_pair(data: Dataset, *, pairs: int = 8, noise: float = 5e-6, seed: int = 0) -> widgets.VBox:
    """Slide the share of two images that one neuron holds: the lattice that tells them apart, or where it does not.

    `noise` is the standard deviation of the mixture's rounding in grey levels, as float32 leaves it. Returns two
    controls, a line of text and the picture.
    """
    generator = torch.Generator().manual_seed(seed)
    chosen = torch.randperm(len(data.train), generator=generator)[: 2 * pairs].view(pairs, 2)
    shares = [-0.4, -0.1, 0.02, 0.1, 0.2371, 1 / 3, 0.4, 0.499, 0.5, 0.61, 0.8, 1.3, 2.7]
    pair, share = slider("pair", 0, pairs - 1, 0), choices("share λ", [(f"{x:.3f}", x) for x in shares], 0.2371)

    def view() -> tuple[str, Figure]:
        first, second = data.train.images[chosen[pair.value]].double()
        rounding = torch.randn(first.shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        found = Mixture.of((share.value * first + (1 - share.value) * second + noise * rounding) / 255)
        both = {bytes(image.byte().numpy()) for image in (first, second)}
        line = "<b>not split</b>: λ is too near to a fraction, or one image too faint"
        if found.images is not None:
            right = {bytes(image.numpy()) for image in found.images} == both
            line = "<b>both images, bit by bit</b>" if right else "<b>two images that are not the true ones</b>"
        return f"λ = {share.value:.4f}: {line}", lattice(found)

    return explorer([pair, share], view)
