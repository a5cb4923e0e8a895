"""The card of a set of models: what they score, what they cost, and how far to believe it.

    card = tr.report.card(
        "digits_anp_vs",
        models={
            "plain": tr.report.Entry(scores_plain, tr.footprint.measure(plain)),
            "ANP-VS, shrunk": tr.report.Entry(
                scores, tr.footprint.measure(small), files=[exported, exported_int8],
                latency={"float32": 0.08, "int8": 0.05}, seconds=61.0, vulnerability=v,
                certificate=tr.verify.certify(small, (x, y), attack.threat),
            ),
        },
        data={"name": "digits", "note": "scikit-learn's 8 x 8 digits"},
        threat=attack.threat,
    )
    card.save("saved_models/digits_anp_vs")           # card.json and card.html
    rich.print(tr.report.table(card))

The JSON file is the source; the page is made from it alone: `tr.report.load(path).html()` makes it
again, on any machine.
"""

from tfrobust.report.amend import amended
from tfrobust.report.card import Card, card, load, table
from tfrobust.report.entry import Entry
from tfrobust.report.figures import (
    plot_angles,
    plot_areas,
    plot_certified,
    plot_class_gradients,
    plot_dimensions,
    plot_features,
    plot_histogram,
    plot_landscape,
    plot_map,
    plot_planes,
    plot_sensitivity,
    plot_sparsity,
    plot_trace,
    plot_visualised,
    plot_vulnerability,
    sparsity_of,
)

__all__ = [
    "Card",
    "Entry",
    "amended",
    "card",
    "load",
    "plot_certified",
    "plot_angles",
    "plot_areas",
    "plot_class_gradients",
    "plot_dimensions",
    "plot_features",
    "plot_histogram",
    "plot_landscape",
    "plot_map",
    "plot_planes",
    "plot_sensitivity",
    "plot_sparsity",
    "plot_trace",
    "plot_visualised",
    "plot_vulnerability",
    "sparsity_of",
    "table",
]
