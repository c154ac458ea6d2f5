"""`ll.audit`: images and models of all kinds, what the tables say, and what they must not say."""

import math
import re
from dataclasses import replace

import matplotlib.pyplot as plt
import pytest
import torch
from bs4 import BeautifulSoup
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import leaklearn as ll
from leaklearn.attacks.labels.last_layer import last_linear
from leaklearn.auditing import figures
from leaklearn.auditing.inputs import OwnModel, image_set
from leaklearn.auditing.off_grid import AsGiven
from leaklearn.auditing.page import page
from leaklearn.auditing.words import NOT_TESTED, in_percent, next_steps, share_of
from leaklearn.federated import Dither


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
    assert torch.equal(image_set(floats * 0.99, labels)[0].floats, floats * 0.99)


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
    text = str(found) + BeautifulSoup(page(found), "html.parser").body.text
    assert "not proved safe" in found.verdict
    assert not re.search(r"\b(safe|secure)\b(?! aggregation)", text.replace("not proved safe", ""))
    assert any("iterations" in limit for limit in found.limits)
    assert any("was not tried" in limit for limit in found.limits)


def test_the_page_stands_alone(found, tmp_path):
    file = found.save(tmp_path / "sub" / "audit.html")
    text = file.read_text(encoding="utf-8")
    assert text.startswith("<!DOCTYPE html>")
    read = BeautifulSoup(text, "html.parser")
    assert all(image["src"].startswith("data:image/webp;base64,") and image["alt"] for image in read.find_all("img"))
    assert not re.search(r'(src|href)="http', text)
    assert found.verdict in read.text
    assert "peeled_loki" not in text  # names in words
    assert [head.text for head in read.select("h2")][-2:] == ["What this rests on, and what was not tried", "Words"]
    linked = [link["href"][1:] for link in read.select("nav a")]
    assert linked == [section["id"] for section in read.select("section")]
    bare = found._repr_html_()
    assert "<style" not in bare
    assert found.verdict in BeautifulSoup(bare, "html.parser").text


def test_a_test_that_was_not_done_counts_as_no_warning(found):
    assert any("the tests warn of" in text for text in next_steps(found))
    untested = replace(found, attacks=found.attacks.assign(refused=NOT_TESTED))
    said = " ".join(next_steps(untested))
    assert "too few for the tests" in said
    assert "the tests warn of" not in said


def test_every_line_of_the_tables_tells_what_it_leaves_open(found):
    for table in (found.attacks, found.defences):
        assert table["limit"].str.len().min() > 30
    inverted = found.attacks.set_index("attack").loc["gradient_inversion", "limit"]
    assert re.match(r"\d+ iterations on 3 clients", inverted)
    tried = found.defences.set_index("defence").loc["clipping to 1, noise z = 1", "limit"]
    assert tried.startswith("Tried: LOKI; Robbing the Fed, bounded bins; each knows the defence. Not tried: inversion")
    read = BeautifulSoup(page(found), "html.parser")
    for table in read.select("table"):
        heads = [head.text for head in table.select("thead th")]
        assert heads[-1] == "What it leaves open"
        for row in table.select("tbody tr"):
            assert [cell["data-label"] for cell in row.find_all(["th", "td"])] == heads  # for phones
    steps = [item.text for item in read.select("#next li")]
    assert any("clipping to 1, noise z = 1 (left: 0 %, at most" in step for step in steps)
    assert any("the tests warn of 3 of the 3 changed models" in step for step in steps)


def test_figures_show_every_row(found):
    chart = figures.attacks_chart(found)
    assert len(chart.axes[0].get_yticklabels()) == len(found.attacks)
    chart = figures.defences_chart(found)
    assert len(chart.axes[0].get_yticklabels()) == len(found.defences)
    plt.close("all")


def test_sums_and_local_steps(digits):
    model = ll.build("lenet", ll.load("mnist5k"), width=4)
    about = {"protocol": ll.FedAvg(4, 2, 0.05), "clients": 2, "seconds": 0.1, "progress": False}
    found = ll.audit(model, *digits, **about, secure=True)
    assert found.attacks["attack"].tolist() == ["peeled_loki"]
    assert found.attacks["leak_rate"].iloc[0] > 0.9
    assert any("Gradient inversion of sums was not tried" in limit for limit in found.limits)
    assert "sees only their sum" in found.setting


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


def test_images_off_the_grid_are_attacked_as_they_are(digits):
    images, labels = digits
    floats = (images.float() / 255 * 0.9 + 0.0137).clamp(0, 1)
    model = nn.Sequential(nn.Flatten(), nn.Linear(784, 20), nn.GELU(), nn.Linear(20, 10))
    found = ll.audit(model, floats, labels, protocol=ll.FedSGD(8), clients=2, seconds=0.1, progress=False)
    rows = found.attacks.set_index("attack")
    assert rows.loc["peeled_bins", "leak_rate"] > 0.9
    assert any("attacked as they are" in limit for limit in found.limits)
    assert any("not on the 8-bit grid" in limit for limit in found.limits)  # the attacks noticed
    defended = found.defences.set_index("defence")["leak_rate"]
    assert defended["half a grey level of noise on pixels"] > 0.8
    assert defended["clipping to 1, noise z = 1"] < 0.5


def test_clients_train_on_what_was_given(digits):
    floats = digits[0].float() / 255 * 0.9 + 0.0137
    images, _ = image_set(floats, digits[1])
    clients = AsGiven.of(images)
    torch.testing.assert_close(clients.given(images.float().view(2, 30, 1, 28, 28)).flatten(0, 1), floats)
    assert AsGiven.of(images[:5]) is None  # a selection is a plain set
    dithered = replace(clients, inner=Dither(0.5)).trained_on(images.float().unsqueeze(0), [0])[0]
    assert 0 < float((dithered - floats).abs().max()) <= 0.5 / 255 + 1e-6


@pytest.mark.parametrize(
    ("leaked", "images", "told"),
    [
        (0, 2560, ("0", "0", "0.15")),  # not "0 to 0": what may still be there is told
        (16, 2560, ("0.62", "0.39", "1.01")),
        (0, 8, ("0", "0", "32")),
        (8, 8, ("100", "68", "100")),
    ],
)
def test_a_share_in_percent_never_rounds_what_may_be_there_to_none(leaked, images, told):
    assert in_percent(share_of(leaked, images)) == told
