"""What an export hands back, and how two answers are compared."""

import dataclasses

import numpy as np


@dataclasses.dataclass(frozen=True)
class Exported:
    """What was written and how it answers.

    Attributes:
        path: File name.
        format: "tflite" or "keras".
        quantize: None (float32), "float16", "dynamic" or "int8".
        bytes: Size of the file.
        parity: Largest |difference of logits| to the Keras source.
        agreement: Share of images on which both name the same class, in [0, 1].
        images: Number of images behind `parity` and `agreement`.
        input: Dictionary `dtype`, `shape`, `scale`, `zero_point`: an int8 file wants
            `clip(round(pixel / scale) + zero_point, -128, 127)`; float files want the pixel.
        output: The same for the logits: `logit = (value - zero_point) * scale`.
        gzip: Size of the file in a gzip archive (level 6, as downloads and app packages compress
            it): zeros make a dense file smaller there only.
        sparse: Whether kernels are stored without their zeros.
    """

    path: str
    format: str
    quantize: str | None
    bytes: int
    parity: float
    agreement: float
    images: int
    input: dict
    output: dict
    gzip: int | None = None
    sparse: bool = False

    def to_dict(self):
        """The fields as JSON types."""
        return dataclasses.asdict(self)

    def __str__(self):
        kind = f"{self.format} {self.quantize or 'float32'}{' sparse' if self.sparse else ''}"
        size = f"{self.bytes:,} bytes"
        if self.gzip is not None:
            size += f" ({self.gzip:,} in gzip)"
        feed = f"{self.input['dtype']} {tuple(self.input['shape'])}"
        if self.input["scale"] is not None:
            feed += f", scale {self.input['scale']:.6g}, zero point {self.input['zero_point']}"
        return (
            f"{self.path}: {kind}, {size}, input {feed}; logits within "
            f"{self.parity:.2g} of Keras, the same class on {self.agreement:.1%} of "
            f"{self.images} images"
        )


def compare(logits, wanted):
    """`(largest |difference|, share of rows that name the same class)`."""
    if logits.shape[-1] == 1:
        same = (logits > 0) == (wanted > 0)
    else:
        same = logits.argmax(-1) == wanted.argmax(-1)
    return float(np.max(np.abs(logits - wanted))), float(np.mean(same))


def first_line(error):
    """The first line of what an error says."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
