"""Certificates on a card: their rows, their stages in words, their picture."""

from tfrobust.report.plots import plain
from tfrobust.report.threat import named, norm_of


def rows(models):
    """One row for each certificate of a card's models, of plain values.

    Returns:
        List of {"model", "threat", "proof", "verified", "undecided", "broken" (images), "stages":
        [(name, verified, broken)] of those that decided something, "attacks": names}.
    """
    found = []
    for name, part in models.items():
        for proof in part.get("certificate", ()):
            verified, undecided = proof["verified"]["count"], proof["undecided"]
            stages = [(s["name"], s["verified"], s["broken"]) for s in proof["stages"]]
            found.append(
                {
                    "model": name,
                    "threat": named(proof),
                    "proof": proof,
                    "verified": verified,
                    "undecided": undecided,
                    "broken": proof["n"] - verified - undecided,
                    "stages": [stage for stage in stages if stage[1] or stage[2]],
                }
            )
    return found


def told(stage):
    """A stage in words.

    >>> told(("clean", 0, 3)), told(("ibp", 90, 0)), told(("exact", 2, 1))
    ('without attack: 3 wrong', 'ibp: 90 verified', 'exact: 2 verified, 1 broken')
    """
    name, verified, broken = stage
    if name == "clean":
        return f"without attack: {broken:,} wrong"
    counts = [f"{verified:,} verified"] * bool(verified) + [f"{broken:,} broken"] * bool(broken)
    return f"{name}: {', '.join(counts)}"


def proof_of(part, threat):
    """The certificate of a model for a card's threat (any without one), the largest, or None."""
    proofs = [
        proof
        for proof in part.get("certificate", ())
        if not threat
        or (norm_of(proof["threat"]), proof["epsilon"]) == (threat["norm"], threat["epsilon"])
    ]
    return max(proofs, key=lambda proof: proof["n"], default=None)


def parts_of(models):
    """What `picture` draws of a card's models: the last certified curve of each norm."""
    found = {}
    for name, part in models.items():
        for proof in part.get("certificate", ()):
            if proof["curve"]:
                values = drawn(proof["curve"], proof, part["curve"])
                found.setdefault(name, {})[values["norm"]] = values
    return found


def drawn(curve, proof=None, attacked=None):
    """Plain values of one network in `picture`.

    Args:
        curve: `CertifiedCurve` as a dictionary.
        proof: The `Certificate` that it is of, as a dictionary: its attacked accuracy is marked.
        attacked: `tr.evaluate.Curve` as a dictionary; left out where its norm is another one.
    """
    same = attacked is not None and attacked["norm"] == curve["norm"]
    point = proof and proof["attacked"] and (proof["epsilon"], proof["attacked"]["accuracy"])
    return {**curve, "attacked": attacked if same else None, "point": point or None}


def picture(parts, palette, colours):
    """Certified accuracy against epsilon with 95 % bands; dashed, what attacks leave.

    Args:
        parts: {model: {norm: what `drawn` gives}}; each norm has its panel.
    """
    norms = sorted({norm for part in parts.values() for norm in part})

    def paint(figure):
        every = figure.subplots(len(norms), 1, squeeze=False)[:, 0]
        for axes, norm in zip(every, norms, strict=True):
            lines = {name: part[norm] for name, part in parts.items() if norm in part}
            for name, values in lines.items():
                _line(axes, name, values, colours[name])
            points = [values["point"] for values in lines.values() if values["point"]]
            if points:
                axes.plot([], [], "D", color=palette.quiet, fillstyle="none", markersize=7,
                          label="left by the certificate's own attack")  # fmt: skip
            reach = max(values["epsilons"][-1] for values in lines.values())
            axes.set(xlim=(0, 1.04 * reach), ylim=(0, 102), ylabel="accuracy, %")
            axes.set_xlabel(f"epsilon ({norm.capitalize()})")
            axes.grid(axis="y")
            axes.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=2, fontsize=9)

    most = max(sum(2 for part in parts.values() if norm in part) for norm in norms)
    return (7.2, (3.2 + 0.12 * most) * len(norms)), paint


def _line(axes, name, values, colour):
    epsilons, rates = values["epsilons"], values["rates"]
    low, high = ([100 * rate[side] for rate in rates] for side in ("low", "high"))
    before = f"{plain(name)}, " if name else ""
    axes.fill_between(epsilons, low, high, color=colour, alpha=0.18, linewidth=0)
    axes.plot(epsilons, [100 * rate["accuracy"] for rate in rates], color=colour, marker="o",
              markersize=4, linewidth=2, label=f"{before}verified")  # fmt: skip
    if values["attacked"]:
        curve = values["attacked"]
        axes.plot(curve["epsilons"], [100 * rate["accuracy"] for rate in curve["rates"]],
                  color=colour, linestyle="--", linewidth=1.6,
                  label=f"{before}under {curve['attack']}")  # fmt: skip
    if values["point"]:
        epsilon, accuracy = values["point"]
        axes.plot(epsilon, 100 * accuracy, "D", color=colour, fillstyle="none", markersize=7)
