"""Training and evaluation: it learns, repeats itself, takes every kind of data, and refuses what cannot be trained."""

import time
from dataclasses import replace
from importlib import import_module
from types import SimpleNamespace

import pytest
import torch
from tiny import INFO, image_set

from leaklearn.leaks import Leak
from leaklearn.learning import Recipe, evaluate, train
from leaklearn.learning.train import cpu_gains_by_bf16, fall_back, precision_of
from leaklearn.models import build

QUICK = Recipe(epochs=3, batch_size=16, lr=0.05)


def quick(data, model=None, recipe=QUICK, norm=None, **settings):
    model = build("convnet", INFO, width=4, norm=norm, seed=settings.get("seed", 0)) if model is None else model
    return train(model, data, test=image_set(40, seed=1), recipe=recipe, **settings)


def same_history(a, b):
    return a.history.drop(columns="seconds").equals(b.history.drop(columns="seconds"))


def test_it_learns_and_reports_the_end_of_training():
    test = image_set(40, seed=1)
    model = build("convnet", INFO, width=8)
    result = train(model, image_set(80), test=test, recipe=Recipe(epochs=8, batch_size=16, lr=0.05))
    assert result.accuracy > 0.9
    assert result.accuracy == result.history["test_accuracy"].iloc[-1] == evaluate(result.model, test)
    assert list(result.history["step"]) == [5 * epoch for epoch in range(1, 9)]
    assert list(result.history["epoch"]) == list(range(1, 9))
    assert result.history["loss"].iloc[-1] < result.history["loss"].iloc[0]
    assert result.history["seconds"].is_monotonic_increasing
    assert not result.model.training


def test_the_accuracy_is_not_that_of_the_best_epoch():
    # the rate is so high that the accuracy jumps; the last epoch is reported wherever it lands
    accuracies = [quick(image_set(80), recipe=Recipe(epochs=6, batch_size=8, lr=2.0), seed=seed) for seed in range(4)]
    assert any(result.accuracy < result.history["test_accuracy"].max() for result in accuracies)
    assert all(result.accuracy == result.history["test_accuracy"].iloc[-1] for result in accuracies)


def test_one_seed_one_history():
    data = image_set(40)
    first, again, other = quick(data, seed=3), quick(data, seed=3), quick(data, seed=4)
    assert same_history(first, again)
    assert all(map(torch.equal, first.model.state_dict().values(), again.model.state_dict().values()))
    assert not same_history(first, other)


def test_float_images_and_leaks_train_like_uint8_images():
    data = image_set(40)
    by_hand = SimpleNamespace(images=data.float(), labels=data.labels)  # tells no info: that of the test set is used
    column = torch.zeros(40, dtype=torch.int64)
    leak = Leak(data.float(), torch.ones(40), column, column, column, labels=data.labels)
    assert same_history(quick(data), quick(by_hand))
    assert same_history(quick(data), quick(leak))


@pytest.mark.parametrize("count", [1, 3, 16, 17])
def test_small_leaks(count):
    result = quick(image_set(count))
    assert len(result.history) == 3
    assert result.history["loss"].notna().all()


def test_a_single_class():
    data = image_set(40)
    result = quick(data[data.labels == 2])
    assert result.accuracy == 0.25


@pytest.mark.parametrize("norm", ["batch", "group", "none"])
def test_the_last_batch_is_as_large_as_the_others(norm):
    # 17 images in batches of at most 16: 9 and 8, never 16 and 1
    result = quick(image_set(17), norm=norm)
    assert list(result.history["step"]) == [2, 4, 6]


def test_steps_instead_of_epochs():
    recipe = Recipe(steps=250, batch_size=16, lr=0.05)
    result = quick(image_set(2), recipe=recipe, evaluate_every=20)
    assert result.history["step"].iloc[-1] == 250
    assert len(result.history) <= 100, "one row each hundredth of the training, not one for each pass over two images"
    assert result.history["test_accuracy"].notna().sum() <= 6
    seven = quick(image_set(40), recipe=Recipe(steps=7, batch_size=16, lr=0.05))
    assert list(seven.history["step"]) == [3, 6, 7]


def test_evaluation_only_at_the_end():
    history = quick(image_set(40), evaluate_every=0).history
    assert history["test_accuracy"].isna().tolist() == [True, True, False]
    with pytest.raises(ValueError, match="evaluate_every is -1"):
        quick(image_set(40), evaluate_every=-1)


