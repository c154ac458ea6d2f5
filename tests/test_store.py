"""A killed training, federation or inversion goes on where it stopped and ends with the very same result."""

import sys
from dataclasses import replace
from functools import partial
from importlib import import_module

import pandas as pd
import pytest
import torch

import leaklearn as ll
from leaklearn import store
from leaklearn.attacks.inversion import GradientInversion
from leaklearn.attacks.inversion.stored import invert_once
from leaklearn.experiments.bench import Bench
from leaklearn.experiments.harvest import InversionSettings
from leaklearn.experiments.rounds import FederationPlan
from leaklearn.experiments.training_on_leaked_data import Case, train_federations
from leaklearn.files import plain
from leaklearn.learning.recipe import SemiRecipe
from leaklearn.learning.semi_supervised import train_semi_supervised
from leaklearn.store import FOLDER, entry, fingerprint, source_of


class Killed(Exception):
    """Stands for the kernel's death."""


@pytest.fixture(scope="module")
def mnist5k():
    return ll.load("mnist5k")


@pytest.fixture
def kept(tmp_path, monkeypatch):
    """The store's folder, written at every chance."""
    monkeypatch.setenv(FOLDER, str(tmp_path / "store"))
    monkeypatch.setattr(store, "EVERY", 0.0)
    monkeypatch.setattr(store, "WORTH", 0.0)
    return tmp_path / "store"


@pytest.fixture
def kill(monkeypatch):
    """Let the process die right after the given number of states were written."""

    def after(count):
        save, written = store.Entry.save, []

        def dying(self, *args, **kwargs):
            save(self, *args, **kwargs)
            written.append(self.path)
            if len(written) == count:
                raise Killed

        monkeypatch.setattr(store.Entry, "save", dying)

    return after


def same(one, two):
    assert one.keys() == two.keys()
    assert all(torch.equal(one[name], two[name]) for name in one)


def without_seconds(history):
    return history.drop(columns="seconds", errors="ignore")


def test_training_goes_on(mnist5k, kept, kill, monkeypatch):
    recipe = ll.Recipe(epochs=5, batch_size=32)
    data, test = mnist5k.train[:128], mnist5k.test[:64]
    run = lambda: ll.train("lenet", data, test=test, recipe=recipe, seed=3)  # noqa: E731
    monkeypatch.delenv(FOLDER)
    whole = run()
    monkeypatch.setenv(FOLDER, str(kept))
    kill(2)
    with pytest.raises(Killed):
        run()
    monkeypatch.setattr(store.Entry, "due", lambda self, finished=False: False)
    resumed = run()
    same(whole.model.state_dict(), resumed.model.state_dict())
    pd.testing.assert_frame_equal(without_seconds(whole.history), without_seconds(resumed.history))
    assert resumed.history["seconds"].is_monotonic_increasing
    assert len(list(kept.iterdir())) == 1


def test_a_finished_training_is_not_run_again(mnist5k, kept, monkeypatch):
    run = lambda: ll.train("lenet", mnist5k.train[:64], test=mnist5k.test[:32], recipe=ll.Recipe(steps=3))  # noqa: E731
    first = run()
    monkeypatch.setattr(sys.modules["leaklearn.learning.train"], "augment", None)  # any step would fail
    again = run()
    same(first.model.state_dict(), again.model.state_dict())
    assert again.accuracy == first.accuracy


def test_frozen_parts_are_another_training(mnist5k, kept):
    options = {"test": mnist5k.test[:32], "recipe": ll.Recipe(steps=3)}
    model = ll.build("lenet", mnist5k, seed=0)
    all_of_it = ll.train(model, mnist5k.train[:64], **options)
    next(iter(model.parameters())).requires_grad_(False)
    frozen = ll.train(model, mnist5k.train[:64], **options)
    name = next(iter(dict(model.named_parameters())))
    assert torch.equal(frozen.model.state_dict()[name], model.state_dict()[name])
    assert not torch.equal(frozen.model.state_dict()[name], all_of_it.model.state_dict()[name])


@pytest.mark.parametrize("method", ["fixmatch", "freematch", "comatch"])
def test_semi_supervised_training_goes_on(mnist5k, kept, kill, monkeypatch, method):
    monkeypatch.setattr("leaklearn.learning.semi_supervised.AUGMENTED", 64)
    recipe = SemiRecipe(steps=24, batch_size=8, ratio=2, ema=0.9, bank_batches=2, align_batches=3)
    few, many, test = mnist5k.train[:20], mnist5k.train[:300].images, mnist5k.test[:64]
    model = ll.build("convnet", mnist5k, width=4)
    run = lambda: train_semi_supervised(model, few, many, test=test, method=method, recipe=recipe)  # noqa: E731
    monkeypatch.delenv(FOLDER)
    whole = run()
    monkeypatch.setenv(FOLDER, str(kept))
    kill(3)  # after 12 of 24 steps: views are made for four batches at once
    with pytest.raises(Killed):
        run()
    resumed = run()
    same(whole.model.state_dict(), resumed.model.state_dict())
    pd.testing.assert_frame_equal(without_seconds(whole.history), without_seconds(resumed.history))


