"""Optimisers whose rows are independent: against torch's own, on functions whose minimum is known; and schedules."""

from math import cos, pi

import pytest
import torch

from leaklearn.attacks.inversion.steps import STEPS, TRANSFORMS, Adam, Lbfgs, schedule_factor


def quadratics(rows, size=12, condition=100.0, seed=0):
    """(z - c)^T H (z - c) / 2 with another H and c for each row."""
    g = torch.Generator().manual_seed(seed)
    q, _ = torch.linalg.qr(torch.randn(rows, size, size, generator=g, dtype=torch.float64))
    eigenvalues = torch.logspace(0, 1, size, base=condition, dtype=torch.float64) * torch.arange(1, rows + 1).view(
        -1, 1
    )
    h = q @ torch.diag_embed(eigenvalues) @ q.transpose(1, 2)
    c = torch.randn(rows, size, generator=g, dtype=torch.float64)
    return lambda z: torch.einsum("ki,kij,kj->k", z - c, h, z - c) / 2, c


def rosenbrock(z):
    return (100 * (z[:, 1:] - z[:, :-1] ** 2) ** 2 + (1 - z[:, :-1]) ** 2).sum(1)


def evaluate(function, z):
    z = z.detach().requires_grad_()
    value = function(z)
    return value.detach(), torch.autograd.grad(value.sum(), z)[0]


def run(stepper, function, z, steps, lr=1.0):
    """Points evaluated, (steps + 1, K, D)."""
    path = [z]
    for _ in range(steps):
        path.append(stepper.step(path[-1], *evaluate(function, path[-1]), z.new_full((len(z), 1), lr)))
    return torch.stack(path)


def test_adam_is_torchs():
    function, c = quadratics(3)
    z = torch.zeros_like(c)
    path = run(Adam(z), function, z, 20, lr=0.1)
    parameter = z.clone().requires_grad_()
    optimiser = torch.optim.Adam([parameter], lr=0.1)
    for point in path[1:]:
        optimiser.zero_grad()
        function(parameter).sum().backward()
        optimiser.step()
        torch.testing.assert_close(point, parameter.detach(), rtol=1e-12, atol=1e-12)


def test_adam_of_a_row_that_forgets_starts_anew():
    function, c = quadratics(3)
    adam = Adam(c)
    path = run(adam, function, torch.zeros_like(c), 5, lr=0.1)
    adam.forget(torch.tensor([False, True, False]))
    later = run(adam, function, path[-1], 5, lr=0.1)
    unbroken = run(Adam(c), function, torch.zeros_like(c), 10, lr=0.1)
    anew = run(Adam(c), function, path[-1], 5, lr=0.1)
    torch.testing.assert_close(later[:, [0, 2]], unbroken[5:, [0, 2]], rtol=1e-12, atol=0)
    torch.testing.assert_close(later[:, 1], anew[:, 1], rtol=1e-12, atol=0)


def test_lbfgs_finds_the_minimum_of_every_rows_quadratic():
    function, c = quadratics(5)
    path = run(Lbfgs(c), function, torch.zeros_like(c), 150)
    assert float((path[-1] - c).abs().max()) < 1e-8


