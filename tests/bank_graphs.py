"""Tiny masked classifiers for the surgery rooms: every layer that `compact` knows, every trap.

`GRAPHS` is a list of (id, builder); a builder returns a functional classifier of 8 x 8 x 2 images
whose gates are set, about half of them shut. Weights, biases and normalization statistics are
random, so that no channel is dead by accident.
"""

import functools

import keras
import numpy as np
from keras import layers

from tests.bank_masks import SHAPE, FixedMask, randomize, shut
from tfrobust.layers import insert_masks
from tfrobust.models import lenet5_caffe

GRAPHS = []


def graph(function=None, name=None, **gates):
    """Registers a function from the image tensor to logits as a row of GRAPHS."""
    if function is None:
        return functools.partial(graph, name=name, **gates)

    @functools.wraps(function)
    def build():
        keras.utils.set_random_seed(1)
        inputs = keras.Input(SHAPE, name="image")
        model = keras.Model(inputs, function(inputs), name="net")
        return shut(randomize(model), **gates)

    GRAPHS.append((name or function.__name__, build))
    return function


mask = FixedMask


def conv(x, filters=8, size=3, padding="same", **kwargs):
    return layers.Conv2D(filters, size, padding=padding, **kwargs)(x)


def normed(x):
    return layers.ReLU()(layers.BatchNormalization()(x))


def head(x):
    return layers.Dense(5, name="logits")(layers.Flatten()(x))


def lenet():
    keras.utils.set_random_seed(1)
    net = lenet5_caffe(input_shape=(16, 16, 2), widths=(6, 8, 20), mask=FixedMask)
    return shut(randomize(net))


GRAPHS.append(("lenet", lenet))


@graph
def mask_before_norm_same(x):
    for _ in range(3):
        x = normed(mask()(conv(x)))
    return head(layers.MaxPooling2D()(x))


@graph
def mask_before_norm_valid(x):
    for _ in range(2):
        x = normed(mask()(conv(x, padding="valid", use_bias=False)))
    return head(layers.AveragePooling2D(2)(x))


@graph
def mask_before_norm_strided(x):
    x = normed(mask()(conv(x, strides=2)))
    x = normed(mask()(conv(x, strides=2, size=(2, 3))))
    return head(conv(x, dilation_rate=2))


@graph
def mask_after_norm(x):
    for _ in range(3):
        x = mask()(normed(conv(x)))
    return head(x)


@graph
def constant_behind_a_padding(x):
    x = layers.ZeroPadding2D(1)(normed(mask()(conv(x))))
    x = layers.MaxPooling2D(3, strides=1)(x)
    x = normed(mask()(conv(x, padding="valid", strides=2)))
    return head(conv(layers.ZeroPadding2D(((0, 1), (1, 0)))(x), padding="valid"))


@graph
def signed_constant_behind_a_padding(x):
    x = layers.BatchNormalization()(mask()(conv(x)))
    x = layers.ZeroPadding2D(1)(layers.LeakyReLU(negative_slope=0.2)(x))
    x = layers.MaxPooling2D(3, strides=2, padding="same")(x)
    return head(conv(layers.AveragePooling2D(2, padding="same")(x)))


@graph
def constant_behind_a_padding_is_bent(x):
    x = layers.ZeroPadding2D(1)(layers.BatchNormalization()(mask()(conv(x))))
    x = conv(layers.Activation("sigmoid")(x))
    return layers.Dense(5)(layers.GlobalMaxPooling2D()(layers.ZeroPadding2D(1)(normed(x))))


@graph
def sigmoid_behind_a_mask(x):
    x = layers.Activation("sigmoid")(mask()(conv(x)))
    x = layers.Activation("tanh")(mask()(layers.BatchNormalization()(conv(x))))
    x = layers.Activation("hard_swish")(mask()(conv(x)))
    return head(layers.Softmax()(mask()(conv(x))))


@graph
def fused_activations(x):
    x = mask()(conv(x, activation="relu"))
    x = mask()(conv(x, activation="sigmoid"))
    x = mask()(conv(x, activation=layers.LeakyReLU(negative_slope=0.1)))
    x = mask()(layers.Dense(7, activation="softmax")(layers.Flatten()(x)))
    return layers.Dense(5)(mask()(layers.Dense(6, activation="gelu")(x)))


