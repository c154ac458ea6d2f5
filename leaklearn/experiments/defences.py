"""Which defence stops which attack, and what it costs the federation: the measurements of notebook 11.

The undefended case: a federation of FedSGD whose server sees every client's gradient by itself. Each case adds one
defence at one strength. The same round is then attacked three times, a model is trained on what each attack took, and
a federation is trained under the same defence. All attackers know the defence and are told the true labels.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import chain
from math import nan

import pandas as pd
import torch
from torch import Tensor

from leaklearn.attacks import GradientInversion
from leaklearn.attacks.linear.base import LinearLeakage
from leaklearn.attacks.linear.defended import Defended, Wiener
from leaklearn.evaluation import Truth, psnr
from leaklearn.experiments.bench import READABLE_DB, Bench, Exchange
from leaklearn.experiments.defended_federation import DETECTION, NO_DEFENCE, NONE, SECURE, Case, DefendedFederation
from leaklearn.federated import Client, Payload, PrivateSGD, Updates, respond
from leaklearn.federated.clients import client_seed
from leaklearn.federated.detection import inspect
from leaklearn.federated.private import epsilon
from leaklearn.leaks import Leak, merge
from leaklearn.models import build

INSPECTED = 4
"""Attacked clients that run the tests of the detection."""
EXAMPLES = 8
"""Images of the first client that are kept for pictures."""

STOPPED, WEAKENED, WORTHLESS = 0.05, 0.75, 0.5
"""Of the undefended leak rate, the share up to which an attack counts as stopped, and as weakened; of the undefended
accuracy of a model trained on the leak, the share up to which a stopped attack's leak counts as worthless."""


@dataclass(frozen=True, eq=False)
class Outcome:
    """What an attack took under one defence, with the labels that its images really have: the ideal case.

    Attributes
    ----------
    leak : Leak or None
        Reconstructions that show an image at all, with true labels; None where no client answered.
    psnr : Tensor
        (M,) dB of each.
    attacked : int
        Different images that were attacked.
    leak_rate : float
        Share of these that reach 20 dB.
    refusing : float
        Share of the clients that do not answer.
    truth, found : Tensor or None
        (E, C, H, W) in [0, 1]: the first client's first images and what was made of them, gray where nothing was.
    decibel : list of float
        (E,) dB of these pairs, NaN where nothing was made.
    off_grid : int
        Clients whose images were read without the 8-bit grid, since they are not on it.
    """

    leak: Leak | None
    psnr: Tensor
    attacked: int
    leak_rate: float = 0.0
    refusing: float = 0.0
    truth: Tensor | None = None
    found: Tensor | None = None
    decibel: Sequence[float] = ()
    off_grid: int = 0

    @classmethod
    def of(cls, exchanges: Sequence[Exchange]) -> Outcome:
        """From attacked rounds: one, or one for each sum."""
        leaks, psnrs, leaked, attacked, pictures = [], [], 0, 0, ()
        for exchange in exchanges:
            position, images = positions_shown(exchange), exchange.truth.images.flatten(0, 1)
            true = position[position >= 0]
            leak = exchange.leak[position >= 0]
            if not isinstance(exchange.attack, GradientInversion):  # which was given them
                leak = leak.with_labels(exchange.truth.labels.flatten()[true])
            leaks.append(leak)
            psnrs.append(psnr(leak.images, images[true].float() / 255) if len(leak) else torch.empty(0))
            if isinstance(exchange.attack, GradientInversion):
                reached = exchange.quality["psnr"] >= READABLE_DB
                leaked, attacked = leaked + int(reached.sum()), attacked + len(reached)
            else:
                leaked, attacked = leaked + exchange.score.leaked, attacked + exchange.score.attacked
            pictures = pictures or _pictures(exchange, leak, psnrs[0], true)
        off_grid = sum(exchange.leak.meta.get("off_grid", 0) for exchange in exchanges)
        return cls(merge(leaks), torch.cat(psnrs), attacked, leaked / attacked, 0.0, *pictures, off_grid=off_grid)


