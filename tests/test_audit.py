"""`ll.audit`: images and models of all kinds, what the tables say, and what they must not say."""

import math
from html import escape

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import save_file
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import leaklearn as ll
from leaklearn.attacks.labels.last_layer import last_linear
from leaklearn.auditing.command import folder, load_model
from leaklearn.auditing.inputs import OwnModel, image_set
from leaklearn.auditing.page import page
from leaklearn.cli import main


@pytest.fixture(scope="module")
def digits():
    train = ll.load("mnist5k").train[:60]
    return train.images, train.labels


class Gated(nn.Module):
    """A network whose last linear layer is not the last that is registered."""

    def __init__(self, channels=1, side=28, classes=10):
        super().__init__()
        self.conv = nn.Conv2d(channels, 6, 5, stride=2)
        inner = 6 * ((side - 3) // 2) ** 2
        self.head = nn.Linear(inner, classes)
        self.gate = nn.Linear(inner, inner)

    def forward(self, x):
        h = self.conv(x).relu().flatten(1)
        return self.head(h * self.gate(h).sigmoid())


@pytest.fixture(scope="module")
def found(digits):
    torch.manual_seed(0)
    return ll.audit(Gated(), *digits, protocol=ll.FedSGD(8), clients=3, seconds=0.1, progress=False)


# ---- what a user brings ----------------------------------------------------------------------------------------------


def test_images_of_all_kinds_are_the_same_images(digits):
    images, labels = digits
    floats = images.float() / 255
    for given in (images, images.numpy(), images[:, 0], floats, floats.permute(0, 2, 3, 1).numpy()):
        made, told = image_set(given, labels)
        assert torch.equal(made.images, images)
        assert torch.equal(made.labels, labels)
        assert not told
    for source in (TensorDataset(floats, labels), DataLoader(TensorDataset(floats, labels), batch_size=7)):
        assert torch.equal(image_set(source)[0].images, images)
    colour = images.expand(-1, 3, -1, -1)
    assert image_set(colour.permute(0, 2, 3, 1).numpy(), labels)[0].shape == (3, 28, 28)
    assert "no whole grey levels" in image_set(floats * 0.99, labels)[1][0]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (lambda x, y: (x, None), "labels are missing"),
        (lambda x, y: (x, y[:5]), "60 images and 5 labels"),
        (lambda x, y: (x[:0], y[:0]), "there are no images"),
        (lambda x, y: (x.float(), y), "float images span 0 to 255; .*mean= and std="),
        (lambda x, y: (x.int(), y), "images are torch.int32"),
        (lambda x, y: (x.flatten(1), y), r"images are \(60, 784\)"),
        (lambda x, y: (x, y - 20), "classes are counted from 0"),
        (lambda x, y: ([1, 2, 3], None), "gives no pairs of image and label"),
        (lambda x, y: ([], None), "list is empty"),
    ],
)
def test_images_that_do_not_fit_are_named(digits, given, message):
    with pytest.raises(ValueError, match=message):
        image_set(*given(*digits))


def test_the_last_executed_layer_is_found_and_its_input(digits):
    images = digits[0][:4].float() / 255
    model = Gated()
    own = OwnModel(model, images, mean=[0.5], std=[0.25])
    assert own.head_name == "head"
    assert own.classes == 10
    torch.testing.assert_close(own.head(own.features(images)), own(images))
    torch.testing.assert_close(own(images), model((images - 0.5) / 0.25))
    assert own.model is not model
    assert model.training
    assert [name for name, _ in model.named_children()] == ["conv", "head", "gate"]  # as it was
    assert last_linear(ll.Payload.of(own)) == "model.head"


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: nn.Sequential(nn.Flatten(), nn.Linear(100, 10)), "does not take images of shape"),
        (lambda: nn.Sequential(nn.Flatten(), nn.Linear(784, 10), nn.LogSoftmax(1)), "no linear layer whose output"),
        (lambda: nn.Conv2d(1, 4, 3), "class scores"),
    ],
)
def test_models_that_do_not_fit_are_named(digits, make, message):
    with pytest.raises(ValueError, match=message):
        OwnModel(make(), digits[0][:4].float() / 255)
    with pytest.raises(ValueError, match="mean has 3 values; the images have 1 channels"):
        OwnModel(Gated(), digits[0][:4].float() / 255, mean=[0.0, 0.0, 0.0])


