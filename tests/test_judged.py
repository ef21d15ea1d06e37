"""The 420 judged answers: counts, balance, labels by the guideline, evidence verbatim. Each failure names the ids at fault."""

import re
from collections import Counter, defaultdict

import pytest
from conftest import at_fault, foreign_data, read_raw, sequences

from interviewmate_utils import errors
from interviewmate_utils.config import ROOT

ROWS = read_raw("judged_answers.jsonl")
WRITTEN = [row for row in ROWS if row["source"] == "written"]
REAL = [row for row in ROWS if row["source"] != "written"]
GOOD = [row for row in WRITTEN if row["primary"] is None]
FIELDS = ["id", "question_id", "answer", "source", "part", "primary", "subtype", "labels", "covered", "contradicted", "ratings"]
RATINGS = ["accuracy", "relevance", "completeness", "tone"]
QUESTIONS = {row["id"]: row for row in read_raw("interview_qa.jsonl")}
GUIDELINE = (ROOT / "data" / "GUIDELINE.md").read_text(encoding="utf-8")
CATEGORIES = {
    line.split("|")[1].split(":")[0].strip(): re.findall(r"\*([a-z -]+)\*:", line)
    for line in GUIDELINE.splitlines()
    if re.match(r"\| [a-z -]+(:[^|]*)? \| \*", line)
}


def test_the_guideline_names_eight_categories_of_three_subtypes() -> None:
    assert {name: len(subtypes) for name, subtypes in CATEGORIES.items()} == {
        "hallucination": 3,
        "generic": 3,
        "technical error": 3,
        "length mismatch": 3,
        "incomplete": 3,
        "repetitive": 3,
        "off-topic": 3,
        "format": 3,
    }


def test_the_package_names_the_categories_of_the_guideline() -> None:
    assert {name: list(subtypes) for name, subtypes in errors.CATEGORIES.items()} == CATEGORIES
    assert set(errors.OF_FORM) < set(CATEGORIES)


def test_judged_answers_are_read_with_their_question() -> None:
    table = errors.read_judged()
    assert list(table.id) == [row["id"] for row in ROWS]
    for row in table.itertuples():
        asked = QUESTIONS[row.question_id]
        assert (row.question, row.reference, row.key_points) == (asked["question"], asked["answer"], asked["key_points"])


def test_counts() -> None:
    assert (len(WRITTEN), len(GOOD), len(REAL)) == (320, 80, 100)
    assert Counter(row["source"] for row in REAL) == {"base": 50, "run A": 50}
    assert [row["id"] for row in ROWS] == [f"ja-{i:03d}" for i in range(1, 421)]
    assert at_fault(row for row in ROWS if list(row) != FIELDS or list(row["ratings"]) != RATINGS) == []


def test_thirty_of_each_category_ten_of_each_subtype_in_equal_halves() -> None:
    wanted = {
        (name, subtype, part): 5 for name, subs in CATEGORIES.items() for subtype in subs for part in ("development", "test")
    }
    wanted |= {(None, None, part): 40 for part in ("development", "test")}
    assert Counter((row["primary"], row["subtype"], row["part"]) for row in WRITTEN) == wanted
    assert at_fault(row for row in REAL if row["part"] != "model") == []


def test_no_question_is_in_both_halves() -> None:
    parts = defaultdict(set)
    for row in WRITTEN:
        parts[row["question_id"]].add(row["part"])
    assert [name for name, found in parts.items() if len(found) > 1] == []
    assert set(parts) <= set(QUESTIONS)


def test_labels_are_of_the_guideline_and_the_first_is_primary() -> None:
    pairs = {row["id"]: [(label["category"], label["subtype"]) for label in row["labels"]] for row in ROWS}
    assert at_fault(row for row in ROWS if any(sub not in CATEGORIES.get(name, ()) for name, sub in pairs[row["id"]])) == []
    first = {row["id"]: (pairs[row["id"]] or [(None, None)])[0] for row in ROWS}
    assert at_fault(row for row in ROWS if first[row["id"]] != (row["primary"], row["subtype"])) == []
    assert at_fault(row for row in ROWS if len({name for name, _ in pairs[row["id"]]}) < len(pairs[row["id"]])) == []
    assert at_fault(row for row in ROWS if any(label["severity"] not in (1, 2, 3) for label in row["labels"])) == []


def test_every_severity_occurs_in_each_category_and_half() -> None:
    found = {(row["primary"], row["part"], row["labels"][0]["severity"]) for row in WRITTEN if row["labels"]}
    wanted = {(name, part, severity) for name in CATEGORIES for part in ("development", "test") for severity in (1, 2, 3)}
    assert wanted - found == set()


def test_evidence_stands_in_the_answer() -> None:
    passages = {row["id"]: [e for label in row["labels"] for e in label["evidence"]] for row in ROWS}
    assert at_fault(row for row in ROWS if any(e not in row["answer"] or not e.strip() for e in passages[row["id"]])) == []
    assert at_fault(row for row in ROWS if any(not 1 <= len(label["evidence"]) <= 3 for label in row["labels"])) == []


def test_ratings_and_key_points_are_in_range() -> None:
    assert at_fault(row for row in ROWS if not all(row["ratings"][name] in (1, 2, 3, 4, 5) for name in RATINGS)) == []
    for row in ROWS:
        marked = row["covered"] + row["contradicted"]
        assert len(set(marked)) == len(marked), row["id"]
        assert set(marked) <= set(range(len(QUESTIONS[row["question_id"]]["key_points"]))), row["id"]


def test_good_answers_cover_the_points_in_other_words() -> None:
    def share(row: dict) -> float:
        return len(row["covered"]) / len(QUESTIONS[row["question_id"]]["key_points"])

    assert at_fault(row for row in GOOD if share(row) < 0.7 or row["contradicted"] or min(row["ratings"].values()) < 4) == []
    repeated = (row for row in GOOD if sequences(row["answer"], 8) & sequences(QUESTIONS[row["question_id"]]["answer"], 8))
    assert at_fault(repeated) == []


@pytest.mark.parametrize("category", sorted(set(CATEGORIES) - {"length mismatch", "incomplete"}))
def test_length_alone_does_not_give_the_label_away(category: str) -> None:
    """The error answers' median length lies within the middle four fifths of the good answers' lengths."""
    good = sorted(len(row["answer"].split()) for row in GOOD)
    lengths = sorted(len(row["answer"].split()) for row in WRITTEN if row["primary"] == category)
    assert good[8] <= lengths[15] <= good[71]


@foreign_data
def test_no_answer_shares_twelve_words_with_a_public_one(foreign_sequences: set[tuple[str, ...]]) -> None:
    assert at_fault(row for row in WRITTEN if sequences(row["answer"], 12) & foreign_sequences) == []
