"""Images and labels as the other rooms want them; here uint8 and broken files end.

>>> import tfrobust as tr
>>> data = tr.data.load("digits")
>>> data.x_train.shape, data.num_classes
((1437, 8, 8, 1), 10)
>>> train, val, test = data.split(batch_size=64)
>>> len(train), len(val), len(test)
(21, 3, 6)

The order of `Batches` follows from ``(seed, epoch)``, so a resumed `fit` can be exact.
"""

from tfrobust.data.augment import CropFlip
from tfrobust.data.batches import Batches
from tfrobust.data.load import FOLDER, NAMES, Dataset, load

__all__ = ["FOLDER", "NAMES", "Batches", "CropFlip", "Dataset", "load"]
