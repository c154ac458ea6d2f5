"""Value and derivative of what an attack minimises, of many clients at once, against one client after another."""

import dataclasses

import plain_inversion as plain
import pytest
import torch
from plain_inversion import exchange, pixels_of, update_of
from tiny import INFO

from leaklearn.attacks.inversion.gradients import Gradients
from leaklearn.attacks.inversion.objectives import OBJECTIVES, largest_entries
from leaklearn.attacks.inversion.presets import Settings
from leaklearn.attacks.inversion.priors import PRIORS
from leaklearn.attacks.inversion.problem import PENALTY_RADIUS, Problem
from leaklearn.data.images import DataInfo
from leaklearn.federated import FedAvg, FedSGD

COLOUR = DataInfo("colour", tuple("abcdef"), (3, 12, 12), (0.3, 0.4, 0.5), (0.2, 0.25, 0.3), False)
LAYERED, MAPPED = FedSGD(3, batch_norm="eval"), FedSGD(3)
LOCAL = FedAvg(3, 2, 0.1, batch_norm="eval")
WEIGHTS = {"objective": 0.7, "prior": 0.3}


def start_of(payload, images, seed=1):
    generator = torch.Generator().manual_seed(seed)
    return pixels_of(payload, torch.rand(images.shape, generator=generator, dtype=images.dtype))


def assert_problem_equals(plain_value, problem, z, rtol=1e-9):
    """`plain_value(z_k, k)` gives the value and the objective of row k."""
    found = problem.evaluate(z)
    for k, row in enumerate(z):
        row = row.clone().requires_grad_()
        value, objective = plain_value(row, k)
        torch.testing.assert_close(found.value[k], value.detach(), rtol=rtol, atol=1e-14)
        torch.testing.assert_close(found.objective[k], objective.detach(), rtol=rtol, atol=1e-14)
        (gradient,) = torch.autograd.grad(value, row)
        torch.testing.assert_close(found.gradient[k], gradient, rtol=rtol, atol=rtol * float(gradient.abs().max()))


def assert_settings_right(settings, protocol, objective, prior=None, **options):
    payload, updates, images, labels = exchange(protocol, info=COLOUR, **options)
    problem = Problem(Gradients(payload, protocol), updates.tensors, labels, images.shape[1:], settings)
    targets = [{n: v[k] for n, v in updates.tensors.items()} for k in range(len(updates))]

    def value_of(row, k):
        pixels = row.view(images.shape[1:])
        found = update_of(payload, protocol, plain.images_of(payload, pixels), labels[k])
        value = objective(found, targets[k])
        if prior is None:
            return value, value
        weighted = settings.weight * value
        return weighted + next(iter(settings.priors.values())) * prior(
            pixels, labels[k], payload, targets[k], protocol
        ), value

    assert_problem_equals(value_of, problem, start_of(payload, images).flatten(1))


@pytest.mark.parametrize("protocol", [LAYERED, MAPPED, LOCAL], ids=["layered", "mapped", "local steps"])
@pytest.mark.parametrize("objective", OBJECTIVES)
def test_objectives(objective, protocol):
    assert_settings_right(Settings(objective=objective), protocol, plain.OBJECTIVES[objective])


CASES = [(prior, protocol) for prior in plain.PRIORS for protocol in (LAYERED, MAPPED, LOCAL)]
CASES.remove(("features", LOCAL))  # features are recovered from gradients only


@pytest.mark.parametrize(("prior", "protocol"), CASES, ids=str)
def test_priors(prior, protocol):
    settings = Settings(weight=WEIGHTS["objective"], priors={prior: WEIGHTS["prior"]})
    assert_settings_right(settings, protocol, plain.cosine, plain.PRIORS[prior])


def test_every_objective_and_prior_has_its_plain_twin():
    assert set(plain.OBJECTIVES) == set(OBJECTIVES)
    assert {*plain.PRIORS, "group"} == set(PRIORS)  # group: several rows a client, below


@pytest.mark.parametrize("protocol", [LAYERED, MAPPED], ids=["layered", "mapped"])
@pytest.mark.parametrize("share", [0.01, 0.3])
def test_partial_matching(share, protocol):
    """Only the target's largest entries count, in the simulated update and in the target."""

    def masked(g, t):
        least = plain.vector(t).abs().sort(descending=True).values[round(share * len(plain.vector(t))) - 1]
        return plain.cosine(*({n: torch.where(t[n].abs() >= least, s[n], 0) for n in t} for s in (g, t)))

    assert_settings_right(Settings(matched=share), protocol, masked)


