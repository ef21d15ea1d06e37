"""Scores of two systems on the same items: intervals, tests and effect size of their difference, on scipy and statsmodels.

Items that belong together, such as the follow-ups of one question, are named by a common value of `clusters`; they are
drawn, and change signs, together. Without clusters each item stands for itself.
"""

from collections.abc import Hashable, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd

FEWEST = 10  # clusters that a verdict needs


def sums_by_cluster(values: "np.ndarray", clusters: Sequence[Hashable] | None) -> "tuple[np.ndarray, np.ndarray]":
    """Sums of the values, whose first axis is the items, within each cluster, and the number of its items."""
    import numpy as np
    import pandas as pd

    if clusters is None:
        return values, np.ones(len(values))
    if len(clusters) != len(values):
        raise ValueError(f"{len(clusters)} clusters are named for {len(values)} items; each item needs one")
    number = pd.factorize(pd.Series([*clusters], dtype=object))[0]
    sums = np.zeros((number.max() + 1, *values.shape[1:]))
    np.add.at(sums, number, values)
    return sums, np.bincount(number).astype(float)


def mean_interval(
    scores: "np.ndarray", resamples: int = 9999, seed: int = 0, clusters: Sequence[Hashable] | None = None
) -> tuple[float, float]:
    """95 % BCa bootstrap interval (Efron 1987) of the mean of per-item scores; the mean itself where all are equal.

    The percentiles are those of Student's t, since a bootstrap distribution of few items is too narrow (Hesterberg 2015,
    expanded percentile interval). Clusters are drawn whole.

    Raises:
        ValueError: there is no score, or one that is not finite.
    """
    import numpy as np
    from scipy import stats

    scores = np.asarray(scores, float)
    if not len(scores) or not np.isfinite(scores).all():
        raise ValueError("an interval needs scores, all finite")
    sums, sizes = sums_by_cluster(scores, clusters)
    if len(sums) < 2 or np.ptp(sums / sizes) == 0:
        return float(scores.mean()), float(scores.mean())
    few = len(sums) - 1
    level = 1 - 2 * stats.norm.cdf(-np.sqrt(len(sums) / few) * stats.t.ppf(0.975, few))
    level = min(level, 1 - 1e-9)  # of two items it would round to 1, of which BCa makes nothing
    options = {"n_resamples": resamples, "method": "BCa", "confidence_level": level, "rng": np.random.default_rng(seed)}
    if clusters is None:
        found = stats.bootstrap((scores,), np.mean, **options)
    else:

        def mean(drawn: "np.ndarray", of: "np.ndarray", axis: int = -1) -> "np.ndarray":
            return drawn.sum(axis) / of.sum(axis)

        found = stats.bootstrap((sums, sizes), mean, paired=True, vectorized=True, **options)
    return float(found.confidence_interval.low), float(found.confidence_interval.high)


def mean_intervals(scores: "pd.DataFrame", resamples: int = 9999, seed: int = 0) -> "pd.DataFrame":
    """`mean` of each column of per-item scores, with its `mean_interval` as `low` and `high`; one row per column."""
    import pandas as pd

    bounds = [mean_interval(scores[name], resamples, seed) for name in scores]
    return pd.DataFrame(bounds, columns=["low", "high"], index=scores.columns).assign(mean=scores.mean())


def standard_error(scores: "np.ndarray", clusters: Sequence[Hashable] | None = None) -> float:
    """Standard error of the mean of scores; robust to what the members of a cluster have in common (Liang and Zeger 1986).

    Raises ValueError with fewer than two clusters.
    """
    import numpy as np

    sums, sizes = sums_by_cluster(np.asarray(scores, float), clusters)
    if len(sums) < 2:
        raise ValueError(f"a standard error needs at least two independent items, here {len(sums)}")
    left = sums - sizes * (sums.sum() / sizes.sum())
    return float(np.sqrt((left**2).sum() * len(sums) / (len(sums) - 1)) / sizes.sum())


def studentised_interval(
    scores: "np.ndarray", resamples: int = 9999, seed: int = 0, clusters: Sequence[Hashable] | None = None
) -> tuple[float, float]:
    """95 % studentised bootstrap interval (bootstrap-t, Efron and Tibshirani 1993, 12.5) of the mean of per-item scores.

    Nearer to its level than BCa on small samples, and wider; a resample without spread says nothing and is left out.
    """
    import numpy as np

    scores = np.asarray(scores, float)
    if not len(scores) or not np.isfinite(scores).all():
        raise ValueError("an interval needs scores, all finite")
    sums, sizes = sums_by_cluster(scores, clusters)
    error = standard_error(scores, clusters)
    if not error > 0:
        return float(scores.mean()), float(scores.mean())
    drawn = np.random.default_rng(seed).integers(len(sums), size=(resamples, len(sums)))
    sums, sizes = sums[drawn], sizes[drawn]
    means = sums.sum(1) / sizes.sum(1)
    errors = np.sqrt(((sums - sizes * means[:, None]) ** 2).sum(1) * len(drawn[0]) / (len(drawn[0]) - 1)) / sizes.sum(1)
    kept = errors > 1e-12 * error
    # the k-th of B lies at k / (B + 1) (Davison and Hinkley 1997, 2.4)
    low, high = np.quantile((means[kept] - scores.mean()) / errors[kept], [0.025, 0.975], method="weibull")
    return float(scores.mean() - high * error), float(scores.mean() - low * error)