@graph
def flatten_rows(x):
    x = mask()(layers.Flatten()(layers.ReLU()(mask()(conv(x, strides=2)))))
    x = layers.Dropout(0.5)(layers.Dense(12, activation="relu")(x))
    return layers.Dense(5)(mask()(x))


@graph
def pools(x):
    x = layers.MaxPooling2D(2, padding="same")(mask()(conv(x)))
    x = layers.AveragePooling2D(3, strides=1, padding="same")(normed(mask()(conv(x))))
    x = conv(mask()(layers.GlobalAveragePooling2D(keepdims=True)(x)), size=1)
    return layers.Dense(5)(layers.GlobalMaxPooling2D()(layers.ReLU()(mask()(x))))


@graph
def depthwise(x):
    x = normed(mask()(conv(x)))
    x = normed(mask()(layers.DepthwiseConv2D(3, padding="same", depth_multiplier=2)(x)))
    x = mask()(normed(layers.DepthwiseConv2D(3, padding="valid", use_bias=False)(x)))
    x = layers.DepthwiseConv2D(3, activation="relu")(mask()(conv(x)))
    return head(conv(x, size=1))


@graph
def inverted_residuals(x):
    x = mask()(normed(conv(x, 6)))
    for _ in range(2):
        y = mask()(normed(conv(x, 12, size=1, use_bias=False)))
        y = layers.Activation("hard_swish")(
            layers.BatchNormalization()(layers.DepthwiseConv2D(3, padding="same")(y))
        )
        y = layers.BatchNormalization()(conv(mask()(y), 6, size=1))
        x = layers.Add()([x, y])
    return layers.Dense(5)(mask()(layers.GlobalAveragePooling2D()(x)))


@graph
def layers_kept_whole(x):
    x = layers.SeparableConv2D(8, 3)(mask()(layers.ReLU()(conv(x))))
    x = conv(mask()(x), groups=2)
    x = layers.LayerNormalization()(mask()(x))
    x = layers.GroupNormalization(2)(mask()(layers.Activation("sigmoid")(conv(x))))
    return head(mask()(x))


@graph
def residual_one_branch(x):
    x = layers.ReLU()(conv(x))
    for _ in range(2):
        y = mask()(normed(conv(x)))
        x = layers.ReLU()(layers.Add()([x, mask()(conv(y))]))
    return head(x)


@graph(share=0.2)
def residual_stream_gated(x):
    x = mask()(layers.ReLU()(conv(x)))
    for _ in range(2):
        y = normed(conv(mask()(x)))
        x = mask()(layers.ReLU()(layers.Add()([x, conv(y, size=1)])))
    return layers.Dense(5)(layers.GlobalAveragePooling2D()(mask()(x)))


@graph
def residual_shared_mask(x):
    x = layers.BatchNormalization()(conv(x))
    y = mask()(x)
    x = layers.Add()([layers.Activation("hard_sigmoid")(conv(y)), y])
    return head(conv(layers.Average()([x, normed(mask()(conv(x)))])))


@graph
def residual_pre_activation(x):
    x = conv(x)
    for stride in (1, 2):
        p = mask()(normed(x))
        y = normed(mask()(conv(p, 4, size=1, use_bias=False)))
        y = conv(layers.ZeroPadding2D(1)(y), 4, padding="valid", strides=stride, use_bias=False)
        y = conv(mask()(normed(y)), size=1)
        x = layers.Add()([conv(p, size=1, strides=stride), y])
    return layers.Dense(5)(mask()(layers.GlobalAveragePooling2D()(normed(x))))


@graph(share=0.4)
def zero_channels(x):
    x = mask()(layers.ReLU()(conv(x, 5)))
    y = normed(mask()(conv(x, 9, strides=2)))
    x = layers.AveragePooling2D(1, 2)(x)
    x = layers.Add()([keras.ops.pad(x, [[0, 0], [0, 0], [0, 0], [1, 3]]), mask()(conv(y, 9))])
    return head(conv(keras.ops.pad(normed(x), [[0, 0], [1, 0], [0, 1], [2, 0]]), 4))


