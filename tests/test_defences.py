"""Defences against slow direct computations, one client and one image at a time; the attack that knows the defence."""

import math
from dataclasses import replace
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from tiny import image_set

from leaklearn.attacks import Loki, RobbingTheFed, TrapWeights
from leaklearn.attacks.linear.base import roundoff
from leaklearn.attacks.linear.defended import Wiener, reconstruct_defended
from leaklearn.data import load
from leaklearn.evaluation import Truth, score
from leaklearn.federated import (
    Clip,
    Defence,
    FedAvg,
    FedSGD,
    GaussianNoise,
    HalfPrecision,
    Payload,
    PrivateSGD,
    Quantise,
    Sign,
    Soteria,
    TopK,
    Updates,
    draw_batches,
    federate,
    gather,
    make_clients,
    private,
    respond,
    round_truth,
)
from leaklearn.federated.clients import client_seed
from leaklearn.federated.defences import Dither, SubpixelShift
from leaklearn.federated.soteria import exact_slopes, slope_along
from leaklearn.learning import evaluate
from leaklearn.models import build

DATA = image_set(96)
CLIENTS = make_clients(DATA, 6, seed=0)
PROTOCOL = FedSGD(8)


@pytest.fixture(scope="module")
def payload():
    return Payload.of(build("convnet", DATA, norm="group", width=4, seed=1))


@pytest.fixture(scope="module")
def plain(payload):
    return respond(CLIENTS, payload, PROTOCOL, seed=3)


def defended(payload, defence, **options):
    return respond(CLIENTS, payload, options.pop("protocol", PROTOCOL), seed=3, defence=defence, **options)


def flat(updates):
    return torch.cat([value.flatten(1) for value in updates.tensors.values()], 1)


def test_no_defence_changes_nothing(payload, plain):
    assert torch.equal(flat(defended(payload, Defence())), flat(plain))


def test_clip_scales_whole_updates(payload, plain):
    u, norm = flat(plain), float(flat(plain).norm(dim=1).median())
    for row, sent in zip(u, flat(defended(payload, Clip(norm))), strict=True):
        length = row.norm()
        assert torch.allclose(sent, row * min(1.0, norm / float(length)), rtol=1e-5, atol=1e-9)
    assert torch.equal(flat(defended(payload, Clip(1e6))), u)


def test_gaussian_noise_has_its_size_and_its_own_seed(payload, plain):
    clipped = flat(defended(payload, Clip(0.5)))
    noise = flat(defended(payload, GaussianNoise(0.3, 0.5))) - clipped
    assert float(noise.std()) == pytest.approx(0.15, rel=0.02)
    assert abs(float(noise.mean())) < 4 * 0.15 / math.sqrt(noise.numel())
    assert float(torch.corrcoef(noise).fill_diagonal_(0).abs().max()) < 0.1  # clients are independent
    one_by_one = flat(defended(payload, GaussianNoise(0.3, 0.5), at_once=1))
    assert torch.allclose(one_by_one, clipped + noise, atol=1e-5)
    other = respond(CLIENTS, payload, PROTOCOL, seed=4, defence=GaussianNoise(0.3, 0.5), batches=draw(3))
    assert not torch.allclose(flat(other) - clipped, noise, atol=1e-2)
    error = GaussianNoise(0.3, 0.5).error(plain, "head.weight")
    assert torch.allclose(error, torch.full((6,), 0.15))


def draw(seed):
    return draw_batches(CLIENTS, PROTOCOL, seed)


def test_noise_on_a_sum_lies_on_disjoint_coordinates_from_all_clients():
    """The dense model of LOKI: every client adds noise to all columns, also to those of the others."""
    attack = Loki(2.0, 8)
    payload = attack.payload(build("lenet", DATA), DATA)
    noise = GaussianNoise(0.1, 1.0)
    total = respond(CLIENTS, payload, PROTOCOL, seed=3, secure=True, defence=noise)
    clean = respond(CLIENTS, payload, PROTOCOL, seed=3, secure=True, defence=Clip(1.0))
    for name in ("block.fc1.weight", "block.fc2.weight"):
        spread = (total.tensors[name] - clean.tensors[name]).std()
        assert float(spread) == pytest.approx(0.1 * math.sqrt(6), rel=0.05), name
        assert torch.allclose(noise.error(total, name), torch.tensor(0.1 * math.sqrt(6)))


