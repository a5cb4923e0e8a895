"""Random views of training images."""

import dataclasses

import numpy as np

from tfrobust.data.batches import is_int


@dataclasses.dataclass(frozen=True)
class CropFlip:
    """Pads with zeros, crops at random to the old size, and mirrors half of the images.

    The usual augmentation of CIFAR; digits must not be mirrored (`flip=False`). The label stays,
    and with it the ball of the threat, which is that of the new image.

    Args:
        pad: Integer >= 0, pixels on each side, so that an image moves by at most as many.
        flip: Bool, whether to mirror left and right with probability 1/2.

    Example:

    >>> augment = CropFlip(pad=1)
    >>> augment(np.ones((2, 4, 4, 3), "float32"), np.random.default_rng(0)).shape
    (2, 4, 4, 3)
    """

    pad: int = 4
    flip: bool = True

    def __post_init__(self):
        if not is_int(self.pad) or self.pad < 0:
            raise ValueError(f"`pad` must be an integer >= 0. Received: pad={self.pad!r}")

    def __call__(self, images, draws):
        """Images of the same shape.

        Args:
            images: `(n, height, width, channels)` in [0, 1].
            draws: `numpy.random.Generator`.
        """
        if images.ndim != 4:
            raise ValueError(
                "`images` must have the shape (n, height, width, channels). "
                f"Received: {images.shape}"
            )
        n, height, width, _ = images.shape
        margin = (self.pad, self.pad)
        wide = np.pad(images, ((0, 0), margin, margin, (0, 0)))
        views = np.lib.stride_tricks.sliding_window_view(wide, (height, width), axis=(1, 2))
        down, right = draws.integers(0, 2 * self.pad + 1, (2, n))
        moved = np.moveaxis(views[np.arange(n), down, right], 1, -1)
        mirrored = draws.random(n) < 0.5
        if self.flip:
            moved = np.where(mirrored[:, None, None, None], moved[:, :, ::-1], moved)
        return np.ascontiguousarray(moved)
