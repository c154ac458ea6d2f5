"""The peer that `inversion.py` measures against: breaching's Inverting Gradients on the update of one client.

breaching 0.1.2 (J. Geiping and others, https://github.com/JonasGeiping/breaching) is used as its users get it: the
configuration that `breaching.get_attack_config("invertinggradients")` gives, the attacker that `prepare_attack` makes
of it, its own loop from start to end. Set are only the number of iterations (its default is 24,000), the weight of
total variation (0.2) and the start; all else keeps its default: one global cosine similarity, Adam of step 0.1 on the
sign of the gradient, the box of valid images, steps divided by 10 at 3/8, 5/8 and 7/8, one trial, the iterate of least
objective returned, a line in the log every 1,000 iterations. Its data sets and models (`construct_case`), which would
download, and its report, which is evaluation, are not used.

breaching optimises images after normalisation, so it is handed the network without its first layer. Its total variation
takes images of three channels only.
"""

from __future__ import annotations

import contextlib
import io
import warnings
from collections.abc import Collection, Iterable, Iterator, Sequence
from importlib.util import find_spec
from time import perf_counter
from types import SimpleNamespace
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from leaklearn import torchvision_compat  # noqa: F401  breaching imports torchvision
from leaklearn.models import Network

INSTALL = "pip install -e '.[bench]' -c requirements-lock.txt"
DEFAULT_TV = 0.2
"""Weight of total variation in breaching's configuration, chosen for images of 224 pixels."""


def installed() -> bool:
    """Whether breaching can be imported."""
    return find_spec("breaching") is not None


class AfterNormalise(nn.Module):
    """A network without its `normalise`: takes images that are normalised already. Parameters keep their order."""

    def __init__(self, model: Network) -> None:
        super().__init__()
        self.body, self.head = model.body, model.head

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.body(images).flatten(1))


class Record(NamedTuple):
    """Where an attack stood: iterations done, seconds since the call, images (B, C, H, W) in [0, 1] on the CPU.

    The images are the iterate itself, while the attack returns that of least objective.
    """

    iteration: int
    seconds: float
    images: Tensor


class Attacked(NamedTuple):
    """What breaching made of one update.

    Attributes
    ----------
    images : Tensor
        (B, C, H, W) float32 in [0, 1], on the CPU, in the order of the labels.
    seconds : float
        The whole call: preparation, iterations, final score.
    iterations : int
        Done: fewer than asked for where the objective became infinite or NaN.
    seconds_per_iteration : float
        Of the loop alone.
    objective : float
        breaching's score of what it returns: one minus the cosine similarity, without total variation.
    records : list of Record
        Of the iterations asked for.
    """

    images: Tensor
    seconds: float
    iterations: int
    seconds_per_iteration: float
    objective: float
    records: list[Record]