def _pictures(exchange: Exchange, leak: Leak, decibels: Tensor, true: Tensor) -> tuple[Tensor, Tensor, list[float]]:
    truth = exchange.truth.images[0, :EXAMPLES].float() / 255
    found, decibel = torch.full_like(truth, 0.5), [nan] * len(truth)
    # From the worst to the best, so that the best reconstruction of an image is the one that stays.
    for i in decibels.argsort().tolist():
        if true[i] < len(truth):
            found[true[i]], decibel[true[i]] = leak.images[i], float(decibels[i])
    return truth, found, decibel


def positions_shown(exchange: Exchange) -> Tensor:
    """(M,) which attacked image each reconstruction shows, -1 where it shows none."""
    if isinstance(exchange.attack, GradientInversion):
        position = torch.full((len(exchange.leak),), -1)
        seen = torch.from_numpy(exchange.quality["reconstruction"].to_numpy().copy())
        position[seen[seen >= 0]] = (seen >= 0).nonzero().flatten()
        return position
    if exchange.attack.exact:
        return exchange.score.true_positions
    return positions_in_bins(exchange.leak, exchange.payload, exchange.truth)


def positions_in_bins(leak: Leak, payload: Payload, truth: Truth) -> Tensor:
    """(M,) which attacked image each reconstruction shows: of those in its bin the nearest, -1 where there is none.

    That is what an attacker with perfect label matching would know, however poor its image.
    """
    place = payload.model.block.brightness.of(truth.images)
    images = truth.images.flatten(2).flatten(0, 1).float() / 255
    mine = (leak.client.unsqueeze(1) == truth.clients) | (leak.client == -1).unsqueeze(1)
    found = torch.full((len(leak),), -1)
    for rows in torch.arange(len(leak)).split(1024):
        inside = (place == leak.bin[rows].view(-1, 1, 1)) & mine[rows].unsqueeze(2)
        distance = torch.cdist(leak.images[rows].flatten(1), images)
        nearest = distance.masked_fill(~inside.flatten(1), torch.inf).min(1)
        found[rows] = torch.where(nearest.values.isfinite(), nearest.indices, -1)
    return found


def answering(payload: Payload, clients: Sequence[Client]) -> list[Client]:
    """The clients whose tests find nothing wrong with this model; the others refuse to answer."""
    own = [(client, client.data.images.float() / 255, client.data.labels) for client in clients]
    return [client for client, images, labels in own if not inspect(payload, images, labels).suspicious]


@dataclass(frozen=True, eq=False)
class DefenceStudy:
    """What `study_defences` measured.

    Attributes
    ----------
    table : DataFrame
        The table `defences`: dataset, seed, defence, strength, attack, leak_rate (0..1, at 20 dB), psnr (dB, mean over
        the reconstructions), accuracy_of_leak and accuracy_of_federation (0..1); then psnr_median, attacked_images,
        images (trained on), refusing (share of the clients that do not answer), off_grid (clients whose images were
        read without the 8-bit grid), epsilon (for all rounds that the most often drawn client of any seed took part
        in, a record replaced by another), epsilon_round (for one), epsilon_add_remove (for all, a record added or
        removed: the customary number, which does not hold for batches of a fixed size) and delta. An empty leak has the
        accuracy of guessing.
    outcomes : dict
        The first seed's, by (case, attack).
    false_alarms : float
        Share of the inspected clients, over all seeds, that refuse an honest model: the undefended federation's first
        or its last.
    """

    table: pd.DataFrame
    outcomes: Mapping[tuple[Case, str], Outcome]
    false_alarms: float


