"""What a classifier costs: units, parameters, FLOPs, MACs and memory, per layer and in total.

One definition of FLOPs holds everywhere (tables, cards, comparisons): multiplications and additions
of one forward pass of one example, counted with the formulas of the ANP-VS accounting code,

    convolution   C_out H_o W_o (2 k^2 C_in - 1 + bias)         1 more per output where an
    dense         out (2 in - 1 + bias)                         activation is fused into the layer
    activation    1 per element          pooling   C H_o W_o k^2 (global: C H W)
    merge         (inputs - 1) per element, as for Add
    0 for batch normalization, masks, dropout, reshaping and rescaling, which fold into neighbours

An activation layer is counted in its own row; for the paper's networks the total is the same as
adding 1 to the factor of the layer before it. MACs count one per multiply-add of a convolution or
dense layer. `memory` is the accounting code's figure in numbers, not bytes: the im2col buffer and
the kernel of a convolution, kernel and bias of a dense layer, two numbers a channel for batch
normalization. `bytes` is what the parameters weigh in float32.

A **unit** is an output channel of a hidden convolution or dense layer, or one input of a dense
layer that reads a Flatten (LeNet-5-Caffe: 20 + 50 + 800 + 500). In a masked model only live
channels count: those that no mask between their producer and their reader closes. Masks cost
nothing, they fold away. What ships is `measure(tr.shrink.compact(model))`, which may keep more: one
constant channel where a mask stands before a batch normalization, and on every branch of a residual
sum the channels that any of them needs.

Zeros inside live channels save nothing here: a pruned model costs what its shapes cost. Three
numbers tell what pruning did: the masked fraction (`tr.pruning.sparsity`, kernels alone; `nonzero`
counts what is left of all parameters), and `parameters` and `flops` after `tr.shrink.compact`,
which cuts filters that are 0 as a whole.

>>> import keras
>>> x = keras.Input((28, 28, 1))
>>> h = keras.layers.Conv2D(20, 5, activation="relu")(x)
>>> h = keras.layers.Flatten()(keras.layers.MaxPooling2D()(h))
>>> f = measure(keras.Model(x, keras.layers.Dense(10)(h)))
>>> f.flops, f.parameters, f.units
(656640, 29330, 2900)
>>> round(compare(lenet_counts(), lenet_counts((7, 21, 147, 46))).xflops, 2)
6.62

The columns of the ANP-VS tables follow conventions of their own (each mask counted alone, VGG-16's
logits with an activation); `paper_columns` has them, for unit counts and for models:

>>> paper_columns((7, 21, 147, 46)).to_dict()["units"]
[7, 21, 147, 46]

A layer of your own: `@tr.footprint.cost.register(MyLayer)` on a function
`(layer, inputs, output) -> Cost`, where `inputs` is a list of `Flow`s and `output` one.
"""

from tfrobust.footprint.counts import lenet_counts, vgg16_counts
from tfrobust.footprint.paper import PaperColumns, paper_columns, paper_units
from tfrobust.footprint.result import Comparison, Cost, Footprint, Row, compare
from tfrobust.footprint.rules import Flow, cost, demand, flow, weights
from tfrobust.footprint.walk import measure, unit_costs

__all__ = [
    "Comparison",
    "Cost",
    "Flow",
    "Footprint",
    "PaperColumns",
    "Row",
    "compare",
    "cost",
    "demand",
    "flow",
    "lenet_counts",
    "measure",
    "paper_columns",
    "paper_units",
    "unit_costs",
    "vgg16_counts",
    "weights",
]
