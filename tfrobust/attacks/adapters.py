"""Attacks of cleverhans, foolbox and ART as attacks of ours, for a second opinion.

    attack = tr.attacks.from_cleverhans("spsa", tr.threats.Linf(0.3), steps=50)
    attack = tr.attacks.from_foolbox(foolbox.attacks.L2DeepFoolAttack(), tr.threats.L2(0.5))
    attack = tr.attacks.from_art("SquareAttack", tr.threats.Linf(0.3), max_iter=1000)

cleverhans is installed with tfrobust, the others with `pip install "tfrobust[peers]"`.
"""

import functools
import inspect
import types

import keras
import numpy as np
import tensorflow as tf

from tfrobust.attacks.attack import whole
from tfrobust.attacks.borrowed import Borrowed, Named, imported, plain

CLEVERHANS = (
    "basic_iterative_method",
    "carlini_wagner_l2",
    "fast_gradient_method",
    "madry_et_al",
    "momentum_iterative_method",
    "projected_gradient_descent",
    "spsa",
)
OURS = ("restarts", "seed", "eot", "on_failure", "batch_size")


def from_cleverhans(function, threat, **arguments):
    """An attack of `cleverhans.tf2.attacks` under the contract of `tr.attacks.Attack`.

    Epsilon, norm, pixel range, labels and goal are passed on from the threat and the call. A step
    size that is not given is 2.5 * epsilon / steps, at most epsilon; with another epsilon at call
    time it scales along. `carlini_wagner_l2`, which minimises, is judged at the threat's radius;
    it and `spsa` get one image at a time. SPSA works in every norm here: its steps are projected
    by the threat.

    Args:
        function: Name in `cleverhans.tf2.attacks`, or a function `(model_fn, x, ...)`.
        threat: `tr.threats.Threat`.
        **arguments: The function's own (`nb_iter` or `steps`, default 40 where the function has
            none; `eps_iter` or `step_size`; ...), and `restarts`, `seed`, `eot`, `on_failure` of
            `Attack` and `batch_size`, the images that the function gets at once.

    Raises:
        TypeError: an argument that the function does not know.
        ValueError: an unknown name, a norm that the function does not have.

    Example:

    >>> from tfrobust import threats
    >>> from_cleverhans("spsa", threats.Linf(0.3), steps=50).name
    'spsa (cleverhans)'
    """
    return Cleverhans(function, threat, **arguments)


def from_foolbox(attack, threat, **shared):
    """A foolbox attack under the contract of `tr.attacks.Attack`.

    Attacks that minimise are judged at the threat's radius; others must have the threat's norm.

    Args:
        attack: Object such as `foolbox.attacks.LinfPGD(steps=40)`.
        threat: `tr.threats.Threat`.
        **shared: `restarts`, `seed`, `eot`, `on_failure` of `Attack`, and `batch_size`, the images
            that foolbox gets at once. Brendel and Bethge's attacks get one at a time, since the
            radius of their steps grows with the batch.

    Raises:
        TypeError: not a foolbox attack, an unknown argument.
        ValueError: an attack of another norm.
    """
    return Foolbox(attack, threat, **shared)


def from_art(attack, threat, **arguments):
    """An evasion attack of the Adversarial Robustness Toolbox under the contract of `Attack`.

    Epsilon, norm and goal are passed on from the threat and the call, steps and step size as in
    `from_cleverhans`. Attacks that minimise are judged at the threat's radius.

    Args:
        attack: Name in `art.attacks.evasion`, class, or function that makes an attack from an ART
            estimator and the arguments.
        threat: `tr.threats.Threat`.
        **arguments: The attack's own, and those of ours that `from_cleverhans` lists.

    Raises:
        TypeError: an argument that the attack does not know.
        ValueError: an unknown name.
    """
    return Art(attack, threat, **arguments)


def _split(arguments):
    """(ours, theirs)."""
    ours = {name: arguments.pop(name) for name in OURS if name in arguments}
    return ours, arguments


