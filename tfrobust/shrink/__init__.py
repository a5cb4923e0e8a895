"""Cuts gated and pruned channels: a masked model in, a smaller model of stock Keras layers out.

    small = tr.shrink.compact(net)          # the same logits, fewer channels
    small.save("small.keras")               # loads where tfrobust is not installed

Four steps, each exact. Gates of masks are folded into the kernels around them (`gates`), so that a
closed gate is a kernel column, or row, of zeros, just as structured pruning leaves it. One pass
forward finds the channels that are the same for every image; one pass backward finds the channels
that anything still needs; then every layer is built again with these alone. What a dead channel
still says (the constant behind a BatchNormalization) goes into the bias of its readers, or, where a
SAME border sees it, into one constant channel with the dead kernels summed.

    smaller, origins = tr.shrink.trim(net)  # while it trains on: living masks stay masks

What a layer does to channels is a rule (`rule`, dispatched on its class); register one for a layer
of your own.
"""

import keras  # noqa: F401  (for the doctest)

from tfrobust import contract, graph
from tfrobust.shrink import joins, linear  # noqa: F401  (they register their rules)
from tfrobust.shrink.channelwise import PerChannel, Pointwise
from tfrobust.shrink.gates import settle
from tfrobust.shrink.plan import Plan, flattened
from tfrobust.shrink.rule import Channels, Rule, Whole, rule
from tfrobust.shrink.trim import Origin, trim

__all__ = [
    "Channels",
    "Origin",
    "PerChannel",
    "Pointwise",
    "Rule",
    "Whole",
    "compact",
    "rule",
    "trim",
]


def compact(model):
    """Returns the same classifier without its masks and without the channels they shut.

    Channels go whose gate is exactly 0, or whose weights are exactly 0 (structured pruning), or
    that nothing reads any more; rows of a flattened map go one by one. Gates of surviving channels
    are folded into weights. Logits differ by rounding only, at most 1e-5 * max(1, max |logit|).
    Channels joined by a sum go together; a layer without an exact cut keeps its channels. Channels
    of a map that one reader ignores and another needs stay for both (with rows of zeros) unless
    taking them out of the map saves time.

    Args:
        model: Functional classifier with or without masks; it is not changed.

    Returns:
        A functional `keras.Model` of stock layers (and `keras.ops.take`), not compiled.

    Raises:
        TypeError, ValueError: not a functional classifier, a shared layer, or a layer without a
            rule; the message names the layer.

    Example: eight filters, four of them pruned.

    >>> net = keras.Sequential([keras.Input((6, 6, 1)), keras.layers.Conv2D(8, 3, name="conv"),
    ...     keras.layers.ReLU(), keras.layers.Flatten(), keras.layers.Dense(2, name="logits")])
    >>> net = graph.rebuild(keras.Model(net.inputs, net.outputs))
    >>> kernel, bias = net.get_layer("conv").get_weights()
    >>> kernel[..., 4:] = 0
    >>> net.get_layer("conv").set_weights([kernel, bias])
    >>> [w.shape for w in compact(net).get_weights()]
    [(3, 3, 1, 4), (4,), (64, 2), (2,)]
    """
    contract.classifier(model, "model")
    model = flattened(model)
    plan = Plan(graph.walk(model))
    settle(plan)
    plan.analyse()
    return graph.rebuild(model, plan.visit, plan.edge)
