"""What attacks of other libraries need to obey our contract: a model they can call, and manners.

Their points are projected, their success is checked afresh, their random numbers follow from the
seed, the run and the first image of a batch, and the generators they share with everybody else are
put back. They run eagerly, on padded batches of few sizes, outside of `fit` only.
"""

import contextlib
import importlib
import importlib.metadata
import inspect
import random
import warnings
import weakref

import keras
import numpy as np
import tensorflow as tf

from tfrobust import buckets, contract
from tfrobust.attacks.attack import Attack, classes_of_callable, whole
from tfrobust.attacks.call import compiled, logits_of, per_row, unmoved, verdicts
from tfrobust.attacks.kept import Kept


class Watched:
    """A model as other libraries call it: images -> logits, compiled, its passes counted.

    Attributes:
        passes: int64 variable, rows that went forward and backward so far.
        views: What a library made of the model, by name.
    """

    def __init__(self, model, draws):
        self._model, self._draws, self.views = weakref.ref(model), draws, {}
        self.passes = tf.Variable([0, 0], dtype=tf.int64, trainable=False)
        self._forward = compiled(self._counted)

    def __call__(self, x, training=False):
        x = tf.cast(x, tf.float32)
        return sum(self._forward(x) for _ in range(self._draws)) / self._draws

    def classes(self, x):
        return classes_of_callable(lambda images: logits_of(self._model(), images), x)

    def _counted(self, x):
        rows = tf.shape(x, out_type=tf.int64)[0]

        @tf.custom_gradient
        def count(logits):
            def backward(gradient):
                # A gradient taken outside of the graph drops what its result does not wait for.
                with tf.control_dependencies([self.passes.assign_add([0, rows])]):
                    return tf.identity(gradient)

            return tf.identity(logits), backward

        self.passes.assign_add([rows, 0])
        return count(logits_of(self._model(), x))


_watched = Kept()


def watched(model, draws):
    """The one `Watched` of a model and a number of passes to average."""
    known = _watched.of(model)
    if draws not in known:
        known[draws] = Watched(model, draws)
    return known[draws]


