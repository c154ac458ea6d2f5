"""An adaptive attack under way: what is known of each client, and the bins that this asks for next."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import torch
from torch import Tensor

from leaklearn.attacks.linear.base import UNIT_ROUNDOFF
from leaklearn.attacks.linear.cells import NONE, ONE, SEVERAL, UNSEEN, Cells
from leaklearn.attacks.linear.certainty import TOLERANCE, check_resynthesis, compare, neuron_gradients
from leaklearn.attacks.linear.peeling import MOST_KNOWN, Bins, Solved, in_bins, solve
from leaklearn.federated.exchange import Payload, PersonalPayload, Updates
from leaklearn.leaks import Leak, merge

# Two images of a client whose measurements differ by less are first taken for one.
SAME_IMAGE = 2e-6
# Bins reach over their edges by so much, or rounding would lose an image that lies on one; it may then be found twice.
MARGIN = 2e-7
# A bin's edges where it looks for nothing: brighter than any image.
BEYOND = 2.0


class Settings(Protocol):
    """What the campaign is told: see `leaklearn.attacks.linear.adaptive.AdaptiveBins`."""

    neurons: int
    images: int
    share: float
    load: float
    eight_bit: bool


@dataclass(eq=False)
class Campaign:
    """Rounds against the same K clients: `payload`, then `reconstruct`, and again.

    Attributes
    ----------
    settings
        The attack.
    shared : Payload
        The malicious model, but for each client's own edges.
    vector, table : Tensor
        (d,) the measurement and (T + 1,) its value at each quantile.
    clients : Tensor
        (K,) ids.
    about : dict
        Goes into the meta of every leak.
    leak : Leak or None
        All that leaked so far, without repeats; every image is certain. Labels are those that fit the gradient.
    cells : Cells
        Where the unknown images may be.
    """

    settings: Settings
    shared: Payload
    vector: Tensor
    table: Tensor
    clients: Tensor
    about: dict[str, Any]
    leak: Leak | None = field(default=None, init=False)

    def __post_init__(self) -> None:
        count, device = len(self.clients), self.shared.device
        self.cells = Cells.even(count, self.settings.images, device)
        self._quantiles: tuple[Tensor, Tensor] | None = None
        self._edges: list[tuple[Tensor, Tensor]] = []
        # Of each client's known images: measurement (NaN for none) and position in the leak.
        self._known = torch.full((count, self.settings.images), float("nan"), dtype=torch.float64, device=device)
        self._place = torch.zeros(count, self.settings.images, dtype=torch.int64, device=device)
        self._open: Bins | None = None

    def payload(self) -> PersonalPayload:
        """What to send next: bounded bins, for each client where its unknown images may be.

        Raises
        ------
        ValueError
            If the answers to the payload before were not given to `reconstruct`.
        """
        if self._quantiles is not None:
            raise ValueError("the answers to the last payload are missing: give them to `reconstruct` first")
        s = self.settings
        self._quantiles = self.cells.bins(s.neurons, s.share, s.load)
        low, high = (self._measurement(u) for u in self._quantiles)
        idle = self._quantiles[0] > 1
        low, high = torch.where(idle, BEYOND, low - MARGIN), torch.where(idle, BEYOND + 1.0, high + MARGIN)
        self._edges.append((low, high))
        width = high - low
        weight = self.vector / width.to(self.vector.dtype).unsqueeze(2)
        personal = {"block.fc1.weight": weight, "block.fc1.bias": -(low / width)}
        return PersonalPayload(self.shared, {n: v.to(self.shared.dtype) for n, v in personal.items()})

    def reconstruct(self, updates: Updates) -> Leak:
        """Take the new images out of the answers, and learn from them where to look next.

        Parameters
        ----------
        updates
            Of all clients, in their order, by FedSGD.

        Returns
        -------
        Leak
            The images that were not known before, on the CPU, with the labels that fit the gradient; all are certain,
            confidence 1.

        Raises
        ------
        ValueError
            If there is no payload that these could answer, or an image's gradient cannot be made anew.
        """
        if self._quantiles is None:
            raise ValueError("no payload was made that these updates could answer")
        if not torch.equal(updates.clients, self.clients):
            raise ValueError("the updates are not those of this campaign's clients in their order")
        check_resynthesis(self.shared, updates)
        number = len(self._edges) - 1
        bins = self._answered(updates, number)
        seen = torch.full(self._quantiles[0].shape, NONE, device=self._known.device)
        solved, tried = self._solve(bins, updates.protocol.batch_size)
        outcome = torch.where(solved.explained, NONE, torch.where(solved.one, ONE, SEVERAL))
        seen[bins.row, bins.neuron] = torch.where(tried, outcome, UNSEEN)
        self._remember(bins, solved._replace(one=self._distinct(bins, solved)), number)
        if self.settings.share < 1:
            unsolved = bins.pick(~solved.explained & ~solved.one)
            self._open = (
                unsolved if self._open is None else Bins(*map(torch.cat, zip(self._open, unsolved, strict=True)))
            )
            self._peel(updates.protocol.batch_size, number)
        left = self.settings.images - (~self._known.isnan()).sum(1).double()
        self.cells = self.cells.learn(*self._quantiles, seen, left, self.settings.share)
        self._quantiles = None
        return self.leak[self.leak.round == number]

    def _answered(self, updates: Updates, number: int) -> Bins:
        """The bins of the last payload that any image reached."""
        bias, weight = (updates.tensors[f"block.fc1.{name}"] for name in ("bias", "weight"))
        largest = bias.abs().amax(1, keepdim=True)
        row, neuron = (bias.abs() > UNIT_ROUNDOFF * largest).nonzero(as_tuple=True)
        low, high = (edge[row, neuron].to(bias.dtype) for edge in self._edges[number])
        own = bias[row, neuron]
        noise = UNIT_ROUNDOFF * largest[row, 0] / own.abs()
        return Bins(row, torch.full_like(row, number), neuron, low, high, own, weight[row, neuron], noise)

    def _solve(self, bins: Bins, batch_size: int) -> tuple[Solved, Tensor]:
        """Each bin's new image if it has one, and is certain; (R,) bool where that could be tried."""
        inside = in_bins(self._known, bins.low, bins.high, bins.row)
        counts = inside.sum(1)
        blank = torch.zeros_like(bins.bias)
        none = torch.zeros_like(counts, dtype=torch.bool)
        out = Solved(none, none.clone(), torch.zeros_like(bins.weight), blank, blank.clone(), counts.clone())
        for count in counts.unique().tolist():
            if count > MOST_KNOWN:
                continue
            which = (counts == count).nonzero().flatten()
            group = bins.pick(which)
            place = inside[which].to(torch.int8).argsort(dim=1, descending=True, stable=True)[:, :count]
            place = self._place[group.row].gather(1, place)
            known, given = bins.weight.new_zeros(*place.shape, bins.weight.shape[1]), blank.new_zeros(place.shape)
            if count:
                images = self.leak.images[place.flatten().cpu()].to(bins.weight)
                known = images.flatten(1).view_as(known)
                gradient = self._gradients(images, group, count, batch_size)
                labels = self.leak.labels[place.flatten().cpu()].to(place.device)
                given = gradient.gather(1, labels.unsqueeze(1)).view_as(given)
            found = solve(group, known, given, self.vector, eight_bit=self.settings.eight_bit)
            for whole, part in zip(out, found, strict=True):
                whole[which] = part
        return self._certain(bins, out, batch_size), counts <= MOST_KNOWN

    def _certain(self, bins: Bins, solved: Solved, batch_size: int) -> Solved:
        """Keep the images whose gradient, made anew, is what came back, with the label that fits."""
        found = solved.one.nonzero().flatten()
        images = solved.images[found].clamp(0, 1).unflatten(1, self.shared.model.block.shape)
        gradient = self._gradients(images, bins.pick(found), 1, batch_size)
        verdict = compare(gradient, solved.bias[found], None, TOLERANCE)
        solved.one[found] = verdict.certain
        solved.labels[found] = verdict.labels
        return solved

    def _gradients(self, images: Tensor, bins: Bins, count: int, batch_size: int) -> Tensor:
        """(R * count, classes) gradient of a neuron that each image activates, `count` images for each bin."""
        measured = images.flatten(1).double() @ self.vector.double()
        lows, highs = (torch.stack(edges) for edges in zip(*self._edges, strict=True))
        low, high = (edges[bins.round, bins.row].repeat_interleave(count, 0) for edges in (lows, highs))
        total = ((measured.unsqueeze(1) - low) / (high - low)).clamp(0, 1).sum(1)
        return neuron_gradients(self.shared, images, total.to(images.dtype), batch_size)

    def _remember(self, bins: Bins, solved: Solved, number: int) -> None:
        """Add new images to the leak and to what is known of their clients."""
        found = solved.one.nonzero().flatten()
        found = found[bins.row[found].argsort(stable=True)]
        rows = bins.row[found]
        # The n-th new image of a client takes its n-th free place.
        within = torch.arange(len(rows), device=rows.device) - torch.searchsorted(rows, rows)
        slot = (~self._known.isnan()).sum(1)[rows] + within
        fits = slot < self.settings.images
        found, rows, slot = found[fits], rows[fits], slot[fits]
        images = solved.images[found].clamp(0, 1)
        if self.settings.eight_bit:
            images = (images * 255).round() / 255
        client = self.clients[rows.cpu()]
        new = Leak(
            images.unflatten(1, self.shared.model.block.shape).float().cpu().contiguous(),
            torch.ones(len(found)),
            client,
            torch.full_like(client, number),
            bins.neuron[found].cpu(),
            labels=solved.labels[found].cpu(),
            meta=self.about,
        )
        before = 0 if self.leak is None else len(self.leak)
        leak = new if self.leak is None else merge([self.leak, new])
        self.leak = replace(leak, meta={**self.about, "rounds": number + 1})
        self._known[rows, slot] = images.double() @ self.vector.double()
        self._place[rows, slot] = before + torch.arange(len(found), device=rows.device)

    def _peel(self, batch_size: int, number: int) -> None:
        """Solve bins of this round and earlier ones with what became known, until nothing new comes."""
        while len(self._open.row):
            solved, _ = self._solve(self._open, batch_size)
            first = self._distinct(self._open, solved)
            self._remember(self._open, solved._replace(one=first), number)
            self._open = self._open.pick(~(first | solved.explained))
            if not first.any():
                return

    def _distinct(self, bins: Bins, solved: Solved) -> Tensor:
        """(R,) bool: one bin for each new image. Bins of several rounds, and neighbours, may give the same image."""
        found = solved.one.nonzero().flatten()
        measured = 10 * bins.row[found] + solved.images[found].double() @ self.vector.double()
        order = measured.argsort()
        new = torch.ones_like(found, dtype=torch.bool)
        new[1:] = measured[order].diff() > SAME_IMAGE
        return torch.zeros_like(solved.one).index_fill(0, found[order[new]], True)

    def _measurement(self, quantiles: Tensor) -> Tensor:
        """Measurement at quantiles (K, n) in [0, 1], linear between the table's points."""
        place = (quantiles.clamp(0, 1) * (len(self.table) - 1)).clamp_max(len(self.table) - 1 - 1e-9)
        index = place.long()
        return self.table[index] + (place - index) * (self.table[index + 1] - self.table[index])
