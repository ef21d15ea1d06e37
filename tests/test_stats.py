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
    n = len(first)
    level = 1 - 2 * reference.norm.cdf(-np.sqrt(n / (n - 1)) * reference.t.ppf(0.975, n - 1))
    assert 0.95 < level < 0.96  # a little wider than the plain percentiles
    options = {"method": "BCa", "n_resamples": 9999, "confidence_level": level}
    same = reference.bootstrap((second - first,), np.mean, rng=np.random.default_rng(3), **options).confidence_interval
    assert (found["low"], found["high"]) == pytest.approx(tuple(same), abs=1e-12)
    other = reference.bootstrap((second - first,), np.mean, rng=np.random.default_rng(99), **options).confidence_interval
    width = found["high"] - found["low"]
    assert (found["low"], found["high"]) == pytest.approx(tuple(other), abs=0.05 * width)  # Monte Carlo error of 9,999


def test_two_items_have_an_interval() -> None:
    assert stats.mean_interval(np.array([0.0, 1.0])) == (0.0, 1.0)
    assert np.isfinite(stats.mean_interval(np.array([0.2, 0.4, 0.9, 0.9]), clusters=["a", "a", "b", "b"])).all()


def test_effect_size_by_hand() -> None:
    found = stats.compare_paired(np.array([0.1, 0.2, 0.3, 0.4]), np.array([0.2, 0.4, 0.3, 0.9]))
    # differences 0.1, 0.2, 0, 0.5: mean 0.2, sum of squares about it 0.14, variance 0.14 / 3
    assert found["d_z"] == pytest.approx(0.2 / (0.14 / 3) ** 0.5)


def test_no_difference() -> None:
    scores, _ = pair()
    found = stats.compare_paired(scores, scores)
    expected = {
        "difference": 0,
        "low": 0,
        "high": 0,
        "t_low": 0,
        "t_high": 0,
        "p": 1.0,
        "p_t": 1.0,
        "p_rank": 1.0,
        "d_z": 0,
        "n": 46,
    }
    assert {name: found[name] for name in expected} == expected
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
    base = np.linspace(0.1, 0.6, 12)
    noise = np.array([0.01, -0.01, 0.02, -0.02, 0.01, -0.01] * 2)
    up = base + np.array([0.1, 0.2, 0.15, 0.1, -0.1, 0.2, 0.1, -0.1, 0.15, 0.1, 0.05, -0.05])
    scores = pd.DataFrame({"base": base, "up": up} | {f"n{i}": base + noise * i for i in (1, 2, 3)})
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


def test_paired_t_test_and_wilcoxon_equal_scipy() -> None:
    first, second = pair()
    found = stats.compare_paired(first, second)
    assert found["p_t"] == pytest.approx(reference.ttest_rel(second, first).pvalue)
    assert found["rank_test"] == "Wilcoxon"
    assert found["p_rank"] == pytest.approx(reference.wilcoxon((second - first).round(12), zero_method="pratt").pvalue)


def test_right_or_wrong_is_compared_by_mcnemar() -> None:
    first, second = np.repeat([1, 1, 0, 0], [20, 2, 9, 15]), np.repeat([1, 0, 1, 0], [20, 2, 9, 15])
    found = stats.compare_paired(first, second)
    assert found["rank_test"] == "McNemar"
    assert found["p_rank"] == pytest.approx(reference.binomtest(2, 11).pvalue)  # of 11 that changed, two got worse
    assert stats.compare_paired(first, first)["p_rank"] == 1.0


def test_interval_of_the_effect_size_equals_the_published_one() -> None:
    """Cumming and Finch 2001 and MBESS: t = 2.5 with 24 degrees of freedom (d = 0.5, n = 25) has d from 0.080 to 0.912."""
    scores = np.random.default_rng(0).standard_normal(25)
    scores = (scores - scores.mean()) / scores.std(ddof=1) + 0.5
    found = stats.compare_paired(np.zeros(25), scores)
    assert found["d_z"] == pytest.approx(0.5)
    for bound, chance in ((found["d_low"], 0.975), (found["d_high"], 0.025)):
        assert reference.nct.cdf(2.5, 24, bound * 5) == pytest.approx(chance, abs=1e-6)


