"""What an audit found: its tables, pictures and limits, as text and as a page."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import pandas as pd
from torch import Tensor

from leaklearn.auditing.words import percent
from leaklearn.report.names import label

COLUMNS = ["attack", "changes", "leak_rate", "low", "high", "images", "psnr", "psnr_of_blank", "labels"]
COLUMNS += ["refused", "limit", "seconds"]


@dataclass(frozen=True, eq=False)
class Audit:
    """What an audit found.

    Attributes
    ----------
    attacks : DataFrame
        A row an attack: attack; changes (what the server changes in the model); leak_rate (share of the images, 0..1:
        exact to 20 dB, and of inversion also 3 dB above a picture that shows nothing), with its 95 % interval low and
        high (Wilson); images (attacked); psnr (dB, median of what leaked, of inversion of all); psnr_of_blank (what
        such a picture reaches); labels (share that is right; NaN where the attack gives none); refused (tests that
        would warn a client); limit (what the attack leaves open); seconds.
    defences : DataFrame
        The same columns but changes and blanks, for the attacks tried again under each defence, named in `defence`.
    limits : tuple of str
        What was assumed, what was not tried and why, a sentence each.
    setting : str
        What was audited.
    pictures : dict of str to tuple of Tensor
        By attack: (E, C, H, W) true images of the first client, and the nearest that the attack made of each.
    labels : tuple of float or None
        Of a Flower app: share of a node's class counts that its honest update tells, 0..1, and that a guess has.
    """

    attacks: pd.DataFrame
    defences: pd.DataFrame
    limits: tuple[str, ...]
    setting: str
    pictures: dict[str, tuple[Tensor, Tensor]] = field(default_factory=dict)
    labels: tuple[float, float] | None = None

    @property
    def worst(self) -> pd.Series:
        """The attack that took most."""
        return self.attacks.loc[self.attacks["leak_rate"].idxmax()]

    @property
    def verdict(self) -> str:
        """One sentence."""
        if not len(self.attacks):
            return "No attack on images that was here to try fits. That is no proof of safety: the limits say why."
        worst, honest = self.worst, self.attacks[self.attacks["changes"] == "nothing"]
        text = f"A server that changes the model takes {percent(worst)}"
        if worst["changes"] == "nothing":
            text = f"A server that changes nothing reads {percent(worst)}"
        elif len(honest):
            best = honest.loc[honest["leak_rate"].idxmax()]
            text += f"; one that only reads, {percent(best)}"
        return text + ". What was not found is not proved safe: the limits say what was tried."

    def save(self, path: str | Path) -> Path:
        """Write the page, one HTML file that needs no other, and give its path."""
        from leaklearn.auditing.page import page, write

        return write(path, page(self))

    def _repr_html_(self) -> str:
        from leaklearn.auditing.page import body

        return body(self)

    def __str__(self) -> str:
        shown = self.attacks.drop(columns=["psnr_of_blank", "limit"]).round(3).to_string(index=False)
        open_ = {f"{label(row.attack)}: {row.limit}": None for row in self.attacks.itertuples()}
        limits = "\n".join(f"- {text}" for text in (*open_, *self.limits))
        defended = [self.defences.drop(columns=["limit"]).round(3).to_string(index=False)] if len(self.defences) else []
        return "\n\n".join([self.setting, self.verdict, shown, *defended, limits])
