"""Bins of several measurements, peeled, against a combinatorial simulation and against the truth."""

import pytest
import torch

import leaklearn as ll
from leaklearn.attacks.catalogue import make
from leaklearn.attacks.linear.bins import Population, closed_edges, measurement_vector
from leaklearn.attacks.linear.peeled_bins import PeeledBins
from leaklearn.attacks.linear.residual import Peeling, simulate_peeling
from leaklearn.experiments.bench import Bench
from leaklearn.experiments.rounds import Round


@pytest.fixture(scope="module")
def mnist5k():
    return ll.load("mnist5k")


def exact_gradient(bins, images, delta):
    """What bounded bins return of images (N, C, H, W) uint8 with deltas (N,), in float64: weight, bias."""
    flat = images.flatten(1).double() / 255
    weight, bias = torch.zeros(bins.count, flat.shape[1], dtype=torch.float64), torch.zeros(bins.count).double()
    for x, amount, places in zip(flat, delta, bins.of(images), strict=True):
        weight[places] += amount * x
        bias[places] += amount
    return weight, bias


def keys(images):
    """A key for each image, uint8 or float in [0, 1]."""
    levels = images if images.dtype == torch.uint8 else (images * 255).round().to(torch.uint8)
    return [bytes(image.numpy()) for image in levels.flatten(1)]


def taken(peeling, images):
    mine = set(keys(peeling.run().images))
    return torch.tensor([key in mine for key in keys(images)])


@pytest.mark.parametrize("factor", [4.0, 1.5, 1.0, 0.75])
@pytest.mark.parametrize("measurements", [1, 2, 3])
def test_peeling_takes_what_the_combinatorial_simulation_takes(mnist5k, factor, measurements):
    attack = PeeledBins(factor, 48, measurements=measurements)
    bins = attack.block(mnist5k.test).bins
    generator = torch.Generator().manual_seed(measurements)
    images = mnist5k.train.images[torch.randperm(4000, generator=generator)[:48]]
    weight, bias = exact_gradient(bins, images, torch.randn(48, generator=generator).double())
    mine = taken(Peeling(bins, (1, 28, 28), weight, bias, split=False), images)
    assert torch.equal(mine, simulate_peeling(bins.of(images), bins.count, split=False))
    # A pair that the grid cannot tell apart leaves others unread; nothing is read that the simulation does not.
    mine, simulated = (
        taken(Peeling(bins, (1, 28, 28), weight, bias), images),
        simulate_peeling(bins.of(images), bins.count),
    )
    assert not bool((mine & ~simulated).any())
    assert int(mine.sum()) >= int(simulated.sum()) - 6


def test_simulation_by_hand():
    # Images 0 and 1 share neuron 0, image 1 is alone in neuron 4, image 2 shares neuron 1 and 5 with image 3.
    bins = torch.tensor([[0, 3], [0, 4], [1, 5], [1, 5], [-1, -1]])
    assert simulate_peeling(bins, 6, split=False).tolist() == [True, True, False, False, False]
    assert simulate_peeling(bins, 6).tolist() == [True, True, True, True, False]


@pytest.mark.parametrize(("factor", "measurements", "least"), [(4, 3, 0.99), (2, 3, 0.99), (1, 2, 0.9), (1, 1, 0.6)])
def test_one_round_of_fedsgd(mnist5k, factor, measurements, least):
    bench, attack = Bench(mnist5k, "lenet", progress=False), PeeledBins(factor, 64, measurements=measurements)
    found = bench.exchange(attack, 0, bench.clients(4, 64, 0), ll.FedSGD(64))
    levels, mine = (keys(images) for images in (found.truth.images.flatten(0, 1), found.leak.images))
    assert set(mine) <= set(levels)  # none wrong
    assert found.score.leak_rate >= least
    about = found.leak.meta
    assert about["taken_alone"] + about["taken_peeled"] + about["taken_split"] == len(found.leak)
    assert found.score.false_positives == 0
    assert torch.equal(found.leak.labels, found.score.true_labels)
    assert about["unexplained"] == 0


