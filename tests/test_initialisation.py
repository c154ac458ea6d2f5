"""Starting from the federated model: how fine-tuning is chosen, the comparison of notebook 06, the verdict on C7."""

from dataclasses import replace

import pandas as pd
import pytest
import torch
from tiny import image_set

from leaklearn.data.images import Dataset
from leaklearn.experiments import federated_initialisation, rounds
from leaklearn.experiments.bench import Bench
from leaklearn.experiments.federated_initialisation import compare_starts, fine_tune, gains, held_back
from leaklearn.experiments.rounds import FederationPlan, Round
from leaklearn.leaks import Leak
from leaklearn.learning import Recipe, evaluate, train
from leaklearn.models import build
from leaklearn.report.claims import judge
from leaklearn.report.rules_learning import improved

RECIPE = Recipe(steps=20, batch_size=16, pad=0, amp="off")


def leak_of(images):
    count = len(images)
    number = torch.arange(count)
    return Leak(images.images.float() / 255, torch.ones(count), number, torch.zeros_like(number), number, images.labels)


@pytest.fixture(scope="module")
def trained():
    start = build("convnet", image_set(64), width=4, seed=0)
    return train(start, image_set(64), test=image_set(40, seed=1), recipe=replace(RECIPE, steps=80)).model


def tune(model, leak, rates, steps, test, new=None):
    new = torch.ones(len(leak), dtype=torch.bool) if new is None else new
    return fine_tune(Bench(Dataset(image_set(64), test), recipe=RECIPE), model, leak, rates, steps, new, seed=0)


def test_among_equals_the_choice_that_changes_least_is_taken(trained):
    test, leak = image_set(40, seed=1), leak_of(image_set(12, seed=2))
    assert evaluate(trained, leak) == 1.0  # and it stays so at rates this small, whatever is frozen
    accuracy, chosen = tune(trained, leak, (2e-9, 1e-9), 3, test)
    assert chosen == {"lr": 1e-9, "freeze": "body"}
    assert abs(accuracy - evaluate(trained, test)) < 0.1


def test_the_choice_is_made_on_the_leak_alone_and_the_winner_sees_all_of_it(trained, monkeypatch):
    test, leak, seen = image_set(40, seed=1), leak_of(image_set(20, seed=2)), []
    blank = build("convnet", test, width=4, seed=5)
    real = federated_initialisation.train

    def spy(model, data, **options):
        frozen = [name for name, p in model.named_parameters() if not p.requires_grad]
        seen.append((len(data), options["test"], options["recipe"].lr, bool(frozen)))
        assert all(not name.startswith("head.") for name in frozen)
        return real(model, data, **options)

    monkeypatch.setattr(federated_initialisation, "train", spy)
    _, chosen = tune(blank, leak, (1e-6, 0.1), 30, test)
    *tried, last = seen
    candidates = [(1e-6, True), (1e-6, False), (0.1, True), (0.1, False)]
    assert [(size, rate, frozen) for size, _, rate, frozen in tried] == [(10, *c) for c in candidates for _ in range(2)]
    assert all(len(held) == 10 and held is not test for _, held, *_ in tried)
    assert last[0] == 20
    assert last[1] is test
    assert chosen["lr"] == 0.1
    assert all(p.requires_grad for p in blank.parameters())  # what was handed in is left as it is


def test_validation_is_on_what_the_model_has_not_seen(trained, monkeypatch):
    test, leak, seen = image_set(40, seed=1), leak_of(image_set(20, seed=2)), []
    real = federated_initialisation.train

    def spy(model, data, **options):
        seen.append((data.client.tolist(), options["test"]))
        assert not set(data.client.tolist()) & set(getattr(options["test"], "client", torch.tensor([])).tolist())
        return real(model, data, **options)

    monkeypatch.setattr(federated_initialisation, "train", spy)
    blank, new = build("convnet", test, width=4, seed=5), torch.arange(20) >= 16
    tune(blank, leak, (0.1,), 20, test, new)
    *tried, last = seen
    # Half of the new, then the other half; once with a frozen body, once without.
    assert [held.client.tolist() for _, held in tried] == [[16, 17], [18, 19]] * 2
    assert [learned for learned, _ in tried] == [[*range(16), 18, 19], list(range(18))] * 2
    assert last[0] == list(range(20))