def study_defences(bench: Bench, plan: DefendedFederation, cases: Sequence[Case]) -> DefenceStudy:
    """Measure every case with every seed; the undefended one is added where it is not among them.

    Parameters
    ----------
    bench
        Its network is trained by the federation and on leaks: with group norm or none, which differential privacy
        needs. Give its recipe `steps`, so that a small leak is trained on for as long as a large one.
    plan
        Federation and attacks.
    cases
        The defences with their strengths.

    Raises
    ------
    ValueError
        If a case does not fit the plan or the data set has too few images; before anything is computed.
    """
    cases = list(dict.fromkeys([NO_DEFENCE, *cases]))
    for case in cases:
        plan.under(case).check(bench)
    work = _Seed(bench, plan, -1)

    def measured(case: Case, seed: int) -> tuple[list[dict[str, object]], tuple]:
        nonlocal work
        if work.seed != seed:
            work = _Seed(bench, plan, seed)
        accuracy, drawn = work.federation(case)
        rows, outcomes = [], work.outcomes(case)
        for attack, outcome in outcomes.items():
            row = {"defence": case.defence, "strength": case.strength, "attack": attack, "leak_rate": outcome.leak_rate}
            some = len(outcome.psnr) > 0
            row |= {"psnr": float(outcome.psnr.mean()) if some else nan, "accuracy_of_leak": work.worth(outcome)}
            row |= {"accuracy_of_federation": accuracy, "psnr_median": float(outcome.psnr.median()) if some else nan}
            row |= {"attacked_images": outcome.attacked, "images": len(outcome.psnr), "refusing": outcome.refusing}
            row |= {"off_grid": outcome.off_grid}
            rows.append(row)
        alarms = [work.false_alarms] if case == NO_DEFENCE else []
        return rows, (drawn, alarms, outcomes if seed == bench.seeds[0] else {})

    table, more = bench.rows_and_more(cases, measured, "defences")
    often = {case: max(drawn for drawn, _, _ in more[number :: len(cases)]) for number, case in enumerate(cases)}
    alarms = [alarm for _, mine, _ in more for alarm in mine]
    first = zip(cases, more, strict=False)  # the first seed's come first
    outcomes = {(case, attack): outcome for case, (_, _, mine) in first for attack, outcome in mine.items()}
    spent = [{"defence": c.defence, "strength": c.strength, **_privacy(plan, c, often[c])} for c in cases]
    table = table.merge(pd.DataFrame(spent), on=["defence", "strength"], how="left")
    return DefenceStudy(table, outcomes, sum(alarms) / len(alarms))


def _privacy(plan: DefendedFederation, case: Case, drawn: int) -> dict[str, float]:
    """Epsilon for a client that was drawn so often, and for one round; delta is one over the number of records."""
    if case.defence not in ("dp_sgd", "client_noise"):
        return dict.fromkeys(["epsilon", "epsilon_round", "epsilon_add_remove", "delta"], nan)
    delta = 1 / (plan.clients * (plan.images_per_client if case.defence == "dp_sgd" else 1))
    whole, once = (epsilon(case.strength, steps=steps, delta=delta) for steps in (drawn, 1))
    customary = epsilon(case.strength, steps=drawn, delta=delta, neighbours="add_remove")
    return {"epsilon": whole, "epsilon_round": once, "epsilon_add_remove": customary, "delta": delta}


