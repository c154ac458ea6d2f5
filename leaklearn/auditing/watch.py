"""Watch a training loop of anybody's: which images, labels and settings each step really had.

An audit of an app needs the truth to score by, and what the app's code says of batch size, steps and optimiser. Both
are seen from within the process, by hooks that torch offers on all modules and optimisers; nothing of the app changes.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_pre_hook
from torch.optim import Optimizer
from torch.optim.optimizer import register_optimizer_step_pre_hook
from torch.overrides import TorchFunctionMode


@dataclass(eq=False)
class Watched:
    """One training: what the model saw, step by step.

    Attributes
    ----------
    sizes : list of int
        Images of each step.
    order : list of int
        Of every image of every step in turn, its place among the different ones.
    labels : list of Tensor
        (b,) int64 of each step; empty where the loss was no cross-entropy of torch.
    optimiser : str
        Class of the optimiser.
    lr, momentum, weight_decay : float
        Its settings at the first step, 0 where it has none.
    """

    sizes: list[int] = field(default_factory=list)
    order: list[int] = field(default_factory=list)
    labels: list[Tensor] = field(default_factory=list)
    optimiser: str = ""
    lr: float = 0.0
    momentum: float = 0.0
    weight_decay: float = 0.0
    different: dict[bytes, tuple[int, Tensor]] = field(default_factory=dict, repr=False)

    @property
    def steps(self) -> int:
        """Steps of the optimiser."""
        return len(self.sizes)

    @property
    def plain(self) -> bool:
        """Whether a step is -lr times the gradient: SGD without decay or momentum; of this the first step has none."""
        return self.optimiser == "SGD" and not self.weight_decay and (not self.momentum or self.steps == 1)

    def add(self, images: Tensor) -> None:
        """Write a step's images (b, C, H, W) down; an image that comes again, in another epoch, is kept once."""
        self.sizes.append(len(images))
        for image in images:
            key = hashlib.blake2b(image.numpy().tobytes(), digest_size=16).digest()
            self.order.append(self.different.setdefault(key, (len(self.different), image))[0])

    def unique(self) -> tuple[Tensor, Tensor | None]:
        """Different images (N, C, H, W), as the model took them, and their labels (N,) where these are known."""
        images = torch.stack([image for _, image in self.different.values()])
        if len(self.labels) != self.steps:
            return images, None
        labels = torch.zeros(len(images), dtype=torch.int64)
        labels[torch.tensor(self.order)] = torch.cat(self.labels)
        return images, labels


class Watch(TorchFunctionMode):
    """Within ``with Watch(model) as watch: ...`` each step of an optimiser on such a model is written down.

    A model counts as such by its class's name and its parameters' shapes. `take` gives what was seen since it was
    called last. Passes in eval mode or without gradients are no steps.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.kind, self.shapes = type(model).__name__, [tuple(p.shape) for p in model.parameters()]
        self.seen, self._images, self._labels = Watched(), [], []
        self._handles: list[Any] = []

    def take(self) -> Watched:
        """What was seen since the last call."""
        seen, self.seen, self._images, self._labels = self.seen, Watched(), [], []
        return seen

    def __enter__(self) -> Watch:
        self._handles = [register_module_forward_pre_hook(self._forward), register_optimizer_step_pre_hook(self._step)]
        super().__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        super().__exit__(kind, error, trace)
        for handle in self._handles:
            handle.remove()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = {**dict(zip(("input", "target"), args, strict=False)), **(kwargs or {})}
        if func in (F.cross_entropy, F.nll_loss) and torch.is_grad_enabled() and "target" in given:
            target = given["target"].detach()
            if target.ndim == 1 and not target.is_floating_point():
                self._labels.append(target.cpu().clone())
        return func(*args, **(kwargs or {}))

    def _forward(self, module: nn.Module, given: tuple[Any, ...]) -> None:
        like = type(module).__name__ == self.kind and module.training and torch.is_grad_enabled()
        pictures = bool(given) and isinstance(given[0], Tensor) and given[0].ndim == 4
        if like and pictures and [tuple(p.shape) for p in module.parameters()] == self.shapes:
            self._images.append(given[0].detach().cpu().clone())

    def _step(self, optimiser: Optimizer, _args: Any, _kwargs: Any) -> None:
        if not self._images:
            return
        seen, first, images = self.seen, optimiser.param_groups[0], torch.cat(self._images)
        if not seen.steps:
            seen.optimiser = type(optimiser).__name__
            seen.lr, seen.momentum = float(first.get("lr", 0.0)), float(first.get("momentum", 0.0))
            seen.weight_decay = float(first.get("weight_decay", 0.0))
        seen.add(images)
        if self._labels and sum(map(len, self._labels)) == len(images):
            seen.labels.append(torch.cat(self._labels))
        self._images, self._labels = [], []
