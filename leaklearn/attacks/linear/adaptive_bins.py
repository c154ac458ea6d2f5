"""Bins that move: over rounds, each client's bins are put where its unknown images must be.

After a round the server knows the images that leaked, and which bins held several. When the same client comes back, no
bin need be spent on what is known: the edges go into the intervals that collided, more where more images are left
(`leaklearn.attacks.linear.cells`). Different clients need different edges, so each is sent a model of its own. The idea
is ours; n bins over N images that stay the same then isolate all of them in a few rounds, while bins that are drawn
anew each round leak 1 - (1 - p)^k.

Where a client draws a new batch of its images each round, known images come back among the unknown ones; what they give
is made anew and taken away (`leaklearn.attacks.linear.peeling`), in this round's bins and in those of earlier rounds.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field, replace

import torch
from torch import Tensor, nn

from leaklearn.attacks.linear.base import UNIT_ROUNDOFF, LinearLeakage, as_leak
from leaklearn.attacks.linear.bins import Bins, Population, measurement_vector
from leaklearn.attacks.linear.blocks import LeakyBlock, bounded_block, bounded_rows
from leaklearn.attacks.linear.cells import NONE, ONE, SEVERAL, UNSEEN, Cells
from leaklearn.attacks.linear.certainty import check_resynthesis, compare, neuron_gradients
from leaklearn.attacks.linear.peeling import MOST_KNOWN, Solved, UsedBins, in_bins, solve
from leaklearn.data.images import ImageSet
from leaklearn.federated.exchange import Payload, PersonalPayload, Updates
from leaklearn.leaks import Leak, merge

# Points of the table from quantiles to measurements.
TABLE = 4096
# Random part of each pixel's weight: two images of the same brightness, which 8 bits make likely, are told apart.
TILT = 0.1
# Two images of a client whose measurements differ by less are first taken for one.
SAME_IMAGE = 2e-6
# Bins reach over their edges by so much, or rounding would lose an image that lies on one; it may then be found twice.
MARGIN = 2e-7
# A bin's edges where it looks for nothing: brighter than any image.
BEYOND = 2.0


@dataclass(frozen=True)
class AdaptiveBins(LinearLeakage):
    """Settings of the attack; `begin` starts it on a group of clients, round after round.

    What its numbers assume, more than those of bins that stay:

    * the same clients come back in every round, with the same batch, or with a new batch of a `pool` that stays;
    * each client is sent a model of its own, so that clients who compare what they got see the attack;
    * clients answer by FedSGD, one gradient of a batch whose size is known;
    * the server sees every client's answer alone: there is no secure aggregation;
    * the network has no batch norm in train mode, so that gradients can be made anew.

    `payload` and `reconstruct` are a first round by itself, in which all clients are sent the same.

    `pool` is the number of images that a client has, of which it draws `images_per_client` in each round; clients tell
    it for the weighted mean of FedAvg. None: as many, so that a client uses the same images in every round.
    """

    fc_factor: float = 1.0
    pool: int | None = None
    distribution: str = "normal"  # of the measurement before the first round, see `Population`

    name = "adaptive"
    source = "ours; bins as in Robbing the Fed (Fowl et al., ICLR 2022)"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.split:
            raise ValueError(
                "split is True; adaptive bins tell what collides apart in the next round, and split nothing"
            )
        if self.images < self.images_per_client:
            raise ValueError(f"a client cannot use {self.images_per_client} of {self.images} images in a round")

    @property
    def images(self) -> int:
        """Images that a client has."""
        return self.images_per_client if self.pool is None else self.pool

    @property
    def share(self) -> float:
        """Share of its images that a client uses in a round."""
        return self.images_per_client / self.images

    def begin(self, model: nn.Module, public: ImageSet, clients: Tensor | list[int], device: str = "cpu") -> Campaign:
        """Start on K clients of which nothing is known, named in the order in which they will answer.

        `model` is the honest network behind the malicious layer; `public` images tell the distribution of brightness.
        """
        table = self._table(public).to(device)
        ids = torch.as_tensor(clients, dtype=torch.int64)
        return Campaign(self, self.payload(model, public).to(device), ids, table)

    def block(self, public: ImageSet) -> LeakyBlock:
        """The first round's bins, of equal mass, alike for all clients; the later ones are each client's own."""
        vector = _tilted_brightness(public.shape)
        quantiles = Cells.even(1, self.images).bins(self.neurons, self.share)
        low, high = (edge[0] for edge in _edges(self._table(public), *quantiles))
        block = bounded_block(public.shape, vector, low, high)
        block.bins = Bins(vector, low, high)  # in full precision, for gradients that are made anew
        return block

    def reconstruct(self, payload: Payload, updates: Updates, *, seed: int = 0, round: int = 0) -> Leak:
        """The leak of a first round: see `Campaign.reconstruct`."""
        campaign = Campaign(self, payload, updates.clients)
        campaign.cut()
        leak = campaign.reconstruct(payload, updates)
        return replace(leak, round=torch.full_like(leak.round, round))

    def _table(self, public: ImageSet) -> Tensor:
        """(T + 1,) float64 measurement at quantile j / T, rising; both ends lie beyond all public images."""
        population = Population.of(_tilted_brightness(public.shape), public.images, self.distribution)
        values = population.values.cpu()
        points = min(TABLE, len(values)) if population.kind == "quantiles" else TABLE
        inner = population.quantiles(torch.arange(1, points) / points).double().cpu()
        first = torch.minimum(inner[:1], values[:1]) - population.spread
        last = torch.maximum(inner[-1:], values[-1:]) + population.spread
        table = torch.cat([first, inner, last])
        return table.cummax(0).values + 1e-9 * torch.arange(len(table))  # public images of one brightness have no width


@dataclass(eq=False)
class Campaign:
    """An adaptive attack under way, against the same K clients: `payload`, then `reconstruct`, and again.

    `shared` is the malicious model of the first round; `table` (T + 1,) the measurement at each quantile, from which
    each client has edges of its own in later rounds. `leak` is all that leaked so far, without repeats; every image is
    certain, and labels are those that fit the gradient. `cells` tell where the unknown images may be.
    """

    attack: AdaptiveBins
    shared: Payload
    clients: Tensor
    table: Tensor | None = None
    leak: Leak | None = field(default=None, init=False)

    def __post_init__(self) -> None:
        count, device, images = len(self.clients), self.shared.device, self.attack.images
        self.cells = Cells.even(count, images, device)
        self._vector = self.shared.model.block.bins.vector.to(device)
        self._quantiles: tuple[Tensor, Tensor] | None = None
        self._sent: list[tuple[Tensor, Tensor]] = []
        # Of each client's known images: measurement (NaN for none) and position in the leak.
        self._known = torch.full((count, images), float("nan"), dtype=torch.float64, device=device)
        self._place = torch.zeros(count, images, dtype=torch.int64, device=device)
        self._open: UsedBins | None = None

    def payload(self, model: nn.Module | None = None, public: ImageSet | None = None) -> PersonalPayload:
        """What to send next: bounded bins, for each client where its unknown images may be.

        Network and public images are those that the campaign began with, whatever is given here.
        Raises a ValueError if the answers to the payload before were not given to `reconstruct`.
        """
        names, dtype = ("block.fc1.weight", "block.fc1.bias"), self.shared.dtype
        rows = bounded_rows(self._vector, *self.cut())
        return PersonalPayload(self.shared, {n: v.to(dtype) for n, v in zip(names, rows, strict=True)})

    def cut(self) -> tuple[Tensor, Tensor]:
        """Edges (K, n) of the next round's bins, float64, which count as sent; for errors see `payload`."""
        if self._quantiles is not None:
            raise ValueError("the answers to the last payload are missing: give them to `reconstruct` first")
        self._quantiles = self.cells.bins(self.attack.neurons, self.attack.share)
        first = self.shared.model.block.bins
        edges = [edge.to(self._vector.device).expand(len(self.clients), -1) for edge in (first.low, first.high)]
        self._sent.append(_edges(self.table, *self._quantiles) if self._sent else tuple(edges))
        return self._sent[-1]

    @property
    def reads(self) -> tuple[str, str]:
        """As of the attack: a campaign is attacked with like any other."""
        return self.attack.reads

    def reconstruct(self, payload: PersonalPayload, updates: Updates, *, seed: int = 0) -> Leak:
        """Take the new images out of the answers to the last payload, and learn from them where to look next.

        Returns the images that were not known before, on the CPU, with the labels that fit the gradient; all are
        certain, confidence 1. Nothing is drawn, so `seed` is not used. Raises a ValueError if there is no payload that
        these updates could answer, or an image's gradient cannot be made anew (`check_resynthesis`).
        """
        if self._quantiles is None:
            raise ValueError("no payload was made that these updates could answer")
        if not torch.equal(updates.clients, self.clients):
            raise ValueError("the updates are not those of this campaign's clients in their order")
        check_resynthesis(self.shared, updates)
        number, batch_size = len(self._sent) - 1, updates.protocol.batch_size
        bins = self._answered(updates, number)
        seen = torch.full(self._quantiles[0].shape, NONE, device=self._known.device)
        solved, tried = self._solve(bins, batch_size)
        outcome = torch.where(solved.explained, NONE, torch.where(solved.one, ONE, SEVERAL))
        seen[bins.row, bins.neuron] = torch.where(tried, outcome, UNSEEN)
        self._remember(bins, solved._replace(one=self._distinct(bins, solved)), number)
        if self.attack.share < 1:
            unsolved = bins.pick(~solved.explained & ~solved.one)
            before = () if self._open is None else (self._open,)
            self._open = UsedBins(*map(torch.cat, zip(*before, unsolved, strict=True)))
            self._peel(batch_size, number)
        left = self.attack.images - (~self._known.isnan()).sum(1).double()
        self.cells = self.cells.learn(*self._quantiles, seen, left, self.attack.share)
        self._quantiles = None
        return self.leak[self.leak.round == number]

    def _answered(self, updates: Updates, number: int) -> UsedBins:
        """The bins of the last payload that any image reached."""
        bias, weight = (updates.tensors[f"block.fc1.{name}"] for name in ("bias", "weight"))
        largest = bias.abs().amax(1, keepdim=True)
        row, neuron = (bias.abs() > UNIT_ROUNDOFF * largest).nonzero(as_tuple=True)
        low, high = (edge[row, neuron].to(bias.dtype) for edge in self._sent[number])
        own = bias[row, neuron]
        noise = UNIT_ROUNDOFF * largest[row, 0] / own.abs()
        return UsedBins(row, torch.full_like(row, number), neuron, low, high, own, weight[row, neuron], noise)

    def _solve(self, bins: UsedBins, batch_size: int) -> tuple[Solved, Tensor]:
        """Each bin's new image if it has one, and is certain; (R,) bool where that could be tried."""
        inside = in_bins(self._known, bins.low, bins.high, bins.row)
        counts = inside.sum(1)
        blank, none = torch.zeros_like(bins.bias), torch.zeros_like(counts, dtype=torch.bool)
        out = Solved(none, none.clone(), torch.zeros_like(bins.weight), blank, counts.clone())
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
            found = solve(group, known, given, self._vector, eight_bit=self.attack.eight_bit)
            for whole, part in zip(out, found, strict=True):
                whole[which] = part
        # Certain are the images whose gradient, made anew, is what came back, with the label that fits.
        new = out.one.nonzero().flatten()
        images = out.images[new].clamp(0, 1).unflatten(1, self.shared.model.block.shape)
        verdict = compare(self._gradients(images, bins.pick(new), 1, batch_size), out.bias[new])
        out.one[new], out.labels[new] = verdict.certain, verdict.labels
        return out, counts <= MOST_KNOWN

    def _gradients(self, images: Tensor, bins: UsedBins, count: int, batch_size: int) -> Tensor:
        """(R * count, classes) gradient of a neuron that each image activates, `count` images for each bin."""
        measured = images.flatten(1).double() @ self._vector.double()
        lows, highs = (torch.stack(edges) for edges in zip(*self._sent, strict=True))
        low, high = (edges[bins.round, bins.row].repeat_interleave(count, 0) for edges in (lows, highs))
        total = ((measured.unsqueeze(1) - low) / (high - low)).clamp(0, 1).sum(1)
        return neuron_gradients(self.shared, images, total.to(images.dtype), batch_size)

    def _remember(self, bins: UsedBins, solved: Solved, number: int) -> None:
        """Add new images to the leak and to what is known of their clients."""
        found = solved.one.nonzero().flatten()
        found = found[bins.row[found].argsort(stable=True)]
        rows = bins.row[found]
        # The n-th new image of a client takes its n-th free place.
        within = torch.arange(len(rows), device=rows.device) - torch.searchsorted(rows, rows)
        slot = (~self._known.isnan()).sum(1)[rows] + within
        fits = slot < self.attack.images
        found, rows, slot = found[fits], rows[fits], slot[fits]
        images = solved.images[found].clamp(0, 1)
        if self.attack.eight_bit:
            images = (images * 255).round() / 255
        new = as_leak(self.shared, images, torch.ones(len(found)), self.clients[rows.cpu()], bins.neuron[found], number)
        new = new.with_labels(solved.labels[found].cpu())
        before = 0 if self.leak is None else len(self.leak)
        leak = new if self.leak is None else merge([self.leak, new])
        self.leak = replace(leak, meta={"attack": self.attack.name, **asdict(self.attack), "rounds": number + 1})
        self._known[rows, slot] = images.double() @ self._vector.double()
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

    def _distinct(self, bins: UsedBins, solved: Solved) -> Tensor:
        """(R,) bool: one bin for each new image. Bins of several rounds, and neighbours, may give the same image."""
        found = solved.one.nonzero().flatten()
        measured = 10 * bins.row[found] + solved.images[found].double() @ self._vector.double()
        order = measured.argsort()
        new = torch.ones_like(found, dtype=torch.bool)
        new[1:] = measured[order].diff() > SAME_IMAGE
        return torch.zeros_like(solved.one).index_fill(0, found[order[new]], True)


def _tilted_brightness(shape: tuple[int, int, int]) -> Tensor:
    """(d,) the measurement: the mean pixel, each pixel's weight changed a little at random."""
    tilt = measurement_vector("random", shape) * math.prod(shape) ** 0.5
    return measurement_vector("mean", shape) * (1 + TILT * tilt)


def _edges(table: Tensor, low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
    """Bins given in quantiles (K, n) -> their edges (K, n) in the measurement, linear between the table's points."""
    steps, idle = len(table) - 1, low > 1
    place = (torch.stack([low, high]).clamp(0, 1) * steps).clamp_max(steps - 1e-9)
    index = place.long()
    low, high = table[index] + (place - index) * (table[index + 1] - table[index])
    return torch.where(idle, BEYOND, low - MARGIN), torch.where(idle, BEYOND + 1.0, high + MARGIN)
