"""Peak memory of CROWN-IBP bounds of CIFAR-large, by how many images are bounded: chunks bound it.

python -m bench.memory [64 128 256]
"""

import argparse
import resource
import subprocess
import sys

import numpy as np

import tfrobust as tr


def main():
    cli = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    cli.add_argument("images", type=int, nargs="*", default=[64, 128], help="images to bound")
    cli.add_argument("--peak", type=int, help="(internal) bound so many images, print the peak")
    args = cli.parse_args()
    if args.peak:
        peak(args.peak)
        return
    for images in args.images:
        print(f"CROWN-IBP of {images} images, CIFAR-large: {memory(images):.0f} MiB", flush=True)


def memory(images):
    """Peak MiB that bounds of CIFAR-large take in a process of their own."""
    done = subprocess.run(
        [sys.executable, "-m", "bench.memory", "--peak", str(images)],
        capture_output=True,
        text=True,
        check=True,
    )
    return float(done.stdout.split()[-1])


def peak(images):
    """Bounds some images and prints by how many MiB the process's peak grew."""
    net = tr.models.cifar_large()
    x = np.random.default_rng(0).uniform(size=(images, 32, 32, 3)).astype("float32")
    y = np.arange(images) % 10
    net.predict(x[:16], verbose=0)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    tr.bounds.margins(net, x, y, tr.threats.Linf(2 / 255), method="crown-ibp")
    after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    print((after - before) / 1024)


if __name__ == "__main__":
    main()
