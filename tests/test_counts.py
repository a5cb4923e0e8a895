"""Queries and gradients of a result are the passes that a watching model counts itself."""

import numpy as np
import pytest
import tensorflow as tf

from tests import bank
from tfrobust import attacks, threats

LINF, L2 = threats.Linf(0.01), threats.L2(0.05)
ATTACKS = {  # (queries, gradients) of each image; iterates are judged where gradients are taken
    attacks.FGSM(LINF): (1, 1),
    attacks.FGSM(LINF, random_start=True): (1, 1),
    attacks.RFGSM(LINF): (1, 1),
    attacks.BIM(LINF, steps=4): (5, 4),
    attacks.MIM(L2, steps=4): (5, 4),
    attacks.PGD(LINF, steps=4): (5, 4),
    attacks.PGD(LINF, steps=4, last_iterate=True): (4, 4),
    attacks.PGD(LINF, steps=23, restarts=2): (48, 46),
    attacks.PGD(LINF, steps=3, eot=4): (16, 12),
    attacks.APGD(LINF, steps=10): (11, 11),
    attacks.APGD(L2, steps=10, loss="dlr"): (11, 11),
    attacks.APGD(LINF, steps=10, loss="dlr_targeted", targets=2): (24, 22),
}


class Counting:
    """A callable classifier that counts the rows that go forward and backward."""

    def __init__(self, net):
        self.net = net
        self.forward = tf.Variable(0, dtype=tf.int64)
        self.backward = tf.Variable(0, dtype=tf.int64)

    def __call__(self, x):
        rows = tf.shape(x, out_type=tf.int64)[0]

        @tf.custom_gradient
        def count(logits):
            def backward(gradient):
                self.backward.assign_add(rows)
                return gradient

            return tf.identity(logits), backward

        self.forward.assign_add(rows)
        return count(self.net(x))

    @property
    def counted(self):
        return self.forward.numpy(), self.backward.numpy()


@pytest.fixture(scope="module")
def surely():
    """A model that is right about 16 images by so much that nothing here fools it."""
    net = bank.classifier()
    bonus = tf.constant([10.0, 0.0, 0.0, 0.0])
    model = Counting(lambda images: net(images, training=False) + bonus)
    return model, bank.images(16), np.zeros(16, int)


@pytest.mark.parametrize("attack", ATTACKS, ids=bank.attack_id)
def test_passes_are_counted(attack, surely):
    model, x, y = surely
    index, spent, before = np.arange(16), np.zeros((3, 16), int), model.counted
    for run in range(attack.runs):
        x_adv, counts = attack.attempt(
            model, x, y, index, attack.threat.epsilon, run, None, attack.eot == 1
        )
        spent += counts
    forward, backward = (now - then for then, now in zip(before, model.counted, strict=True))
    assert not attacks.verdicts(model.net, x_adv, y).any()
    assert (spent == spent[:, :1]).all()  # the same for every image, since none was done early
    assert (spent[0].sum(), spent[1].sum()) == (forward, backward)
    assert tuple(spent[:, 0]) == (*ATTACKS[attack], attack.iterations * attack.runs)


def test_a_row_that_is_done_costs_nothing_more(surely):
    model, x, y = surely
    y = np.where(np.arange(16) < 5, 1, 0)  # the first five are wrong from the start
    found = attacks.PGD(LINF, steps=4, random_start=False).result(model, x, y)
    np.testing.assert_array_equal(found.fooled, np.arange(16) < 5)
    assert (found.iterations[:5] == 1).all() and (found.gradients[:5] == 1).all()
    assert (found.iterations[5:] == 4).all() and (found.gradients[5:] == 4).all()