def test_top_k_keeps_the_largest(payload, plain):
    for row, sent in zip(flat(plain), flat(defended(payload, TopK(0.05))), strict=True):
        count = math.ceil(0.05 * len(row))
        order = sorted(range(len(row)), key=lambda i: -abs(float(row[i])))
        kept = set((sent != 0).nonzero().flatten().tolist())
        assert len(kept) == count
        assert kept == set(order[:count])
        assert all(sent[i] == row[i] for i in kept)
    assert torch.equal(flat(defended(payload, TopK(1.0))), flat(plain))


def test_sign_sends_signs_and_a_scale(payload, plain):
    sent = defended(payload, Sign())
    for name, value in plain.tensors.items():
        for row, got in zip(value, sent.tensors[name], strict=True):
            assert torch.allclose(got, torch.sign(row) * row.abs().mean(), rtol=1e-5)


@pytest.mark.parametrize(("kind", "error"), [("float16", 2.0**-11), ("bfloat16", 2.0**-8)])
def test_half_precision_rounds_by_its_significant_bits(payload, plain, kind, error):
    sent = defended(payload, HalfPrecision(kind))
    for name, value in plain.tensors.items():
        mine = sent.tensors[name]
        assert mine.dtype == value.dtype
        assert (mine - value).abs().le(error * value.abs() + 3e-8).all()
        assert roundoff(mine) >= error  # as an attacker sees it
        assert roundoff(value) == 2.0**-24
    with pytest.raises(ValueError, match="unknown kind 'float8'"):
        HalfPrecision("float8")


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_quantise_has_its_levels_and_no_bias(payload, plain, bits):
    defence, levels = Quantise(bits), 2 ** (bits - 1) - 1
    sent = defended(payload, defence)
    for name, value in plain.tensors.items():
        for k, (row, got) in enumerate(zip(value, sent.tensors[name], strict=True)):
            step = row.abs().max() / levels
            assert torch.allclose(got / step, (got / step).round(), atol=1e-3)
            assert float((got - row).abs().max()) <= float(step) * 1.001
            # The server sees the step, unless by chance not even the largest value was rounded up to itself.
            assert float(defence.error(sent, name)[k]) == pytest.approx(float(step) / math.sqrt(6), rel=1e-3)
    errors = {name: torch.zeros_like(value) for name, value in plain.tensors.items()}
    rounds = 64
    for seed in range(rounds):
        again = defence.change(plain.tensors, [1000 * seed + k for k in range(6)])
        for name in errors:
            errors[name] += (again[name] - plain.tensors[name]) / rounds
    step = plain.tensors["head.weight"].flatten(1).abs().amax(1) / levels
    assert float((errors["head.weight"].flatten(1) / step.unsqueeze(1)).abs().mean()) < 0.5 / math.sqrt(rounds)


def slow_private(payload, images, labels, clip):
    """One image after another by plain autograd."""
    model = build("convnet", DATA, norm="group", width=4, seed=1)
    model.load_state_dict({**payload.parameters, **payload.buffers})
    total = [torch.zeros_like(p) for p in model.parameters()]
    for image, label in zip(images, labels, strict=True):
        loss = F.cross_entropy(model(image.unsqueeze(0)), label.unsqueeze(0))
        gradient = torch.autograd.grad(loss, list(model.parameters()))
        length = torch.cat([g.flatten() for g in gradient]).norm()
        for t, g in zip(total, gradient, strict=True):
            t += g * min(1.0, clip / float(length)) / len(images)
    return dict(zip(dict(model.named_parameters()), total, strict=True))


