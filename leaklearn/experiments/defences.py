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
from functools import partial
from itertools import chain
from math import nan

import pandas as pd
from tqdm.auto import tqdm

from leaklearn.attacks.inversion import GradientInversion
from leaklearn.attacks.linear.defended import Wiener
from leaklearn.data.images import Dataset
from leaklearn.experiments.batches import attacked_network
from leaklearn.experiments.defence_cases import DETECTION, NONE, SECURE, Case
from leaklearn.experiments.defence_settings import DefenceSettings
from leaklearn.experiments.defended import LinearRound, Taken, invert_defended, pooled_batches, refusing
from leaklearn.federated import Client, Payload, PrivateSGD, Updates, federate, make_clients
from leaklearn.federated.detection import Detector
from leaklearn.federated.private import epsilon
from leaklearn.leaks import Leak
from leaklearn.learning import Recipe, evaluate, train
from leaklearn.models import Network, build


@dataclass(frozen=True, eq=False)
class DefenceStudy:
    """What `study_defences` measured.

    Attributes
    ----------
    table : DataFrame
        The table `defences`: dataset, seed, defence, strength, attack, leak_rate (0..1, at 20 dB), psnr (dB, median of
        the reconstructions), accuracy_of_leak and accuracy_of_federation (0..1); then images (trained on), refusing
        (share of the clients that do not answer), epsilon (for all rounds that the most often drawn client of any seed
        took part in), epsilon_round (for one) and delta. An empty leak has the accuracy of guessing.
    examples : dict
        The first seed's `Taken` by (defence, strength, attack).
    false_alarms : float
        Share of the inspected clients, over all seeds, that refuse an honest model: the undefended federation's first
        or its last.
    """

    table: pd.DataFrame
    examples: Mapping[tuple[str, float, str], Taken]
    false_alarms: float


def study_defences(
    data: Dataset,
    settings: DefenceSettings,
    cases: Sequence[Case],
    *,
    recipe: Recipe,
    seeds: Sequence[int],
    device: str = "cpu",
    progress: bool = True,
) -> DefenceStudy:
    """Measure every case with every seed; the undefended one is added where it is not among them.

    Parameters
    ----------
    data
        Training images are the clients'; test images measure accuracy, and are what the attackers know of images.
    settings
        Federation and attacks.
    cases
        The defences with their strengths.
    recipe
        Of the training on leaks; give it `steps`, so that a small leak is trained on for as long as a large one.
    seeds
        Of partition, weights, mini-batches, defences and attacks.

    Raises
    ------
    ValueError
        If a case does not fit the settings or the data set has too few images; before anything is computed.
    """
    cases = list(dict.fromkeys([Case(NONE, 0.0), *cases]))
    for case in cases:
        settings.check(case, data)
    rows: list[dict] = []
    examples: dict[tuple[str, float, str], Taken] = {}
    often: Counter[tuple[str, float]] = Counter()
    jobs = [(seed, case) for seed in seeds for case in cases]
    bar = tqdm(jobs, desc=f"defences on {data.name}", disable=not progress, leave=False)
    bench, alarms = None, []
    for seed, case in bar:
        bar.set_postfix_str(str(case))
        if bench is None or bench.seed != seed:
            bench = _Bench(data, settings, recipe, seed, device)
            bench.federation(cases[0])
            alarms.append(bench.false_alarms())
        accuracy, drawn = bench.federation(case)
        often[case.key] = max(often[case.key], drawn)
        for attack, (taken, refused) in bench.attacks(case).items():
            row = {"dataset": data.name, "seed": seed, "defence": case.defence, "strength": case.strength}
            row |= {"attack": attack, "leak_rate": taken.leak_rate if taken else 0.0}
            row |= {"psnr": taken.psnr if taken else nan, "accuracy_of_leak": bench.worth(taken)}
            row |= {"accuracy_of_federation": accuracy, "images": len(taken.leak) if taken else 0, "refusing": refused}
            rows.append(row)
            if seed == seeds[0] and taken:
                examples[(*case.key, attack)] = taken
    table = pd.DataFrame(rows)
    spent = pd.DataFrame([_privacy(case, settings, often[case.key]) for case in cases])
    table = table.merge(spent, on=["defence", "strength"], how="left")
    return DefenceStudy(table, examples, sum(alarms) / len(alarms))


def _privacy(case: Case, settings: DefenceSettings, drawn: int) -> dict[str, object]:
    multiplier = case.noise_multiplier
    found = {"defence": case.defence, "strength": case.strength, "epsilon": nan, "epsilon_round": nan, "delta": nan}
    if multiplier is None:
        return found
    delta = settings.delta(case)
    spent = {"epsilon": epsilon(multiplier, steps=drawn, delta=delta)}
    return {**found, **spent, "epsilon_round": epsilon(multiplier, steps=1, delta=delta), "delta": delta}


