"""Certified training: the loss that no image in the ball exceeds is what is minimised.

    net = tr.models.lenet5_caffe()
    tr.training.ibp_initialization(net)
    game = tr.training.CertifiedTraining(
        net, tr.threats.Linf(0.1), epsilon=tr.training.Ramp(0.11, length=20 * steps, begin=steps)
    )
    game.compile("adam", metrics=["accuracy"]); game.fit(...)
    tr.verify.certify(net, data, tr.threats.Linf(0.1))

Bounds are those of `tr.bounds.Program` of the live classifier, in inference mode: moving statistics
of BatchNormalization, expected masks, no dropout. `fit` reports `verified_accuracy` at the radius
of the iteration, validation `val_verified_accuracy` at the threat's own.
"""

import dataclasses
import warnings

import keras
import tensorflow as tf

from tfrobust import contract, losses, noise
from tfrobust.bounds import METHODS, Program, Region, backward
from tfrobust.training.anp import MaskGroup
from tfrobust.training.game import Game
from tfrobust.training.numbers import Schedule, check_number, number_config, value_at

BOUNDS = ("ibp", "crown-ibp", "symbolic")


class Certified(Game):
    """Base of the games that minimise a bound of the loss; children write `mixed(batch)`.

    Args:
        classifier: Functional classifier, every layer of it known to `tr.bounds`.
        threat: `tr.threats.Threat`, what is to be certified.
        bound: "ibp", "crown-ibp" or "symbolic" (small nets).
        crown: Float in [0, 1] or schedule, share of CROWN in the bound of "crown-ibp".
        epsilon: Float or schedule of the iteration, radius in training; default the threat's.
        validation_attack: None, or an attack for `val_robust_accuracy`.
    """

    validated = (*Game.validated, "verified_accuracy")

    def __init__(
        self, classifier, threat, bound="ibp", crown=0.0, epsilon=None, validation_attack=None,
        **kwargs,
    ):  # fmt: skip
        if threat is None:  # which other games may go without
            raise TypeError("`threat` must be a tr.threats.Threat. Received: threat=None")
        if not isinstance(bound, str) or bound not in BOUNDS:
            raise ValueError(f"`bound` must be one of {', '.join(BOUNDS)}. Received: {bound!r}")
        if kwargs.pop("attack", None) is not None:
            raise TypeError(
                "`attack` has no place in certified training, which bounds all attacks: give "
                "`validation_attack`."
            )
        self.bound, self.crown = bound, _share("crown", crown)
        super().__init__(
            classifier, None, epsilon=epsilon, validation_attack=validation_attack, threat=threat,
            **kwargs,
        )  # fmt: skip
        _without_crown(bound, self.crown, epsilon)
        self.program = Program(classifier)
        METHODS[bound].check(self.program)

    def terms(self):
        return (*super().terms(), "robust_loss", "verified_accuracy")

    def mixed(self, batch):
        """(loss of the weights, worst loss in the ball) of a batch."""
        raise TypeError(f"{type(self).__name__} must define mixed()")

    def objective(self, batch, turn):
        del turn
        return {"weights": self.mixed(batch)[0]}

    # --- parts for losses ---------------------------------------------------------------------

    def share(self, number):
        """A schedule's value; a number is where 1 - ramp * (1 - number) ends."""
        if isinstance(number, Schedule):
            return tf.clip_by_value(value_at(number, self.step.value), 0.0, 1.0)
        return 1.0 - self.ramp() * (1.0 - number)

    def bounded(self, x, y, epsilon=None, crown=None):
        """(lower bounds of z_y - z_k `(batch, classes)`, {number: `Box`}) of the live classifier.

        Args:
            x, y: Images and labels.
            epsilon: Radius, default that of this iteration.
            crown: Share of CROWN in "crown-ibp", default that of this iteration.
        """
        program, epsilon = self.program, self.radius() if epsilon is None else epsilon
        region = Region.around(self.threat, x, epsilon)
        if self.bound == "symbolic":
            return METHODS["symbolic"].bound(program, region, y)[:2]
        boxes = program.boxes(region, [program.output])
        margins = program.margins_of(boxes, y)
        if self.bound == "crown-ibp":
            crown = self.share(self.crown) if crown is None else crown

            def with_crown():
                better = backward.margins(program, region, y, "adaptive", boxes)
                return crown * better + (1.0 - crown) * margins

            margins = tf.cond(crown > 1e-5, with_crown, lambda: margins)
        return margins, boxes

    def worst_loss(self, batch):
        """(the compiled loss at the worst logits in the ball, share of images verified).

        The worst logits are 0 for the label and minus the lower bound of z_y - z_k for class k:
        the softmax is monotone in them, so the cross-entropy is at least that of any image in the
        ball (Gowal et al., 2018, section 3). With smoothed labels, or another loss, it is that loss
        at these logits, and no bound any more. Sets `batch.boxes`.
        """
        margins, batch.boxes = self.bounded(batch.x, batch.y)
        loss = self.data_loss(batch, worst_logits(margins, batch.y, self.program.outputs))
        return loss, verified(margins, batch.y)

    def told(self, loss, share, count):
        """Reports what `worst_loss` returned for so many images."""
        self.report("robust_loss", self.whole(loss), count)
        self.report("verified_accuracy", share, count)

    def inspect(self, batch):
        region = Region.around(self.threat, batch.x)
        found = METHODS[self.bound](self.program, region, batch.y)
        share = verified(found[:, :-1], batch.y, found[:, -1:])
        self.report("verified_accuracy", share, batch.count)

    def get_config(self):
        config = super().get_config()
        del config["attack"]
        return {
            **config,
            "bound": self.bound,
            "crown": number_config(self.crown),
            "validation_attack": keras.saving.serialize_keras_object(self.validation_attack),
        }