@pytest.mark.parametrize("ghost_from", [10, 10**9])
@pytest.mark.parametrize("clip", [0.5, 1e3])
def test_private_gradients_are_clipped_image_by_image(payload, monkeypatch, ghost_from, clip):
    monkeypatch.setattr(private, "GHOST_WEIGHTS", ghost_from)
    assert bool(private.wide_layers(payload)) == (ghost_from == 10)
    sent = defended(payload, PrivateSGD(0.0, clip))
    images, labels = gather(CLIENTS, draw(3).flat)
    for k in range(len(CLIENTS)):
        expected = slow_private(payload, images[k].float() / 255, labels[k], clip)
        for name, value in expected.items():
            assert torch.allclose(sent.tensors[name][k], value, atol=1e-6), name
    if clip == 1e3:  # nothing is clipped: the ordinary gradient
        assert torch.allclose(flat(sent), flat(respond(CLIENTS, payload, PROTOCOL, seed=3)), atol=1e-6)
    else:
        assert (flat(sent).norm(dim=1) <= clip).all()


@pytest.mark.parametrize("ghost_from", [10, 10**9])
def test_private_local_steps_follow_their_own_weights(payload, monkeypatch, ghost_from):
    """FedAvg without noise: every step's clipped gradient at the weights that the steps before led to."""
    monkeypatch.setattr(private, "GHOST_WEIGHTS", ghost_from)
    protocol = FedAvg(4, 3, 0.5)
    sent = defended(payload, PrivateSGD(0.0, 0.5), protocol=protocol)
    images, labels = gather(CLIENTS, draw_batches(CLIENTS, protocol, 3).positions)
    for k in range(2):
        weights = dict(payload.parameters)
        for step in range(3):
            here = replace(payload, parameters=weights)
            gradient = slow_private(here, images[k, step].float() / 255, labels[k, step], 0.5)
            weights = {name: weights[name] - 0.5 * gradient[name] for name in weights}
        for name in weights:
            assert torch.allclose(sent.tensors[name][k], weights[name] - payload.parameters[name], atol=1e-5), name


def test_private_noise_has_its_size_and_can_be_added_later(payload):
    clean, noisy = (defended(payload, PrivateSGD(z, 0.5)) for z in (0.0, 2.0))
    noise = flat(noisy) - flat(clean)
    assert float(noise.std()) == pytest.approx(2.0 * 0.5 / 8, rel=0.02)
    later = PrivateSGD(2.0, 0.5).add_noise(clean, [client_seed(3, client.id) for client in CLIENTS])
    assert torch.equal(flat(later), flat(noisy))
    assert torch.allclose(PrivateSGD(2.0, 0.5).error(noisy, "head.weight"), torch.full((6,), 0.125))
    protocol = FedAvg(4, 4, 0.1)
    moved = [flat(defended(payload, PrivateSGD(z, 1e-3), protocol=protocol)) for z in (0.0, 50.0)]
    spread = float((moved[1] - moved[0]).std())
    assert spread == pytest.approx(0.1 * 50 * 1e-3 / 4 * math.sqrt(4), rel=0.02)
    delta = Updates("delta", {"w": torch.zeros(2, 5)}, {}, torch.arange(2), protocol)
    assert float(PrivateSGD(50.0, 1e-3).error(delta, "w")[0]) == pytest.approx(spread, rel=0.02)
    with pytest.raises(ValueError, match="single clients' FedSGD updates"):
        PrivateSGD(1.0).add_noise(delta, [0, 1])


