"""Epsilon of the Gaussian mechanism: opacus' accountant against closed forms."""

import math

import pytest
from scipy.optimize import brentq
from scipy.stats import norm

from leaklearn.federated.private import ORDERS, epsilon


def exact_delta(eps, mu):
    """Balle and Wang (ICML 2018), theorem 8: delta of a Gaussian mechanism with sensitivity over noise mu."""
    return norm.cdf(mu / 2 - eps / mu) - math.exp(eps + norm.logcdf(-mu / 2 - eps / mu))


@pytest.mark.parametrize(("z", "steps"), [(0.5, 1), (1.0, 10), (4.0, 10), (4.0, 100), (20.0, 100)])
@pytest.mark.parametrize(("neighbours", "sensitivity"), [("replace", 2), ("add_remove", 1)])
def test_bounds_the_exact_epsilon_and_is_near_it(z, steps, neighbours, sensitivity):
    """T Gaussian releases of sensitivity s are one with mu = s sqrt(T) / z, whose epsilon is known exactly."""
    delta, mu = 1e-4, sensitivity * math.sqrt(steps) / z
    exact = brentq(lambda eps: exact_delta(eps, mu) - delta, 1e-9, 2000)
    found = epsilon(z, steps=steps, delta=delta, neighbours=neighbours)
    assert exact <= found <= 1.2 * exact + 0.05


@pytest.mark.parametrize("z", [0.003, 0.01, 0.1, 1.0, 10.0])
def test_agrees_with_renyi_by_hand(z):
    """The plain conversion eps = alpha T / (2 z^2) + log(1/delta) / (alpha - 1) is minimal at a known alpha."""
    delta, steps = 1 / 3840, 10
    rho = steps / (2 * z**2)
    plain = rho + 2 * math.sqrt(rho * math.log(1 / delta))
    tight = min(
        alpha * rho + math.log((alpha - 1) / alpha) - (math.log(delta) + math.log(alpha)) / (alpha - 1)
        for alpha in [1 + 10 ** (k / 200) for k in range(-1200, 700)]
    )
    found = epsilon(z, steps=steps, delta=delta, neighbours="add_remove")
    assert found <= plain * 1.001
    assert max(tight, 0) * 0.999 <= found <= max(tight, 0) * 1.01 + 1e-3


def test_more_noise_fewer_rounds_and_secret_samples_help():
    base = epsilon(1.0, steps=10, delta=1e-4)
    assert epsilon(2.0, steps=10, delta=1e-4) < base < epsilon(1.0, steps=20, delta=1e-4)
    assert epsilon(1.0, steps=10, delta=1e-4, sample_rate=0.1, neighbours="add_remove") < base
    assert epsilon(2.0, steps=10, delta=1e-4) == epsilon(1.0, steps=10, delta=1e-4, neighbours="add_remove")
    assert epsilon(1.0, steps=10, delta=1e-6) > base
    assert epsilon(1.0, steps=0, delta=1e-4) == 0
    assert epsilon(0, steps=3, delta=1e-4) == math.inf
    assert sorted(set(ORDERS)) == sorted(ORDERS)
    assert min(ORDERS) > 1


def test_small_sample_rates_go_with_their_square():
    """For little sampling, RDP is about q^2 alpha / z^2 (Abadi et al. 2016, lemma 3): ten times rarer, 100 times as
    many steps, about the same epsilon."""
    rare = {"delta": 1e-5, "neighbours": "add_remove"}
    often = epsilon(4.0, steps=100, sample_rate=0.01, **rare)
    seldom = epsilon(4.0, steps=10_000, sample_rate=0.001, **rare)
    assert seldom == pytest.approx(often, rel=0.05)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"multiplier": -1.0}, "multiplier is -1.0"),
        ({"multiplier": math.nan}, "multiplier is nan"),
        ({"steps": -1}, "steps is -1"),
        ({"steps": 1.5}, "steps is 1.5"),
        ({"delta": 0.0}, "delta is 0.0"),
        ({"sample_rate": 0.0}, "sample_rate is 0.0"),
        ({"sample_rate": 0.5}, "sample_rate is 0.5: .* 'add_remove' there"),
        ({"neighbours": "other"}, "neighbours is 'other'"),
    ],
)
def test_bad_numbers_are_named(change, message):
    settings = {"multiplier": 1.0, "steps": 10, "delta": 1e-4, **change}
    with pytest.raises(ValueError, match=message):
        epsilon(settings.pop("multiplier"), **settings)
