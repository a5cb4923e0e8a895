"""The rows of the AFD recipes: what each is trained by, and which cards may stand in one table."""

import argparse

import numpy as np
import pytest

import tfrobust as tr
from recipes import afd_stages, afd_table2_auc, mnist, results_afd_features


def flags(tmp_path, **changes):
    """The flags of table 1 at their defaults, but for the changes."""
    told = {**afd_stages.DEFAULTS, "net": "resnet18", "width": 0.5, "seeds": [0], "pilot": False}
    told |= {"smoke": False, "resume": False, "work": tmp_path, "out": tmp_path}
    told |= {"train_only": False, "methods": ["nt"], "data_dir": None}
    return argparse.Namespace(**{**told, **changes})


def card(args, method="nt", seed=0, digest="none"):
    """A card without figures, as `ship` writes it."""
    folder = args.out / afd_stages.name_of(method, seed, args.net)
    told = {**afd_stages.flags_of(method, seed, args), "n": args.n, "digest": digest}
    entry = {afd_stages.METHODS[method].title: tr.report.Entry(settings=told)}
    command = afd_stages.command(method, seed, args)
    tr.report.card(folder.name, entry, command=command).save(folder)
    return folder


def test_a_command_has_the_flags_that_its_method_uses(tmp_path):
    args = flags(tmp_path, weight=2.0, match=3.0, steps=5, epochs=4, n=500)
    start = "python -m recipes.afd_table1 --methods "
    assert afd_stages.command("nt", 0, args) == start + "nt --seeds 0 --epochs 4 --n 500"
    assert afd_stages.command("at", 1, args) == start + "at --seeds 1 --epochs 4 --steps 5 --n 500"
    assert afd_stages.command("match", 0, args).endswith("--epochs 4 --steps 5 --match 3.0 --n 500")
    assert afd_stages.command("afd_fc3", 0, args).endswith("--steps 5 --weight 2.0 --n 500")
    lenet = flags(tmp_path, net="lenet5", width=1.0)
    assert afd_stages.command("nt", 0, lenet) == start + "nt --seeds 0 --net lenet5"


def test_a_card_of_other_flags_is_refused_before_anything_is_trained(tmp_path, monkeypatch):
    data = argparse.Namespace(x_test=range(10_000))
    monkeypatch.setattr(afd_stages.mnist, "mnist", lambda args: data)
    folder = card(flags(tmp_path, epochs=5))
    assert afd_stages.run(flags(tmp_path, epochs=5, weight=9.0)) == [folder.name]
    for other in ({"rate": 0.2}, {"epochs": 10}, {"n": 10}, {"width": 1.0}):
        with pytest.raises(SystemExit, match="must be that of the other|cards of these flags"):
            afd_stages.run(flags(tmp_path, **{"epochs": 5, **other}))
    with pytest.raises(SystemExit, match="`--epochs` must be that of the other cards"):
        afd_stages.run(flags(tmp_path, methods=["afd"]))
    with pytest.raises(SystemExit, match="`--n` must be at most 10000"):
        afd_stages.run(flags(tmp_path, n=20_000))
    card(flags(tmp_path, epochs=5, steps=3), "at")
    with pytest.raises(SystemExit, match="`--steps` must be that of the other cards"):
        afd_stages.run(flags(tmp_path, epochs=5, methods=["afd"]))


def test_the_substitute_does_not_depend_on_how_afd_was_tuned(tmp_path):
    one = afd_stages.flags_of("nt", 100, flags(tmp_path))
    tuned = flags(tmp_path, weight=2.0, rate_encoder=0.1, rate_discriminator=1, match=9, steps=40)
    assert afd_stages.flags_of("nt", 100, tuned) == one
    assert afd_stages.flags_of("afd", 0, tuned) != afd_stages.flags_of("afd", 0, flags(tmp_path))
    assert afd_stages.flags_of("nt", 100, flags(tmp_path, rate=1.0)) != one


def test_pilots_have_folders_of_their_own(tmp_path):
    args = flags(tmp_path, pilot=True, weight=0.5, epochs=3)
    assert (
        afd_stages.work_of("afd", 1, args) == tmp_path / "pilot/mnist_rn18_afd_s1_epochs3_weight0.5"
    )
    assert afd_stages.work_of("nt", 0, flags(tmp_path)) == tmp_path / "mnist_rn18_nt"


KINDS = {"nt": "AdversarialTraining", "at": "AdversarialTraining", "match": "AdversarialTraining",
         "trades": "TRADES"}  # fmt: skip


