"""The footprint of the paper's two networks from unit counts alone, without a model."""

from tfrobust.footprint.result import Cost, Footprint, Row
from tfrobust.footprint.rules import convolution, dense

LENET = (20, 50, 800, 500)
VGG16 = (64, 64, 128, 128, 256, 256, 256, *(512,) * 8)
_SIZES = (32, 32, 16, 16, 8, 8, 8, 4, 4, 4, 2, 2, 2)
_POOLED = (2, 4, 7, 10, 13)


def _checked(units, full):
    units = tuple(units)
    if len(units) != len(full) or any(
        int(u) != u or not 0 <= u <= f for u, f in zip(units, full, strict=True)
    ):
        raise ValueError(f"`units` must be {len(full)} counts of at most {full}. Received: {units}")
    return tuple(int(u) for u in units)


def _row(name, kind, spent, parameters=0, units=0, total=0):
    return Row(
        *(name, kind, units, total, parameters, parameters),
        *(spent.flops, spent.macs, spent.memory),
    )


def _pool(name, channels, size):
    return _row(name, "MaxPooling2D", Cost(flops=channels * size * size * 4))


def lenet_counts(units=LENET, classes=10):
    """LeNet-5-Caffe with these live units: two convolutions, flatten, dense layer.

    As in the paper's accounting the dense layer reads `units[2]` values whatever `units[1]` says.

    >>> full = lenet_counts()
    >>> full.flops, full.memory, full.units, full.parameters
    (4615940, 477410, 1370, 431080)
    """
    a, b, c, d = _checked(units, LENET)
    rows = (
        _row("conv1", "Conv2D", convolution(576, 25, 1, a, 2), 26 * a, a, 20),
        _pool("pool1", a, 12),
        _row("conv2", "Conv2D", convolution(64, 25, a, b, 2), (25 * a + 1) * b, b, 50),
        _pool("pool2", b, 4),
        _row("flatten", "Flatten", Cost(), 0, c, 800),
        _row("dense3", "Dense", dense(1, c, d, 2), (c + 1) * d, d, 500),
        _row("logits", "Dense", dense(1, d, classes, 1), (d + 1) * classes),
    )
    return Footprint(rows, "lenet5_caffe")


def vgg16_counts(units=VGG16, classes=10, memory="fixed"):
    """The CIFAR VGG-16 with these live units: 13 convolutions, flatten, dense layer.

    The logits carry the activation term here, as in the paper's accounting: `measure` of the model
    itself, whose logits are linear, is `classes` FLOPs lower. Parameters are the trainable ones.

    Args:
        units: 15 counts.
        classes: Integer, number of logits.
        memory: "fixed", or "code" for the figure of the released code, which counts the dense
            layers 13 times and their batch normalization by its inputs.

    >>> vgg16_counts().flops, vgg16_counts(memory="code").memory
    (627329546, 19881538)
    """
    units = _checked(units, VGG16)
    if memory not in ("fixed", "code"):
        raise ValueError(f"`memory` must be 'fixed' or 'code'. Received: memory={memory!r}")
    rows, c_in = [], 3
    for number, (c, size) in enumerate(zip(units[:13], _SIZES, strict=True), 1):
        spent = convolution(size * size, 9, c_in, c, 2)
        rows.append(
            _row(f"conv{number}", "Conv2D", spent, (9 * c_in + 1) * c, c, VGG16[number - 1])
        )
        rows.append(_row(f"bn{number}", "BatchNormalization", Cost(memory=2 * c), 2 * c))
        if number in _POOLED:
            rows.append(_pool(f"pool{number}", c, size // 2))
        c_in = c
    flat, hidden = units[13:]
    times = 13 if memory == "code" else 1

    def wide(c_in, c_out):
        spent = dense(1, c_in, c_out, 2)
        return Cost(spent.flops, spent.macs, spent.memory * times)

    norm = Cost(memory=2 * (flat if memory == "code" else hidden) * times)
    rows += [
        _row("flatten", "Flatten", Cost(), 0, flat, 512),
        _row("dense14", "Dense", wide(flat, hidden), (flat + 1) * hidden, hidden, 512),
        _row("bn14", "BatchNormalization", norm, 2 * hidden),
        _row("logits", "Dense", wide(hidden, classes), (hidden + 1) * classes),
    ]
    return Footprint(rows, "vgg16")
