"""What the seeds of training and the questions each add to the spread of scores."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd


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


def mixed_model(scores: "pd.DataFrame", base: str) -> "tuple[pd.DataFrame, pd.Series]":
    """A linear mixed model: score = system + item + item x system + training + rest, all but the first random.

    `scores` has one row per answer, with the columns system, seed, item and score; a training is a system with a seed.
    Returns each system's difference to `base` with its 95 % Wald interval, and the standard deviation of each random part
    (item: questions differ in difficulty; item x system: a system suits some questions; training: seeds; rest). REML, by
    statsmodels. Of a system with a single seed, such as an untrained one, the training cannot be told from the system: it has
    no such part, and its interval lacks it. Where no system has several, item x system cannot be told from the rest, either.
    Where the fit does not converge, as on a few items, everything is NaN. Raises ValueError where a score is not finite.
    """
    import warnings

    import numpy as np
    import pandas as pd
    from statsmodels.regression.mixed_linear_model import MixedLM

    table = scores[["system", "seed", "item", "score"]].reset_index(drop=True)
    if not np.isfinite(table.score).all():
        raise ValueError(f"{int((~np.isfinite(table.score)).sum())} of {len(table)} scores are not finite; all must be")
    if base not in set(table.system):
        raise ValueError(f"no scores of '{base}'; there are {', '.join(sorted(set(table.system)))}")
    table["pair"] = table.item.astype(str) + "/" + table.system
    table["training"] = table.system + "/" + table.seed.astype(str)
    table["several"] = (table.groupby("system").seed.transform("nunique") > 1).astype(float)
    parts = {"item": "0 + C(item)"}
    if table.several.any():
        parts |= {"item x system": "0 + C(pair)", "training": "0 + C(training):several"}
    unit = table.score.std() or 1.0  # the optimiser stops by absolute size, so scores are given to it in standard deviations
    formula = f"z ~ C(system, Treatment('{base}'))"
    table["z"] = table.score / unit
    model = MixedLM.from_formula(formula, table, groups=np.ones(len(table)), vc_formula=parts, re_formula="0")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a part that is zero lies on the boundary, where logarithms are not finite
        fitted = model.fit(reml=True, method=["lbfgs", "bfgs"])
        low, high = fitted.conf_int()[0], fitted.conf_int()[1]
    effects = pd.DataFrame({"difference": fitted.fe_params, "low": low, "high": high, "standard_error": fitted.bse_fe}) * unit
    named = {f"C(system, Treatment('{base}'))[T.{name}]": name for name in table.system.unique() if name != base}
    deviations = pd.Series(np.sqrt(fitted.vcomp) * unit, index=model.exog_vc.names)
    deviations["rest"] = np.sqrt(fitted.scale) * unit
    if not fitted.converged:
        effects, deviations = effects * np.nan, deviations * np.nan
    return effects.loc[list(named)].rename(index=named), deviations
