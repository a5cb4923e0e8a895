"""Pairs of a clean and an adversarial image, checked: given as arrays, or made by an attack.

White box: the attack runs on the model itself. Transferred: `tr.attacks.Transfer(source, attack)`
crafts on another model, or `x_adv` was crafted there.
"""

import numpy as np

from tfrobust import contract
from tfrobust.diagnostics import checks


def pairs(model, x, y=None, attack=None, x_adv=None, batch_size=256):
    """Yields batches (x, x_adv), every pair once.

    Args:
        x: Images `(n, ...)`, or a stream of batches: (x, y) for an attack, (x, x_adv) without one.
        y: Labels `(n,)` for an attack on an array.
        attack: `tr.attacks.Attack`; image i of a stream draws what image i of an array does.
        x_adv: Images of the shape of `x`, instead of an attack.
    """
    contract.classifier(model, "model")
    contract.whole("batch_size", batch_size, 1)
    streamed = _streamed(x)
    if attack is not None:
        checks.attack(attack)
        if x_adv is not None:
            raise ValueError(
                "`x_adv` must be None with an attack, which makes them. Received: both"
            )
    elif x_adv is None and not streamed:
        raise ValueError(
            "`x_adv` must be images of the shape of `x`, or `attack` a tr.attacks.Attack. "
            "Received: neither"
        )
    if streamed:
        if y is not None or x_adv is not None:
            raise ValueError(
                "`y` and `x_adv` must be None with a stream, whose batches hold them. "
                f"Received: x of type {type(x).__name__}"
            )
        batches = contract.stream(x, "an array of images or a stream of batches", "x")
    else:
        batches = _rows(model, x, y if attack is not None else x_adv, attack, batch_size)
    return _pairs(model, batches, attack)


def few(model, x, y=None, attack=None, x_adv=None):
    """`pairs` as two arrays, for some images to look at."""
    if _streamed(x):
        raise TypeError(f"`x` must be an array of images. Received: {type(x).__name__}")
    found = list(pairs(model, x, y, attack, x_adv))
    return tuple(np.concatenate(side) for side in zip(*found, strict=True))


def _streamed(x):
    """Whether `x` gives batches: no array, and no list of one."""
    if isinstance(x, list | tuple):
        return bool(x) and isinstance(x[0], list | tuple)
    return not hasattr(x, "__array__")


def _rows(model, x, other, attack, batch_size):
    """Checks arrays whole, before the first batch is attacked."""
    x = contract.images(x)
    contract.fits(model, x)
    if attack is None:
        other = _like(x, other)
    elif other is None:
        raise ValueError("`y` must be integer labels (n,) for an attack. Received: None")
    else:
        other = contract.labels(other, contract.classes_of(model), count=len(x))
    rows = [slice(start, start + batch_size) for start in range(0, len(x), batch_size)]
    return ((x[r], other[r]) for r in rows)


def _like(x, x_adv):
    x_adv = contract.images(x_adv, "x_adv")
    if x_adv.shape != x.shape:
        raise ValueError(
            f"`x_adv` must have the shape of `x`, {x.shape}. Received: shape={x_adv.shape}"
        )
    return x_adv


def _pairs(model, batches, attack):
    done = 0
    for batch in batches:
        if not isinstance(batch, tuple | list) or len(batch) < 2:
            raise TypeError(
                "`x` must give pairs (x, y), or (x, x_adv) without an attack. "
                f"Received: batch of type {type(batch).__name__}"
            )
        x = contract.images(batch[0])
        contract.fits(model, x)
        if attack is None:
            x_adv = _like(x, batch[1])
        else:
            x_adv = attack(model, x, batch[1], index=done + np.arange(len(x)))
        done += len(x)
        yield x, x_adv
    if not done:
        raise ValueError("`x` must hold at least one batch. Received: none")
