"""Nearest neighbours and close pairs, against brute force; what MinHash proposes, against the share that theory gives."""

import random

import numpy as np
import pytest
from tiny import unit_vectors

from interviewmate_utils import similarity


def sentences(count: int, seed: int = 0) -> list[str]:
    rng = random.Random(seed)
    words = ["".join(rng.choices("abcdefghijklmnopqrstuvwxyz", k=rng.randint(3, 9))) for _ in range(3000)]
    return [" ".join(rng.choices(words, k=rng.randint(12, 20))) for _ in range(count)]


def test_nearest_equals_brute_force_beyond_one_block() -> None:
    vectors, others = unit_vectors(1500), unit_vectors(1100, seed=1)
    index, cosine = similarity.nearest(vectors, others)
    cosines = vectors @ others.T
    np.testing.assert_array_equal(index, cosines.argmax(1))
    np.testing.assert_allclose(cosine, cosines.max(1), atol=1e-6)


def test_embeddings_are_unit_vectors(encoder) -> None:
    vectors = similarity.embed(encoder, ["What is bias?", "x", "word " * 3000])
    assert vectors.shape == (3, 384)
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)


@pytest.mark.parametrize("count", [2, 3, 7, 1500])
def test_close_pairs_are_all_at_the_threshold_and_each_rows_nearest(count: int) -> None:
    vectors = unit_vectors(count, width=6)
    cosines = vectors @ vectors.T
    np.fill_diagonal(cosines, -np.inf)
    pairs = similarity.close_pairs(vectors, 0.9)
    found = set(zip(pairs["first"], pairs["second"], strict=True))
    assert len(found) == len(pairs)
    assert (pairs["first"] < pairs["second"]).all()
    assert pairs.cosine.is_monotonic_decreasing
    np.testing.assert_allclose(pairs.cosine, cosines[pairs["first"], pairs["second"]], atol=1e-6)
    assert {(i, j) for i, j in np.argwhere(np.triu(cosines >= 0.9))} <= found
    kept = min(similarity.NEIGHBOURS, count - 1)
    near = {(min(i, j), max(i, j)) for i, row in enumerate(cosines) for j in np.argsort(-row)[:kept]}
    assert near <= found
    assert found == near | {(i, j) for i, j in np.argwhere(np.triu(cosines >= 0.9))}


def test_close_pairs_of_one_text_are_none() -> None:
    assert similarity.close_pairs(unit_vectors(1), 0.9).empty


def test_no_texts_have_no_pairs(encoder) -> None:
    """Where no row of a file is good, its problems are to be told, not this."""
    assert list(similarity.find_pairs([], encoder, 0.9)) == ["first", "second", "cosine"]
    assert similarity.find_pairs([], encoder, 0.9).empty


def jaccard(first: str, second: str) -> float:
    one, two = ({text[i : i + 5] for i in range(len(text) - 4)} for text in (first.casefold(), second.casefold()))
    return len(one & two) / len(one | two)


def test_candidates_are_proposed_as_often_as_banding_promises() -> None:
    """Pairs at a Jaccard similarity s share a band with probability 1 - (1 - s^4)^16."""
    rng, texts = random.Random(1), sentences(3000)
    for i in range(1500):
        words = texts[i].split()
        for k in rng.sample(range(len(words)), rng.randint(0, 6)):
            words[k] = "".join(rng.choices("abcdefghijklmnopqrstuvwxyz", k=6))
        texts[1500 + i] = " ".join(words) + "."
    proposed = set(map(tuple, similarity.candidate_pairs(texts)))
    assert all(i < j for i, j in proposed)
    similar = np.array([jaccard(texts[i], texts[1500 + i]) for i in range(1500)])
    hit = np.array([(i, 1500 + i) in proposed for i in range(1500)])
    expected = 1 - (1 - similar**4) ** 16
    assert abs((hit - expected).sum()) < 4 * np.sqrt((expected * (1 - expected)).sum())
    assert hit[similar > 0.8].mean() > 0.99
    unrelated = len(proposed) - hit.sum()
    assert unrelated < 30, "texts that share nothing are not proposed"


def test_candidates_leave_exact_repeats_to_others_and_bound_what_a_common_phrase_costs() -> None:
    assert len(similarity.candidate_pairs(["What is bias?", "what is BIAS?", "Why sleep?"])) == 0
    assert similarity.candidate_pairs(["a", "b", ""]).shape[1] == 2
    crowd = [
        f"How would you explain to a colleague in sales what a gradient boosting machine does, in case {i}" for i in range(3000)
    ]
    assert len(similarity.candidate_pairs(crowd)) <= 3000 * 16 * 20


def test_a_large_corpus_finds_the_close_pairs_of_a_small_one(encoder, monkeypatch: pytest.MonkeyPatch) -> None:
    texts = sentences(300)
    texts += [text.replace(text.split()[3], "other") for text in texts[:60]]
    exact = similarity.find_pairs(texts, encoder, 0.9)
    monkeypatch.setattr(similarity, "ALL_PAIRS", 100)
    proposed = similarity.find_pairs(texts, encoder, 0.9)
    close = {(i, 300 + i) for i in range(60)} & set(map(tuple, exact[exact.cosine >= 0.9][["first", "second"]].to_numpy()))
    found = set(map(tuple, proposed[["first", "second"]].to_numpy()))
    assert len(close) > 30
    assert len(close & found) >= 0.95 * len(close)
    both = proposed.merge(exact, on=["first", "second"])
    np.testing.assert_allclose(both.cosine_x, both.cosine_y, atol=1e-5)


def test_a_large_corpus_of_strangers_has_no_pairs(encoder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(similarity, "ALL_PAIRS", 2)
    assert similarity.find_pairs(["What is bias?", "Why do we sleep?", "Name four rivers."], encoder, 0.9).empty
