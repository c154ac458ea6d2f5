"""A data set small enough for tests: 16x16 noise whose brightness tells its class."""

import torch

from leaklearn.data.images import DataInfo, ImageSet

INFO = DataInfo("tiny", tuple("abcd"), (1, 16, 16), (0.3,), (0.2,), False)


def image_set(count: int, seed: int = 0, info: DataInfo = INFO) -> ImageSet:
    """Images whose brightness tells their class, so that a few rounds can learn them."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(count) % info.num_classes
    noise = torch.randint(0, 60, (count, *info.shape), generator=generator)
    images = (noise + 45 * labels.view(-1, 1, 1, 1)).to(torch.uint8)
    return ImageSet(images, labels, torch.arange(count), info)