def test_a_given_model_is_copied():
    model = build("convnet", INFO, width=4)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    result = quick(image_set(40), model=model)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert not torch.equal(result.model.head.weight, model.head.weight)
    assert all(value.is_contiguous() for value in result.model.state_dict().values())
    assert all(parameter.requires_grad for parameter in result.model.parameters())


def test_a_name_is_a_network_with_the_seeds_weights():
    named = train("lenet", image_set(8), test=image_set(4), recipe=QUICK, seed=5)
    built = train(build("lenet", INFO, seed=5), image_set(8), test=image_set(4), recipe=QUICK, seed=5)
    assert same_history(named, built)


def test_precision_follows_the_processor_and_the_network(monkeypatch):
    cpu, fast, other = torch.device("cpu"), build("airbench94", image_set(40), width=4), build("convnet", INFO, width=4)
    for gains, expected in ((True, torch.bfloat16), (False, None)):
        monkeypatch.setattr(import_module("leaklearn.learning.train"), "cpu_gains_by_bf16", lambda gains=gains: gains)
        assert precision_of(None, cpu, fast) is expected
        assert precision_of(None, cpu, other) is None
    assert precision_of("bf16", cpu, other) is torch.bfloat16
    assert precision_of("off", cpu, fast) is None


@pytest.mark.parametrize(("slowed", "gains"), [(torch.float32, True), (torch.bfloat16, False)])
def test_a_processor_gains_by_bf16_where_it_is_faster_in_it(monkeypatch, slowed, gains):
    monkeypatch.setattr(import_module("leaklearn.learning.train"), "cpu_has_bf16", lambda: True)
    convolve = torch.nn.functional.conv2d

    def slow(images, *args, **options):
        time.sleep(0.3 if images.dtype == slowed else 0)
        return convolve(images, *args, **options)

    monkeypatch.setattr(torch.nn.functional, "conv2d", slow)
    assert cpu_gains_by_bf16.__wrapped__() is gains


def test_a_processor_without_the_instructions_is_not_measured(monkeypatch):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_f": True})
    monkeypatch.setattr(torch.nn.functional, "conv2d", None)
    assert cpu_gains_by_bf16.__wrapped__() is False


def test_mixed_precision_on_a_cpu():
    result = quick(image_set(40), recipe=Recipe(3, None, 16, 0.05, amp="bf16"))
    assert not same_history(result, quick(image_set(40)))
    assert result.model.head.weight.dtype == torch.float32


def test_norm_and_bias_do_not_decay():
    """With no gradient to speak of, a huge weight decay shrinks the weights and nothing else."""
    model = build("convnet", INFO, width=4)
    model.requires_grad_(True)
    recipe = Recipe(steps=3, lr=1e-6, momentum=0, weight_decay=1e5, warmup=0)
    trained = dict(quick(image_set(16), model=model, recipe=recipe).model.named_parameters())
    for key, parameter in model.named_parameters():
        moved = (trained[key] - parameter).abs().max().item()
        assert (moved > 1e-3) == (parameter.ndim > 1), key


def test_flip_and_pad_come_from_the_data_unless_told(monkeypatch):
    seen = []
    module = import_module("leaklearn.learning.train")  # the package's attribute of that name is the function

    def spy(images, generator, **settings):
        seen.append(settings)
        return images

    monkeypatch.setattr(module, "augment", spy)
    quick(image_set(4))
    quick(image_set(4), recipe=Recipe(1, pad=0, flip=True))
    assert seen[0] == {"pad": 2, "flip": False, "reflect": False}  # 16 pixels, digits-like
    assert seen[-1] == {"pad": 0, "flip": True, "reflect": False}


def test_alternate_flips_turn_every_image_in_every_second_epoch(monkeypatch):
    seen = []
    module = import_module("leaklearn.learning.train")

    def spy(images, generator, flip, **settings):
        seen.append(dict(zip(images.flatten(1).sum(1).tolist(), flip.tolist(), strict=True)))
        return images

    monkeypatch.setattr(module, "augment", spy)
    quick(image_set(12), recipe=Recipe(4, batch_size=12, flip=True, alternate=True))
    assert seen[0] == seen[2]
    assert seen[1] == seen[3] == {image: not turned for image, turned in seen[0].items()}
    assert len(set(seen[0].values())) == 2


