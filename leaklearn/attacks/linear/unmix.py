"""Two images in one neuron, told apart by the 8-bit grid that both are on.

A neuron that images a and b activate gives the mixture m = lam a + (1 - lam) b with one unknown real lam for all
pixels; a and b are whole grey levels 0..255. With d = a - b,

    m = b + lam d,

so that modulo 1 every pixel is a multiple of lam, and so is every difference of neighbouring pixels. Differences of
neighbours are small multiples: their fractional parts pile up at lam, 2 lam, 3 lam modulo 1, and the highest piles name
lam modulo 1 up to its sign (which only swaps a and b). A straight line through the differences makes it as sharp as
the rounding of m allows; then d follows for each pixel from its fractional part.

What is left is the whole part of lam. Any k gives images b_k = b' - k d and a_k = b_k + d on one line through both;
the right one is where all pixels lie in 0..255. Every pair of whole-numbered images that the mixture may be of lies on
that line, so that the pair is proved where the line has two such points and no third.

Nothing is assumed about a and b but the grid, and nothing is returned that the arithmetic does not prove: a mixture of
three images, or of images off the grid, would have to meet the lattice in each of its pixels by chance.

The method is ours. Nothing like it was found among papers on linear layer leakage up to 2026: they drop collisions
(Fowl et al., ICLR 2022; Zhao et al., IEEE S&P 2024), look again in another round, or subtract images that were alone
elsewhere (Shariati and Meybodi, 2026).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from leaklearn.attacks.linear.verification import LEVELS

STEPS = torch.arange(-LEVELS, LEVELS + 1, dtype=torch.float64)  # what d can be
# Width of a pile of fractional parts; above it a mixture is too noisy to be split anyway.
PILE = 1e-4
MULTIPLES = 12  # of lam that differences of neighbours are looked for at
NEAR_WHOLE = 4 * PILE  # differences nearer to a whole number tell nothing
FEW = 1000  # pixels that are not whole, below which differences of more than neighbours are looked at
TRIES = 4  # candidates for lam that are followed up
HIGH = 9.0  # standard deviations that the piles of a candidate rise above those of any lam: real pairs, 17 to 30
WHOLE = 40  # largest whole part of lam: beyond it one image has less than a fortieth of the other's share
LARGEST_NOISE = 3e-4  # standard deviation of m's rounding, in grey levels, beyond which the lattice is too dense
WINDOW = 6.0  # standard deviations within which a pixel meets the lattice
CANDIDATES = 12  # lattice points within the window of one pixel; more are too many
SURE = 1e-3  # expected number of wrong pixels, or of chance hits, that a pair may have
SHARPEST = 1e-7  # standard deviation below which rounding in float64 shows; grey levels


@dataclass(frozen=True, eq=False)
class Pairs:
    """What became of R mixtures: `found` (R,) bool; where True, images (R, 2, d) uint8 and the share of the first one,
    lam (R,) float64, so that m = lam a + (1 - lam) b. `doubt` (R,) is the expected number of wrong pixels, or the
    logarithm of the probability that another mixture meets the lattice as well, whichever is the larger."""

    found: Tensor
    images: Tensor
    lam: Tensor
    doubt: Tensor


def split_pairs(mixtures: Tensor, shape: tuple[int, int, int]) -> Pairs:
    """Tell two 8-bit images apart that are mixed in one neuron.

    Parameters
    ----------
    mixtures
        (R, d) dW / db of R neurons, in units of the [0, 1] range of images, as rounded by float32 or better.
    shape
        (C, H, W) of the images, d = C*H*W.

    Returns
    -------
    Pairs
        What was split is right as far as arithmetic can tell; all else is not found: three images, images off the
        grid, too much noise, two images that are equal, or whose shares are too near to a fraction such as 1/2.
    """
    count, size = mixtures.shape
    images = torch.zeros(count, 2, size, dtype=torch.uint8)
    lam, doubt = torch.zeros(count, dtype=torch.float64), torch.ones(count, dtype=torch.float64)
    found = torch.zeros(count, dtype=torch.bool)
    for row, mixture in enumerate(mixtures.double().cpu() * LEVELS):
        split = _split(mixture, shape)
        if split is not None:
            found[row] = True
            images[row], lam[row], doubt[row] = torch.stack(split[:2]).to(torch.uint8), split[2], split[3]
    device = mixtures.device
    return Pairs(found.to(device), images.to(device), lam.to(device), doubt.to(device))


def _split(mixture: Tensor, shape: tuple[int, int, int]) -> tuple[Tensor, Tensor, float, float] | None:
    """One mixture (d,) in grey levels: a, b, lam, doubt; None where it cannot be split for certain."""
    if not mixture.isfinite().all():
        return None
    steps, tried = differences(mixture, shape), []
    for part in _piles(steps):
        if any(abs(part - one) < PILE for one in tried):
            continue
        tried.append(part)
        sharp = _sharpen(part, steps)
        if sharp is not None and (split := _decode(mixture, *sharp)) is not None:
            return split
        if len(tried) == TRIES:
            break
    return None


def differences(mixture: Tensor, shape: tuple[int, int, int]) -> Tensor:
    """Differences of a mixture's pixels (d,) that pile up at small multiples of lam modulo 1, in grey levels."""
    picture = mixture.view(shape)
    steps = [picture.diff(dim=axis).flatten() for axis in (1, 2)]
    # Strokes on black: few neighbours differ by little, but pixels of one image alone are as many steps of lam apart.
    drawn = mixture[_distance(mixture).abs() > NEAR_WHOLE].sort().values
    if len(drawn) < FEW:
        steps += [drawn[lag:] - drawn[:-lag] for lag in (1, 2, 3)]
    return torch.cat(steps)


