"""How far a simulated update is from the one that the client sent: one number for each of K clients.

Every objective takes two states of equal names and shapes, the simulated g and the target t, each (K, ...), and returns
(K,), 0 where they agree. Sums run over all entries of all parameters of a client unless said otherwise.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

State = dict[str, Tensor]

# Guards a norm of zero; far below any that float32 updates have.
TINY = 1e-30


def cosine(g: State, t: State) -> Tensor:
    """1 - <g, t> / (|g| |t|), all parameters as one vector (Geiping et al., NeurIPS 2020, eq. 4); 0..2."""
    return _Cosine.apply(squares(t), list(t.values()), *(g[name] for name in t))


class _Cosine(torch.autograd.Function):
    """With c = <g, t> / (|g| |t|) the derivative by g is c g / |g|^2 - t / (|g| |t|). Written out, the update's many
    numbers are read a third as often as automatic differentiation would."""

    @staticmethod
    def forward(ctx, target_squares: Tensor, target: list[Tensor], *g: Tensor) -> Tensor:
        product = sum(dot(a, b) for a, b in zip(g, target, strict=True))
        own = sum(dot(a, a) for a in g).clamp_min(TINY)
        norms = (own * target_squares).clamp_min(TINY).sqrt()
        ctx.save_for_backward(product, own, norms, *g)
        ctx.target = target
        return 1 - product / norms

    @staticmethod
    @once_differentiable
    def backward(ctx, by_value: Tensor) -> tuple:
        product, own, norms, *g = ctx.saved_tensors
        of_target, of_own = -by_value / norms, by_value * product / (norms * own)
        found = []
        for a, b in zip(g, ctx.target, strict=True):
            shape = (-1, *[1] * (a.ndim - 1))
            found.append(torch.mul(b, of_target.view(shape)).addcmul_(a, of_own.view(shape)))
        return None, None, *found


def euclidean(g: State, t: State) -> Tensor:
    """|g - t|^2 (Zhu et al., NeurIPS 2019, eq. 4)."""
    return squares({name: g[name] - t[name] for name in t})


def layer_norms(g: State, t: State) -> Tensor:
    """sum_l |g_l - t_l|, norms not squared, parameter by parameter (Yin et al., CVPR 2021, eq. 3)."""
    return sum((squares({name: g[name] - t[name]}) + TINY).sqrt() for name in t)


def layer_cosine(g: State, t: State) -> Tensor:
    """Mean over the parameters of 1 - cosine; 0..2. Every layer counts alike, however small its gradient."""
    return sum(cosine({name: g[name]}, {name: t[name]}) for name in t) / len(t)


def layer_euclidean(g: State, t: State) -> Tensor:
    """Mean over the parameters of |g_l - t_l|^2 / |t_l|^2: every layer counts alike, length and direction."""
    return sum(squares({n: g[n] - t[n]}) / squares({n: t[n]}).clamp_min(TINY) for n in t) / len(t)


_ALL = (cosine, euclidean, layer_norms, layer_cosine, layer_euclidean)
OBJECTIVES: dict[str, Callable[[State, State], Tensor]] = {function.__name__: function for function in _ALL}


def largest_entries(t: State, share: float) -> State:
    """Masks (K, ...) of 0 and 1 that keep a client's `share` of entries of largest magnitude, over all parameters.

    Partial gradient matching: what a sparsifying client drops, or noise drowns, is not matched. After the idea of
    FedLeak (Fan et al., USENIX Security 2025, arXiv 2506.08435), whose own choice of entries we could not check.
    """
    flat = torch.cat([value.flatten(1).abs() for value in t.values()], 1)
    kept = max(1, round(share * flat.shape[1]))
    least = flat.topk(kept, 1).values[:, -1]
    return {name: (v.abs() >= least.view(-1, *[1] * (v.ndim - 1))).to(v.dtype) for name, v in t.items()}


def dot(a: Tensor, b: Tensor) -> Tensor:
    """Inner product client by client: (K, ...) and (K, ...) -> (K,)."""
    return torch.bmm(a.flatten(1).unsqueeze(1), b.flatten(1).unsqueeze(2)).view(-1)


def squares(state: State) -> Tensor:
    """Squared norm of all parameters together: (K,)."""
    return sum(dot(value, value) for value in state.values())