def noncentrality_interval(t: float, free: float) -> tuple[float, float]:
    """95 % interval of the noncentrality of a t statistic with `free` degrees of freedom (Steiger and Fouladi 1997)."""
    import numpy as np
    from scipy import optimize
    from scipy import stats as distributions

    if not np.isfinite(t):
        return float("nan"), float("nan")
    error = np.sqrt(1 + t**2 / (2 * free))
    if abs(t) > 1_000:  # the series of the distribution no longer converge; differences that hardly differ from each other
        return float(t - 1.96 * error), float(t + 1.96 * error)
    width = 5 * error

    def below(noncentrality: float) -> float:  # far out the distribution's series fail: there it is 1 or 0
        return float(np.nan_to_num(distributions.nct.cdf(t, free, noncentrality), nan=float(noncentrality < t)))

    def at(chance: float) -> float:
        return float(optimize.brentq(lambda noncentrality: below(noncentrality) - chance, t - width, t + width))

    return at(0.975), at(0.025)


def compare_paired(
    first: "np.ndarray",
    second: "np.ndarray",
    resamples: int = 9999,
    seed: int = 0,
    clusters: Sequence[Hashable] | None = None,
) -> dict:
    """Compare per-item scores of two systems; both arrays have shape (items,) in the same order. Higher scores are better.

    Returns, of the mean difference (second minus first):
    - `difference`, its 95 % intervals by BCa bootstrap (`low`, `high`) and by t (`t_low`, `t_high`),
    - `p` of a two-sided sign-flip permutation test; all 2^n sign patterns are taken where these are no more than
      `resamples`, so that p is at least 2 / 2^n: five items (0.0625) can never reach 5 %; else p is at least
      2 / (resamples + 1),
    - `p_t` of the paired t-test, and `p_rank` of `rank_test`: McNemar's exact test where all scores are 0 or 1, else
      Wilcoxon's signed-rank test with Pratt's ranks of zeros; none (NaN) where a cluster holds several items,
    - Cohen's `d_z` (mean difference over the standard deviation of the differences; infinite where all differ alike)
      with its 95 % interval from the noncentral t distribution (`d_low`, `d_high`),
    - `n` items, `clusters`, and `n_effective`: the number of independent items with which the mean would be as uncertain.

    With clusters the t interval and test are those of cluster-robust standard errors with clusters - 1 degrees of freedom.
    Raises ValueError when the arrays do not pair up, are not finite, or hold fewer than two clusters.
    """
    import numpy as np
    from scipy import stats

    first, second = np.asarray(first, float), np.asarray(second, float)
    if first.shape != second.shape or first.ndim != 1:
        raise ValueError(f"scores do not pair up: shapes {first.shape} and {second.shape}")
    if bad := [i for i in range(len(first)) if not np.isfinite(first[i] + second[i])]:
        raise ValueError(
            f"{len(bad)} of {len(first)} paired scores are not finite, the first at position {bad[0]}; all must be"
        )
    difference = (second - first).round(12)  # 0.3 - 0.2 and 0.2 - 0.1 are equal differences
    sums, sizes = sums_by_cluster(difference, clusters)
    sums = sums.round(12)  # 0.1 + 0.2 - 0.3 is no difference
    if len(sums) < 2:
        raise ValueError(f"a paired comparison needs at least two independent items, here {len(sums)}")
    mean, free, several = sums.sum() / len(difference), len(sums) - 1, sizes.max() > 1
    low, high = mean_interval(difference, resamples, seed, clusters)
    spread = difference.std(ddof=1) if np.ptp(difference) else 0.0
    error = standard_error(difference, clusters) if np.ptp(sums / sizes) else 0.0
    with np.errstate(divide="ignore", invalid="ignore"):
        effect, t = (mean / np.float64(of) if mean else 0.0 for of in (spread, error))
    half = stats.t.ppf(0.975, free) * error
    d_low, d_high = (ncp * error / spread if spread else float("nan") for ncp in noncentrality_interval(t, free))
    binary = np.isin([first, second], [0, 1]).all()
    rank = float("nan") if several else (_mcnemar if binary else _wilcoxon)(difference)
    test = stats.permutation_test(
        (sums,), np.mean, permutation_type="samples", n_resamples=resamples, rng=np.random.default_rng(seed)
    )
    return {
        "difference": float(mean),
        "low": low,
        "high": high,
        "t_low": float(mean - half),
        "t_high": float(mean + half),
        "p": float(test.pvalue),
        "p_t": float(2 * stats.t.sf(abs(t), free)),
        "p_rank": rank,
        "rank_test": "McNemar" if binary else "Wilcoxon",
        "d_z": float(effect),
        "d_low": float(d_low),
        "d_high": float(d_high),
        "n": len(difference),
        "clusters": len(sums),
        "n_effective": float((spread / error) ** 2) if error else float(len(sums)),
    }


def _wilcoxon(difference: "np.ndarray") -> float:
    from scipy import stats

    return float(stats.wilcoxon(difference, zero_method="pratt").pvalue) if difference.any() else 1.0


def _mcnemar(difference: "np.ndarray") -> float:
    from statsmodels.stats.contingency_tables import mcnemar

    gained, lost = int((difference > 0).sum()), int((difference < 0).sum())
    return float(mcnemar([[0, lost], [gained, 0]], exact=True).pvalue) if gained + lost else 1.0
