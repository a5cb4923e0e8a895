"""The same game around a smaller net: what a game has learned, cut to the units that are left.

Keras cannot change the graph of a model that is being fitted. A game in the middle of its training
can be made again, though, around a net without its dead units, with the weights, the masks' own
parameters, the momenta of every optimizer, counters and random states of those that live on.
"""

import keras
import numpy as np

from tfrobust import regularizers, shrink
from tfrobust.layers.mask import Mask
from tfrobust.pruning.constraint import constraint_of
from tfrobust.shrink.trim import check
from tfrobust.training.game import Game


def shrunk(game):
    """Returns the same game, in the same state, around its net without the units that are shut.

    In inference the smaller net says what the larger one said, and the optimizers go on from the
    momenta they had, with the same iteration. In training a shut unit lets noise pass (little in a
    beta-Bernoulli mask, more than its signal in a VIB mask) and could open again: it is gone now.
    Noise is drawn for fewer units, and the terms that dead units add to the loss whatever happens
    (KL, weight decay) are gone as well, so their reported values drop. Vulnerability suppression
    goes on dividing by the units of the whole net.

    Args:
        game: Compiled `Game` whose classifier has masks; it is not changed, but shares its attack.

    Returns:
        A compiled game of the same class; its `classifier` is the smaller net.

    Raises:
        TypeError, ValueError: as `tr.shrink.trim`; a game that is not compiled, that has
            `transform=`, pruned weights, or an optimizer whose state cannot be cut.

    Example:

    >>> from tfrobust import attacks, layers, models, threats, training
    >>> net = models.digits_net(mask=layers.BetaBernoulliMask)
    >>> net.get_layer("mask_conv1").a_.assign(np.repeat([2.0, -9.0], 8)) is None
    False
    >>> attack = attacks.PGD(threats.Linf(0.1), steps=2)
    >>> game = training.ANP(net, attack, train_size=1437)
    >>> game.compile()
    >>> shrunk(game).classifier.get_layer("conv1").filters
    8
    """
    refuse(game)
    return cut(game)[0]


def refuse(game):
    """Refuses, before any work is lost, a game that cannot be cut."""
    if not isinstance(game, Game):
        raise TypeError(f"`game` must be a tr.training.Game. Received: {type(game).__name__}")
    if not game.compiled:
        raise ValueError(f"`game` must be compiled. Received: {type(game).__name__}, which is not")
    check(game.classifier)
    if game.transform is not None:
        raise ValueError(
            "`game` must not have `transform=` to be cut while it trains: its variables have the "
            f"shapes of the weights. Received: {type(game.transform).__name__}"
        )
    for variable in game.classifier.variables:
        if constraint_of(variable) is not None:
            raise ValueError(
                "`game` must not have pruned weights to be cut while it trains: call "
                f"tr.shrink.compact first. Received: a pruning mask on {variable.path}"
            )
    for group, optimizer in game.optimizers.items():
        for part in _parts(optimizer):
            slots(part)
            if part.use_ema:
                raise ValueError(
                    "`optimizer` must not average weights (use_ema) to be cut while it trains. "
                    f"Received: {type(part).__name__} for group {group!r}"
                )


def cut(game):
    """`(game around the trimmed net, share of the masks' units that went)`."""
    with game.distribute_strategy.scope():
        smaller, origins = shrink.trim(game.classifier)
        before, after = (units(net) for net in (game.classifier, smaller))
        new = around(game, smaller)
        _carry(game, new, origins)
    return new, 1 - after / before


def units(classifier):
    """Units that the masks of a net have, shut or not."""
    return sum(int(m.keep().size) for m in classifier.layers if isinstance(m, Mask))


def around(game, classifier):
    """A fresh compiled game like `game` for another, smaller, state of its classifier."""
    config = game.get_config()
    same = game.validation_attack is game.attack
    config.update(
        classifier=classifier,
        attack=game.attack,
        validation_attack=None if same else game.validation_attack,
        regularizers=[_for(r, game.classifier, classifier) for r in game.regularizers],
    )
    if config.get("kl_weights"):
        left = {mask.name for mask in classifier.layers if isinstance(mask, Mask)}
        config["kl_weights"] = {n: w for n, w in config["kl_weights"].items() if n in left}
    new = type(game).from_config(config)
    compiled = game._compiled_with
    fresh = {g: type(o).from_config(o.get_config()) for g, o in compiled["optimizer"].items()}
    new.compile(**{**compiled, "optimizer": fresh})
    return new


