"""FixMatch, FreeMatch, CoMatch: pseudo-labels, and the losses of one batch from the scores and features of its views.

FixMatch: Sohn et al., NeurIPS 2020 (arXiv 2001.07685). CoMatch: Li, Xiong and Hoi, ICCV 2021 (arXiv 2011.11183).
FreeMatch: Wang et al., ICLR 2023 (arXiv 2205.07246).
N unlabelled images, C classes, D features of length one.
"""

from __future__ import annotations

from collections import deque

import torch
import torch.nn.functional as F
from torch import Generator, Tensor

from leaklearn.learning.recipe import SemiRecipe

EPSILON = 1e-7
"""What CoMatch's code adds under the logarithm of a similarity."""


class Alignment:
    """Distribution alignment (Berthelot et al., ReMixMatch, ICLR 2020), towards equal classes.

    p <- p / mean of p over the last `batches`, scaled to sum 1: a class that is guessed too often becomes rarer.
    """

    def __init__(self, batches: int) -> None:
        self.means: deque[Tensor] = deque(maxlen=batches)

    def __call__(self, probabilities: Tensor) -> Tensor:
        """(N, C) -> (N, C); this batch is counted first."""
        self.means.append(probabilities.mean(0))
        aligned = probabilities / torch.stack(list(self.means)).mean(0)
        return aligned / aligned.sum(1, keepdim=True)


class MemoryBank:
    """Features and class probabilities of the last `batches`, a ring of fixed size; CoMatch, section 3.2."""

    def __init__(self, batches: int) -> None:
        self.parts: deque[tuple[Tensor, Tensor]] = deque(maxlen=batches)

    @property
    def full(self) -> bool:
        """Whether it holds as many batches as it can."""
        return len(self.parts) == self.parts.maxlen

    def add(self, features: Tensor, probabilities: Tensor) -> None:
        """Take a batch (N, D) and (N, C) in; the oldest goes."""
        self.parts.append((features.detach(), probabilities.detach()))

    def smooth(self, features: Tensor, probabilities: Tensor, alpha: float, temperature: float) -> Tensor:
        """Mix each image's probabilities with those of its neighbours in the bank; equation 5.

        q = alpha p + (1 - alpha) sum_k a_k p_k,  a = softmax_k(z . z_k / t).
        """
        held, known = (torch.cat(part) for part in zip(*self.parts, strict=True))
        weights = (features @ held.mT / temperature).softmax(1)
        return alpha * probabilities + (1 - alpha) * weights @ known


def pseudo_label_loss(scores: Tensor, probabilities: Tensor, threshold: float) -> Tensor:
    """Cross-entropy of the strong view against the weak view's probabilities, where these are sure; a scalar.

    mean_b 1{max q_b >= threshold} sum_c -q_b[c] log softmax(s_b)[c]: over all images, sure or not. CoMatch gives soft
    probabilities (equation 2), FixMatch one-hot ones (its equation 4).
    """
    sure = (probabilities.amax(1) >= threshold).to(scores.dtype)
    return (sure * F.cross_entropy(scores, probabilities, reduction="none")).mean()


def pseudo_label_graph(probabilities: Tensor, threshold: float) -> Tensor:
    """(N, N): how alike the images' pseudo-labels are, rows of sum 1; CoMatch, equation 7.

    W_ij = q_i . q_j where that reaches the threshold, else 0; W_ii = 1.
    """
    graph = probabilities @ probabilities.mT
    graph = graph.masked_fill(torch.eye(len(graph), dtype=torch.bool, device=graph.device), 1)
    graph = graph.masked_fill(graph < threshold, 0)
    return graph / graph.sum(1, keepdim=True)


def graph_contrastive_loss(first: Tensor, second: Tensor, graph: Tensor, temperature: float) -> Tensor:
    """Cross-entropy between the graph of pseudo-labels and that of features of two strong views; equations 8 and 9.

    -mean_i sum_j W_ij log(S_ij + epsilon), S = softmax_j(z_i . z'_j / t).
    """
    similarity = (first @ second.mT / temperature).softmax(1)
    return -(graph * (similarity + EPSILON).log()).sum(1).mean()


def fairness_loss(scores: Tensor, expected: Tensor, counted: Tensor) -> Tensor:
    """How far the strong views' mean prediction is from what the model expects, class by class; FreeMatch, equation 13.

    sum_c e_c log m_c, with e the expected (C,) and m the mean probabilities of `scores` (N, C), each over the share of
    the labels that it comes with (`counted`, (C,), and that of the scores' own labels), then scaled to sum 1. Without
    any score it is 0.
    """
    if not len(scores):
        return scores.sum()
    probabilities = scores.softmax(1)
    shares = one_hot(probabilities).mean(0)
    wanted, found = _shared_out(expected, counted), _shared_out(probabilities.mean(0), shares)
    return (wanted * (found + 1e-12).log()).sum()


def _shared_out(values: Tensor, shares: Tensor) -> Tensor:
    """values / shares where these are above 0, else 0, scaled to sum 1."""
    found = torch.where(shares > 0, values / shares.clamp_min(1e-12), torch.zeros_like(values))
    return found / found.sum()


def one_hot(probabilities: Tensor) -> Tensor:
    """The most likely class of each image, as a distribution."""
    return F.one_hot(probabilities.argmax(1), probabilities.shape[1]).to(probabilities.dtype)


class _Method:
    """Makes the views of a batch, and its losses; what one batch hands to the next can be stored."""

    def __init__(self, recipe: SemiRecipe) -> None:
        self.recipe = recipe

    def state(self) -> dict[str, Tensor]:
        """What one batch hands to the next."""
        return {}

    def restore(self, state: dict[str, Tensor]) -> None:
        """Put back what `state` told, into a method that has seen no batch."""


