"""Label matching against autograd through whole batches, models whose labels are known, and real leaks."""

from dataclasses import replace
from itertools import product

import pytest
import torch
from scipy.stats import multivariate_t
from tiny import image_set
from torch import nn
from torch.nn.functional import cross_entropy, one_hot

from leaklearn.attacks import Loki, match_labels
from leaklearn.attacks.catalogue import make
from leaklearn.attacks.labels.batch_norm import coupling, sent_statistics
from leaklearn.attacks.labels.bin_scan import observed, scan
from leaklearn.attacks.labels.class_counts import assign, balance
from leaklearn.attacks.labels.likelihood import log_likelihood, posterior
from leaklearn.attacks.labels.matching import weigh
from leaklearn.attacks.labels.regression import label_share, smoothed
from leaklearn.attacks.labels.replay import by_client, replay
from leaklearn.attacks.linear.blocks import LeakyNetwork, with_skip
from leaklearn.data import load
from leaklearn.evaluation.leakage import score
from leaklearn.evaluation.truth import Truth
from leaklearn.experiments.rounds import Round
from leaklearn.federated import FedAvg, FedSGD, Payload, Updates, draw_batches, gather, make_clients, respond
from leaklearn.leaks import Leak, merge
from leaklearn.models import build


def one_round(attack, *, clients, images=64, fc_factor=4.0, local_steps=0, lr=0.01, secure=False):
    """FedSGD, or FedAvg with local steps."""
    protocol = FedAvg(images // local_steps, local_steps, lr) if local_steps else FedSGD(images)
    return Round(make(attack, fc_factor=fc_factor, images_per_client=images), protocol, clients, secure)


def attacked(setting, data, *, norm="batch", skip=True, width=8, seed=0, dtype=torch.float32):
    """Payload, updates, leak and its true labels."""
    clients = make_clients(data, max(setting.clients, len(data) // setting.images), seed=seed)
    attack, protocol = setting.attack, setting.protocol
    payload = attack.payload(build("convnet", data, norm=norm, width=width, seed=seed), data)
    payload = with_skip(payload) if skip else payload
    group = clients[: setting.clients]
    updates = respond(group, payload, protocol, seed, secure=setting.secure)
    leak = attack.reconstruct(payload, updates)
    if dtype != torch.float32:  # the leak is that of single precision all the same
        payload = payload.to("cpu", dtype)
        updates = respond(group, payload, protocol, seed, secure=setting.secure)
    images, labels = gather(group, draw_batches(group, protocol, seed).flat)
    return payload, updates, leak, score(leak, Truth(images, labels, updates.clients), with_ssim=False).true_labels


def right(leak, truth):
    """Share of the images that show an attacked one whose label is right."""
    return (leak.labels == truth)[truth >= 0].float().mean().item()


@pytest.fixture(scope="module")
def mnist():
    return load("mnist5k").train


@pytest.fixture(scope="module")
def four():
    """Four clients of 64 real images, one FedSGD step, batch norm in train mode."""
    return attacked(one_round("robbing_the_fed", clients=4), load("mnist5k").train, width=32)


def test_every_candidate_is_what_autograd_gives(mnist):
    """Without batch norm an image's slope is that of its own loss, for any label."""
    setting = one_round("robbing_the_fed_bounded", clients=1, images=16)
    for skip in (False, True):
        payload, updates, leak, _ = attacked(setting, mnist, norm="group", skip=skip, dtype=torch.float64)
        leaked = by_client(payload, updates, leak)
        found = replay(payload, updates, leaked)
        distances, _ = scan(torch.zeros_like(leaked.present, dtype=torch.float64), leaked.present.double(), [found])
        model = payload.model.double()
        images, neurons = leaked.images[0], leaked.neurons[0]
        for label in range(10):
            fc1 = model.block.fc1(images.flatten(1)).detach().requires_grad_()
            seen = model.connect(images, model.block.fc2(fc1.clamp(0, 1)).relu().view_as(images))
            loss = cross_entropy(model.network(seen), torch.full((len(images),), label), reduction="sum")
            (slope,) = torch.autograd.grad(loss, fc1)
            own = slope.gather(1, neurons.unsqueeze(1)).flatten()
            ours = distances[0, :, label, 0].sqrt() * found.slopes[0].std(1)  # its distance from 0
            torch.testing.assert_close(ours, own.abs(), rtol=1e-6, atol=1e-12)


@pytest.mark.parametrize("skip", [False, True])
def test_batch_norm_in_train_mode_is_seen_through(mnist, skip):
    """The whole batch's autograd is what the clients answer; each image is replayed without the others."""
    setting = one_round("robbing_the_fed_bounded", clients=2, images=16)
    payload, updates, leak, truth = attacked(setting, mnist, skip=skip, dtype=torch.float64)
    assert len(leak) < 32
    leaked = by_client(payload, updates, leak)
    found = replay(payload, updates, leaked)
    slope, rounding = observed(payload, updates, leaked)
    distances, _ = scan(slope, rounding, [found])
    own = distances[..., 0].gather(2, truth[leaked.index].clamp_min(0).unsqueeze(2)).squeeze(2)
    assert own[leaked.present & (truth[leaked.index] >= 0)].sqrt().max() < 1e-5  # of the candidates' spread
    # Without the coupling, or with statistics of the leaked images, it would be a tenth of it.
    for about in ({"pull": torch.zeros_like(found.pull)}, None):
        other = replace(found, **about) if about else replay(payload, updates, leaked, statistics="leaked")
        off = scan(slope, rounding, [other])[0][..., 0].gather(2, truth[leaked.index].clamp_min(0).unsqueeze(2))
        assert off.squeeze(2)[leaked.present].sqrt().median() > 0.01


def test_sent_statistics_and_coupling_are_the_batchs_own(mnist):
    data = mnist[:32]
    payload = Payload.of(build("convnet", data, width=4).double())
    clients = make_clients(data, 1)
    updates = respond(clients, payload, FedSGD(32), 0)
    model, images = payload.model.train(), data.images.double() / 255
    layer = model.body[0][1]
    seen = {}
    layer.register_forward_hook(lambda module, inputs, output: seen.update(x=inputs[0], y=output))
    loss = cross_entropy(model(images), data.labels)
    (slope,) = torch.autograd.grad(loss, seen["y"])
    x = seen["x"].detach()
    mean, variance = sent_statistics(payload, updates, "body.0.1")
    torch.testing.assert_close(mean[0], x.mean((0, 2, 3)))
    torch.testing.assert_close(variance[0], x.transpose(0, 1).flatten(1).var(1))
    normal = (x - x.mean((0, 2, 3), keepdim=True)) / (x.var((0, 2, 3), keepdim=True, unbiased=False) + 1e-5).sqrt()
    gamma, beta = coupling(payload, updates, "body.0.1")
    torch.testing.assert_close(gamma[0], (slope * normal).sum((0, 2, 3)))
    torch.testing.assert_close(beta[0], slope.sum((0, 2, 3)))


class Flat(nn.Module):
    """The last layer alone: an image's features are its pixels."""

    def __init__(self, size, classes):
        super().__init__()
        self.head = nn.Linear(size, classes)

    def features(self, images):
        return images.flatten(1)

    def forward(self, images):
        return self.head(self.features(images))


def flat_leak(leaked=30, batch=40, classes=12, side=16, seed=0):
    """Noise images with random labels, of which the first so many leaked: payload, updates, leak, labels."""
    generator = torch.Generator().manual_seed(seed)
    images = torch.randint(0, 256, (2, batch, 1, side, side), generator=generator) / 255
    labels = torch.randint(classes, (2, batch), generator=generator)
    torch.manual_seed(seed)
    model = Flat(side * side, classes)
    parts = [
        torch.autograd.grad(cross_entropy(model(x), y), list(model.parameters()))
        for x, y in zip(images, labels, strict=True)
    ]
    tensors = {
        name: torch.stack(g) for (name, _), g in zip(model.named_parameters(), zip(*parts, strict=True), strict=True)
    }
    updates = Updates("gradient", tensors, {}, torch.tensor([7, 3]), FedSGD(batch))
    count = torch.tensor([leaked, leaked - 5])
    client = torch.tensor([7, 3]).repeat_interleave(count)
    rows = torch.cat([images[k, : count[k]] for k in range(2)])
    zeros = torch.zeros(len(rows), dtype=torch.int64)
    leak = Leak(rows, torch.ones(len(rows)), client, zeros, torch.arange(len(rows)))
    return Payload.of(model), updates, leak, torch.cat([labels[k, : count[k]] for k in range(2)])


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_regression_on_a_linear_model(seed):
    payload, updates, leak, labels = flat_leak(seed=seed)
    found = match_labels(payload, updates, leak)
    assert found.meta["label_matching"]["method"] == "regression"
    assert torch.equal(found.labels, labels)
    assert found.label_confidence.mean() > 0.95
    shuffled = torch.randperm(len(leak), generator=torch.Generator().manual_seed(seed))
    again = match_labels(payload, updates, leak[shuffled])
    assert torch.equal(again.labels, labels[shuffled])
    torch.testing.assert_close(again.label_confidence, found.label_confidence[shuffled])


def test_more_images_than_equations_and_counts_as_a_help():
    """16 pixels cannot tell 60 images apart; that some classes are full helps."""
    accuracy = {}
    for seed in range(5):
        payload, updates, leak, labels = flat_leak(leaked=60, batch=60, side=6, classes=6, seed=seed)
        truth = torch.stack([one_hot(labels[leak.client == c], 6).sum(0) for c in (7, 3)])
        truth[1] += one_hot(torch.zeros(5, dtype=torch.int64), 6).sum(0)  # five did not leak; say, of class 0
        for name, counts in (("without", None), ("with", truth)):
            found = match_labels(payload, updates, leak, counts=counts)
            accuracy.setdefault(name, []).append((found.labels == labels).float().mean().item())
            if name == "with":
                sums = torch.stack([one_hot(found.labels[leak.client == c], 6).sum(0) for c in (7, 3)])
                assert (sums <= truth).all()
    means = {name: sum(values) / 5 for name, values in accuracy.items()}
    assert 0.3 < means["without"] < 0.95
    assert means["with"] > means["without"]


def test_assignment_against_brute_force():
    generator = torch.Generator().manual_seed(0)
    probabilities = torch.rand(6, 5, 3, generator=generator, dtype=torch.float64).softmax(2)
    present = torch.ones(6, 5, dtype=torch.bool)
    present[0, 3:] = False
    counts = torch.tensor([[2, 1, 2]] * 6)
    found = assign(probabilities, present, counts)
    assert (found[0, 3:] == -1).all()
    for client in range(6):
        rows = probabilities[client, present[client]].log()
        every = torch.tensor(list(product(range(3), repeat=len(rows))))
        possible = every[(one_hot(every, 3).sum(1) <= counts[client]).all(1)].tolist()
        best = max(possible, key=lambda y: sum(rows[i, c] for i, c in enumerate(y)))
        assert found[client, present[client]].tolist() == best
    # Counts that are wrong do not overrule an image that is sure.
    sure = torch.tensor([[[1 - 2e-9, 1e-9, 1e-9], [1 - 2e-9, 1e-9, 1e-9]]], dtype=torch.float64)
    assert assign(sure, torch.ones(1, 2, dtype=torch.bool), torch.tensor([[1, 1, 0]])).tolist() == [[0, 0]]


def test_balanced_probabilities_have_the_counts():
    probabilities = torch.rand(3, 7, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    present = torch.ones(3, 7, dtype=torch.bool)
    present[1, 5:] = False
    found = balance(probabilities, present, torch.tensor([[3, 2, 1, 1], [4, 3, 2, 1], [7, 0, 0, 0]]))
    torch.testing.assert_close(found[0].sum(0), torch.tensor([3.0, 2, 1, 1], dtype=torch.float64), atol=1e-4, rtol=0)
    torch.testing.assert_close(found[1].sum(1), present[1].double())
    assert (found[1].sum(0) <= torch.tensor([4.001, 3.001, 2.001, 1.001])).all()
    torch.testing.assert_close(found[2, :, 0], torch.ones(7, dtype=torch.float64), atol=1e-4, rtol=0)


def test_probabilities_are_right_as_often_as_they_say():
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(5, (1, 4000), generator=generator)
    prior, present = torch.full((1, 5), 0.2), torch.ones(1, 4000, dtype=torch.bool)
    centres = torch.eye(5, dtype=torch.float64)
    for noise in (0.3, 0.6):
        seen = centres[labels] + noise * torch.randn(1, 4000, 5, generator=generator, dtype=torch.float64)
        squares = (seen.unsqueeze(2) - centres).square().sum(3)
        likelihood, _ = log_likelihood(squares, present, 5, prior)
        found = posterior(likelihood, prior)
        confidence, guess = found.max(2)
        hit = (guess == labels).double()
        assert confidence.mean().item() == pytest.approx(hit.mean().item(), abs=0.03)
        doubtful = confidence < confidence.median()
        assert confidence[doubtful].mean().item() == pytest.approx(hit[doubtful].mean().item(), abs=0.05)


def test_density_is_students():
    from leaklearn.attacks.labels.likelihood import _student

    x = torch.tensor([0.3, -0.4, 1.2], dtype=torch.float64)
    ours = _student(x.square().sum().view(1, 1, 1, 1), torch.full((1, 1), 0.49, dtype=torch.float64), 3, 4.0)
    assert ours.item() == pytest.approx(multivariate_t(shape=0.49 * torch.eye(3).numpy(), df=4).logpdf(x.numpy()))


def test_share_of_labels_for_uniform_outputs():
    # p = 1/4 throughout: the bias gradient is 1/4 - share.
    share, present = torch.tensor([[0.5, 0.25, 0.25, 0.0]]), torch.ones(1, 8, dtype=torch.bool)
    found = label_share(0.25 - share, torch.full((1, 8, 4), 0.25), present)
    torch.testing.assert_close(found, share.double())
    torch.testing.assert_close(smoothed(found, present), (share.double() + 0.1 / 8) / (1 + 0.4 / 8))


@pytest.mark.parametrize("method", ["regression", "bin_scan", "combined"])
def test_real_batches_with_batch_norm_in_train_mode(four, method):
    payload, updates, leak, truth = four
    found = match_labels(payload, updates, leak, method=method)
    assert right(found, truth) >= 0.98
    assert found.label_confidence.min() >= 0
    assert found.label_confidence.max() <= 1
    assert torch.equal(found.images, leak.images)
    assert found.meta["label_matching"]["statistics"] == "sent"


def test_without_the_buffers_regression_holds_and_confidence_says_what_does_not(four):
    payload, updates, leak, truth = four
    bare = replace(updates, buffers={})
    assert right(match_labels(payload, bare, leak), truth) >= 0.98
    scanned = match_labels(payload, bare, leak, method="bin_scan")
    assert 0.3 < right(scanned, truth) < 0.9  # it needs the batch's statistics
    assert scanned.label_confidence.mean() == pytest.approx(right(scanned, truth), abs=0.15)
    sure = scanned.label_confidence >= 0.9
    assert (scanned.labels == truth)[sure].float().mean() > right(scanned, truth) + 0.1


def test_restored_counts(four):
    payload, updates, leak, truth = four
    clients = make_clients(load("mnist5k").train, 62)[:4]
    _, labels = gather(clients, draw_batches(clients, FedSGD(64), 0).flat)
    counts = one_hot(labels, 10).sum(1)
    leaked = by_client(payload, updates, leak)
    evidence = weigh(payload, updates, leaked, method="regression", statistics="sent")
    assert (evidence.counts.sum(1) == 64).all()
    assert torch.minimum(evidence.counts, counts).sum() >= 0.97 * 4 * 64
    found = match_labels(payload, updates, leak, counts="restore")
    assert right(found, truth) >= 0.98
    assert found.meta["label_matching"]["counts"] == "restore"
    bare = replace(updates, buffers={})  # a scan that goes wrong often has too many of some class
    plain, bound = (match_labels(payload, bare, leak, method="bin_scan", counts=c) for c in (None, counts))
    for client in range(4):
        mine = leak.client == client
        assert (one_hot(bound.labels[mine], 10).sum(0) <= counts[client]).all()
    assert not torch.equal(plain.labels, bound.labels)
    with pytest.raises(ValueError, match="from a sum over them"):
        match_labels(payload, replace(updates, summed=True), leak, counts="restore")


def test_fedavg_of_one_step_is_fedsgd(mnist):
    """In double precision; in single, the change of a narrow bin's large weights is rounded (notebook 02)."""
    double = {"norm": "batch", "width": 16, "dtype": torch.float64}
    payload, updates, leak, truth = attacked(one_round("robbing_the_fed_bounded", clients=2), mnist, **double)
    step = one_round("robbing_the_fed_bounded", clients=2, local_steps=1, lr=0.5)
    other, change, _, _ = attacked(step, mnist, **double)
    for method in ("regression", "bin_scan"):
        by_gradient = match_labels(payload, updates, leak, method=method)
        by_change = match_labels(other, change, leak, method=method)
        assert torch.equal(by_gradient.labels, by_change.labels)
        torch.testing.assert_close(by_gradient.label_confidence, by_change.label_confidence, atol=1e-3, rtol=0)
        assert right(by_change, truth) > 0.97


def test_fedavg_with_local_steps(mnist):
    """To first order in the local learning rate: what is right at a small one fails at a large one, and says so."""
    found = {}
    for lr in (0.002, 0.1):
        payload, updates, leak, truth = attacked(one_round("loki", clients=4, local_steps=8, lr=lr), mnist)
        matched = match_labels(payload, updates, leak)
        found[lr] = right(matched, truth), matched.label_confidence.mean().item()
    assert found[0.002][0] > 0.9
    assert found[0.002][1] > found[0.1][1] + 0.1


def test_scaled_features_keep_the_network_still(mnist):
    """At a learning rate at which labels are lost otherwise; at one step nothing is to be kept still."""
    found = {}
    for scale in (1.0, 0.1):
        clients = make_clients(mnist, 62)[:3]
        attack = Loki(4.0, 64, conv_scale=20_000 / scale**0.5)
        payload = with_skip(attack.payload(build("convnet", mnist, width=32), mnist), scale)
        updates = respond(clients, payload, FedAvg(8, 8, 0.1), 0)
        leak = attack.reconstruct(payload, updates)
        images, labels = gather(clients, draw_batches(clients, FedAvg(8, 8, 0.1), 0).flat)
        truth = score(leak, Truth(images, labels, updates.clients), with_ssim=False).true_labels
        found[scale] = right(match_labels(payload, updates, leak, method="regression"), truth), len(leak)
        x = mnist.images[:5].float() / 255
        model = payload.model.eval()
        torch.testing.assert_close(
            model(x), model.head(scale * model.network.features(model.connect(x, model.block(x))))
        )
    assert found[1.0][0] < 0.8
    assert found[0.1][0] > 0.95
    assert found[0.1][1] > 0.95 * found[1.0][1]  # and as many leak


def test_secure_aggregation(mnist):
    """The last layer is summed over clients, LOKI's columns are each client's own."""
    setting = one_round("loki", clients=6, images=32, secure=True)
    payload, updates, leak, truth = attacked(setting, mnist, norm="none")
    assert len(updates.tensors["head.weight" if "head.weight" in updates.tensors else "network.head.weight"]) == 1
    assert leak.client.unique().tolist() == [0, 1, 2, 3, 4, 5]
    for method in ("bin_scan", "combined"):
        assert right(match_labels(payload, updates, leak, method=method), truth) > 0.97
    # Robbing the Fed sees one sum, and all its images are those of one large client.
    setting = one_round("robbing_the_fed", clients=4, images=16, fc_factor=16.0, secure=True)
    payload, updates, leak, truth = attacked(setting, mnist, norm="none")
    assert leak.client.unique().tolist() == [-1]
    assert right(match_labels(payload, updates, leak), truth) > 0.97


def test_skip_leaks_the_same_images(mnist):
    setting = one_round("robbing_the_fed", clients=2)
    plain, skipped = (attacked(setting, mnist, skip=skip)[2] for skip in (False, True))
    assert len(plain) == len(skipped)
    torch.testing.assert_close(plain.images, skipped.images, atol=1e-3, rtol=0)
    with pytest.raises(ValueError, match="has none of"):
        with_skip(Payload.of(build("lenet", mnist)))


def test_bad_input_is_refused(four):
    payload, updates, leak, _ = four
    cases = [
        ({"method": "best"}, "unknown method 'best'"),
        ({"repeats": 5}, "repeats is 5"),
        ({"counts": "guess"}, "counts is 'guess'"),
        ({"counts": torch.zeros(3, 10, dtype=torch.int64)}, "of 4 clients and 10 classes"),
    ]
    for settings, message in cases:
        with pytest.raises(ValueError, match=message):
            match_labels(payload, updates, leak, **settings)
    with pytest.raises(ValueError, match="images of clients"):
        match_labels(payload, updates, replace(leak, client=leak.client + 50))
    with pytest.raises(ValueError, match="of 2 rounds"):
        match_labels(payload, updates, merge([leak, replace(leak, round=leak.round + 1)]))
    few = {name: value for name, value in updates.tensors.items() if "fc1" not in name}
    with pytest.raises(ValueError, match=r"lack 'block.fc1.weight'"):
        match_labels(payload, replace(updates, tensors=few), leak)
    broken = {**updates.tensors, "network.head.bias": updates.tensors["network.head.bias"] * float("nan")}
    with pytest.raises(ValueError, match="not finite"):
        match_labels(payload, replace(updates, tensors=broken), leak)
    honest, plain, other, _ = flat_leak()
    with pytest.raises(ValueError, match="needs a malicious block"):
        match_labels(honest, plain, other, method="bin_scan")
    with pytest.raises(ValueError, match=r"no features\(\) and linear head"):
        match_labels(Payload.of(nn.Linear(3, 2)), plain, other)


def test_no_image_leaked(four):
    payload, updates, leak, _ = four
    none = match_labels(payload, updates, leak[:0])
    assert len(none) == 0
    assert none.labels.shape == (0,)
    assert none.label_confidence.shape == (0,)


def test_model_and_updates_are_left_as_they_were(four):
    payload, updates, leak, _ = four
    before = {name: value.clone() for name, value in updates.tensors.items()}
    names = [name for name, _ in payload.model.named_modules()]
    match_labels(payload, updates, leak[:20])
    assert [name for name, _ in payload.model.named_modules()] == names
    assert isinstance(payload.model, LeakyNetwork)
    assert all(torch.equal(before[name], value) for name, value in updates.tensors.items())


def make_leak(count=4, confidence=None):
    images = torch.rand(count, 1, 4, 4, generator=torch.Generator().manual_seed(count))
    zeros = torch.zeros(2, count, dtype=torch.int64)
    leak = Leak(images, torch.ones(count), *zeros.unbind(), torch.arange(count), labels=torch.arange(count) - 1)
    return leak if confidence is None else leak.with_labels(leak.labels, torch.full((count,), confidence))


def test_confidence_of_labels_is_a_column_of_the_leak(tmp_path):
    leak = make_leak(confidence=0.75)
    leak.save(tmp_path / "leak")
    back = Leak.load(tmp_path / "leak")
    assert torch.equal(back.label_confidence, leak.label_confidence)
    assert len(back[1:3].label_confidence) == 2
    assert back.to("cpu").labelled().label_confidence.shape == (3,)
    make_leak().save(tmp_path / "without")
    assert Leak.load(tmp_path / "without").label_confidence is None
    assert leak.with_labels(leak.labels).label_confidence is None
    both = merge([leak, make_leak(3)])
    assert both.label_confidence.tolist() == [0.75] * 4 + [0, 1, 1]
    assert merge([make_leak(), make_leak(3)]).label_confidence is None
    with pytest.raises(ValueError, match="label_confidence of a leak of 4 images"):
        leak.with_labels(leak.labels, torch.ones(3))


def test_repeated_passes_over_the_same_images(mnist):
    data = image_set(64)
    clients = make_clients(data, 1)
    payload = Payload.of(build("lenet", data, norm="none"))
    once = respond(clients, payload, FedAvg(64, 1, 1e-4), 0)
    twice = respond(clients, payload, FedAvg(64, 2, 1e-4), 0)
    images = data.images[:40].float() / 255
    zeros = torch.zeros(40, dtype=torch.int64)
    leak = Leak(images, torch.ones(40), zeros, zeros, zeros)
    first = match_labels(payload, once, leak)
    second = match_labels(payload, twice, leak, repeats=2)
    torch.testing.assert_close(first.labels, second.labels)