class Cleverhans(Named):
    """See `from_cleverhans`."""

    library = package = "cleverhans"
    alone = ("spsa", "carlini_wagner_l2")

    def __init__(self, function, threat, **arguments):
        if isinstance(function, str):
            if function not in CLEVERHANS:
                raise ValueError(
                    f"`function` must be one of {', '.join(CLEVERHANS)}. "
                    f"Received: function={function!r}"
                )
            module = imported(f"cleverhans.tf2.attacks.{function}", self.package)
            function = getattr(module, function)
        if not callable(function):
            raise TypeError(
                f"`function` must be a name or a function (model_fn, x, ...). "
                f"Received: {function!r}"
            )
        module = inspect.getmodule(function)
        own = getattr(module, "__name__", "").startswith("cleverhans.")
        name = function.__name__ if own else None
        known = module.CarliniWagnerL2 if name == "carlini_wagner_l2" else function
        shared, arguments = _split(arguments)
        super().__init__(function, threat, arguments, known, **shared)
        if name in CLEVERHANS and "eps_iter" in self.known:
            if threat.norm == "l1":
                raise ValueError(
                    f"`threat` must be Linf or L2 for cleverhans's {name}. Received: {threat!r}"
                )
            if arguments.get("eps_iter", 0) > threat.epsilon:
                raise ValueError(
                    f"`eps_iter` must be at most epsilon, {threat.epsilon:g}. "
                    f"Received: eps_iter={arguments['eps_iter']}"
                )
        if name == "spsa":
            samples = arguments.get("spsa_samples", 128)
            whole("spsa_samples", samples, 2)
            if samples % 2:
                raise ValueError(f"`spsa_samples` must be even. Received: spsa_samples={samples}")
        self._mend = {"spsa": _spsa, "carlini_wagner_l2": _carlini_wagner}.get(name)

    def perturb(self, call):
        function = self._mend(self.target, self.threat) if self._mend else self.target
        return function(call.model, call.x, **self.filled(call))

    def described(self):
        return {**super().described(), "function": plain(self.target)}


@functools.lru_cache(maxsize=16)
def _projection(threat):
    """The change nearest to a given one, compiled: SPSA asks for it at every step."""
    return tf.function(lambda change, epsilon, x: threat.project(x + change, x, epsilon) - x)


def _spsa(function, threat):
    """cleverhans's `spsa` with an Adam that Keras 3 can make, projecting onto any threat."""
    names = dict(function.__globals__)

    def start(self, lr, delta, num_samples, num_iters):
        self.lr, self.beta_1, self.beta_2, self.epsilon = lr, 0.9, 0.999, 1e-7
        self._delta, self._num_samples, self._num_iters = delta, num_samples // 2, num_iters

    def project(change, epsilon, x, clip_min=None, clip_max=None):
        return _projection(threat)(change, tf.constant(epsilon, tf.float32), x)

    # Its optimizer asks Keras for `lr`, which Keras 3 does not know: only the methods are taken.
    methods = {k: v for k, v in vars(names["SPSAAdam"]).items() if inspect.isfunction(v)}
    names["SPSAAdam"] = type("SPSAAdam", (), {**methods, "__init__": start})
    names["projected_optimization"] = functools.partial(
        names["projected_optimization"], project_perturbation=project
    )
    return types.FunctionType(function.__code__, names, "spsa", function.__defaults__)


def _carlini_wagner(function, threat):
    """cleverhans's C&W for images of any rank, with the Adam of Keras 3."""

    class Adam:
        def __init__(self, learning_rate):
            self._adam = keras.optimizers.Adam(learning_rate)
            self.apply_gradients = self._adam.apply_gradients

        def variables(self):
            """What a new search sets to zero: a method, and without the learning rate."""
            adam = self._adam
            return [v for v in adam.variables if v is not adam.learning_rate]

    class CarliniWagner(function.__globals__["CarliniWagnerL2"]):
        def __init__(self, *args, **kwargs):
            super().__init__(*args, **kwargs)
            self.optimizer = Adam(self.learning_rate)

    def attack(model_fn, x, y, targeted, **arguments):
        shape = x.shape

        def model(flat):
            return model_fn(tf.reshape(flat, (-1, *shape[1:])))

        # Labels mean a target there; without them it leaves the class that the model sees.
        found = CarliniWagner(model, y=y if targeted else None, **arguments)
        return tf.reshape(found.attack(tf.reshape(x, (len(x), -1, 1, 1))), shape)

    return attack


