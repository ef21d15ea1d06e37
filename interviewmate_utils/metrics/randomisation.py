"""Corpus BLEU of two systems, compared by paired approximate randomisation (Noreen 1989, Riezler and Maxwell 2005)."""

from collections.abc import Sequence


def compare_corpus_bleu(
    first: Sequence[Sequence[str]],
    second: Sequence[Sequence[str]],
    references: Sequence[str],
    resamples: int = 9999,
    seed: int = 0,
) -> dict[str, float]:
    """Corpus BLEU (0 to 1) of two systems, each as the answers of one or more trainings, and the p of their difference.

    A system's BLEU is the mean over its trainings; one that has a single training meets each of the other's. Corpus BLEU is
    no mean over items, so whole answers change sides, those of all trainings of an item together. As in
    `sacrebleu.significance`, on its sufficient statistics. Raises ValueError where the answers do not pair up.
    """
    import numpy as np
    from sacrebleu.metrics import BLEU

    if not references or any(len(told) != len(references) for told in (*first, *second)):
        sizes = ", ".join(str(len(told)) for told in (*first, *second))
        raise ValueError(f"{len(references)} references, but {sizes} answers: each system needs one answer for each reference")
    times = max(len(first), len(second))
    if {len(first), len(second)} - {1, times}:
        raise ValueError(f"{len(first)} and {len(second)} trainings do not pair up: as many of both, or one")
    metric = BLEU()

    def counts(told: Sequence[Sequence[str]]) -> "np.ndarray":  # trainings, items, BLEU's counts
        found = [metric._extract_corpus_statistics(list(answers), [list(references)]) for answers in told]
        return np.repeat(np.array(found, float), times // len(found), 0)

    def bleu(summed: "np.ndarray") -> float:
        return metric._aggregate_and_compute(summed[None]).score / 100

    here, there = counts(first), counts(second)

    def means(swapped: "np.ndarray") -> tuple[float, float]:
        mixed = np.where(swapped[:, None], there, here), np.where(swapped[:, None], here, there)
        return tuple(float(np.mean([bleu(training.sum(0)) for training in side])) for side in mixed)

    found = means(np.zeros(len(references), bool))
    difference, rng, extreme = found[1] - found[0], np.random.default_rng(seed), 0
    for _ in range(resamples):
        one, other = means(rng.integers(2, size=len(references), dtype=bool))
        extreme += abs(other - one) >= abs(difference) - 1e-12
    return {"first": found[0], "second": found[1], "difference": difference, "p": (extreme + 1) / (resamples + 1)}
