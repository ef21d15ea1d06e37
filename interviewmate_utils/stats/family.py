"""Verdicts on several systems at once, and how to say them."""

from collections.abc import Hashable, Mapping, Sequence
from typing import TYPE_CHECKING

from .paired import FEWEST, compare_paired, sums_by_cluster
from .power import smallest_detectable_effect

if TYPE_CHECKING:
    import pandas as pd

NOT_DISTINGUISHABLE = "not distinguishable"
TOO_FEW = "no verdict"


def verdict(difference: float, p: float, clusters: int) -> str:
    """better, worse or not distinguishable at 5 %, by an adjusted p; none with fewer than FEWEST independent items."""
    if clusters < FEWEST:
        return TOO_FEW
    return NOT_DISTINGUISHABLE if p >= 0.05 else "better" if difference > 0 else "worse"


def verdicts(
    scores: "pd.DataFrame", base: str, resamples: int = 9999, seed: int = 0, clusters: Sequence[Hashable] | None = None
) -> "pd.DataFrame":
    """Every other system against `base` on one metric (higher is better): a Holm family (Holm 1979).

    `scores` has one row per item and one column per system; `clusters` names, per item, what belongs together. A row has
    its `verdict` after Holm; `detectable_d` is the smallest d_z that Holm's strictest step could have shown with 80 % power.
    """
    import pandas as pd
    from statsmodels.stats.multitest import multipletests

    systems = [name for name in scores if name != base]
    table = pd.DataFrame([compare_paired(scores[base], scores[n], resamples, seed, clusters) for n in systems], index=systems)
    table.index.name = "system"
    table["p_holm"] = multipletests(table.p, method="holm")[1]
    table["p_floor"] = 2 / (min(resamples, 2 ** int(table.clusters.iloc[0])) + 1)  # no resample can give less
    table["family"] = len(systems)
    table["detectable_d"] = [smallest_detectable_effect(n, 0.05 / len(systems)) for n in table.n_effective]
    table["verdict"] = [verdict(row.difference, row.p_holm, row.clusters) for row in table.itertuples()]
    return table


def by_group(scores: "pd.DataFrame", base: str, labels: "pd.DataFrame", resamples: int = 999, seed: int = 0) -> "pd.DataFrame":
    """Every other system against `base` within each group of items: exploratory, so without verdicts.

    `labels` has the rows of `scores` and one column per way of grouping. One row per label, group and system, with `n`,
    `difference` and its 95 % BCa interval `low`, `high`, which is NaN below FEWEST items.
    """
    import pandas as pd

    rows = []
    for label in labels:
        for group, members in scores.groupby(labels[label].fillna("not stated"), sort=True, observed=True):
            for system in [name for name in scores if name != base]:
                row = {"label": label, "group": group, "system": system, "n": len(members)}
                row["difference"] = (members[system] - members[base]).mean()
                if len(members) >= FEWEST:
                    row |= compare_paired(members[base], members[system], resamples, seed)
                rows.append(row)
    columns = ["label", "group", "system", "n", "difference", "low", "high"]
    return pd.DataFrame(rows).reindex(columns=columns)


def p_text(row: Mapping, equals: str = "") -> str:
    """The adjusted p of a row of `verdicts`; `<=` where no resample was as extreme, so that only its bound is known."""
    return f"{'<= ' if row['p'] <= row['p_floor'] else equals}{row['p_holm']:.4f}"


def sentence(system: str, base: str, metric: str, row: Mapping) -> str:
    """One verdict in words, with everything a reader needs to judge it."""
    outcome = {
        NOT_DISTINGUISHABLE: f"is not distinguishable from {base}",
        TOO_FEW: f"gets no verdict against {base}, which takes {FEWEST} independent items,",
    }.get(row["verdict"], f"is {row['verdict']} than {base}")
    holm = f" after Holm over {row['family']:.0f}" if row["family"] > 1 else ""
    grouped = f" in {row['clusters']:.0f} clusters" if row["clusters"] < row["n"] else ""
    return (
        f"{system[0].upper()}{system[1:]} {outcome} on {metric}: difference {row['difference']:+.3f} "
        f"(unadjusted 95 % interval {row['low']:+.3f} to {row['high']:+.3f}, n = {row['n']:.0f}{grouped}), "
        f"permutation p {p_text(row, '= ')}{holm}, d_z = {row['d_z']:.2f} ({row['d_low']:.2f} to {row['d_high']:.2f}); "
        f"the smallest effect that such a sample shows with 80 % power is d_z = {row['detectable_d']:.2f}."
    )


def chance_of_best(
    scores: "pd.DataFrame", resamples: int = 9999, seed: int = 0, clusters: Sequence[Hashable] | None = None
) -> "pd.Series":
    """Per system (column), the share of bootstrap samples of the items (rows) in which its mean is the highest.

    Ties share. It is how often other questions of this kind would put the system first, not how likely it is the best:
    that would take a prior (Efron and Tibshirani 1998 on such bootstrap probabilities).
    """
    import numpy as np
    import pandas as pd

    values = scores.to_numpy(float)
    if not values.size or not np.isfinite(values).all():
        raise ValueError("the best system can be told only from scores, all finite, one of each system for each item")
    sums, sizes = sums_by_cluster(values, clusters)
    drawn = np.random.default_rng(seed).integers(len(sums), size=(resamples, len(sums)))
    times = np.stack([np.bincount(row, minlength=len(sums)) for row in drawn])
    means = (times @ sums) / (times @ sizes)[:, None]
    first = np.isclose(means, means.max(1, keepdims=True), rtol=0, atol=1e-12)
    return pd.Series((first / first.sum(1, keepdims=True)).mean(0), index=scores.columns, name="chance_of_best")