# ---- what it says ----------------------------------------------------------------------------------------------------


def test_active_attacks_take_what_they_take_anywhere(found):
    rows = found.attacks.set_index("attack")
    assert set(rows.index) == {"peeled_loki", "peeled_bins", "robbing_the_fed", "gradient_inversion"}
    assert rows.loc["peeled_bins", "leak_rate"] > 0.9
    assert rows.loc["peeled_loki", "leak_rate"] > 0.9
    assert rows.loc["peeled_bins", "labels"] > 0.99  # by the last executed layer, not the last registered one
    assert (rows["images"] == 24).all()
    assert (rows["low"] <= rows["leak_rate"]).all()
    assert (rows["high"] >= rows["leak_rate"]).all()
    assert (rows["high"] > 0).all()  # nothing found is no zero
    assert rows.loc["gradient_inversion", "psnr_of_blank"] > 5
    assert "copying" in rows.loc["peeled_loki", "refused"]
    assert rows.loc["gradient_inversion", "refused"] == ""


def test_defences_are_told_with_the_attack_that_takes_most(found):
    rows = found.defences.set_index("defence")["leak_rate"]
    assert rows["updates of 16 bits"] > 0.5  # no attack but that with tiny features is stopped by them
    assert rows["half a grey level of noise on pixels"] > 0.8
    assert rows["clipping to 1, noise z = 1"] <= rows["clipping to 1, noise z = 0.01"] < 0.9


def test_nothing_is_called_safe(found):
    text = str(found) + page(found)
    assert "not proved safe" in found.verdict
    assert "safe" not in text.replace("not proved safe", "")
    assert any("iterations" in limit for limit in found.limits)
    assert any("was not tried" in limit for limit in found.limits)


def test_the_page_stands_alone(found, tmp_path):
    file = found.save(tmp_path / "sub" / "audit.html")
    text = file.read_text(encoding="utf-8")
    assert text.startswith("<!doctype html>")
    assert "data:image/png;base64," in text
    assert "http" not in text.split("base64,")[0]
    assert escape(found.verdict) in text
    assert "peeled_loki" not in text  # names in words
    assert found._repr_html_() in text


def test_sums_and_local_steps(digits):
    model = ll.build("lenet", ll.load("mnist5k"), width=4)
    about = {"protocol": ll.FedAvg(4, 2, 0.05), "clients": 2, "seconds": 0.1, "progress": False}
    found = ll.audit(model, *digits, **about, secure=True)
    assert found.attacks["attack"].tolist() == ["peeled_loki"]
    assert found.attacks["leak_rate"].iloc[0] > 0.9
    assert any("Gradient inversion of sums was not tried" in limit for limit in found.limits)
    assert "only their sum" in found.setting


def test_batch_norm_in_train_mode_is_said(digits):
    model = ll.build("convnet", ll.load("mnist5k"), width=4)
    found = ll.audit(model, *digits, protocol=ll.FedSGD(8), clients=1, seconds=0.1, progress=False)
    rows = found.attacks.set_index("attack")
    assert rows.loc["peeled_bins", "leak_rate"] > 0.8
    assert math.isnan(rows.loc["peeled_bins", "labels"])
    assert any("batch norm in train mode" in limit for limit in found.limits)
    assert not found.defences["defence"].str.contains("clipping").any()


def test_an_honest_first_layer_is_read(digits):
    model = nn.Sequential(nn.Flatten(), nn.Linear(784, 400), nn.ReLU(), nn.Linear(400, 10))
    found = ll.audit(model, *digits, protocol=ll.FedSGD(8), clients=2, seconds=0.1, progress=False)
    rows = found.attacks.set_index("attack")
    assert rows.loc["peeled_honest", "changes"] == "nothing"
    assert rows.loc["peeled_honest", "leak_rate"] > 0.5
    assert "one that only reads" in found.verdict or "changes nothing reads" in found.verdict


