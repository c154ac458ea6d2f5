"""A whole federation inverted, at tiny sizes."""

import pytest
import torch

from leaklearn.data import load
from leaklearn.experiments.harvest import InversionSettings, batch_clients, harvest
from leaklearn.federated import make_clients


@pytest.fixture(scope="module")
def data():
    return load("mnist5k")


def test_settings_that_cannot_work_are_refused():
    with pytest.raises(ValueError, match="not whole batches of 4"):
        InversionSettings(images=10)
    with pytest.raises(ValueError, match="unknown attack"):
        InversionSettings(attack="slow")


def test_clients_take_turns_batch_by_batch(data):
    clients = make_clients(data.train, 600, seed=1)  # 6 or 7 images each
    batches = batch_clients(clients, 3)
    assert len(batches) == 1200
    assert len({batch.id for batch in batches}) == 1200
    index = torch.cat([batch.data.index for batch in batches])
    assert len(index.unique()) == len(index)
    assert torch.equal(batches[0].data.index, clients[0].data.index[:3])
    assert torch.equal(batches[600].data.index, clients[0].data.index[3:6])


def test_a_harvest_resumes_and_names_clients_and_turns(data, tmp_path):
    clients = make_clients(data.train, 5, seed=1)
    settings = InversionSettings(images=28, iterations=15)
    first = harvest(data, clients, settings, seed=1, cache=tmp_path, progress=False)
    assert first.leak.client.tolist() == [k for k in (0, 1, 2, 3, 4, 0, 1) for _ in range(4)]
    assert first.leak.round.tolist() == [0] * 20 + [1] * 8
    assert sorted(first.true.index[:4].tolist()) == sorted(clients[0].data.index[:4].tolist())
    assert sorted(first.true.index[20:24].tolist()) == sorted(clients[0].data.index[4:8].tolist())
    # The images lie where `quality` says they do.
    found = first.leak.images[torch.from_numpy(first.quality["reconstruction"].to_numpy().copy())]
    true = first.true.images[torch.from_numpy(first.quality["position"].to_numpy().copy())].float() / 255
    decibel = -10 * (found - true).square().flatten(1).mean(1).log10()
    torch.testing.assert_close(decibel, torch.tensor(first.quality["psnr"]).float(), atol=1e-3, rtol=1e-4)
    assert first.true.labels.tolist() == first.quality["label"].tolist()
    assert first.leak_rate == (first.quality["psnr"] >= 20).mean()
    again = harvest(data, clients, settings, seed=1, cache=tmp_path, progress=False)
    assert torch.equal(first.leak.images, again.leak.images)
    assert first.seconds == again.seconds
    other = harvest(data, clients, InversionSettings(images=28, iterations=4), seed=1, cache=tmp_path, progress=False)
    assert len(list(tmp_path.iterdir())) == 2
    assert other.quality["psnr"].mean() < first.quality["psnr"].mean()


def test_a_harvest_goes_through_local_steps(data):
    clients = make_clients(data.train, 2, seed=1)
    one, two, twice = (
        InversionSettings(images=4, batch_size=2, iterations=20, local_steps=steps, local_epochs=epochs, lr=0.05)
        for steps, epochs in ((1, 1), (2, 1), (2, 2))
    )
    found = {each: harvest(data, clients, each, seed=0, progress=False) for each in (one, two, twice)}
    assert [len(each.leak) for each in found.values()] == [4, 4, 8]
    assert found[two].leak_rate == 1
    assert found[twice].true.index[:4].unique().numel() == 2  # every image comes twice, and is looked for twice
    with pytest.raises(ValueError, match="cannot be cut into 3 equal steps"):
        InversionSettings(images=4, batch_size=4, local_steps=3)
