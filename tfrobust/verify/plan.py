"""What a certification was asked for, checked before any work."""

import math
from collections.abc import Iterable

import numpy as np

from tfrobust import attacks as attack_room
from tfrobust import contract
from tfrobust.bounds import METHODS, Program, backward
from tfrobust.evaluate.collect import config_of
from tfrobust.threats import Threat
from tfrobust.verify import complete

GRADIENTS = 5000  # of one image by full CROWN, up to which "auto" takes it
# What each name stands for, from cheap to dear.
CASCADES = {
    "ibp": ("ibp",),
    "crown-ibp": ("ibp", "crown-ibp"),
    "symbolic": ("ibp", "crown-ibp", "symbolic"),
    "crown": ("ibp", "crown-ibp", "crown"),
    "exact": ("ibp", "crown-ibp", "exact"),
}


class Plan:
    """Checked arguments of `certify`.

    Attributes:
        program: `tr.bounds.Program` of the model.
        methods: Names, from cheap to dear.
        attacks: List.
        stages: Names: "clean", the first method, the attacks, the other methods.
        grid: Radii of the curve, growing, the threat's own among them; empty without a curve.
    """

    def __init__(self, model, threat, method, attacks, eps_grid, time_limit):
        self.model = contract.classifier(model, "model")
        self.classes = contract.classes_of(model)
        if not isinstance(threat, Threat):
            raise TypeError(
                "`threat` must be a tr.threats.Threat such as tr.threats.Linf(8/255). "
                f"Received: threat={threat!r}"
            )
        self.threat = threat
        self.program = Program(model)
        self.methods = self._methods(method)
        self.attacks = self._attacks(attacks)
        first, *dearer = self.methods
        names = [getattr(a, "name", type(a).__name__) for a in self.attacks]
        self.stages = ["clean", first, *names, *dearer]
        self.grid = self._grid(eps_grid)
        self.time_limit = complete.seconds(time_limit)

    def _methods(self, method):
        if isinstance(method, str):
            if method == "auto":
                gradients = backward.cost(self.program)
                small = gradients is not None and gradients <= GRADIENTS
                method = "crown" if small else "crown-ibp"
            chosen = CASCADES.get(method, (method,))
        else:
            chosen = tuple(method) if isinstance(method, Iterable) else ()
        known = (*METHODS, "exact")
        wrong = [name for name in chosen if name not in known]
        if wrong or not chosen or len(set(chosen)) < len(chosen):
            raise ValueError(
                f"`method` must be 'auto', one of {', '.join(known)}, or a list of these. "
                f"Received: method={method!r}"
            )
        for name in chosen:
            if name == "exact":
                complete.check(self.program, self.threat)
            else:
                METHODS[name].check(self.program)
        return list(chosen)

    def _attacks(self, attacks):
        if attacks is None:
            return [attack_room.PGD(self.threat, steps=40, loss="margin")]
        attacks = list(attacks) if isinstance(attacks, Iterable) else [attacks]
        for attack in attacks:
            if not hasattr(attack, "threat") or not callable(attack):
                raise TypeError(
                    "`attacks` must hold tr.attacks.Attack objects. "
                    f"Received: {type(attack).__name__}"
                )
            ours = self.threat.norm, self.threat.epsilon
            if (attack.threat.norm, attack.threat.epsilon) != ours:
                raise ValueError(
                    f"`attacks` must attack {self.threat!r}, the threat of the certificate. "
                    f"Received: {type(attack).__name__} of {attack.threat!r}"
                )
            if hasattr(attack, "check_classes"):
                attack.check_classes(self.classes)
        return attacks

    def _grid(self, eps_grid):
        if eps_grid is None:
            return ()
        if np.ndim(eps_grid) != 1:
            raise TypeError(f"`eps_grid` must be a list of radii. Received: {eps_grid!r}")
        if not all(contract.is_number(e) and 0 <= e < math.inf for e in eps_grid):
            raise ValueError(
                f"`eps_grid` must hold finite radii >= 0. Received: eps_grid={list(eps_grid)}"
            )
        radii = {type(self.threat)(float(e)).epsilon for e in eps_grid}
        return tuple(sorted((radii | {self.threat.epsilon}) - {0.0}))

    def identity(self):
        """JSON values that tell this certification from others (the model aside)."""
        return {
            "threat": [type(self.threat).__name__, self.threat.get_config()],
            "methods": [*self.methods, self.time_limit],
            "attacks": [config_of(attack) for attack in self.attacks],
            "curve": list(self.grid),
        }