def test_lookahead_averages_by_its_formula():
    model = build("convnet", image_set(8), width=4)
    plain, recipe = [], Recipe(steps=4, batch_size=8, lr=0.05, pad=0, momentum=0)
    plain = quick(image_set(8), model=model, recipe=replace(recipe, lookahead=2))
    slow = {name: value.clone() for name, value in model.state_dict().items()}
    fall_back(model, slow, 0.95**2 * 0.5**3)
    assert all(torch.equal(slow[name], value) for name, value in model.state_dict().items())  # nothing has moved yet
    moved = {name: value + 1.0 for name, value in model.state_dict().items() if value.is_floating_point()}
    model.load_state_dict(moved, strict=False)
    fall_back(model, slow, 0.25)
    assert all(torch.allclose(model.state_dict()[name], value - 0.25) for name, value in moved.items())
    assert not same_history(plain, quick(image_set(8), model="convnet", recipe=recipe))


def test_mirrored_scores_are_means_over_both_views():
    class Left(torch.nn.Module):
        """Scores that look at the left half alone."""

        def __init__(self):
            super().__init__()
            self.weight = torch.nn.Parameter(torch.zeros(1))

        def forward(self, x):
            dark = x[..., :8].mean((1, 2, 3))
            return torch.stack([dark, 0.5 - dark], 1)

    images = torch.zeros(2, 1, 16, 16)
    images[0, :, :, :8], images[1, :, :, 8:] = 0.3, 0.9  # in mean over the views 0.15 and 0.45: 0 wins from 0.25 on
    data = labelled(torch.tensor([1, 0]), images)
    assert evaluate(Left(), data) == 0.0
    assert evaluate(Left(), data, mirror=True) == 1.0


def labelled(labels, images=None):
    images = image_set(4).float() if images is None else images
    return SimpleNamespace(images=images, labels=labels)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (labelled(None), "4 of 4 images have no label"),
        (labelled(torch.tensor([0, -1, 2, -1])), "2 of 4 images have no label"),
        (labelled(torch.tensor([0, 1, 2, 4])), "label 4 is beyond the 4 classes of tiny"),
        (labelled(torch.tensor([0, 1])), "4 images need 4 labels"),
        (labelled(torch.zeros(0).long(), torch.zeros(0, 1, 16, 16)), "no images"),
        (labelled(torch.zeros(2).long(), torch.zeros(2, 1, 8, 8)), r"images are \(1, 8, 8\)"),
        (labelled(torch.zeros(2).long(), torch.full((2, 1, 16, 16), 255.0)), r"\[0, 1\], but these span 255 to 255"),
        (labelled(torch.zeros(2).long(), torch.full((2, 1, 16, 16), float("nan"))), "span nan"),
        (labelled(torch.zeros(2).long(), torch.zeros(2, 1, 16, 16, dtype=torch.int32)), "not torch.int32"),
    ],
)
def test_data_that_cannot_be_learned_from(data, message):
    with pytest.raises(ValueError, match=message):
        quick(data)


def test_a_loss_that_explodes_says_so():
    with pytest.raises(ValueError, match=r"loss became (nan|inf) in epoch \d+ .*; lower lr \(1e\+30\)"):
        quick(image_set(40), recipe=Recipe(epochs=5, batch_size=8, lr=1e30), norm="none")


def test_evaluate_leaves_every_mode_as_it_was():
    model = build("convnet", INFO, width=4).train()
    model.body[1].eval()  # as one who freezes a part would
    modes = [module.training for module in model.modules()]
    statistics = model.body[0][1].running_mean.clone()
    evaluate(model, image_set(10))
    assert [module.training for module in model.modules()] == modes
    assert torch.equal(model.body[0][1].running_mean, statistics)


@pytest.mark.parametrize("batch_size", [1, 7, 100])
def test_evaluate_counts_right_answers_whatever_the_batch_size(monkeypatch, batch_size):
    monkeypatch.setattr(import_module("leaklearn.learning.train"), "EVALUATED", batch_size)
    test = image_set(30)
    model = build("convnet", INFO, width=4).eval()
    expected = (model(test.float()).argmax(1) == test.labels).float().mean().item()
    assert evaluate(model, test) == pytest.approx(expected)


def test_progress_is_off_by_default(capsys):
    quick(image_set(4))
    captured = capsys.readouterr()
    assert captured.out == captured.err == ""
    quick(image_set(4), progress=True)
    assert "training" in capsys.readouterr().err


def test_the_embedded_digits_are_learned():
    """The real data set, less than the default recipe: a regression of several points would show."""
    from leaklearn.data import load

    data = load("mnist5k")
    result = train(build("convnet", data, width=8), data.train, test=data.test, recipe=Recipe(epochs=2))
    assert result.accuracy > 0.88