def test_parts_that_judge():
    new = torch.arange(100) >= 40
    parts = held_back(new, 0.3, 30)
    assert [part.tolist() for part in parts] == [list(range(40, 58)), list(range(58, 76))]
    assert len(held_back(new, 0.3, 500)) == 3  # all have judged that fill a part
    assert len(held_back(new, 0.3, 1)) == 1
    (one,) = held_back(torch.ones(2, dtype=torch.bool), 0.9, 1)
    assert len(one) == 1  # something is left to learn from


def test_newcomers_leak_but_do_not_train(monkeypatch):
    data, trained_on = Dataset(image_set(200), image_set(40, seed=1)), []
    real = rounds.federate

    def spy(model, clients, *arguments, **options):
        trained_on.append([client.id for client in clients])
        return real(model, clients, *arguments, **options)

    monkeypatch.setattr(rounds, "federate", spy)
    plan = FederationPlan(clients=8, images_per_client=16, clients_per_round=4, rounds=2, local_steps=2)
    options = {"fc_factor": 4.0, "tuning_rates": [0.05], "tuning_steps": 5}
    bench = Bench(data, width=4, recipe=RECIPE, progress=False)
    compare_starts(bench, plan, leaked_images=[20], newcomers=3, **options)
    assert trained_on == [[0, 1, 2, 3, 4]]
    with pytest.raises(ValueError, match="newcomers is 5; with 8 clients and 4 a round it is 0 to 4"):
        compare_starts(bench, plan, leaked_images=[20], newcomers=5, **options)


def test_comparison_has_each_start_at_each_size():
    data = Dataset(image_set(200), image_set(40, seed=1))
    plan = FederationPlan(clients=8, images_per_client=16, clients_per_round=4, rounds=4, local_steps=2)
    options = {"fc_factor": 4.0, "tuning_rates": [0.05], "tuning_steps": 5}
    bench = Bench(data, width=4, recipe=RECIPE, seeds=[0, 1], progress=False)
    table = compare_starts(bench, plan, leaked_images=[30, 10], partly_rounds=1, **options)
    keys = table[["seed", "start", "leaked_images"]].apply(tuple, axis=1)
    wanted = {(s, start, size) for s in (0, 1) for start in ("fedavg", "fedavg_partly") for size in (0, 10, 30)}
    assert set(keys) == wanted | {(s, "scratch", size) for s in (0, 1) for size in (10, 30)}
    assert len(keys) == len(set(keys))
    assert table["accuracy"].between(0, 1).all()
    again = compare_starts(replace(bench, seeds=[1]), plan, leaked_images=[30], **options)
    same = table[(table["seed"] == 1) & (table["leaked_images"] == 30)].set_index("start")["accuracy"]
    for row in again[again["leaked_images"] == 30].itertuples():
        assert row.accuracy == same[row.start]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"leaked_images": [1]}, "at least two images"),
        ({"leaked_images": []}, "at least two images"),
        ({"partly_rounds": 60}, "must be below"),
        ({"tuning_rates": []}, "rates above 0"),
        ({"tuning_rates": [0.1, 0.0]}, "rates above 0"),
        ({"tuning_steps": 0}, "at least one step"),
        ({"leaked_images": [33]}, "no more than the 32 attacked"),
        ({"plan": FederationPlan(clients=400)}, "take fewer clients"),
    ],
)
def test_bad_settings_are_refused_before_any_work(changes, message, monkeypatch):
    monkeypatch.setattr(Round, "run", None)
    bench = Bench(Dataset(image_set(64), image_set(20, seed=1)), recipe=RECIPE)
    small = FederationPlan(clients=4, images_per_client=8, clients_per_round=4)
    arguments = {"plan": small, "leaked_images": [5], **changes}
    with pytest.raises(ValueError, match=message):
        compare_starts(bench, **{"fc_factor": 4.0, "tuning_rates": [0.1], "tuning_steps": 5, **arguments})