def test_soteria_prunes_what_a_slow_search_prunes():
    model = build("convnet", DATA, norm="none", activation="gelu", width=2, seed=1)
    payload, share = Payload.of(model), 0.4
    plain = respond(CLIENTS, payload, PROTOCOL, seed=3)
    sent = respond(CLIENTS, payload, PROTOCOL, seed=3, defence=Soteria(share))
    images, labels = gather(CLIENTS, draw(3).flat)
    for k in range(2):
        expected = torch.zeros_like(model.head.weight)
        for image, label in zip(images[k].float() / 255, labels[k], strict=True):
            image = image.unsqueeze(0).requires_grad_()
            r = model.features(image)[0]
            ratio = [abs(r[i].item()) / float(torch.autograd.grad(r[i], image, retain_graph=True)[0].norm())
                     for i in range(len(r))]  # fmt: skip
            pruned = sorted(range(len(r)), key=lambda i: -ratio[i])[: round(share * len(r))]
            kept = r.detach().clone()
            kept[pruned] = 0
            delta = model(image)[0].softmax(0).detach() - F.one_hot(label, 4)
            expected += torch.outer(delta, kept) / 8
        assert torch.allclose(sent.tensors["head.weight"][k], expected, atol=1e-6)
    for name in plain.tensors:
        if name != "head.weight":
            assert torch.equal(sent.tensors[name], plain.tensors[name])
    nothing = respond(CLIENTS, payload, PROTOCOL, seed=3, defence=Soteria(0.0))
    assert torch.allclose(flat(nothing), flat(plain), atol=1e-6)
    everything = respond(CLIENTS, payload, PROTOCOL, seed=3, defence=Soteria(1.0))
    assert not everything.tensors["head.weight"].any()


