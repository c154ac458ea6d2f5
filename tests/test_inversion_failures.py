"""Updates and attacks that are not finite, or run away, concern one client only, and are told."""

import dataclasses

import pytest
import torch
from plain_inversion import exchange

from leaklearn.attacks import GradientInversion
from leaklearn.attacks.inversion import engine
from leaklearn.attacks.inversion.problem import Problem
from leaklearn.federated import FedSGD

EVAL = FedSGD(2, batch_norm="eval")
CLIENTS, BAD = 4, 2
OTHERS = [0, 1, 3]
ATTACKS = {
    "sign": GradientInversion("inverting_gradients").replace(iterations=12, priors={"tv": 1e-3}),
    "lbfgs": GradientInversion("idlg").replace(iterations=20),
    "polish": GradientInversion("inverting_gradients").replace(iterations=20, priors={}, polish=0.7),
}


@pytest.fixture(scope="module")
def attacked():
    return exchange(EVAL, name="lenet", clients=CLIENTS, dtype=torch.float32)


def images(found):
    return found.leak.images.unflatten(0, (-1, 2))


@pytest.mark.parametrize("labels_given", [True, False])
@pytest.mark.parametrize("value", [torch.nan, torch.inf])
@pytest.mark.parametrize("name", ATTACKS)
def test_a_client_whose_update_is_not_finite_is_left_out(attacked, name, value, labels_given):
    payload, updates, _, labels = attacked
    attack, labels = ATTACKS[name], labels if labels_given else None
    bad = {n: v.clone() for n, v in updates.tensors.items()}
    bad["body.0.0.weight"][BAD, 0, 0, 0, 0] = value
    found = attack.invert(payload, dataclasses.replace(updates, tensors=bad), labels, snapshots=[5])
    good = attack.invert(payload, updates, labels, snapshots=[5])
    assert found.failed.tolist() == [k == BAD for k in range(CLIENTS)]
    assert found.attempts.tolist() == [1, 1, 0, 1]
    assert found.leak.meta["failed"] == [BAD]
    assert found.leak.client.tolist() == good.leak.client.tolist()
    assert f"1 clients failed (rows {BAD})" in str(found)
    assert found.leak.confidence.unflatten(0, (-1, 2))[BAD].tolist() == [0, 0]
    assert found.leak.images.isfinite().all()
    torch.testing.assert_close(images(found)[OTHERS], images(good)[OTHERS], rtol=0, atol=5e-3)
    torch.testing.assert_close(found.objective[OTHERS], good.objective[OTHERS], rtol=1e-2, atol=1e-6)
    torch.testing.assert_close(found.snapshots[5][OTHERS], good.snapshots[5][OTHERS], rtol=0, atol=5e-3)
    if labels_given:
        assert torch.equal(found.leak.labels, labels.flatten())


def test_all_clients_may_fail(attacked):
    payload, updates, _, labels = attacked
    bad = {n: v + torch.nan for n, v in updates.tensors.items()}
    found = ATTACKS["sign"].invert(payload, dataclasses.replace(updates, tensors=bad), labels)
    assert found.failed.all()
    assert found.leak.meta["failed"] == [0, 1, 2, 3]
    assert len(found.leak) == 2 * CLIENTS


@pytest.fixture
def spoil(monkeypatch):
    """Let row `BAD` of an evaluation come out as told, for the iterations told."""

    def install(change, iterations):
        evaluate, count = Problem.evaluate, iter(range(10**6))

        def spoilt(self, z):
            found = evaluate(self, z)
            if next(count) not in iterations:
                return found
            row = torch.arange(len(z)) == BAD
            return change(found, row)

        monkeypatch.setattr(Problem, "evaluate", spoilt)

    return install


CHANGES = {
    "value": lambda e, row: e._replace(value=torch.where(row, torch.nan, e.value)),
    "infinite": lambda e, row: e._replace(value=torch.where(row, torch.inf, e.value)),
    "gradient": lambda e, row: e._replace(gradient=torch.where(row.unsqueeze(1), torch.nan, e.gradient)),
    "runaway": lambda e, row: e._replace(value=torch.where(row, 1e9, e.value)),
}


# A row runs away from where it was at the start, so not there.
@pytest.mark.parametrize(("change", "iteration"), [("value", 0), *((change, 3) for change in CHANGES)])
@pytest.mark.parametrize("name", ATTACKS)
def test_a_row_that_fails_starts_anew_and_the_others_go_on(attacked, spoil, name, change, iteration):
    payload, updates, _, labels = attacked
    undisturbed = ATTACKS[name].invert(payload, updates, labels)
    spoil(CHANGES[change], {iteration})
    found = ATTACKS[name].invert(payload, updates, labels)
    assert found.attempts.tolist() == [1, 1, 2, 1]
    assert not found.failed.any()
    assert "1 clients were started anew" in str(found)
    assert torch.equal(images(found)[OTHERS], images(undisturbed)[OTHERS])
    assert torch.equal(found.objective[OTHERS], undisturbed.objective[OTHERS])
    assert not torch.equal(images(found)[BAD], images(undisturbed)[BAD])
    assert float(found.objective[BAD]) < 2 * float(undisturbed.history[0][BAD])


@pytest.mark.parametrize("name", ATTACKS)
def test_a_row_that_always_fails_is_reported(attacked, spoil, name):
    payload, updates, _, labels = attacked
    undisturbed = ATTACKS[name].invert(payload, updates, labels)
    spoil(CHANGES["value"], range(10**6))
    found = ATTACKS[name].invert(payload, updates, labels)
    assert found.attempts.tolist() == [1, 1, engine.ATTEMPTS, 1]
    assert found.leak.meta["failed"] == [BAD]
    assert found.leak.confidence.unflatten(0, (-1, 2))[BAD].tolist() == [0, 0]
    assert found.leak.images.isfinite().all()
    assert torch.equal(images(found)[OTHERS], images(undisturbed)[OTHERS])


def test_a_row_that_fails_late_keeps_the_best_that_it_had(attacked, spoil):
    payload, updates, _, labels = attacked
    undisturbed = ATTACKS["sign"].invert(payload, updates, labels)
    spoil(CHANGES["value"], range(6, 10**6))
    found = ATTACKS["sign"].invert(payload, updates, labels)
    assert not found.failed.any()
    assert found.attempts.tolist() == [1, 1, engine.ATTEMPTS, 1]
    assert float(undisturbed.objective[BAD]) <= float(found.objective[BAD]) <= float(undisturbed.history[0][BAD])


def test_steps_that_are_far_too_long_are_caught():
    """Pixels of 1e30 overflow float32 in a network without norms: every attempt fails, and every image stays finite."""
    payload, updates, _, labels = exchange(EVAL, name="convnet", norm="none", dtype=torch.float32)
    attack = GradientInversion("dlg").replace(step="adam", lr=1e30, iterations=20)
    found = attack.invert(payload, updates, labels)
    assert found.attempts.tolist() == [engine.ATTEMPTS] * 3
    assert found.leak.images.isfinite().all()
    assert not found.failed.any()  # the starts were finite, and are what is left
