"""Time and memory of an evaluation against the number of images: both sizes in turns.

Each size runs in a process of its own, which warms up first. Images come as a stream that repeats
MNIST's test images, so that neither process holds more data than the other.

    python -m bench.scale [--images 6000] [--factor 10] [--rounds 3]
"""

import argparse
import json
import pathlib
import resource
import statistics
import subprocess
import sys
import time

import keras
import numpy as np

import tfrobust as tr
from bench import duels, timing

HERE = pathlib.Path(__file__).parent
MODEL = HERE.parent / "saved_models" / "mnist_at" / "model.keras"
STEPS, PART = 5, 1000
TIME, MEMORY = 1.0, 1.1  # the ratio of times may leave the factor by TIME per ten


def main():
    cli = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    cli.add_argument("--images", type=int, default=6000)
    cli.add_argument("--factor", type=int, default=10)
    cli.add_argument("--rounds", type=int, default=3)
    cli.add_argument("--output", default=str(HERE / "scale.json"))
    cli.add_argument("--one", type=int, help=argparse.SUPPRESS)
    args = cli.parse_args()
    if args.one:
        print(json.dumps(one(args.one)))
        return
    path = tr.files.target(args.output, "output")
    sizes = (args.images, args.images * args.factor)
    runs = {size: [] for size in sizes}
    for _ in range(args.rounds):
        for size in sizes:
            command = [sys.executable, "-m", "bench.scale", "--one", str(size)]
            done = subprocess.run(command, capture_output=True, text=True, check=True)
            runs[size].append(json.loads(done.stdout.splitlines()[-1]))
            print(size, runs[size][-1], flush=True)
    small, large = runs.values()
    ratio = {
        key: statistics.median(b[key] / a[key] for a, b in zip(small, large, strict=True))
        for key in ("seconds", "peak_bytes")
    }
    result = {
        "machine": timing.machine(),
        "settings": {
            "attack": f"PGD-{STEPS}",
            "epsilon": duels.EPSILON,
            "model": MODEL.parent.name,
        },
        "sizes": sizes,
        "runs": list(runs.values()),
        "time_ratio": ratio["seconds"],
        "memory_ratio": ratio["peak_bytes"],
        "bars": {"time_ratio": [args.factor - TIME, args.factor + TIME], "memory_ratio": MEMORY},
    }
    text = json.dumps(result, indent=1) + "\n"
    tr.files.replace(path, lambda name: pathlib.Path(name).write_text(text))
    print(f"time x {ratio['seconds']:.2f}, peak memory x {ratio['peak_bytes']:.3f}")


def one(size):
    """Seconds and peak resident bytes of one evaluation."""
    model = keras.saving.load_model(MODEL, compile=False)
    data = tr.data.load("mnist")
    attack = tr.attacks.PGD(duels.LINF, steps=STEPS)

    def stream():
        for begin in range(0, size, PART):
            rows = np.arange(begin, min(begin + PART, size)) % len(data.x_test)
            yield data.x_test[rows], data.y_test[rows]

    # All sizes of batches that the rest may need are traced before the clock starts.
    for count in (2048, 1500, 300):
        part = data.x_test[:count], data.y_test[:count]
        tr.evaluate.robustness(model, part, [attack], progress=False)
    begin = time.perf_counter()
    scores = tr.evaluate.robustness(model, stream(), [attack], progress=False)
    seconds = time.perf_counter() - begin
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return {"seconds": seconds, "peak_bytes": peak, "n": scores.n, "robust": scores.joint.count}


if __name__ == "__main__":
    main()
