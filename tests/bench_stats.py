"""How long the intervals and tests of 905 items and five metrics take, beside a loop over resamples as notebooks have it.

Run with OMP_NUM_THREADS=1 for one core. The table goes to reports/published/.
"""

import time
from collections.abc import Callable

import numpy as np
from bench_falcon import machine
from scipy.stats import permutation_test

from interviewmate_utils import stats
from interviewmate_utils.config import ROOT

ITEMS, METRICS, RESAMPLES, GOAL = 905, 5, 10_000, 1.0  # seconds, for the intervals


def loop(scores: np.ndarray) -> tuple[float, float]:
    """A percentile interval, one resample at a time."""
    rng = np.random.default_rng(0)
    low, high = np.quantile([rng.choice(scores, len(scores)).mean() for _ in range(RESAMPLES)], [0.025, 0.975])
    return float(low), float(high)


def seconds(measure: Callable, scores: np.ndarray) -> float:
    started = time.perf_counter()
    for column in scores.T:
        measure(column)
    return time.perf_counter() - started


def main() -> None:
    scores = np.random.default_rng(1).beta(6, 40, (ITEMS, METRICS))
    differences = scores - scores.mean(0) + 0.01
    first, ours, theirs = (
        seconds(way, scores)
        for way in (lambda s: stats.mean_interval(s, RESAMPLES), lambda s: stats.mean_interval(s, RESAMPLES), loop)
    )
    test = seconds(
        lambda d: permutation_test(
            (d,), np.mean, permutation_type="samples", n_resamples=RESAMPLES, rng=np.random.default_rng(0)
        ),
        differences,
    )
    said = [
        f"# {RESAMPLES:,} resamples of {ITEMS} items, {METRICS} metrics",
        "",
        f"{machine()}.",
        "",
        "| what | seconds | ratio to a loop |",
        "| --- | ---: | ---: |",
        f"| BCa intervals, the first time (with imports) | {first:.2f} | {first / theirs:.2f} |",
        f"| BCa intervals (goal: under {GOAL:.0f} s) | {ours:.2f} | {ours / theirs:.2f} |",
        f"| percentile intervals in a loop over resamples | {theirs:.2f} | 1.00 |",
        f"| permutation tests (scipy's) | {test:.2f} | - |",
    ]
    print("\n".join(said))
    (ROOT / "reports" / "published" / "statistics.md").write_text("\n".join(said) + "\n")


if __name__ == "__main__":
    main()