class Borrowed(Attack):
    """Base of attacks that another library performs.

    An author gives `perturb(call)`, which gets eager tensors and a `Watched` as `call.model`; it
    may return anything of the images' shape.

    Args:
        threat: `tr.threats.Threat`.
        title: Name of the attack in its library.
        restarts, seed, eot, on_failure: see `Attack`.
        batch_size: Integer >= 1, images that the library gets at once; default is a padded bucket
            of at most 256. Attacks in `alone` always get one.
    """

    library = package = ""  # as people and as pip call it
    alone = ()

    def __init__(self, threat, title, *, batch_size=None, **shared):
        super().__init__(threat, **shared)
        self.title, self.steps, self.batch_size = title, 1, batch_size
        if batch_size is not None:
            whole("batch_size", batch_size, 1)
        if any(word in title for word in self.alone):
            if batch_size not in (None, 1):
                raise ValueError(
                    f"`batch_size` must be 1: {self.library}'s {title} needs its images one at a "
                    f"time. Received: batch_size={batch_size}"
                )
            self.batch_size = 1

    @property
    def name(self):
        return f"{self.title} ({self.library})"

    @property
    def iterations(self):
        return self.steps

    @property
    def stream(self):
        return f"{self.library}:{self.title}"

    def within(self, *args, **kwargs):
        raise TypeError(
            f"{self.name} runs eagerly and cannot be traced: train with an attack of tr.attacks"
        )

    def attempt(self, model, x, y, index, epsilon, run, goal, eager_stop):
        x_adv, counts = x.copy(), np.zeros((3, len(x)), np.int64)
        if epsilon == 0:
            return x_adv, counts
        view = watched(model, self.eot)
        rows = np.flatnonzero(~verdicts(model, x, y, goal, self.eot))
        most = self.batch_size or buckets.SIZES[-1]
        for begin in range(0, len(rows), most):
            part = rows[begin : begin + most]
            place = np.arange(self.batch_size or buckets.size(len(part)))
            real = place < len(part)
            place = part[np.where(real, place, 0)]
            images, labels, wanted = (
                v if v is None else tf.constant(v[place]) for v in (x, y, goal)
            )
            call = self.call(
                *(view, images, labels, index[place].astype(np.uint32), self.seed & 0xFFFFFFFF),
                run,
                epsilon=epsilon,
                active=tf.constant(real),
                eager_stop=eager_stop,
                numbers={},
                goal=wanted,
            )
            found, spent = self._crafted(model, call)
            x_adv[part] = found[: len(part)]
            counts[:, part] = [[count] for count in (*spent, self.steps)]
        return x_adv, counts

    def _crafted(self, model, call):
        """Legal points of one batch and the (queries, gradients) of each of its images."""
        key, before = int(call.keys[0]), call.model.passes.numpy()
        with quiet(), unmoved(model, key % 2**20), seeded(key):
            found = tf.cast(self.perturb(call), tf.float32)
        if found.shape != call.x.shape:
            raise ValueError(
                f"{self.name} must return images of shape {tuple(call.x.shape)}. "
                f"Received: shape={tuple(found.shape)}"
            )
        spent = call.model.passes.numpy() - before
        return self.legal(call, found).numpy(), -(-spent // len(found))

    def legal(self, call, x_adv):
        """As elsewhere, but points that are legal already keep their last bits.

        Attacks that end at the decision boundary would lose some of them to rounding.
        """
        projected = super().legal(call, x_adv)
        axes = list(range(1, len(x_adv.shape)))
        kept = (tf.abs(projected - x_adv) <= 1e-6) & (x_adv >= 0) & (x_adv <= 1)
        near = self.threat.distance(x_adv, call.x) <= call.epsilon
        return tf.where(per_row(near & tf.reduce_all(kept, axes), call.x), x_adv, projected)

    def get_config(self):
        shared = super().get_config()
        del shared["loss"], shared["targets"]
        return {
            "library": self.library,
            "version": importlib.metadata.version(self.package),
            "attack": self.title,
            "arguments": self.described(),
            **shared,
            "batch_size": self.batch_size,
        }

    def described(self):
        """The parameters of the other library's attack, as JSON values."""
        return {}

    @classmethod
    def from_config(cls, config):
        raise TypeError(
            f"An attack of {cls.library} cannot be made from its config: call "
            f"tr.attacks.from_{cls.__name__.lower()} again"
        )


class Named(Borrowed):
    """A borrowed attack whose parameters are known by name: the threat's own are filled in.

    Args:
        target: Function or class.
        threat: `tr.threats.Threat`.
        arguments: {name: value} for the target. `steps` and `step_size` are understood.
        known: What describes the parameters, if not the target.
        **shared: see `Borrowed`.
    """

    counts = ("nb_iter", "max_iterations", "max_iter")
    sizes = ("eps_iter", "eps_step")
    inputs = ("model_fn", "x", "estimator", "classifier")
    fixed = ("eps", "norm", "clip_min", "clip_max", "y", "targeted")

    def __init__(self, target, threat, arguments, known=None, **shared):
        super().__init__(threat, getattr(target, "__name__", type(target).__name__), **shared)
        found = inspect.signature(known or target).parameters
        self.known = {k: p.default for k, p in found.items() if k not in self.inputs}
        takes_any = any(p.kind is p.VAR_KEYWORD for p in found.values())
        count, size = self._one_of(self.counts), self._one_of(self.sizes)
        for ours, theirs in (("steps", count), ("step_size", size)):
            if ours in arguments and ours not in self.known and theirs:
                arguments[theirs] = arguments.pop(ours)
        for name in arguments:
            if name in self.fixed:
                raise TypeError(f"`{name}` must be left out: the adapter sets it from `threat`")
            if name not in self.known and not takes_any:
                names = ", ".join(k for k in self.known if k not in self.fixed)
                raise TypeError(
                    f"`{name}` is not an argument of {self.library}'s {self.title}, which takes "
                    f"{names}"
                )
        if takes_any:
            self.known.update(dict.fromkeys((*self.fixed, *arguments)))
        self.target, self.arguments = target, arguments
        if self.threat.norm not in NORMS and "norm" in self.known:
            raise ValueError(
                f"`threat` must be Linf, L2 or L1 for {self.library}'s {self.title}. "
                f"Received: {threat!r}"
            )
        self._count, self._size = count, size
        if count:
            steps = arguments.get(count, self.known[count])
            self.steps = 40 if steps is inspect.Parameter.empty else steps
            whole("steps", self.steps, 0)
        if size in arguments:
            given = arguments[size]
            number = isinstance(given, int | float | np.number) and not isinstance(given, bool)
            if not (number and 0 < given < np.inf):
                raise ValueError(f"`{size}` must be a number > 0. Received: {size}={given!r}")

    def _one_of(self, names):
        return next((name for name in names if name in self.known), None)

    def attempt(self, model, x, y, index, epsilon, run, goal, eager_stop):
        if goal is not None and "targeted" not in self.known:
            raise ValueError(f"`goal` must be None: {self.name} has no targeted form")
        return super().attempt(model, x, y, index, epsilon, run, goal, eager_stop)

    def filled(self, call):
        """Arguments for this batch: the caller's, the threat's, and defaults that fit it."""
        epsilon, ratio = call.epsilon, min(1.0, 2.5 / max(self.steps, 1))
        if self._size in self.arguments and self.threat.epsilon:
            ratio = self.arguments[self._size] / self.threat.epsilon
        offered = {
            "rand_minmax": epsilon,
            "early_stop_loss_threshold": 0.0 if call.eager_stop else None,
            "sanity_checks": False,
            "verbose": False,
            **self.arguments,
            self._count: self.steps,
            self._size: ratio * epsilon,
            "batch_size": len(call.x),
            "eps": epsilon,
            "norm": NORMS.get(self.threat.norm),
            "clip_min": 0.0,
            "clip_max": 1.0,
            "y": call.y if call.goal is None else call.goal,
            "targeted": call.goal is not None,
        }
        return {name: value for name, value in offered.items() if name in self.known}

    def described(self):
        return plain(self.arguments)


NORMS = {"linf": np.inf, "l2": 2, "l1": 1}


def imported(module, package):
    """A module of another library, or one line that says how to get it."""
    try:
        with quiet():
            return importlib.import_module(module)
    except ImportError as error:
        wanted = package if package == "cleverhans" else '"tfrobust[peers]"'
        raise ImportError(
            f"{package} must be installed for this attack: pip install {wanted}"
        ) from error


@contextlib.contextmanager
def quiet():
    """Keeps back what the other library's own code gives cause for, such as deprecations."""
    logger = tf.get_logger()
    level = logger.level
    logger.setLevel("ERROR")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)