def test_a_federation_goes_on(mnist5k, kept, kill, monkeypatch):
    clients = ll.make_clients(mnist5k.train[:200], clients=5, seed=0)

    def run():
        found = ll.federate(
            ll.build("lenet", mnist5k, seed=1), clients, ll.FedAvg(batch_size=8, local_steps=2, lr=0.1),
            rounds=6, clients_per_round=2, evaluate=lambda model: float(next(model.parameters()).detach().mean()),
            evaluate_every=2,
        )  # fmt: skip
        return found

    monkeypatch.delenv(FOLDER)
    whole = run()
    monkeypatch.setenv(FOLDER, str(kept))
    kill(3)
    with pytest.raises(Killed):
        run()
    answers = []
    respond = ll.federated.server.respond
    monkeypatch.setattr(
        "leaklearn.federated.server.respond", lambda *args, **kwargs: answers.append(0) or respond(*args, **kwargs)
    )
    resumed = run()
    assert len(answers) == 3
    same(whole.model.state_dict(), resumed.model.state_dict())
    pd.testing.assert_frame_equal(whole.history, resumed.history)
    assert whole.drawn == resumed.drawn
    assert len(whole.drawn) == 6


def test_an_inversion_is_read_back(mnist5k, kept, monkeypatch):
    clients, payload = ll.make_clients(mnist5k.train[:8], clients=2, seed=0), ll.Payload.of(ll.build("lenet", mnist5k))
    updates = ll.respond(clients, payload, ll.FedSGD(2, batch_norm="eval"))
    attack, options = GradientInversion("fast").replace(iterations=3), {"seed": 1, "snapshots": [0, 2]}
    first = invert_once(attack, payload, updates, **options)
    with monkeypatch.context() as patch:
        patch.setattr(GradientInversion, "invert", None)
        again = invert_once(attack, payload, updates, **options)
    for one, two in ((first, again), (first.leak, again.leak)):
        same(store.tensors_of(one), store.tensors_of(two))
    same(first.history, again.history)
    same(first.snapshots, again.snapshots)
    assert plain(first.leak.meta) == again.leak.meta
    assert first.seconds == again.seconds
    labels = torch.zeros(2, 2, dtype=torch.int64)
    given = invert_once(attack, payload, updates, labels=labels, **options)
    assert torch.equal(given.leak.labels, labels.flatten())


def test_nothing_is_kept_without_a_folder(tmp_path, monkeypatch):
    monkeypatch.delenv(FOLDER, raising=False)
    monkeypatch.chdir(tmp_path)
    nowhere = entry("training", {}, [], [])
    nowhere.save({"a": 1}, part={"x": torch.ones(1)})
    assert nowhere.load() is None
    assert not nowhere.due()
    assert not list(tmp_path.iterdir())


def test_the_callers_folder_serves_where_the_variable_names_none(kept, tmp_path, monkeypatch):
    assert entry("a", {}, [], [], folder=tmp_path / "own").path.parent == kept
    monkeypatch.delenv(FOLDER)
    assert entry("a", {}, [], [], folder=tmp_path / "own").path.parent == tmp_path / "own"


def test_other_settings_tensors_or_versions_have_other_names(kept, monkeypatch):
    def path(lr=0.1, tensor=(1.0, 1.0), made_by=()):
        return entry("a", {"lr": lr}, [("x", torch.tensor(tensor))], made_by).path

    assert path() == path()
    others = [path(lr=0.2), path(tensor=(0.0, 0.0)), path(tensor=(1, 1))]
    others.append(path(made_by=[ll.train]))
    monkeypatch.setattr(torch, "__version__", "9.9")
    others.append(path())
    monkeypatch.undo()
    assert len({path(), *others}) == 6


@pytest.mark.parametrize(
    ("edited", "lost"),
    [
        ("data/augment.py", [ll.train]),
        ("federated/server.py", [ll.federate]),
        ("federated/local.py", [ll.federate, GradientInversion]),  # both run the model by `in_mode`
        ("attacks/inversion/engine.py", [GradientInversion]),
        ("experiments/shards.py", []),
        ("report/run.py", []),
    ],
)
def test_what_is_kept_is_lost_with_the_source_of_what_computed_it_and_no_other(monkeypatch, edited, lost):
    makers = [ll.train, ll.federate, GradientInversion]
    before, digest = [source_of(maker) for maker in makers], store._file_digest
    assert source_of(partial(ll.train, seed=1)) == before[0]
    monkeypatch.setattr(store, "_file_digest", lambda file: digest(file) + "!" * str(file).endswith(edited))
    after = [source_of(maker) for maker in makers]
    assert [maker for maker, old, new in zip(makers, before, after, strict=True) if old != new] == lost


def test_what_nobody_can_read_is_never_taken_for_the_same():
    typed = eval("lambda model: 0.5")
    assert source_of(typed) != source_of(typed)


