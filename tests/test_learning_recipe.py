"""Recipes: values checked at once, schedules that rise and fall as documented, the moving average."""

import pytest
import torch

from leaklearn.learning import Recipe, SemiRecipe
from leaklearn.learning.recipe import airbench94
from leaklearn.learning.train import moving_average


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("epochs", 0),
        ("epochs", 2.5),
        ("epochs", True),
        ("steps", 0),
        ("batch_size", 0),
        ("batch_size", "64"),
        ("lr", 0),
        ("lr", -0.1),
        ("lr", float("nan")),
        ("lr", "0.1"),
        ("momentum", 1),
        ("weight_decay", -1e-4),
        ("label_smoothing", 1.0),
        ("warmup", 1.0),
        ("warmup", -0.1),
        ("pad", -1),
        ("amp", "fp8"),
        ("amp", True),
    ],
)
def test_values_out_of_range_are_named(setting, value):
    with pytest.raises(ValueError, match=setting) as error:
        Recipe(**{setting: value})
    assert repr(value) in str(error.value) or str(value) in str(error.value)


@pytest.mark.parametrize(
    ("setting", "value"),
    [("steps", 0), ("ratio", 1.5), ("lr", 0), ("alpha", 2), ("threshold", -1), ("ema", 1.0), ("temperature", 0)],
)
def test_values_out_of_range_are_named_for_few_labels_too(setting, value):
    with pytest.raises(ValueError, match=f"{setting} is {value!r}; it must be a"):
        SemiRecipe(**{setting: value})


def test_steps_and_batches():
    recipe = Recipe(epochs=3, batch_size=16)
    assert [recipe.batches(n) for n in (1, 16, 17, 32)] == [1, 1, 2, 2]
    assert recipe.total_steps(17) == 6
    assert Recipe(epochs=3, steps=50).total_steps(17) == 50


def test_the_rate_rises_to_its_peak_and_falls_to_zero():
    recipe = Recipe(lr=0.4, warmup=0.25)
    rates = [recipe.learning_rate(step, 1000) for step in range(1000)]
    assert rates[:250] == sorted(rates[:250])
    assert rates[250:] == sorted(rates[250:], reverse=True)
    assert max(rates) == pytest.approx(0.4, rel=0.01)
    assert rates[0] == pytest.approx(0.4 * 0.0005 / 0.25)
    assert 0 < rates[-1] < 0.001
    assert recipe.learning_rate(625, 1000) == pytest.approx(0.2, rel=0.01)  # half way down: half the peak
    assert recipe.learning_rate(812, 1000) == pytest.approx(0.1, rel=0.02)


def test_without_warmup_the_peak_comes_first():
    assert Recipe(lr=1.0, warmup=0).learning_rate(0, 1000) == pytest.approx(0.9995)
    assert Recipe(lr=1.0).learning_rate(0, 1) == pytest.approx(2 / 3)  # a single step, in the middle of the schedule


def test_airbench_has_its_published_schedule():
    recipe = airbench94(epochs=8)
    assert recipe.epochs == 8
    assert recipe.lr == pytest.approx(1.5)
    assert recipe.lr * recipe.weight_decay == pytest.approx(0.0153 / (1 + 1 / 0.15))
    rates = [recipe.learning_rate(step, 10000) / 1.5 for step in (0, 2300, 9999)]
    assert rates == pytest.approx([0.2, 1.0, 0.07], abs=1e-3)


def test_average_follows_its_formula():
    model = torch.nn.Sequential(torch.nn.Linear(1, 1), torch.nn.BatchNorm1d(1))
    with torch.no_grad():
        model[0].weight.fill_(0.0)
    average = moving_average(model, 0.15)
    expected = 0.0
    for step, value in enumerate([1.0, 2.0, 3.0]):
        with torch.no_grad():
            model[0].weight.fill_(value)
            model[1].running_mean.fill_(value)
            model[1].num_batches_tracked += 1
        average.update_parameters(model)
        decay = min(0.15, (1 + step) / (10 + step))  # 0.1, then 0.15
        expected = decay * expected + (1 - decay) * value
    assert average.module[0].weight.item() == pytest.approx(expected)
    assert average.module[1].running_mean.item() == pytest.approx(expected)
    assert average.module[1].num_batches_tracked == 3
    assert not average.module[0].weight.requires_grad
    assert model[0].weight.item() == 3.0
