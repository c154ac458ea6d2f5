"""SPEAR: exact images from an honest fully connected ReLU layer (Dimitrov et al., NeurIPS 2024, arXiv 2403.03945).

The server sends its ordinary network and only reads the answer. For a first layer Z = W X + c with inputs X (n, b) and
ReLU behind it,

    dL/dW = dL/dZ X^T      (m, n), of rank at most b
    dL/dc = dL/dZ 1        (m,)

A singular value decomposition gives dL/dW = L R with L (m, b); hence dL/dZ = L Q and X^T = Q^-1 R for some invertible Q
(theorem 3.1 there). The columns of Q are those directions q for which L q is sparse, for ReLU made about half of the
entries of dL/dZ zero; each is found up to a factor, and the factors follow from L Q 1 = dL/dc. Whether an image is
right can be told without the truth: it must activate the neurons that have a gradient, and no others.

Given an orthonormal basis A (m, b) of the space of L, two searches look for q with many zeros in A q.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from math import prod

import torch
from torch import Tensor, nn

from leaklearn.attacks.linear.base import finite_neurons
from leaklearn.data.images import ImageSet
from leaklearn.federated.exchange import Payload, Updates
from leaklearn.leaks import Leak

# Singular values below this share of the largest are rounding of float32 updates.
RANK_TOLERANCE = 1e-5
# Rows of the gradient smaller than this share of the largest belong to neurons that no image activates.
DEAD = 1e-6
# Entries below this share of the largest count as zero: float32 leaves 1e-6, entries of a ReLU layer are seldom < 1e-3.
ZERO = 1e-4
# Least share of zeros that makes a direction a candidate.
SPARSITY = 0.1
# Least norm of what an independent direction adds to the span of those before.
RESIDUAL = 1e-3
# Share of the neurons at which activation and gradient must agree for an image to be believed.
AGREEMENT = 0.98
# Pixels may leave [0, 1] by so much.
RANGE_SLACK = 0.02
# Kernels or restarts computed in one batched call: about 32 MiB of float64 for the matrices.
VALUES_AT_ONCE = 4_000_000
# Of `reweighted`: at batch 32 and 512 neurons a faster fall of epsilon (0.8), or one that begins at a tenth, finds half
# as many directions; a slower one (0.9) finds a tenth more.
STEPS, DECAY = 60, 0.85


@dataclass(frozen=True)
class Spear:
    """Settings of the attack."""

    # "sample": kernels of random submatrices, as published; its cost doubles with each image. "reweight": reweighted
    # least squares, whose cost is polynomial.
    search: str = "reweight"
    tries: int = 64  # submatrices, or starts, in one attempt
    attempts: int = 16  # after each the images are tested; the search ends when all are right, or after so many

    source = 'Dimitrov et al., "SPEAR", NeurIPS 2024, arXiv 2403.03945; reweighted search: ours'
    reads = None

    def __post_init__(self) -> None:
        if self.search not in SEARCHES:
            raise ValueError(f"unknown search {self.search!r}; choose one of {', '.join(SEARCHES)}")
        if self.tries < 1 or self.attempts < 1:
            raise ValueError(f"tries {self.tries} and attempts {self.attempts} are at least 1")

    @property
    def name(self) -> str:
        return "spear" if self.search == "sample" else "spear_reweighted"

    def payload(self, model: nn.Module, public: ImageSet) -> Payload:
        """The honest model; its first layer must be fully connected with ReLU behind it: "mlp" with norm "none"."""
        first_layer(model)
        return Payload.of(model)

    def reconstruct(self, payload: Payload, updates: Updates, *, seed: int = 0) -> Leak:
        """Images of single clients' FedSGD updates of an honest network; `seed` is of the search.

        Returns the images that pass the test of agreement, on the CPU, without labels; confidence is the share of
        neurons that agree, bin the position within the client's batch as found. A ValueError refuses another first
        layer (see `payload`), sums over clients and weight differences.
        """
        if updates.summed or updates.kind != "gradient":
            raise ValueError(f"{updates!r}: the images are in the gradient of a single client")
        name = first_layer(payload.model)
        layer = [payload.parameters[f"{name}.{part}"].double() for part in ("weight", "bias")]
        sent = layer_update(self.name, updates, name)
        mean, std = (payload.buffers[f"normalise.{name}"].double() for name in ("mean", "std"))
        generator = torch.Generator().manual_seed(seed)
        parts = []
        # One client after another: each is a search of its own size, batched over its tries.
        for row, client in enumerate(updates.clients):
            inputs, agreement = self.recover(*(value[row].double() for value in sent), *layer, generator)
            images = (inputs.unflatten(1, tuple(payload.model.shape)) * std + mean).flatten(1)  # in [0, 1]
            good = (agreement >= AGREEMENT) & (images.amin(1) >= -RANGE_SLACK) & (images.amax(1) <= 1 + RANGE_SLACK)
            position = good.nonzero().flatten()
            parts.append((images[good].clamp(0, 1), agreement[good], client.expand(len(position)), position))
        images, agreement, client, position = (torch.cat(column).cpu() for column in zip(*parts, strict=True))
        images = images.float().unflatten(1, tuple(payload.model.shape)).contiguous()
        meta = {"attack": self.name, **asdict(self), "seed": seed, "clients": len(updates)}
        return Leak(images, agreement.float(), client, torch.zeros_like(client), position, meta=meta)

    def recover(
        self, weight_gradient: Tensor, bias_gradient: Tensor, weight: Tensor, bias: Tensor, generator: torch.Generator
    ) -> tuple[Tensor, Tensor]:
        """Inputs of the layer from its gradient, all float64: weights (m, n), biases (m,).

        Returns inputs (b, n), with b the rank of the gradient, in no order, and the share (b,) of the live neurons that
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
        least = max(rank, round(SPARSITY * len(basis)))
        for _ in range(self.attempts):
            found = torch.cat([found, SEARCHES[self.search](basis, self.tries, least, generator, known)])
            # Of directions that are alike the sparsest.
            found = found[zeros(basis, found).argsort(descending=True, stable=True)]
            alike = (found @ found.T).abs() > 1 - 1e-6
            found = polish(basis, found[~alike.tril(-1).any(1)])
            known = found[independent(found, -zeros(basis, found), rank)]
            if len(known) < rank:
                continue
            q = torch.linalg.solve_triangular(triangle, known.T, upper=True)
            factors = torch.linalg.solve(q, left.T @ bias_gradient)
            columns, inputs = left @ (q * factors), torch.linalg.solve(q * factors, span)
            passed = columns[live].abs() > ZERO * columns[live].abs().amax(0)
            agreement = (passed == ((weight @ inputs.T + bias.unsqueeze(1))[live] > 0)).double().mean(0)
            if len(best[1]) == 0 or agreement.sum() > best[1].sum():
                best = inputs, agreement
            if agreement.min() >= AGREEMENT:
                break
            # A mixture of two columns is sparse too, and spoils the inputs of both: the next attempt goes without it.
            known = known[agreement >= AGREEMENT]
        return best


