"""`leaklearn audit` and `leaklearn audit update`: pages, and bad requests that are one line and cost no time."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import save_file

from leaklearn.auditing import command
from leaklearn.auditing.command import folder, load_model
from leaklearn.cli import main

NET = """
from torch import nn

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(nn.Flatten(), nn.Linear(3 * 12 * 12, 20), nn.GELU(), nn.Linear(20, 2))

    def forward(self, x):
        return self.layers(x)

other = 3

class Wants(Net):
    def __init__(self, classes):
        super().__init__()
"""


@pytest.fixture
def photos(tmp_path):
    generator = np.random.default_rng(0)
    for name in ("cats", "dogs"):
        (tmp_path / "photos" / name).mkdir(parents=True)
        for i in range(12):
            pixels = generator.integers(0, 256, (16, 20, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / "photos" / name / f"{i}.png")
    (tmp_path / "one").mkdir()
    (tmp_path / "one" / "cats").symlink_to(tmp_path / "photos" / "cats")
    (tmp_path / "none" / "cats").mkdir(parents=True)
    (tmp_path / "net.py").write_text(NET, encoding="utf-8")
    return tmp_path


def test_a_picture_that_is_a_bomb_is_named(photos, capsys, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)
    assert main(["audit", "--model", f"{photos}/net.py:Net", "--data", f"{photos}/photos"]) == 2
    told = capsys.readouterr().err
    assert ".png cannot be read as an image: Image size" in told
    assert told.count("\n") == 1


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
        ("net.py:Nets", "photos", "has no 'Nets'; it has Net, Wants"),
        ("net.py:Net", "nowhere", "nowhere is not there"),
        ("net.py:Net", "net.py", "net.py is no folder"),
        ("net.py:Net", "one", "has images of one class only (folders: cats)"),
        ("net.py:Net", "none", "has no images"),
        ("net.py:Net", "photos/cats", "has no folders; one for each class"),
    ],
)
def test_bad_requests_are_one_line(photos, capsys, model, data, message):
    assert main(["audit", "--model", f"{photos}/{model}", "--data", f"{photos}/{data}"]) == 2
    said = capsys.readouterr().err
    assert message in said
    assert said.count("\n") == 1


def test_a_folder_of_images_and_a_file_of_a_model(photos):
    images, labels = folder(photos / "photos", (12, 12))
    assert images.shape == (24, 3, 12, 12)
    assert images.dtype == torch.uint8
    assert labels.tolist() == [0] * 12 + [1] * 12
    assert load_model(f"{photos}/net.py:Net")(images.float() / 255).shape == (24, 2)
    (photos / "photos" / "cats" / "bad.png").write_bytes(b"none")
    with pytest.raises(ValueError, match=r"bad\.png cannot be read"):
        folder(photos / "photos", (12, 12))


# ---- leaklearn audit update ------------------------------------------------------------------------------------------


@pytest.fixture
def trained(photos):
    """The files of one step of training on four of the photos, and their gradient."""
    torch.manual_seed(0)
    model = load_model(f"{photos}/net.py:Net")
    images, labels = folder(photos / "photos", (12, 12))
    chosen = [0, 1, 12, 13]
    loss = F.cross_entropy(model(images[chosen].float() / 255), labels[chosen])
    names = dict(model.named_parameters())
    gradient = dict(zip(names, torch.autograd.grad(loss, names.values()), strict=True))
    save_file(model.state_dict(), photos / "before.safetensors")
    save_file({name: names[name].detach() - 0.1 * gradient[name] for name in names}, photos / "after.safetensors")
    save_file(gradient, photos / "gradient.safetensors")
    for name in ("cats", "dogs"):
        (photos / "true" / name).mkdir(parents=True)
        for i in range(2):
            (photos / "true" / name / f"{i}.png").write_bytes((photos / "photos" / name / f"{i}.png").read_bytes())
    return photos


def update(folder, *more, before="before.safetensors", after="after.safetensors", model="net.py:Net", shape="3 12 12"):
    given = ["audit", "update", f"{folder}/{before}", f"{folder}/{after}", "--model", f"{folder}/{model}"]
    return main([*given, "--shape", *shape.split(), "--batch-size", "4", "--out", f"{folder}/update.html", *more])


def test_the_update_of_two_files_is_audited(trained, capsys):
    assert update(trained, "--lr", "0.1", "--seconds", "0.1") == 0
    said = capsys.readouterr().out
    assert "The labels read from it: 2 of class 0, 2 of class 1" in said
    assert "not proved safe" in said
    assert f"Page: {trained}/update.html" in said
    assert (trained / "update.html").stat().st_size > 10_000


def test_a_gradient_beside_the_truth_and_noise_that_is_not_there(trained, capsys):
    more = ["--gradient", "--data", f"{trained}/true", "--noise", "1", "--seconds", "0.1"]
    assert update(trained, *more, after="gradient.safetensors") == 0
    said = capsys.readouterr().out
    assert "beside what the protocol sends of the true images: 1 times as long" in said
    assert "of 4 show the true ones" in said
    assert "The defence that was named is not in it" in said


@pytest.mark.parametrize(
    ("change", "more", "message"),
    [
        ({}, [], "--lr is missing"),
        ({}, ["--gradient", "--local-steps", "3"], "--gradient is of one step, not of --local-steps 3"),
        ({"before": "none.safetensors"}, ["--lr", "1"], "none.safetensors is not there"),
        ({"after": "net.py"}, ["--lr", "1"], "net.py is no safetensors file, or a damaged one"),
        ({"after": "cut.safetensors"}, ["--lr", "1"], "is no safetensors file, or a damaged one"),
        ({"after": "other.safetensors"}, ["--lr", "1"], "after has strange.weight, which the model has not"),
        ({"before": "other.safetensors"}, ["--lr", "1"], "does not fit Net: missing layers.1.weight, layers.1.bias"),
        ({"after": "wide.safetensors"}, ["--lr", "1"], "layers.1.weight is (30, 432) after, the model's is (20, 432)"),
        ({"before": "wide.safetensors"}, ["--lr", "1"], "layers.1.weight is (30, 432), the model's is (20, 432)"),
        ({"shape": "1 12 12"}, ["--lr", "1"], "Net does not take images of shape (2, 1, 12, 12)"),
        ({"shape": "0 12 12"}, ["--lr", "1"], "--shape is 0 12 12"),
        ({}, ["--lr", "-1"], "lr is -1.0"),
        ({}, ["--lr", "1", "--noise", "-1"], "multiplier is -1.0"),
        ({}, ["--lr", "1", "--seconds", "-1"], "seconds is -1.0"),
        ({}, ["--lr", "1", "--mean", "0.5"], "mean has 1 values; the images have 3 channels"),
        ({"model": "net.py:other"}, ["--lr", "1"], "gives a int, no torch.nn.Module"),
        ({"model": "net.py:Wants"}, ["--lr", "1"], "Wants() fails (TypeError"),
        ({"model": "broken.py:Net"}, ["--lr", "1"], "broken.py cannot be run: ZeroDivisionError"),
        ({}, ["--lr", "1", "--data", "true"], "true is not there"),
        ({}, ["--lr", "1", "--data", "PHOTOS"], "24 true images; by FedAvg"),
        ({}, ["--lr", "1", "--out", "PHOTOS"], "a folder; give a file"),
    ],
)
def test_an_update_that_does_not_fit_is_one_line(trained, capsys, monkeypatch, change, more, message):
    monkeypatch.setattr("leaklearn.attacks.GradientInversion.invert", None)  # whatever is refused costs no time
    state = command.read_state(trained / "before.safetensors", "before")
    save_file({"strange.weight": torch.zeros(2), **state}, trained / "other.safetensors")
    save_file({**state, "layers.1.weight": torch.zeros(30, 432)}, trained / "wide.safetensors")
    (trained / "cut.safetensors").write_bytes((trained / "after.safetensors").read_bytes()[:-100])
    (trained / "broken.py").write_text("1 / 0", encoding="utf-8")
    if change.get("before") == "other.safetensors":
        save_file({"strange.weight": torch.zeros(2)}, trained / "other.safetensors")
    more = [each.replace("PHOTOS", f"{trained}/photos") for each in more]
    assert update(trained, *more, **change) == 2
    said = capsys.readouterr().err
    assert message in said
    assert said.count("\n") == 1


def test_what_is_missing_is_named_by_the_parser(capsys):
    for given, message in ((["audit"], "--model, --data"), (["audit", "update"], "--model, before, after, --shape")):
        with pytest.raises(SystemExit) as stopped:
            main(given)
        assert stopped.value.code == 2
        assert f"the following arguments are required: {message}" in capsys.readouterr().err
