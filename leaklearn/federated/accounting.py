"""What a noise multiplier guarantees: (epsilon, delta) from opacus' accountant.

A mechanism is (epsilon, delta)-differentially private when, for any two data sets that differ in one record, no set of
outputs is more than exp(epsilon) times as likely under one than under the other, up to delta (Dwork and Roth 2014). The
record is an image under `PrivateSGD` and a whole client under `GaussianNoise`.
"""

from __future__ import annotations

from math import inf

# Orders of Rényi differential privacy. Little noise, and so a large epsilon, has its best order close above 1, where
# opacus' own list (1.1 to 63) is too coarse: eps(alpha) = alpha T / (2 z^2) + ..., minimal at about
# alpha = 1 + z sqrt(2 log(1/delta) / T).
ORDERS = [1 + 2.0**-power * part for power in range(14, 0, -1) for part in (1.0, 1.19, 1.41, 1.68)]
ORDERS += [2 + x / 8 for x in range(64)] + [float(x) for x in range(10, 65)] + [80.0, 128.0, 256.0, 512.0, 1024.0]


def epsilon(multiplier: float, *, steps: int, delta: float, sample_rate: float = 1.0) -> float:
    """Epsilon after `steps` releases of a Gaussian mechanism with this noise multiplier, by opacus' Rényi accountant.

    Mironov (CSF 2017) and, for samples, Mironov et al. (arXiv 1908.10530); turned into (epsilon, delta) as in Balle et
    al. (AISTATS 2020). It holds for any epsilon; opacus' tighter PRV accountant fails for those in the thousands that
    little noise has.

    Parameters
    ----------
    multiplier
        z: standard deviation of the noise over the norm that a record's contribution is clipped to. 0: infinite
        epsilon.
    steps
        How often a record's data were used: rounds that its client took part in, times local steps.
    delta
        In (0, 1); the customary choice is one over the number of records.
    sample_rate
        Probability of a record to be used in a step, drawn secretly and independently (Poisson). 1 where all of a
        client's images are used each time, or where the server knows which ones are: what it knows does not amplify.

    Returns
    -------
    float
        Upper bound, >= 0; infinite without noise.

    Raises
    ------
    ValueError
        For a number out of its range.
    """
    if not multiplier >= 0:
        raise ValueError(f"multiplier is {multiplier!r}; the noise multiplier is at least 0")
    if isinstance(steps, bool) or not isinstance(steps, int) or steps < 0:
        raise ValueError(f"steps is {steps!r}; it is a whole number of at least 0")
    if not 0 < delta < 1:
        raise ValueError(f"delta is {delta!r}; it lies between 0 and 1, at about one over the number of records")
    if not 0 < sample_rate <= 1:
        raise ValueError(f"sample_rate is {sample_rate!r}; it is a probability above 0")
    if steps == 0:
        return 0.0
    if multiplier == 0:
        return inf
    # Here, for importing opacus takes seconds that most of the package never needs.
    from opacus.accountants import RDPAccountant

    accountant = RDPAccountant()
    accountant.history = [(multiplier, sample_rate, steps)]
    return float(accountant.get_epsilon(delta, alphas=ORDERS))
