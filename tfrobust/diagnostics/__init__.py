"""What describes a model, in numbers that explain; `evaluate` judges it, in numbers to rely on.

A room of its own because these figures read what evaluation must not: gradients by weights,
hidden activations, masks, callbacks of a running `fit`. None of them is a certificate.

    print(tr.diagnostics.r_2(net, x_test, y_test, tr.attacks.DeepFool(tr.threats.L2(1.0))))

Functions return arrays; `tr.report.plot_...` draws them and writes files.
"""

from tfrobust.diagnostics.activations import activation_sparsity
from tfrobust.diagnostics.class_gradients import (
    ClassGradients,
    Visualised,
    class_gradients,
    visualise_class,
)
from tfrobust.diagnostics.clever import Clever, clever
from tfrobust.diagnostics.closed_form import ClosedForm
from tfrobust.diagnostics.conflict import Conflict, gradient_conflict
from tfrobust.diagnostics.discriminator_trace import DiscriminatorTrace
from tfrobust.diagnostics.landscape import Landscape, loss_landscape
from tfrobust.diagnostics.lipschitz import lipschitz_product
from tfrobust.diagnostics.maps import (
    FeatureMaps,
    VulnerabilityMap,
    feature_maps,
    pixel_map,
    vulnerability_map,
)
from tfrobust.diagnostics.measures import Measure, r_2, r_inf
from tfrobust.diagnostics.representation import (
    Angles,
    Dimensions,
    Planes,
    Sensitivity,
    feature_dimensions,
    perturbation_angles,
    representation_sensitivity,
    tsne,
    tsne_planes,
)
from tfrobust.diagnostics.vulnerability import (
    ZERO,
    Curve,
    Histogram,
    Vulnerability,
    on_same_axes,
    vulnerability,
    vulnerability_curve,
    vulnerability_histogram,
)
from tfrobust.diagnostics.watch import PruningWatch

__all__ = [
    "ZERO",
    "Angles",
    "ClassGradients",
    "Clever",
    "ClosedForm",
    "Conflict",
    "Curve",
    "Dimensions",
    "DiscriminatorTrace",
    "FeatureMaps",
    "Histogram",
    "Landscape",
    "Measure",
    "Planes",
    "PruningWatch",
    "Sensitivity",
    "Visualised",
    "Vulnerability",
    "VulnerabilityMap",
    "activation_sparsity",
    "class_gradients",
    "clever",
    "feature_dimensions",
    "feature_maps",
    "gradient_conflict",
    "lipschitz_product",
    "loss_landscape",
    "on_same_axes",
    "perturbation_angles",
    "pixel_map",
    "r_2",
    "r_inf",
    "representation_sensitivity",
    "tsne",
    "tsne_planes",
    "visualise_class",
    "vulnerability",
    "vulnerability_curve",
    "vulnerability_histogram",
    "vulnerability_map",
]
