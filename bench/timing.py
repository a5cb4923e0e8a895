"""Interleaved timing: contenders take turns, so a machine that drifts hurts them all alike."""

import os
import platform
import statistics
import time

import keras


def interleaved(contenders, rounds, warm=True):
    """Seconds of each contender in each round: {name: [seconds]}.

    Args:
        contenders: {name: callable without arguments that returns when the work is done;
            a float that it returns stands for the seconds that count.}
        rounds: Integer.
        warm: One more round runs first, untimed, to compile.
    """
    times = {name: [] for name in contenders}
    for number in range(1 - warm, rounds + 1):
        for name, work in contenders.items():
            start = time.perf_counter()
            told = work()
            seconds = told if isinstance(told, float) else time.perf_counter() - start
            if number:
                times[name].append(seconds)
    return times


def rows(times, floor, bars=None):
    """One row for each contender: median seconds and the median of its ratios to the floor.

    Ratios are taken round by round before the median, which removes the drift between rounds.
    """
    table = []
    for name, seconds in times.items():
        ratios = [mine / base for mine, base in zip(seconds, times[floor], strict=True)]
        table.append(
            {
                "name": name,
                "seconds": statistics.median(seconds),
                "ratio": statistics.median(ratios),
                "bar": (bars or {}).get(name),
                "rounds": seconds,
            }
        )
    return table


class Steps(keras.callbacks.Callback):
    """Seconds of an epoch's steps, scaled from all but the first: without the start of `fit`."""

    def __init__(self, clock):
        super().__init__()
        self.clock = clock

    def on_train_batch_end(self, batch, logs=None):
        self.count = batch + 1
        if batch == 0:
            self.began = self.clock()

    def on_epoch_end(self, epoch, logs=None):
        taken = self.clock() - self.began
        self.seconds = taken * self.count / (self.count - 1)


def steps_of(game, x, y, batch_size, clock=time.perf_counter):
    """A contender: an epoch of `fit`, that returns the seconds of its steps by `clock`."""

    def work():
        steps = Steps(clock)
        game.fit(x, y, batch_size=batch_size, epochs=1, verbose=0, callbacks=[steps])
        return steps.seconds

    return work


def machine():
    """What a reader needs to judge the seconds."""
    from importlib import metadata

    def version(name):
        try:
            return metadata.version(name)
        except metadata.PackageNotFoundError:
            return "not installed"

    cpu = platform.processor()
    try:
        with open("/proc/cpuinfo") as file:
            names = [line.split(":", 1)[1].strip() for line in file if "model name" in line]
        cpu = names[0] if names else cpu
    except OSError:
        pass
    packages = (
        "tensorflow",
        "keras",
        "numpy",
        "cleverhans",
        "adversarial-robustness-toolbox",
        "foolbox",
        "torch",
        "torchattacks",
    )
    return {
        "cpu": cpu,
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "packages": {name: version(name) for name in packages},
    }