def _distance(values: Tensor) -> Tensor:
    """Signed distance to the nearest whole number, in [-1/2, 1/2]."""
    return values - values.round()


def _piles(steps: Tensor) -> list[float]:
    """Candidates for lam modulo 1, up to sign, in (0, 1/2]: first that with the highest piles at its multiples."""
    parts = _distance(steps).abs()
    parts = parts[parts > NEAR_WHOLE]  # differences of neither image tell nothing
    if len(parts) < 12:
        return []
    width = int(0.5 / PILE)
    counts = F.pad(torch.histc(parts, width, 0.0, 0.5), (1, 1))
    heights = counts[:-2] + counts[1:-1] + counts[2:]
    grid = torch.arange(NEAR_WHOLE, 0.5, PILE / MULTIPLES * 1.5, dtype=torch.float64)
    reach = _distance(grid.unsqueeze(1) * torch.arange(1, MULTIPLES + 1)).abs()
    score = heights[(reach / PILE).long().clamp_max(width - 1)].sum(1)
    # The highest of each neighbourhood.
    peaks = F.max_pool1d(score.view(1, 1, -1), 2 * MULTIPLES + 1, 1, MULTIPLES).flatten()
    high = (score - score.mean()) / score.std().clamp_min(1e-9)
    places = ((score == peaks) & (high >= HIGH) & (score >= 0.6 * score.max())).nonzero().flatten()
    best = places[score[places].argsort(descending=True, stable=True)[: 2 * TRIES]]
    return grid[best].tolist()


def _sharpen(part: float, steps: Tensor) -> tuple[float, float] | None:
    """lam modulo 1 from all differences that it explains, by least squares; and the standard deviation of m's noise."""
    noise = PILE / 2
    for most in (3, 6, 12, 24, 48):
        multiples = STEPS[LEVELS - most : LEVELS + most + 1]
        residual, multiple = _nearest(steps, part, multiples)
        close = (residual.abs() < max(4 * noise, 2e-6)) & (multiple != 0)
        if int(close.sum()) < 8:
            return None
        used = multiple[close]
        part += float((used * residual[close]).sum() / (used * used).sum())
        residual = residual[close] - used * float((used * residual[close]).sum() / (used * used).sum())
        noise = max(float(residual.abs().median()) / 0.6745, SHARPEST)  # bears strangers
    return part, noise / 2**0.5