class FixMatch(_Method):
    """Pseudo-labels from the weak view, learned from the strong one."""

    def views(self, images: Tensor, generator: Generator) -> list[Tensor]:
        """Weak and strong."""
        return [self.recipe.views.weak(images, generator), self.recipe.views.strong(images, generator)]

    def __call__(self, labels: Tensor, scores: tuple[Tensor, ...], features: tuple[Tensor, ...]) -> dict[str, Tensor]:
        """Losses of one batch: scores and features of the labelled images, then of each view."""
        probabilities = scores[1].detach().softmax(1)
        sure = (probabilities.amax(1) >= self.recipe.threshold).float().mean()
        kept = torch.where(
            probabilities.amax(1, keepdim=True) >= self.recipe.threshold, one_hot(probabilities), probabilities
        )
        return {
            "labelled": F.cross_entropy(scores[0], labels),
            "unlabelled": pseudo_label_loss(scores[2], kept, self.recipe.threshold),
            "contrastive": torch.zeros_like(sure),
            "sure": sure,
        }


class FreeMatch(FixMatch):
    """FixMatch with a threshold for each class that follows the model, and fair classes.

    tau(c) = t p_c / max p, with t the running mean of how sure the model is, and p_c that of how likely it finds the
    class (equations 5 to 8). A model that knows nothing yet so learns from nearly all images, and from those of a class
    that it finds hard the longest.
    """

    def __init__(self, recipe: SemiRecipe) -> None:
        super().__init__(recipe)
        self.means: Tensor | None = None  # (2 C + 1,): t, then p, then the share of each label

    def __call__(self, labels: Tensor, scores: tuple[Tensor, ...], features: tuple[Tensor, ...]) -> dict[str, Tensor]:
        """Losses of one batch: scores and features of the labelled images, then of each view."""
        probabilities = scores[1].detach().softmax(1)
        classes, guesses = probabilities.shape[1], one_hot(probabilities)
        now = torch.cat([probabilities.amax(1).mean()[None], probabilities.mean(0), guesses.mean(0)])
        if self.means is None:  # one class as likely as another
            self.means = torch.full_like(now, 1 / classes)
        self.means = self.recipe.follow * self.means + (1 - self.recipe.follow) * now
        sure_by, expected, counted = self.means.split([1, classes, classes])
        threshold = (sure_by * expected / expected.max())[probabilities.argmax(1)]
        sure = (probabilities.amax(1) >= threshold).to(scores[2].dtype)
        fair = fairness_loss(scores[2][sure.bool()], expected, counted)
        unlabelled = (sure * F.cross_entropy(scores[2], guesses, reduction="none")).mean()
        return {
            "labelled": F.cross_entropy(scores[0], labels),
            "unlabelled": unlabelled + self.recipe.fairness * fair,
            "contrastive": torch.zeros_like(unlabelled),
            "sure": sure.mean(),
        }

    def state(self) -> dict[str, Tensor]:
        """The running means."""
        return {} if self.means is None else {"means": self.means}

    def restore(self, state: dict[str, Tensor]) -> None:
        """Put back what `state` told, into a method that has seen no batch."""
        self.means = state.get("means")


class CoMatch(_Method):
    """Pseudo-labels smoothed over a memory bank, and a graph of them that a second strong view learns from."""

    def __init__(self, recipe: SemiRecipe) -> None:
        super().__init__(recipe)
        self.align = Alignment(recipe.align_batches)
        self.bank = MemoryBank(recipe.bank_batches)

    def views(self, images: Tensor, generator: Generator) -> list[Tensor]:
        """Weak, strong and contrastive."""
        views = self.recipe.views
        return [make(images, generator) for make in (views.weak, views.strong, views.contrastive)]

    def __call__(self, labels: Tensor, scores: tuple[Tensor, ...], features: tuple[Tensor, ...]) -> dict[str, Tensor]:
        """Losses of one batch: scores and features of the labelled images, then of each view."""
        recipe = self.recipe
        aligned = self.align(scores[1].detach().softmax(1))
        weak = features[1].detach()
        smoothed = aligned
        if self.bank.full:
            smoothed = self.bank.smooth(weak, aligned, recipe.alpha, recipe.temperature)
        self.bank.add(torch.cat([weak, features[0]]), torch.cat([aligned, labels]))
        graph = pseudo_label_graph(smoothed, recipe.graph_threshold)
        return {
            "labelled": F.cross_entropy(scores[0], labels),
            "unlabelled": pseudo_label_loss(scores[2], smoothed, recipe.threshold),
            "contrastive": graph_contrastive_loss(features[2], features[3], graph, recipe.temperature),
            "sure": (smoothed.amax(1) >= recipe.threshold).float().mean(),
        }

    def state(self) -> dict[str, Tensor]:
        """The bank, and the means that alignment remembers, the oldest first."""
        if not self.bank.parts:
            return {}
        features, probabilities = (torch.stack(part) for part in zip(*self.bank.parts, strict=True))
        return {"means": torch.stack(list(self.align.means)), "features": features, "probabilities": probabilities}

    def restore(self, state: dict[str, Tensor]) -> None:
        """Put back what `state` told, into a method that has seen no batch."""
        if state:
            self.align.means.extend(state["means"])
            self.bank.parts.extend(zip(state["features"], state["probabilities"], strict=True))


METHODS: dict[str, type[_Method]] = {"fixmatch": FixMatch, "freematch": FreeMatch, "comatch": CoMatch}
