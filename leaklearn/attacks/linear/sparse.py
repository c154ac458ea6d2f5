"""Sparse vectors in the column space of a matrix: two ways to find the columns of dL/dZ.

The gradient of a fully connected layer gives the space that the columns of dL/dZ span, but not the columns; what tells
them apart is that ReLU made about half of their entries zero. Given an orthonormal basis A (m, b) of that space, both
searches look for q with many zeros in A q.
"""

from __future__ import annotations

import torch
from torch import Tensor

# Entries below this share of the largest count as zero: float32 leaves 1e-6, entries of a ReLU layer are seldom < 1e-3.
ZERO = 1e-4
# Kernels or restarts computed in one batched call: about 32 MiB of float64 for the matrices.
VALUES_AT_ONCE = 4_000_000
# Of `reweighted`: at batch 32 and 512 neurons a faster fall of epsilon (0.8), or one that begins at a tenth, finds half
# as many directions; a slower one (0.9) finds a tenth more.
STEPS, DECAY = 60, 0.85


def sample_kernels(
    basis: Tensor, count: int, least: int, generator: torch.Generator, found: Tensor | None = None
) -> Tensor:
    """SPEAR's search: kernels of random (b - 1, b) submatrices (Dimitrov et al., NeurIPS 2024, section 3.3).

    If the b - 1 chosen rows are all zero in column j of dL/dZ, their kernel is that column's q. With half of the
    entries zero, that happens once in 2^(b-1) samples for each column.

    Parameters
    ----------
    basis
        (m, b).
    count
        Submatrices to sample.
    least
        Zeros that A q must have to be kept; a kernel of wrong rows has b - 1.
    generator
        Of the rows.
    found
        Directions that are known already; samples do not depend on them.

    Returns
    -------
    Tensor
        (R, b) unit vectors, with repeats.
    """
    rows, size = basis.shape
    at_once = max(1, VALUES_AT_ONCE // (size * size + rows))
    # Below, the last entry of q is set to 1; after a random rotation it is 0 for no column.
    turn = torch.linalg.qr(torch.randn(size, size, generator=generator, dtype=torch.float64)).Q.to(basis)
    turned, kept = basis @ turn, []
    for begin in range(0, count, at_once):
        samples = min(at_once, count - begin)
        chosen = torch.rand(samples, rows, generator=generator).topk(size - 1, dim=1).indices.to(basis.device)
        matrix = turned[chosen]
        # The kernel is the solution of a square system; it is singular, and skipped, where the rows are dependent.
        solved, info = torch.linalg.solve_ex(matrix[:, :, :-1], -matrix[:, :, -1:])
        q = torch.cat([solved.squeeze(2), solved.new_ones(samples, 1)], 1)[info == 0]
        q = q @ turn.T / q.norm(dim=1, keepdim=True)
        kept.append(q[zeros(basis, q) >= least])
    return torch.cat(kept)


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
    O(m b^2 + b^3).

    Parameters and result as in `sample_kernels`; `count` is the number of starts, `found` (R, b) their directions.
    """
    rows, size = basis.shape
    at_once = max(1, VALUES_AT_ONCE // (rows * size))
    kept = []
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
        kept.append(q[zeros(basis, q) >= least])
    return torch.cat(kept)


def polish(basis: Tensor, directions: Tensor) -> Tensor:
    """The same directions (R, b), each as what its zero rows alone say: the kernel of all of them together."""
    values = (directions @ basis.T).abs()
    rows = (values < ZERO * values.amax(1, keepdim=True)).to(basis.dtype).unsqueeze(2) * basis
    return torch.linalg.eigh(rows.transpose(1, 2) @ rows).eigenvectors[:, :, 0]


def zeros(basis: Tensor, directions: Tensor) -> Tensor:
    """How many entries of A q are zero: (m, b) and (R, b) -> (R,) int64."""
    values = (directions @ basis.T).abs()
    return (values < ZERO * values.amax(1, keepdim=True)).sum(1)


def independent(directions: Tensor, rank: Tensor, most: int, residual: float = 1e-3) -> Tensor:
    """Greedy choice of linearly independent directions, those of least `rank` first.

    Parameters
    ----------
    directions
        (R, b) unit vectors.
    rank
        (R,) the order in which they are tried.
    most
        Stop after so many.
    residual
        Least norm of what a direction adds to the span of those before.

    Returns
    -------
    Tensor
        Positions of the chosen, at most `most`.
    """
    rest = directions.clone()
    left = torch.ones(len(rest), dtype=torch.bool, device=rest.device)
    chosen: list[int] = []
    while len(chosen) < most:
        left &= rest.norm(dim=1) > residual
        if not left.any():
            break
        best = int(torch.where(left, rank.double(), torch.inf).argmin())
        chosen.append(best)
        new = rest[best] / rest[best].norm()
        for _ in range(2):  # once more against rounding
            rest = rest - (rest @ new).unsqueeze(1) * new
    return torch.tensor(chosen, dtype=torch.int64, device=rest.device)