def starts(tuned, scratch, itself=0.90, seeds=3, scatter=0.002):
    """Rows of initialisation; accuracies by leak size."""
    rows = []
    for seed in range(seeds):
        shift = scatter * (seed - 1)
        about = {"dataset": "mnist5k", "seed": seed}
        rows.append({**about, "start": "fedavg", "leaked_images": 0, "accuracy": itself + shift})
        for start, by_size in (("fedavg", tuned), ("scratch", scratch)):
            for size, value in by_size.items():
                rows.append({**about, "start": start, "leaked_images": size, "accuracy": value + shift * (seed == 2)})
    return pd.DataFrame(rows)


LITTLE = {10: 0.4, 100: 0.8, 1000: 0.96}


def test_gains_are_paired_by_seed():
    found = gains(starts({10: 0.89, 100: 0.93}, {10: 0.4, 100: 0.8})).set_index(["seed", "leaked_images"])
    assert len(found) == 6
    assert found.loc[(0, 10), "gain"] == pytest.approx(-0.8)
    assert found.loc[(1, 100), "gain"] == pytest.approx(3)
    assert found.loc[(2, 100), "over_scratch"] == pytest.approx(13)
    partly = starts({10: 0.8}, {10: 0.4}).replace({"start": {"fedavg": "fedavg_partly"}})
    assert set(gains(partly)["start"]) == {"fedavg_partly"}


@pytest.mark.parametrize(
    ("tuned", "verdict", "measured"),
    [
        ({10: 0.90, 100: 0.93, 1000: 0.95}, "reproduced", 0),  # the smallest neither gains nor loses
        ({10: 0.92, 100: 0.93, 1000: 0.95}, "reproduced", 2),
        ({10: 0.85, 100: 0.93, 1000: 0.95}, "partly", -5),  # small leaks hurt, larger ones gain
        ({10: 0.85, 100: 0.86, 1000: 0.95}, "not reproduced", -5),  # where it gains, scratch is as good
        ({10: 0.88, 100: 0.88, 1000: 0.89}, "not reproduced", -2),  # none gains
    ],
)
def test_verdict_on_c7(tuned, verdict, measured):
    table = starts(tuned, LITTLE)
    (found,) = improved(table)
    assert found.verdict == verdict
    assert found.measured == pytest.approx(measured, abs=0.2)
    assert judge({"initialisation": table}).set_index("claim").loc["C7", "verdict"] == verdict


def test_c7_says_what_each_size_gains_or_loses():
    (found,) = improved(starts({10: 0.85, 100: 0.93, 1000: 0.95}, LITTLE))
    assert "-4.9 at 10, +3.1 at 100, +5.1 at 1,000; gains for sure from 100 images on" in found.why
    assert "ahead of scratch up to 100" in found.why


def test_too_little_for_c7():
    assert improved(starts({10: 0.91}, {10: 0.4}, seeds=1))[0].verdict == "partly"
    assert improved(starts({10: 0.91}, {10: 0.4}, scatter=0.02))[0].verdict == "partly"  # the mean alone gains
    assert improved(starts({10: 0.88}, {10: 0.4}))[0].verdict == "not reproduced"
    assert improved(starts({10: 0.95}, {10: 0.97}))[0].verdict == "not reproduced"
    table = starts({10: 0.95}, {10: 0.4})
    assert improved(table[table["start"] == "fedavg"])[0].verdict == "not run"
