"""Errors in answers: eight categories with their subtypes (see data/GUIDELINE.md), and the answers that were judged by them."""

import json
from typing import TYPE_CHECKING

from .. import config

if TYPE_CHECKING:
    import pandas as pd

CATEGORIES = {
    "hallucination": ("factual inaccuracy", "concept confusion", "domain misunderstanding"),
    "generic": ("over-general", "unspecific", "template-like"),
    "technical error": ("misapplied concept", "confused terms", "misunderstood process"),
    "length mismatch": ("too short", "too long", "inconsistent"),
    "incomplete": ("truncated", "missing component", "partial coverage"),
    "repetitive": ("words", "phrases", "content"),
    "off-topic": ("question misread", "context confused", "irrelevant"),
    "format": ("structure", "style", "presentation"),
}
OF_FORM = ("length mismatch", "incomplete", "repetitive", "format")  # mostly to be seen without knowing the subject


def read_questions() -> list[dict]:
    """The project's own questions, as they stand in the file: question, answer, key_points and the rest."""
    return _read(config.QUESTIONS)


def read_judged() -> "pd.DataFrame":
    """The judged answers, one row each, with `question`, `reference` and `key_points` of their question beside them."""
    import pandas as pd

    asked, rows = {row["id"]: row for row in read_questions()}, _read(config.JUDGED)
    for row in rows:
        own = asked[row["question_id"]]
        row |= {"question": own["question"], "reference": own["answer"], "key_points": own["key_points"]}
    return pd.DataFrame(rows)


def _read(name: str) -> list[dict]:
    return [json.loads(line) for line in (config.ROOT / name).read_text(encoding="utf-8").splitlines()]
