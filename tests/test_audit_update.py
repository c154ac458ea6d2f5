"""`ll.audit_update`: what one update of a loop of one's own gives away, and which defence its numbers show."""

import copy
from html import escape

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import nn

import leaklearn as ll
from leaklearn.auditing.marks import marks_of, verdict_on
from leaklearn.auditing.seen import quality_where_seen, seen_pixels
from leaklearn.federated import Clip, Dither, GaussianNoise, HalfPrecision, Payload, PrivateSGD, Quantise, Sign, TopK


@pytest.fixture(scope="module")
def digits():
    train = ll.load("mnist5k").train[:60]
    return train.images, train.labels


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
    assert "data:image/webp;base64," in page
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
    assert marks["levels"].endswith("quantised")
    assert not marks["levels"].endswith("not quantised")
    noisy = {name: value + 0.01 * torch.randn_like(value) for name, value in gradient.items()}
    found = ll.audit_update(honest, honest.state_dict(), noisy, **about, defence=PrivateSGD(0.04, 1.0))
    assert found.verdict.startswith("The update has the marks of a defence (noise)")
    assert found.defended.startswith("yes")
    assert "not proved safe" in found.verdict


DEFENCES = {
    None: [],
    Clip(0.1): ["clipping"],
    PrivateSGD(0.01, 1.0): ["noise"],
    GaussianNoise(0.1, 0.5): ["noise"],
    TopK(0.1): ["dropped coordinates"],
    Sign(): ["signs"],
    Quantise(8): ["quantisation"],
    HalfPrecision(): ["16-bit numbers"],
    HalfPrecision("bfloat16"): ["16-bit numbers"],
    Dither(0.5): [],
}


@pytest.mark.parametrize("protocol", [ll.FedSGD(8), ll.FedAvg(8, 3, 0.5)], ids=lambda protocol: protocol.kind)
@pytest.mark.parametrize("defence", DEFENCES, ids=str)
def test_each_defence_is_known_by_its_marks(digits, honest, defence, protocol):
    payload = Payload.of(honest)
    client = ll.make_clients(ll.load("mnist5k").train, 100, seed=0)[:1]
    updates = ll.respond(client, payload, protocol, defence=defence)
    marks = marks_of(payload, updates)
    assert marks.seen == DEFENCES[defence]
    told = {each: verdict_on(each, marks, updates)[:3] for each in DEFENCES if each is not None}
    if defence not in (None, Clip(0.1), Dither(0.5)):
        assert told[defence] == "yes"
    for other in (PrivateSGD(0.01, 1.0), HalfPrecision(), Sign(), Quantise(8)):
        if other != defence and not (defence == Sign() and other == Quantise(8)):
            assert not told[other].startswith("yes")
    assert told[Dither(0.5)].startswith("?")
    if "noise" in marks.seen:
        assert marks.low < defence.deviation(protocol) < marks.high


def test_what_is_no_noise_is_not_called_noise(digits, honest):
    images, labels = digits[0][:16].float() / 255, digits[1][:16]
    payload = Payload.of(honest)

    def marks(loss, decay=0.0):
        names = dict(honest.named_parameters())
        found = torch.autograd.grad(loss(honest(images)), names.values())
        tensors = {n: (g + decay * names[n].detach()).unsqueeze(0) for n, g in zip(names, found, strict=True)}
        return marks_of(payload, ll.Updates("gradient", tensors, {}, torch.tensor([0]), ll.FedSGD(16)))

    one_hot = F.one_hot(labels, 10).float()
    assert marks(lambda scores: F.cross_entropy(scores, labels)).noise == 0
    assert marks(lambda scores: F.cross_entropy(scores, labels, label_smoothing=0.1)).noise == 0
    assert "may be another one" in marks(lambda scores: F.binary_cross_entropy_with_logits(scores, one_hot)).why
    decayed = marks(lambda scores: F.cross_entropy(scores, labels), decay=0.1)
    assert "weight decay" in decayed.why
    assert "noise" not in decayed.seen


def test_the_honest_update_of_the_true_images_is_compared(digits, honest):
    payload, client = Payload.of(honest), ll.make_clients(ll.load("mnist5k").train, 100, seed=0)[:1]
    batches = ll.draw_batches(client, ll.FedSGD(8))
    images, labels = ll.gather(client, batches.flat)
    for defence, factor in ((None, 1.0), (Clip(0.05), None)):
        updates = ll.respond(client, payload, ll.FedSGD(8), defence=defence)
        found = marks_of(payload, updates, (images[0].float() / 255, labels[0]))
        assert found.error < 1e-6
        assert found.factor == pytest.approx(1.0, abs=1e-4) if factor else found.factor < 0.5


def test_pixels_that_the_network_never_sees_hide_nothing(digits):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 8, 5, 3), nn.GELU(), nn.Flatten(), nn.Linear(8 * 8 * 8, 10))
    seen = seen_pixels(model, (1, 28, 28))
    assert seen[:26, :26].all()
    assert int(seen.sum()) == 26 * 26  # 5 + 3 * 7 of 28
    images, labels = digits[0][:2], torch.tensor([3, 7])
    floats = images.float() / 255
    gradient = one_step(model, floats, labels)
    about = {"protocol": ll.FedSGD(2), "shape": (1, 28, 28), "seconds": 0.1, "progress": False}
    found = ll.audit_update(model, model.state_dict(), gradient, images=images, labels=labels, **about)
    assert any("never looks at 14 % of the pixels" in limit for limit in found.limits)
    read = torch.where(seen, floats, 1 - floats)  # all that can be read is right
    leak = ll.Leak(read, torch.ones(2), *[torch.zeros(2, dtype=torch.int64)] * 3)
    truth = ll.Truth(images.unsqueeze(0), labels.unsqueeze(0), torch.tensor([0]))
    public = ll.load("mnist5k").test[:50]
    assert quality_where_seen(leak, truth, public, seen)["readable"].all()
    assert not quality_where_seen(leak, truth, public, torch.ones_like(seen))["readable"].any()
    assert seen_pixels(nn.Sequential(nn.Flatten(), nn.Linear(784, 10)), (1, 28, 28)).all()


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


def test_a_client_may_leave_out_what_is_frozen(digits, honest):
    images, labels = digits[0][:2].float() / 255, torch.tensor([3, 7])
    model = copy.deepcopy(honest)
    model[0].requires_grad_(False)
    loss = F.cross_entropy(model(images), labels)
    sent = {name: value for name, value in model.named_parameters() if value.requires_grad}
    gradient = dict(zip(sent, torch.autograd.grad(loss, list(sent.values())), strict=True))
    about = {"shape": (1, 28, 28), "seconds": 2.0, "progress": False}
    found = ll.audit_update(model, model.state_dict(), gradient, protocol=ll.FedSGD(2), **about)
    assert found.counts.nonzero().flatten().tolist() == [3, 7]
    with pytest.raises(ValueError, match=r"after lacks '0\.weight'"):
        ll.audit_update(honest, model.state_dict(), gradient, protocol=ll.FedSGD(2), **about)
