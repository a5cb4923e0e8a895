"""Builds docs/results/ and the results table of README.md from the cards in saved_models/.

Command: make results, or python -m recipes.results. Nothing on those pages is written by hand: a
test renders them again and compares.
"""

import argparse

import tfrobust as tr
from recipes import (
    results_afd,
    results_anp_vs,
    results_mnist,
    results_pruning,
    results_sparsity,
    results_verified,
)
from recipes.cells import ROOT

PLOTTED = (results_mnist, results_anp_vs, results_pruning, results_afd, results_verified)


def pages(root=ROOT):
    """{path below `root`: text} of everything that is made from cards."""
    own = {
        "docs/results/afd.md": results_afd.page(root),
        "docs/results/cifar10.md": results_anp_vs.page("cifar10", root),
    }
    readme = (root / "README.md").read_text()
    return {
        "docs/results/mnist.md": results_mnist.page(root),
        "docs/results/pruning.md": results_pruning.page(root),
        "docs/results/verified.md": results_verified.page(root),
        **results_sparsity.pages(root),
        **{name: text for name, text in own.items() if text},
        "README.md": results_mnist.with_table(
            readme, *results_pruning.short(root), *results_verified.short(root), root=root
        ),
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.parse_args()
    for card in (ROOT / "saved_models").glob("*/card.json"):
        tr.report.load(card).save(card.parent)  # the page follows from the JSON
    plots = [page.plots() for page in PLOTTED]
    for name, text in {**pages(), **{k: v for part in plots for k, v in part.items()}}.items():
        path = tr.files.target(ROOT / name)
        tr.files.replace(path, lambda temporary, t=text: open(temporary, "w").write(t))
        print(f"wrote {name}")


if __name__ == "__main__":
    main()
