"""Rules for layers with a kernel: centre c -> W c + b, radius r -> |W| r.

A zero padding is right as it stands: outside of the image centre and radius are 0.
"""

import tensorflow as tf
from keras import layers, ops

from tfrobust.bounds.elementwise import fused
from tfrobust.bounds.rule import Box, Rule, largest, rule

CONVOLUTIONS = (layers.Conv1D, layers.Conv2D, layers.Conv3D)


class Kernel(Rule):
    """A linear map and a bias, without the activation that the layer may have inside.

    Args:
        linear: Callable `(layer, x, weight) -> tensor`, the map alone; it passes each of its
            variables through `weight`.
    """

    affine = True

    def __init__(self, layer, node, linear):
        super().__init__(layer, node)
        self.linear = linear
        # One weight between any two values: not where a second kernel sums over the first.
        self.plain = not hasattr(layer, "pointwise_kernel")
        if getattr(layer, "data_format", "channels_last") == "channels_first":
            raise ValueError(
                f"Layer '{node.name}' has data_format='channels_first': bounds need the channels "
                "last."
            )
        if getattr(layer, "quantization_mode", None):
            raise ValueError(
                f"Layer '{node.name}' is quantized ({layer.quantization_mode}): bound the model "
                "before quantization."
            )

    def __call__(self, x):
        result = self.linear(self.layer, x, ops.convert_to_tensor)
        return result if self.layer.bias is None else result + self.layer.bias

    def interval(self, box):
        centre = self(box.centre)
        # Some convolution algorithms round a sum of non-negative terms to just below 0.
        radius = tf.maximum(self.linear(self.layer, box.radius, ops.abs), 0.0)
        return Box(centre - radius, centre + radius)

    def size(self, box):
        layer, bias = self.layer, self.layer.bias
        if isinstance(layer, CONVOLUTIONS) and layer.groups == 1:
            # As if each channel had its largest value in all places: a matrix is enough.
            peaks = tf.reduce_max(box.size, range(1, box.lower.shape.rank - 1))
            weights = tf.abs(tf.convert_to_tensor(layer.kernel))
            sums = tf.matmul(peaks, tf.reduce_sum(weights, range(weights.shape.rank - 2)))
        else:
            sums = self.linear(layer, box.size, ops.abs)
        return largest(sums if bias is None else sums + tf.abs(tf.convert_to_tensor(bias)))

    def reach(self, scale, norm):
        """Dual norms of the rows of the map from a ball whose axes were scaled to the result.

        Args:
            scale: Factors >= 0 `(batch or 1, ...)` of the layer's inputs.
            norm: "l2" or "l1".

        Returns:
            Tensor `(batch or 1, ...)`, not below the true norms.
        """
        squares = self.linear(self.layer, tf.square(scale), ops.square)
        reach = tf.sqrt(tf.maximum(squares, 1e-30))  # which has a gradient at 0
        if norm == "l1" and isinstance(self.layer, layers.Dense) and scale.shape.rank == 2:
            weights = tf.abs(tf.convert_to_tensor(self.layer.kernel))
            return tf.reduce_max(weights * scale[..., None], -2)
        if norm == "l1" and isinstance(self.layer, CONVOLUTIONS):
            weights = tf.abs(tf.convert_to_tensor(self.layer.kernel))
            largest = tf.reduce_max(weights, range(weights.shape.rank - 1))
            return tf.minimum(reach, largest * tf.reduce_max(scale))
        return reach


def _kernel(*kinds):
    """Registers a map for layers, followed by their own activation."""

    def decorate(linear):
        for kind in kinds:
            rule.register(
                kind,
                lambda layer, node: [Kernel(layer, node, linear), *fused(layer, node)],
            )
        return linear

    return decorate


@_kernel(layers.Dense)
def _(layer, x, weight):
    return ops.matmul(x, weight(layer.kernel))


@_kernel(layers.Conv1D, layers.Conv2D, layers.Conv3D)
def _(layer, x, weight):
    padding = layer.padding
    if padding == "causal":
        before = layer.dilation_rate[0] * (layer.kernel_size[0] - 1)
        x, padding = ops.pad(x, [[0, 0], [before, 0], [0, 0]]), "valid"
    kernel, dilation = weight(layer.kernel), layer.dilation_rate
    return ops.conv(x, kernel, layer.strides, padding, dilation_rate=dilation)


@_kernel(layers.Conv1DTranspose, layers.Conv2DTranspose, layers.Conv3DTranspose)
def _(layer, x, weight):
    return ops.conv_transpose(
        x,
        weight(layer.kernel),
        layer.strides,
        layer.padding,
        output_padding=layer.output_padding,
        dilation_rate=layer.dilation_rate,
    )


@_kernel(layers.DepthwiseConv1D, layers.DepthwiseConv2D)
def _(layer, x, weight):
    kernel, dilation = weight(layer.kernel), layer.dilation_rate
    return ops.depthwise_conv(x, kernel, layer.strides, layer.padding, dilation_rate=dilation)


@_kernel(layers.SeparableConv1D, layers.SeparableConv2D)
def _(layer, x, weight):
    kernels = weight(layer.depthwise_kernel), weight(layer.pointwise_kernel)
    dilation = layer.dilation_rate
    return ops.separable_conv(x, *kernels, layer.strides, layer.padding, dilation_rate=dilation)