@pytest.mark.parametrize("damage", ["cut", "changed", "empty", "record", "another"])
def test_a_damaged_entry_starts_again_and_says_why(kept, caplog, damage):
    stored = entry("training", {}, [], [])
    stored.save({"step": 3}, part={"x": torch.arange(5)})
    assert stored.load().values == {"step": 3}
    assert torch.equal(stored.load().part("part")["x"], torch.arange(5))
    assert not stored.damage
    other = entry("training", {"lr": 1}, [], [])
    other.save({"step": 3}, part={"x": torch.arange(5)})
    content = stored.path.read_bytes()
    damaged = {
        "cut": content[:-4],
        "changed": content[:-1] + b"\x7f",
        "empty": b"",
        "record": content.replace(b'\\"step\\": 3', b'\\"step\\": 4'),
        "another": other.path.read_bytes(),
    }[damage]
    assert damaged != content
    stored.path.write_bytes(damaged)
    assert stored.load() is None
    assert stored.damage in caplog.text
    assert {"another": "other settings", "record": "SHA-256"}.get(damage, "") in stored.damage
    assert "not used" in caplog.text


def test_what_a_killed_process_left_half_written_is_removed(kept):
    stored = entry("training", {}, [], [])
    stored.save({})
    (kept / f".{stored.path.name}.99999999.tmp").write_bytes(b"half")
    assert stored.load() is not None
    assert list(kept.iterdir()) == [stored.path]


def test_fingerprint_of_a_single_value_with_any_stride():
    # The column of a transposed slice: torch calls it contiguous, yet it cannot be looked at as bytes as it is.
    strided = torch.arange(64).reshape(2, 32).T[:1, :1]
    assert strided.is_contiguous()
    assert strided.stride() == (1, 32)
    assert fingerprint([("a", strided)]) == fingerprint([("a", torch.zeros(1, 1, dtype=torch.int64))])
    assert fingerprint([("a", strided)]) != fingerprint([("a", torch.ones(1, 1, dtype=torch.int64))])


def test_what_a_processor_decides_is_in_the_keys(tmp_path, monkeypatch):
    monkeypatch.setenv(FOLDER, str(tmp_path))
    monkeypatch.setattr(store, "WORTH", 0.0)
    data = ll.load("mnist5k")
    network, few = ll.build("airbench94", data, width=4), data.train[:8]
    for bf16 in (False, True):
        monkeypatch.setattr(import_module("leaklearn.learning.train"), "cpu_gains_by_bf16", lambda has=bf16: has)
        ll.train(network, few, test=data.test[:8], recipe=ll.recipe_for("airbench94", steps=1))
    assert len(list(tmp_path.glob("training_*"))) == 2


def test_how_a_federation_is_evaluated_is_in_its_key(tmp_path, monkeypatch):
    monkeypatch.setenv(FOLDER, str(tmp_path))
    monkeypatch.setattr(store, "WORTH", 0.0)
    data = ll.load("mnist5k")
    clients = ll.make_clients(data.train[:16], clients=2, seed=0)
    for mirror in (False, True, True):
        look = partial(ll.evaluate, images=data.test[:8], mirror=mirror)
        options = {"rounds": 1, "clients_per_round": 1, "evaluate": look}
        ll.federated.federate(ll.build("lenet", data), clients, ll.FedSGD(4), **options)
    assert len(list(tmp_path.glob("federation_*"))) == 2


def test_what_a_leak_is_worth_is_kept_in_a_kilobyte(kept, mnist5k, monkeypatch):
    bench = Bench(mnist5k, "lenet", None, ll.Recipe(steps=2, batch_size=8), progress=False)
    few = mnist5k.train[:16]
    first = bench.worth(few, 0)
    small = list(kept.glob("worth_*"))
    assert len(small) == 1
    assert small[0].stat().st_size < 4096
    for file in kept.glob("training_*"):
        file.unlink()
    monkeypatch.setattr(sys.modules["leaklearn.learning.train"], "_fit", None)  # nothing is trained again
    assert bench.worth(few, 0) == first
    for other in (lambda: bench.worth(few, 1), lambda: bench.worth(few[:8], 0), lambda: bench.worth(few, 0, steps=3)):
        with pytest.raises(TypeError):
            other()


def test_the_rounds_of_a_federation_are_kept_in_a_kilobyte(kept, mnist5k, monkeypatch):
    bench = Bench(mnist5k, "lenet", None, ll.Recipe(steps=1, batch_size=8), progress=False)
    plans = [FederationPlan(clients=2, images_per_client=8, clients_per_round=1, rounds=2, local_steps=2)]
    case = Case(bench, plans, InversionSettings(8, 4, iterations=1))
    first = train_federations(case)
    for file in kept.glob("federation_*"):
        file.unlink()
    monkeypatch.setattr("leaklearn.experiments.rounds.federate", None)  # nothing is federated again
    pd.testing.assert_frame_equal(train_federations(case), first)
    with pytest.raises(TypeError):
        train_federations(replace(case, plans=[replace(plans[0], rounds=3)]))
