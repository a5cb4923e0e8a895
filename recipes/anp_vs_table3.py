"""Table 3 of ANP-VS: what masks and vulnerability suppression do alone and together.

Paper: Madaan et al., 2020 (arXiv 1908.04355), Table 3: AT, AT-VS, ANP and ANP-VS, clean, attacked
and V. `--grid` are values of lambda for AT-VS and ANP-VS; V is a mean over units here, so that a
lambda of 1 is small. Cards are those of anp_vs_table1; what is there is not done again.
Command: python -m recipes.anp_vs_table3 --epochs 6 --grid 1 10
Time: four trainings beside the two of table 1, 20 to 25 minutes each with judging, on one core.
Expected (paper): V falls from AT 0.045 to 0.022 with VS, 0.020 with masks, 0.011 with both.
"""

from recipes import anp_vs_rows as rows
from recipes import mnist, results_anp_vs


def main():
    options = rows.options()
    options["rows"]["default"] = ["at", "anp_bbd"]
    options["grid"] = {"type": float, "nargs": "+", "default": [1.0, 10.0], "help": "lambdas"}
    args = mnist.arguments(__doc__, epochs=10, **options)
    data = rows.prepared(args)
    weighed = [(row, {"suppress": v}) for v in args.grid for row in ("at_vs", "anp_vs_bbd")]
    wanted = [*((row, {}) for row in args.rows), *weighed]
    rows.every([(row, seed, more) for seed in args.seeds for row, more in wanted], args, data)
    print("\n".join(results_anp_vs.ablation(args.data, args.out)), flush=True)


if __name__ == "__main__":
    main()
