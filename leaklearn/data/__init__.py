"""Images as tensors: data sets and where they come from, client partitions, batched augmentation.

Nothing here knows about federation or attacks; every other part of the package may import from here.
"""

from leaklearn.data.augment import augment
from leaklearn.data.catalogue import describe, load
from leaklearn.data.images import DataInfo, Dataset, ImageSet
from leaklearn.data.partition import partition

__all__ = ["DataInfo", "Dataset", "ImageSet", "augment", "describe", "load", "partition"]
