"""Pruning by ADMM: weights are drawn to a sparse copy of themselves before they are cut.

    admm = tr.pruning.ADMM(0.8, every=4)
    game.fit(x_train, y_train, epochs=40, callbacks=[admm])    # 1. any game, or any Keras model
    print(admm.prune())                                        # 2. what is near zero goes
    game.fit(x_train, y_train, epochs=40)                      # 3. the rest is trained on

The penalty stands on the kernels as a regularizer, where every game and plain `fit` find it; the
callback moves what it draws them to.
"""

import json
import warnings
import weakref

import keras
import numpy as np
import tensorflow as tf

from tfrobust.contract import built, is_number, whole
from tfrobust.pruning import apply
from tfrobust.pruning.constraint import constraint_of, numpy, retrace
from tfrobust.pruning.figures import classifier_of
from tfrobust.pruning.magnitude import alone
from tfrobust.pruning.pruner import Pruner
from tfrobust.pruning.schedule import fraction as checked_fraction
from tfrobust.pruning.select import amount
from tfrobust.pruning.settings import Settings

LARGE = 0.1  # a residual with which hard pruning still takes a good part of the net


def squares(kernel, layer):
    """The rule that makes a choice of filters a Euclidean projection: w^2, summed over a filter."""
    return np.square(kernel)


class Pull(keras.regularizers.Regularizer):
    """inner(w) + rho / 2 ||w - anchor||^2, with variables for rho and the anchor Z - U."""

    def __init__(self, variable, rho, inner):
        self.rho, self.inner, self.known = rho, inner, weakref.WeakSet()
        self.anchor = keras.Variable(
            np.zeros(variable.shape, "float32"), trainable=False, name="admm_anchor",
            aggregation="only_first_replica",
        )  # fmt: skip

    def __call__(self, w):
        difference = tf.cast(keras.ops.convert_to_tensor(w), tf.float32) - self.anchor.value
        pull = 0.5 * self.rho.value * tf.reduce_sum(tf.square(difference))
        return pull if self.inner is None else pull + tf.cast(self.inner(w), tf.float32)


