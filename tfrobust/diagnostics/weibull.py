"""The right end of a distribution from maxima of its samples: CLEVER's reverse Weibull fit."""

import warnings

import numpy as np

STARTS = (0.1, 1.0, 5.0, 10.0, 20.0, 50.0, 100.0)
PENALTY, TRUST, SPREAD = 0.01, 1e-3, 1e-6


def right_end(maxima):
    """(location, p-value) of the reverse Weibull distribution that fits `maxima` best.

    The maxima are scaled to s = (G - max G) / (max G - min G); a Weibull distribution is fitted to
    -s from several initial shapes c0 with 0.01 c^2 added to the negative log-likelihood, and the
    fit of the highest Kolmogorov-Smirnov p-value is kept (p-values vary wildly with c0). Where that
    is below 0.001 or there is none, or where the maxima are all alike (a spread of 1e-6 of the
    largest: gradients of a linear model, rounded), the location is max G and p is NaN.

    Args:
        maxima: Float64 `(count,)`, the largest value of each batch of samples.

    Example: maxima of five uniform numbers end at 1.

    >>> draws = np.random.default_rng(0).uniform(0, 1, (500, 5)).max(-1)
    >>> end, p = right_end(draws)
    >>> 0.99 < end < 1.05 and p > 0.05
    True
    """
    from scipy import optimize, stats

    maxima = np.asarray(maxima, np.float64)
    top, spread = maxima.max(), np.ptp(maxima)
    if not spread > max(SPREAD * abs(top), 1e-8):
        return float(top), float("nan")

    def descend(function, start, args=(), disp=0):
        def penalised(theta, *rest):
            return function(theta, *rest) + PENALTY * theta[0] ** 2

        return optimize.fmin(penalised, start, args=args, disp=disp)

    data, best = (top - maxima) / spread, (float("-inf"), None)
    for shape in STARTS:
        with warnings.catch_warnings(), np.errstate(all="ignore"):
            warnings.simplefilter("ignore")
            try:
                fit = stats.weibull_min.fit(data, shape, optimizer=descend)
                p = stats.kstest(data, "weibull_min", args=fit).pvalue
            except (ValueError, FloatingPointError, stats.FitError):
                continue
        if np.isfinite([p, *fit]).all() and p > best[0]:
            best = p, fit[1]
    if best[0] < TRUST:
        return float(top), float("nan")
    return float(max(top - best[1] * spread, top)), float(best[0])
