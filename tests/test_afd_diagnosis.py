"""What a watch for collapse says of a window of figures, and where it belongs."""

import warnings

import numpy as np
import pytest

import tfrobust as tr
from tests import bank_afd as bank
from tests.test_afd_fit import SGD, fit


def healthy(step):
    told = dict.fromkeys(tr.training.collapse.WATCHED, 1.0)
    told |= {"discriminator_accuracy": 0.8, "clean_accuracy": 0.9, "weights": str(step)}
    told["same_answer"] = 0.1
    return {**told, "score_clean": 1 + 0.1 * step, "encoder_loss": 1 + 0.1 * step}


FAULTS = {
    "not finite": {"encoder_loss": np.nan},
    "encoder": {"feature_variance": 0.0, "discriminator_accuracy": 0.5},
    "dead": {"score_clean": 0.3, "score_adversarial": 0.3},
    "won": {"discriminator_accuracy": 0.995},
    "saturated": {"score_clean": 40.0, "score_adversarial": 30.0},
    "accuracy": {"clean_accuracy": 0.6},
}


@pytest.mark.parametrize("cause", FAULTS)
def test_diagnosis_of_each_cause(cause):
    from tfrobust.training.collapse import ROWS, diagnosis

    rows = [healthy(n) for n in range(ROWS)]
    assert diagnosis(rows, 0.9) is None
    wrong = [{**row, **FAULTS[cause]} for row in rows]
    if cause == "saturated":
        wrong = [{**row, "score_clean": 40.0 + n} for n, row in enumerate(wrong)]
    assert diagnosis(wrong, 0.9) == cause
    early = diagnosis([*rows[:1], *wrong[1:]], 0.9)  # the onset may lie in the first row
    assert early == (cause if cause == "not finite" else None)
    falling = [{**row, "encoder_loss": 3 - 0.1 * n} for n, row in enumerate(wrong)]
    assert cause != "won" or diagnosis(falling, 0.9) is None
    frozen = [{**row, "weights": "same"} for row in rows]
    assert diagnosis(frozen, 0.9) == "dead"
    constant = [{**row, "same_answer": 1.0} for row in rows]  # of features that differ
    assert diagnosis(constant, 0.9) == "encoder"
    assert diagnosis([*constant[1:], rows[0]], 0.9) is None


def test_a_saturated_winner_is_saturated():
    """d = 40 and d' = -40, where nothing moves any more: its cure is another than the winner's."""
    from tfrobust.training.collapse import ROWS, diagnosis

    scores = {"score_clean": 40.0, "score_adversarial": -40.0, "discriminator_accuracy": 1.0}
    rows = [{**healthy(n), **scores, "weights": "same"} for n in range(ROWS)]
    assert diagnosis(rows, 0.9) == "saturated"
    assert diagnosis(rows, 0.9, "wasserstein") == "dead"
    moving = [{**row, "weights": str(n), "score_clean": 40.0 + n} for n, row in enumerate(rows)]
    assert diagnosis(moving, 0.9) == "saturated"
    assert diagnosis(moving, 0.9, "wasserstein") == "won"


def test_watch_is_for_afd():
    game = tr.training.AdversarialTraining(bank.net(), bank.ATTACK)
    game.compile(SGD(0.1), run_eagerly=True)
    with pytest.raises(TypeError, match="CollapseWatch in `fit` of tr.training.AFD only"):
        game.fit(*bank.data(), verbose=0, callbacks=[tr.training.CollapseWatch()])
    with pytest.raises(ValueError, match="`action` must be one of"):
        tr.training.CollapseWatch(action="panic")
    with pytest.raises(ValueError, match="`window` must be an integer >= 10"):
        tr.training.CollapseWatch(window=3)
    game = bank.game()
    game.steps_per_execution = 3
    with pytest.raises(ValueError, match="`window` must be at least 10 x steps_per_execution"):
        game.fit(*bank.data(), verbose=0, callbacks=[tr.training.CollapseWatch(window=29)])
    with (
        pytest.raises(ValueError, match="`monitor` must be among the logs"),
        warnings.catch_warnings(),
    ):
        fit(bank.game(), callbacks=[tr.training.CollapseWatch(action="restore")])
