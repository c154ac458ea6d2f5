"""Gradient inversion measured, and a whole federation inverted, at tiny sizes."""

import pytest
import torch

from leaklearn.data import load
from leaklearn.experiments.batches import NETWORKS, attack_batches, attacked_network, draw_clients
from leaklearn.experiments.harvest import InversionSettings, batch_clients, harvest
from leaklearn.experiments.inversion import ALL_IMAGES, measure_cost, measure_quality, measure_usefulness
from leaklearn.federated import make_clients
from leaklearn.learning import Recipe
from leaklearn.report.inversion import cost_chart, quality_chart, usefulness_chart
from leaklearn.report.pictures import reconstruction_grid

QUALITY = "dataset seed model attack batch_size iterations psnr ssim label_accuracy seconds_per_image leak_rate clients"
COST = "dataset seed model attack batch_size device seconds_per_iteration iterations images days_for_50k"


@pytest.fixture(scope="module")
def data():
    return load("mnist5k")


@pytest.fixture(scope="module")
def measured(data):
    return measure_quality(data, ["convnet-gelu"], ["fast"], [1, 4, 6], [0], images=4, iterations=25, progress=False)


def test_quality_falls_from_single_images_to_larger_batches(measured):
    table, _ = measured
    assert list(table.columns) == QUALITY.split()
    assert table["clients"].tolist() == [4, 1, 1]
    assert table["psnr"].iloc[0] > 30 > table["psnr"].iloc[2]
    assert (table["label_accuracy"] == 1).all()
    assert table["leak_rate"].iloc[0] == 1


def test_every_batch_size_is_cut_from_the_same_images(measured):
    table, runs = measured
    first = [run.truth.images.flatten(0, 1)[:4] for run in runs]
    assert torch.equal(first[0], first[1])
    assert torch.equal(first[0], first[2])
    true, found, decibel = runs[1].examples(4)
    error = ((true.float() / 255 - found) ** 2).flatten(1).mean(1)
    torch.testing.assert_close(-10 * error.log10(), torch.tensor(decibel), atol=1e-3, rtol=1e-4)
    assert sum(decibel) / 4 == pytest.approx(table["psnr"].iloc[1], abs=1e-4)


def test_what_is_measured_can_be_drawn(measured, data):
    table, runs = measured
    quality_chart(table)
    parts = [run.examples(3) for run in runs]
    reconstruction_grid(*({run.batch_size: part[i] for run, part in zip(runs, parts, strict=True)} for i in range(3)))
    useful = measure_usefulness(data, runs, images=4, recipe=Recipe(steps=3), learner="lenet", progress=False)
    assert useful["attack"].tolist() == ["fast", "truth", "fast", "fast"]
    assert useful["batch_size"].tolist() == [1, 0, 4, 6]
    usefulness_chart(useful)
    with pytest.raises(ValueError, match="a run has 4 images, 5 are to be trained on"):
        measure_usefulness(data, runs, images=5, recipe=Recipe())


def test_course_of_an_attack(data):
    run = attack_batches(data, "convnet-gelu", "fast", 2, images=4, iterations=20, snapshots=[0, 20])
    course = run.course()
    assert set(course["client"]) == {0, 1}
    ends = course[course["iteration"].isin([0, 20])].groupby("iteration")["psnr"].mean()
    assert ends[20] > ends[0] + 5
    assert course.loc[course["iteration"] == 10, "psnr"].isna().all()
    at_end = course[course["iteration"] == 20]["psnr"].mean()
    assert at_end == pytest.approx(run.pairs["psnr"].mean(), abs=1e-3)


def test_cost_is_extrapolated_from_the_iterations_of_each_attack(data):
    attacks = ["inverting_gradients", "fast"]
    table = measure_cost(data, ["lenet"], attacks, [1, 4], images=8, timed=2, progress=False)
    assert list(table.columns) == COST.split()
    assert (table["images"] == 8).all()
    assert table.groupby("attack")["iterations"].first()["inverting_gradients"] == 24_000
    days = table["seconds_per_iteration"] * table["iterations"] * ALL_IMAGES / table["batch_size"] / 86_400
    assert (table["days_for_50k"] / days).sub(1).abs().max() < 1e-9
    assert (table["seconds_per_iteration"] > 0).all()
    cost_chart(table)
    with pytest.raises(ValueError, match="dlg optimises labels"):
        measure_cost(data, ["lenet"], ["dlg"], [1], images=1, progress=False)


def test_bad_names_and_sizes_are_refused_before_work(data):
    for name in NETWORKS:
        assert attacked_network(name, data).head.out_features == 10
    with pytest.raises(ValueError, match="unknown network 'convnet-glue'"):
        measure_quality(data, ["convnet-glue"], ["fast"], [1], [0])
    with pytest.raises(ValueError, match="unknown attack 'slow'"):
        measure_quality(data, ["lenet"], ["slow"], [1], [0])
    with pytest.raises(ValueError, match="more than the 4000 training images"):
        draw_clients(data, 4001, 1, 0)
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
