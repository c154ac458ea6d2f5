"""Exponential moving average of a model's weights."""

from __future__ import annotations

from copy import deepcopy

import torch
from torch import nn


class Average:
    """Average of a model over its training steps, to be evaluated instead of the last step's weights.

    After step t = 0, 1, ... the average moves by 1 - d_t towards the model, d_t = min(decay, (1 + t) / (10 + t)): the
    growing decay keeps a short training from being dominated by its first, random weights. Batch norm's running
    statistics are averaged alike; whole numbers are copied.

    Parameters
    ----------
    model
        The model to follow; the average starts as a copy of it.
    decay
        Between 0 and 1.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.model = deepcopy(model).requires_grad_(False)
        self.decay = decay
        self.steps = 0

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        """Take one more step of ``model`` into the average."""
        decay = min(self.decay, (1 + self.steps) / (10 + self.steps))
        self.steps += 1
        latest = model.state_dict()
        for name, value in self.model.state_dict().items():  # these share memory with the average's own tensors
            if value.is_floating_point():
                value.lerp_(latest[name].to(value.dtype), 1 - decay)
            else:
                value.copy_(latest[name])