@pytest.mark.parametrize("true", [0.0, 0.42, 1.2])
def test_effect_sizes_interval_covers_it(true: float) -> None:
    samples = np.random.default_rng(5).standard_normal((400, 46)) + true
    found = [stats.compare_paired(np.zeros(46), sample, resamples=99) for sample in samples]
    inside = [row["d_low"] <= true <= row["d_high"] for row in found]
    assert np.mean(inside) == pytest.approx(0.95, abs=0.03)  # three Monte Carlo errors


def test_items_alone_in_their_clusters_change_nothing() -> None:
    first, second = pair()
    plain, alone = stats.compare_paired(first, second), stats.compare_paired(first, second, clusters=range(46))
    assert {k: v for k, v in alone.items() if k not in ("low", "high")} == pytest.approx(
        {k: v for k, v in plain.items() if k not in ("low", "high")}
    )
    width = plain["high"] - plain["low"]
    assert (alone["low"], alone["high"]) == pytest.approx((plain["low"], plain["high"]), abs=0.05 * width)


def test_an_item_said_twice_is_no_more_evidence() -> None:
    """Each item twice over, as a cluster of two: everything but n is as of single items."""
    first, second = pair()
    plain = stats.compare_paired(first, second, seed=1)
    twice = stats.compare_paired(np.repeat(first, 2), np.repeat(second, 2), seed=1, clusters=np.repeat(np.arange(46), 2))
    for name in ("difference", "t_low", "t_high", "p_t"):
        assert twice[name] == pytest.approx(plain[name]), name
    assert twice["p"] == pytest.approx(plain["p"], abs=0.02)
    assert (twice["n"], twice["clusters"]) == (92, 46)
    assert twice["n_effective"] == pytest.approx(46, rel=0.02)
    assert np.isnan(twice["p_rank"])
    blind = stats.compare_paired(np.repeat(first, 2), np.repeat(second, 2))
    assert blind["t_high"] - blind["t_low"] < 0.75 * (plain["t_high"] - plain["t_low"])


def test_cluster_robust_error_equals_statsmodels() -> None:
    from statsmodels.regression.linear_model import OLS

    rng = np.random.default_rng(2)
    clusters = np.sort(rng.integers(0, 17, 60))
    difference = rng.standard_normal(60) + rng.standard_normal(17)[clusters]
    found = stats.compare_paired(np.zeros(60), difference, clusters=clusters)
    fitted = OLS(difference, np.ones(60)).fit(
        cov_type="cluster", cov_kwds={"groups": clusters, "use_correction": False}, use_t=True
    )
    count = len(set(clusters))
    assert stats.standard_error(difference, clusters) == pytest.approx(fitted.bse[0] * (count / (count - 1)) ** 0.5)
    half = reference.t.ppf(0.975, count - 1) * stats.standard_error(difference, clusters)
    assert (found["t_low"], found["t_high"]) == pytest.approx((difference.mean() - half, difference.mean() + half))


def test_clusters_must_name_each_item() -> None:
    with pytest.raises(ValueError, match="3 clusters are named for 46 items"):
        stats.compare_paired(*pair(), clusters=[1, 2, 3])
    with pytest.raises(ValueError, match="two independent items, here 1"):
        stats.compare_paired(*pair(), clusters=["one"] * 46)


def test_studentised_interval_equals_its_definition() -> None:
    scores = np.random.default_rng(0).gamma(2, size=12)
    low, high = stats.studentised_interval(scores, 999, 4)
    drawn = scores[np.random.default_rng(4).integers(12, size=(999, 12))]
    t = np.sort(reference.ttest_1samp(drawn, scores.mean(), axis=1).statistic)
    expected = scores.mean() - t[[974, 24]] * scores.std(ddof=1) / 12**0.5
    assert (low, high) == pytest.approx(tuple(expected))
    assert high - scores.mean() > scores.mean() - low  # skewed to the right: more room above
    assert stats.studentised_interval(np.full(9, 0.25)) == (0.25, 0.25)


@pytest.mark.parametrize("count", [2, 9, 10])
def test_few_items_get_no_verdict(count: int) -> None:
    scores = pd.DataFrame({"base": np.zeros(count), "far": np.linspace(5, 6, count)})
    row = stats.verdicts(scores, "base").loc["far"]
    assert (row.verdict == "no verdict") == (count < 10)
    assert ("takes 10 independent items" in stats.sentence("far", "base", "ROUGE-L", row)) == (count < 10)


