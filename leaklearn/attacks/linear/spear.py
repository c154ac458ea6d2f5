"""SPEAR: exact images from an honest fully connected ReLU layer (Dimitrov et al., NeurIPS 2024, arXiv 2403.03945).

The server sends its ordinary network and only reads the answer. For a first layer Z = W X + c with inputs X (n, b) and
ReLU behind it,

    dL/dW = dL/dZ X^T      (m, n), of rank at most b
    dL/dc = dL/dZ 1        (m,)

A singular value decomposition gives dL/dW = L R with L (m, b); hence dL/dZ = L Q and X^T = Q^-1 R for some invertible Q
(theorem 3.1 there). The columns of Q are those directions q for which L q is sparse (`leaklearn.attacks.linear.sparse`
looks for them), each up to a factor; the factors follow from L Q 1 = dL/dc. Whether an image is right can be told
without the truth: it must activate the neurons that have a gradient, and no others.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass

import torch
from torch import Tensor, nn

from leaklearn.attacks.linear.sparse import independent, polish, reweighted, sample_kernels, zeros
from leaklearn.federated.exchange import Payload, Updates
from leaklearn.leaks import Leak

SEARCHES = {"sample": sample_kernels, "reweight": reweighted}
# Singular values below this share of the largest are rounding of float32 updates.
RANK_TOLERANCE = 1e-5
# Rows of the gradient smaller than this share of the largest belong to neurons that no image activates.
DEAD = 1e-6
# Share of the neurons at which activation and gradient must agree for an image to be believed.
AGREEMENT = 0.98
# Pixels may leave [0, 1] by so much.
RANGE_SLACK = 0.02


@dataclass(frozen=True)
class Spear:
    """Settings of the attack.

    Attributes
    ----------
    search : str
        ``"sample"``: kernels of random submatrices, as published; its cost doubles with each image. ``"reweight"``:
        reweighted least squares, whose cost is polynomial.
    tries : int
        Submatrices, or starts, in one attempt.
    attempts : int
        After each attempt the images are tested; the search ends when all are right, or after so many.
    sparsity : float
        Least share of zeros that makes a direction a candidate.
    seed : int
        Of the search.

    Raises
    ------
    ValueError
        For an unknown search or a number out of range.
    """

    search: str = "reweight"
    tries: int = 64
    attempts: int = 16
    sparsity: float = 0.1
    seed: int = 0

    def __post_init__(self) -> None:
        if self.search not in SEARCHES:
            raise ValueError(f"unknown search {self.search!r}; choose one of {', '.join(SEARCHES)}")
        if self.tries < 1 or self.attempts < 1 or not 0 < self.sparsity < 1:
            raise ValueError(f"tries {self.tries} and attempts {self.attempts} are at least 1, sparsity in (0, 1)")

    def reconstruct(self, payload: Payload, updates: Updates, round: int = 0) -> Leak:
        """Images of single clients' FedSGD updates.

        Parameters
        ----------
        payload
            An honest network whose first layer is fully connected with ReLU behind it (`leaklearn.models`: "mlp" with
            norm "none").
        updates
            Gradients of single clients.
        round
            Written into the leak.

        Returns
        -------
        Leak
            The images that pass the test of agreement, on the CPU, without labels; confidence is the share of neurons
            that agree, bin the position within the client's batch as found.

        Raises
        ------
        ValueError
            For another first layer, sums over clients or weight differences.
        """
        if updates.summed or updates.kind != "gradient":
            raise ValueError(f"{updates!r}: the images are in the gradient of a single client")
        name = first_layer(payload.model)
        weight, bias = (payload.parameters[f"{name}.{part}"].double() for part in ("weight", "bias"))
        generator = torch.Generator().manual_seed(self.seed)
        parts = []
        # One client after another: each is a search of its own size, batched over its tries.
        for row in range(len(updates)):
            gradients = (updates.tensors[f"{name}.{part}"][row].double() for part in ("weight", "bias"))
            inputs, agreement = self.recover(*gradients, weight, bias, generator)
            images = _denormalise(inputs, payload)
            kept = (agreement >= AGREEMENT) & (images.amin(1) >= -RANGE_SLACK) & (images.amax(1) <= 1 + RANGE_SLACK)
            parts.append((images[kept].clamp(0, 1).cpu(), agreement[kept].cpu(), row, kept.nonzero().flatten().cpu()))
        images, confidence, _, position = (
            torch.cat(x) if i != 2 else x for i, x in enumerate(zip(*parts, strict=True))
        )
        client = torch.cat([updates.clients[row].expand(len(found)) for found, _, row, _ in parts])
        shape = tuple(payload.model.shape)
        meta = {"attack": type(self).__name__, **asdict(self), "round": round, "clients": len(updates)}
        columns = (confidence.float(), client, torch.full_like(client, round), position)
        return Leak(images.float().unflatten(1, shape).contiguous(), *columns, meta=meta)

    def recover(
        self, weight_gradient: Tensor, bias_gradient: Tensor, weight: Tensor, bias: Tensor, generator: torch.Generator
    ) -> tuple[Tensor, Tensor]:
        """Inputs of the layer from its gradient, all float64.

        Parameters
        ----------
        weight_gradient, bias_gradient
            (m, n) and (m,).
        weight, bias
            (m, n) and (m,) of the layer, for the test of agreement.
        generator
            Of the search.

        Returns
        -------
        tuple of Tensor
            Inputs (b, n), with b the rank of the gradient, in no order, and the share (b,) of the live neurons that
            each activates exactly where its column of dL/dZ is not zero. Empty if fewer than b directions were found:
            without all of Q no input can be told.
        """
        left, values, right = torch.linalg.svd(weight_gradient, full_matrices=False)
        rank = int((values > RANK_TOLERANCE * values[0]).sum()) if values[0] > 0 else 0
        left, span = left[:, :rank], values[:rank, None] * right[:rank]
        nothing = weight_gradient.new_zeros(0, weight_gradient.shape[1]), weight_gradient.new_zeros(0)
        sizes = weight_gradient.norm(dim=1)
        live = sizes > DEAD * sizes.max()
        if rank == 0 or int(live.sum()) < rank:
            return nothing
        # Rows of equal length, so that no neuron outshouts the others in the search.
        basis, triangle = torch.linalg.qr(left[live] / left[live].norm(dim=1, keepdim=True))
        found = known = basis.new_zeros(0, rank)
        best = nothing
        least = max(rank, round(self.sparsity * len(basis)))
        for _ in range(self.attempts):
            found = torch.cat([found, SEARCHES[self.search](basis, self.tries, least, generator, known)])
            found = polish(basis, found[different(found, basis)])
            known = found[independent(found, -zeros(basis, found), rank)]
            if len(known) < rank:
                continue
            q = torch.linalg.solve_triangular(triangle, known.T, upper=True)
            factors = torch.linalg.solve(q, left.T @ bias_gradient)
            columns, inputs = left @ (q * factors), torch.linalg.solve(q * factors, span)
            agreement = _agreement(columns[live], (weight @ inputs.T + bias.unsqueeze(1))[live])
            if len(best[1]) == 0 or agreement.sum() > best[1].sum():
                best = inputs, agreement
            if agreement.min() >= AGREEMENT:
                break
            # A mixture of two columns is sparse too, and spoils the inputs of both: the next attempt goes without it.
            known = known[agreement >= AGREEMENT]
        return best


def different(found: Tensor, basis: Tensor) -> Tensor:
    """Positions of different directions, the sparsest of each first."""
    order = zeros(basis, found).argsort(descending=True, stable=True)
    alike = (found[order] @ found[order].T).abs() > 1 - 1e-6
    return order[~alike.tril(-1).any(1)]


def first_layer(model: nn.Module) -> str:
    """Name of the first layer, which must be fully connected and have ReLU behind it.

    Raises
    ------
    ValueError
        If it is not.
    """
    modules = [(name, module) for name, module in model.named_modules() if not list(module.children())]
    begin = next((i for i, (_, module) in enumerate(modules) if list(module.parameters())), len(modules))
    kinds = [type(module) for _, module in modules[begin : begin + 2]]
    if len(kinds) == 2 and issubclass(kinds[0], nn.Linear) and issubclass(kinds[1], nn.ReLU):
        return modules[begin][0]
    raise ValueError(
        f"the first layer of {type(model).__name__} is not fully connected with ReLU right behind it: "
        "build('mlp', ..., norm='none', activation='relu') is"
    )


def _agreement(columns: Tensor, before: Tensor) -> Tensor:
    """Share of neurons (m, b) at which the gradient is not zero just where the pre-activation is positive."""
    columns = columns.abs()
    return ((columns > 1e-4 * columns.amax(0)) == (before > 0)).double().mean(0)


def _denormalise(inputs: Tensor, payload: Payload) -> Tensor:
    """Layer inputs (b, d) back to images in [0, 1]."""
    mean, std = (payload.buffers[f"normalise.{name}"].double() for name in ("mean", "std"))
    return (inputs.unflatten(1, tuple(payload.model.shape)) * std + mean).flatten(1)
