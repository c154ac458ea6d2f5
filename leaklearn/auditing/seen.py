"""Which pixels a network looks at, and how well inversion reads these.

A convolution with a stride may leave out rows and columns at an edge: 5x5 with stride 2 on 32 pixels never sees the
last one. No update holds such pixels, so that inversion leaves them as it began, far off; scored with the others, they
would hide that all the rest was read.
"""

from __future__ import annotations

from dataclasses import replace

import pandas as pd
import torch
from torch import Tensor, nn

from leaklearn.data.images import ImageSet
from leaklearn.evaluation import Truth, quality, with_blanks
from leaklearn.leaks import Leak

PROBES = 16
"""Random images whose scores are differentiated; a pixel that moves no score of any of them is not looked at."""


def seen_pixels(model: nn.Module, shape: tuple[int, int, int]) -> Tensor:
    """(H, W) bool: the pixels of (C, H, W) images in [0, 1] that move the scores of a model in eval mode; all, if none.

    The model's mode is as before afterwards.
    """
    generator, mode = torch.Generator().manual_seed(0), model.training
    images = torch.rand(PROBES, *shape, generator=generator).requires_grad_()
    try:
        scores = model.eval()(images)
        weights = torch.randn(scores.shape, generator=generator)
        (slopes,) = torch.autograd.grad((scores * weights).sum(), images)
    finally:
        model.train(mode)
    seen = (slopes != 0).any(0).any(0)
    return seen if seen.any() else torch.ones_like(seen)


def quality_where_seen(leak: Leak, truth: Truth, public: ImageSet, seen: Tensor) -> pd.DataFrame:
    """`leaklearn.evaluation.quality` with blanks, of the pixels (H, W) that are seen alone; without SSIM."""
    if not bool(seen.all()):
        shape = (public.shape[0], 1, int(seen.sum()))
        part = [each[..., seen.to(each.device)].unsqueeze(-2) for each in (leak.images, truth.images, public.images)]
        leak, truth = replace(leak, images=part[0]), replace(truth, images=part[1])
        public = ImageSet(part[2], public.labels, public.index, replace(public.info, shape=shape))
    return with_blanks(quality(leak, truth, with_ssim=False), truth, public)


def unseen_in_words(seen: Tensor) -> list[str]:
    """What to say of pixels that are not looked at; nothing where there are none."""
    share = 1 - float(seen.float().mean())
    text = (
        f"The network never looks at {100 * share:.0f} % of the pixels, mostly at an edge that its strides leave out. "
        "Whoever only reads cannot read these; inversion is scored by the others."
    )
    return [text] if share > 0 else []