class _Seed:
    """What the cases of one seed share, made once: undefended outcomes, equal trainings, updates without noise."""

    def __init__(self, bench: Bench, plan: DefendedFederation, seed: int) -> None:
        self.bench, self.plan, self.seed, self.false_alarms = bench, plan, seed, nan
        self._federations: dict[Case, tuple[float, int]] = {}
        self._without_noise: dict[tuple[str, float], Updates] = {}
        self._worth: dict[str, float] = {}
        self._wiener = Wiener.of(bench.data.test)

    def federation(self, case: Case) -> tuple[float, int]:
        """Accuracy after the last round, and how often the most often drawn client took part.

        Secure aggregation and detection leave the sum of honest updates as it is: theirs is the undefended federation.
        """
        case = NO_DEFENCE if case.defence in (SECURE, DETECTION) else case
        if case not in self._federations:
            found = self.plan.under(case).train(self.bench, self.seed)
            self._federations[case] = found.accuracy, max(Counter(chain.from_iterable(found.drawn)).values())
            if case == NO_DEFENCE:
                honest = [Payload.of(self.bench.network(self.seed)), Payload.of(found.model)]
                group = self.plan.make_clients(self.bench.data.train, self.seed)[: min(INSPECTED, self.plan.attacked)]
                calm = sum(len(answering(payload, group)) for payload in honest)
                self.false_alarms = 1 - calm / (len(honest) * len(group))
        return self._federations[case]

    def outcomes(self, case: Case) -> dict[str, Outcome]:
        """By the attack's name."""
        plan = self.plan.under(case)
        found = {name: self._leaked(attack, plan) for name, attack in plan.linear_attacks().items()}
        if plan.inverts:
            attack = plan.inversion()
            found[attack.name] = self._undefended if case == NO_DEFENCE else self._inverted(attack, plan)
        return found

    def _leaked(self, attack: LinearLeakage, plan: DefendedFederation) -> Outcome:
        bench, seed, protocol, defence = self.bench, self.seed, plan.protocol(), plan.defence
        group, refusing, updates = plan.make_clients(bench.data.train, seed)[: plan.attacked], 0.0, None
        payload = attack.payload(build("lenet", bench.data, seed=seed), bench.data.test).to(bench.device)
        if plan.refusing:
            group = group[:INSPECTED]
            calm = answering(payload, group)
            refusing = 1 - len(calm) / len(group)
            if not calm:
                return Outcome(None, torch.empty(0), len(group) * plan.images_per_client, refusing=refusing)
            group = calm
        if isinstance(defence, PrivateSGD):  # what clients compute is the same for all noise multipliers
            key, clean = (attack.name, defence.clip), replace(defence, multiplier=0.0)
            if key not in self._without_noise:
                answers = respond(group, payload, protocol, seed, only=attack.reads, defence=clean)
                self._without_noise[key] = answers
            own_seeds = [client_seed(seed, client.id) for client in group]
            updates = defence.add_noise(self._without_noise[key], own_seeds)
        knowing = Defended(attack, defence, self._wiener)
        options = {"payload": payload, "updates": updates, "defence": defence, "secure": plan.secure_sum > 0}
        size = plan.secure_sum or len(group)
        sums = [group[start : start + size] for start in range(0, len(group), size)]
        found = Outcome.of([bench.exchange(knowing, seed, part, protocol, **options) for part in sums])
        return replace(found, refusing=refusing)

    @cached_property
    def _undefended(self) -> Outcome:
        """Of gradient inversion."""
        plan = self.plan.under(NO_DEFENCE)
        return self._inverted(plan.inversion(), plan)

    def _inverted(self, attack: GradientInversion, plan: DefendedFederation) -> Outcome:
        network = build(plan.gi_network, self.bench.data, seed=self.seed)
        if plan.refusing:  # the model is honest
            group = plan.make_clients(self.bench.data.train, self.seed)[: min(INSPECTED, plan.attacked)]
            calm = answering(attack.payload(network).to(self.bench.device), group)
            before = self._undefended
            nothing = Outcome(None, torch.empty(0), before.attacked)
            return replace(before if calm else nothing, refusing=1 - len(calm) / len(group))
        batches = self.plan.batches(self.bench.data.train, plan.gi_batch_size, self.seed)
        options = {"network": network, "defence": plan.defence, "known_labels": True}
        return Outcome.of([self.bench.exchange(attack, self.seed, batches, plan.gi_protocol(), **options)])

    def worth(self, outcome: Outcome) -> float:
        """Test accuracy of a model trained on a leak. Equal ones are trained on once: exact reconstructions become
        equal where they are rounded to 8 bits, as images are stored."""
        if outcome.leak is None:
            return 1 / self.bench.data.num_classes
        leak = replace(outcome.leak, images=(outcome.leak.images * 255).round() / 255)
        key = hashlib.sha256(leak.images.numpy().tobytes() + leak.labels.numpy().tobytes()).hexdigest()
        if key not in self._worth:
            self._worth[key] = self.bench.worth(leak, self.seed)
        return self._worth[key]


