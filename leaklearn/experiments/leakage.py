"""How much linear layer leakage takes out of one round: the measurements behind notebooks 00 and 02."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from time import perf_counter

import pandas as pd
from tqdm.auto import tqdm

from leaklearn.attacks.linear.base import LinearLeakage
from leaklearn.data.images import Dataset, ImageSet
from leaklearn.evaluation.leakage import LeakScore, score
from leaklearn.evaluation.truth import Truth
from leaklearn.experiments.setting import Setting
from leaklearn.federated import Client, Payload, Updates, draw_batches, gather, make_clients, respond
from leaklearn.leaks import Leak
from leaklearn.models import build

log = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class AttackedRound:
    """Everything about one attacked round, from both sides.

    Attributes
    ----------
    attack : LinearLeakage
        The attacker.
    payload : Payload
        The malicious model.
    updates : Updates
        What came back, as far as the attacker looks at it.
    leak : Leak
        What the attacker makes of it, without labels.
    truth : Truth
        What the clients really used; for scoring only.
    score : LeakScore
        The two compared.
    seconds : float
        The attacker's time: making the payload and reconstructing, without the clients' training.
    """

    attack: LinearLeakage
    payload: Payload
    updates: Updates
    leak: Leak
    truth: Truth
    score: LeakScore
    seconds: float

    @property
    def labelled(self) -> Leak:
        """The leak with the labels that its images really have, -1 for those that show no attacked image.

        Linear layer leakage gives no labels; this is the ideal case, in which they are known.
        """
        return self.leak.with_labels(self.score.true_labels)


def attack_round(
    setting: Setting,
    clients: Sequence[Client],
    public: ImageSet,
    *,
    model: str = "lenet",
    norm: str | None = None,
    seed: int = 0,
    with_ssim: bool = True,
    device: str = "cpu",
) -> AttackedRound:
    """Send a malicious payload to clients, reconstruct, and score.

    Parameters
    ----------
    setting
        What is attacked and how; its number of clients are the first of `clients`.
    clients
        At least as many as the setting says, each with at least its images.
    public
        Images of the same kind that the attacker has, for the statistics of the bins: the test set, say.
    model, norm
        The honest network behind the malicious layer, untrained. What leaks hardly depends on it; LeNet answers
        fastest.
    seed
        Of the network's weights and the clients' mini-batches.
    with_ssim
        Also compute the SSIM of what leaked, which takes longer than the attack.
    device
        Where clients and attacker compute.
    """
    if len(clients) < setting.clients:
        raise ValueError(f"{setting.clients} clients are to be attacked, but there are {len(clients)}")
    group, protocol = list(clients[: setting.clients]), setting.make_protocol()
    attack = setting.make_attack()
    begin = perf_counter()
    network = build(model, public, norm=norm, seed=seed)
    payload = attack.payload(network, public)
    payload = payload.to(device)
    sent = perf_counter()
    updates = respond(group, payload, protocol, seed, secure=setting.secure, only=attack.reads)
    back = perf_counter()
    leak = attack.reconstruct(payload, updates)
    end = perf_counter()
    images, labels = gather(group, draw_batches(group, protocol, seed).flat)
    truth = Truth(images, labels, updates.clients)
    scored = score(leak, truth, with_ssim=with_ssim)
    log.info("%s seed %d: %s", setting, seed, scored)
    return AttackedRound(attack, payload, updates, leak, truth, scored, end - back + sent - begin)


def measure_leakage(
    data: Dataset,
    settings: Sequence[Setting],
    seeds: Sequence[int],
    *,
    model: str = "convnet",
    device: str = "cpu",
    progress: bool = True,
) -> pd.DataFrame:
    """Attack every setting with every seed.

    A seed decides the partition into clients, the network's weights and the mini-batches.

    Raises
    ------
    ValueError
        If the data set has too few images for a setting; before anything is computed.

    Returns
    -------
    DataFrame
        One row a setting and seed: the columns of the table `lll_leakage` (leak_rate and expected_leak_rate 0..1, psnr
        the median of the leaked images in dB, seconds the attacker's), then false_positives, duplicates and
        reconstructions (counts) and ssim (NaN).
    """
    for setting in settings:
        setting.check(data.train)
    rows = []
    jobs = [(seed, setting) for seed in seeds for setting in settings]
    for seed, setting in tqdm(jobs, desc=f"attacks on {data.name}", disable=not progress, leave=False):
        parts = max(setting.clients, len(data.train) // setting.images_per_client)
        clients = make_clients(data.train, parts, seed=seed)
        found = attack_round(setting, clients, data.test, model=model, seed=seed, with_ssim=False, device=device)
        summary = found.score.summary()
        row = {"dataset": data.name, "seed": seed, **setting.describe(), "leak_rate": summary["leak_rate"]}
        row |= {"expected_leak_rate": setting.expected_leak_rate, "psnr": summary["psnr"], "seconds": found.seconds}
        row |= {name: summary[name] for name in ("reconstructions", "false_positives", "duplicates")}
        rows.append(row)
    return pd.DataFrame(rows)
