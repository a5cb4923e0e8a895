"""Transfer attacks: points crafted on one model, handed to another one.

craft = tr.attacks.MIM(tr.threats.Linf(0.3), steps=20, loss="margin")
scores = tr.evaluate.robustness(target, data, [tr.attacks.Transfer(substitute, craft)])
"""

from tfrobust.attacks.attack import Attack
from tfrobust.attacks.borrowed import plain


class Transfer(Attack):
    """Crafts with `attack` on a substitute model; the target only judges what comes out.

    On another model than the target a first success says little, so the attack goes on to its
    highest loss. On the target itself the result is the attack's own, bit for bit. The passes that
    are counted are the substitute's.

    Args:
        substitute: Keras classifier or callable images -> logits, with the target's classes.
        attack: `Attack`, whose threat, runs and seed are taken over.

    Example:

    >>> import keras
    >>> from tfrobust import attacks, threats
    >>> net = keras.Sequential([keras.Input((2,)), keras.layers.Dense(2)])
    >>> Transfer(net, attacks.PGD(threats.Linf(0.1), steps=40)).name
    'transfer of PGD-40'
    """

    def __init__(self, substitute, attack):
        if not isinstance(attack, Attack):
            raise TypeError(
                f"`attack` must be a tr.attacks.Attack. Received: {type(attack).__name__}"
            )
        if not callable(substitute):
            raise TypeError(
                "`substitute` must be a Keras classifier or a callable images -> logits. "
                f"Received: {type(substitute).__name__}"
            )
        super().__init__(attack.threat, eot=attack.eot, on_failure=attack.on_failure)
        self.substitute, self.attack = substitute, attack

    @property
    def name(self):
        return f"transfer of {self.attack.name}"

    @property
    def runs(self):
        return self.attack.runs

    @property
    def iterations(self):
        return self.attack.iterations

    @property
    def traces(self):
        return self.attack.traces

    def runs_of(self, classes, goal=False):
        return self.attack.runs_of(classes, goal)

    def check_classes(self, classes):
        self.attack.check_classes(classes)

    def _classes(self, model, x):
        classes = super()._classes(model, x)
        found = self.attack._classes(self.substitute, x)
        if found != classes:
            raise ValueError(
                f"`substitute` must have the {classes} classes of the target. "
                f"Received: {found} classes"
            )
        return classes

    def attempt(self, model, x, y, index, epsilon, run, goal, eager_stop):
        eager_stop = eager_stop and self.substitute is model
        return self.attack.attempt(
            self.substitute, x, y, index, epsilon, run, goal, eager_stop=eager_stop
        )

    def within(self, model, x, y, seed, index=None, epsilon=None, goal=None):
        return self.attack.within(self.substitute, x, y, seed, index, epsilon, goal)

    def get_config(self):
        attack = {"class": type(self.attack).__name__, **self.attack.get_config()}
        return {"substitute": plain(self.substitute), "attack": attack}

    @classmethod
    def from_config(cls, config):
        raise TypeError(
            "A transfer attack cannot be made from its config, which knows the substitute by its "
            "hash: call tr.attacks.Transfer(substitute, attack) again"
        )
