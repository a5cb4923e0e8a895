"""Adversarial training at the price of standard training: one step of attack, or none of its own.

game = tr.training.AdversarialTraining(net, tr.training.fast_attack(threat))        # Fast AT
game = tr.training.FreeAT(net, threat, replays=8, batch_size=128)                   # Free AT
"""

import keras
import tensorflow as tf

from tfrobust.attacks import PGD
from tfrobust.contract import is_number, whole
from tfrobust.layers.transform import assign
from tfrobust.threats import Threat
from tfrobust.training import checks
from tfrobust.training.adversarial import AdversarialTraining
from tfrobust.training.game import Batch


def fast_attack(threat, step_size=None):
    """FGSM-RS, the inner attack of Fast AT (Wong et al., 2020): one step from a random point.

    A net can learn to be safe from this step alone, and robust accuracy then falls to 0 within an
    epoch ("catastrophic overfitting"): watch `val_robust_accuracy` under a `validation_attack`
    of many steps, and add `tr.training.GradAlign` where it happens.

    Args:
        threat: `tr.threats.Threat`.
        step_size: Float > 0 in pixel units; default 1.25 epsilon.

    >>> from tfrobust.threats import Linf
    >>> fast_attack(Linf(0.08)).step_size
    0.1
    """
    if not isinstance(threat, Threat):
        raise TypeError(f"`threat` must be a tr.threats.Threat. Received: threat={threat!r}")
    if step_size is None:
        step_size = 1.25 * threat.epsilon or None
    return PGD(threat, steps=1, step_size=step_size, random_start=True, last_iterate=True)


@keras.saving.register_keras_serializable(package="tfrobust")
class FreeAT(AdversarialTraining):
    """Free adversarial training (Shafahi et al., 2019): one backward pass, two gradients.

    Each batch is played `replays` times. A pass at x + delta, in training mode, gives the gradient
    that moves the weights and the one by the image that moves delta, delta <- P(delta +
    step_size * ascent(gradient)), at once. delta is carried over to the next replay and the next
    batch (row by row, it belongs to no image), so there is no attack to pay for: an epoch costs as
    much as `replays` epochs of standard training, and is as many in steps of the optimizers.
    Train for 1 / replays of the epochs; schedules count the steps of the optimizer.

    Args:
        classifier: Functional classifier.
        attack: `tr.threats.Threat`, or an attack: its threat is trained against, and it is played
            for validation only (default PGD-10).
        replays: Integer >= 1, the paper's m; 8 for CIFAR-10.
        batch_size: Integer, rows of delta: the largest batch of `fit`, over all replicas. A smaller
            last batch takes the first rows.
        step_size: Float > 0 in pixel units at the threat's epsilon; default epsilon.
        mix, regularizers, epsilon, weight_decay, validation_attack, seed, weight_attack: see
            `AdversarialTraining` and `Game`.

    `fit` reports the mean over all replays. delta is part of the state: `.keras` files of the game
    and `tr.training.Resume` keep it.

    Reference: Shafahi et al., Adversarial training for free! (2019),
    https://arxiv.org/abs/1904.12843, Algorithm 1.

    Example:

    >>> from tfrobust import models, threats
    >>> game = FreeAT(models.digits_net(), threats.Linf(0.1), replays=4, batch_size=32)
    >>> game.compile("adam", metrics=["accuracy"])
    """

    def __init__(self, classifier, attack, replays=8, batch_size=128, step_size=None, **kwargs):
        replays, batch_size = whole("replays", replays, 1), whole("batch_size", batch_size, 1)
        if step_size is not None and not (is_number(step_size) and step_size > 0):
            raise ValueError(f"`step_size` must be a number > 0. Received: step_size={step_size!r}")
        if isinstance(attack, Threat):
            attack = PGD(attack, steps=10)
        if attack is None:
            raise TypeError("`attack` must be a tr.threats.Threat or an attack. Received: None")
        super().__init__(classifier, attack, **kwargs)
        self.replays, self.batch_size = replays, batch_size
        self.step_size = None if step_size is None else float(step_size)
        self.carried = self.add_weight(
            name="carried", shape=(self.batch_size, *classifier.input_shape[1:]), dtype="float32",
            initializer="zeros", trainable=False, aggregation="only_first_replica",
        )  # fmt: skip

    def train_step(self, data):
        x, y, sample_weight = self.unpacked(data)
        threat, count = self.attack.threat, tf.shape(x)[0]
        size, start = self._section()
        with tf.control_dependencies([checks.rows(count, size)]):
            own = tf.identity(self.carried.value[start : start + size])
        delta = own[:count]
        for _ in range(self.replays):
            epsilon = threat.radius(self.radius())
            x_adv = threat.project(x + delta, x, epsilon)
            (gradient,) = self.play(Batch(x, y, sample_weight, x_adv, count), [x_adv])
            delta = self._moved(delta, gradient, epsilon)
        self._carry(tf.concat([delta, own[count:]], 0), size, start)
        return self.get_metrics_result()

    def _moved(self, delta, gradient, epsilon):
        """delta after a step, in the ball, but not in the box of an image it does not belong to."""
        threat = self.attack.threat
        share = 1.0
        if self.step_size is not None and threat.epsilon:
            share = self.step_size / threat.epsilon
        grey = tf.fill(tf.shape(delta), 0.5)  # half a unit away from the box on all sides
        moved = grey + delta + share * epsilon * threat.ascent(gradient, grey)
        return tf.stop_gradient(threat.project(moved, grey, epsilon) - grey)

    def _section(self):
        """(rows of delta on this replica, its first row)."""
        context = tf.distribute.get_replica_context()
        replicas = 1 if context is None else context.num_replicas_in_sync
        if self.batch_size % replicas:
            raise ValueError(
                f"`batch_size` must be a multiple of the {replicas} replicas. "
                f"Received: batch_size={self.batch_size}"
            )
        size = self.batch_size // replicas
        return size, 0 if replicas == 1 else size * context.replica_id_in_sync_group

    def _carry(self, own, size, start):
        if size == self.batch_size:
            self.carried.assign(own)
            return
        rows = tf.range(size) + start
        whole_ = tf.scatter_nd(rows[:, None], own, self.carried.shape)
        context = tf.distribute.get_replica_context()
        assign(self.carried, context.all_reduce(tf.distribute.ReduceOp.SUM, whole_))

    def get_config(self):
        return {
            **super().get_config(),
            "replays": self.replays,
            "batch_size": self.batch_size,
            "step_size": self.step_size,
        }
