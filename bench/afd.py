"""What a step of `tr.training.AFD` costs beside what no such step can avoid.

    python -m bench.afd [--rounds 5] [--afd-images 1280] [--afd-steps 7] [--afd-width 0.5] [--tiny]

The floor is one graph that attacks each batch as the game does, takes the gradient of the
cross-entropy on clean images by all weights, runs the encoder over clean and attacked images
without gradients (for the discriminator), and takes one gradient by the encoder's weights on
attacked images: n + 1 passes of the attack and the passes that the method counts. It has no
optimizer, no discriminator and no metric. Seconds are those of the processor, all threads of this
process together; the start and the end of `fit` are left out.
"""

import sys
import time

import keras
import tensorflow as tf

import tfrobust as tr
from bench import command, timing
from bench.pruning import BATCH, Begin, End

BAR = 1.15
FLAGS = {
    "afd_images": (1280, "of an epoch of AFD"),
    "afd_steps": (7, "of AFD's attack"),
    "afd_width": (0.5, "of AFD's ResNet-18"),
}
TINY = {"afd_images": 128, "afd_steps": 1, "afd_width": 0.125}
FLOOR = "attack and counted passes alone"


def sections(x, y, args):
    """Yields the section; `args` has `rounds`, `afd_images`, `afd_steps` and `afd_width`."""
    x, y = x[: args.afd_images], y[: args.afd_images]
    contenders = {FLOOR: floor(*parts(args), x, y), "a step of AFD": step(*parts(args), x, y)}
    times = timing.interleaved(contenders, args.rounds)
    yield {
        "name": f"tr.training.AFD on PGD-{args.afd_steps}, ResNet-18 (MNIST) at "
        f"{args.afd_width:g} of its width, an epoch of {len(x)} images, processor seconds",
        "floor": FLOOR,
        "rows": timing.rows(times, FLOOR, {"a step of AFD": BAR}),
        "absent": {},
    }


def parts(args):
    """(net, attack)."""
    net = tr.models.unit_features(tr.models.resnet18(version="mnist", width=args.afd_width))
    threat = tr.threats.Linf(0.3)
    return net, tr.attacks.PGD(threat, steps=args.afd_steps, step_size=0.3 / 4)


def step(net, attack, x, y):
    game = tr.training.AFD(net, attack, weight_decay=1e-4)
    game.compile()

    def work():
        begin, end = Begin(), End()
        game.fit(x, y, batch_size=BATCH, verbose=0, callbacks=[begin, end])
        return end.at - begin.at

    return work


def floor(net, attack, x, y):
    view = keras.Model(net.input, [net.output, net.get_layer("features").output])
    encoder = keras.Model(net.input, net.get_layer("features").output)
    ce = keras.losses.SparseCategoricalCrossentropy(from_logits=True)

    def gradients(loss, tape, variables):
        return tf.add_n([tf.reduce_sum(g) for g in tape.gradient(loss, variables)])

    @tf.function
    def batch(x, y, seed):
        x_adv = attack.within(net, x, y, seed)
        with tf.GradientTape() as tape:
            loss = ce(y, net(x, training=True))
        total = gradients(loss, tape, net.trainable_variables)
        for images in (x, x_adv):
            total += tf.reduce_sum(view(images, training=True)[1])
        with tf.GradientTape() as tape:
            loss = tf.reduce_mean(encoder(x_adv, training=True)[:, 0])
        return total + gradients(loss, tape, encoder.trainable_variables)

    batches = tf.data.Dataset.from_tensor_slices((x, y)).batch(BATCH)

    def work():
        began = time.process_time()
        for number, (images, labels) in enumerate(batches):
            total = batch(images, labels, tf.constant(number))
        total.numpy()
        return time.process_time() - began

    return work


if __name__ == "__main__":
    command.alone(__doc__, sys.modules[__name__])
