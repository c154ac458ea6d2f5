"""The measurements behind the notebooks, at tiny sizes."""

import math

import pytest

from leaklearn.data import load
from leaklearn.experiments.leakage import attack_round, measure_leakage
from leaklearn.experiments.setting import Setting, crowd_settings, factor_settings
from leaklearn.federated import make_clients

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