def test_dropout_and_frozen_parameters_are_said(digits):
    model = nn.Sequential(nn.Flatten(), nn.Linear(784, 20), nn.GELU(), nn.Dropout(0.5), nn.Linear(20, 10))
    model[1].weight.requires_grad_(False)
    found = ll.audit(model, *digits, protocol=ll.FedSGD(8), clients=1, seconds=0.1, progress=False)
    assert any(limit.startswith("Dropout, and what else is random") for limit in found.limits)
    assert any("1 parameter is frozen" in limit for limit in found.limits)
    assert model[3].p == 0.5
    assert found.attacks["leak_rate"].max() > 0.9


def test_too_few_images_are_named(digits):
    with pytest.raises(ValueError, match="a client uses 64 images, but 48 are there"):
        ll.audit(Gated(), *digits, protocol=ll.FedSGD(64))
    with pytest.raises(ValueError, match="3 images; an audit needs at least 4"):
        ll.audit(Gated(), digits[0][:3], digits[1][:3])
    with pytest.raises(ValueError, match="label 9 is beyond the model's 5 classes"):
        ll.audit(Gated(classes=5), *digits)


# ---- the command -----------------------------------------------------------------------------------------------------

NET = """
from torch import nn

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(nn.Flatten(), nn.Linear(3 * 12 * 12, 20), nn.GELU(), nn.Linear(20, 2))

    def forward(self, x):
        return self.layers(x)

other = 3
"""