@pytest.mark.parametrize("kind", ["mean", "random"])
def test_no_image_is_outside_of_closed_edges(mnist5k, kind):
    vector = measurement_vector(kind, (1, 28, 28), 3)
    edges = closed_edges(vector, Population.of(vector, mnist5k.test.images, "kernel"), 12)
    extremes = torch.stack([torch.zeros(784), torch.ones(784), (vector > 0).float(), (vector < 0).float()]) @ vector
    assert bool(((extremes > edges[0]) & (extremes < edges[-1])).all())
    places = torch.searchsorted(edges, mnist5k.train.images.flatten(1).double() @ vector.double() / 255) - 1
    counts = torch.bincount(places, minlength=12)
    assert len(counts) == 12
    assert counts.min() > 0.6 * counts.double().mean()


@pytest.mark.parametrize(("settings", "says"), [
    ({"measurements": 0}, "measurements is 0"), ({"measurements": 40}, "64 neurons have room for 1 to 32"),
])  # fmt: skip
def test_bad_settings_are_refused(settings, says):
    with pytest.raises(ValueError, match=says):
        PeeledBins(1.0, 64, **settings)


@pytest.mark.parametrize("defence", [ll.federated.Dither(), ll.federated.SubpixelShift()])
@pytest.mark.parametrize(("attack", "least"), [
    (ll.attacks.RobbingTheFed(4.0, 32), 0.6), (ll.attacks.RobbingTheFed(4.0, 32, activation="bounded"), 0.6),
    (ll.attacks.Loki(4.0, 32), 0.5), (ll.attacks.QuantileBiases(4.0, 32), 0.4),
    (PeeledBins(4.0, 32, measurements=3), 0.95), (PeeledBins(2.0, 32), 0.8),
])  # fmt: skip
def test_images_off_the_grid_are_no_all_clear(mnist5k, attack, least, defence):
    bench = Bench(mnist5k, "lenet", progress=False)
    with pytest.warns(UserWarning, match="3 of 3 clients are not on the 8-bit grid"):
        found = bench.exchange(attack, 0, bench.clients(3, 32, 0), ll.FedSGD(32), defence=defence)
    assert found.leak.meta["off_grid"] == 3
    assert found.score.leak_rate >= least
    if isinstance(attack, PeeledBins):
        assert found.score.false_positives == 0  # each is proved by its gradient
        assert found.leak.meta["unexplained"] == 0


@pytest.mark.parametrize("factor", [4.0, 1.0, 0.25, 0.1])
@pytest.mark.parametrize(
    "make", [ll.attacks.RobbingTheFed, ll.attacks.Loki, ll.attacks.TrapWeights, ll.attacks.QuantileBiases]
)
def test_images_on_the_grid_are_taken_for_such_however_they_collide(mnist5k, factor, make, recwarn):
    bench = Bench(mnist5k, "lenet", progress=False)
    found = bench.exchange(make(factor, 64), 0, bench.clients(6, 64, 0), ll.FedSGD(64))
    assert found.leak.meta["off_grid"] == 0
    assert not [each for each in recwarn if issubclass(each.category, UserWarning)]


def test_a_client_that_interpolates_half_of_its_images_is_no_all_clear(mnist5k):
    class Half(ll.federated.SubpixelShift):
        """Every second image stays as it is."""

        def trained_on(self, images, seeds):
            every = torch.arange(images.shape[-4]).view(-1, 1, 1, 1) % 2 == 0
            return torch.where(every, images, super().trained_on(images, seeds))

    bench = Bench(mnist5k, "lenet", progress=False)
    with pytest.warns(UserWarning, match="3 of 3 clients are not on the 8-bit grid"):
        found = bench.exchange(PeeledBins(4.0, 32), 0, bench.clients(3, 32, 0), ll.FedSGD(32), defence=Half())
    assert found.score.leak_rate >= 0.95
    assert found.score.false_positives == 0
    assert found.leak.meta["off_grid"] == 3


@pytest.mark.parametrize("factor", [0.5, 0.05])
def test_crowded_neurons_are_not_taken_for_images_off_the_grid(mnist5k, factor, recwarn):
    bench = Bench(mnist5k, "lenet", progress=False)
    found = bench.exchange(PeeledBins(factor, 64), 0, bench.clients(6, 64, 0), ll.FedSGD(64))
    assert found.leak.meta["off_grid"] == 0
    assert set(keys(found.leak.images)) <= set(keys(found.truth.images.flatten(0, 1)))
    said = [str(each.message) for each in recwarn if issubclass(each.category, UserWarning)]
    assert bool(found.leak.meta["unread"]) == any("hardly anything could be read" in text for text in said)
    assert found.leak.meta["unread"] == (6 if factor < 0.1 else 0)


