"""Error detection: rules of form on texts damaged on purpose, the classifier's targets on the test half, measures against
scikit-learn and scipy, and answers as no one should write them."""

import numpy as np
import pandas as pd
import pytest
from conftest import read_raw
from scipy.stats import spearmanr
from sklearn.metrics import f1_score

from interviewmate_utils import errors
from interviewmate_utils.errors import form, judge, measure, remedies, show, signals

CORPUS = read_raw("interview_qa.jsonl")
VOCABULARY = signals.Counter(word for row in CORPUS for word in form.words(f"{row['question']} {row['answer']}"))


def found(text: str, question: str = "What is it?") -> dict:
    return form.breaches(text, question, VOCABULARY)


SOUND = [row for row in CORPUS if 60 < len(form.words(row["answer"])) < 200 and not found(row["answer"], row["question"])][:60]


def test_our_own_answers_hardly_break_a_rule() -> None:
    accused = {row["id"]: [*broken] for row in CORPUS if (broken := found(row["answer"], row["question"]))}
    assert len(accused) < 0.04 * len(CORPUS), accused


def cut(text: str) -> str:
    return text[: int(0.6 * len(text))].rsplit(" ", 1)[0].rstrip(".,;:!?")


DAMAGE = {
    ("incomplete", "truncated"): cut,
    ("length mismatch", "too short"): lambda text: " ".join(text.split()[:12]) + ".",
    ("length mismatch", "too long"): lambda text: " ".join([text] * 5),
    ("repetitive", "phrases"): lambda text: f"{text} {' '.join(text.split()[-14:])}",
    ("repetitive", "words"): lambda text: " ".join(f"{word} {word}" if len(word) > 6 else word for word in text.split()),
    ("format", "structure"): lambda text: "\n".join(f"- {line}" for line in form.sentences(text)),
    ("format", "presentation"): lambda text: f"<p>{'</p><p>'.join(form.sentences(text))}</p>",
    ("format", "style"): lambda text: text.replace(". ", "! 🚀 "),
}


@pytest.mark.parametrize("label", DAMAGE, ids=" ".join)
def test_damage_is_found_and_shown(label: tuple[str, str]) -> None:
    missed = []
    for row in SOUND:
        text = DAMAGE[label](row["answer"])
        broken = found(text, row["question"])
        if label not in broken:
            missed.append(row["id"])
        assert all(passage in text for passages in broken.values() for passage in passages), (row["id"], broken)
    assert len(missed) <= 0.05 * len(SOUND), missed


@pytest.mark.parametrize(
    "text",
    [
        "Question: What is it?\nAnswer: A thing that one can name, weigh and put back where it was before anyone came "
        "to look at it again, as I said.",
        "It\u00e2\u20ac\u2122s a mean, and the mean isn\u00e2\u20ac\u2122t robust, so one far value moves it as far as "
        "it likes, while the median stays where it was before that.",
        "\\frac{a}{b} is what \\alpha says of \\beta, and with $x$ and $y$ in place of both one gets the same thing "
        "once again as it was at first here.",
        "I would look at the\u5b9a\u5411 of the data first and only then fit the model, since a model that is fit before "
        "anyone looks is fit to errors in it.",
    ],
)
def test_broken_text_is_a_matter_of_format(text: str) -> None:
    assert {category for category, _ in found(text)} == {"format"}


@pytest.mark.parametrize(
    "text", ["It cost $9 a day, then $8, then $7 and $6, and in the end $5 or $4, which is what we had planned for it."]
)
def test_money_is_no_markup(text: str) -> None:
    assert ("format", "presentation") not in found(text)


def test_short_announced_and_long_given() -> None:
    body = SOUND[0]["answer"]
    assert ("length mismatch", "inconsistent") in found(f"In one sentence, it is the mean. {body} {SOUND[1]['answer']}")
    assert ("length mismatch", "inconsistent") not in found(f"In one sentence, it is the mean. {form.sentences(body)[0]}")


@pytest.fixture(scope="module")
def judging(encoder) -> judge.Judge:
    return judge.fitted(encoder, 13)


@pytest.fixture(scope="module")
def halves() -> dict[str, pd.DataFrame]:
    return {part: group.reset_index(drop=True) for part, group in errors.read_judged().groupby("part")}


@pytest.fixture(scope="module")
def seen(judging, halves) -> pd.DataFrame:
    return judging.judge(judge.items_of(halves["test"]))


