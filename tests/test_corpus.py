"""The 905 written questions: what the datasheet promises of them. Each failure names the ids at fault."""

import hashlib
import itertools
import re
from collections import Counter, defaultdict

import numpy as np
import pytest
from conftest import DATASHEET, RAW, at_fault, foreign_data, read_raw, sequences

from interviewmate_utils import similarity, splits
from interviewmate_utils.rows import clean_text

FIRST, FURTHER = read_raw("interview_qa.jsonl"), read_raw("interview_qa_enhanced.jsonl")
ROWS = FIRST + FURTHER
FOLLOW_UPS = [row for row in FURTHER if "parent_id" in row]
BY_ID = {row["id"]: row for row in ROWS}
FIELDS = ["id", "question", "answer", "subfield", "difficulty", "question_type", "key_points"]
TYPES = {"concept", "comparison", "derivation", "design", "debugging", "case", "behavioural"}
SUBFIELDS = {
    "machine learning",
    "deep learning",
    "NLP and LLMs",
    "statistics and probability",
    "data engineering",
    "ML system design",
    "MLOps and deployment",
    "problem solving and communication",
}


def shared_by_more_than(limit: int, rows: list[dict], size: int = 8) -> dict[str, list[str]]:
    """Word sequences that occur in more than `limit` answers, with the ids of those answers."""
    where = defaultdict(set)
    for row in rows:
        for words in sequences(row["answer"], size):
            where[words].add(row["id"])
    return {" ".join(words): sorted(ids) for words, ids in where.items() if len(ids) > limit}


@pytest.fixture(scope="module")
def vectors(encoder) -> np.ndarray:
    return similarity.embed(encoder, [row["question"] for row in ROWS])


def test_exactly_302_and_603_rows_with_the_same_fields_in_order() -> None:
    assert (len(FIRST), len(FURTHER)) == (302, 603)
    assert at_fault(row for row in FIRST if list(row) != FIELDS) == []
    assert at_fault(row for row in FURTHER if list(row) not in (FIELDS, [*FIELDS, "parent_id"])) == []


def test_ids_are_unique() -> None:
    assert [name for name, count in Counter(row["id"] for row in ROWS).items() if count > 1] == []


def test_fields_are_text_and_key_points_a_list_of_texts() -> None:
    assert at_fault(row for row in ROWS if not all(isinstance(row[name], str) for name in FIELDS[:-1])) == []
    points = (row for row in ROWS if not all(isinstance(p, str) and p for p in row["key_points"]))
    assert at_fault(points) == []


def test_lengths() -> None:
    assert at_fault(row for row in ROWS if not 40 <= len(row["question"]) <= 200) == []
    assert at_fault(row for row in ROWS if not 70 <= len(row["answer"].split()) <= 180) == []
    assert at_fault(row for row in ROWS if not 3 <= len(row["key_points"]) <= 6) == []
    assert at_fault(row for row in ROWS if len(set(row["key_points"])) < len(row["key_points"])) == []


@pytest.mark.parametrize(("rows", "least", "most"), [(FIRST, 30, 45), (ROWS, 100, 125)], ids=["302", "905"])
def test_eight_subfields_in_balance(rows: list[dict], least: int, most: int) -> None:
    counts = Counter(row["subfield"] for row in rows)
    assert set(counts) == SUBFIELDS
    assert {name: count for name, count in counts.items() if not least <= count <= most} == {}


@pytest.mark.parametrize("rows", [FIRST, ROWS], ids=["302", "905"])
def test_no_difficulty_is_under_a_fifth(rows: list[dict]) -> None:
    counts = Counter(row["difficulty"] for row in rows)
    assert set(counts) == {"easy", "medium", "hard"}
    assert {name: count for name, count in counts.items() if count < 0.2 * len(rows)} == {}


def test_follow_ups_have_a_parent_of_the_first_file_in_their_subfield() -> None:
    assert 180 <= len(FOLLOW_UPS) <= 220
    assert at_fault(row for row in FOLLOW_UPS if row["parent_id"] not in {first["id"] for first in FIRST}) == []
    assert at_fault(row for row in FOLLOW_UPS if row["subfield"] != BY_ID[row["parent_id"]]["subfield"]) == []


def test_a_follow_up_does_not_repeat_its_parents_answer() -> None:
    def repeats(row: dict, other: dict) -> bool:
        return bool(sequences(row["answer"], 8) & sequences(other["answer"], 8))

    assert at_fault(row for row in FOLLOW_UPS if repeats(row, BY_ID[row["parent_id"]])) == []
    assert repeats(FIRST[0], FIRST[0])


def test_question_types() -> None:
    assert at_fault(row for row in ROWS if row["question_type"] not in TYPES) == []
    assert {row["question_type"] for row in ROWS} == TYPES


