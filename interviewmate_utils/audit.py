"""Published figures beside what follows from them: one row per claim; and three ways in which a score misleads."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pandas as pd

VERDICTS = {True: "consistent", False: "inconsistent", None: "not reproducible from what is stated"}


def rounds_to(computed: float, stated: float, to: float) -> bool:
    """Whether `computed`, rounded to a multiple of `to`, is what was stated: 2.466 rounds to 2.5 by 0.1, not by 0.01."""
    return abs(computed - stated) <= to / 2 * (1 + 1e-9)


class Audit:
    """The claims of a YAML file (see its head), and what was found of each."""

    def __init__(self, path: Path) -> None:
        import yaml

        self.claims = {claim["id"]: claim for claim in yaml.safe_load(path.read_text(encoding="utf-8"))}
        self.rows: dict[str, dict[str, str]] = {}

    def stated(self, number: str) -> dict[str, Any]:
        """The numbers of a claim, as published."""
        return self.claims[number]["stated"]

    def judge(self, number: str, agrees: bool | None, ours: str) -> None:
        """Record a claim's verdict (True: it follows from what is stated, False: not, None: that cannot be told) and ours."""
        verdict = VERDICTS[None if agrees is None else bool(agrees)]
        self.rows[number] = {"ours": ours, "verdict": verdict, "why": self.claims[number]["why"]}

    def table(self, *numbers: str) -> "pd.DataFrame":
        """One row per claim in the order of the file; of those named, or of all. Raises ValueError for one not judged."""
        import pandas as pd

        wanted = numbers or tuple(self.claims)
        if missing := [number for number in wanted if number not in self.rows]:
            raise ValueError(f"claims without a verdict: {', '.join(missing)}")
        rows = [{k: self.claims[n][k] for k in ("document", "claim")} | self.rows[n] for n in wanted]
        return pd.DataFrame(rows, index=pd.Index(wanted, name="claim no."))

    def show(self, *numbers: str) -> Any:
        """The table as one to read; see `table`."""
        from . import plots

        return plots.show_texts(self.table(*numbers).reset_index(), ["claim no.", "claim", "ours", "verdict", "why"])


def quality_score(text: str, rule: Mapping[str, Any], kind: str) -> float:
    """The published part of claim 25's score of a text, 0 to 10; `rule` is what the claim states, `kind` the sort of text."""
    low, high = rule["ranges"][kind]
    score = rule["start"] + rule["in_range"] * (low <= len(text.split()) <= high)
    score += min(rule["words_at_most"], rule["each_word"] * sum(word in text for word in rule["words"]))
    return max(0.0, min(10.0, score + rule["two_full_stops"] * (text.count(".") >= 2)))


def accuracy_by_split(templates: Mapping[str, Sequence[str]], fillings: Sequence[str], seed: int) -> dict[str, float]:
    """Accuracy of a classifier of words on texts made from two templates per kind: on a random half, and on unseen templates.

    Every template (with one `{}`) is filled with every filling; classes are the kinds, as many rows of each.
    """
    import pandas as pd
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline

    rows = [(kind, i, t.format(f)) for kind, pair in templates.items() for i, t in enumerate(pair) for f in fillings]
    made = pd.DataFrame(rows, columns=["kind", "template", "text"])
    shuffled = made.sample(frac=1, random_state=seed)
    halves = {"random half": (shuffled[: len(made) // 2], shuffled[len(made) // 2 :])}
    halves["unseen templates"] = made[made.template == 0], made[made.template == 1]
    classifiers = {
        name: make_pipeline(TfidfVectorizer(), LogisticRegression()).fit(a.text, a.kind) for name, (a, _) in halves.items()
    }
    return {name: float(classifiers[name].score(test.text, test.kind)) for name, (_, test) in halves.items()}


def tag_terms(texts: Sequence[str], terms: Sequence[str]) -> "pd.DataFrame":
    """Words of the texts' sentences with BIO labels of the terms in them: columns sentence, word, label; longest term first."""
    import pandas as pd

    pattern = re.compile(r"\b(?:" + "|".join(map(re.escape, sorted(terms, key=len, reverse=True))) + r")\b", re.IGNORECASE)
    rows = []
    for number, sentence in enumerate(part for text in texts for part in re.split(r"(?<=[.!?]) ", text)):
        spans = [match.span() for match in pattern.finditer(sentence)]
        for word in re.finditer(r"\w+|[^\w\s]", sentence):
            span = next((s for s in spans if s[0] <= word.start() < s[1]), None)
            label = "O" if span is None else "B" if span[0] == word.start() else "I"
            rows.append((number, word.group().lower(), label))
    return pd.DataFrame(rows, columns=["sentence", "word", "label"])


def score_tags(words: "pd.DataFrame", tagged: Sequence[str], length: int) -> dict[str, float]:
    """Three scores of BIO tags against `words.label`: of tokens with each sentence padded to `length`, of tokens, of entities.

    The last is the strict micro F1: an entity counts when all of its words, and no other, are tagged (CoNLL). Padding is
    counted as tagged rightly; a sentence longer than `length` has none.
    """
    right = int((words.label == tagged).sum())
    padding = int((length - words.groupby("sentence").size()).clip(lower=0).sum())
    spans = []
    for labels in (words.label, tagged):
        entity = words.assign(label=labels, row=range(len(words)))
        entity["begun"] = (entity.label == "B").cumsum()
        inside = entity[entity.label != "O"].groupby(["sentence", "begun"]).row
        spans.append(set(zip(inside.min(), inside.max(), inside.size(), strict=True)))
    found = 2 * len(spans[0] & spans[1]) / max(1, len(spans[0]) + len(spans[1]))
    return {
        "tokens and padding": (right + padding) / (len(words) + padding),
        "tokens": right / len(words),
        "whole entities": found,
    }