def test_restarts_are_rows_that_the_group_prior_ties():
    settings = Settings(weight=0.7, priors={"group": 0.3}, restarts=3)
    payload, updates, images, labels = exchange(LAYERED, info=COLOUR)
    shape = images.shape[1:]
    problem = Problem(Gradients(payload, LAYERED), updates.tensors, labels, shape, settings)
    z = torch.cat([start_of(payload, images, seed).flatten(1) for seed in range(3)], 1).view(9, -1)
    found = problem.evaluate(z)
    plain_z = z.clone().requires_grad_()
    values = []
    for row in range(9):
        client = row // 3
        mean = plain_z[3 * client : 3 * client + 3].mean(0)
        sent = {n: v[client] for n, v in updates.tensors.items()}
        images_of_row = plain.images_of(payload, plain_z[row].view(shape))
        objective = plain.cosine(update_of(payload, LAYERED, images_of_row, labels[client]), sent)
        values.append(0.7 * objective + 0.3 * ((plain_z[row] - mean) ** 2).mean())
    torch.testing.assert_close(found.value, torch.stack(values).detach(), rtol=1e-9, atol=0)
    (gradient,) = torch.autograd.grad(sum(values), plain_z)
    torch.testing.assert_close(found.gradient, gradient, rtol=1e-8, atol=1e-9 * float(gradient.abs().max()))


@pytest.mark.parametrize("protocol", [LAYERED, MAPPED, LOCAL], ids=["layered", "mapped", "local steps"])
def test_labels_as_variables(protocol):
    payload, updates, images, _ = exchange(protocol, info=COLOUR)
    shape, classes = images.shape[1:], COLOUR.num_classes
    problem = Problem(Gradients(payload, protocol), updates.tensors, None, shape, Settings(objective="euclidean"))
    generator = torch.Generator().manual_seed(2)
    scores = torch.randn(len(images), shape[0] * classes, generator=generator, dtype=torch.float64)

    def value_of(row, k):
        pixels, labels = row[: shape.numel()].view(shape), row[shape.numel() :].view(-1, classes).softmax(1)
        found = update_of(payload, protocol, plain.images_of(payload, pixels), labels)
        value = plain.OBJECTIVES["euclidean"](found, {n: v[k] for n, v in updates.tensors.items()})
        return value, value

    assert_problem_equals(value_of, problem, torch.cat([start_of(payload, images).flatten(1), scores], 1))


def test_gradient_penalty_looks_a_step_uphill():
    payload, updates, images, labels = exchange(LAYERED, info=COLOUR)
    arguments = Gradients(payload, LAYERED), updates.tensors, labels, images.shape[1:]
    settings = Settings(priors={"tv_squared": 0.1}, gradient_penalty=0.4)
    plain_problem = Problem(*arguments, dataclasses.replace(settings, gradient_penalty=0.0))
    z = start_of(payload, images).flatten(1)
    here = plain_problem.evaluate(z)
    there = torch.stack(
        [
            plain_problem.evaluate(z + PENALTY_RADIUS * z.shape[1] ** 0.5 * here.gradient / g.norm()).gradient[k]
            for k, g in enumerate(here.gradient)
        ]
    )
    found = Problem(*arguments, settings).evaluate(z)
    torch.testing.assert_close(found.value, here.value)
    torch.testing.assert_close(found.gradient, 0.6 * here.gradient + 0.4 * there, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("protocol", [LAYERED, MAPPED, LOCAL, FedAvg(3, 2, 0.1)], ids=repr)
@pytest.mark.parametrize("objective", OBJECTIVES)
def test_objectives_are_zero_at_the_truth(objective, protocol):
    for name in ("lenet", "convnet"):
        payload, updates, images, labels = exchange(protocol, name=name, info=INFO)
        settings = Settings(objective=objective)
        problem = Problem(Gradients(payload, protocol), updates.tensors, labels, images.shape[1:], settings)
        found = problem.evaluate(pixels_of(payload, images).flatten(1))
        assert float(found.objective.abs().max()) < 1e-10, name
        assert float(problem.similarity(pixels_of(payload, images).flatten(1)).min()) == pytest.approx(1)


def test_largest_entries_over_all_parameters():
    target = {"a": torch.tensor([[3.0, -1.0], [0.1, 0.2]]), "b": torch.tensor([[[-2.0], [0.5]], [[4.0], [0.3]]])}
    mask = largest_entries(target, 0.5)
    assert mask["a"].tolist() == [[1, 0], [0, 0]]
    assert mask["b"].tolist() == [[[1], [0]], [[1], [1]]]
    assert sum(float(m.sum()) for m in largest_entries(target, 0.01).values()) == 2  # one entry a client at least
