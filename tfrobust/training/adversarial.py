"""Adversarial training: weights learned on attacked images, alone or mixed with clean ones.

game = tr.training.AdversarialTraining(net, tr.attacks.PGD(tr.threats.Linf(0.3), steps=7))
game.compile(keras.optimizers.Adam(1e-3), metrics=["accuracy"])
game.fit(x_train, y_train, epochs=10)
"""

import keras

from tfrobust.training.game import Game


def check_mix(mix):
    try:
        clean, adversarial = map(float, mix)
        legal = clean >= 0 and adversarial >= 0 and 0 < clean + adversarial < float("inf")
    except (TypeError, ValueError):
        legal = False
    if not legal:
        raise ValueError(f"`mix` must be two weights >= 0, not both 0. Received: mix={mix}")
    return (float(clean), float(adversarial))


@keras.saving.register_keras_serializable(package="tfrobust")
class AdversarialTraining(Game):
    """Minimises (c CE(f(x), y) + a CE(f(x'), y)) / (c + a) + regularizers, with mix = (c, a).

    `mix=(0, 1)` is Madry et al. (2018); `(1, 2)` the mixed loss of the ANP-VS release. With
    `VulnerabilitySuppression` among the regularizers it is AT-VS. `attack=None` is standard
    training at its price, CE(f(x), y); so is `mix=(1, 0)`, which attacks all the same to report
    `robust_accuracy`.

    Args:
        classifier, attack, regularizers, epsilon, weight_decay: see `Game`.
        mix: Pair of weights >= 0 of the clean and the adversarial loss.

    Example:

    >>> from tfrobust import attacks, models, threats
    >>> game = AdversarialTraining(models.digits_net(), attacks.PGD(threats.Linf(0.1), steps=2))
    >>> game.compile("adam", metrics=["accuracy"])
    """

    def __init__(self, classifier, attack, mix=(0.0, 1.0), **kwargs):
        self.mix = check_mix(mix)
        super().__init__(classifier, attack, **kwargs)

    def mixed(self, batch):
        """(loss of the weights, loss on adversarial images) from one round of passes."""
        clean_share, adversarial_share = (w / sum(self.mix) for w in self.mix)
        if self.attack is None:
            clean_share, adversarial_share = 0.0, 1.0
        needs_clean = clean_share or self.regularizers or batch.x_adv is batch.x
        if needs_clean:
            clean, adversarial = self.passes(batch.x, batch.x_adv)
        else:
            (adversarial,) = self.passes(batch.x_adv)
            clean = None
        adversarial_loss = self.data_loss(batch, adversarial.logits)
        loss = adversarial_share * adversarial_loss
        if clean_share:
            loss += clean_share * self.data_loss(batch, clean.logits)
        loss += self.penalties(batch, clean, adversarial)
        if clean is None and self._compile_metrics is not None and not self._quiet:
            clean = self.forward(batch.x, training=False)
        self.score(batch, None if clean is None else clean.logits, adversarial.logits)
        return loss + self.weight_penalty(), adversarial_loss

    def objective(self, batch, turn):
        del turn
        return {"weights": self.mixed(batch)[0]}

    def get_config(self):
        return {**super().get_config(), "mix": list(self.mix)}