def test_soteria_probes_estimate_the_slopes():
    model = build("convnet", DATA, norm="none", activation="gelu", width=2, seed=1)
    images = DATA.images[:4].float() / 255
    exact = exact_slopes(model.features, images)
    by_hand = torch.autograd.functional.jacobian(model.features, images[:1])[0].flatten(1).norm(dim=1)
    assert torch.allclose(exact[0], by_hand, rtol=1e-4)
    generator = torch.Generator().manual_seed(0)
    direction = torch.randn(images.shape, generator=generator)
    by_forward_mode = torch.func.jvp(model.features, (images,), (direction,))[1].detach()
    assert torch.allclose(slope_along(model.features, images, direction), by_forward_mode, rtol=0.01, atol=1e-3)
    squares = [
        slope_along(model.features, images, torch.randn(images.shape, generator=generator)).square() for _ in range(64)
    ]
    error = torch.stack(squares).mean(0).sqrt() / exact - 1
    assert error.std().item() == pytest.approx(math.sqrt(1 / 128), rel=0.2)
    payload = Payload.of(model)
    truth, probed = (respond(CLIENTS, payload, PROTOCOL, seed=3, defence=Soteria(0.4, p)) for p in (None, 64))
    assert not torch.equal(truth.tensors["head.weight"], probed.tensors["head.weight"])
    assert torch.cosine_similarity(*(u.tensors["head.weight"].flatten(1) for u in (truth, probed))).min() > 0.8
    one_by_one = respond(CLIENTS, payload, PROTOCOL, seed=3, defence=Soteria(0.4, 64), at_once=1)
    assert torch.allclose(one_by_one.tensors["head.weight"], probed.tensors["head.weight"], atol=1e-5)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Clip(0), "norm is 0"),
        (lambda: GaussianNoise(-1.0), "multiplier is -1.0"),
        (lambda: GaussianNoise(1.0, 0.0), "clip is 0.0"),
        (lambda: PrivateSGD(math.nan), "multiplier is nan"),
        (lambda: TopK(0.0), "share is 0.0"),
        (lambda: TopK(1.5), "share is 1.5"),
        (lambda: Quantise(1), "bits is 1"),
        (lambda: Quantise(8.0), "bits is 8.0"),
        (lambda: Soteria(-0.1), "share is -0.1"),
        (lambda: Soteria(0.5, 0), "probes is 0"),
    ],
)
def test_bad_strengths_are_named(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_what_does_not_fit_is_refused(payload):
    batch_norm = Payload.of(build("convnet", DATA, width=4))
    for defence in (PrivateSGD(1.0), GaussianNoise(1.0), Soteria(0.5)):
        with pytest.raises(ValueError, match="norm='group'"):
            respond(CLIENTS, batch_norm, PROTOCOL, defence=defence)
        respond(CLIENTS, batch_norm, FedSGD(8, batch_norm="eval"), defence=defence)
    with pytest.raises(ValueError, match="use FedSGD"):
        defended(payload, Soteria(0.5), protocol=FedAvg(4, 2, 0.1))


def test_a_federation_learns_with_weak_defences_and_not_with_strong_ones():
    test = partial(evaluate, images=image_set(40, seed=1))
    found = {}
    for defence in (None, Clip(1e6), Quantise(8), PrivateSGD(0.0, 1e6), GaussianNoise(100.0, 1.0)):
        model = build("lenet", DATA, norm="group", activation="relu", width=4, seed=0)
        options = {"rounds": 12, "clients_per_round": 3, "evaluate": test, "lr": 0.3, "seed": 0}
        found[defence] = federate(model, CLIENTS, FedSGD(16), defence=defence, **options).accuracy
    base = found[None]
    assert base > 0.7
    assert found[Clip(1e6)] == base
    assert found[PrivateSGD(0.0, 1e6)] == pytest.approx(base, abs=0.1)
    assert found[Quantise(8)] == pytest.approx(base, abs=0.15)
    assert found[GaussianNoise(100.0, 1.0)] < 0.5


# ---- the attack that knows the defence ------------------------------------------------------------------------------


def test_wiener_is_the_best_affine_estimate():
    """On Gaussian images of known covariance its error is sum l s^2 / (l + s^2), and no other shrinkage does better."""
    generator = torch.Generator().manual_seed(0)
    vectors = torch.linalg.qr(torch.randn(6, 6, generator=generator)).Q
    values = torch.tensor([4.0, 1.0, 0.5, 0.1, 0.01, 0.0])
    mean = torch.randn(6, generator=generator)
    images = mean + torch.randn(40_000, 6, generator=generator) * values.sqrt() @ vectors.T
    s = 0.7
    noisy = images + s * torch.randn(images.shape, generator=generator)
    wiener = Wiener(mean, vectors, values)
    error = (wiener.filter(noisy, torch.full((len(noisy),), s)) - images).square().sum(1).mean()
    assert float(error) == pytest.approx(float((values * s**2 / (values + s**2)).sum()), rel=0.02)
    for wrong in (0.5, 1.0):
        assert (wiener.filter(noisy, torch.full((len(noisy),), wrong)) - images).square().sum(1).mean() > error
    assert torch.equal(wiener.filter(noisy, torch.zeros(len(noisy))), noisy)


def test_wiener_learns_mean_and_covariance():
    found, flat_images = Wiener.of(DATA), DATA.float().flatten(1)
    covariance = found.vectors * found.values @ found.vectors.T
    assert torch.allclose(covariance, torch.cov(flat_images.T), atol=1e-5)
    assert torch.allclose(found.mean, flat_images.mean(0))


@pytest.fixture(scope="module")
def digits():
    data = load("mnist5k")
    clients = make_clients(data.train, 60, images=64, seed=0)[:6]
    return data, clients, Wiener.of(data.test)


@pytest.mark.parametrize("attack", [RobbingTheFed(), RobbingTheFed(activation="bounded"), Loki()], ids=repr)
def test_the_attack_knows_how_noisy_its_images_are(digits, attack):
    """Images alone in their bin come out, and their true error is what the attacker expects of Wiener's filter."""
    data, clients, wiener = digits
    payload, protocol = attack.payload(build("lenet", data), data.test), FedSGD(64)
    clean = respond(clients, payload, protocol, only=attack.reads)
    truth = Truth(*round_truth(clients, protocol))
    exact = score(attack.reconstruct(payload, clean), truth, with_ssim=False)
    none = reconstruct_defended(attack, payload, clean, torch.zeros(6), wiener)
    found = score(none, truth, with_ssim=False)
    assert found.leak_rate >= exact.leak_rate - 0.02
    # The scale is the bin's middle: off by half a bin at most, which is little.
    alone = exact.images.leaked
    assert found.images[alone].nearest_psnr.median() > 35
    # Noise on the neurons' updates that leaves a typical image with pixel noise 0.2.
    weight = clean.tensors[attack.reads[0]]
    bins = payload.model.block.bins
    value = weight if payload.model.block.bounded else weight[:, :-1] - weight[:, 1:]
    factor = (value @ bins.vector / bins.middles[: value.shape[1]]).abs()
    size = 0.2 * float(factor[factor > 1e-3 * factor.max()].median())
    generator = torch.Generator().manual_seed(0)
    noisy = replace(clean, tensors={**clean.tensors, attack.reads[0]: weight + size * torch.randn(
        weight.shape, generator=generator)})  # fmt: skip
    assert len(attack.reconstruct(payload, noisy)) < 0.1 * len(none)  # who insists on exact images gets hardly any
    leak = reconstruct_defended(attack, payload, noisy, torch.full((6,), size), wiener)
    scored = score(leak, truth, threshold_db=10.0, with_ssim=False)
    assert scored.leak_rate > 0.5
    raw = reconstruct_defended(
        attack, payload, noisy, torch.full((6,), size), replace(wiener, values=torch.full_like(wiener.values, 1e6))
    )
    raw = score(raw, truth, threshold_db=10.0, with_ssim=False)
    both = (scored.images.leaked & raw.images.leaked).to_numpy()
    assert scored.images[both].psnr.mean() > raw.images[both].psnr.mean() + 1  # the filter helps


def test_a_crowded_or_silent_update_gives_nothing(digits):
    data, clients, wiener = digits
    attack = Loki()
    payload = attack.payload(build("lenet", data), data.test)
    clean = respond(clients, payload, FedSGD(64), only=attack.reads)
    weight = clean.tensors[attack.reads[0]]
    loud = torch.full((6,), float(weight.abs().max()) * 100)
    noise = loud[0] * torch.randn(weight.shape, generator=torch.Generator().manual_seed(1))
    drowned = replace(clean, tensors={**clean.tensors, attack.reads[0]: weight + noise})
    assert len(reconstruct_defended(attack, payload, drowned, loud, wiener)) == 0
    silent = replace(clean, tensors={name: torch.zeros_like(value) for name, value in clean.tensors.items()})
    assert len(reconstruct_defended(attack, payload, silent, torch.zeros(6), wiener)) == 0
    traps = TrapWeights(4.0, 64)
    trapped = traps.payload(build("lenet", data), data.test)
    with pytest.raises(ValueError, match="has no bins"):
        reconstruct_defended(traps, trapped, clean, torch.zeros(6), wiener)
    with pytest.raises(ValueError, match="one value for each of 6 rows"):
        reconstruct_defended(attack, payload, clean, torch.zeros(5), wiener)


def test_dither_moves_pixels_by_half_a_grey_level_at_most():
    images = torch.rand(2, 1, 6, 3, 8, 8)
    generator = torch.Generator().manual_seed(0)
    moved = Dither().pixels(images[0], generator) - images[0]
    assert moved.abs().max() <= 0.5 / 255 + 1e-7
    assert moved.abs().mean() == pytest.approx(0.25 / 255, rel=0.1)
    assert torch.equal(Dither().pixels(images[0], torch.Generator().manual_seed(0)) - images[0], moved)
    with pytest.raises(ValueError, match="levels is -1"):
        Dither(-1)


def test_subpixel_shift_interpolates():
    ramp = torch.arange(16.0).view(1, 1, 1, 16).expand(1, 1, 1, 16).repeat(1, 40, 3, 1).view(1, 40, 3, 1, 16) / 32
    moved = SubpixelShift(1.0).pixels(ramp.expand(1, 40, 3, 4, 16), torch.Generator().manual_seed(1))
    shift = (moved - ramp)[..., 2:-2] * 32  # of a ramp: the same everywhere but at the borders, where it is cut
    assert shift.std(dim=(2, 3, 4)).max() < 1e-4
    assert shift.abs().max() <= 1 + 1e-4
    assert shift[..., 0].std() > 0.3
    assert torch.equal(moved.amax(), moved.clamp(0, 1).amax())
