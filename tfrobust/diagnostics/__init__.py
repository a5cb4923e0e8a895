"""What describes a model, in numbers that explain; `evaluate` judges it, in numbers to rely on.

A room of its own because these figures read what evaluation must not: gradients by weights,
hidden activations, masks, callbacks of a running `fit`. None of them is a certificate.

    print(tr.diagnostics.r_2(net, x_test, y_test, tr.attacks.DeepFool(tr.threats.L2(1.0))))
"""

from tfrobust.diagnostics.activations import activation_sparsity
from tfrobust.diagnostics.closed_form import ClosedForm
from tfrobust.diagnostics.measures import Measure, r_2, r_inf

__all__ = ["ClosedForm", "Measure", "activation_sparsity", "r_2", "r_inf"]
