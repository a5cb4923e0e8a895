"""A broken evaluation goes on where it was, and only there."""

import os
import signal
import subprocess
import sys
import textwrap

import keras
import pytest

from tests.bank_evaluate import Recorder, flipper, run
from tfrobust import attacks, threats

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))


def test_a_broken_evaluation_goes_on_to_identical_figures(tmp_path):
    net, x, y = flipper()

    def attack(fail_at=None):
        return Recorder(net, lambda i, r: (i * 7) % 5 == r, runs=2, fail_at=fail_at)

    path = tmp_path / "run.state"
    whole = run(net, (x, y), [attack()], batch_size=8, eps_grid=[0.5, 1.0])
    with pytest.raises(KeyboardInterrupt):
        run(net, (x, y), [attack(fail_at=15)], batch_size=8, eps_grid=[0.5, 1.0], state=path)
    again = attack()
    scores = run(net, (x, y), [again], batch_size=8, eps_grid=[0.5, 1.0], state=path)
    assert min(i for _, index, _ in again.calls for i in index) >= 8
    assert scores.to_dict() | {"seconds": 0} == whole.to_dict() | {"seconds": 0}
    done = attack()
    assert run(net, (x, y), [done], batch_size=8, eps_grid=[0.5, 1.0], state=path).n == 40
    assert done.calls == []
    assert [f.name for f in tmp_path.iterdir()] == ["run.state"]


def test_state_of_another_evaluation_is_refused(tmp_path):
    net, x, y = flipper()
    path = tmp_path / "run.state"
    attack = attacks.PGD(threats.Linf(0.1), steps=2)
    run(net, (x, y), [attack], state=path)
    longer = attacks.PGD(threats.Linf(0.1), steps=3)
    other = keras.models.clone_model(net)
    calls = [
        ("attacks", lambda: run(net, (x, y), [longer], state=path)),
        ("model", lambda: run(other, (x, y), [attack], state=path)),
        ("data", lambda: run(net, (x[::-1], y[::-1]), [attack], state=path)),
        ("curve", lambda: run(net, (x, y), [attack], state=path, eps_grid=[0.2])),
        ("options", lambda: run(net, (x, y), [attack], state=path, max_examples=20)),
    ]
    for what, call in calls:
        with pytest.raises(ValueError, match=f"the {what} differ"):
            call()
    twin = keras.models.clone_model(net)
    twin.set_weights(net.get_weights())
    assert run(twin, (x, y), [attack], state=path).n == 40
    path.write_bytes(b"PK\x03\x04 not a state")
    with pytest.raises(ValueError, match="earlier evaluation"):
        run(net, (x, y), [attack], state=path)
    with pytest.raises(OSError, match="`state` must be a file in a folder that can be written"):
        run(net, (x, y), [attack], state=path / "run.state")


@pytest.mark.slow
def test_kill_9_and_resume(tmp_path):
    script = textwrap.dedent(
        """
        import sys, json, os, signal
        from tests import bank
        from tfrobust import attacks, evaluate, threats
        from tfrobust.evaluate import state
        state._PAUSE = 0.0  # every run is kept at once, not every five seconds
        net, x = bank.classifier(), bank.images(96)
        y = attacks.forward(net, x).argmax(-1)
        count, result = 0, attacks.Attack.result
        def deadly(*args, **kwargs):
            global count
            count += 1
            if count == int(sys.argv[2]):
                os.kill(os.getpid(), signal.SIGKILL)
            return result(*args, **kwargs)
        attacks.Attack.result = deadly
        threat = threats.Linf(0.05)
        suite = attacks.WorstCase([
            attacks.APGD(threat, steps=5),
            attacks.APGD(threat, steps=5, loss="dlr_targeted", targets=3),
            attacks.FAB(threat, steps=5, targets=3),
            attacks.Square(threat, queries=30),
        ])
        pgd = attacks.PGD(threat, steps=4, restarts=2)
        s = evaluate.robustness(net, (x, y), [pgd, suite], state=sys.argv[1] or None, batch_size=16)
        print(count, file=sys.stderr)
        print(json.dumps(s.to_dict() | {"seconds": 0}))
        """
    )

    def go(path, at):
        command = [sys.executable, "-c", script, str(path), str(at)]
        return subprocess.run(command, cwd=ROOT, capture_output=True, text=True)

    def calls(done):
        return int(done.stderr.strip().splitlines()[-1])

    whole = go("", 0)
    assert whole.returncode == 0, whole.stderr
    alive = 0
    for at in (5, 9, 2):
        assert go(tmp_path / "s", at).returncode == -signal.SIGKILL
        alive += at - 1
    last = go(tmp_path / "s", 0)
    assert last.stdout == whole.stdout
    assert calls(last) <= calls(whole) - alive + 3  # at most the call that was cut off is repeated
