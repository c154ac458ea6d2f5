"""Which images linear layer leakage (LLL) takes, and how far its bins may be off. Notebook 08.

One round of FedSGD is looked at image by image, and attacked again with bins fitted to images of the wrong brightness.
"""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd
import torch
from tqdm.auto import tqdm

from leaklearn.data.images import Dataset
from leaklearn.experiments.factors import brighten, check_lists, fold, occupancy, ranks
from leaklearn.experiments.leakage import AttackedRound, attack_round
from leaklearn.experiments.setting import Setting
from leaklearn.federated import make_clients


def measure_linear_trends(
    data: Dataset,
    setting: Setting,
    seeds: Sequence[int],
    *,
    shifts: Sequence[float] = (0.0, 0.5, 1.0, 2.0),
    model: str = "lenet",
    device: str = "cpu",
    progress: bool = True,
) -> pd.DataFrame:
    """Attack one round, once for each seed and shift, and look at every image.

    Parameters
    ----------
    data
        Its training images are the clients', its test images the attacker's own.
    setting
        An attack that has bins of brightness, and the round.
    seeds
        Each decides the partition into clients and the network's weights.
    shifts
        By how many standard deviations of brightness the attacker's own images are brighter than they should be
        (`brighten`); occupancy and brightness are measured at 0, which must be among them.
    model
        The honest network behind the malicious layer, untrained.

    Returns
    -------
    DataFrame
        Rows of `quality_trends`: dataset, seed, attack, factor, value, psnr (dB, median over the images of the nearest
        reconstruction's), ssim (mean over what leaked, NaN if nothing did), leak_rate (share at 20 dB or more), images
        (how many). Factors and their values: occupancy (images of the client in the image's bin, 4 for four or more,
        0 outside of all bins); brightness (fifth by mean pixel, 1 the darkest); bin_mismatch (the shift).

    Raises
    ------
    ValueError
        For an attack without bins, shifts without 0 or out of range, or too few images; before anything is computed.
    """
    check_lists(seeds=(seeds, 0), shifts=(shifts, 0))
    if setting.attack == "trap_weights":
        raise ValueError("trap_weights has no bins of brightness; choose robbing_the_fed, its bounded variant, or loki")
    if 0 not in shifts:
        raise ValueError(f"shifts are {list(shifts)}; add 0.0, the bins that fit: occupancy is measured there")
    setting.check(data.train)
    public = {shift: brighten(data.test, shift) for shift in sorted(set(shifts))}
    parts, cases = [], [(seed, shift) for seed in seeds for shift in public]
    for seed, shift in tqdm(cases, desc=f"rounds on {data.name}", disable=not progress, leave=False):
        count = max(setting.clients, len(data.train) // setting.images_per_client)
        clients = make_clients(data.train, count, seed=seed)
        found = attack_round(setting, clients, public[shift], model=model, seed=seed, device=device)
        about = {"dataset": data.name, "seed": seed, "attack": setting.attack}
        parts += [part.assign(**about) for part in _parts(found, shift)]
    return fold(parts, "median")


def _parts(found: AttackedRound, shift: float) -> list[pd.DataFrame]:
    """Images with their quality, factor and value."""
    images = found.score.images.assign(psnr=lambda table: table["nearest_psnr"])
    parts = []
    if shift == 0:
        place, bins = torch.tensor(images["position"].to_numpy()), found.payload.model.block.bins
        crowd = occupancy(found.truth.images, bins.vector, bins.low, bins.high).flatten()[place]
        light = found.truth.images.flatten(0, 1)[place].flatten(1).double().mean(1)
        parts.append(images.assign(factor="occupancy", value=crowd.clamp(max=4).numpy()))
        parts.append(images.assign(factor="brightness", value=ranks(light, 5).numpy()))
    return [*parts, images.assign(factor="bin_mismatch", value=shift)]