@pytest.mark.parametrize("size", [2, 10])
def test_lbfgs_finds_the_end_of_rosenbrocks_valley(size):
    start = torch.tensor([[-1.2, 1.0], [0.0, 0.0], [2.0, -1.0]], dtype=torch.float64).repeat(1, size // 2)
    path = run(Lbfgs(start), rosenbrock, start, 400)
    values = torch.stack([rosenbrock(z) for z in path])
    other = 3.99 if size > 2 else 0.0  # beyond two dimensions there is a second minimum (Shang and Qiu 2006)
    assert bool(((values[-1] < 1e-12) | ((values[-1] - other).abs() < 0.01)).all()), values[-1]


def test_lbfgs_never_goes_on_from_a_higher_point():
    start = torch.tensor([[-1.2, 1.0], [3.0, -3.0]], dtype=torch.float64)
    stepper, z, accepted, rejected = Lbfgs(start), start, [], 0
    for _ in range(100):
        value, gradient = evaluate(rosenbrock, z)
        before = stepper._value.clone()
        z = stepper.step(z, value, gradient, start.new_ones(2, 1))
        rejected += int((value > before).sum())
        accepted.append(stepper._value.clone())
        torch.testing.assert_close(stepper._value, rosenbrock(stepper._z), rtol=1e-12, atol=0)
    assert rejected, "no trial point was higher: the test shows nothing"
    assert bool((torch.stack(accepted).diff(dim=0) <= 0).all())


@pytest.mark.parametrize("name", STEPS)
def test_a_rows_path_does_not_depend_on_the_others(name):
    """Over more steps than L-BFGS remembers, where rows are rejected at different times."""
    start = torch.tensor([[-1.2, 1.0], [0.0, 0.0], [3.0, -3.0], [2.0, 2.0]], dtype=torch.float64)
    history, lr = 20, 1.0 if name == "lbfgs" else 0.05
    steps = 3 * history // 2
    together = run(STEPS[name](start, history), rosenbrock, start, steps, lr)
    for k in range(len(start)):
        alone = run(STEPS[name](start[k : k + 1], history), rosenbrock, start[k : k + 1], steps, lr)
        torch.testing.assert_close(together[:, k], alone[:, 0], rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("name", STEPS)
def test_a_row_that_was_not_finite_recovers_and_disturbs_no_other(name):
    function, c = quadratics(3)
    lr = 1.0 if name == "lbfgs" else 0.1
    unbroken = run(STEPS[name](c), function, torch.zeros_like(c), 60, lr)
    stepper = STEPS[name](c)
    z = run(stepper, function, torch.zeros_like(c), 6, lr)[-1]
    bad = torch.tensor([False, True, False])
    value, gradient = evaluate(function, z)
    z = stepper.step(
        torch.where(bad.unsqueeze(1), torch.nan, z),
        torch.where(bad, 0, value),
        torch.where(bad.unsqueeze(1), 0, gradient),
        c.new_full((3, 1), lr),
    )
    stepper.forget(bad)
    z = torch.where(bad.unsqueeze(1), 0, z)
    later = run(stepper, function, z, 53, lr)
    torch.testing.assert_close(later[:, [0, 2]], unbroken[7:, [0, 2]], rtol=1e-7, atol=1e-9)
    torch.testing.assert_close(later[:, 1], unbroken[:54, 1], rtol=1e-6, atol=1e-7)


def test_lbfgs_takes_a_smaller_first_step_where_it_is_told_to():
    function, c = quadratics(2)
    z = torch.zeros_like(c)
    value, gradient = evaluate(function, z)
    moved = Lbfgs(z).step(z, value, gradient, torch.tensor([[1.0], [0.25]], dtype=torch.float64)) - z
    length = Lbfgs.FIRST * z.shape[1] ** 0.5
    torch.testing.assert_close(moved.norm(dim=1), torch.tensor([length, length / 4], dtype=torch.float64))
    assert float(torch.cosine_similarity(moved, gradient, dim=1).max()) < -0.999999


def test_transforms():
    gradient = torch.tensor([[-2.0, 0.0, 0.5]])
    assert TRANSFORMS["none"](gradient, 0.5) is gradient
    assert TRANSFORMS["sign"](gradient, 0.5).tolist() == [[-1.0, 0.0, 1.0]]
    soft = TRANSFORMS["soft_sign"]
    torch.testing.assert_close(soft(gradient, 0.0), gradient.tanh())
    torch.testing.assert_close(soft(gradient, 0.75), (gradient / 4).tanh() * 4)
    torch.testing.assert_close(soft(gradient, 1 - 1e-6), gradient, rtol=1e-3, atol=1e-3)


def test_schedules():
    n = 2400
    assert [schedule_factor("constant", i, n) for i in (0, n - 1)] == [1, 1]
    # breaching and the authors' code: milestones n // 2.667, n // 1.6, n // 1.142
    at = {0: 1, 898: 1, 899: 0.1, 1498: 0.1, 1499: 0.01, 2100: 0.01, 2101: 0.001, n - 1: 0.001}
    for i, expected in at.items():
        assert schedule_factor("step", i, n) == pytest.approx(expected), i
    for i in (0, 100, 1200, n - 1):
        assert schedule_factor("cosine", i, n) == pytest.approx((1 + cos(pi * i / n)) / 2)
        assert schedule_factor("linear", i, n) == pytest.approx(1 - i / n)
    assert [schedule_factor("constant", i, n, warmup=4) for i in range(5)] == [0.25, 0.5, 0.75, 1, 1]
    assert schedule_factor("linear", 1, n, warmup=4) == pytest.approx(0.5 * (1 - 1 / n))
