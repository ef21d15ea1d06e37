"""Paired comparison of systems on the same items, on scipy and statsmodels."""

from collections.abc import Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd

NOT_DISTINGUISHABLE = "not distinguishable"


def mean_interval(scores: "np.ndarray", resamples: int = 9999, seed: int = 0) -> tuple[float, float]:
    """95 % BCa bootstrap interval (Efron 1987) of the mean of per-item scores; the mean itself where all are equal.

    Raises ValueError when there is no score, or one that is not finite.
    """
    import numpy as np
    from scipy import stats

    scores = np.asarray(scores, float)
    if not len(scores) or not np.isfinite(scores).all():
        raise ValueError("an interval needs scores, all finite")
    if len(scores) < 2 or np.ptp(scores) == 0:
        return float(scores.mean()), float(scores.mean())
    result = stats.bootstrap((scores,), np.mean, n_resamples=resamples, method="BCa", rng=np.random.default_rng(seed))
    return float(result.confidence_interval.low), float(result.confidence_interval.high)


def spread(values: "np.ndarray") -> dict[str, float]:
    """Mean and standard deviation of a few values (one per training seed, say), the latter with its chi-square 95 % interval.

    The interval assumes normal values and is wide for few: at three, from 0.52 to 6.28 times the standard deviation. Of a
    single value nothing is known but itself: the rest is NaN.
    """
    import numpy as np
    from scipy import stats

    values = np.asarray(values, float)
    if not len(values) or not np.isfinite(values).all():
        raise ValueError("a spread needs values, all finite")
    free = len(values) - 1
    sd = values.std(ddof=1) if free else np.nan
    low, high = (sd * np.sqrt(free / stats.chi2.ppf(q, free)) if free else np.nan for q in (0.975, 0.025))
    return {"mean": values.mean(), "sd": sd, "sd_low": low, "sd_high": high, "n": len(values)}


def smallest_detectable_effect(n: int, alpha: float = 0.05, power: float = 0.8) -> float:
    """Smallest d_z that a paired two-sided t-test on `n` items finds with the given power: 0.42 at n = 46."""
    from statsmodels.stats.power import TTestPower

    return float(TTestPower().solve_power(nobs=n, alpha=alpha, power=power, alternative="two-sided"))


def compare_paired(first: "np.ndarray", second: "np.ndarray", resamples: int = 9999, seed: int = 0) -> dict[str, float]:
    """Compare per-item scores of two systems; both arrays have shape (items,) in the same order.

    Returns the mean difference (second minus first), its 95 % BCa and t intervals, the two-sided p of a sign-flip
    permutation test, Cohen's d_z (mean difference over the standard deviation of the differences; infinite where all
    differ alike), and n. Higher scores are better. The test takes all 2^n sign patterns where these are no more than
    `resamples`, so that p is at least 2 / 2^n: five items (0.0625) can never reach 5 %; else p is at least
    2 / (resamples + 1).
    Raises ValueError when the arrays do not pair up, are not finite, or hold fewer than two items.
    """
    import numpy as np
    from scipy import stats

    first, second = np.asarray(first, float), np.asarray(second, float)
    if first.shape != second.shape or first.ndim != 1:
        raise ValueError(f"scores do not pair up: shapes {first.shape} and {second.shape}")
    if len(first) < 2 or not (np.isfinite(first).all() and np.isfinite(second).all()):
        raise ValueError("paired scores need at least two items, all finite")
    difference = (second - first).round(12)  # 0.3 - 0.2 and 0.2 - 0.1 are equal differences
    low, high = mean_interval(difference, resamples, seed)
    spread = difference.std(ddof=1) if np.ptp(difference) else 0.0
    with np.errstate(divide="ignore"):
        effect = difference.mean() / np.float64(spread) if difference.any() else 0.0
    half = stats.t.ppf(0.975, len(difference) - 1) * spread / np.sqrt(len(difference))
    test = stats.permutation_test(
        (difference,), np.mean, permutation_type="samples", n_resamples=resamples, rng=np.random.default_rng(seed)
    )
    return {
        "difference": float(difference.mean()),
        "low": low,
        "high": high,
        "t_low": float(difference.mean() - half),
        "t_high": float(difference.mean() + half),
        "p": float(test.pvalue),
        "d_z": float(effect),
        "n": len(difference),
    }


def verdicts(scores: "pd.DataFrame", base: str, resamples: int = 9999, seed: int = 0) -> "pd.DataFrame":
    """Every other system against `base` on one metric (higher is better): a Holm family (Holm 1979).

    `scores` has one row per item and one column per system. A row's verdict is better, worse or not distinguishable at
    5 % after Holm; `detectable_d` is the smallest d_z that Holm's strictest step could have shown with 80 % power.
    """
    import pandas as pd
    from statsmodels.stats.multitest import multipletests

    systems = [name for name in scores if name != base]
    table = pd.DataFrame([compare_paired(scores[base], scores[name], resamples, seed) for name in systems], index=systems)
    table.index.name = "system"
    table["p_holm"] = multipletests(table.p, method="holm")[1]
    table["p_floor"] = 2 / (min(resamples, 2 ** len(scores)) + 1)  # no resample can give less
    table["family"] = len(systems)
    table["detectable_d"] = smallest_detectable_effect(len(scores), 0.05 / len(systems))
    sign = table.difference.gt(0).map({True: "better", False: "worse"})
    table["verdict"] = sign.where(table.p_holm < 0.05, NOT_DISTINGUISHABLE)
    return table


def p_text(row: Mapping, equals: str = "") -> str:
    """The adjusted p of a row of `verdicts`; `<=` where no resample was as extreme, so that only its bound is known."""
    return f"{'<= ' if row['p'] <= row['p_floor'] else equals}{row['p_holm']:.4f}"


def sentence(system: str, base: str, metric: str, row: Mapping) -> str:
    """One verdict in words, with everything a reader needs to judge it."""
    outcome = f"not distinguishable from {base}" if row["verdict"] == NOT_DISTINGUISHABLE else f"{row['verdict']} than {base}"
    holm = f" after Holm over {row['family']:.0f}" if row["family"] > 1 else ""
    return (
        f"{system[0].upper()}{system[1:]} is {outcome} on {metric}: difference {row['difference']:+.3f} "
        f"(unadjusted 95 % interval {row['low']:+.3f} to {row['high']:+.3f}, n = {row['n']:.0f}), "
        f"permutation p {p_text(row, '= ')}{holm}, d_z = {row['d_z']:.2f}; "
        f"the smallest effect that such a sample shows with 80 % power is d_z = {row['detectable_d']:.2f}."
    )
