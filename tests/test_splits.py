"""Duplicates, conversations, split and leakage, against known answers and brute force."""

import re
from collections import Counter

import numpy as np
import pandas as pd
import pytest
from tiny import numbered, unit_vectors

from interviewmate_utils import similarity, splits

PARTS = ["train", "validation", "test"]
NO_PAIRS = pd.DataFrame({"first": [], "second": [], "cosine": []}).astype({"first": int, "second": int, "cosine": float})


@pytest.fixture(scope="module")
def vectors(corpus: list[dict], encoder) -> np.ndarray:
    return similarity.embed(encoder, [row["question"] for row in corpus])


def grouped(sizes: dict[str, int]) -> list[dict]:
    names = [name for name, size in sizes.items() for _ in range(size)]
    return [row | {"subfield": name} for row, name in zip(numbered(len(names)), names, strict=True)]


def family(parents: list[int | None], **columns: str) -> list[dict]:
    """Rows with ids r0, r1, ... of which some follow up another."""
    rows = [row | {"id": f"r{i}", "parent_id": None} for i, row in enumerate(numbered(len(parents), **columns))]
    return [row if p is None else row | {"parent_id": f"r{p}"} for row, p in zip(rows, parents, strict=True)]


def split(rows: list[dict], *arguments: object, **options: object) -> dict[str, list[int]]:
    roots, problems = splits.find_roots(rows)
    assert problems == []
    return splits.split_rows(rows, roots, *arguments, **options)


# Duplicates


def test_exact_duplicates_differ_in_case_punctuation_and_space_only() -> None:
    questions = [
        "What is bias?",
        "what is  BIAS",
        "\u201cWhat is bias?\u201d",
        "What is C?",
        "What is C++?",
        "What is C#?",
        "???",
        "!",
    ]
    rows = [{"file": "f.jsonl", "line": 2 * i + 1, "question": q, "answer": str(i)} for i, q in enumerate(questions)]
    kept, problems = splits.drop_duplicates(rows, NO_PAIRS, 0.9)
    assert kept == [0, 3, 4, 5, 6, 7]
    assert list(map(str, problems)) == [
        "f.jsonl:3: question: exact duplicate of f.jsonl:1",
        "f.jsonl:5: question: exact duplicate of f.jsonl:1",
    ]
    assert '"answer": "2"' in problems[1].content


def test_near_duplicates_are_those_at_the_threshold_from_a_kept_row() -> None:
    """Rows on a circle, 20 degrees apart (cosine 0.94): each repeats the one before it, but only if that one is kept."""
    angles = np.radians([0, 20, 40, 60, 90])
    vectors = np.stack([np.cos(angles), np.sin(angles)], 1)
    kept, problems = splits.drop_duplicates(numbered(5), similarity.close_pairs(vectors, 0.9), 0.9)
    assert kept == [0, 2, 4]
    assert [(p.line, p.reason) for p in problems] == [
        (11, "near duplicate of f.jsonl:10 (cosine 0.940)"),
        (13, "near duplicate of f.jsonl:12 (cosine 0.940)"),
    ]
    assert splits.drop_duplicates(numbered(5), similarity.close_pairs(vectors, 0.95), 0.95) == ([0, 1, 2, 3, 4], [])


def test_kept_rows_hold_no_pair_at_the_threshold_and_each_dropped_one_has_a_kept_neighbour() -> None:
    vectors = unit_vectors(400, width=4)
    kept, problems = splits.drop_duplicates(numbered(400), similarity.close_pairs(vectors, 0.9), 0.9)
    cosines = vectors @ vectors.T
    assert len(kept) + len(problems) == 400
    assert (np.triu(cosines[np.ix_(kept, kept)], 1) < 0.9).all()
    for problem in problems:
        i, j = problem.line - 10, int(re.search(r":(\d+)", problem.reason)[1]) - 10
        assert j in kept
        assert j < i
        assert cosines[i, j] >= 0.9


