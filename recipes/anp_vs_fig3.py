"""Figure 3 of ANP-VS: accuracy, clean and attacked, against the sparsity that beta buys.

Paper: Madaan et al., 2020 (arXiv 1908.04355), Figure 3: BP, PAT and ANP-VS over a grid of beta,
beside the standard net and AT, which have no masks. Masks are never stopped early (`--gain 0`), so
that beta alone decides how many units go. Cards are those of anp_vs_table1; `make results` draws
them.
Command: python -m recipes.anp_vs_fig3 --epochs 6 --grid 1 4 8 10 12
Time: three trainings for each beta, 20 to 25 minutes each with judging, on one core.
"""

from recipes import anp_vs_rows as rows
from recipes import mnist

GRIDS = {"mnist": [1.0, 4.0, 8.0, 10.0, 12.0], "cifar10": [1.0, 2.0, 4.0, 6.0, 8.0]}  # the paper's


def main():
    options = rows.options()
    options["rows"]["default"] = ["standard", "at"]
    options["grid"] = {"type": float, "nargs": "+", "help": "betas (default: the paper's)"}
    args = mnist.arguments(__doc__, epochs=10, **options)
    data = rows.prepared(args)
    wanted = [(row, {}) for row in args.rows]
    for beta in args.grid or GRIDS[args.data]:
        wanted += [(row, {flag: beta, "gain": 0.0}) for row, flag in rows.SWEPT.items()]
    rows.every([(row, seed, more) for seed in args.seeds for row, more in wanted], args, data)


if __name__ == "__main__":
    main()