@graph
def concatenation(x):
    a, b = mask()(layers.ReLU()(conv(x))), normed(mask()(conv(x)))
    x = layers.Concatenate()([a, b, layers.ZeroPadding2D(1)(mask()(conv(x, padding="valid")))])
    x = mask()(x)
    y = layers.Concatenate(axis=1)([conv(x), conv(mask()(x))])
    return head(conv(layers.Concatenate()([y, y]), 4))


@graph
def squeeze_and_excite(x):
    h = mask()(layers.Activation("silu")(layers.BatchNormalization()(conv(x))))
    s = layers.Reshape((1, 1, 8))(layers.GlobalAveragePooling2D()(h))
    s = mask()(conv(s, 4, size=1, activation="relu"))
    s = mask()(layers.Activation("hard_sigmoid")(mask()(conv(s, 8, size=1))))
    return head(conv(mask()(layers.Multiply()([h, s]))))


@graph
def operations(x):
    x = mask()(conv(x))
    x = x * (layers.ReLU(6.0)(x + 3.0) * (1.0 / 6.0))
    y = mask()(conv(x)) / 2.0 - np.linspace(-1, 1, 8).astype("float32")
    x = keras.ops.concatenate([keras.ops.relu(x), keras.ops.tanh(mask()(y))], axis=-1)
    x = keras.ops.take(x, np.array([5, 1, 9, 13, 2, 2]), axis=-1)
    x = keras.ops.abs(mask()(conv(x)))
    return head(keras.activations.relu(mask()(conv(x))))


@graph
def products_and_extremes(x):
    a, b = mask()(conv(x)), mask()(conv(x))
    x = layers.Multiply()([a, b])
    x = layers.Subtract()([x, mask()(layers.ReLU()(conv(x)))])
    x = layers.Maximum()([conv(x), mask()(conv(x))])
    return head(mask()(layers.Minimum()([x, mask()(conv(x))])))


@graph
def reshapes(x):
    x = layers.ReLU()(mask()(conv(x)))
    x = mask()(layers.Reshape((16, 4, 8))(x))
    x = layers.Permute((2, 1, 3))(conv(x, 6))
    x = layers.Reshape((-1, 6))(mask()(layers.BatchNormalization()(x)))
    x = mask()(layers.Dense(6, activation="relu")(x))
    x = layers.Reshape((-1,))(layers.Permute((2, 1))(x))
    return layers.Dense(5)(mask()(x))


@graph
def slopes(x):
    x = layers.PReLU()(layers.BatchNormalization()(mask()(conv(x))))
    x = layers.PReLU(shared_axes=[1, 2])(layers.BatchNormalization()(mask()(conv(x))))
    x = layers.ELU()(mask()(conv(mask()(x))))
    return head(layers.LeakyReLU()(mask()(conv(x))))


@graph
def inputs_scaled(x):
    x = layers.Rescaling(2.0, offset=-1.0)(x)
    x = layers.Normalization(mean=[0.1, 0.2], variance=[0.5, 2.0])(x)
    x = layers.GaussianNoise(0.1)(mask()(conv(mask()(x))))
    x = layers.Rescaling([0.5] * 8, offset=np.linspace(-1, 1, 8).tolist())(mask()(conv(x)))
    return head(conv(layers.SpatialDropout2D(0.5)(x)))


@graph
def resized(x):
    x = layers.UpSampling2D(2, interpolation="bilinear")(normed(mask()(conv(x))))
    x = layers.Cropping2D(((1, 3), (0, 2)))(mask()(conv(x)))
    return head(layers.ActivityRegularization(0.1)(layers.Identity()(conv(x, strides=3))))


@graph
def norms_without_scale(x):
    x = layers.BatchNormalization(scale=False, center=False)(mask()(conv(x)))
    x = mask()(layers.BatchNormalization(scale=False)(conv(x)))
    x = mask()(layers.ReLU()(layers.BatchNormalization(center=False)(conv(x))))
    return head(x)