def stops(table: pd.DataFrame) -> pd.DataFrame:
    """Which defence stops which attack: means over seeds of the table `defences`.

    Columns dataset, defence, strength, attack, verdict (see `verdict`), leak_rate, accuracy_of_leak,
    accuracy_of_federation, cost (of the defence, in accuracy), epsilon, attacked_images (of all seeds) and seeds.
    """
    keys, shares = ["dataset", "defence", "strength", "attack"], ["leak_rate", "accuracy_of_leak"]
    means = dict.fromkeys([*shares, "accuracy_of_federation"], "mean")
    means |= {"epsilon": "first", "attacked_images": "sum", "seed": "nunique"}
    found = table.groupby(keys, sort=False, as_index=False).agg(means).rename(columns={"seed": "seeds"})
    base = found[found["defence"] == NONE].set_index(["dataset", "attack"])[[*shares, "accuracy_of_federation"]]
    base = base.reindex(pd.MultiIndex.from_frame(found[["dataset", "attack"]])).set_axis(found.index)
    judged = [verdict(*pair) for pair in (found[shares] / base[shares]).itertuples(index=False)]
    cost = base["accuracy_of_federation"] - found["accuracy_of_federation"]
    found.insert(4, "verdict", judged)
    found.insert(8, "cost", cost)
    return found


def verdict(rate: float, worth: float) -> str:
    """Of an attack, its leak rate and its leak's accuracy given as shares of the undefended ones.

    ``stopped``: hardly an image reaches 20 dB, and what is left teaches little. ``blurred``: hardly an image reaches
    20 dB, yet a model learns from what is left. ``weakened``, ``not stopped``, or ``nothing to stop`` (NaN).
    """
    if rate != rate:
        return "nothing to stop"
    if rate <= STOPPED:
        return "stopped" if worth <= WORTHLESS else "blurred"
    return "weakened" if rate <= WEAKENED else "not stopped"


def crossings(table: pd.DataFrame) -> pd.DataFrame:
    """Between which noise multipliers z of DP-SGD in `defences` a leak's worth falls below the federation's accuracy.

    Returns
    -------
    DataFrame
        A row a data set, seed and attack: side (``"crosses"``; ``"below"``: worth less from the least noise on;
        ``"undefended"``: even without any; ``"above"``: worth more up to the most), epsilon_above and z_above of the
        last strength at which the leak is worth as much as the federation or more, epsilon_below and z_below of the
        next, where it is worth less (NaN where there is none), and cost: undefended federation's accuracy minus that
        at the latter.
    """
    ends = [f"{name}_{end}" for end in ("below", "above") for name in ("epsilon", "z")]
    rows = []
    for (dataset, seed, attack), mine in table.groupby(["dataset", "seed", "attack"], sort=False):
        shares = ["accuracy_of_leak", "accuracy_of_federation"]
        worth, base = mine.loc[mine["defence"] == NONE, shares].mean()
        line = mine[mine["defence"] == "dp_sgd"].sort_values("epsilon", ascending=False)
        if line.empty:
            continue
        less = (line["accuracy_of_leak"] < line["accuracy_of_federation"]).to_numpy()
        first = int(less.argmax()) if less.any() else len(line)
        row = {"dataset": dataset, "seed": seed, "attack": attack, **dict.fromkeys(ends, nan), "cost": nan}
        if first > 0:
            row["epsilon_above"], row["z_above"] = line.iloc[first - 1][["epsilon", "strength"]]
        if first < len(line):
            row["epsilon_below"], row["z_below"] = line.iloc[first][["epsilon", "strength"]]
            row["cost"] = base - line.iloc[first]["accuracy_of_federation"]
        start = "undefended" if worth < base else "below"
        rows.append({**row, "side": start if first == 0 else "above" if first == len(line) else "crosses"})
    return pd.DataFrame(rows, columns=["dataset", "seed", "attack", "side", *ends, "cost"])