def test_planted_paraphrases_are_found_and_their_lines_named(corpus: list[dict], encoder, vectors: np.ndarray) -> None:
    questions = {
        corpus[0]["question"].upper().replace("?", " ?!"): corpus[0]["line"],
        corpus[100]["question"].replace(" the ", " a "): corpus[100]["line"],
        "Please tell me: " + corpus[200]["question"]: corpus[200]["line"],
    }
    planted = [{"file": "f.jsonl", "line": 1000 + i, "question": q, "answer": "x"} for i, q in enumerate(questions)]
    added = similarity.embed(encoder, list(questions))
    pairs = similarity.close_pairs(np.vstack([vectors, added]), 0.9)
    kept, problems = splits.drop_duplicates([*corpus, *planted], pairs, 0.9)
    assert kept == list(range(302))
    assert [p.line for p in problems] == [1000, 1001, 1002]
    assert [int(re.search(r":(\d+)", p.reason)[1]) for p in problems] == list(questions.values())
    assert [p.reason.split()[0] for p in problems] == ["exact", "near", "near"]


# Split and leakage


def test_the_302_give_211_45_46_every_time(corpus: list[dict]) -> None:
    parts = split(corpus, 0.15, 0.15, "subfield", 13)
    assert {name: len(indices) for name, indices in parts.items()} == {"train": 211, "validation": 45, "test": 46}
    assert sorted(i for indices in parts.values() for i in indices) == list(range(302))
    assert parts == split(corpus, 0.15, 0.15, "subfield", 13)
    assert all(indices == sorted(indices) for indices in parts.values())
    assert parts["test"] != split(corpus, 0.15, 0.15, "subfield", 14)["test"]


@pytest.mark.parametrize("seed", range(5))
def test_each_part_holds_each_subfield_in_proportion(corpus: list[dict], seed: int) -> None:
    parts = split(corpus, 0.15, 0.15, "subfield", seed)
    whole = Counter(row["subfield"] for row in corpus)
    for indices in parts.values():
        here = Counter(corpus[i]["subfield"] for i in indices)
        off = {name: here[name] - count * len(indices) / 302 for name, count in whole.items()}
        assert max(map(abs, off.values())) <= 1.5, off


def test_an_unstratified_split_is_out_of_proportion(corpus: list[dict]) -> None:
    """The check above can fail: without the column, some seed breaks it."""
    whole, worst = Counter(row["subfield"] for row in corpus), 0.0
    for seed in range(5):
        indices = split(corpus, 0.15, 0.15, "no such column", seed)["test"]
        here = Counter(corpus[i]["subfield"] for i in indices)
        worst = max(worst, *(abs(here[name] - count * 46 / 302) for name, count in whole.items()))
    assert worst > 1.5


@pytest.mark.parametrize(
    "sizes",
    [
        {"a": 10},
        {"a": 7, "b": 3},
        {"a": 7, "b": 7},
        {"a": 9, "b": 1},
        {"a": 60, "b": 2},
        {"a": 60, "b": 7},
        {"a": 60, "b": 1, "c": 1, "d": 1, "e": 1, "f": 1, "g": 1, "h": 1},
        {f"only {i}": 1 for i in range(40)},
        {f"group {i}": 7 for i in range(30)},
        {"a": 7, "b": 7, "c": 7, "d": 6, "e": 5, "f": 1},
    ],
    ids=str,
)
@pytest.mark.parametrize("shares", [(0.15, 0.15), (0.05, 0.2), (0.2, 0.7), (0.05, 0.8), (0.45, 0.45)], ids=str)
def test_small_and_rare_groups_split_all_the_same(sizes: dict[str, int], shares: tuple[float, float]) -> None:
    rows = grouped(sizes)
    n = len(rows)
    for seed in range(10):
        try:
            parts = split(rows, *shares, "subfield", seed)
        except ValueError as error:
            assert "leave a part without rows" in str(error)  # noqa: PT017
            assert min(int(n * (1 - sum(shares)) + 1e-9), round(n * shares[0]), n * shares[1] - 0.5) < 1
            continue
        assert sorted(i for indices in parts.values() for i in indices) == list(range(n))
        assert [bool(parts[name]) for name in PARTS] == [True, True, True]
        assert len(parts["validation"]) == round(n * shares[0])


def test_a_rare_group_does_not_spoil_the_proportion_of_the_others() -> None:
    rows = grouped({"a": 50, "b": 50, "c": 2})
    for seed in range(30):
        for indices in split(rows, 0.15, 0.4, "subfield", seed).values():
            here = Counter(rows[i]["subfield"] for i in indices)
            assert abs(here["a"] - here["b"]) <= 3, (seed, here)


