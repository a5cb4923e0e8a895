"""Builds docs/results/attacks.md from bench/agreement.json, bench/results.json, bench/scale.json.

Command: make results, or python -m bench.page. Nothing on that page is written by hand.
"""

import json
import pathlib

from bench import agreement, duels

HERE = pathlib.Path(__file__).parent
PAGE = HERE.parent / "docs" / "results" / "attacks.md"
LIBRARIES = ("tfrobust", "tfrobust, last iterate", "foolbox", "ART", "torchattacks")
SETTINGS = {
    "PGD": f"robust, PGD-{duels.STEPS} x {duels.RESTARTS}",
    "AutoAttack": "robust, AutoAttack",
    "DDN": f"median L2, DDN-{duels.DDN_STEPS}",
    "C&W": f"median L2, C&W {duels.SEARCHES} x {duels.SEARCH_STEPS}",
    "DeepFool": f"median L2, DeepFool-{duels.DEEPFOOL_STEPS}",
}


def read(name):
    """What a measurement wrote, or None where it has not run."""
    path = HERE / name
    return json.loads(path.read_text()) if path.is_file() else None


def page(compared, speed, scale):
    """The page as text.

    Args:
        compared, speed, scale: What `bench.agreement`, `bench.run` and `bench.scale` wrote.
    """
    packages = compared["machine"]["packages"]
    versions = ", ".join(f"{name} {version}" for name, version in packages.items())
    lines = [
        "# Attacks beside foolbox, ART and torchattacks",
        "",
        "Made by `make results` from what `make agreement` and `make bench` measured.",
        f"{versions}; {compared['machine']['cpu']}, {compared['machine']['cores']} processors.",
        "",
        "## Strength",
        "",
        "First MNIST test images, the same weights, settings and number of restarts; Linf 0.3 for",
        "PGD and AutoAttack. Robust images are counted by a fresh pass of the Keras model on every",
        "point; points outside of the ball or the box do not count. The torch twin answers like",
        "the Keras model to 1e-4. torchattacks gets the budgets of Croce and Hein (2020); it ships",
        "with a tenth of the iterations. Where nothing was found the distance is infinite.",
        "",
        "| net | figure | images | " + " | ".join(LIBRARIES) + " |",
        "|---" * (len(LIBRARIES) + 3) + "|",
        *strength(compared["models"]),
        "",
        "AutoAttack, images left after each member:",
        "",
        "| net | library | APGD-CE | APGD-T | FAB-T | Square |",
        "|---|---|---|---|---|---|",
        *members(compared["models"]),
        "",
        "| net | asked | measured | at most | |",
        "|---|---|---|---|---|",
        *asked(compared["models"]),
        "",
        "## Speed",
        "",
        f"One interleaved run, {speed['date']}, model {speed['model']}:",
        f"`python -m bench.run{flags(speed['settings'])}`. Ratios are",
        "medians over rounds of time / time of the contender that has ratio 1; the bar is the most",
        "that was allowed. Compiled input gradients are those that TensorFlow takes by itself.",
        "",
        *speeds(speed["sections"]),
        "## Scale",
        "",
        *sizes(scale),
    ]
    return "\n".join(lines) + "\n"


def flags(settings):
    """The settings of a run as the flags that ask for them."""
    names = ("rounds", "images", "steps", "train_images", "prune_images", "anp_images")
    names += ("afd_images", "afd_steps", "afd_width", "games_batch", "verify_images")
    names += ("suite_images",)
    return "".join(f" --{n.replace('_', '-')} {settings[n]}" for n in names if n in settings)


def strength(models):
    for net, rows in models.items():
        for attack, title in SETTINGS.items():
            cells, images = [], set()
            for library in LIBRARIES:
                row = rows.get(f"{attack}, {library}")
                if row:
                    images.add(row["images"])
                cells.append("" if row is None else figure(row))
            if images:
                counts = ", ".join(f"{n:,}" for n in sorted(images))
                yield f"| {net} | {title} | {counts} | " + " | ".join(cells) + " |"


def figure(row):
    if "robust" in row:
        return str(row["robust"])
    missed = row["clean"] - row["found"]
    return f"{row['median']:.4f}" + (f" ({missed} not found)" if missed else "")


def members(models):
    for net, rows in models.items():
        for library in ("tfrobust", "torchattacks"):
            row = rows.get(f"AutoAttack, {library}")
            if row:
                left = list(row["left"].values())[:4]
                yield f"| {net} | {library} | " + " | ".join(map(str, left)) + " |"


def asked(models):
    for net, rows in models.items():
        for what, value, bar in agreement.goals(rows):
            yield f"| {net} | {what} | {value:g} | {bar:g} | {'' if value <= bar else 'not met'} |"


def speeds(sections):
    for part in sections:
        yield from (f"{part['name']}:", "", "| | seconds | ratio | bar |", "|---|---|---|---|")
        for row in part["rows"]:
            bar = f"{row['bar']:g}" if row["bar"] else ""
            digits = 3 if row["bar"] and 1 < row["bar"] < 1.1 else 2
            took = f"{row['seconds']:.{2 if row['seconds'] >= 0.1 else 4}f}"
            yield f"| {row['name']} | {took} | {row['ratio']:.{digits}f} | {bar} |"
        for name, reason in part["absent"].items():
            yield f"| {name} | {reason[:60]} | | |"
        yield ""


def sizes(scale):
    if scale is None:
        yield "Not measured yet (`python -m bench.scale`)."
        return
    small, large = scale["sizes"]
    low, high = scale["bars"]["time_ratio"]
    yield f"`python -m bench.scale`: {scale['settings']['attack']} on a stream of {large:,} images"
    yield f"against {small:,}, median of {len(scale['runs'][0])} runs in turns: time x"
    yield f"{scale['time_ratio']:.2f} (bar {low:g} to {high:g}), peak resident memory x"
    yield f"{scale['memory_ratio']:.3f} (bar {scale['bars']['memory_ratio']})."


def main():
    PAGE.write_text(page(read("agreement.json"), read("results.json"), read("scale.json")))
    print("wrote docs/results/attacks.md")


if __name__ == "__main__":
    main()