class ADMM(keras.callbacks.Callback):
    """Draws weights to a sparse set S by the alternating direction method of multipliers.

    The loss, of any game or plain model, gets sum_i rho / 2 ||W_i - Z_i + U_i||^2 over the kernels
    W_i that are pruned. At first Z = P(W) and U = 0, with P the Euclidean projection on S; at the
    end of every `every`-th epoch

        Z <- P(W + U),    U <- U + W - Z,    rho <- growth rho.

    Take SGD with a falling learning rate: the steps of Adam do not become shorter with the
    penalty's gradient, and W stays about a step away from Z.

    When `fit` ends the penalty leaves the kernels, and the weights are near S, not in it: call
    `prune()`, which sets to zero and holds what is not of S, then fine-tune with plain `fit`. A
    later `fit` with the same object goes on where this one ended. rho = 0 is training without it.

    `fit` reports `residual`, ||W - Z|| / ||W|| over all these kernels (the primal residual), and
    `rho`. `tr.training.Resume` keeps Z, U and rho: keras.callbacks.BackupAndRestore does not.

    Args:
        fraction: Float in [0, 1), what is zero in S: p = min(ceil(fraction n - 1e-9), n - 1) of n
            entries (or filters) of each layer.
        every: Integer >= 1, epochs between updates of Z and U.
        rho: Float >= 0 at the start.
        growth: Float >= 1, what an update multiplies rho by.
        rescale: Bool: an update divides U by `growth` as well, so that rho U, the multiplier,
            stays what it was (Boyd et al., 2011, section 3.4.1). The authors do not.
        structured, scope, exclude, min_filters, residual, normalise, rule: as for
            `tr.pruning.MagnitudePruning`, but `scope` is "layer" by default for filters as well,
            and the rule is w^2, by which whole filters go by their l2 norm.

    Reference: Ye et al., Adversarial robustness vs model compression, or both? (2019),
    https://arxiv.org/abs/1903.12561; `every`=4 of 40 epochs and 1e-3, 1.3 are their settings for
    MNIST. Their learning rate restarts with each update, as that of
    keras.optimizers.schedules.CosineDecayRestarts does.

    Example:

    >>> from tfrobust import attacks, data, models, threats, training
    >>> net, digits = models.digits_net(), data.load("digits")
    >>> game = training.AdversarialTraining(net, attacks.FGSM(threats.Linf(0.1)))
    >>> game.compile(keras.optimizers.SGD(0.05, momentum=0.5))
    >>> admm = ADMM(0.5, every=2, rho=1.0)
    >>> history = game.fit(
    ...     digits.x_train[:256], digits.y_train[:256], epochs=8, verbose=0, callbacks=[admm]
    ... )
    >>> [round(value, 2) for value in history.history["rho"]]
    [1.0, 1.3, 1.3, 1.69, 1.69, 2.2, 2.2, 2.86]
    >>> history.history["residual"][-1] < history.history["residual"][0]
    True
    >>> round(admm.prune().sparsity, 2)
    0.5
    """

    resumes = ("state",)  # for tr.training.Resume

    def __init__(
        self, fraction, every=4, rho=1e-3, growth=1.3, rescale=False, scope="layer", **options
    ):
        super().__init__()
        self.fraction = checked_fraction("fraction", fraction)
        self.every = whole("every", every, 1)
        for name, value, least in (("rho", rho, 0), ("growth", growth, 1)):
            if not is_number(value) or value < least:
                raise ValueError(f"`{name}` must be >= {least}. Received: {name}={value!r}")
        self._options = {"rule": squares, "scope": scope, **options}
        self.settings = Settings(**self._options)
        self.settings.within_reach(self.fraction)
        self._start, self.growth, self.rescale = float(rho), float(growth), bool(rescale)
        self._pruner = None

    # --- what Keras calls -------------------------------------------------------------------------

    def on_train_begin(self, logs=None):
        classifier = built(classifier_of(self.model))
        alone(self, classifier)
        if self._pruner is None or self._pruner.model is not classifier:
            self._pruner = Pruner(classifier, self.settings)
            self._epochs, self._rho = 0, self._start
            self._z = self._projected(self._weights())
            self._u = [np.zeros_like(z) for z in self._z]
            with self.model.distribute_strategy.scope():
                self._factor = keras.Variable(
                    self._rho, dtype="float32", trainable=False, name="admm_rho",
                    aggregation="only_first_replica",
                )  # fmt: skip
                self._pulls = [Pull(v, self._factor, _own(v)) for v in self._kernels()]
        for variable, pull in zip(self._kernels(), self._pulls, strict=True):
            variable.regularizer = pull
        retrace(self._traced(), self._pulls)
        self._write()

    def on_epoch_end(self, epoch, logs=None):
        self._epochs += 1
        if self._epochs % self.every == 0:
            sums = [w + u for w, u in zip(self._weights(), self._u, strict=True)]
            self._z = self._projected(sums)
            self._u = [s - z for s, z in zip(sums, self._z, strict=True)]
            self._rho *= self.growth
            if self.rescale:
                self._u = [u / self.growth for u in self._u]
            self._write()
        if logs is not None:
            logs["residual"], logs["rho"] = self.residual, self._rho

    def on_train_end(self, logs=None):
        self._leave()

    # --- what it does -----------------------------------------------------------------------------

    @property
    def residual(self):
        """||W - Z|| / ||W|| over the kernels that are pruned, as they are now: a float >= 0."""
        self._met()
        pairs = list(zip(self._weights(), self._z, strict=True))
        far = sum(float(np.square(w - z, dtype=np.float64).sum()) for w, z in pairs)
        size = sum(float(np.square(w, dtype=np.float64).sum()) for w, _ in pairs)
        return float(np.sqrt(far / size)) if size else float(far > 0)

    def prune(self):
        """Sets what is not of S to zero and holds it there: `tr.pruning.prune` with these options.

        Returns:
            `tr.pruning.Report`. Warns where `residual` is above 0.1: a tenth of the norm goes at
            once, and more than fine-tuning gives back may go with it.
        """
        self._met()
        far = self.residual
        if far > LARGE:
            warnings.warn(
                f"`residual` is {far:.3g}: the weights are far from sparse, and pruning now takes "
                f"that share of their norm. Train longer (`every`={self.every}, {self._epochs} "
                "epochs so far), or with a larger `rho` or `growth`.",
                stacklevel=2,
            )
        self._leave()
        return apply.prune(self.model, self.fraction, **self._options)

    def _met(self):
        if self._pruner is None:
            raise ValueError("Nothing is drawn anywhere yet: pass this callback to `fit` first.")

    def _kernels(self):
        return [place.kernel for place in self._pruner.places]

    def _weights(self):
        return [numpy(kernel).astype(np.float32) for kernel in self._kernels()]

    def _projected(self, values):
        """P(values): what `tr.pruning.prune` would leave of them."""
        held = [constraint_of(kernel) for kernel in self._kernels()]
        masks = [
            np.ones(v.shape, bool) if c is None else numpy(c.mask)
            for v, c in zip(values, held, strict=True)
        ]
        masks, _ = self._pruner.chosen(
            values, masks, lambda total, kernel=None: amount(self.fraction, total)
        )
        return [np.where(mask, value, 0) for mask, value in zip(masks, values, strict=True)]

    def _write(self):
        """Hands rho and the anchors Z - U to the penalties that steps were traced with."""
        self._factor.assign(self._rho)
        for pull, z, u in zip(self._pulls, self._z, self._u, strict=True):
            pull.anchor.assign(z - u)

    def _traced(self):
        return {id(m): m for m in (self.model, self._pruner.model)}.values()

    def _leave(self):
        """Gives the kernels back their own regularizers, and lets later steps know of it."""
        for variable, pull in zip(self._kernels(), self._pulls, strict=True):
            if variable.regularizer is pull:
                variable.regularizer = pull.inner
        for model in self._traced():
            if any(model in pull.known for pull in self._pulls):
                if getattr(model, "train_function", None) is not None:
                    model.make_train_function(force=True)
            for pull in self._pulls:
                pull.known.discard(model)

    # --- resume -----------------------------------------------------------------------------------

    @property
    def state(self):
        """All that decides what this callback does next, for `tr.training.Resume`."""
        if self._pruner is None:
            return None
        return [self._identity(), [self._epochs, self._rho], self._z, self._u]

    @state.setter
    def state(self, value):
        if value is None or self._pruner is None:
            return
        identity, (epochs, rho), z, u = value
        if identity != self._identity():
            raise ValueError(
                "`fraction` and the options must be those of the run that goes on. "
                f"Received: {self._identity()}, was {identity}"
            )
        self._epochs, self._rho = int(epochs), float(rho)
        self._z, self._u = ([np.asarray(v) for v in values] for values in (z, u))
        self._write()

    def _identity(self):
        numbers = [self.fraction, self.every, self._start, self.growth, self.rescale]
        return json.dumps([numbers, self.settings.to_dict()], default=str)


def _own(variable):
    """The regularizer of a variable, without what an ADMM that was interrupted left there."""
    found = variable.regularizer
    while isinstance(found, Pull):
        found = found.inner
    return found