def test_targets_on_the_test_half(seen, halves) -> None:
    marked = judge.categories_of(halves["test"].labels)
    value = measure.detection(marked, judge.categories_of(seen.labels), halves["test"].question_id, 99).value
    assert value["macro"] >= 0.60
    assert value["macro of form"] >= 0.65
    assert value["good, accused"] <= 0.15


def test_the_classifier_beats_the_zero_effort_rule_and_the_encoder(judging, seen, halves) -> None:
    test, marked = halves["test"], judge.categories_of(halves["test"].labels)
    others = [
        measure.zero_effort(judge.items_of(test), [*marked]),
        measure.encoder_found(judging.texts, halves["development"], test),
    ]
    ours, *theirs = (
        measure.detection(marked, t, test.question_id, 99).value["macro"] for t in [judge.categories_of(seen.labels), *others]
    )
    assert ours > max(theirs) + 0.1


def test_completeness_and_relevance_go_with_the_authors(seen, halves) -> None:
    valid = measure.validity(halves["test"], seen, 199)
    assert (valid.loc[["relevance", "completeness", "tone"], "low"] > 0.3).all()


def test_labels_are_of_the_guideline_and_name_evidence(seen, halves) -> None:
    for labels, answer in zip(seen.labels, halves["test"].answer, strict=True):
        for label in labels:
            assert label["subtype"] in errors.CATEGORIES[label["category"]]
            assert label["severity"] in (1, 2, 3)
            assert all(passage in answer for passage in label["evidence"]), label


def test_an_answer_to_another_question_is_off_topic(judging, halves) -> None:
    good = halves["test"][halves["test"].primary.isna()].reset_index(drop=True)
    shifted = good.assign(answer=np.roll(good.answer, 7))
    told, swapped = (judging.judge(judge.items_of(table)) for table in (good, shifted))
    assert judge.categories_of(swapped.labels)["off-topic"].mean() > 0.8
    assert swapped.relevance.mean() < told.relevance.mean() - 1.5
    assert swapped.points.map(np.mean).mean() < told.points.map(np.mean).mean() / 2