@pytest.fixture
def photos(tmp_path):
    generator = np.random.default_rng(0)
    for name in ("cats", "dogs"):
        (tmp_path / "photos" / name).mkdir(parents=True)
        for i in range(12):
            pixels = generator.integers(0, 256, (16, 20, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / "photos" / name / f"{i}.png")
    (tmp_path / "net.py").write_text(NET, encoding="utf-8")
    return tmp_path


def test_the_command_writes_the_page(photos, capsys):
    given = ["--model", f"{photos}/net.py:Net", "--data", f"{photos}/photos", "--size", "12", "--batch-size", "6"]
    assert main(["audit", *given, "--clients", "2", "--seconds", "0.1", "--out", f"{photos}/out.html"]) == 0
    assert "Page:" in capsys.readouterr().out
    assert (photos / "out.html").stat().st_size > 10_000


@pytest.mark.parametrize(
    ("model", "data", "message"),
    [
        ("net.py", "photos", "give a Python file and a name in it"),
        ("nothing.py:Net", "photos", "nothing.py is not there"),
        ("net.py:Nets", "photos", "has no 'Nets'; it has Net"),
        ("net.py:Net", "nowhere", "nowhere is no folder"),
        ("net.py:Net", "photos/cats", "has no folders; one for each class"),
    ],
)
def test_bad_requests_are_one_line(photos, capsys, model, data, message):
    assert main(["audit", "--model", f"{photos}/{model}", "--data", f"{photos}/{data}"]) == 2
    said = capsys.readouterr().err
    assert message in said
    assert said.count("\n") == 1


def test_a_folder_of_images_and_a_file_of_a_model(photos):
    images, labels = folder(photos / "photos", 12)
    assert images.shape == (24, 3, 12, 12)
    assert images.dtype == torch.uint8
    assert labels.tolist() == [0] * 12 + [1] * 12
    assert load_model(f"{photos}/net.py:Net")(images.float() / 255).shape == (24, 2)
    (photos / "photos" / "cats" / "bad.png").write_bytes(b"none")
    with pytest.raises(ValueError, match=r"bad\.png cannot be read"):
        folder(photos / "photos", 12)


# ---- one update ------------------------------------------------------------------------------------------------------


def one_step(model, images, labels, lr=None):
    """The gradient of the mean loss, or the state after one step, as a loop of one's own has it."""
    loss = F.cross_entropy(model(images), labels)
    gradient = dict(zip(dict(model.named_parameters()), torch.autograd.grad(loss, model.parameters()), strict=True))
    if lr is None:
        return gradient
    return {name: value - lr * gradient[name] for name, value in model.state_dict().items()}


@pytest.fixture(scope="module")
def honest(digits):
    torch.manual_seed(1)
    model = nn.Sequential(
        nn.Conv2d(1, 8, 5, 2), nn.GELU(), nn.Conv2d(8, 8, 3), nn.GELU(), nn.Flatten(), nn.LazyLinear(10)
    )
    model(digits[0][:2].float())
    return model


def test_an_update_of_a_loop_of_ones_own(digits, honest, tmp_path):
    images, labels = digits[0][:2], torch.tensor([3, 7])
    before = honest.state_dict()
    about = {"shape": (1, 28, 28), "seconds": 4.0, "progress": False}
    floats = images.float() / 255
    gradient = one_step(honest, floats, labels)
    found = ll.audit_update(honest, before, gradient, protocol=ll.FedSGD(2), images=images, labels=labels, **about)
    assert found.check.ok
    assert found.counts.nonzero().flatten().tolist() == [3, 7]
    assert found.similarity > 0.9
    assert found.quality["psnr"].mean() > found.quality["psnr_of_mean_colour"].mean()
    assert found.marks["precision of its numbers"] == "float32"
    assert "1 of class 3, 1 of class 7" in found.verdict
    assert "not proved safe" in found.verdict
    page = found.save(tmp_path / "update.html").read_text(encoding="utf-8")
    assert "data:image/png;base64," in page
    assert escape(found.verdict) in page
    save_file(before, tmp_path / "before.safetensors")
    save_file(one_step(honest, floats, labels, 0.1), tmp_path / "after.safetensors")
    files = [tmp_path / "before.safetensors", tmp_path / "after.safetensors"]
    other = ll.audit_update(honest, *files, protocol=ll.FedAvg(2, 1, 0.1), **about | {"seconds": 0.1})
    assert other.check.ok
    assert other.counts.tolist() == found.counts.tolist()
    assert other.quality is None


def test_an_update_that_does_not_fit_is_no_all_clear(digits, honest):
    images, labels = digits[0][:4].float() / 255, torch.tensor([0, 1, 2, 3])
    after = one_step(honest, images, labels, 0.1)
    wrong = ll.FedAvg(4, 1, 0.001)  # a hundredth of the learning rate that was used
    found = ll.audit_update(
        honest, honest.state_dict(), after, protocol=wrong, shape=(1, 28, 28), seconds=0.1, progress=False
    )
    assert not found.check.ok
    assert "do not fit together, so nothing here tells what leaks" in found.verdict


def test_what_numbers_tell_of_a_defence(digits, honest):
    images, labels = digits[0][:4].float() / 255, torch.tensor([0, 1, 2, 3])
    gradient = one_step(honest, images, labels)
    about = {"protocol": ll.FedSGD(4), "shape": (1, 28, 28), "seconds": 0.1, "progress": False}
    half = {name: value.half().float() for name, value in gradient.items()}
    assert ll.audit_update(honest, honest.state_dict(), half, **about).marks["precision of its numbers"] == "float16"
    signs = {name: value.sign() * value.abs().mean() for name, value in gradient.items()}
    marks = ll.audit_update(honest, honest.state_dict(), signs, **about).marks
    assert marks["levels"].endswith(": quantised")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"before": "nowhere.safetensors"}, "before: nowhere.safetensors is not there"),
        ({"before": {}}, "does not fit Sequential: missing"),
        ({"after": {}}, "after lacks '0.weight'"),
        ({"shape": (3, 28, 28)}, "does not take images of shape"),
    ],
)
def test_states_that_do_not_fit_are_named(honest, change, message):
    state = honest.state_dict()
    given = {"before": state, "after": state, "protocol": ll.FedAvg(2, 1, 0.1), "shape": (1, 28, 28), **change}
    with pytest.raises(ValueError, match=message):
        ll.audit_update(honest, given.pop("before"), given.pop("after"), **given)
