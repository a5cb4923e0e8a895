"""The columns Memory, xFLOPs and Sparsity of the ANP-VS tables, by the formulas of its code.

`measure` is the honest count: masks intersected, logits as they are. The paper counts the units of
each mask alone (a flattened value of a closed map still counts), and VGG-16's logits with an
activation. This file is the only one that counts like that, so that a table can show both.
"""

import dataclasses
import numbers

import keras

from tfrobust.footprint.counts import LENET, VGG16, lenet_counts, vgg16_counts
from tfrobust.footprint.result import compare
from tfrobust.layers.mask import Mask

# The layers whose units are counted; the last one reads the flattened map of the one before it.
_LENET_LAYERS = ("conv1", "conv2", "dense3")
_VGG_LAYERS = (*(f"conv{number}" for number in range(1, 14)), "dense14")


@dataclasses.dataclass(frozen=True)
class PaperColumns:
    """Three columns of the ANP-VS tables for one network.

    Attributes:
        units: Units that are left, layer by layer, as in the paper's Table 5.
        memory: Memory left, in percent: im2col buffers and kernels.
        memory_code: The same by the released code, which counts VGG-16's dense layers 13 times.
        xflops: FLOPs of the full network / FLOPs of this one.
        sparsity: Units removed, in percent.
    """

    units: tuple
    memory: float
    memory_code: float
    xflops: float
    sparsity: float

    def to_dict(self):
        return {**dataclasses.asdict(self), "units": list(self.units)}


def paper_columns(network, full=None, classes=10, per_weight=1):
    """What the ANP-VS tables say of a network (Madaan et al., 2020, Tables 1, 4 and 5).

    Args:
        network: 4 unit counts of LeNet-5-Caffe, 15 of VGG-16, or such a model, masked, shrunk or
            neither (see `paper_units`).
        full: What it is compared with, in the same form; default the paper's network at full
            width. Give the network before it was masked where `width` is not 1.
        classes: Integer, number of logits, where `network` is a list of counts.
        per_weight: Numbers that stand for one weight: 2 for Bayesian weights, whose memory the
            paper sets to 200 % and whose xFLOPs to 0.5.

    Returns:
        `PaperColumns`.

    Raises:
        TypeError, ValueError: neither counts nor a model of these two networks.

    Example: ANP-VS on MNIST, of which the paper's Table 1 says 10.57 x and 6.81 %.

    >>> found = paper_columns((7, 21, 147, 46))
    >>> round(found.xflops, 2), round(found.memory, 2), round(found.sparsity, 2)
    (6.62, 7.69, 83.87)
    """
    if not isinstance(per_weight, numbers.Real) or per_weight <= 0:
        raise ValueError(f"`per_weight` must be > 0. Received: per_weight={per_weight!r}")
    if isinstance(network, keras.Model):
        classes = network.output_shape[-1]
    units = _units(network, "network")
    full = (LENET if len(units) == len(LENET) else VGG16) if full is None else _units(full, "full")
    if len(full) != len(units):
        raise ValueError(
            f"`full` must be the same network, with {len(units)} counts. Received: {full}"
        )
    both = [
        compare(_counted(full, classes, memory), _counted(units, classes, memory))
        for memory in ("fixed", "code")
    ]
    return PaperColumns(
        units=units,
        memory=both[0].memory * per_weight,
        memory_code=both[1].memory * per_weight,
        xflops=both[0].xflops / per_weight,
        sparsity=both[0].sparsity,
    )


def paper_units(model):
    """Units that are left in LeNet-5-Caffe or the ANP-VS VGG-16, in the order of Table 5.

    In a masked model these are the units that each mask keeps, as the paper counts them; in a plain
    or shrunk one they are its filters, the flattened values that the dense layer reads, and its
    units. Shrinking intersects the masks, so a shrunk LeNet has no more units than its masked twin;
    a shrunk VGG-16 may have one more a layer, the constant channel behind a normalization.

    Args:
        model: `tr.models.lenet5_caffe` or `tr.models.vgg16` of any width, masked, shrunk or plain.

    Returns:
        Tuple of 4 or 15 integers.

    Raises:
        TypeError, ValueError: not such a model; images that are not the paper's.

    Example:

    >>> from tfrobust import models
    >>> paper_units(models.lenet5_caffe(width=0.1))
    (2, 5, 80, 50)
    """
    if not isinstance(model, keras.Model):
        raise TypeError(f"`model` must be a keras.Model. Received: {type(model).__name__}")
    known = {layer.name: layer for layer in model.layers}
    networks = {(28, 28, 1): _LENET_LAYERS, (32, 32, 3): _VGG_LAYERS}
    names = networks.get(tuple(model.input_shape[1:]), ())
    if not names or not all(name in known for name in names):
        raise ValueError(
            "`model` must be lenet5_caffe on 28 x 28 x 1 or vgg16 on 32 x 32 x 3 images, with the "
            f"names of its layers. Received: '{model.name}' on {model.input_shape[1:]}"
        )
    *maps, dense = (_left(known, name) for name in names)
    return (*maps, _flattened(known, names[-2], names[-1]), dense)


def _left(known, name):
    mask, layer = known.get(f"mask_{name}"), known[name]
    return int(mask.keep().sum()) if isinstance(mask, Mask) else int(layer.kernel.shape[-1])


def _flattened(known, last, dense):
    mask, rows = known.get("mask_flatten"), int(known[dense].kernel.shape[0])
    if isinstance(mask, Mask):
        return int(mask.keep().sum())
    return rows * _left(known, last) // int(known[last].kernel.shape[-1])


def _units(network, name):
    if isinstance(network, keras.Model):
        return paper_units(network)
    try:
        units = tuple(network)
    except TypeError:
        units = ()
    if len(units) not in (len(LENET), len(VGG16)):
        raise ValueError(
            f"`{name}` must be 4 counts (LeNet-5-Caffe), 15 counts (VGG-16), or such a model. "
            f"Received: {name}={network!r}"
        )
    return units


def _counted(units, classes, memory):
    if len(units) == len(LENET):
        return lenet_counts(units, classes)
    return vgg16_counts(units, classes, memory)