class _Bench:
    """One seed's clients, payloads and models, each made once and used by all cases."""

    def __init__(self, data: Dataset, settings: DefenceSettings, recipe: Recipe, seed: int, device: str) -> None:
        self.data, self.settings, self.recipe, self.seed, self.device = data, settings, recipe, seed, device
        self.wiener = Wiener.of(data.test)
        self.test = partial(evaluate, images=data.test)
        self._federations: dict[object, tuple[float, int, Network]] = {}
        self._clean: dict[tuple, Updates] = {}
        self._worth: dict[str, float] = {}
        self._undefended: dict[str, Taken] = {}

    def clients(self, case: Case) -> list[Client]:
        """Each with just the images of one update, so that none of an update's images is left to chance."""
        size = self.settings.images_of(case)
        clients = make_clients(self.data.train, self.settings.clients_of(case), seed=self.seed)
        return [replace(client, data=client.data[:size]) for client in clients]

    def network(self) -> Network:
        """The one that is trained, untrained."""
        look = {"norm": "group", "activation": self.settings.activation, "width": self.settings.width}
        return build(self.settings.model, self.data, **look, seed=self.seed)

    def federation(self, case: Case) -> tuple[float, int]:
        """Accuracy after the last round, and how often the most often drawn client took part.

        Secure aggregation and detection leave the sum of honest updates as it is: theirs is the undefended federation.
        """
        key = Case(NONE, 0.0) if case.defence in (SECURE, DETECTION) else case
        if key not in self._federations:
            model, protocol = self.network().to(self.device), self.settings.protocol(case)
            found = federate(
                model,
                self.clients(case),
                protocol,
                rounds=self.settings.rounds,
                clients_per_round=self.settings.cohort(case),
                evaluate=self.test,
                evaluate_every=self.settings.rounds,
                lr=self.settings.server_lr(case),
                defence=case.build(self.settings),
                seed=self.seed,
            )
            drawn = Counter(chain.from_iterable(found.drawn))
            self._federations[key] = found.accuracy, max(drawn.values()), found.model
        return self._federations[key][:2]

    def attacks(self, case: Case) -> dict[str, tuple[Taken | None, float]]:
        """By the attack's name what it took, None where nothing, and the share of the clients that refused."""
        found = {name: self._linear(name, case) for name in self.settings.linear_attacks}
        if self.settings.inverts(case):
            found[self.settings.gi_attack] = self._inversion(case)
        if case.defence == NONE:
            self._undefended = {name: taken for name, (taken, _) in found.items()}
        return {
            name: (taken if taken is not None and len(taken.leak) else None, r) for name, (taken, r) in found.items()
        }

    def false_alarms(self) -> float:
        """Share of the inspected clients that refuse an honest model: the federation's first one or its last."""
        last = self._federations[Case(NONE, 0.0)][2]
        group = self.clients(Case(NONE, 0.0))[: self.settings.inspected]
        alarms = [
            refusing(Payload.of(model), group, self.settings.images_per_client, Detector())
            for model in (self.network(), last)
        ]
        return sum(map(sum, alarms)) / sum(map(len, alarms))

    def _linear(self, name: str, case: Case) -> tuple[Taken | None, float]:
        attack, protocol = self.settings.linear_attack(name, case), self.settings.protocol(case)
        group = self.clients(case)[: self.settings.attacked_of(case)]
        attacked = LinearRound.of(attack, self.data.test, group, protocol, self.seed)
        attacked = replace(attacked, payload=attacked.payload.to(self.device))
        refused = 0.0
        if case.defence == DETECTION:
            group = group[: self.settings.inspected]
            warned = refusing(attacked.payload, group, len(group[0].data), Detector())
            group, refused = [c for c, bad in zip(group, warned, strict=True) if not bad], sum(warned) / len(warned)
            if not group:
                return None, refused
            attacked = replace(attacked, clients=group)
        defence = case.build(self.settings)
        clean = None
        if isinstance(defence, PrivateSGD):  # the same for all noise multipliers
            key = (name, defence.clip)
            if key not in self._clean:
                self._clean[key] = attacked.updates(replace(defence, multiplier=0.0))[0]
            clean = self._clean[key]
        answers = attacked.updates(defence, self.settings.cohort(case) if case.defence == SECURE else 0, clean)
        return attacked.take(answers, defence, self.wiener), refused

    def _inversion(self, case: Case) -> tuple[Taken | None, float]:
        settings = self.settings
        payload = Payload.of(attacked_network(settings.gi_network, self.data, self.seed)).to(self.device)
        if case.defence == DETECTION:  # the model is honest
            group = self.clients(case)[: settings.inspected]
            warned = refusing(payload, group, settings.images_per_client, Detector())
            return (self._undefended[settings.gi_attack] if not all(warned) else None), sum(warned) / len(warned)
        clients = make_clients(self.data.train, settings.clients, seed=self.seed)
        size = settings.gi_batch_of(case)
        batches = pooled_batches(clients, size, max(1, settings.gi_images // size))
        attack = GradientInversion(settings.gi_attack).replace(iterations=settings.gi_iterations)
        defence = case.build(settings)
        return invert_defended(payload, batches, settings.gi_protocol(case), attack, defence, seed=self.seed), 0.0

    def worth(self, taken: Taken | None) -> float:
        """Test accuracy of a model trained on a leak; that of guessing without one. Equal leaks are trained on once."""
        if taken is None or not len(taken.leak):
            return 1 / self.data.num_classes
        leak = _eight_bit(taken.leak)
        key = hashlib.sha256(leak.images.numpy().tobytes() + leak.labels.numpy().tobytes()).hexdigest()
        if key not in self._worth:
            options = {"test": self.data.test, "recipe": self.recipe, "info": self.data.info, "evaluate_every": 0}
            found = train(self.network(), leak, seed=self.seed, device=self.device, **options)
            self._worth[key] = found.accuracy
        return self._worth[key]


def _eight_bit(leak: Leak) -> Leak:
    """Rounded to 8 bits, as images are stored: exact reconstructions become equal ones, whatever their rounding."""
    return replace(leak, images=(leak.images * 255).round() / 255)
