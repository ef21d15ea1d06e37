"""Verdicts agree with scipy, statsmodels, exact enumeration and hand computation, also where the data degenerate."""

import itertools
import re

import numpy as np
import pandas as pd
import pytest
from scipy import stats as reference
from statsmodels.stats.multitest import multipletests

from interviewmate_utils import stats


def pair(n: int = 46, effect: float = 0.3, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Two systems on the same items: skewed scores between 0 and 1 that share the item's difficulty."""
    rng = np.random.default_rng(seed)
    items = rng.beta(2, 6, n)
    return items, np.clip(items + 0.05 * effect + 0.05 * rng.standard_normal(n), 0, 1)


def family(n: int = 46) -> pd.DataFrame:
    base, better = pair(n, effect=2.0)
    rng = np.random.default_rng(1)
    noise = {name: base + 0.05 * rng.standard_normal(n) for name in ("same", "also same")}
    return pd.DataFrame({"base": base, "better": better, "worse": base - (better - base), **noise})


def by_enumeration(difference: np.ndarray) -> float:
    """Two-sided p of the sign-flip test: twice the smaller tail over all sign patterns."""
    signs = np.array(list(itertools.product((-1, 1), repeat=len(difference))))
    null = (signs * difference).mean(1)
    tails = [(null <= difference.mean() + 1e-12).mean(), (null >= difference.mean() - 1e-12).mean()]
    return min(1.0, 2 * min(tails))


def test_t_interval_equals_scipy() -> None:
    first, second = pair()
    found = stats.compare_paired(first, second)
    expected = reference.ttest_rel(second, first).confidence_interval(0.95)
    assert (found["t_low"], found["t_high"]) == pytest.approx(tuple(expected), abs=1e-12)
    assert found["difference"] == pytest.approx((second - first).mean())
    assert found["n"] == 46


@pytest.mark.parametrize("seed", range(4))
def test_permutation_p_equals_enumeration(seed: int) -> None:
    first, second = pair(8, effect=seed, seed=seed)
    assert stats.compare_paired(first, second)["p"] == pytest.approx(by_enumeration(second - first), abs=1e-12)


def test_permutation_with_ties_equals_enumeration() -> None:
    difference = np.array([0.1, 0.1, 0.1, -0.1, 0.0, 0.0, 0.3, 0.2])
    first = np.linspace(0.1, 0.7, 8)  # first + 0.1 - first differs from 0.1 by rounding
    assert stats.compare_paired(first, first + difference)["p"] == pytest.approx(by_enumeration(difference), abs=1e-12)


def test_bca_interval_equals_scipy() -> None:
    first, second = pair()
    found = stats.compare_paired(first, second, seed=3)
    options = {"method": "BCa", "n_resamples": 9999}
    same = reference.bootstrap((second - first,), np.mean, rng=np.random.default_rng(3), **options).confidence_interval
    assert (found["low"], found["high"]) == pytest.approx(tuple(same), abs=1e-12)
    other = reference.bootstrap((second - first,), np.mean, rng=np.random.default_rng(99), **options).confidence_interval
    width = found["high"] - found["low"]
    assert (found["low"], found["high"]) == pytest.approx(tuple(other), abs=0.05 * width)  # Monte Carlo error of 9,999


def test_effect_size_by_hand() -> None:
    found = stats.compare_paired(np.array([0.1, 0.2, 0.3, 0.4]), np.array([0.2, 0.4, 0.3, 0.9]))
    # differences 0.1, 0.2, 0, 0.5: mean 0.2, sum of squares about it 0.14, variance 0.14 / 3
    assert found["d_z"] == pytest.approx(0.2 / (0.14 / 3) ** 0.5)


def test_no_difference() -> None:
    scores, _ = pair()
    found = stats.compare_paired(scores, scores)
    assert found == {"difference": 0, "low": 0, "high": 0, "t_low": 0, "t_high": 0, "p": 1.0, "d_z": 0, "n": 46}
    table = stats.verdicts(pd.DataFrame({"base": scores, "copy": scores}), "base")
    assert table.verdict.tolist() == ["not distinguishable"]


@pytest.mark.parametrize("shift", [0.1, -0.1])
def test_constant_difference(shift: float) -> None:
    first = np.linspace(0.2, 0.8, 46)  # rounding makes the differences differ in the last place
    found = stats.compare_paired(first, first + shift)
    bounds = [found[name] for name in ("difference", "low", "high", "t_low", "t_high")]
    assert bounds == pytest.approx([shift] * 5)
    assert found["d_z"] == np.copysign(np.inf, shift)
    assert found["p"] == pytest.approx(2 / 10_000)


def test_one_item_differs() -> None:
    first = np.zeros(46)
    second = first.copy()
    second[7] = 1.0
    found = stats.compare_paired(first, second)
    assert found["p"] == 1.0
    assert 0 <= found["low"] <= 1 / 46 <= found["high"] < 0.2


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ([0.1, 0.2, 0.3], [0.1, 0.2]),
        ([[0.1, 0.2]], [[0.1, 0.2]]),
        ([0.1], [0.2]),
        ([], []),
        ([0.1, np.nan], [0.1, 0.2]),
        ([0.1, 0.2], [0.1, np.inf]),
    ],
)
def test_scores_that_do_not_pair_up_are_refused(first: list, second: list) -> None:
    with pytest.raises(ValueError, match="pair"):
        stats.compare_paired(np.array(first), np.array(second))


