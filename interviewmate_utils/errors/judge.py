"""Finds errors in answers and rates answers, without a language model: rules for form, a small classifier for content.

Built on the development half of the judged answers; what it is worth on the other half stands in `07_analyse_errors`.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Self

from .. import data
from . import CATEGORIES, OF_FORM, read_judged, read_questions
from .coverage import pair_signals, pairs
from .form import breaches, sentences
from .signals import AGAIN, NEARLY, Corpus, Item, Texts, features, read, repetition, sizes

if TYPE_CHECKING:
    import pandas as pd

RATINGS = ("accuracy", "relevance", "completeness", "tone")  # 1 to 5 each
CONTENT = ("hallucination", "generic", "technical error", "incomplete", "off-topic")  # told apart by the classifier
GOOD, FOLDS = "good", 10


def _classifier(seed: int):
    """Mean of two logistic regressions, one of them on ranks, and a forest: with so few answers none is best for all."""
    from sklearn.ensemble import ExtraTreesClassifier, VotingClassifier
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import QuantileTransformer, StandardScaler

    linear = {"class_weight": "balanced", "max_iter": 3000}
    members = [
        ("linear", make_pipeline(StandardScaler(), LogisticRegression(C=0.03, **linear))),
        ("ranks", make_pipeline(QuantileTransformer(n_quantiles=60), LogisticRegression(C=0.2, **linear))),
        ("forest", ExtraTreesClassifier(300, min_samples_leaf=2, max_features=0.4, class_weight="balanced", random_state=seed)),
    ]
    return VotingClassifier(members, voting="soft")


def _rater(seed: int):
    from sklearn.ensemble import ExtraTreesRegressor

    return ExtraTreesRegressor(300, min_samples_leaf=2, max_features=0.3, random_state=seed)


class Judge:
    """Fitted to judged answers, labels and rates others. `texts` keeps embeddings, `corpus` says what is usual in the field."""

    def __init__(self, texts: Texts, corpus: Corpus, seed: int = 0) -> None:
        self.texts, self.corpus, self.seed = texts, corpus, seed

    def fit(self, judged: "pd.DataFrame") -> Self:
        """Fit to rows of `read_judged`."""
        import pandas as pd
        from sklearn.linear_model import LogisticRegression
        from sklearn.model_selection import GroupKFold, cross_val_predict
        from sklearn.pipeline import make_pipeline
        from sklearn.preprocessing import StandardScaler

        items, groups, folds = items_of(judged), judged.question_id.to_numpy(), GroupKFold(FOLDS)
        self._embed(items)
        told = pair_signals(items, self.texts)
        by_pair = groups[told.index.get_level_values("item")]
        self._points, unseen = {}, {}
        for name in ("covered", "contradicted"):
            model = make_pipeline(StandardScaler(), LogisticRegression(class_weight="balanced"))
            marked = pairs([*judged[name]], items)
            # as it will be of new answers: by a model that has not seen the question
            unseen[name] = cross_val_predict(model, told, marked, groups=by_pair, cv=folds, method="predict_proba")[:, 1]
            self._points[name] = model.fit(told, marked)
        form = [self._form(item) for item in items]
        signals = self._signals(items, form, pd.DataFrame(unseen, index=told.index))
        primary = judged.primary.fillna(GOOD).to_numpy()
        clear = [not marks and name in (GOOD, *CONTENT) for marks, name in zip(form, primary, strict=True)]
        self._content = _classifier(self.seed).fit(signals[clear], primary[clear])
        self._subtype = {}
        for category in CONTENT:  # but for what breaks off, which the rules see
            own = [
                next((x for x in one if x["category"] == category and x["subtype"] != "truncated"), None)
                for one in judged.labels
            ]
            model = make_pipeline(StandardScaler(), LogisticRegression(C=0.1, class_weight="balanced", max_iter=3000))
            kinds = [label["subtype"] for label in own if label]
            self._subtype[category] = model.fit(signals[[label is not None for label in own]], kinds)
        worst = [max((label["severity"] for label in one), default=0) for one in judged.labels]
        self._severity = _rater(self.seed).fit(signals, worst)
        self._raters = {name: _rater(self.seed).fit(signals, [one[name] for one in judged.ratings]) for name in RATINGS}
        return self

    def judge(self, items: Sequence[Item]) -> "pd.DataFrame":
        """One row per item: `labels` as in the judged answers (category, subtype, severity, evidence), the four ratings,
        1 to 5, and `points`, a score from 0 to 1 for each key point to be stated.

        Of the categories of `CONTENT` an answer gets the likeliest alone. The severity, 1 to 3, is that of its worst error and
        the same in all its labels.

        An answer of more than `signals.MOST_WORDS` words is read for its meaning up to there.

        Raises:
            ValueError: there is no item, an answer is not text, or a question has no key points.
        """
        import numpy as np
        import pandas as pd

        if not items:
            raise ValueError("judge: there is no answer to judge; give at least one")
        for number, item in enumerate(items):
            if not isinstance(item.answer, str):
                raise ValueError(f"judge: answer {number} is {item.answer!r}; give text, '' for an answer that is empty")
            if not len(item.key_points):
                raise ValueError(
                    f"judge: answer {number}: '{item.question[:60]}' has no key points; coverage cannot be judged without "
                    "them, add `key_points` to the question or leave its answers out"
                )
        self._embed(items)
        told = pair_signals(items, self.texts)
        points = pd.DataFrame({n: model.predict_proba(told)[:, 1] for n, model in self._points.items()}, index=told.index)
        form = [self._form(item) for item in items]
        signals = self._signals(items, form, points)
        chances = pd.DataFrame(self._content.predict_proba(signals), columns=self._content.classes_)
        chosen, sure = chances.idxmax(axis=1), chances.max(axis=1) > 0.5  # likelier than all else together
        severity = np.clip(np.round(self._severity.predict(signals)), 1, 3).astype(int)
        kinds = {category: model.predict(signals) for category, model in self._subtype.items()}
        labels = []
        for i, (item, marks) in enumerate(zip(items, form, strict=True)):
            found = dict(marks)
            # where the form is broken, what an answer says is harder to tell
            if chosen[i] != GOOD and (sure[i] or not marks) and chosen[i] not in {category for category, _ in marks}:
                found[chosen[i], str(kinds[chosen[i]][i])] = self._evidence(chosen[i], item)
            labels.append(
                [
                    {"category": category, "subtype": kind, "severity": int(severity[i]), "evidence": shown[:3]}
                    for (category, kind), shown in found.items()
                ]
            )
        rated = {name: rater.predict(signals) for name, rater in self._raters.items()}
        by_item = points.covered.groupby("item").agg(list)
        return pd.DataFrame({"labels": labels, "points": by_item.to_numpy()} | rated)

    def _embed(self, items: Sequence[Item]) -> None:
        """All that will be asked for, in large batches."""
        given = [(*sentences(item.reference), item.reference, item.question, *item.key_points) for item in items]
        said = [(*read(item), " ".join(read(item))) for item in items]
        self.texts.add(text for part in (*given, *said) for text in part)

    def _form(self, item: Item) -> dict[tuple[str, str], list[str]]:
        """Breaches of form, and the same statement made again in other words, which takes the encoder to see."""
        import numpy as np

        found = breaches(item.answer, item.question, self.corpus.vocabulary)
        lines = read(item)
        if len(lines) > 3 and not any(category == "repetitive" for category, _ in found):
            (before, usual), size = repetition(self.texts.vectors(lines)), sizes(lines)
            often = (before > AGAIN).sum() > 2 or (size / size.sum())[before > NEARLY].sum() > 0.3
            if often or (usual > 0.37 and np.sort(before)[-3:].mean() > 0.595):
                found["repetitive", "content"] = [lines[i] for i in np.argsort(-before)[:3]]
        return found

    def _signals(self, items, form, points: "pd.DataFrame") -> "pd.DataFrame":
        by_item = points.groupby("item")
        table = features(items, self.texts, self.corpus).assign(
            covered=by_item.covered.mean(),
            covered_least=by_item.covered.min(),
            covered_most=by_item.covered.max(),
            half_covered=-(by_item.covered.mean() - 0.45).abs(),
            contradicted=by_item.contradicted.mean(),
            contradicted_most=by_item.contradicted.max(),
        )
        for category in OF_FORM:
            table[f"form: {category}"] = [float(any(name == category for name, _ in marks)) for marks in form]
        return table

    def _evidence(self, category: str, item: Item) -> list[str]:
        """Passages that a reader should look at first: what a category is about, not a proof of it."""
        import numpy as np

        lines = read(item)
        if category == "incomplete":  # its place is where something should have come: the end
            return lines[-1:]
        said, source = self.texts.vectors(lines), self.texts.vectors([item.question, item.reference, *item.key_points])
        relevance = said @ source.T
        worth = relevance.max(1) if category == "off-topic" else relevance[:, 1:].max(1)
        return [lines[i] for i in np.sort(np.argsort(worth)[: min(2, len(lines))])]


def fitted(encoder, seed: int = 0) -> Judge:
    """A judge with the project's questions and terms, fitted to the development half of the judged answers."""
    texts, judged = Texts(encoder), read_judged()
    corpus = Corpus(read_questions(), data.read_terms(), texts)
    return Judge(texts, corpus, seed).fit(judged[judged.part == "development"].reset_index(drop=True))


def items_of(table: "pd.DataFrame") -> list[Item]:
    """Items of a table with answer, question and reference; the reference's sentences stand for key points not listed."""
    listed = table["key_points"] if "key_points" in table else [None] * len(table)
    points = [
        sentences(text) or [text] if own is None or isinstance(own, str | float) or not len(own) else [*own]
        for own, text in zip(listed, table.reference, strict=True)
    ]
    rows = table[["answer", "question", "reference"]].itertuples(index=False)
    return [Item(*row, own) for row, own in zip(rows, points, strict=True)]


def categories_of(labels: Sequence[Sequence[dict]]) -> "pd.DataFrame":
    """Whether each category (columns) is among the labels of each answer (rows)."""
    import pandas as pd

    return pd.DataFrame({c: [any(label["category"] == c for label in one) for one in labels] for c in CATEGORIES})