class Seeded(np.random.RandomState):
    """A generator that takes the seed it is not given from NumPy's global generator."""

    def __init__(self, seed=None):
        super().__init__(np.random.randint(2**31) if seed is None else seed)


@contextlib.contextmanager
def seeded(seed):
    """Starts the global generators of Python, NumPy and TensorFlow anew, and puts them back.

    Generators that are made within, in NumPy's old way, follow from the seed as well.
    """
    from tensorflow.python.eager import context  # TensorFlow shows its global seed nowhere else

    eager, fresh = context.context(), np.random.RandomState
    python, legacy, flow = random.getstate(), np.random.get_state(), vars(eager).copy()
    random.seed(seed)
    np.random.seed(seed)
    tf.random.set_seed(seed)
    np.random.RandomState = Seeded
    try:
        yield
    finally:
        np.random.RandomState = fresh
        random.setstate(python)
        np.random.set_state(legacy)
        for name in ("_seed", "_rng"):
            if name in flow:
                setattr(eager, name, flow[name])


def plain(value):
    """JSON values that tell objects apart: functions by name, arrays by hash, the rest by parts."""
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, dict):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [plain(v) for v in value]
    if isinstance(value, np.ndarray | tf.Tensor | tf.Variable):
        return contract.digest(np.asarray(value))
    if isinstance(value, keras.Model):
        return contract.digest(*value.get_weights())
    if hasattr(value, "__qualname__"):
        return f"{value.__module__}.{value.__qualname__}"
    parts = value.get_config() if hasattr(value, "get_config") else getattr(value, "__dict__", {})
    return {"class": plain(type(value)), **plain(parts)}
