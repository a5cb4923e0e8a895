"""ANP and ANP-VS: Bayesian masks learned on the adversarial loss, weights on the mix (+ V).

    net = tr.models.lenet5_caffe(mask=tr.layers.BetaBernoulliMask)
    game = tr.training.ANP(net, attack, beta=4.0, train_size=60_000,
                           regularizers=[tr.regularizers.VulnerabilitySuppression(1.0)])
    game.compile(); game.fit(...)

With a `VulnerabilitySuppression` of weight lambda > 0 this is ANP-VS, without it ANP.
"""

import keras
import numpy as np
import tensorflow as tf

from tfrobust.contract import is_number
from tfrobust.training.adversarial import AdversarialTraining
from tfrobust.training.numbers import check_number, number_config, value_at


class MaskGroup:
    """What masks add to a game with `mixed(batch) -> (loss of the weights, adversarial loss)`.

    They are a group of their own, with an optimizer of their own, and learn on the adversarial loss
    plus beta / N times their KL. A mixin: `class ANP(MaskGroup, AdversarialTraining)`.
    """

    turns = (("weights", "masks"),)

    def _before(self, beta, train_size):
        self.beta = check_number("beta", beta)
        whole = isinstance(train_size, int | np.integer) and not isinstance(train_size, bool)
        if not whole or train_size < 1:
            raise ValueError(
                "`train_size` must be the number of training examples: the KL is scaled by it. "
                f"Received: train_size={train_size!r}"
            )
        self.train_size = int(train_size)

    def _after(self, kl_weights):
        if not self.masks():
            raise ValueError(
                "`classifier` must have masks: call tr.layers.insert_masks(model, "
                f"tr.layers.BetaBernoulliMask). Received: model '{self.classifier.name}' without "
                "masks"
            )
        given = {} if kl_weights is None else kl_weights
        if not isinstance(given, dict):
            raise TypeError(f"`kl_weights` must be a dictionary. Received: kl_weights={given!r}")
        self.kl_weights, names = dict(given), {mask.name for mask in self.masks()}
        legal = (is_number(weight) and weight >= 0 for weight in given.values())
        if set(given) - names or not all(legal):
            raise ValueError(
                "`kl_weights` must give weights >= 0 to masks of the classifier: "
                f"{[mask.name for mask in self.masks()]}. Received: kl_weights={kl_weights}"
            )

    def terms(self):
        return (*super().terms(), "kl")

    def group_variables(self):
        owned = {id(v) for mask in self.masks() for v in mask.trainable_variables}
        variables = self.classifier.trainable_variables
        return {
            "weights": [v for v in variables if id(v) not in owned],
            "masks": [v for v in variables if id(v) in owned],
        }

    def default_optimizers(self):
        return {
            "weights": keras.optimizers.Adam(1e-3, epsilon=1e-8),
            "masks": keras.optimizers.Adam(1e-2, epsilon=1e-8),
        }

    def objective(self, batch, turn):
        weights, adversarial = self.mixed(batch)
        kl = {mask.name: mask.kl() for mask in self.masks()}
        self.report("kl", tf.add_n(list(kl.values())))
        weighed = tf.add_n([self.kl_weights.get(name, 1.0) * value for name, value in kl.items()])
        scale = value_at(self.beta, self.step.value) / self.train_size
        return {"weights": weights, "masks": adversarial + self.per_replica(scale * weighed)}

    def get_config(self):
        config = super().get_config()
        return {
            **config,
            "beta": number_config(self.beta),
            "train_size": self.train_size,
            "kl_weights": self.kl_weights,
        }


@keras.saving.register_keras_serializable(package="tfrobust")
class ANP(MaskGroup, AdversarialTraining):
    """Adversarial neural pruning (Madaan et al., 2020, eq. 5, 6, 9 and Algorithm 1).

    masks:    CE(f(x'), y) + beta / N * KL(masks)
    weights:  (CE(f(x), y) + 2 CE(f(x'), y)) / 3 + weight_decay / 2 ||theta||^2 + regularizers

    Both losses come from the same two passes (common random numbers), are differentiated at the
    same parameters and applied by two optimizers; each moves only its own group. Images are
    attacked in inference mode, through the expected masks.

    Args:
        classifier: Functional classifier with at least one `tr.layers.Mask`.
        attack: The training attack; None is `BP`.
        beta: Float >= 0 or Keras schedule of the iteration, weight of the KL term.
        train_size: Integer N, number of training examples (the KL is scaled by 1 / N).
        kl_weights: None or {mask name: float >= 0}, what a unit of that mask weighs in the KL term
            (default 1, the paper's); weights that follow the cost of a unit prune FLOPs.
        mix: Pair of weights of the clean and the adversarial loss of the weights.
        weight_decay: Float >= 0.
        regularizers, epsilon, share_noise, validation_attack, seed: see `Game`.

    Without optimizers `compile` takes the paper's: Adam 1e-3 for weights, 1e-2 for masks.
    """

    def __init__(
        self,
        classifier,
        attack,
        beta=4.0,
        train_size=None,
        kl_weights=None,
        mix=(1.0, 2.0),
        weight_decay=1e-4,
        **kwargs,
    ):
        self._before(beta, train_size)
        super().__init__(classifier, attack, mix=mix, weight_decay=weight_decay, **kwargs)
        self._after(kl_weights)


@keras.saving.register_keras_serializable(package="tfrobust")
class BP(ANP):
    """Bayesian pruning on clean images: ANP without an attack (Lee et al., 2018; Dai et al., 2018).

    masks and weights:  CE(f(x), y) + beta / N * KL(masks)   (+ weight decay for the weights)

    One pass a step. `tr.layers.freeze_masks(net)` afterwards, then `AdversarialTraining(net, ...)`,
    is PAT. With a `validation_attack` validation reports `val_robust_accuracy`; without one nothing
    is attacked at all, and nothing of that name is reported.

    Args:
        classifier: Functional classifier with masks of either kind.
        beta: Float >= 0 or Keras schedule of the iteration; 1 is the evidence bound.
        train_size: Integer N, number of training examples.
        kl_weights, weight_decay, validation_attack, seed: see `ANP` and `Game`.

    Example:

    >>> from tfrobust import layers, models
    >>> game = BP(models.digits_net(mask=layers.VIBMask), train_size=1000)
    >>> game.compile(metrics=["accuracy"])
    """

    def __init__(self, classifier, beta=1.0, train_size=None, **kwargs):
        super().__init__(classifier, None, beta=beta, train_size=train_size, **kwargs)

    def get_config(self):
        return {k: v for k, v in super().get_config().items() if k not in ("attack", "mix")}
