"""Semi-supervised learning: each loss against the papers' formulas written out number by number; whole trainings."""

from dataclasses import replace
from math import cos, exp, log, pi

import pytest
import torch
from tiny import INFO

from leaklearn.data import load
from leaklearn.data.images import ImageSet
from leaklearn.data.views import Views
from leaklearn.learning import Recipe, train
from leaklearn.learning.pseudo import (
    Alignment,
    CoMatch,
    FixMatch,
    FreeMatch,
    MemoryBank,
    fairness_loss,
    graph_contrastive_loss,
    one_hot,
    pseudo_label_graph,
    pseudo_label_loss,
)
from leaklearn.learning.recipe import SemiRecipe
from leaklearn.learning.semi_supervised import train_semi_supervised
from leaklearn.models import build

N, C, D = 6, 3, 4


def distributions(count=N, seed=0, sharp=1.0):
    generator = torch.Generator().manual_seed(seed)
    return (sharp * torch.randn(count, C, generator=generator, dtype=torch.float64)).softmax(1)


def directions(count=N, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.nn.functional.normalize(torch.randn(count, D, generator=generator, dtype=torch.float64), dim=1)


def softmax(row):
    total = sum(exp(value) for value in row)
    return [exp(value) / total for value in row]


def test_alignment_divides_by_the_mean_of_the_last_batches():
    align, batches = Alignment(batches=2), [distributions(seed=seed) for seed in range(3)]
    for batch in batches:
        found = align(batch)
    mean = [sum(float(b[i, c]) for b in batches[1:] for i in range(N)) / (2 * N) for c in range(C)]
    for i in range(N):
        raw = [float(batches[2][i, c]) / mean[c] for c in range(C)]
        assert found[i].tolist() == pytest.approx([value / sum(raw) for value in raw])


def test_memory_bank_forgets_and_smooths():
    bank = MemoryBank(batches=2)
    parts = [(directions(3, seed), distributions(3, seed)) for seed in range(3)]
    for number, part in enumerate(parts):
        assert bank.full == (number == 2)
        bank.add(*part)
    kept = [(parts[b][0][k], parts[b][1][k]) for b in (1, 2) for k in range(3)]
    z, p, alpha, t = directions(seed=9), distributions(seed=9), 0.9, 0.2
    found = bank.smooth(z, p, alpha, t)
    for i in range(N):
        weights = softmax([float(sum(z[i] * other)) / t for other, _ in kept])
        for c in range(C):
            near = sum(w * float(known[c]) for w, (_, known) in zip(weights, kept, strict=True))
            assert float(found[i, c]) == pytest.approx(alpha * float(p[i, c]) + (1 - alpha) * near)


@pytest.mark.parametrize("hard", [False, True])
def test_pseudo_label_loss(hard):
    scores, q, threshold = torch.randn(N, C, dtype=torch.float64), distributions(seed=3, sharp=3), 0.8
    assert 0 < int((q.amax(1) >= threshold).sum()) < N
    targets = one_hot(q) if hard else q
    by_hand = 0.0
    for i in range(N):
        if max(q[i].tolist()) >= threshold:
            predicted = softmax(scores[i].tolist())
            by_hand -= sum(float(targets[i, c]) * log(predicted[c]) for c in range(C)) / N
    kept = torch.where(q.amax(1, keepdim=True) >= threshold, targets, q)
    assert float(pseudo_label_loss(scores, kept, threshold)) == pytest.approx(by_hand)


def test_graph_and_its_contrastive_loss():
    q, first, second, t, threshold = distributions(sharp=3), directions(seed=1), directions(seed=2), 0.2, 0.5
    graph = pseudo_label_graph(q, threshold)
    total, joined = 0.0, 0
    for i in range(N):
        row = [1.0 if i == j else float(sum(q[i] * q[j])) for j in range(N)]
        row = [value if value >= threshold else 0.0 for value in row]
        joined += sum(value > 0 for value in row) - 1
        row = [value / sum(row) for value in row]
        assert graph[i].tolist() == pytest.approx(row)
        alike = softmax([float(sum(first[i] * second[j])) / t for j in range(N)])
        total -= sum(w * log(s + 1e-7) for w, s in zip(row, alike, strict=True)) / N
    assert 0 < joined < N * (N - 1)
    assert float(graph_contrastive_loss(first, second, graph, t)) == pytest.approx(total)


def test_comatch_puts_its_parts_together():
    recipe = SemiRecipe(bank_batches=1, align_batches=1, threshold=0.5, graph_threshold=0.5)
    step, labels = CoMatch(recipe), one_hot(distributions(2, seed=8))
    for seed in range(2):
        scores = tuple(torch.randn(n, C, dtype=torch.float64).mul(3) for n in (2, N, N, N))
        features = tuple(directions(n, seed=10 * seed + k) for k, n in enumerate((2, N, N, N)))
        before = step.bank.parts[-1] if step.bank.full else None
        losses = step(labels, scores, features)
        p = scores[1].softmax(1)
        p = p / p.mean(0)
        p = p / p.sum(1, keepdim=True)
        # The bank keeps aligned, unsmoothed probabilities, and labels as they are.
        assert torch.allclose(step.bank.parts[-1][1], torch.cat([p, labels]))
        q = p
        if before is not None:
            weights = (features[1] @ before[0].T / 0.2).softmax(1)
            q = 0.9 * p + 0.1 * weights @ before[1]
        assert float(losses["unlabelled"]) == pytest.approx(float(pseudo_label_loss(scores[2], q, 0.5)))
        graph = pseudo_label_graph(q, 0.5)
        contrast = graph_contrastive_loss(features[2], features[3], graph, 0.2)
        assert float(losses["contrastive"]) == pytest.approx(float(contrast))
        assert float(losses["labelled"]) == pytest.approx(
            -sum(log(softmax(scores[0][i].tolist())[int(labels[i].argmax())]) for i in range(2)) / 2
        )


def test_fixmatch_learns_from_hard_labels():
    scores = tuple(torch.randn(n, C, dtype=torch.float64).mul(3) for n in (2, N, N))
    labels, recipe = one_hot(distributions(2)), SemiRecipe(threshold=0.7)
    losses = FixMatch(recipe)(labels, scores, ())
    by_hand = 0.0
    for i in range(N):
        weak, strong = softmax(scores[1][i].tolist()), softmax(scores[2][i].tolist())
        if max(weak) >= 0.7:
            by_hand -= log(strong[weak.index(max(weak))]) / N
    assert float(losses["unlabelled"]) == pytest.approx(by_hand)
    assert float(losses["contrastive"]) == 0


def test_freematch_follows_the_model():
    recipe = SemiRecipe(follow=0.5, fairness=0.3)
    step, labels = FreeMatch(recipe), one_hot(distributions(2))
    t, p, h = 1 / C, [1 / C] * C, [1 / C] * C
    kept = []
    for seed in range(3):
        torch.manual_seed(seed)
        scores = tuple(torch.randn(n, C, dtype=torch.float64).mul(3) for n in (2, N, N))
        losses = step(labels, scores, ())
        weak, strong = ([softmax(row) for row in scores[k].tolist()] for k in (1, 2))
        guess = [row.index(max(row)) for row in weak]
        t = 0.5 * t + 0.5 * sum(map(max, weak)) / N
        p = [0.5 * p[c] + 0.5 * sum(row[c] for row in weak) / N for c in range(C)]
        h = [0.5 * h[c] + 0.5 * guess.count(c) / N for c in range(C)]
        sure = [i for i in range(N) if max(weak[i]) >= t * p[guess[i]] / max(p)]
        by_hand = -sum(log(strong[i][guess[i]]) for i in sure) / N
        named = [strong[i].index(max(strong[i])) for i in sure]
        wanted = [p[c] / h[c] for c in range(C)]
        mean = [sum(strong[i][c] for i in sure) / len(sure) for c in range(C)]
        found = [mean[c] * len(sure) / named.count(c) if c in named else 0.0 for c in range(C)]
        fair = sum(w / sum(wanted) * log(f / sum(found) + 1e-12) for w, f in zip(wanted, found, strict=True))
        assert float(losses["unlabelled"]) == pytest.approx(by_hand + 0.3 * fair)
        kept.append(len(sure))
    assert 0 < min(kept) < N
    again = FreeMatch(recipe)
    again.restore(step.state())
    assert torch.equal(again.means, step.means)


def test_freematch_bears_a_batch_in_which_nothing_is_sure():
    scores = torch.zeros(0, C, requires_grad=True)
    loss = fairness_loss(scores, torch.full((C,), 1 / C), torch.full((C,), 1 / C))
    loss.backward()
    assert float(loss) == 0


def test_no_gradient_flows_through_pseudo_labels():
    scores = [torch.randn(n, C, requires_grad=True) for n in (2, N, N, N)]
    features = [directions(n).float().requires_grad_() for n in (2, N, N, N)]
    losses = CoMatch(SemiRecipe(threshold=0.1))(one_hot(distributions(2)).float(), scores, features)
    (losses["unlabelled"] + losses["contrastive"]).backward()
    assert scores[1].grad is None
    assert features[1].grad is None
    assert scores[2].grad is not None
    assert features[2].grad is not None
    assert features[3].grad is not None


def test_learning_rate_is_comatchs_cosine():
    recipe = SemiRecipe(steps=100)
    assert recipe.learning_rate(0) == 0.03
    assert recipe.learning_rate(50) == pytest.approx(0.03 * cos(7 * pi / 32))


SHORT = SemiRecipe(
    steps=400, batch_size=10, ratio=4, lr=0.05, threshold=0.8, ema=0.98,
    views=Views(pad=1, flip=False, cutout=4, crop=0.6, fill=0.0),
)  # fmt: skip


@pytest.mark.parametrize("method", ["fixmatch", "freematch", "comatch"])
def test_few_labels_and_many_images_beat_the_labels_alone(method):
    data = load("mnist5k")
    middle = replace(data.info, shape=(1, 14, 14))

    def small(images, count):
        pixels = torch.nn.functional.avg_pool2d(images.images[:count].float(), 2).round().to(torch.uint8)
        return replace(images[torch.arange(count)], images=pixels, info=middle)

    train_set, test = small(data.train, 1500), small(data.test, 500)
    chosen = torch.cat([(train_set.labels == c).nonzero().flatten()[:4] for c in range(10)])
    few = train_set[chosen]
    alone = train(build("convnet", middle, width=8), few, test=test, recipe=Recipe(steps=400, pad=1), evaluate_every=0)
    found = train_semi_supervised(
        build("convnet", middle, width=8), few, train_set.images, test=test, method=method, recipe=SHORT
    )
    assert found.accuracy > alone.accuracy + 0.05
    assert found.history["test_accuracy"].iloc[-1] == found.accuracy
    assert found.history["sure"].iloc[-1] > 0.2


def tiny_set(count=12):
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (count, *INFO.shape), generator=generator).to(torch.uint8)
    return ImageSet(images, torch.arange(count) % INFO.num_classes, torch.arange(count), INFO)


def test_a_seed_gives_the_same_training_and_leaves_the_global_state():
    few, recipe = tiny_set(), SemiRecipe(steps=3, batch_size=4, ratio=2)
    state = torch.random.get_rng_state()
    runs = [train_semi_supervised("convnet", few, few.images, test=few, recipe=recipe, seed=seed) for seed in (0, 0, 1)]
    assert torch.equal(state, torch.random.get_rng_state())
    assert runs[0].history["loss"].tolist() == runs[1].history["loss"].tolist() != runs[2].history["loss"].tolist()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"method": "mixmatch"}, "fixmatch, freematch, comatch"),
        ({"many": torch.zeros(3, 1, 9, 9)}, "unlabelled images are"),
        ({"many": torch.zeros(0, *INFO.shape)}, "unlabelled images are"),
    ],
)
def test_bad_input(changes, message):
    few = tiny_set()
    arguments = {"many": few.images, "method": "comatch", **changes}
    many = arguments.pop("many")
    with pytest.raises(ValueError, match=message):
        train_semi_supervised("convnet", few, many, test=few, recipe=SemiRecipe(steps=1), **arguments)
