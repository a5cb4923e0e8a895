"""What describes a model, in numbers that explain; `evaluate` judges it, in numbers to rely on.

A room of its own because these figures read what evaluation must not: gradients by weights,
hidden activations, masks, callbacks of a running `fit`. None of them is a certificate.

    print(tr.diagnostics.r_2(net, x_test, y_test, tr.attacks.DeepFool(tr.threats.L2(1.0))))
"""

from tfrobust.diagnostics.activations import activation_sparsity
from tfrobust.diagnostics.clever import Clever, clever
from tfrobust.diagnostics.closed_form import ClosedForm
from tfrobust.diagnostics.conflict import Conflict, gradient_conflict
from tfrobust.diagnostics.lipschitz import lipschitz_product
from tfrobust.diagnostics.measures import Measure, r_2, r_inf
from tfrobust.diagnostics.watch import PruningWatch

__all__ = [
    "Clever",
    "ClosedForm",
    "Conflict",
    "Measure",
    "PruningWatch",
    "activation_sparsity",
    "clever",
    "gradient_conflict",
    "lipschitz_product",
    "r_2",
    "r_inf",
]
