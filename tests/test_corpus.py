"""The 302 written questions: what the datasheet and the task promise of them. Each failure names the ids at fault."""

import hashlib
import itertools
import json
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator

import numpy as np
import pytest

from interviewmate_utils import similarity
from interviewmate_utils.config import ROOT
from interviewmate_utils.rows import clean_text

FILE = ROOT / "data" / "raw" / "interview_qa.jsonl"
FOREIGN = ROOT.parent / "shared" / "data" / "qa"
ROWS = [json.loads(line) for line in FILE.read_text(encoding="utf-8").splitlines()]
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
foreign_data = pytest.mark.skipif(not FOREIGN.exists(), reason="../shared/data is not beside this checkout")


def at_fault(wrong: Iterable[dict]) -> list[str]:
    return [row["id"] for row in wrong]


def sequences(text: str, size: int) -> Iterator[tuple[str, ...]]:
    """All runs of `size` words, without case and punctuation."""
    words = re.findall(r"\w+", text.lower())
    return zip(*(words[i:] for i in range(size)), strict=False)


def shared_by_more_than(limit: int, rows: list[dict], size: int = 8) -> dict[str, list[str]]:
    """Word sequences that occur in more than `limit` answers, with the ids of those answers."""
    where = defaultdict(set)
    for row in rows:
        for words in sequences(row["answer"], size):
            where[words].add(row["id"])
    return {" ".join(words): sorted(ids) for words, ids in where.items() if len(ids) > limit}


@pytest.fixture(scope="module")
def encoder():
    return similarity.load_encoder("embedded-minilm")


@pytest.fixture(scope="module")
def vectors(encoder) -> np.ndarray:
    return similarity.embed(encoder, [row["question"] for row in ROWS])


@pytest.fixture(scope="module")
def foreign() -> list[dict]:
    return [json.loads(line) for path in sorted(FOREIGN.glob("*.jsonl")) for line in path.read_text("utf-8").splitlines()]


def test_exactly_302_rows_with_the_same_fields_in_order() -> None:
    assert len(ROWS) == 302
    assert at_fault(row for row in ROWS if list(row) != FIELDS) == []


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


def test_eight_subfields_of_30_to_45() -> None:
    counts = Counter(row["subfield"] for row in ROWS)
    assert set(counts) == SUBFIELDS
    assert {name: count for name, count in counts.items() if not 30 <= count <= 45} == {}


def test_no_difficulty_is_under_a_fifth() -> None:
    counts = Counter(row["difficulty"] for row in ROWS)
    assert set(counts) == {"easy", "medium", "hard"}
    assert {name: count for name, count in counts.items() if count < 0.2 * len(ROWS)} == {}


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
    pairs = [(ROWS[i]["id"], ROWS[j]["id"], round(float(cosines[i, j]), 3)) for i, j in np.argwhere(cosines >= 0.90)]
    assert pairs == []


def test_a_paraphrase_would_be_found(encoder, vectors: np.ndarray) -> None:
    (added,) = similarity.embed(encoder, ["So: " + ROWS[0]["question"].replace("?", ", please?")])
    assert int((vectors @ added).argmax()) == 0
    assert float((vectors @ added).max()) >= 0.90


def test_datasheet_states_the_digest_of_the_file() -> None:
    assert hashlib.sha256(FILE.read_bytes()).hexdigest() in (ROOT / "data" / "README.md").read_text(encoding="utf-8")


def test_datasheet_states_the_counts() -> None:
    datasheet = (ROOT / "data" / "README.md").read_text(encoding="utf-8")
    for subfield, count in Counter(row["subfield"] for row in ROWS).items():
        assert re.search(rf"\| {re.escape(subfield)} \| \w+- \| {count} \|", datasheet), (subfield, count)
    for level, count in Counter(row["difficulty"] for row in ROWS).items():
        assert re.search(rf"\b{count} (rows )?(are )?{level}\b", datasheet), (level, count)


@foreign_data
def test_no_question_is_a_copy_of_a_public_one(encoder, vectors: np.ndarray, foreign: list[dict]) -> None:
    _, cosine = similarity.nearest(vectors, similarity.embed(encoder, [row["question"] for row in foreign]))
    assert at_fault(itertools.compress(ROWS, cosine >= 0.95)) == []


@foreign_data
def test_no_answer_shares_twelve_words_with_a_public_one(foreign: list[dict]) -> None:
    theirs = {words for row in foreign for words in sequences(row["answer"], 12)}
    assert len(theirs) > 10_000
    assert at_fault(row for row in ROWS if any(words in theirs for words in sequences(row["answer"], 12))) == []
