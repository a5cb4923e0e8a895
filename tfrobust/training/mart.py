"""MART: adversarial training that minds the examples which are wrong without an attack.

game = tr.training.MART(net, tr.threats.Linf(8 / 255), beta=5.0)
"""

import keras
import tensorflow as tf

from tfrobust import losses
from tfrobust.attacks import PGD, Attack
from tfrobust.threats import Threat
from tfrobust.training.game import Game
from tfrobust.training.numbers import check_number, number_config, value_at


@keras.saving.register_keras_serializable(package="tfrobust")
class MART(Game):
    """Minimises BCE(p(x'), y) + beta KL(p(x) || p(x')) (1 - p_y(x)) + regularizers.

    The boosted cross-entropy is BCE(p, y) = -log p_y - log(1 - max over k != y of p_k): the
    compiled loss plus a margin. KL (nats) weighs by 1 - p_y(x), so it acts on examples that the
    net is unsure of. Gradients flow through x and x', the weight included; noise is shared.
    With rows of labels (one-hot, smoothed), y is their largest entry in the two new terms.

    Args:
        classifier: Functional classifier, logits out.
        attack: `tr.attacks.Attack` on the cross-entropy, or a `tr.threats.Threat` for the
            authors' PGD: 10 steps of epsilon / 4 from x + 0.001 N(0, 1), the last iterate.
        beta: Float >= 0 or Keras schedule of the iteration; the paper's lambda, 5 or 6.
        regularizers, epsilon, weight_decay, share_noise, validation_attack, seed: see `Game`.

    `fit` reports `kl`, the weighted KL before beta.

    Reference: Wang et al., Improving adversarial robustness requires revisiting misclassified
    examples (2020), https://openreview.net/forum?id=rklOg6EFwS, eq. 11.

    Example:

    >>> from tfrobust import models, threats
    >>> game = MART(models.digits_net(), threats.Linf(0.1))
    >>> game.compile("adam", metrics=["accuracy"])
    """

    def __init__(self, classifier, attack, beta=5.0, **kwargs):
        self.beta = check_number("beta", beta)
        if isinstance(attack, Threat):
            attack = PGD(
                attack, 10, attack.epsilon / 4 or None, random_start=0.001, last_iterate=True
            )
        if not isinstance(attack, Attack):
            raise TypeError(
                "`attack` must be a tr.attacks.Attack or a tr.threats.Threat. "
                f"Received: attack={attack!r}"
            )
        super().__init__(classifier, attack, **kwargs)

    def terms(self):
        return ("kl",)

    def objective(self, batch, turn):
        del turn
        clean, adversarial = self.passes(batch.x, batch.x_adv)
        doubt = 1.0 - tf.exp(-losses.cross_entropy(clean.logits, batch.y))
        divergence = self.mean(losses.kl(clean.logits, adversarial.logits) * doubt, batch)
        boost = self.mean(losses.runner_up(adversarial.logits, batch.y), batch)
        beta = value_at(self.beta, self.step.value)
        loss = self.data_loss(batch, adversarial.logits) + boost + beta * divergence
        self.report("kl", self.whole(divergence), batch.count)
        loss += self.penalties(batch, clean, adversarial)
        self.score(batch, clean.logits, adversarial.logits)
        return {"weights": loss + self.weight_penalty()}

    def get_config(self):
        return {**super().get_config(), "beta": number_config(self.beta)}