def test_too_few_rows_and_impossible_shares_are_refused() -> None:
    with pytest.raises(ValueError, match="9 rows are too few to split; 10 are the least"):
        split(numbered(9), 0.15, 0.15, "subfield", 13)
    with pytest.raises(ValueError, match="leave a part without rows: 100 become 0/50/50"):
        split(numbered(100), 0.5, 0.5, "subfield", 13)
    with pytest.raises(ValueError, match="leave a part without rows: 20 become 19/0/1"):
        split(numbered(20), 0.01, 0.01, "subfield", 13)


def test_a_planted_near_duplicate_across_parts_is_refused() -> None:
    rows, vectors = numbered(30), unit_vectors(30, width=64)
    parts = {"train": list(range(20)), "validation": list(range(20, 25)), "test": list(range(25, 30))}

    def check(vectors: np.ndarray) -> pd.DataFrame:
        return splits.check_leakage(rows, list(range(30)), parts, similarity.close_pairs(vectors, 0.9), 0.9)

    table = check(vectors)
    assert len(table)
    assert table.cosine.is_monotonic_decreasing
    assert table.cosine.max() < 0.9
    for held, other in ((22, 3), (27, 19), (29, 21)):
        changed = vectors.copy()
        changed[held] = changed[other]
        with pytest.raises(ValueError, match=rf"1 pair.*\n  f.jsonl:{10 + held} .* and f.jsonl:{10 + other} .* 1\.000"):
            check(changed)
    changed = vectors.copy()
    changed[3] = changed[4]  # within one part: no leak
    check(changed)


def test_the_corpus_split_is_clean_and_its_table_names_real_neighbours(corpus: list[dict], vectors: np.ndarray) -> None:
    parts = split(corpus, 0.15, 0.15, "subfield", 13)
    table = splits.check_leakage(corpus, list(range(302)), parts, similarity.close_pairs(vectors, 0.9), 0.9)
    cosines = vectors @ vectors.T
    best = max(cosines[np.ix_(parts[a], parts[b])].max() for a, b in (("train", "validation"), ("train", "test")))
    best = max(best, cosines[np.ix_(parts["validation"], parts["test"])].max())
    assert table.cosine[0] == pytest.approx(best, abs=1e-5)
    for row in table.itertuples():
        assert row.first in parts[row.part]
        assert row.second in parts[row.other]
        assert row.part != row.other
        assert row.cosine == pytest.approx(cosines[row.first, row.second], abs=1e-5)
        assert (row.question, row.nearest) == (corpus[row.first]["question"], corpus[row.second]["question"])
        assert row.nearest_line == f"interview_qa.jsonl:{corpus[row.second]['line']}"


# Conversations


def test_a_root_is_where_the_conversation_began() -> None:
    roots, problems = splits.find_roots(family([None, 0, 1, None, 2, 3, 6 - 1]))
    assert problems == []
    assert roots == [0, 0, 0, 3, 0, 3, 3]
    assert splits.find_roots(numbered(3)) == ([0, 1, 2], [])


def test_parents_that_lead_nowhere_or_in_a_circle_are_named() -> None:
    rows = family([None, 2, 1, None, 4, 3])
    rows[5]["parent_id"] = "r99"
    rows.append(rows[3] | {"line": 77})
    roots, problems = splits.find_roots(rows)
    assert roots == [0, None, None, 3, None, None, None]
    assert list(map(str, problems)) == [
        "f.jsonl:11: parent_id: its parents lead in a circle",
        "f.jsonl:12: parent_id: its parents lead in a circle",
        "f.jsonl:14: parent_id: its parents lead in a circle",
        "f.jsonl:15: parent_id: follows up 'r99', which leads to no row",
        "f.jsonl:77: id: 'r3' is also the id of f.jsonl:13",
    ]


def test_ids_may_repeat_where_nothing_refers_to_them() -> None:
    assert splits.find_roots(numbered(3, id="topic")) == ([0, 1, 2], [])