@pytest.mark.parametrize("scores", [[], [np.nan], [0.1, np.inf]])
def test_interval_without_finite_scores_is_refused(scores: list) -> None:
    with pytest.raises(ValueError, match="finite"):
        stats.mean_interval(np.array(scores))


# the spread over a few values, such as those of three seeds


def test_spread_of_three_values_by_hand() -> None:
    found = stats.spread(np.array([2.0, 4.0, 9.0]))
    sd = 13**0.5  # mean 5, squares 9 + 1 + 16 = 26, over 2
    assert (found["mean"], found["n"]) == (5.0, 3)
    assert found["sd"] == pytest.approx(sd)
    # the chi-square distribution with 2 degrees of freedom is the exponential one of mean 2: its quantile q is -2 ln(1 - q)
    assert found["sd_low"] == pytest.approx(sd * np.sqrt(2 / (-2 * np.log(0.025))))
    assert found["sd_high"] == pytest.approx(sd * np.sqrt(2 / (-2 * np.log(0.975))))
    assert found["sd_low"] / sd == pytest.approx(0.5207, abs=5e-5)
    assert found["sd_high"] / sd == pytest.approx(6.2847, abs=5e-5)


@pytest.mark.parametrize("n", [2, 3, 5, 30])
def test_spread_equals_scipy(n: int) -> None:
    values = np.random.default_rng(n).normal(3, 2, n)
    found = stats.spread(values)
    assert found["sd"] == pytest.approx(reference.tstd(values))
    for name, tail in (("sd_low", reference.chi2.sf), ("sd_high", reference.chi2.cdf)):
        assert tail((n - 1) * found["sd"] ** 2 / found[name] ** 2, n - 1) == pytest.approx(0.025)
    assert found["sd_low"] < found["sd"] < found["sd_high"]


def test_spread_covers_the_truth() -> None:
    rng = np.random.default_rng(6)
    found = [stats.spread(rng.normal(0, 2, 3)) for _ in range(2_000)]
    inside = np.mean([f["sd_low"] <= 2 <= f["sd_high"] for f in found])
    assert abs(inside - 0.95) < 3 * np.sqrt(0.05 * 0.95 / 2_000)


def test_spread_of_one_value_is_unknown() -> None:
    found = stats.spread([0.25])
    assert (found["mean"], found["n"]) == (0.25, 1)
    assert all(np.isnan(found[name]) for name in ("sd", "sd_low", "sd_high"))