def test_local_steps_are_refused_by_name(mnist5k):
    bench = Bench(mnist5k, "lenet", progress=False)
    with pytest.raises(ValueError, match="take peeled_loki"):
        bench.exchange(PeeledBins(4.0, 8), 0, bench.clients(1, 8, 0), ll.FedAvg(4, 2, 0.01))


def test_batch_norm_in_train_mode_leaves_labels_out_and_says_so(mnist5k):
    bench = Bench(mnist5k, "convnet", progress=False)
    network = bench.network(0)
    leak = bench.exchange(
        PeeledBins(4.0, 16, measurements=3), 0, bench.clients(1, 16, 0), ll.FedSGD(16), network=network
    ).leak
    assert leak.labels is None
    assert "batch norm" in leak.meta["why"]


def test_names_tell_the_settings():
    names = {PeeledBins(1.0, 64, measurements=m, split=split).name for m in (1, 2) for split in (False, True)}
    assert names == {"bins", "split_bins", "peeled_bins", "peeled_bins_unsplit"}
    assert PeeledBins(2.0, 64).shares == (44, 42, 42)
    assert PeeledBins(0.75, 64).shares == (24, 24)
    assert PeeledBins(2.0, 1).shares == (2,)


@pytest.mark.parametrize(("name", "more"), [
    ("robbing_the_fed", 0.15), ("robbing_the_fed_bounded", 0.2), ("loki", 0.2), ("qbi_quantiles", 0.02),
])  # fmt: skip
def test_other_attacks_split_neurons_of_two_as_well(name, more):
    """Half as many neurons again are read, none wrong; of bins what the closed form of one or two foretells."""
    data = ll.load("mnist5k")
    bench, shape = Bench(data, "lenet", progress=False), {"fc_factor": 2.0, "images_per_client": 48}
    clients = bench.clients(3, 48, 0)
    alone = bench.exchange(make(name, **shape), 0, clients, ll.FedSGD(48))
    both = bench.exchange(make(name, **shape, split=True), 0, clients, ll.FedSGD(48))
    assert both.attack.name == f"{name}_split"
    assert both.score.leak_rate >= alone.score.leak_rate + more
    assert set(keys(both.leak.images)) <= set(keys(both.truth.images.flatten(0, 1)))
    assert both.leak.meta["taken_split"] >= 2
    if name != "qbi_quantiles":
        assert Round(both.attack, ll.FedSGD(48)).expected_leak_rate > both.score.leak_rate - 0.1


def test_adaptive_bins_split_nothing():
    with pytest.raises(ValueError, match="split is True"):
        ll.attacks.AdaptiveBins(split=True)


@pytest.mark.parametrize(("kind", "least"), [("float16", 0.8), ("bfloat16", 0.3)])
def test_updates_of_16_bits_are_read_by_their_own_precision(mnist5k, kind, least):
    bench, defence = Bench(mnist5k, "lenet", progress=False), ll.federated.HalfPrecision(kind)
    found = bench.exchange(PeeledBins(4.0, 32), 0, bench.clients(3, 32, 0), ll.FedSGD(32), defence=defence)
    whole = bench.exchange(PeeledBins(4.0, 32), 0, bench.clients(3, 32, 0), ll.FedSGD(32))
    assert whole.score.leak_rate > found.score.leak_rate >= least
    assert found.score.false_positives == 0
    assert found.leak.images.amin() >= 0  # noise puts black and white pixels out of range
    assert found.leak.images.amax() <= 1


def test_an_image_that_no_label_explains_has_none(mnist5k):
    bench = Bench(mnist5k, "lenet", progress=False)
    found = bench.exchange(
        PeeledBins(4.0, 32), 0, bench.clients(2, 32, 0), ll.FedSGD(32), defence=ll.federated.Clip(1e-3)
    )
    assert found.score.leak_rate > 0.95
    assert found.leak.meta["unexplained"] == int((found.leak.labels < 0).sum()) > 0.9 * len(found.leak)