@keras.saving.register_keras_serializable(package="tfrobust")
class CertifiedTraining(Certified):
    """Minimises kappa CE(f(x), y) + (1 - kappa) CE(worst logits in the ball, y) + regularizers.

    `bound="ibp"` is interval bound propagation (Gowal et al., 2018); "crown-ibp" bounds the margins
    by c CROWN-IBP + (1 - c) IBP with c = `crown` (Zhang et al., 2020, whose beta it is). kappa and
    c follow the radius from 1 to their numbers, 1 - (1 - kappa) epsilon_t / epsilon, with the
    largest radius of a `tr.training.Ramp` as epsilon (of another schedule: the threat's); a
    schedule of their own is taken as it is.

    Args:
        classifier, threat, epsilon, validation_attack: see `Certified` in this module; start with
            `tr.training.ibp_initialization` and let epsilon grow (`tr.training.Ramp`), to 1.1 times
            the threat's radius if the bounds are to hold there on new images.
        kappa: Float in [0, 1] or schedule; what is left for clean images.
        bound: "ibp", "crown-ibp" or "symbolic".
        crown: Float in [0, 1] or schedule; of "crown-ibp" only. 0 ends in IBP (the default, best
            for large radii; without a schedule of epsilon nothing but IBP), 1 stays with CROWN.
        regularizers: Also `tr.training.ReLUStability`, `BoxTightness`, `ReLUBalance`.
        weight_decay, share_noise, seed: see `Game`.

    References: Gowal et al. (2018), https://arxiv.org/abs/1810.12715; Zhang et al. (2020),
    https://arxiv.org/abs/1906.06316.

    Example:

    >>> from tfrobust import models, threats
    >>> game = CertifiedTraining(models.digits_net(), threats.Linf(0.1), kappa=0.5)
    >>> game.compile("adam", metrics=["accuracy"])
    """

    def __init__(self, classifier, threat, kappa=0.5, **kwargs):
        self.kappa = _share("kappa", kappa)
        super().__init__(classifier, threat, **kwargs)

    def mixed(self, batch):
        (clean,) = self.passes(batch.x)
        worst, share = self.worst_loss(batch)
        self.told(worst, share, batch.count)
        kappa = self.share(self.kappa)
        loss = kappa * self.data_loss(batch, clean.logits) + (1.0 - kappa) * worst
        loss += self.penalties(batch, clean, clean)
        self.score(batch, clean.logits, clean.logits)
        return loss + self.weight_penalty(), worst

    def get_config(self):
        return {**super().get_config(), "kappa": number_config(self.kappa)}


