"""The same attack and the same training in cleverhans, ART and foolbox."""

import contextlib
import io
import warnings

import keras
import numpy as np
import tensorflow as tf


def loss():
    return keras.losses.SparseCategoricalCrossentropy(from_logits=True)


def pgd(model, x, y, epsilon, step_size, steps):
    """{name: callable} of PGD with one random start, or the reason why one is absent."""
    contenders, absent = {}, {}

    def cleverhans():
        from cleverhans.tf2.attacks.projected_gradient_descent import projected_gradient_descent

        images, labels = tf.constant(x), tf.constant(y)
        return lambda: projected_gradient_descent(
            model,
            images,
            epsilon,
            step_size,
            steps,
            np.inf,
            clip_min=0.0,
            clip_max=1.0,
            y=labels,
            rand_init=True,
            sanity_checks=False,
        ).numpy()

    def art():
        from art.attacks.evasion import ProjectedGradientDescentTensorFlowV2
        from art.estimators.classification import TensorFlowV2Classifier

        attack = ProjectedGradientDescentTensorFlowV2(
            TensorFlowV2Classifier(
                model,
                nb_classes=10,
                input_shape=x.shape[1:],
                loss_object=loss(),
                clip_values=(0.0, 1.0),
            ),
            norm=np.inf,
            eps=epsilon,
            eps_step=step_size,
            max_iter=steps,
            num_random_init=1,
            batch_size=len(x),
            verbose=False,
        )
        return lambda: attack.generate(x, y)

    def foolbox():
        import foolbox as fb

        wrapped = fb.TensorFlowModel(model, bounds=(0, 1))
        attack = fb.attacks.LinfPGD(abs_stepsize=step_size, steps=steps, random_start=True)
        images, goal = tf.constant(x), fb.criteria.Misclassification(tf.constant(y))
        return lambda: attack.run(wrapped, images, goal, epsilon=epsilon).numpy()

    for name, build in (("cleverhans", cleverhans), ("ART", art), ("foolbox", foolbox)):
        _try(name, build, contenders, absent)
    return contenders, absent


def madry(model, x, y, epsilon, step_size, steps, batch_size):
    """ART's AdversarialTrainerMadryPGD, one epoch over x."""
    contenders, absent = {}, {}

    def art():
        from art.defences.trainer import AdversarialTrainerMadryPGD
        from art.estimators.classification import TensorFlowV2Classifier

        classifier = TensorFlowV2Classifier(
            model,
            nb_classes=10,
            input_shape=x.shape[1:],
            loss_object=loss(),
            optimizer=keras.optimizers.Adam(1e-3),
            clip_values=(0.0, 1.0),
        )
        hot = np.eye(10, dtype=np.float32)[y]

        def epoch():
            with contextlib.redirect_stderr(io.StringIO()):  # its progress bar cannot be turned off
                AdversarialTrainerMadryPGD(
                    classifier,
                    nb_epochs=1,
                    batch_size=batch_size,
                    eps=epsilon,
                    eps_step=step_size,
                    max_iter=steps,
                    num_random_init=1,
                ).fit(x, hot)

        return epoch

    _try("ART AdversarialTrainerMadryPGD", art, contenders, absent)
    return contenders, absent


def _try(name, build, contenders, absent):
    """Adds a contender that is installed and runs once; else its one-line reason."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            work = build()
            work()
        contenders[name] = work
    except Exception as error:  # whatever another library raises, our figures still count
        absent[name] = f"{type(error).__name__}: {error}".splitlines()[0]
