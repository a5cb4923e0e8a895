"""Adversarial feature desensitization beside NT, AT and TRADES on MNIST: Table 1.

Paper: Bashivan et al. (ICLR 2021 submission; arXiv 2006.04621), Table 1, MNIST, Linf 0.3. One card
for each (method, seed) in saved_models/mnist_rn18_<method>; a run does only what has no card, and
goes on within a killed training with --resume. NT and TRADES take one seed, AT and AFD three; other
methods (L2 matching, AFD of other losses or with plain features) are asked for by --methods.
Command: python -m recipes.afd_table1 --resume --epochs 6 --rate-encoder 2 --rate-discriminator 2
(the rates by pilots, docs/afd.md; the paper's budget: --width 1 --epochs 100 --steps 40, the
default rates and another --out)
Time: see `seconds` on the cards; NT takes about a tenth of the others.
Expected (paper, ResNet-18 at full width): AFD 99.15 clean, 96.13 PGD-40; AT 99.13, 95.16. What
AutoAttack leaves is printed beside PGD: no method is called robust on PGD alone.
"""

from recipes import afd_stages, results_afd


def main():
    args = afd_stages.arguments(__doc__, ("nt", "at", "trades", "afd"))
    afd_stages.run(args)
    if not (args.train_only or args.pilot):
        both = results_afd.table1, results_afd.verdict
        print(*(line for lines in both for line in lines(args.out, args.net)), sep="\n")


if __name__ == "__main__":
    main()
