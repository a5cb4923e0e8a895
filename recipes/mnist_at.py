"""Plain adversarial training of LeNet-5-Caffe on MNIST: the row every pruned net is compared with.

Paper: Madry et al., 2018 (arXiv 1706.06083); PGD-7, epsilon 0.3 after a ramp, batch 128.
Command: python -m recipes.mnist_at --data-dir DATA
Time: about 10 minutes on 2 cores, and 5 more to judge. Expected: clean 98.9 %, PGD-40 94 %.
"""

from recipes import mnist, mnist_judge


def main():
    args = mnist.arguments(__doc__, epochs=10)
    data = mnist.mnist(args)
    net, seconds = mnist.plain_at(data, args, args.epochs)
    mnist_judge.ship("mnist_at", "AT", net, data, args, seconds, seconds[1] / args.epochs)


if __name__ == "__main__":
    main()