def test_a_follow_up_of_a_dropped_row_goes_with_it_and_says_so() -> None:
    rows = family([None, None, 1, 2])
    rows[1]["question"] = rows[0]["question"]
    kept, problems = splits.keep_rows(rows, NO_PAIRS, 0.9)
    assert kept == [0]
    assert [p.line for p in problems] == [11, 12, 13]
    assert problems[1].reason == "follows up 'r1', which leads to no row"


def test_a_follow_up_may_be_near_its_parent_and_to_no_other_row() -> None:
    rows = family([None, 0, None])
    near = pd.DataFrame({"first": [0, 0], "second": [1, 2], "cosine": [0.95, 0.93]})
    kept, problems = splits.keep_rows(rows, near, 0.9)
    assert kept == [0, 1]
    assert [(p.line, p.reason) for p in problems] == [(12, "near duplicate of f.jsonl:10 (cosine 0.930)")]


def test_renumbered_pairs_name_the_same_rows() -> None:
    pairs = similarity.close_pairs(unit_vectors(50), 0.9)
    kept = [i for i in range(50) if i % 3]
    again = splits.renumber(pairs, kept)
    named = {(kept[p.first], kept[p.second], p.cosine) for p in again.itertuples()}
    assert named == {(p.first, p.second, p.cosine) for p in pairs.itertuples() if p.first % 3 and p.second % 3}


@pytest.mark.parametrize("seed", range(8))
def test_no_conversation_is_torn_apart(seed: int) -> None:
    rng = np.random.default_rng(seed)
    rows = family([None if i < 60 or rng.random() < 0.3 else int(rng.integers(i)) for i in range(200)])
    roots, _ = splits.find_roots(rows)
    parts = split(rows, 0.15, 0.15, "subfield", seed)
    part = {i: name for name, members in parts.items() for i in members}
    assert sorted(part) == list(range(200))
    for i, root in enumerate(roots):
        if part[root] == "train":
            assert part[i] == "train"
        else:
            assert part[i] == (part[root] if i == root else "multi_turn")
    firsts = [i for i, root in enumerate(roots) if i == root]
    assert len(parts["test"]) + len(parts["validation"]) + sum(part[i] == "train" for i in firsts) == len(firsts)
    assert splits.check_leakage(rows, roots, parts, NO_PAIRS, 0.9).empty


def test_a_second_file_leaves_the_held_out_rows_as_they_are(corpus: list[dict]) -> None:
    alone = split(corpus, 0.15, 0.15, "subfield", 13)
    extra = [{"file": "more.jsonl", "line": i, "question": f"More {i}?", "answer": "a"} for i in range(100)]
    for k, i in enumerate([*alone["test"][:20], *alone["validation"][:10], *alone["train"][:30]]):
        extra[k] |= {"id": f"x{k}", "parent_id": corpus[i]["id"]}
    extra[60] |= {"id": "x60", "parent_id": "x0"}  # a follow-up's follow-up
    rows = [*corpus, *extra]
    parts = split(rows, 0.15, 0.15, "subfield", 13, "more.jsonl")
    assert {name: parts[name] for name in ("validation", "test")} == {name: alone[name] for name in ("validation", "test")}
    assert parts["multi_turn"] == [302 + k for k in [*range(30), 60]]
    assert parts["train"] == sorted([*alone["train"], *(302 + k for k in range(30, 100) if k != 60)])


@pytest.mark.parametrize(("i", "j"), [(3, 29), (29, 3), (3, 22), (22, 29), (3, 31)])
def test_a_planted_conversation_across_parts_is_refused(i: int, j: int) -> None:
    rows = family([None] * 30 + [25, 26])
    parts = {"train": list(range(20)), "validation": list(range(20, 25)), "test": list(range(25, 30)), "multi_turn": [30, 31]}
    roots, _ = splits.find_roots(rows)
    splits.check_leakage(rows, roots, parts, NO_PAIRS, 0.9)
    rows[i]["parent_id"] = f"r{j}"
    roots, _ = splits.find_roots(rows)
    with pytest.raises(ValueError, match=rf"split refused: 1 pair.*\n  f\.jsonl:{10 + i} .*follows up f.jsonl:{10 + roots[i]}"):
        splits.check_leakage(rows, roots, parts, NO_PAIRS, 0.9)