class Foolbox(Borrowed):
    """See `from_foolbox`."""

    library = package = "foolbox"
    alone = ("BrendelBethge",)

    def __init__(self, attack, threat, **shared):
        base = imported("foolbox.attacks.base", self.package)
        if not isinstance(attack, base.Attack):
            raise TypeError(
                "`attack` must be a foolbox attack such as foolbox.attacks.LinfPGD(). "
                f"Received: {attack!r}"
            )
        shared, unknown = _split(shared)
        for name in unknown:
            raise TypeError(
                f"`{name}` is not an argument of from_foolbox, which takes {', '.join(OURS)}: "
                "those of the attack are given to foolbox"
            )
        inner = attack.attack if isinstance(attack, base.Repeated) else attack
        super().__init__(threat, type(inner).__name__, **shared)
        self.attack, self.steps = attack, int(getattr(inner, "steps", 1))
        self._same_norm = threat.norm is not None and _norm(inner) == threat.norm
        if isinstance(inner, base.FixedEpsilonAttack) and not self._same_norm:
            raise ValueError(
                f"`threat` must have the norm of foolbox's {self.title}, {_norm(inner)}. "
                f"Received: {threat!r}"
            )

    def perturb(self, call):
        foolbox = imported("foolbox", self.package)
        device = "/GPU:0" if tf.config.list_physical_devices("GPU") else "/CPU:0"
        model = foolbox.TensorFlowModel(call.model, bounds=(0, 1), device=device)
        limit = call.epsilon if self._same_norm and call.eager_stop else None
        if isinstance(self.attack, foolbox.attacks.base.FixedEpsilonAttack):
            limit = call.epsilon
        if call.goal is None:
            criterion, labels = foolbox.criteria.Misclassification, call.y
        else:
            criterion, labels = foolbox.criteria.TargetedMisclassification, call.goal
        try:
            return self._found(model, call.x, tf.cast(labels, tf.int64), criterion, limit)
        except ValueError as error:
            if call.goal is None or "unsupported criterion" not in str(error):
                raise
            raise ValueError(f"`goal` must be None: {self.name} has no targeted form") from error

    def _found(self, model, x, labels, criterion, limit):
        """What the attack finds; images for which it finds no start, left as they are."""
        try:
            return self.attack(model, x, criterion(labels), epsilons=limit)[0]
        except (ValueError, AssertionError) as error:
            if isinstance(error, ValueError) and "init_attack failed" not in str(error):
                raise
            if len(x) == 1:
                return x
            half = len(x) // 2
            parts = (slice(None, half), slice(half, None))
            return tf.concat(
                [self._found(model, x[p], labels[p], criterion, limit) for p in parts], 0
            )

    def described(self):
        return plain(self.attack)


def _norm(attack):
    """The norm that a foolbox attack looks at, in our words, or None."""
    try:
        return {np.inf: "linf", 2: "l2", 1: "l1"}.get(attack.distance.p)
    except (AttributeError, ValueError):  # foolbox's way to say that none was given
        return None


class Art(Named):
    """See `from_art`."""

    library, package = "ART", "adversarial-robustness-toolbox"
    alone = ("BrendelBethge",)

    def __init__(self, attack, threat, **arguments):
        if isinstance(attack, str):
            known = imported("art.attacks.evasion", self.package)
            if not hasattr(known, attack):
                raise ValueError(
                    "`attack` must be the name of a class in art.attacks.evasion. "
                    f"Received: attack={attack!r}"
                )
            attack = getattr(known, attack)
        if not callable(attack):
            raise TypeError(
                "`attack` must be a name, a class or a function that makes an attack from an ART "
                f"estimator. Received: {attack!r}"
            )
        shared, arguments = _split(arguments)
        super().__init__(attack, threat, arguments, **shared)

    def perturb(self, call):
        estimator = self._estimator(call.model, call.x)
        labels = call.y if call.goal is None else call.goal
        one_hot = tf.one_hot(labels, estimator.nb_classes).numpy()
        return self.target(estimator, **self.filled(call)).generate(call.x.numpy(), y=one_hot)

    def _estimator(self, model, x):
        shape = tuple(x.shape[1:])
        if shape not in model.views:
            art = imported("art.estimators.classification", self.package)
            model.views[shape] = art.TensorFlowV2Classifier(
                model,
                nb_classes=model.classes(x),
                input_shape=shape,
                # A mean over the batch would make each gradient depend on the batch's size.
                loss_object=keras.losses.SparseCategoricalCrossentropy(
                    from_logits=True, reduction="sum"
                ),
                clip_values=(0.0, 1.0),
            )
        return model.views[shape]

    def described(self):
        return {**super().described(), "target": plain(self.target)}
