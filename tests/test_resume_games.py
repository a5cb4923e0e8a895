"""Every game, killed at a random moment and started again: the steps that follow are the same bits.

Others are killed beside what is theirs: TRADES in test_trades.py, ADMM in test_admm.py, AT BNN in
test_bayes.py, surgery and scores in test_shadows.py, AFD in test_afd_fit.py, graphs and whole
processes in test_resume.py. Pretrained AT is AT of a net that starts with other weights.
"""

import random

import pytest

import tfrobust as tr
from tests.bank_resume import resumed_equals_unbroken, state
from tests.test_trades import linear
from tests.test_training_options import THREAT, assert_close
from tests.test_training_state import GAMES, anp_net, fit, made

BBD, VIB = tr.layers.BetaBernoulliMask, tr.layers.VIBMask
PGD = tr.attacks.PGD(THREAT, steps=2)  # from a random start
SAVES = 2  # batches between two files


def at(*args, attack=PGD, weight=0.0, **kwargs):
    terms = [tr.regularizers.VulnerabilitySuppression(weight)] if weight else []
    return tr.training.AdversarialTraining(*args, attack, regularizers=terms, **kwargs)


def anp(kind, weight=0.0):
    terms = [tr.regularizers.VulnerabilitySuppression(weight)] if weight else []
    return tr.training.ANP(anp_net(kind), PGD, train_size=12, regularizers=terms)


EVERY = {
    **GAMES,
    "AT": lambda: at(linear(), weight_decay=1e-4),
    "AT, mixed": lambda: at(linear(), mix=(1, 2)),
    "AT-VS": lambda: at(anp_net(), mix=(1, 2), weight=2.0),
    "ANP": lambda: anp(BBD),
    "ANP-VS": lambda: anp(BBD, weight=2.0),
    "ANP-VS, VIB": lambda: anp(VIB, weight=2.0),
    "BP, BBD": lambda: tr.training.BP(anp_net(BBD), train_size=12),
    "Fast AT": lambda: at(linear(), attack=tr.training.fast_attack(THREAT)),
}
QUICK = ("AT, mixed",)


@pytest.mark.parametrize(
    "name", [n if n in QUICK else pytest.param(n, marks=pytest.mark.slow) for n in EVERY]
)
def test_resumed_equals_unbroken(tmp_path, name):
    """Killed at one of the first eight batches of twelve, with the averages of all groups kept."""
    games = []

    def train(seed, *callbacks):
        games.append(made(name, seed, EVERY))
        fit(games[-1], *callbacks, epochs=4)  # of three batches
        return state(games[-1])

    kill = random.Random(name).randint(SAVES, 7)
    resumed_equals_unbroken(train, tmp_path, kill, save_freq=SAVES)
    for optimizer in games[-1].optimizers.values():  # replaced at the end of `fit`
        assert_close(
            [v.numpy() for v in optimizer._trainable_variables],
            [v.numpy() for v in optimizer._model_variables_moving_average],
        )
