"""TRADES: accuracy on clean images, and predictions that an attack cannot move away from them.

game = tr.training.TRADES(net, tr.threats.Linf(8 / 255), beta=6.0)
game.compile(keras.optimizers.SGD(0.1, momentum=0.9), metrics=["accuracy"])
game.fit(x_train, y_train, epochs=76)
"""

import warnings

import keras

from tfrobust import losses
from tfrobust.attacks import PGD
from tfrobust.threats import Threat
from tfrobust.training.game import Game
from tfrobust.training.numbers import check_number, number_config, value_at


def trades_attack(threat, steps=10, step_size=None):
    """The inner attack of TRADES: PGD that drives predictions away from those of the clean image.

    It starts at x + 0.001 N(0, 1), ascends KL(p(x) || p(x')) and returns its last iterate.

    Args:
        threat: `tr.threats.Threat`.
        steps: Integer >= 1.
        step_size: Float > 0 in pixel units; default epsilon / 4.

    >>> from tfrobust.threats import Linf
    >>> trades_attack(Linf(0.3), steps=40, step_size=0.01).name
    'PGD-40'
    """
    if not isinstance(threat, Threat):
        raise TypeError(f"`threat` must be a tr.threats.Threat. Received: threat={threat!r}")
    if step_size is None:
        step_size = threat.epsilon / 4 or None
    return PGD(threat, steps, step_size, random_start=0.001, last_iterate=True, loss="kl")


@keras.saving.register_keras_serializable(package="tfrobust")
class TRADES(Game):
    """Minimises CE(f(x), y) + beta KL(p(x) || p(x')) + regularizers (Zhang et al., 2019, eq. 5).

    x' maximises the same KL (nats) in inference mode; p(x) and p(x') are softmax predictions of two
    training passes with common random numbers, and gradients flow through both. KL is averaged
    over the batch with the sample weights, as the loss is. beta = 0 is standard training.

    The KL's gradient by x' is exactly zero at x' = x: the attack must start beside the image, not
    at it. The authors' attack does not project its first point, and their step makes three passes
    that move the statistics of BatchNormalization; here they are two.

    Args:
        classifier: Functional classifier, logits out.
        attack: `tr.attacks.Attack`, or a `tr.threats.Threat` for `trades_attack(threat)`: 10 steps
            of epsilon / 4. The paper: 40 steps of 0.01 at Linf(0.3) with beta 1 (MNIST), 10 of
            0.007 at Linf(0.031) with beta 6 (CIFAR-10). An attack on another loss than "kl" is
            played as it is, with a warning.
        beta: Float >= 0 or Keras schedule of the iteration. Larger is more robust and less
            accurate.
        regularizers, epsilon, weight_decay, share_noise, validation_attack, seed: see `Game`.

    `fit` reports `kl`, the mean KL before it is weighed by beta.

    Reference: Zhang et al., Theoretically principled trade-off between robustness and accuracy
    (2019), https://arxiv.org/abs/1901.08573.

    Example:

    >>> from tfrobust import attacks, models, threats
    >>> inner = attacks.PGD(threats.Linf(0.1), steps=2, loss="kl", random_start=0.001)
    >>> game = TRADES(models.digits_net(), inner, beta=6.0)
    >>> game.compile("adam", metrics=["accuracy"])
    """

    def __init__(self, classifier, attack, beta=6.0, **kwargs):
        self.beta = check_number("beta", beta)
        if isinstance(attack, Threat):
            attack = trades_attack(attack)
        if attack is None:
            raise TypeError(
                "`attack` must be a tr.attacks.Attack or a tr.threats.Threat. Received: attack=None"
            )
        super().__init__(classifier, attack, **kwargs)
        if not losses.from_clean(attack.loss):
            warnings.warn(
                f"`attack` maximises {attack.loss!r}, not the KL that TRADES minimises: give it "
                'loss="kl" and random_start=0.001, or pass the threat alone.',
                stacklevel=2,
            )

    def terms(self):
        return ("kl",)

    def objective(self, batch, turn):
        del turn
        if isinstance(self.beta, float | int) and not (self.beta or self.regularizers):
            (clean,) = self.passes(batch.x)
            adversarial = self.forward(batch.x_adv, training=False)
        else:
            clean, adversarial = self.passes(batch.x, batch.x_adv)
        divergence = self.mean(losses.kl(clean.logits, adversarial.logits), batch)
        beta = value_at(self.beta, self.step.value)
        loss = self.data_loss(batch, clean.logits) + beta * divergence
        self.report("kl", self.whole(divergence), batch.count)
        loss += self.penalties(batch, clean, adversarial)
        self.score(batch, clean.logits, adversarial.logits)
        return {"weights": loss + self.weight_penalty()}

    def get_config(self):
        return {**super().get_config(), "beta": number_config(self.beta)}
