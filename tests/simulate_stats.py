"""How often the verdicts of `stats` err on 46 items, by simulation: `make simulate` writes the table that the README shows.

    python tests/simulate_stats.py [SIMULATIONS]

Scores are like ROUGE-L of short answers: items differ in difficulty, scores lie between 0 and 1 and are skewed, a better
system varies more. Type I error is counted where both systems are drawn alike, coverage where the second is better by 0.05.
"""

import argparse
import sys

import numpy as np
import pandas as pd

from interviewmate_utils import config, stats

ITEMS, RESAMPLES, BETTER = 46, 999, 0.05
CLUSTERS = np.repeat(np.arange(25), [1] * 6 + [2] * 17 + [3] * 2)  # questions with their follow-ups, as our corpus has them
INTERVALS = {"t": ("t_low", "t_high"), "BCa bootstrap": ("low", "high"), "studentised bootstrap": ("s_low", "s_high")}
# what this project set itself: lowest and highest share
BOUNDS = {"permutation": (0.04, 0.06), "paired t": (0.04, 0.06), "t": (0.94, 0.96), "studentised bootstrap": (0.94, 0.96)}
BOUNDS |= {"BCa bootstrap": (0.925, 1.0)}


def draw(rng: np.random.Generator, better: float, clustered: bool) -> tuple[np.ndarray, np.ndarray]:
    """Scores of two systems; in clusters, half of the variance of their difference is the cluster's."""
    items = rng.beta(6, 40, ITEMS)  # mean 0.13
    scores = []
    for gain in (0.0, better):
        mean, strength = items + gain, 60.0
        if clustered:  # a system does well or badly with a question and its follow-ups alike
            strength *= 2
            own = rng.beta(mean * strength, (1 - mean) * strength)
            mean = own[np.unique(CLUSTERS, return_index=True)[1]][CLUSTERS]
        scores.append(rng.beta(mean * strength, (1 - mean) * strength))
    return scores[0], scores[1]


def simulate(count: int, clustered: bool, told: bool, seed: int = 0) -> pd.DataFrame:
    """Per simulation: which tests reject though the systems are alike, and which intervals cover the true difference.

    `told`: the clusters are named to the verdict.
    """
    rng, clusters, rows = np.random.default_rng(seed), CLUSTERS if told else None, []
    for number in range(count):
        alike = stats.compare_paired(*draw(rng, 0.0, clustered), RESAMPLES, number, clusters)
        row = {"permutation": alike["p"] < 0.05, "paired t": alike["p_t"] < 0.05}
        first, second = draw(rng, BETTER, clustered)
        found = stats.compare_paired(first, second, RESAMPLES, number, clusters)
        found["s_low"], found["s_high"] = stats.studentised_interval(second - first, RESAMPLES, number, clusters)
        rows.append(row | {name: found[low] <= BETTER <= found[high] for name, (low, high) in INTERVALS.items()})
        if sys.stderr.isatty() and number % 50 == 0:
            print(f"  {number}/{count}", end="\r", file=sys.stderr)
    return pd.DataFrame(rows)


CONDITIONS = {"independent items": (False, False), "clusters": (True, True), "clusters, not told": (True, False)}


def main(count: int) -> None:
    said = [f"# How often the verdicts err: {count:,} simulations of {ITEMS} items", ""]
    said += [f"Made by `make simulate`; {RESAMPLES} resamples each. Monte Carlo error is one standard error.", ""]
    said += [
        "| data | procedure | what | share | Monte Carlo error | wanted | |",
        "| --- | --- | --- | ---: | ---: | --- | --- |",
    ]
    for name, (clustered, told) in CONDITIONS.items():
        found = simulate(count, clustered, told).mean()
        for procedure, share in found.items():
            low, high = BOUNDS[procedure]
            what = "95 % interval covers" if procedure in INTERVALS else "type I error at 5 %"
            error = (share * (1 - share) / count) ** 0.5
            wanted = f"{low:.1%} to {high:.1%}" if told == clustered else "-"
            met = ("met" if low <= share <= high else "not met") if told == clustered else "shown as a warning"
            said.append(f"| {name} | {procedure} | {what} | {share:.2%} | {error:.2%} | {wanted} | {met} |")
            print(said[-1], flush=True)
    (config.ROOT / "reports" / "published" / "simulation.md").write_text("\n".join(said) + "\n")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("simulations", nargs="?", type=int, default=5_000)
    main(parser.parse_args().simulations)
