"""How many labels of leaked images are found, setting by setting. Notebook 09.

Linear layer leakage gives images without labels. `leaklearn.attacks.match_labels` reads them off the same update. Truth
is used here to count how many are right.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from math import nan
from time import perf_counter
from typing import Any

import pandas as pd
from torch import Tensor
from tqdm.auto import tqdm

from leaklearn.attacks import Loki
from leaklearn.attacks.labels import match_by_each
from leaklearn.attacks.linear.base import LinearLeakage
from leaklearn.attacks.linear.blocks import with_skip
from leaklearn.data.images import Dataset
from leaklearn.evaluation.leakage import score
from leaklearn.evaluation.truth import Truth
from leaklearn.experiments.setting import Setting
from leaklearn.federated import Payload, Updates, draw_batches, gather, make_clients, respond
from leaklearn.leaks import Leak
from leaklearn.learning import Recipe, train
from leaklearn.models import build

METHODS = ("regression", "bin_scan", "combined", "combined+counts")
BASE = "base"


@dataclass(frozen=True)
class MatchingCase:
    """One setting that labels are matched in.

    Attributes
    ----------
    varied, value : str
        What is told apart from the base case, and how: for tables and charts.
    setting : Setting
        The attacked round.
    norm : str
        Norm layers of the network behind: ``"batch"`` (in train mode), ``"group"`` or ``"none"``.
    skip : bool
        Whether the image passes the malicious layers too (`leaklearn.attacks.linear.blocks.LeakyNetwork`).
    buffers : bool
        Whether batch norm's running statistics come back with the update.
    feature_scale : float
        Constant that the network's features are multiplied by (`LeakyNetwork`); needs `skip`. LOKI's conv_scale is then
        enlarged by the root of its inverse, so that neurons are pushed out as far as without.
    epochs : int
        Of training the network on the attacker's own images before it is sent; 0: untrained.
    """

    varied: str
    value: str
    setting: Setting
    norm: str = "batch"
    skip: bool = True
    buffers: bool = True
    feature_scale: float = 1.0
    epochs: int = 0

    def __post_init__(self) -> None:
        if not 0 < self.feature_scale < float("inf"):
            raise ValueError(f"feature_scale is {self.feature_scale}; it is a finite number above 0")

    def attack(self) -> LinearLeakage:
        """The attacker."""
        attack = self.setting.make_attack()
        if isinstance(attack, Loki) and self.feature_scale != 1:
            return replace(attack, conv_scale=attack.conv_scale / self.feature_scale**0.5)
        return attack


def matching_cases(
    base: Setting,
    *,
    batch_sizes: Sequence[int] = (),
    fc_factors: Sequence[float] = (),
    norms: Sequence[str] = (),
    epochs: Sequence[int] = (),
    local_steps: Sequence[int] = (),
    lrs: Sequence[float] = (),
    feature_scales: Sequence[float] = (),
    crowds: Sequence[int] = (),
    bare: bool = True,
) -> list[MatchingCase]:
    """The base case, and cases that differ from it in one thing.

    Parameters
    ----------
    base
        One step of FedSGD.
    batch_sizes, fc_factors, norms, epochs
        Other values of these.
    local_steps, lrs
        FedAvg, attacked by LOKI: so many steps at each learning rate, on the same number of images.
    feature_scales
        Local steps also with the network's features scaled by these.
    crowds
        Secure aggregation over so many clients, attacked by LOKI: with batch norm, and without norm layers.
    bare
        Also without the skip, without batch norm's buffers, and without both.
    """
    case = partial(MatchingCase, setting=base)
    found = [case(BASE, "")]
    found += [case("batch size", f"{n}", setting=replace(base, images_per_client=n)) for n in batch_sizes]
    found += [case("fc factor", f"{f:g}", setting=replace(base, fc_factor=f)) for f in fc_factors]
    found += [case("norm layers", norm, norm=norm) for norm in norms]
    if bare:
        found += [
            case("without", "buffers", buffers=False),
            case("without", "skip", skip=False),
            case("without", "skip and buffers", skip=False, buffers=False),
        ]
    found += [case("epochs trained", f"{n}", epochs=n) for n in epochs]
    loki = replace(base, attack="loki")
    for steps in local_steps:
        for lr in lrs:
            setting = replace(loki, protocol="fedavg", local_steps=steps, lr=lr)
            name = f"local steps, lr {lr:g}"
            found.append(case(name, f"{steps}", setting=setting))
            scaled = partial(case, name, setting=setting)
            found += [scaled(value=f"{steps}, features x {c:g}", feature_scale=c) for c in feature_scales]
    for clients in crowds:
        setting = replace(loki, clients=clients, secure=True)
        found += [
            case("sum over clients", f"{clients}", setting=setting),
            case("sum over clients", f"{clients}, no norm", setting=setting, norm="none"),
        ]
    return found


def leak_with_updates(
    data: Dataset, case: MatchingCase, *, model: str, width: int | None, seed: int, device: str = "cpu"
) -> tuple[Payload, Updates, Leak, Tensor, float]:
    """Attack one round: payload, updates, leak, true label of each leaked image (-1: none), and the leak rate."""
    setting = case.setting
    parts = max(setting.clients, len(data.train) // setting.images_per_client)
    clients = make_clients(data.train, parts, seed=seed)[: setting.clients]
    network = build(model, data, norm=case.norm, width=width, seed=seed)
    if case.epochs:
        recipe = Recipe(epochs=case.epochs)
        options = {"test": data.test, "info": data.info, "seed": seed, "device": device, "evaluate_every": 0}
        network = train(network, data.test, recipe=recipe, **options).model.cpu().train()
    attack, protocol = case.attack(), setting.make_protocol()
    payload = attack.payload(network, data.test)
    payload = (with_skip(payload, case.feature_scale) if case.skip else payload).to(device)
    updates = respond(clients, payload, protocol, seed, secure=setting.secure)
    if not case.buffers:
        updates = replace(updates, buffers={})
    leak = attack.reconstruct(payload, updates)
    images, labels = gather(clients, draw_batches(clients, protocol, seed).flat)
    scored = score(leak, Truth(images, labels, updates.clients), with_ssim=False)
    return payload, updates, leak, scored.true_labels, scored.leak_rate


def match_each(payload: Payload, updates: Updates, leak: Leak, methods: Sequence[str]) -> dict[str, Leak]:
    """The leak with labels by each of `METHODS` that the updates allow: a sum over clients has no counts to restore."""
    if updates.summed:
        methods = [method for method in methods if not method.endswith("+counts")]
    counts = "restore" if any(method.endswith("+counts") for method in methods) else None
    return match_by_each(payload, updates, leak, methods, counts=counts)


def measure_matching(
    data: Dataset,
    cases: Sequence[MatchingCase],
    seeds: Sequence[int],
    *,
    methods: Sequence[str] = METHODS,
    model: str = "convnet",
    width: int | None = None,
    confident: float = 0.9,
    device: str = "cpu",
    progress: bool = True,
) -> pd.DataFrame:
    """Attack every case with every seed, and match labels by every method.

    Returns
    -------
    DataFrame
        Rows of the table `label_matching`: dataset, seed, method, attack, protocol, batch_size (images of a client),
        fc_factor, leak_rate (0..1), label_accuracy (of the leaked images that show an attacked one, 0..1), accuracy
        (NaN: nothing was trained); then varied, value, network, norm, skip, buffers, feature_scale, epochs, classes,
        local_steps, lr, clients, images (leaked), confidence (mean, 0..1), kept (share of the labels that are at least
        `confident` sure), label_accuracy_kept (of these, NaN where there are none) and seconds (of the matching by all
        methods). A sum over clients has no row with counts: a single client's cannot be restored from it.

    Raises
    ------
    ValueError
        For an unknown method, or too few images for a case; before anything is computed.
    """
    unknown = [method for method in methods if method not in METHODS]
    if unknown:
        raise ValueError(f"unknown methods {unknown}; choose from {', '.join(METHODS)}")
    for case in cases:
        case.setting.check(data.train)
    rows = []
    jobs = [(seed, case) for seed in seeds for case in cases]
    for seed, case in tqdm(jobs, desc=f"label matching on {data.name}", disable=not progress, leave=False):
        *seen, truth, rate = leak_with_updates(data, case, model=model, width=width, seed=seed, device=device)
        begin = perf_counter()
        found = match_each(*seen, methods)
        seconds = perf_counter() - begin
        for method, leak in found.items():
            row = describe(data, case, seed, method, rate, model, leak, truth, confident)
            rows.append({**row, "seconds": seconds})
    return pd.DataFrame(rows)


def describe(
    data: Dataset, case: MatchingCase, seed: int, method: str, rate: float, model: str, leak: Leak | None,
    truth: Tensor, confident: float,
) -> dict[str, Any]:  # fmt: skip
    """One row of the table `label_matching`, see `measure_matching`; `leak` has the labels that count, None: none."""
    setting = case.setting
    about = {"dataset": data.name, "seed": seed, "method": method, "attack": setting.attack}
    about["protocol"] = setting.protocol + ("+secagg" if setting.secure else "")
    about |= {"batch_size": setting.images_per_client, "fc_factor": setting.fc_factor, "leak_rate": rate}
    more = {"varied": case.varied, "value": case.value, "network": model, "norm": case.norm, "skip": case.skip}
    more |= {
        "buffers": case.buffers,
        "feature_scale": case.feature_scale,
        "epochs": case.epochs,
        "classes": data.num_classes,
    }
    more |= {"local_steps": setting.local_steps, "lr": setting.lr if setting.protocol == "fedavg" else nan}
    more |= {"clients": setting.clients, "images": int((truth >= 0).sum())}
    found = {"label_accuracy": nan, "accuracy": nan}
    scores = {"confidence": nan, "kept": nan, "label_accuracy_kept": nan}
    if leak is not None:
        shows = truth >= 0
        right, sure = (leak.labels == truth)[shows].float(), leak.label_confidence[shows]
        keep = sure >= confident
        found["label_accuracy"] = _mean(right)
        scores = {"confidence": _mean(sure), "kept": _mean(keep), "label_accuracy_kept": _mean(right[keep])}
    return about | found | more | scores


def _mean(values: Tensor) -> float:
    return float(values.float().mean()) if len(values) else nan