def sample_kernels(
    basis: Tensor, count: int, least: int, generator: torch.Generator, found: Tensor | None = None
) -> Tensor:
    """SPEAR's search: kernels of random (b - 1, b) submatrices (Dimitrov et al., NeurIPS 2024, section 3.3).

    If the b - 1 chosen rows are all zero in column j of dL/dZ, their kernel is that column's q. With half of the
    entries zero, that happens once in 2^(b-1) samples for each column.

    `basis` is A (m, b), `count` how many submatrices are sampled. Returned are unit vectors (R, b), with repeats, for
    which A q has at least `least` zeros; a kernel of wrong rows has b - 1. Directions `found` (F, b) that are known
    already make no difference.
    """
    rows, size = basis.shape
    at_once = max(1, VALUES_AT_ONCE // (size * size + rows))
    # Below, the last entry of q is set to 1; after a random rotation it is 0 for no column.
    turn = torch.linalg.qr(torch.randn(size, size, generator=generator, dtype=torch.float64)).Q.to(basis)
    turned, sparse = basis @ turn, []
    for begin in range(0, count, at_once):
        samples = min(at_once, count - begin)
        chosen = torch.rand(samples, rows, generator=generator).topk(size - 1, dim=1).indices.to(basis.device)
        matrix = turned[chosen]
        # The kernel is the solution of a square system; it is singular, and skipped, where the rows are dependent.
        solved, info = torch.linalg.solve_ex(matrix[:, :, :-1], -matrix[:, :, -1:])
        q = torch.cat([solved.squeeze(2), solved.new_ones(samples, 1)], 1)[info == 0]
        q = q @ turn.T / q.norm(dim=1, keepdim=True)
        sparse.append(q[zeros(basis, q) >= least])
    return torch.cat(sparse)


def reweighted(
    basis: Tensor, count: int, least: int, generator: torch.Generator, found: Tensor | None = None
) -> Tensor:
    r"""Sparse vectors by iteratively reweighted least squares, from `count` random starts.

    Minimises :math:`\sum_i |(A q)_i|` over the unit sphere, whose local minima are the sparse columns when A has rows
    enough (Sun, Qu and Wright, "Complete Dictionary Recovery over the Sphere", IEEE Trans. Inf. Theory 2017). That
    dictionary learning takes SPEAR beyond sampling was shown by SPEAR++ (Bakarsky et al., arXiv 2510.24200); the
    iteration below is ours. A start is a random row of A, less its part in the span of what was found before, so that
    each attempt looks for what is missing. One step of inverse iteration is

    .. math:: q \leftarrow M^{-1} q / |M^{-1} q|, \quad M = A^T \mathrm{diag}((A q)_i^2 + \epsilon^2)^{-1/2} A

    with epsilon falling from the root mean square of A q to 1e-4 of it. The cost of a step is polynomial:
    O(m b^2 + b^3). Parameters and result as in `sample_kernels`.
    """
    rows, size = basis.shape
    at_once = max(1, VALUES_AT_ONCE // (rows * size))
    sparse = []
    for begin in range(0, count, at_once):
        start = torch.randint(rows, (min(at_once, count - begin),), generator=generator)
        q = basis[start.to(basis.device)]
        if found is not None and 0 < len(found) < size:
            span = torch.linalg.qr(found.T).Q
            q = q - (q @ span) @ span.T
        q = q / q.norm(dim=1, keepdim=True)
        for step in range(STEPS):
            epsilon = DECAY**step / rows**0.5
            weight = ((q @ basis.T).square() + epsilon**2).rsqrt()
            matrix = (weight.unsqueeze(2) * basis).transpose(1, 2) @ basis
            q = torch.linalg.solve(matrix, q)
            q = q / q.norm(dim=1, keepdim=True)
        sparse.append(q[zeros(basis, q) >= least])
    return torch.cat(sparse)


SEARCHES = {"sample": sample_kernels, "reweight": reweighted}


def polish(basis: Tensor, directions: Tensor) -> Tensor:
    """The same directions (R, b), each as what its zero rows alone say: the kernel of all of them together."""
    values = (directions @ basis.T).abs()
    rows = (values < ZERO * values.amax(1, keepdim=True)).to(basis.dtype).unsqueeze(2) * basis
    return torch.linalg.eigh(rows.transpose(1, 2) @ rows).eigenvectors[:, :, 0]


def zeros(basis: Tensor, directions: Tensor) -> Tensor:
    """How many entries of A q are zero: (m, b) and (R, b) -> (R,) int64."""
    values = (directions @ basis.T).abs()
    return (values < ZERO * values.amax(1, keepdim=True)).sum(1)


def independent(directions: Tensor, rank: Tensor, most: int) -> Tensor:
    """Greedy choice of linearly independent unit vectors (R, b), those of least `rank` (R,) first: `most` positions."""
    rest = directions.clone()
    left = torch.ones(len(rest), dtype=torch.bool, device=rest.device)
    chosen: list[int] = []
    while len(chosen) < most:
        left &= rest.norm(dim=1) > RESIDUAL
        if not left.any():
            break
        best = int(torch.where(left, rank.double(), torch.inf).argmin())
        chosen.append(best)
        new = rest[best] / rest[best].norm()
        for _ in range(2):  # once more against rounding
            rest = rest - (rest @ new).unsqueeze(1) * new
    return torch.tensor(chosen, dtype=torch.int64, device=rest.device)


def layer_update(name: str, updates: Updates, layer: str) -> tuple[Tensor, Tensor]:
    """What came back of a layer, weight (K, n, d) and bias (K, n), see `finite_neurons`; `name` is the attack's.

    A ValueError says that nothing came back.
    """
    lacking = [part for part in ("weight", "bias") if f"{layer}.{part}" not in updates.tensors]
    if lacking:
        raise ValueError(
            f"the updates lack {lacking[0]} of {layer!r}, which images are read from: it is frozen, so that clients "
            "send nothing of it, or left out by respond(only=...)"
        )
    return finite_neurons(name, updates, *(updates.tensors[f"{layer}.{part}"] for part in ("weight", "bias")))


def first_layer(model: nn.Module) -> str:
    """Name of the first layer, which must be fully connected and have ReLU behind it, else a ValueError is raised.

    Also where the layer registered first does not take as many numbers as an image of the model's own `shape` has.
    """
    modules = [(name, module) for name, module in model.named_modules() if not list(module.children())]
    begin = next((i for i, (_, module) in enumerate(modules) if list(module.parameters())), len(modules))
    kinds = [type(module) for _, module in modules[begin : begin + 2]]
    if len(kinds) == 2 and issubclass(kinds[0], nn.Linear) and issubclass(kinds[1], nn.ReLU):
        name, layer = modules[begin]
        shape = getattr(model, "shape", None)
        if shape is None or layer.in_features == prod(shape):
            return name
    raise ValueError(
        f"the first layer of {type(model).__name__} is not fully connected with ReLU right behind it: "
        "build('mlp', ..., norm='none', activation='relu') is"
    )