class Breaching:
    """breaching's Inverting Gradients (Geiping et al., NeurIPS 2020), labels known.

    Parameters
    ----------
    model
        The network that was sent, with its values; attacked in eval mode, its buffers being public, as is breaching's
        default for an honest but curious server.
    iterations
        At least 1.
    tv
        Weight of total variation, 0 for none: of the mean over pixels and channels of |dx| + |dy|.
    device
        Where to compute.
    record
        Iterations, counted from 1, whose images are kept with the time.

    Raises
    ------
    ValueError
        If the model is not one of `leaklearn.models` for 3 channels, or a number is out of range.
    ImportError
        If breaching is not installed.
    """

    def __init__(
        self,
        model: Network,
        iterations: int,
        *,
        tv: float = DEFAULT_TV,
        device: str | torch.device = "cpu",
        record: Iterable[int] = (),
    ) -> None:
        if not isinstance(model, Network):
            raise ValueError(f"{type(model).__name__} is not a network of leaklearn.models, whose parts are known here")
        if model.shape[0] != 3:
            raise ValueError(f"breaching's total variation takes 3 channels, not {model.shape[0]}")
        if iterations < 1 or tv < 0:
            raise ValueError(f"iterations={iterations}, tv={tv}: at least 1, and at least 0")
        if not installed():
            raise ImportError(f"breaching is not installed: {INSTALL}")
        self.model, self.device, self.record = AfterNormalise(model), torch.device(device), frozenset(record)
        self.config = configuration(iterations, tv)
        self.metadata = SimpleNamespace(
            shape=model.shape,
            mean=model.normalise.mean.flatten().tolist(),
            std=model.normalise.std.flatten().tolist(),
            modality="vision",
        )

    def attack(
        self, gradients: Sequence[Tensor], labels: Tensor, *, start: Tensor | None = None, seed: int = 0
    ) -> Attacked:
        """Attack the update of one client.

        Parameters
        ----------
        gradients
            One for each of ``model.parameters()``, in that order: of the mean cross-entropy over the batch.
        labels
            (B,) int64.
        start
            (B, C, H, W) after normalisation; None: standard normal, drawn by breaching.
        seed
            Of breaching's draw; the global random state is left as it was.
        """
        payload = {
            "parameters": [parameter.detach() for parameter in self.model.parameters()],
            "buffers": [buffer.detach() for buffer in self.model.buffers()],
            "metadata": self.metadata,
        }
        known = {"num_data_points": len(labels), "labels": labels.to(self.device), "local_hyperparams": None}
        shared = {"gradients": [g.detach().to(self.device) for g in gradients], "buffers": None, "metadata": known}
        attacker = recording_attacker(self.model, self.config, self.device, self.record)
        devices = [self.device] if self.device.type == "cuda" else []
        with torch.random.fork_rng(devices), cudnn_searches():
            torch.manual_seed(seed)
            began = now(self.device)
            # breaching looks for a key in server_secrets, so an honest server's are an empty dict, as in its examples
            found, stats = attacker.reconstruct([payload], [shared], {}, initial_data=start)
            seconds = now(self.device) - began
        watch = attacker.watch
        return Attacked(
            self.image(found["data"]),
            seconds,
            watch.iteration,
            (watch.ended - watch.began) / watch.iteration,
            stats["opt_value"],
            [Record(i, moment - began, self.image(candidate)) for i, moment, candidate in watch.kept],
        )

    def image(self, normalised: Tensor) -> Tensor:
        """(B, C, H, W) as breaching optimises it -> in [0, 1] on the CPU."""
        mean, std = (torch.tensor(values).view(-1, 1, 1) for values in (self.metadata.mean, self.metadata.std))
        return (normalised.detach().cpu() * std + mean).clamp(0, 1)


def configuration(iterations: int, tv: float) -> Any:
    """breaching's own configuration of the attack, with these two values."""
    import breaching

    settings = [f"optim.max_iterations={iterations}", f"regularization.total_variation.scale={tv}"]
    with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # hydra's on the version of its interface, and a line of print
        return breaching.get_attack_config("invertinggradients", settings)


def recording_attacker(model: nn.Module, config: Any, device: torch.device, record: Collection[int]) -> Any:
    """The attacker that `breaching.attacks.prepare_attack` makes, its scheduler in the hands of a `Watch`.

    The loop calls the scheduler once an iteration; nothing else of it can be hooked without a change to what it does.
    """
    import breaching

    setup = {"dtype": torch.float, "device": device}
    attacker = breaching.attacks.prepare_attack(model, nn.CrossEntropyLoss(), config, setup)
    initialise = attacker._init_optimizer

    def watched(candidates: list[Tensor]) -> tuple[Any, Watch]:
        optimiser, scheduler = initialise(candidates)
        attacker.watch = Watch(scheduler, candidates[0], record, config.optim.max_iterations)
        return optimiser, attacker.watch

    attacker._init_optimizer = watched
    return attacker


class Watch:
    """A scheduler that counts iterations and keeps the time and the images of some, at the price of a comparison."""

    def __init__(self, scheduler: Any, candidate: Tensor, record: Collection[int], last: int) -> None:
        self.scheduler, self.candidate, self.record, self.last = scheduler, candidate, record, last
        self.iteration, self.kept = 0, []
        self.began = self.ended = now(candidate.device)

    def step(self) -> None:
        self.scheduler.step()
        self.iteration += 1
        if self.iteration in self.record or self.iteration == self.last:
            self.ended = now(self.candidate.device)
        if self.iteration in self.record:
            self.kept.append((self.iteration, self.ended, self.candidate.detach().clone()))


@contextlib.contextmanager
def cudnn_searches() -> Iterator[None]:
    """breaching switches cuDNN's search for the fastest algorithm on when it starts (its impl.benchmark)."""
    before, torch.backends.cudnn.benchmark = torch.backends.cudnn.benchmark, True
    try:
        yield
    finally:
        torch.backends.cudnn.benchmark = before


def now(device: torch.device) -> float:
    """Seconds on a clock, once the device has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return perf_counter()
