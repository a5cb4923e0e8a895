"""A Keras model with several optimizers: `compile`, `fit` and `evaluate` of all games.

Keras knows one optimizer of a model. Here is what it takes to have one for each group, all built
before the first step, and to refuse bad data before it.
"""

import keras

from tfrobust.training import averages, checks, update
from tfrobust.training.resume import arranged


def _scaled(optimizer):
    """The optimizer with a loss scale of its own, against gradients that vanish in float16."""
    scaler = keras.optimizers.LossScaleOptimizer
    return optimizer if isinstance(optimizer, scaler) else scaler(optimizer)


class Compiled(keras.Model):
    """What has `groups`, `group_variables()` and `default_optimizers()`, as a `keras.Model`."""

    def fit(
        self, x=None, y=None, batch_size=None, epochs=1, verbose="auto", callbacks=None, **kwargs
    ):
        """As `keras.Model.fit`; `tr.data.Batches` come in the order of (seed, epoch).

        Arrays are checked whole before the first step: pixels in [0, 1], integer labels in range.
        """
        checks.arrays(self.classifier, x, y)
        checks.validation(self.classifier, kwargs.get("validation_data"))
        checks.unchanged(self)
        checks.callbacks(callbacks)
        update.begin(self.transform)
        callbacks, kwargs["shuffle"] = arranged(x, callbacks, kwargs.get("shuffle", True))
        self._make_metrics(checks.labels(x, y))
        with checks.plainly(), averages.of_all_groups(self, callbacks):
            return super().fit(x, y, batch_size, epochs, verbose, callbacks, **kwargs)

    def train_on_batch(self, *args, **kwargs):
        """As `keras.Model.train_on_batch`."""
        update.begin(self.transform)
        with checks.plainly():
            return super().train_on_batch(*args, **kwargs)

    def evaluate(self, x=None, y=None, *args, **kwargs):
        """As `keras.Model.evaluate`, with the checks of `fit`."""
        checks.arrays(self.classifier, x, y)
        self._make_metrics(checks.labels(x, y))
        with checks.plainly():
            return super().evaluate(x, y, *args, **kwargs)

    def compile(self, optimizer=None, loss=None, metrics=None, **kwargs):
        """As `keras.Model.compile`; `optimizer` is one optimizer or {group: optimizer}.

        Without `loss`, sparse categorical cross-entropy from logits (binary for a single logit).

        Raises:
            ValueError: a missing or unknown group, or a loss that expects probabilities.
        """
        if optimizer is None:
            optimizer = self.default_optimizers()
        if not isinstance(optimizer, dict):
            if len(self.groups) > 1:
                raise ValueError(
                    "`optimizer` must be a dict with one optimizer for each of the groups "
                    f"{list(self.groups)}. Received: {optimizer!r}"
                )
            optimizer = {self.groups[0]: optimizer}
        if set(optimizer) != set(self.groups):
            raise ValueError(
                f"`optimizer` must have the keys {sorted(set(self.groups))}. "
                f"Received: {sorted(optimizer)}"
            )
        optimizer = {g: keras.optimizers.get(optimizer[g]) for g in dict.fromkeys(self.groups)}
        if len({id(o) for o in optimizer.values()}) < len(optimizer):
            raise ValueError("`optimizer` must hold a different optimizer object for each group.")
        loss = self._default_loss() if loss is None else loss
        options = getattr(loss, "_fn_kwargs", {})
        from_logits = getattr(loss, "from_logits", options.get("from_logits"))
        if isinstance(loss, str) or from_logits is False:
            raise ValueError(
                "`loss` must take logits, for example "
                f"keras.losses.SparseCategoricalCrossentropy(from_logits=True). Received: {loss!r}"
            )
        half = kwargs.get("auto_scale_loss", True) and self._half_precision()
        optimizers = {g: _scaled(o) if half else o for g, o in optimizer.items()}
        first = optimizers[self.groups[0]]
        checks.averages(optimizer, self.transform)
        super().compile(optimizer=first, loss=loss, metrics=metrics, **kwargs)
        self.optimizers = {**optimizers, self.groups[0]: self.optimizer}
        # Keras skips an optimizer that is built lazily when it restores weights.
        for group, variables in self.group_variables().items():
            if not self.optimizers[group].built:
                self.optimizers[group].build(update.trained(self.transform, variables))
        self._owned = checks.owned(self)
        self._compiled_with = {
            "optimizer": optimizer, "loss": loss, "metrics": metrics, **kwargs
        }  # fmt: skip

    def _make_metrics(self, labels):
        """Makes "accuracy" and other metrics that have but a name; Keras does in the first step.

        A step that makes variables is traced twice, which costs seconds where attacks are long.
        """
        metrics = self._compile_metrics
        if labels is not None and metrics is not None and not metrics.built:
            with self.distribute_strategy.scope():
                metrics.build(keras.KerasTensor((None, *labels)), self.classifier.output)

    def _half_precision(self):
        """Whether gradients pass through float16, whatever the global policy is by now."""
        layers = self.classifier._flatten_layers(include_self=False)
        return any(layer.compute_dtype == "float16" for layer in layers)

    def _default_loss(self):
        if self.classifier.output_shape[-1] == 1:
            return keras.losses.BinaryCrossentropy(from_logits=True)
        return keras.losses.SparseCategoricalCrossentropy(from_logits=True)

    def get_compile_config(self):
        if not self.compiled:
            return {}
        serialize = keras.saving.serialize_keras_object
        optimizers = {g: serialize(o) for g, o in self._compiled_with["optimizer"].items()}
        others = {k: v for k, v in self._compiled_with.items() if k != "optimizer"}
        return {"optimizer": optimizers, "others": serialize(others)}

    def compile_from_config(self, config):
        if not config:
            return
        deserialize = keras.saving.deserialize_keras_object
        optimizers = {g: deserialize(o) for g, o in config["optimizer"].items()}
        self.compile(optimizer=optimizers, **deserialize(config["others"]))
