"""One round taken apart (notebook 00): truth, bins and reconstructions, their pictures, and the explorer."""

import matplotlib.pyplot as plt
import pytest
import torch

from leaklearn.attacks import RobbingTheFed, TrapWeights
from leaklearn.data import load
from leaklearn.evaluation import Truth, score
from leaklearn.experiments.overview import dissect
from leaklearn.federated import FedSGD, make_clients, respond, round_truth
from leaklearn.models import build
from leaklearn.report.pictures import bins_chart, client_view, image_grid, pairs
from leaklearn.widgets import explore_clients


@pytest.fixture(scope="module")
def data():
    return load("mnist5k")


def attacked(data, attack, clients):
    """Attack, payload, updates, truth, as notebook 00 has them."""
    group, protocol = make_clients(data.train, 100, seed=0)[:clients], FedSGD(attack.images_per_client)
    payload = attack.payload(build("lenet", data, seed=0), public=data.test)
    updates = respond(group, payload, protocol, only=attack.reads)
    return attack, payload, updates, Truth(*round_truth(group, protocol))


@pytest.fixture(scope="module")
def round_(data):
    return attacked(data, RobbingTheFed(4.0, 32), 4)


@pytest.fixture(autouse=True)
def _close_figures():
    yield
    plt.close("all")


def test_anatomy_tells_truth_bins_and_reconstructions_apart(round_):
    attack, payload, updates, _ = round_
    leak = attack.reconstruct(payload, updates)
    for client in range(4):
        anatomy = dissect(*round_, client)
        alone = (anatomy.bin >= 0) & (anatomy.occupancy[anatomy.bin.clamp_min(0)] == 1)
        assert anatomy.occupancy.sum() == (anatomy.bin >= 0).sum()
        assert (anatomy.measured.diff() >= 0).all()
        assert torch.allclose(anatomy.measured, anatomy.images.double().flatten(1).mean(1), atol=1e-6)
        inside = anatomy.bin >= 0
        assert (anatomy.measured[inside] >= anatomy.low[anatomy.bin[inside]]).all()
        assert (anatomy.measured[inside] <= anatomy.high[anatomy.bin[inside]]).all()
        # Alone in its bin an image is exact; a mixture is not, but where one image outweighs the others by far.
        assert (anatomy.psnr[alone] > 60).float().mean() > 0.95
        assert (anatomy.psnr[~alone] < 40).float().mean() > 0.8
        assert int(anatomy.accepted.sum()) == int((leak.client == client).sum())


def test_true_labels_are_those_of_the_images(data, round_):
    attack, payload, updates, truth = round_
    leak = attack.reconstruct(payload, updates)
    labelled = leak.with_labels(score(leak, truth).true_labels)
    pixels = {
        image.numpy().tobytes(): int(label) for image, label in zip(data.train.images, data.train.labels, strict=True)
    }
    for image, label in zip(labelled.images, labelled.labels, strict=True):
        assert pixels[(image * 255).round().to(torch.uint8).numpy().tobytes()] == int(label)


def test_anatomy_refuses_what_it_cannot_look_into(data, round_):
    with pytest.raises(ValueError, match="client 9 is not among the 4 updates"):
        dissect(*round_, 9)
    with pytest.raises(ValueError, match="TrapWeights has no bins"):
        dissect(*attacked(data, TrapWeights(4.0, 16), 2))


def test_pictures_draw_every_image(data):
    anatomy = dissect(*attacked(data, RobbingTheFed(4.0, 16), 2), 1)
    assert len(bins_chart(anatomy).lines) == 16
    assert "accepted" in client_view(anatomy, int(anatomy.accepted.nonzero()[0])).axes[2].get_title()
    titles = [ax.get_title() for ax in pairs(anatomy, columns=8, rows=2).axes]
    assert sum(" dB" in title for title in titles) == 16
    sheet = image_grid(torch.rand(5, 3, 8, 8), columns=4).axes[0].images[0].get_array()
    assert sheet.shape == (20, 40, 3)


def test_explorer_changes_its_picture_with_both_sliders(round_):
    client, image, _, picture = (explorer := explore_clients(*round_)).children
    seen = {bytes(picture.value)}
    for control, value in ((image, 3), (client, 2)):
        control.value = value
        seen.add(bytes(picture.value))
    assert len(seen) == 3
    assert all(value.startswith(b"\x89PNG") for value in seen)
    assert (client.max, image.max) == (3, 31)
    assert len(explorer.children) == 4
