"""What was really attacked, as evaluation knows it and no attacker does."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Truth:
    """What the clients really trained on. Only evaluation ever sees it.

    Attributes
    ----------
    images : Tensor
        (K, N, C, H, W) float in [0, 1] or uint8 (an eighth of the memory): N images of each of K updates.
    labels : Tensor
        (K, N) int64.
    clients : Tensor
        (K,) int64, the client of each update. One that was attacked in several rounds occurs several times.
    """

    images: Tensor
    labels: Tensor
    clients: Tensor

    def __post_init__(self) -> None:
        if self.images.ndim != 5:
            raise ValueError(f"true images are (clients, images, C, H, W), not {tuple(self.images.shape)}")
        if self.images.numel() == 0:
            raise ValueError(f"the truth holds no images: its shape is {tuple(self.images.shape)}")
        if self.labels.shape != self.images.shape[:2] or self.clients.shape != self.images.shape[:1]:
            raise ValueError(
                f"true images {tuple(self.images.shape)} need labels {tuple(self.images.shape[:2])} and clients "
                f"{tuple(self.images.shape[:1])}, not {tuple(self.labels.shape)} and {tuple(self.clients.shape)}"
            )

    def __repr__(self) -> str:
        count, each, *shape = self.images.shape
        return f"Truth({count} updates of {each} images {tuple(shape)}, {len(self.clients.unique())} clients)"

    def attacked(self) -> tuple[np.ndarray, np.ndarray]:
        """Client and position in ``images.flatten(0, 1)``, (A,) int64 each, of every attacked image, by client.

        Exact copies that one client used (in two rounds, or drew twice) count once.
        """
        seen: set[tuple[int, bytes]] = set()
        kept = []
        count = self.images.shape[1]
        for update, client in enumerate(self.clients.tolist()):
            for i, image in enumerate(self.images[update].cpu().flatten(1).numpy()):
                key = (client, image.tobytes())
                if key not in seen:
                    seen.add(key)
                    kept.append((client, update * count + i))
        table = np.array(sorted(kept), dtype=np.int64)
        return table[:, 0], table[:, 1]