def test_half_an_answer_is_less_complete(judging, halves) -> None:
    good = halves["test"][halves["test"].primary.isna()].reset_index(drop=True)
    halved = good.assign(answer=[" ".join(lines[: len(lines) // 2]) for lines in map(form.sentences, good.answer)])
    told, less = (judging.judge(judge.items_of(table)) for table in (good, halved))
    assert (less.completeness < told.completeness).mean() > 0.8


def test_answers_as_nobody_should_write_them(judging) -> None:
    row = CORPUS[0]
    odd = ["", " \n ", "x" * 200_000, row["answer"] * 300, "<script>alert(1)</script>", "\u0000", "9" * 5_000, "No."]
    table = pd.DataFrame({"answer": odd}).assign(
        **{k: [row[k]] * len(odd) for k in ("question", "key_points")}, reference=row["answer"]
    )
    told = judging.judge(judge.items_of(table))
    kinds = [{(label["category"], label["subtype"]) for label in labels} for labels in told.labels]
    short, long = ("length mismatch", "too short"), ("length mismatch", "too long")
    assert [short in kind for kind in kinds] == [True, True, True, False, True, True, True, True]
    assert [long in kind for kind in kinds] == [False, False, False, True, False, False, False, False]
    assert np.isfinite(told[[*judge.RATINGS]].to_numpy()).all()


def test_without_key_points_the_references_sentences_stand_for_them() -> None:
    row = CORPUS[0]
    told = {"answer": "So it is.", "question": row["question"], "reference": row["answer"]}
    [item] = judge.items_of(pd.DataFrame([told]))
    assert item.key_points == form.sentences(row["answer"])
    listed = [np.array(["a", "b"], object), ["a", "b"], "a; b", None, float("nan"), []]
    found = [item.key_points for item in judge.items_of(pd.DataFrame([told | {"key_points": one} for one in listed]))]
    assert found == [["a", "b"]] * 2 + [form.sentences(row["answer"])] * 4


@pytest.mark.parametrize(
    ("items", "message"),
    [
        ([], "there is no answer to judge"),
        ([signals.Item(float("nan"), "Why?", "Because.", ["it is so"])], "answer 0 is nan; give text"),
        ([signals.Item("So.", "Why is it?", "Because.", [])], "answer 0: 'Why is it\\?' has no key points"),
    ],
)
def test_what_cannot_be_judged_is_refused(judging, items, message) -> None:
    with pytest.raises(ValueError, match=message):
        judging.judge(items)


def drawn(seed: int = 0, rows: int = 60) -> tuple[pd.DataFrame, pd.DataFrame, list[int]]:
    rng = np.random.default_rng(seed)
    marked = pd.DataFrame(rng.random((rows, 8)) < 0.2, columns=[*errors.CATEGORIES])
    return marked, marked ^ (rng.random(marked.shape) < 0.1), [*np.arange(rows) // 2]


def test_detection_equals_scikit_learn() -> None:
    marked, guessed, questions = drawn()
    table = measure.detection(marked, guessed, questions)
    for category in marked:
        assert table.value[category] == pytest.approx(f1_score(marked[category], guessed[category]))
        assert table.low[category] <= table.value[category] <= table.high[category]
    assert table.value["macro"] == pytest.approx(f1_score(marked, guessed, average="macro"))
    good = ~marked.any(axis=1)
    assert table.value["good, accused"] == pytest.approx(guessed[good].any(axis=1).mean())


def test_a_category_that_no_answer_has_is_not_measured() -> None:
    marked, guessed, questions = drawn()
    marked["format"] = False
    table = measure.detection(marked, guessed, questions)
    assert table.loc["format", ["value", "low", "high"]].isna().all()
    rest = [name for name in marked if name != "format"]
    assert table.value["macro"] == pytest.approx(f1_score(marked[rest], guessed[rest], average="macro"))


def test_one_answer_and_no_good_one_are_stated() -> None:
    marked, guessed, _ = drawn(rows=1)
    marked["format"] = True
    table = measure.detection(marked, guessed.assign(format=True), ["q"])
    assert table.value["format"] == 1
    assert np.isnan(table.value["good, accused"])


@pytest.mark.parametrize("change", [lambda t: t.iloc[1:], lambda t: t.rename(columns={"format": "form"}), lambda t: t.iloc[:0]])
def test_tables_that_do_not_match_are_refused(change) -> None:
    marked, guessed, questions = drawn()
    with pytest.raises(ValueError, match="give the same answers and categories to each"):
        measure.detection(marked, change(guessed), questions)


def test_validity_equals_scipy_and_says_nothing_of_equal_ratings() -> None:
    rng = np.random.default_rng(1)
    theirs = rng.integers(1, 6, 50)
    table = pd.DataFrame({"ratings": [dict.fromkeys(judge.RATINGS, int(v)) for v in theirs], "question_id": np.arange(50) // 2})
    rated = pd.DataFrame({name: theirs + rng.normal(size=50) for name in judge.RATINGS}).assign(tone=3.0)
    valid = measure.validity(table, rated, 199)
    assert valid.correlation["accuracy"] == pytest.approx(spearmanr(theirs, rated.accuracy).statistic)
    assert valid.low["accuracy"] < valid.correlation["accuracy"] < valid.high["accuracy"]
    assert valid.loc["tone", ["correlation", "low", "high"]].isna().all()


def test_every_error_has_a_remedy_and_rare_ones_get_none() -> None:
    assert set(remedies.REMEDIES) == {(c, subtype) for c, subtypes in errors.CATEGORIES.items() for subtype in subtypes}
    labels = pd.DataFrame({"category": ["format"] * 3 + ["generic"], "subtype": ["style", "style", "structure", "unspecific"]})
    shares = pd.DataFrame({"mean": [0.3, 0.04], "low": [0.2, 0.01], "high": [0.4, 0.1]}, index=["format", "generic"])
    [row] = remedies.suggest(labels, shares).to_dict("records")
    assert row["category"] == "format"
    assert row["found in"] == "30% (20% to 40%) of answers"
    assert row["mostly"] == "style (67%)"
    assert row["what to try"] == remedies.REMEDIES["format", "style"]


def test_html_in_an_answer_is_shown_and_not_run() -> None:
    text = "a <b>bold</b> <script>alert(1)</script> end & end"
    told = show.highlighted(text, ["<b>bold</b>", "END", "missing", "  "])
    assert told == (
        "a <mark>&lt;b&gt;bold&lt;/b&gt;</mark> &lt;script&gt;alert(1)&lt;/script&gt; <mark>end</mark> &amp; <mark>end</mark>"
    )


def test_overlapping_passages_are_marked_once() -> None:
    assert show.highlighted("one two three", ["one two", "two three"]) == "<mark>one two three</mark>"
    assert show.highlighted("to be or not to be", ["not to be"]) == "to be or <mark>not to be</mark>"
    loop = "of the mean " * 4 + "of the mean"
    assert show.highlighted(loop, ["mean of the mean"]).endswith("of the <mark>mean of the mean</mark>")
