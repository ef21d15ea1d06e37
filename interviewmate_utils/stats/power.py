"""How much a paired comparison can show, and how many items it takes."""


def power(n: float, d_z: float, alpha: float = 0.05) -> float:
    """Chance that a paired two-sided t-test on `n` items finds a true standardised difference `d_z`."""
    from statsmodels.stats.power import TTestPower

    return float(TTestPower().power(d_z, nobs=n, alpha=alpha, alternative="two-sided"))


def smallest_detectable_effect(n: float, alpha: float = 0.05, power: float = 0.8) -> float:
    """Smallest d_z that a paired two-sided t-test on `n` items finds with the given power: 0.42 at n = 46."""
    return _solve(nobs=n, alpha=alpha, power=power)


def items_needed(d_z: float, alpha: float = 0.05, power: float = 0.8) -> int:
    """Fewest items on which a paired two-sided t-test finds a true `d_z`, not zero, with the given power: 34 for 0.5."""
    import math

    if not math.isfinite(d_z) or d_z == 0:
        raise ValueError(f"no number of items shows an effect of {d_z}: it must be finite and not zero")
    return max(2, math.ceil(_solve(effect_size=abs(d_z), alpha=alpha, power=power) - 1e-6))


def _solve(**known: float) -> float:
    """The one of nobs, effect_size, alpha and power that is not among the `known`."""
    import numpy as np
    from statsmodels.stats.power import TTestPower

    found = TTestPower().solve_power(**known, alternative="two-sided")
    return float(np.asarray(found).item())  # an array of one where the first of statsmodels' solvers fails
