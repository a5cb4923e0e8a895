"""Discriminators of adversarial feature desensitization on MNIST: Table A6.

Paper: Bashivan et al. (ICLR 2021 submission), Table A6: PGD accuracy 85.96 with FC1-PD (a linear
projection discriminator), 90.73 with FC3 (two hidden layers, no label), 97.03 with FC3-PD (both).
FC4-PD has three hidden layers, the other reading of the paper's text. FC3-PD is `afd` of
recipes.afd_table1. One card for each (variant, seed).
Command: python -m recipes.afd_discriminators --resume --epochs 6 --rate-encoder 2
--rate-discriminator 2
Time: as AFD in recipes.afd_table1, for each variant.
"""

from recipes import afd_stages, results_afd


def main():
    methods = ("afd_fc1_pd", "afd_fc3", "afd", "afd_fc4_pd")
    args = afd_stages.arguments(__doc__, methods)
    args.seeds = args.seeds or [0]
    afd_stages.run(args)
    if not (args.train_only or args.pilot):
        print(*results_afd.discriminators(args.out, args.net), sep="\n")


if __name__ == "__main__":
    main()
