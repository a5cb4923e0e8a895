"""Figure 3 of ANP-VS: accuracy, clean and attacked, against the sparsity that beta buys.

Paper: Madaan et al., 2020 (arXiv 1908.04355), Figure 3: BP, PAT and ANP-VS over a grid of beta,
beside the standard net and AT, which have no masks. `--gain 1000` never stops the masks early, so
that beta alone decides how many units go. Cards are those of anp_vs_table1.
Command: python -m recipes.anp_vs_fig3 --data mnist --grid 1 4 8 12 --gain 1000
"""

from recipes import anp_vs_table1 as table1
from recipes import mnist

METHODS = {"bp_bbd": "bp_beta", "pat": "bp_beta", "anp_vs_bbd": "beta"}


def main():
    options = table1.options()
    options["rows"]["default"] = ["standard", "at"]
    options["gain"]["default"] = 1000.0
    options["grid"] = {"type": float, "nargs": "+", "default": [1.0, 4.0, 8.0, 12.0]}
    args = mnist.arguments(__doc__, epochs=10, **options)
    data = table1.prepared(args)
    for seed in args.seeds:
        for row in args.rows:
            table1.one(row, seed, args, data)
        for beta in args.grid:
            for row, flag in METHODS.items():
                table1.one(row, seed, args, data, **{flag: beta})


if __name__ == "__main__":
    main()
