"""The measurements behind the notebooks, at tiny sizes."""

import math
from dataclasses import replace

import pytest

from leaklearn.data import load
from leaklearn.experiments.harvest import InversionSettings
from leaklearn.experiments.layer_sizes import train_by_factor
from leaklearn.experiments.leakage import attack_round, measure_leakage
from leaklearn.experiments.setting import Setting, crowd_settings, factor_settings
from leaklearn.experiments.sources import FederationSettings, compare_sources
from leaklearn.federated import make_clients
from leaklearn.learning import Recipe, train

TABLE = "dataset seed attack protocol fc_factor clients images_per_client local_steps leak_rate expected_leak_rate psnr"


@pytest.fixture(scope="module")
def data():
    return load("mnist5k")


def test_leakage_table_has_a_row_for_each_setting_and_seed(data):
    local = {"images_per_client": 16, "local_steps": 4, "lr": 0.01}
    settings = factor_settings([2.0], clients=2, **local) + crowd_settings([1, 3], fc_factor=2.0, **local)
    table = measure_leakage(data, settings, [0, 1], model="lenet", progress=False)
    assert len(table) == 2 * len(settings)
    assert set(TABLE.split()) <= set(table.columns)
    assert table["leak_rate"].between(0, 1).all()
    assert table.loc[table["attack"] == "trap_weights", "expected_leak_rate"].isna().all()
    again = measure_leakage(data, settings, [0, 1], model="lenet", progress=False)
    assert table.drop(columns="seconds").equals(again.drop(columns="seconds"))


def test_closed_forms_of_settings():
    assert Setting("robbing_the_fed", fc_factor=4).expected_leak_rate == pytest.approx((1 - 1 / 256) ** 63)
    crowd = Setting("robbing_the_fed", fc_factor=4, clients=10, secure=True)
    assert crowd.expected_leak_rate == pytest.approx((1 - 1 / 256) ** 639)
    assert Setting("loki", fc_factor=4, clients=10, secure=True).expected_leak_rate == pytest.approx(
        (1 - 1 / 256) ** 63
    )
    assert Setting("loki", "fedavg", 4, local_steps=8).expected_leak_rate == pytest.approx(0.874, abs=5e-4)
    assert math.isnan(Setting("trap_weights").expected_leak_rate)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Setting("lokki"), "unknown attack 'lokki'"),
        (lambda: Setting("loki", "fedprox"), "unknown protocol 'fedprox'"),
        (lambda: Setting("loki", "fedsgd", local_steps=2), "one local step, not 2"),
        (lambda: Setting("loki", "fedavg", local_steps=7), "64 images cannot be cut into 7"),
        (lambda: Setting("loki", fc_factor=0.0), "fc_factor is 0.0"),
        (lambda: Setting("loki", clients=0), "clients is 0"),
        (lambda: Setting("loki", "fedavg", local_steps=8, lr=0.0), "lr is 0.0"),
    ],
)
def test_bad_settings_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_more_clients_than_there_are_is_refused(data):
    with pytest.raises(ValueError, match="5 clients are to be attacked, but there are 3"):
        attack_round(Setting("loki", clients=5), make_clients(data.train, 3), data.test)


def test_too_few_images_for_the_clients_are_refused_before_work(data):
    message = "70 clients of 64 images need 4480, but mnist5k has 4000 training images"
    with pytest.raises(ValueError, match=message):
        measure_leakage(data, [Setting("loki", clients=70)], [0])
    with pytest.raises(ValueError, match=message):
        compare_sources(data, FederationSettings(clients=70), fc_factor=4, recipe=Recipe(), seeds=[0])


def test_sources_are_compared_on_the_same_clients(data):
    settings = FederationSettings(clients=20, images_per_client=32, clients_per_round=4, rounds=2, local_steps=4)
    found = compare_sources(
        data, settings, fc_factor=4, recipe=Recipe(epochs=1), seeds=[0, 1], model="lenet", progress=False
    )
    assert list(found.table.columns[:5]) == ["dataset", "seed", "source", "images", "accuracy"]
    assert found.table["source"].tolist() == ["fedavg", "lll", "centralised"] * 2
    lll = found.table[found.table["source"] == "lll"]
    assert (lll["images"] <= 640).all()
    assert (lll["images"] / 640).sub(lll["leak_rate"]).abs().max() < 0.01
    assert (found.leak.labels >= 0).all()
    assert list(found.rounds.columns) == ["dataset", "seed", "round", "accuracy"]
    assert "IID; 2 rounds of 4 clients" in str(settings)
    assert found.inverted is None
    assert len(found.same_images) == 0


def test_gradient_inversion_is_a_source(data, tmp_path):
    settings = FederationSettings(clients=20, images_per_client=32, clients_per_round=4, rounds=1, local_steps=4)
    inversion = InversionSettings(images=40, iterations=12)
    options = {"fc_factor": 4, "recipe": Recipe(epochs=1), "seeds": [0], "model": "lenet", "progress": False}
    found = compare_sources(data, settings, inversion=inversion, cache=tmp_path, **options)
    table = found.table.set_index("source")
    assert table.index.tolist() == ["fedavg", "gi", "lll", "centralised"]
    assert table.loc["gi", "images"] == 40
    assert table.loc["gi", "leak_rate"] == found.inverted.leak_rate
    assert found.same_images.loc[0, "accuracy_gi"] == table.loc["gi", "accuracy"]
    assert "40 images by fast with 12 iterations" in str(inversion)
    assert [path.name[:10] for path in tmp_path.iterdir()] == ["inversion_"]
    with pytest.raises(ValueError, match="have 4000 in whole batches of 4"):
        compare_sources(data, settings, inversion=InversionSettings(images=4004), **options)


def test_a_smaller_layer_leaks_less_and_is_trained_as_long(data, monkeypatch):
    lengths = []

    def recorded(network, leak, *, recipe, **options):
        lengths.append(recipe.total_steps(len(leak)))
        return train(network, leak, recipe=replace(recipe, steps=8), **options)

    monkeypatch.setattr("leaklearn.experiments.layer_sizes.train", recorded)
    recipe = Recipe(epochs=1)
    settings = FederationSettings(clients=12, images_per_client=32)
    options = {"recipe": recipe, "seeds": [0, 1], "model": "lenet", "progress": False}
    found = train_by_factor(data, settings, [4.0, 1.0], **options)
    assert lengths == [recipe.total_steps(4000)] * 4
    assert found["expected_leak_rate"].tolist() == pytest.approx([(1 - 1 / n) ** 31 for n in (128, 32)] * 2)
    assert (found["leak_rate"] - found["expected_leak_rate"]).abs().max() < 0.1
    # What is trained on is what the attacker accepts: nearly all that leaked, and nothing else.
    assert (found["images"] / (12 * 32) - found["leak_rate"]).abs().max() < 0.02
    assert found["accuracy"].between(0, 1).all()
    with pytest.raises(ValueError, match="4000 training images"):
        train_by_factor(data, FederationSettings(clients=70), [4.0], **options)
