"""Two readings of the same items: every figure of agreement in the datasheet, computed again from the labels."""

from collections import Counter

import numpy as np
import pytest
from conftest import DATASHEET, at_fault, read_raw
from scipy.stats import spearmanr
from statsmodels.stats.inter_rater import cohens_kappa, to_table

READINGS = read_raw("second_readings.jsonl")
QUESTIONS = {row["id"]: row for name in ("interview_qa", "interview_qa_enhanced") for row in read_raw(f"{name}.jsonl")}
ANSWERS = {row["id"]: row for row in read_raw("judged_answers.jsonl")}
RATINGS = ["accuracy", "relevance", "completeness", "tone"]
ALLOWED = {name: {row[name] for row in QUESTIONS.values()} for name in ("subfield", "difficulty")}
ALLOWED |= {name: {row[name] for row in ANSWERS.values()} for name in ("primary", "subtype")}
ALLOWED |= {name: {1, 2, 3, 4, 5} for name in RATINGS}


def pairs_of_answers(label: str) -> list[list[tuple]]:
    """First and second label of all answers, of the written ones and of the real ones."""
    rows = [row for row in READINGS if row["label"] == label]
    written = [row for row in rows if ANSWERS[row["id"]]["source"] == "written"]
    real = [row for row in rows if ANSWERS[row["id"]]["source"] != "written"]
    return [[(row["first"], row["second"]) for row in group] for group in (rows, written, real)]


def kappa(found: list[tuple]) -> tuple[float, float, float]:
    """Cohen's kappa and its 95 % interval, the percentiles of 5,000 bootstrap samples: to draw items with replacement is to
    draw from the cells of their table."""
    table, _ = to_table(np.array(found, dtype=str))
    draws = np.random.default_rng(13).multinomial(len(found), table.ravel() / len(found), size=5000)
    drawn = [cohens_kappa(draw.reshape(table.shape), return_results=False) for draw in draws]
    return cohens_kappa(table, return_results=False), *np.percentile(drawn, [2.5, 97.5])


def rank_correlation(found: list[tuple]) -> str:
    first, second = zip(*found, strict=True)
    return f"{spearmanr(first, second).statistic:.2f}" if len(set(first)) > 1 < len(set(second)) else "does not vary"


def test_each_label_was_given_twice_to_200_items() -> None:
    """No item has a label of both guidelines: the questions for the present one were fresh."""
    sets = [("subfield", "first"), ("difficulty", "first"), *((name, "present") for name in ALLOWED if name != "subfield")]
    assert Counter((row["label"], row["guideline"]) for row in READINGS) == dict.fromkeys(sets, 200)
    assert len({(row["id"], row["label"]) for row in READINGS}) == len(READINGS)


def test_items_exist_and_labels_are_allowed() -> None:
    known = {name: QUESTIONS if name in ("subfield", "difficulty") else ANSWERS for name in ALLOWED}
    assert at_fault(row for row in READINGS if row["id"] not in known[row["label"]]) == []
    assert at_fault(row for row in READINGS if not {row["first"], row["second"]} <= ALLOWED[row["label"]]) == []


def test_first_subfields_are_those_of_the_corpus() -> None:
    """They were never changed; difficulty was decided anew, and answers were mended after the second labels."""
    first = {row["id"]: row["first"] for row in READINGS if row["label"] == "subfield"}
    assert first == {name: QUESTIONS[name]["subfield"] for name in first}


@pytest.mark.parametrize(
    ("name", "label", "guideline"),
    [
        ("subfield", "subfield", "first"),
        ("difficulty, by the first guideline (a sentence per level)", "difficulty", "first"),
        ("difficulty, by the present guideline, 200 fresh questions", "difficulty", "present"),
    ],
)
def test_datasheet_states_the_agreement_on_questions(name: str, label: str, guideline: str) -> None:
    found = [(row["first"], row["second"]) for row in READINGS if (row["label"], row["guideline"]) == (label, guideline)]
    point, low, high = kappa(found)
    same = sum(first == second for first, second in found)
    assert f"| {name} | {point:.2f} | {low:.2f} to {high:.2f} | {same} of {len(found)} |" in DATASHEET


@pytest.mark.parametrize(("name", "label"), [("error category", "primary"), ("subtype", "subtype")])
def test_datasheet_states_the_agreement_on_errors(name: str, label: str) -> None:
    cells = ["{:.2f} ({:.2f} to {:.2f})".format(*kappa(found)) for found in pairs_of_answers(label)]
    assert f"| {name}, kappa (95 % interval) | {' | '.join(cells)} |" in DATASHEET


@pytest.mark.parametrize("name", RATINGS)
def test_datasheet_states_the_agreement_on_ratings(name: str) -> None:
    assert f"| {name}, Spearman | {' | '.join(map(rank_correlation, pairs_of_answers(name)))} |" in DATASHEET


def test_datasheet_states_how_many_answers_were_read() -> None:
    both, written, real = map(len, pairs_of_answers("primary"))
    assert f"on {both} of the 420 ({written} written, {real} real)" in DATASHEET


def test_agreement_by_hand() -> None:
    """Of ten items the passes agree on seven: chance would give 0.5 * 0.6 + 0.5 * 0.4 = 0.5."""
    assert kappa([("a", "a")] * 4 + [("a", "b")] + [("b", "a")] * 2 + [("b", "b")] * 3)[0] == pytest.approx(0.4)
    assert rank_correlation([(1, 2), (2, 3), (5, 4)]) == "1.00"