@graph(low=-1.5, high=1.5)
def signed_gates(x):
    x = layers.ReLU()(mask()(conv(x)))
    x = layers.MaxPooling2D()(mask()(normed(conv(x))))
    x = layers.AveragePooling2D(2)(mask()(layers.ReLU()(conv(x))))
    return head(conv(x))


@graph(share=1.0)
def all_gates_shut(x):
    x = normed(mask()(conv(x)))
    y = mask()(conv(x))
    x = layers.Add()([x, conv(y, use_bias=False)])
    return layers.Dense(5)(mask()(layers.Flatten()(conv(x))))


@graph(share=0.0)
def all_gates_open(x):
    return head(mask()(normed(mask()(conv(x)))))


@graph(share=0.2)
def masks_in_a_row_and_on_logits(x):
    x = mask()(mask()(conv(x)))
    x = layers.Activation("sigmoid")(x)
    x = mask()(layers.Activation("tanh")(mask()(mask()(x))))
    return mask()(head(x))


@graph
def one_dimension(x):
    x = layers.Reshape((8, 16))(x)
    x = normed(mask()(layers.Conv1D(8, 3, padding="causal")(x)))
    x = layers.MaxPooling1D(2)(mask()(layers.Conv1D(8, 3, padding="same")(x)))
    x = layers.Conv1D(4, 1)(layers.DepthwiseConv1D(3, padding="same")(normed(mask()(x))))
    return head(mask()(x))


@graph
def nested(x):
    inner = keras.Input((None, None, 8))
    y = normed(mask()(conv(inner)))
    body = keras.Model(inner, keras.Sequential([layers.Conv2D(6, 3), FixedMask()])(y), name="body")
    return head(mask()(layers.ReLU()(body(mask()(conv(x))))))


def pruned():
    """No mask at all: filters, rows and units that structured pruning has set to zero."""
    keras.utils.set_random_seed(1)
    inputs = keras.Input(SHAPE)
    x = layers.ReLU()(conv(inputs, name="a"))
    x = normed(conv(x, name="b", use_bias=False))
    x = layers.Dense(9, activation="relu", name="c")(layers.Flatten()(x))
    model = randomize(keras.Model(inputs, layers.Dense(5, name="d")(x)))
    for name, columns in {"a": [0, 3, 4], "b": [1, 2, 7], "c": [0, 8]}.items():
        weights = model.get_layer(name).get_weights()
        for w in weights:
            w[..., columns] = 0
        model.get_layer(name).set_weights(weights)
    return model


GRAPHS.append(("pruned", pruned))


def unmasked():
    """A little of everything, for insert_masks: stem, residual, squeeze-excite, dense head."""
    keras.utils.set_random_seed(1)
    inputs = keras.Input(SHAPE, name="image")
    x = layers.Rescaling(2.0, offset=-1.0, name="scale")(inputs)
    x = layers.ReLU(name="stem_relu")(conv(x, name="stem", use_bias=False))
    y = layers.BatchNormalization(name="wide_norm")(conv(x, 12, name="wide"))
    y = layers.DepthwiseConv2D(3, padding="same", name="deep")(layers.ReLU()(y))
    y = layers.Activation("hard_swish", name="swish")(y)
    s = layers.GlobalAveragePooling2D(keepdims=True, name="squeeze")(y)
    s = conv(s, 4, size=1, activation="relu", name="excite")
    s = conv(s, 12, size=1, activation="hard_sigmoid", name="gate")
    y = conv(layers.Multiply(name="gated")([y, s]), size=1, name="narrow")
    x = layers.Add(name="sum")([x, y])
    x = layers.MaxPooling2D(name="pool")(layers.ReLU(name="last_relu")(conv(x, name="last")))
    x = layers.Dense(10, activation="relu", name="hidden")(layers.Flatten(name="flat")(x))
    return randomize(keras.Model(inputs, layers.Dense(5, name="logits")(x), name="unmasked"))


def inserted(slot):
    return shut(insert_masks(unmasked(), FixedMask, slot))


for _slot in ("after_activation", "before_activation"):
    GRAPHS.append((f"inserted_{_slot}", functools.partial(inserted, _slot)))