def _for(regularizer, full, classifier):
    """The regularizer for a smaller net, with the unit counts of the full one."""
    if not isinstance(regularizer, regularizers.VulnerabilitySuppression):
        return regularizer
    names = regularizer.features or regularizers.feature_layers(full)
    kept = {layer.name: layer for layer in classifier.layers}
    left = [place for place, name in enumerate(names) if name in kept]
    before = [full.get_layer(name).output.shape[1:] for name in names]
    if before == [kept[name].output.shape[1:] for name in names if name in kept]:
        return regularizer
    counts = regularizer.units
    if counts is None and regularizer.reduction == "mean":
        counts = None if any(None in s for s in before) else [int(np.prod(s)) for s in before]
    return regularizers.VulnerabilitySuppression(
        regularizer.weight,
        regularizer.reduction,
        features=[names[place] for place in left],
        units=None if counts is None else [counts[place] for place in left],
    )


def _carry(old, new, origins):
    """Gives `new` what `old` has learned beside the classifier's weights."""
    sources = {id(origin.new): origin for origin in origins}
    for variable, source in zip(_own(new), _own(old), strict=True):
        if variable.shape != source.shape:
            raise ValueError(
                "`game` must not have variables whose shape follows that of its net to be cut "
                f"while it trains. Received: {source.path} of {tuple(source.shape)}"
            )
        variable.assign(source.value)
        sources[id(variable)] = shrink.Origin(variable, source, {})
    for group, optimizer in new.optimizers.items():
        pairs = zip(_parts(old.optimizers[group]), _parts(optimizer), strict=True)
        for before, after in pairs:
            _carry_slots(before, after, sources)


def _own(game):
    """The variables of a game that are not its classifier's."""
    inside = {id(variable) for variable in game.classifier.variables}
    return [variable for variable in game.variables if id(variable) not in inside]


def _parts(optimizer):
    """An optimizer and those inside of it, such as that of a loss scale."""
    while optimizer is not None:
        yield optimizer
        optimizer = getattr(optimizer, "inner_optimizer", None)


def slots(optimizer):
    """{(attribute, place): variable} of an optimizer; place None: not one for each weight.

    Keras's optimizers hold lists (`_momentums`) in the order of the weights that they train.
    """
    own = {id(variable) for variable in optimizer._variables}
    found = {}
    for name, value in vars(optimizer).items():
        if isinstance(value, keras.Variable):
            found[name, None] = value
        elif isinstance(value, list) and name not in ("_variables", "_trainable_variables"):
            found.update({(name, place): item for place, item in enumerate(value)})
    found = {key: value for key, value in found.items() if id(value) in own}
    if {id(value) for value in found.values()} != own:
        raise ValueError(
            "`optimizer` must hold its state in lists with an entry for each weight to be cut "
            f"while it trains, as Adam and SGD do. Received: {type(optimizer).__name__}"
        )
    return found


def _carry_slots(old, new, sources):
    before = slots(old)
    places = {id(v): place for place, v in enumerate(getattr(old, "_trainable_variables", ()))}
    trained = getattr(new, "_trainable_variables", ())
    for (name, place), variable in slots(new).items():
        if place is None:
            variable.assign(before[name, None].value)
            continue
        origin = sources[id(trained[place])]
        if origin.old is None:
            continue  # a bias that took up constants: nothing has moved it yet
        source = before[name, places[id(origin.old)]]
        value = np.asarray(keras.ops.convert_to_numpy(source))
        if source.shape == origin.old.shape:
            value = origin.take(value)
        if value.shape != tuple(variable.shape):
            raise ValueError(
                "`optimizer` must keep states of the weights' shape to be cut while it trains. "
                f"Received: {type(old).__name__}"
            )
        variable.assign(value)
