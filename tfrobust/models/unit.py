"""A classifier whose last layer sees features of length 1."""

import keras

from tfrobust import contract, graph, regularizers


def unit_features(model, feature_layer=None, name="features"):
    """Rebuilds a classifier with h / ||h||_2 behind the layer that makes h.

    The authors of adversarial feature desensitization normalize features for the decoder and the
    discriminator alike; `tr.training.AFD(feature_norm=True)` does it for the discriminator only.
    Logits then lie within the norms of the last layer's kernel.

    Args:
        model: Functional classifier; it is not touched.
        feature_layer: Name of the layer that makes h, default the input of the last Dense.
        name: Name of the new `keras.layers.UnitNormalization` (last axis).

    Returns:
        Functional `keras.Model` of fresh layers with the same weights.

    Raises:
        TypeError, ValueError: not a classifier, a name that is none of its layers, or one that is
            taken.

    Example:

    >>> from tfrobust import models
    >>> [layer.name for layer in unit_features(models.lenet5_caffe()).layers[-3:]]
    ['relu_dense3', 'features', 'logits']
    """
    contract.classifier(model, "model")
    h = regularizers.representation(model, feature_layer).outputs[1]
    if name in {layer.name for layer in model.layers}:
        raise ValueError(f"`name` must not be that of a layer yet. Received: name={name!r}")
    wanted = h._keras_history.operation.name

    def visit(node, *args, **kwargs):
        out = graph.copy(node, *args, **kwargs)
        return keras.layers.UnitNormalization(name=name)(out) if node.name == wanted else out

    return graph.rebuild(model, visit)
