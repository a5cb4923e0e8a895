"""Recipes of certified training and of pruning what it made; the page that their cards make."""

import argparse

import keras
import numpy as np
import pytest

import tfrobust as tr
from recipes import certified_training, results_verified, verifiable_pruning
from tests.test_recipes import folder, run  # noqa: F401


def flags(**changes):
    told = {"data": "mnist", "epsilon": 0.1, "grow": 1.5, "epochs": 12, "seed": 0, "kappa": 0.5}
    told |= {"method": "mixtrain", "k": 10, "alpha": 0.8, "bound": "ibp", "crown": 0.0}
    return argparse.Namespace(**{**told, **changes})


def test_page_without_cards_is_only_its_head(tmp_path):
    (tmp_path / "saved_models").mkdir()
    assert "No run has been judged yet" in results_verified.page(tmp_path)
    assert results_verified.plots(tmp_path) == {}


def test_mixtrains_weight_grows_once_the_radius_is_full():
    weight = certified_training.weights(flags(), 10)
    seen = [round(float(weight(10 * epoch)), 4) for epoch in (0, 6, 7, 8, 12)]
    assert seen == [0.1, 0.1, 0.25, 0.625, round(0.1 * 2.5**6, 4)]


def test_fine_tuning_plays_the_game_of_the_start_at_its_full_radius(tmp_path):
    net = tr.models.digits_net()
    settings = {**vars(flags()), "seconds": [1.0, 1.0], "n": 10}
    entry = tr.report.Entry(settings=settings)
    tr.report.card("start", {"mixtrain": entry}).save(tmp_path)
    args = argparse.Namespace(start=str(tmp_path), data="mnist", k=None)
    scene = verifiable_pruning.scene_of(args)
    game = scene.verify(net, 7)
    assert type(game) is tr.training.MixTrain and (game.k, game.seed) == (10, 7)
    assert game.epsilon == pytest.approx(0.15) and game.threat == tr.threats.Linf(0.1)
    assert game.weight == pytest.approx(0.1 * 2.5**6)
    args.k = 1
    assert verifiable_pruning.scene_of(args).verify(net, 0).k == 1
    tr.report.card("start", {"at": tr.report.Entry(settings={"seconds": [1, 1]})}).save(tmp_path)
    with pytest.raises(SystemExit, match="must be a net of recipes.certified_training"):
        verifiable_pruning.scene_of(args)


def test_worst_loss_is_that_of_the_training():
    net, rng = tr.models.digits_net(), np.random.default_rng(0)
    x, y = rng.uniform(0, 1, (6, 8, 8, 1)).astype("float32"), np.arange(6)
    threat = tr.threats.Linf(0.05)
    game = tr.training.CertifiedTraining(net, threat)
    margins, _ = game.bounded(keras.ops.convert_to_tensor(x), y)
    found = verifiable_pruning.worst_loss(game)(net, x, y)
    np.testing.assert_allclose(found, tr.losses.cross_entropy(-margins, y), rtol=1e-5)


@pytest.mark.slow
def test_the_whole_way(folder, tmp_path):  # noqa: F811
    """Trained, pruned with every fine-tuning, resumed; the page shows it all."""
    shared = ("--data-dir", folder, "--work", tmp_path)
    run("certified_training", *shared)
    run("certified_training", *shared, "--method", "mixtrain", "--k", 2)
    start = tmp_path / "smoke" / "mnist_certified_0.1_cnn_small_ibp"
    for kind in ("weights", "filters"):
        run("verifiable_pruning", *shared, "--start", start, "--structured", kind, "--ratios", 0.9)
    again = run("verifiable_pruning", *shared, "--start", start, "--ratios", 0.9, "--resume")
    assert "Epoch" not in again
    other = tmp_path / "smoke" / "mnist_certified_0.1_cnn_small_mixtrain2"
    run("verifiable_pruning", *shared, "--start", other, "--finetune", "verif", "--k", 1,
        "--ratios", 0.9)  # fmt: skip
    (tmp_path / "saved_models").symlink_to(tmp_path / "smoke")
    page = results_verified.page(tmp_path)
    for words in ("| pruned | None | Nat | Adv | Verif |", "MixTrain, k = 2", "Verif, k = 1",
                  "### Whole filters", "unlearned"):  # fmt: skip
        assert words in page
    assert len(results_verified.plots(tmp_path)) == 2