def test_scores_that_are_not_finite_are_named() -> None:
    first, second = pair()
    second[7] = np.nan
    with pytest.raises(ValueError, match="1 of 46 paired scores are not finite, the first at position 7"):
        stats.compare_paired(first, second)


def test_power_and_numbers_of_items_fit_each_other() -> None:
    assert stats.power(46, 0.4223) == pytest.approx(0.8, abs=1e-3)
    assert stats.items_needed(0.5) == 34
    for d_z in (0.2, 0.42, 1.0):
        n = stats.items_needed(d_z)
        assert stats.power(n, d_z) >= 0.8 > stats.power(n - 1, d_z)
        assert stats.smallest_detectable_effect(n) <= d_z
    for d_z in (0.0, np.nan, np.inf):
        with pytest.raises(ValueError, match="no number of items"):
            stats.items_needed(d_z)


def test_chance_of_best_by_enumeration() -> None:
    """Three items have 27 equally likely bootstrap samples."""
    scores = pd.DataFrame({"one": [0.3, 0.1, 0.4], "two": [0.2, 0.4, 0.1], "three": [0.3, 0.1, 0.4]})
    best = np.zeros(3)
    for drawn in itertools.product(range(3), repeat=3):
        means = scores.to_numpy()[list(drawn)].mean(0)
        first = np.isclose(means, means.max())
        best += first / first.sum() / 27
    found = stats.chance_of_best(scores, 20_000)
    assert found.to_numpy() == pytest.approx(best, abs=0.015)  # four standard errors
    assert found.sum() == pytest.approx(1)
    assert stats.chance_of_best(pd.DataFrame({"a": [0.1] * 5, "b": [0.2] * 5})).tolist() == [0, 1]
    with pytest.raises(ValueError, match="all finite"):
        stats.chance_of_best(scores.assign(two=np.nan))


def balanced(seed: int, systems: int = 2, seeds: int = 3, items: int = 46, effect: float = 0.05) -> pd.DataFrame:
    """Scores with known parts: items 0.10, item x system 0.03, training 0.02, rest 0.01."""
    rng = np.random.default_rng(seed)
    item, rows = 0.10 * rng.standard_normal(items), []
    for system in range(systems):
        pairs = 0.03 * rng.standard_normal(items)
        for k in range(seeds):
            scores = 0.3 + effect * system + item + pairs + 0.02 * rng.standard_normal() + 0.01 * rng.standard_normal(items)
            rows.append(pd.DataFrame({"system": f"s{system}", "seed": k, "item": range(items), "score": scores}))
    return pd.concat(rows, ignore_index=True)


def test_mixed_model_equals_the_analysis_of_variance() -> None:
    """In a balanced design REML gives the classical estimates from mean squares, where none of them is negative."""
    table = balanced(1)
    effects, deviations = stats.mixed_model(table, "s0")
    means = table.groupby("system").score.mean()
    assert effects.difference["s1"] == pytest.approx(means["s1"] - means["s0"], abs=1e-6)
    cells = table.pivot_table(index="item", columns=["system", "seed"], values="score")
    left = (
        cells
        - cells.mean()
        - cells.T.groupby("system").transform("mean").T
        + cells.T.groupby("system").transform("mean").T.mean()
    )
    rest = (left**2).to_numpy().sum() / (2 * 45 * 2)
    assert deviations["rest"] == pytest.approx(rest**0.5, rel=1e-3)
    training = cells.mean().groupby("system").var(ddof=1).mean() - rest / 46
    assert deviations["training"] == pytest.approx(training**0.5, rel=1e-2)
    both = cells.T.groupby("system").mean().T
    crossed = both.sub(both.mean(1), axis=0) - both.mean() + both.mean().mean()
    pairs = (crossed**2).to_numpy().sum() / 45 - rest / 3
    assert deviations["item x system"] == pytest.approx(pairs**0.5, rel=1e-2)


def test_mixed_model_says_what_it_cannot_take() -> None:
    table = balanced(0, items=5)
    with pytest.raises(ValueError, match="no scores of 'base'; there are s0, s1"):
        stats.mixed_model(table, "base")
    table.loc[3, "score"] = np.nan
    with pytest.raises(ValueError, match="1 of 30 scores are not finite"):
        stats.mixed_model(table, "s0")


