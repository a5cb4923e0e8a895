"""Table 1 (and 4) of ANP-VS: every method, one card for each row and seed, and the table of them.

Paper: Madaan et al., 2020 (arXiv 1908.04355). Rows stand on shared stages (`anp_vs_stages`), each
trained once and kept in `--work`; run again, the recipe does only what is missing, and a killed run
goes on where it was. `--epochs` is the budget: epochs of adversarial training of a row. Rows of
several stages have about as many of full cost, more of cheap ones (clean images, a shrunk net);
epochs and processor seconds of all of them stand on the card.
Training attacks with PGD-7, steps of epsilon / 4, not the paper's 20 or 10 smaller steps. On
CIFAR-10, VGG-16 of a quarter of the width: images are cropped and mirrored at random, and since
narrow nets learn next to nothing in so few epochs otherwise, adversarial rows start from the
standard net (`--warm`) and there is no dropout (`--dropout`; 1 is the paper's).
Command: python -m recipes.anp_vs_table1 --epochs 6 --rows at anp_vs_bbd --seeds 0 1 2
CIFAR-10: --data cifar10 --train-images 10000 --test-images 2000 --n 500 --epochs 6
--rows at trades anp_vs_vib (beta of VIB is 50 there: with 10 and 30 six epochs of masks end before
the FLOP gain is reached, with 100 most units fall at once)
Time: 15 to 25 minutes a row with judging, on one core.
Expected: docs/results/mnist.md, made with 6 epochs; another `--out` for other budgets.
"""

from recipes import anp_vs_rows as rows
from recipes import mnist, results_anp_vs


def main():
    args = mnist.arguments(__doc__, epochs=10, **rows.options())
    data = rows.prepared(args)
    rows.every([(row, seed, {}) for row in args.rows for seed in args.seeds], args, data)
    print("\n".join(results_anp_vs.table(args.data, saved=args.out)), flush=True)


if __name__ == "__main__":
    main()
