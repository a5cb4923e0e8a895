"""A Keras classifier carried over to torch, so that torchattacks meets the same weights."""

import keras
import numpy as np
import torch
from torch import nn

import tfrobust as tr


def carried_over(model):
    """The torch module (NCHW) that answers like a Keras classifier (NHWC).

    Where Keras flattens height, width, channels and then may take some of the rows, torch flattens
    channels first and the weights of the next dense layer move instead, so the map costs nothing.
    The weights lie in torch's channels-last format, the faster one on a CPU.

    Args:
        model: Functional or Sequential Keras model, a chain of Conv2D, ReLU, MaxPooling2D,
            Flatten, `keras.ops.take` and Dense.

    Raises:
        ValueError: a layer of another kind, or a graph that is not a chain.
    """
    parts, places, before = [], None, None
    for step in model.operations:
        if before is not None and (step.input is not before.output or len(step._inbound_nodes) > 1):
            raise ValueError(f"`model` must be a chain of layers. Received: {step.name!r}")
        before = step
        match step:
            case keras.layers.InputLayer() | keras.layers.ReLU() | keras.layers.Activation():
                pass
            case keras.layers.Conv2D():
                parts.append(_convolution(step))
            case keras.layers.MaxPooling2D(padding="valid"):
                parts.append(nn.MaxPool2d(step.pool_size, step.strides))
            case keras.layers.Flatten():
                height, width, channels = step.input.shape[1:]
                size = height * width * channels
                places = np.arange(size).reshape(channels, height, width).transpose(1, 2, 0).ravel()
                parts.append(nn.Flatten())
            case keras.Operation() if type(step).__name__ == "Take" and places is not None:
                places = places[step._inbound_nodes[0].arguments.args[1]]
            case keras.layers.Dense():
                kernel, bias = _weights(step)
                if places is not None:
                    kernel, places = _scattered(kernel, places, size), None
                parts.append(_filled(nn.Linear(*kernel.shape), kernel.T, bias))
            case _:
                raise ValueError(
                    "`model` must consist of Conv2D, ReLU, valid MaxPooling2D, Flatten, take and "
                    f"Dense. Received: {type(step).__name__} {step.name!r}"
                )
        parts += _activation(step)
    net = nn.Sequential(*parts).eval().requires_grad_(False)
    return net.to(memory_format=torch.channels_last)


def _activation(step):
    kind = getattr(step, "activation", None)
    plain = isinstance(step, keras.layers.ReLU) and not (step.max_value or step.negative_slope)
    if plain or kind is keras.activations.relu:
        return [nn.ReLU()]
    if isinstance(step, keras.layers.ReLU) or kind not in (None, keras.activations.linear):
        raise ValueError(f"`model` must have no activation but ReLU. Received: {step.name!r}")
    return []


def _convolution(layer):
    if layer.padding == "same" and layer.strides != (1, 1):
        raise ValueError(f"`model` must pad with strides 1 only. Received: {layer.name!r}")
    kernel, bias = _weights(layer)
    conv = nn.Conv2d(
        kernel.shape[2] * layer.groups,
        layer.filters,
        layer.kernel_size,
        stride=layer.strides,
        padding=layer.padding,
        dilation=layer.dilation_rate,
        groups=layer.groups,
    )
    return _filled(conv, kernel.transpose(3, 2, 0, 1), bias)


def _scattered(kernel, places, size):
    """Dense kernel whose rows stand at `places` among `size` inputs, the others zero."""
    whole = np.zeros((size, kernel.shape[1]), kernel.dtype)
    np.add.at(whole, places, kernel)
    return whole


def _weights(layer):
    kernel, *bias = layer.get_weights()
    return kernel, bias[0] if bias else np.zeros(kernel.shape[-1], kernel.dtype)


def _filled(module, weight, bias):
    with torch.no_grad():
        module.weight.copy_(torch.from_numpy(np.ascontiguousarray(weight)))
        module.bias.copy_(torch.from_numpy(bias))
    return module


def tensors(x, y):
    """NHWC images and labels as torch wants them: NCHW and int64."""
    images = np.ascontiguousarray(np.transpose(x, (0, 3, 1, 2)), "float32")
    return torch.from_numpy(images), torch.from_numpy(np.asarray(y, "int64"))


def arrays(images):
    """NCHW tensor as NHWC NumPy images."""
    return np.ascontiguousarray(images.detach().numpy().transpose(0, 2, 3, 1))


def disagreement(model, net, x):
    """Largest difference between the logits of a Keras model and of its torch twin on `x`."""
    images, _ = tensors(x, np.zeros(len(x)))
    with torch.no_grad():
        theirs = net(images).numpy()
    return float(np.abs(tr.attacks.forward(model, x) - theirs).max())