def test_text_is_already_clean() -> None:
    texts = ((row["id"], text) for row in ROWS for text in [*(row[name] for name in FIELDS[:-1]), *row["key_points"]])
    assert [name for name, text in texts if clean_text(text) != text] == []


def test_no_stock_phrases() -> None:
    assert shared_by_more_than(2, ROWS) == {}


def test_a_stock_phrase_would_be_found() -> None:
    phrase = " It depends, in the end, on what you optimize!"
    planted = [row | {"answer": row["answer"] + phrase * (i < 3)} for i, row in enumerate(ROWS)]
    found = shared_by_more_than(2, planted)
    assert found["depends in the end on what you optimize"] == sorted(at_fault(ROWS[:3]))


def test_no_two_questions_are_near_duplicates(vectors: np.ndarray) -> None:
    cosines = np.triu(vectors @ vectors.T, 1)
    pairs = [(ROWS[i], ROWS[j], round(float(cosines[i, j]), 3)) for i, j in np.argwhere(cosines >= 0.90)]
    assert [(a["id"], b["id"], cosine) for a, b, cosine in pairs if b.get("parent_id") != a["id"]] == []


def test_a_paraphrase_would_be_found(encoder, vectors: np.ndarray) -> None:
    (added,) = similarity.embed(encoder, ["So: " + ROWS[0]["question"].replace("?", ", please?")])
    assert int((vectors @ added).argmax()) == 0
    assert float((vectors @ added).max()) >= 0.90


@pytest.mark.parametrize("name", sorted(path.name for path in RAW.iterdir()))
def test_datasheet_states_the_digest_of_each_file(name: str) -> None:
    assert f"`raw/{name}`" in DATASHEET
    assert hashlib.sha256((RAW / name).read_bytes()).hexdigest() in DATASHEET


def test_datasheet_states_the_counts() -> None:
    first, whole = (Counter(row["subfield"] for row in rows) for rows in (FIRST, ROWS))
    for subfield in SUBFIELDS:
        assert re.search(rf"\| {re.escape(subfield)} \| \w+- \| {first[subfield]} \| {whole[subfield]} \|", DATASHEET), subfield
    for column in ("difficulty", "question_type"):
        first, whole = (Counter(row[column] for row in rows) for rows in (FIRST, ROWS))
        for value in whole:
            assert f"| {value} | {first[value]} | {whole[value]} |" in DATASHEET, value


@foreign_data
def test_no_question_is_a_copy_of_a_public_one(encoder, vectors: np.ndarray, foreign: list[dict]) -> None:
    _, cosine = similarity.nearest(vectors, similarity.embed(encoder, [row["question"] for row in foreign]))
    assert at_fault(itertools.compress(ROWS, cosine >= 0.95)) == []


@foreign_data
def test_no_answer_shares_twelve_words_with_a_public_one(foreign_sequences: set[tuple[str, ...]]) -> None:
    assert at_fault(row for row in ROWS if sequences(row["answer"], 12) & foreign_sequences) == []


@pytest.fixture(scope="module")
def parts(vectors: np.ndarray) -> dict[str, list[int]]:
    rows = [row | {"file": "more" if i >= 302 else "first", "line": i + 1} for i, row in enumerate(ROWS)]
    roots, problems = splits.find_roots(rows)
    assert problems == []
    parts = splits.split_rows(rows, roots, 0.15, 0.15, "subfield", 13, "more")
    splits.check_leakage(rows, roots, parts, similarity.close_pairs(vectors, 0.90), 0.90)
    return parts


def test_no_training_question_is_of_a_held_out_conversation(parts: dict[str, list[int]]) -> None:
    """Said a second time, without the code that made the split."""
    held = {ROWS[i]["id"] for name in ("validation", "test") for i in parts[name]}
    assert set(parts) == {"train", "validation", "test", "multi_turn"}
    assert (len(parts["validation"]), len(parts["test"])) == (45, 46)
    train = [ROWS[i] for i in parts["train"]]
    assert at_fault(row for row in train if row["id"] in held or row.get("parent_id") in held) == []
    multi_turn = {ROWS[i]["id"] for i in parts["multi_turn"]}
    assert multi_turn == {row["id"] for row in FOLLOW_UPS if row["parent_id"] in held}
    assert len(train) == 905 - 45 - 46 - len(multi_turn)
    assert re.search(rf"{len(train)} to train on, .* {len(multi_turn)} follow-ups", DATASHEET)


def test_training_questions_stay_away_from_held_out_ones(parts: dict[str, list[int]], vectors: np.ndarray) -> None:
    held = [i for name in ("validation", "test", "multi_turn") for i in parts[name]]
    index, cosine = similarity.nearest(vectors[parts["train"]], vectors[held])
    close = [(ROWS[i]["id"], ROWS[held[j]]["id"]) for i, j, c in zip(parts["train"], index, cosine, strict=True) if c >= 0.90]
    assert close == []
