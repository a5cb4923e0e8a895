"""How many images no attack in the ball can break, proved.

    proof = tr.verify.certify(model, (x_test, y_test), tr.threats.Linf(0.1))
    print(proof)                            # clean >= under attack >= verified, 95 % intervals
    proof.verified.value, proof.status, proof.to_dict()

An image is *verified* when a bound shows that the right logit stays the largest on the whole ball,
*broken* when it is wrong as it is or an attack turned it, else *undecided*: the gap between what is
proved and what attacks can do. Cheap bounds come first, then an attack, then dearer bounds; each
sees only what is undecided so far. `exact` decides tiny networks completely.
"""

from tfrobust.verify.certificate import STATUS, Certificate, CertifiedCurve, Stage
from tfrobust.verify.complete import exact
from tfrobust.verify.protocol import certify

__all__ = ["STATUS", "Certificate", "CertifiedCurve", "Stage", "certify", "exact"]