def _nearest(values: Tensor, part: float, multiples: Tensor) -> tuple[Tensor, Tensor]:
    """For each value the multiple of lam that it is nearest to modulo 1: signed residual, multiple."""
    lattice = (part * multiples) % 1.0
    order = lattice.argsort()
    ring = torch.cat([lattice[order[-1:]] - 1, lattice[order], lattice[order[:1]] + 1])
    owner = torch.cat([order[-1:], order, order[:1]])
    within = values % 1.0
    above = torch.searchsorted(ring, within).clamp(1, len(ring) - 1)
    lower, upper = within - ring[above - 1], ring[above] - within
    residual = torch.where(lower <= upper, lower, -upper)
    return residual, multiples[owner[torch.where(lower <= upper, above - 1, above)]]


def _decode(mixture: Tensor, part: float, noise: float) -> tuple[Tensor, Tensor, float, float] | None:
    """The two images for lam modulo 1, once its whole part is found; None where that is not for certain."""
    # Where the lattice is dense, what is nearest is nearer than what is right: differences are not fooled.
    least = 0.7 * noise
    mixture, part, noise = _refine(mixture, part, noise)
    noise = max(noise, least)
    if noise > LARGEST_NOISE:
        return None
    window = WINDOW * noise
    fits = _wholes(mixture, part, window)
    if fits is None or len(fits) != 1:
        return None
    whole, inside, residual, base, step = fits[0]
    cost = torch.where(inside, (residual / noise) ** 2 / 2, torch.inf)
    order = cost.sort(1)
    best = order.indices[:, :1]
    wrong = float(torch.exp(order.values[:, 0] - order.values[:, 1]).sum()) if cost.shape[1] > 1 else 0.0
    if wrong > SURE:
        return None
    d = step.gather(1, best)[:, 0]
    b = base.gather(1, best)[:, 0] - whole * d
    # If a multiple of lam does as well, lam was taken for a third of what it is, say; or all d are multiples of three,
    # and then there are images between the two that do as well. Near a fraction p / q any multiple may.
    nearly = (_distance(part * STEPS[LEVELS + 2 :]).abs() <= 2 * window).nonzero().flatten()
    most = int(nearly[0]) + 2 if len(nearly) else 0
    order = mixture.argsort()
    some = torch.cat([order[:64], order[64:-64][:: max(1, len(order) // 256)], order[-64:]])
    for multiple in range(2, max(most, MULTIPLES + 1)):
        residual, _ = _nearest(mixture[some], multiple * part % 1.0, STEPS)
        if float((residual.abs() <= 4 * window).double().mean()) < 0.9:  # far from doing as well
            continue
        few, other, _ = _refine(mixture[some], multiple * part % 1.0, noise)
        if _wholes(few, other, window) != []:
            whole_picture, other, _ = _refine(mixture, other, noise)
            if _wholes(whole_picture, other, window) != []:
                return None
    chance = _chance(mixture, part + whole, d, window)
    if chance > SURE:
        return None
    moved = d != 0
    lam = float((d * (mixture - b))[moved].sum() / (d * d)[moved].sum())
    return b + d, b, lam, max(wrong, chance)


def _wholes(mixture: Tensor, part: float, window: float) -> list[tuple] | None:
    """The whole parts of lam with which all pixels are mixtures of two grey levels, to within `window`.

    Each comes with its lattice points: which of them (d, slots) are in range, their residuals, b at whole part 0, and
    a - b. None where a pixel has too many to tell.
    """
    nearest, _ = _nearest(mixture, part, STEPS)
    if float((nearest.abs() > window).double().mean()) > 0.002:
        return []
    lattice = (part * STEPS) % 1.0
    order = lattice.argsort()
    ring = torch.cat([lattice[order] - 1, lattice[order], lattice[order] + 1])
    owner = order.repeat(3)
    within = mixture % 1.0
    first, last = torch.searchsorted(ring, within - window), torch.searchsorted(ring, within + window)
    many = last - first
    if int(many.max()) > CANDIDATES:
        return None
    slot = torch.arange(int(many.max()))
    place = (first.unsqueeze(1) + slot).clamp_max(len(ring) - 1)
    valid = slot < many.unsqueeze(1)
    residual, step = within.unsqueeze(1) - ring[place], STEPS[owner[place]]
    base = (mixture.unsqueeze(1) - residual - part * step).round()

    def inside(wholes: Tensor, which: Tensor | slice = slice(None)) -> Tensor:
        """(K, d, slots) which points have both images in range for these whole parts."""
        one = base[which] - wholes.view(-1, 1, 1) * step[which]
        two = one + step[which]
        return valid[which] & (one >= 0) & (one <= LEVELS) & (two >= 0) & (two <= LEVELS)

    wholes = torch.arange(-WHOLE, WHOLE + 1, dtype=torch.float64)
    # The extreme pixels rule most whole parts out.
    few = min(64, len(mixture))
    ends = torch.cat([mixture.topk(few).indices, (-mixture).topk(few).indices])
    wholes = wholes[inside(wholes, ends).any(2).all(1)]
    found = []
    for whole in wholes:
        points = inside(whole)[0]
        if bool(points.any(1).all()):
            found.append((float(whole), points, residual, base, step))
    return found


def _refine(mixture: Tensor, part: float, noise: float) -> tuple[Tensor, float, float]:
    """lam modulo 1 from all pixels, the mixture without the rounding of db, which is a factor, and the noise left.

    Both are small corrections to the residuals: r = d (change of lam) + m (relative error of db).
    """
    for _ in range(4):
        residual, step = _nearest(mixture, part, STEPS)
        # Wrong multiples are spread evenly over the gaps of the lattice, right ones lie near zero.
        close = (residual.abs() < 8 * noise) & ((step != 0) | (_distance(mixture).abs() > 0))
        if int(close.sum()) < 16:
            break
        columns = torch.stack([step[close], mixture[close] / LEVELS], 1)
        fit = torch.linalg.lstsq(columns, residual[close].unsqueeze(1), driver="gelsd").solution[:, 0]
        part, mixture = part + float(fit[0]), mixture * (1 - float(fit[1]) / LEVELS)
        rest = (residual[close] - columns @ fit).abs()
        # Rounding is larger where pixels are brighter: the tail decides, not the middle.
        noise = max(float(rest.quantile(0.97)) / 2.17, float(rest.quantile(0.998)) / 3.09, SHARPEST)
    return mixture, part, noise


def _chance(mixture: Tensor, lam: float, step: Tensor, window: float) -> float:
    """Probability that pixels which are no mixture of two all meet the lattice, from those that tell anything.

    A pixel that is whole in itself tells nothing. Any other is in the window of one of the lattice's points with
    probability `share`: the points (a, b) that lie within one grey level of it, times the window's width.
    """
    telling = (_distance(mixture).abs() > 4 * window) & (step != 0)
    some = mixture[telling]
    if not len(some):
        return 1.0
    # b = m - lam d and a = b + d in 0..255 bound d from both sides.
    bounds = []
    for share in (lam, lam - 1):
        ends = torch.stack([some / share, (some - LEVELS) / share]) if share else torch.tensor([[-255.0], [255.0]])
        bounds.append((ends.amin(0), ends.amax(0)))
    room = torch.minimum(bounds[0][1], bounds[1][1]) - torch.maximum(bounds[0][0], bounds[1][0])
    share = ((room + 1).clamp(1, 2 * LEVELS + 1) * 2 * window).clamp_max(1.0)
    # lam itself was fitted: as many trials as lam has places where one difference is met.
    trials = 2 * LEVELS / window * 80
    return float(torch.exp((share.log().sum() + torch.tensor(trials, dtype=torch.float64).log()).clamp_max(0.0)))