@pytest.mark.parametrize("method", afd_stages.METHODS)
def test_the_game_of_each_method(tmp_path, method):
    args = flags(tmp_path, net="lenet5", width=0.125, seed=0, rate_encoder=0.3, weight=2.0)
    net = afd_stages.build(method, args)
    game = afd_stages.player(method, net, args, 100)
    kind, options = afd_stages.METHODS[method].kind, afd_stages.METHODS[method].options
    assert type(game).__name__ == KINDS.get(kind, "AFD") and game.weight_decay == 1e-4
    assert (game.attack is None) == (kind == "nt")
    if kind == "trades":
        wanted = tr.training.trades_attack(tr.threats.Linf(0.3), 7, 0.075)
        assert game.attack.get_config() == wanted.get_config()
    elif kind != "nt":
        assert (game.attack.steps, game.attack.step_size) == (7, 0.075)
    peaks = {group: o.learning_rate for group, o in game.optimizers.items()}
    if kind != "afd":
        assert set(peaks) == {"weights"}
        return
    assert game.encoder_decay == game.discriminator_decay == 1e-4 and game.weight == 2.0
    found = {
        group: o._learning_rate.get_config()["warmup_target"]
        for group, o in game.optimizers.items()
    }
    assert found == {"weights": 0.1, "discriminator": 0.1, "encoder": 0.3}
    assert game.divergence == options.get("divergence", "bce")
    names = [layer.name for layer in game.discriminator.layers]
    wanted = options.get("discriminator", {})
    assert sum(name.startswith("hidden") for name in names) == wanted.get("n_hidden", 2)
    assert ("rows" in names) == wanted.get("projection", True)


def test_games_of_the_resnet(tmp_path):
    args = flags(tmp_path, width=0.0625, seed=0)
    game = afd_stages.player("match", afd_stages.build("match", args), args, 100)
    assert "pool" in game.regularizers[0].get_config().values()
    net = afd_stages.build("afd", args)
    assert net.layers[-2].name == "features"
    assert net.layers[-2].output.shape == (None, 4)


def test_measurements_of_another_net_are_left_out(tmp_path):
    args = flags(tmp_path, out=tmp_path / "saved_models")
    folder = card(args, "afd", digest="new")
    curve = {"auc": 0.5, "n": 8}
    told = {"FGSM": {**curve, "net": "new"}, "MIM": {**curve, "net": "old"}}
    afd_table2_auc.keep(folder / "curves.json", told)
    assert (
        "| not run | not run | not run | 0.500 | not run |"
        in results_afd_features.areas(tmp_path / "saved_models")[-2]
    )
    size = {"units": 3, "features": 4, "dimensions": 2, "lone": 1}
    shift = {"median": 0.1, "deviation": 0.2}
    values = {"n": 8, "layer": "pool", "dimensions": size, "sensitivity": {"0.3": shift}}
    for net, rows in (("old", 0), ("new", 4)):  # two of them the head, one the paper's
        afd_table2_auc.keep(folder / "features.json", {**values, "net": net})
        assert len(results_afd_features.representations(tmp_path / "saved_models")) == rows


# Training ----------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_killed_training_goes_on(tmp_path, monkeypatch):
    """Killed after its first epoch: weights, trace and epochs of an unbroken run; then kept."""
    rng = np.random.default_rng(0)
    x, y = rng.uniform(0, 1, (256, 28, 28, 1)).astype("float32"), np.arange(256) % 10
    data = tr.data.Dataset(x, y, x[:8], y[:8], 10)

    def args(name, **changes):
        small = {"net": "lenet5", "width": 0.125, "steps": 1, "epochs": 2}
        return flags(tmp_path, **{**small, "work": tmp_path / name, "resume": True, **changes})

    whole, told = afd_stages.trained("afd", 0, data, args("whole"))
    end = mnist.Clock.on_epoch_end

    def kill(clock, epoch, logs=None):
        if epoch == 1:
            raise KeyboardInterrupt
        end(clock, epoch, logs)

    monkeypatch.setattr(mnist.Clock, "on_epoch_end", kill)
    with pytest.raises(KeyboardInterrupt):
        afd_stages.trained("afd", 0, data, args("killed"))
    monkeypatch.setattr(mnist.Clock, "on_epoch_end", end)
    with pytest.raises(SystemExit, match="`--resume` goes on with the flags of"):
        afd_stages.trained("afd", 0, data, args("killed", weight=3.0))
    resumed, again = afd_stages.trained("afd", 0, data, args("killed", match=9.0))
    assert again["epochs"] == told["epochs"] == 2 and again["trace"] == told["trace"]
    for one, two in zip(whole.get_weights(), resumed.get_weights(), strict=True):
        np.testing.assert_array_equal(one, two)
    kept, same = afd_stages.trained("afd", 0, data, args("killed", resume=False))
    assert same == again and tr.contract.digest(*kept.get_weights()) == tr.contract.digest(
        *resumed.get_weights()
    )