def test_spread_of_equal_values_is_nothing() -> None:
    assert stats.spread([3, 3, 3]) == {"mean": 3, "sd": 0, "sd_low": 0, "sd_high": 0, "n": 3}


@pytest.mark.parametrize("values", [[], [1.0, np.nan], [np.inf, 1.0, 2.0]])
def test_spread_without_finite_values_is_refused(values: list) -> None:
    with pytest.raises(ValueError, match="finite"):
        stats.spread(np.array(values))


def test_missing_score_is_refused_in_a_family() -> None:
    scores = family()
    scores.loc[3, "same"] = np.nan
    with pytest.raises(ValueError, match="finite"):
        stats.verdicts(scores, "base")


def test_swapping_the_systems_flips_the_signs() -> None:
    first, second = pair(45)
    there, back = stats.compare_paired(first, second), stats.compare_paired(second, first)
    for name in ("difference", "d_z"):
        assert there[name] == pytest.approx(-back[name], abs=1e-12)
    for one, other in (("low", "high"), ("high", "low"), ("t_low", "t_high"), ("t_high", "t_low")):
        assert there[one] == pytest.approx(-back[other], abs=1e-3 if one in ("low", "high") else 1e-12)
    assert there["p"] == back["p"]


def test_pairing_matters() -> None:
    first, second = pair(effect=1.0)
    paired, unpaired = stats.compare_paired(first, second), stats.compare_paired(first, np.roll(second, 1))
    assert paired["difference"] == pytest.approx(unpaired["difference"])
    assert paired["p"] < 0.01 < unpaired["p"]


@pytest.mark.parametrize("seed", range(3))
def test_intervals_are_ordered_and_hold_the_mean(seed: int) -> None:
    found = stats.compare_paired(*pair(20, seed=seed), resamples=999)
    assert found["low"] < found["difference"] < found["high"]
    assert found["t_low"] < found["difference"] < found["t_high"]


def test_same_seed_same_numbers() -> None:
    assert stats.compare_paired(*pair(), seed=5) == stats.compare_paired(*pair(), seed=5)
    assert stats.compare_paired(*pair(), seed=5) != stats.compare_paired(*pair(), seed=6)


@pytest.mark.parametrize(
    ("n", "least"), [(4, 2 / 16), (5, 2 / 32), (6, 2 / 64), (13, 2 / 8192), (14, 2 / 10_000), (46, 2 / 10_000)]
)
def test_smallest_p_that_a_sample_can_reach(n: int, least: float) -> None:
    first = np.linspace(0, 0.5, n)
    assert stats.compare_paired(first, first + np.linspace(0.1, 0.2, n))["p"] == pytest.approx(least)
    for formula in ("2 / 2^n", "2 / (resamples + 1)"):
        assert formula in " ".join(stats.compare_paired.__doc__.split())


def test_p_is_uniform_under_the_null() -> None:
    # 300 samples of ten differences symmetric about 0, the exact test over 1,024 patterns; one fixed seed
    rng = np.random.default_rng(2)
    found = np.array([stats.compare_paired(np.zeros(10), d, 1024)["p"] for d in rng.standard_t(3, (300, 10))])
    distance = reference.kstest(found, "uniform").statistic
    assert distance < 1.63 / np.sqrt(300) + 2 / 1024  # the 1 % point of Kolmogorov's distance, and the lattice
    assert abs((found <= 0.05).mean() - 0.05) < 3 * np.sqrt(0.05 * 0.95 / 300)


def test_intervals_cover_the_truth() -> None:
    # 300 samples of 46 skewed differences whose mean is 1; BCa covers a little less than 95 % on such samples
    rng = np.random.default_rng(4)
    inside = [low <= 1 <= high for low, high in (stats.mean_interval(d, 499) for d in rng.gamma(4, 1 / 4, (300, 46)))]
    assert abs(np.mean(inside) - 0.94) < 3 * np.sqrt(0.05 * 0.95 / 300)