@keras.saving.register_keras_serializable(package="tfrobust")
class MixTrain(Certified):
    """CE(f(x), y) + weight * CE(worst logits, y) of k random images, the latter by chance only.

    Each step draws u in [0, 1); if u < alpha, k images of the batch are drawn and bounded. The mean
    over them estimates that over the batch, so the loss is on average CE + alpha weight RCE (Wang
    et al., 2018). With k the batch size, no replacement and alpha = 1 nothing is left to chance.

    Args:
        classifier, threat, epsilon, validation_attack: see `CertifiedTraining`.
        k: Integer >= 1, images bounded in a step.
        alpha: Float in [0, 1], how often. The release: 0.8; Sehwag et al.: 0.7 with k = 10.
        weight: Float >= 0 or schedule such as `tr.training.Growth(0.1, 2.5, 5 * steps, begin)`.
        replacement: Bool, one image may be drawn twice in a step, as in the release.
        bound: "crown-ibp" (default, with crown = 1), "ibp", or, for small nets, "symbolic", the
            paper's.
        crown: See `CertifiedTraining`.
        regularizers, weight_decay, share_noise, seed: see `Game`.

    `robust_loss` and `verified_accuracy` are means over the bounded images, 0 where none was.

    Reference: Wang et al., MixTrain: scalable training of verifiably robust neural networks (2018),
    https://arxiv.org/abs/1811.02625.

    Example:

    >>> from tfrobust import models, threats
    >>> game = MixTrain(models.digits_net(), threats.Linf(0.1), k=5, alpha=0.8)
    >>> game.compile("adam", metrics=["accuracy"])
    """

    def __init__(
        self, classifier, threat, k=10, alpha=0.8, weight=1.0, replacement=True,
        bound="crown-ibp", crown=1.0, **kwargs,
    ):  # fmt: skip
        self.k, self.alpha = contract.whole("k", k, 1), _share("alpha", alpha)
        self.weight, self.replacement = check_number("weight", weight), bool(replacement)
        super().__init__(classifier, threat, bound=bound, crown=crown, **kwargs)

    def mixed(self, batch):
        (clean,) = self.passes(batch.x)
        chance = noise.uniform(noise.keys(self.draw(), "mixtrain", [0]), ())[0]
        drawn = chance < value_at(self.alpha, self.step.value)
        few = self.some(batch)
        worst, share = tf.cond(
            drawn, lambda: self.worst_loss(few), lambda: (tf.zeros([]), tf.zeros([]))
        )
        self.told(worst, share, tf.cast(few.count, tf.float32) * tf.cast(drawn, tf.float32))
        worst = value_at(self.weight, self.step.value) * worst
        loss = self.data_loss(batch, clean.logits) + worst + self.penalties(batch, clean, clean)
        self.score(batch, clean.logits, clean.logits)
        return loss + self.weight_penalty(), worst

    def some(self, batch):
        """The `Batch` of k images drawn from a batch (all of a smaller one, if not replaced)."""
        rows = tf.shape(batch.x)[0]
        key = self.draw()
        if self.replacement:
            values = noise.uniform(noise.keys(key, "mixtrain images", tf.range(self.k)), ())
            chosen = tf.minimum(tf.cast(values * tf.cast(rows, tf.float32), tf.int32), rows - 1)
        else:
            values = noise.uniform(noise.keys(key, "mixtrain images", tf.range(rows)), ())
            chosen = tf.argsort(values)[: self.k]
        x, y, weight = (
            None if part is None else tf.gather(part, chosen)
            for part in (batch.x, batch.y, batch.sample_weight)
        )
        return dataclasses.replace(
            batch, x=x, x_adv=x, y=y, sample_weight=weight, count=tf.shape(x)[0]
        )

    def get_config(self):
        return {
            **super().get_config(),
            "k": self.k,
            "alpha": number_config(self.alpha),
            "weight": number_config(self.weight),
            "replacement": self.replacement,
        }


@keras.saving.register_keras_serializable(package="tfrobust")
class CertifiedANP(MaskGroup, CertifiedTraining):
    """ANP's masks in certified training: they learn on the worst loss in the ball, plus their KL.

    masks:    CE(worst logits, y) + beta / N * KL(masks)
    weights:  as in `CertifiedTraining`

    Bounds are those of the expected masks, which is what is shrunk and certified afterwards.

    Args:
        classifier: Functional classifier with at least one `tr.layers.Mask`.
        threat: `tr.threats.Threat`.
        train_size, kl_weights: see `ANP`.
        beta: Float >= 0 or schedule, weight of the KL term.
        kappa, bound, crown, epsilon, validation_attack: see `CertifiedTraining`.

    Example:

    >>> from tfrobust import layers, models, threats
    >>> net = models.digits_net(mask=layers.BetaBernoulliMask)
    >>> game = CertifiedANP(net, threats.Linf(0.1), train_size=1000)
    >>> game.compile(metrics=["accuracy"])
    """

    def __init__(self, classifier, threat, beta=4.0, train_size=None, kl_weights=None, **kwargs):
        self._before(beta, train_size)
        super().__init__(classifier, threat, **kwargs)
        self._after(kl_weights)


def worst_logits(margins, y, outputs):
    """Logits that are worst for label y: 0 there and -margin elsewhere; one logit if one is used.

    Args:
        margins: `(batch, classes)`, lower bounds of z_y - z_k.
        y: Labels, integers or one-hot rows.
        outputs: Logits of the classifier, 1 for a binary one.

    >>> margins = tf.constant([[0.0, 2.0], [-1.0, 0.0]])
    >>> worst_logits(margins, tf.constant([0, 1]), 1).numpy().tolist()
    [[-2.0], [-1.0]]
    """
    if outputs > 1:
        return -margins
    one = losses.as_labels(y, 2)[:, None] == 1
    return tf.where(one, margins[:, :1], -margins[:, 1:])


def verified(margins, y, least=0.0):
    """Share of images whose margins are all above `least`."""
    classes = margins.shape[-1]
    own = tf.one_hot(losses.as_labels(y, classes), classes) == 1
    # A margin that is NaN is above nothing; a minimum may lose it (XLA).
    return tf.reduce_mean(tf.cast(tf.reduce_all(own | (margins > least), -1), tf.float32))


def _share(name, value):
    number = check_number(name, value)
    if not isinstance(number, Schedule) and number > 1:
        raise ValueError(f"`{name}` must be in [0, 1] or a Keras schedule. Received: {number}")
    return number


def _without_crown(bound, crown, epsilon):
    """Warns of a "crown-ibp" that is all IBP from the first step."""
    if bound == "crown-ibp" and crown == 0.0 and not isinstance(epsilon, Schedule):
        warnings.warn(
            "`crown` is 0 from the first step, for `epsilon` is no schedule: 'crown-ibp' then "
            "trains as 'ibp' does. Give `crown` or a tr.training.Ramp as `epsilon`.",
            stacklevel=4,
        )