# groups of items


def test_groups_are_compared_each_for_itself_and_small_ones_get_no_interval() -> None:
    scores = family(36)
    labels = pd.DataFrame({"subfield": ["a"] * 20 + ["b"] * 16, "difficulty": ["easy"] * 27 + ["hard"] * 9})
    found = stats.by_group(scores, "base", labels, resamples=499).set_index(["label", "group", "system"])
    assert len(found) == 4 * 4
    alone = stats.compare_paired(scores.base[:20], scores.better[:20], 499)
    row = found.loc["subfield", "a", "better"]
    assert (row.n, row.difference, row.low, row.high) == (20, *(pytest.approx(alone[k]) for k in ("difference", "low", "high")))
    small = found.loc["difficulty", "hard"]
    assert (small.n == 9).all()
    assert small.difference.notna().all()
    assert small[["low", "high"]].isna().all().all()


def test_groups_without_labels_are_an_empty_table() -> None:
    found = stats.by_group(family(12), "base", pd.DataFrame(index=range(12)))
    assert len(found) == 0
    assert "difference" in found


def test_mixed_model_of_two_systems_with_one_training_each_is_the_paired_t() -> None:
    base, other = pair(30, effect=2.0)
    table = pd.concat(
        [pd.DataFrame({"system": n, "seed": 0, "item": range(30), "score": s}) for n, s in (("b", base), ("o", other))]
    )
    effects, deviations = stats.mixed_model(table, "b")
    assert effects.loc["o", "difference"] == pytest.approx((other - base).mean())
    assert effects.loc["o", "standard_error"] == pytest.approx(reference.sem(other - base), rel=1e-3)
    assert list(deviations.index) == ["item", "rest"]


def test_an_untrained_base_has_no_spread_from_training() -> None:
    rng, items, seeds = np.random.default_rng(3), 40, 3
    easy = rng.normal(0, 0.05, items)
    suits = {name: rng.normal(0, 0.03, items) for name in ("base", "run")}
    rows = [("base", 0, easy + suits["base"] + rng.normal(0, 0.02, items))]
    rows += [("run", k, 0.1 + easy + suits["run"] + rng.normal(0, 0.04) + rng.normal(0, 0.02, items)) for k in range(seeds)]
    table = pd.concat([pd.DataFrame({"system": n, "seed": k, "item": range(items), "score": s}) for n, k, s in rows])
    effects, deviations = stats.mixed_model(table, "base")
    by_hand = 2 * deviations["item x system"] ** 2 / items + deviations["training"] ** 2 / seeds
    by_hand += deviations["rest"] ** 2 / (items * seeds) + deviations["rest"] ** 2 / items
    assert deviations["training"] > 0.005
    assert effects.loc["run", "standard_error"] == pytest.approx(by_hand**0.5, rel=0.02)


def test_clusters_that_each_sum_to_nothing_are_no_difference() -> None:
    difference = np.tile([0.1, 0.2, -0.3], 12)
    found = stats.compare_paired(np.zeros(36), difference, clusters=np.repeat(np.arange(12), 3))
    assert (found["difference"], found["p"], found["p_t"]) == (0, 1, 1)


def test_differences_that_hardly_differ_have_a_huge_effect_at_once() -> None:
    found = stats.compare_paired(np.zeros(46), 0.1 + 1e-9 * np.arange(46))
    assert found["d_low"] < found["d_z"] < found["d_high"]
    assert found["d_z"] > 1e5


@pytest.mark.parametrize("values", [[], [np.nan, 1.0]])
def test_a_studentised_interval_needs_finite_scores(values: list) -> None:
    with pytest.raises(ValueError, match="all finite"):
        stats.studentised_interval(np.array(values))


def test_a_standard_error_needs_two_items() -> None:
    with pytest.raises(ValueError, match="two independent items, here 1"):
        stats.standard_error(np.array([1.0, 2.0]), [7, 7])


def test_verdicts_know_of_clusters() -> None:
    scores = family(40)
    apart, together = stats.verdicts(scores, "base", 999), stats.verdicts(scores, "base", 999, clusters=np.arange(40) // 5)
    assert (apart.clusters == 40).all()
    assert (together.clusters == 8).all()
    assert set(together.verdict) == {"no verdict"}