def test_holm_by_hand_and_by_statsmodels() -> None:
    base, _ = pair()
    noise = np.random.default_rng(1).standard_normal((4, 46))
    effects = {f"d = {d}": base + 0.05 * (d + z - z.mean()) for d, z in zip((0.5, 0.4, 0.3, 0.1), noise, strict=True)}
    table = stats.verdicts(pd.DataFrame({"base": base} | effects), "base")
    by_hand, running = {}, 0.0
    for rank, (name, p) in enumerate(table.p.sort_values(kind="stable").items()):
        running = max(running, min(1.0, (4 - rank) * p))
        by_hand[name] = running
    assert table.p_holm.to_dict() == pytest.approx(by_hand)
    assert table.p_holm.tolist() == pytest.approx(multipletests(table.p, method="holm")[1].tolist())
    assert (table.p_holm < 4 * table.p - 0.01).sum() >= 2, "Holm, not Bonferroni"


def test_verdicts_of_a_family() -> None:
    table = stats.verdicts(family(), "base")
    expected = {"better": "better", "worse": "worse", "same": "not distinguishable", "also same": "not distinguishable"}
    assert table.verdict.to_dict() == expected
    assert table.detectable_d.tolist() == pytest.approx([stats.smallest_detectable_effect(46, 0.05 / 4)] * 4)


def test_holm_can_take_a_verdict_away() -> None:
    # p = 2 / 64 alone is under 5 %; as one of four comparisons it is not
    base = np.linspace(0.1, 0.6, 6)
    noise = np.array([0.01, -0.01, 0.02, -0.02, 0.01, -0.01])
    scores = pd.DataFrame(
        {"base": base, "up": base + np.linspace(0.1, 0.2, 6)} | {f"n{i}": base + noise * i for i in (1, 2, 3)}
    )
    assert stats.verdicts(scores[["base", "up"]], "base").verdict["up"] == "better"
    row = stats.verdicts(scores, "base").loc["up"]
    assert row.p < 0.05 < row.p_holm
    assert row.verdict == "not distinguishable"


@pytest.mark.parametrize(("alpha", "expected"), [(0.05, 0.42), (0.05 / 8, 0.55)])
def test_smallest_detectable_effect_at_46(alpha: float, expected: float) -> None:
    found = stats.smallest_detectable_effect(46, alpha)
    assert round(found, 2) == expected
    # the power at that effect by the noncentral t distribution, independently of statsmodels
    critical, shift = reference.t.ppf(1 - alpha / 2, 45), found * 46**0.5
    power = reference.nct.sf(critical, 45, shift) + reference.nct.cdf(-critical, 45, shift)
    assert power == pytest.approx(0.8, abs=1e-4)


@pytest.mark.parametrize("name", ["better", "worse", "same"])
def test_sentence_says_everything(name: str) -> None:
    row = stats.verdicts(family(), "base").loc[name]
    text = stats.sentence(f"run {name}", "base", "ROUGE-L", row)
    outcome = "not distinguishable from base" if name == "same" else f"{name} than base"
    assert f"un {name} is {outcome} on ROUGE-L:" in text
    assert ("not distinguishable" in text) == (name == "same")
    numbers = [row.difference, row.low, row.high, row.n, row.p_holm, row.d_z, row.detectable_d]
    formats = ["{:+.3f}", "{:+.3f}", "{:+.3f}", "n = {:.0f}", " {:.4f} after Holm over ", "d_z = {:.2f}", "d_z = {:.2f}."]
    place = 0
    for number, form in zip(numbers, formats, strict=True):
        place = text.index(form.format(number), place) + 1
    assert "unadjusted 95 % interval" in text
    assert ("p <= " in text) == (row.p == row.p_floor), "a p at the floor of the resampling is a bound"
    assert not re.search(r"nan|inf\b", text)
