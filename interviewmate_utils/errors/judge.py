"""Finds errors in answers and rates answers, with signals that need no model larger than the sentence encoder.

Fitted on the development half of the judged answers; what it is worth stands in `07_analyse_errors`, on the other half.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Self

from . import CATEGORIES
from .coverage import pair_signals, pairs
from .signals import Item, Texts, features

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd

RATINGS = ("accuracy", "relevance", "completeness", "tone")  # 1 to 5 each
FOLDS = 10
ACCUSED = 0.10  # of the good answers in the development half, found guilty of anything, when cross-validated


class Judge:
    """See the module. `texts` keeps the embeddings, so that an answer is embedded once for all that is asked of it."""

    def __init__(self, texts: Texts, terms: Sequence[str], questions: Sequence[str], seed: int = 0) -> None:
        self.texts, self.terms, self.questions, self.seed = texts, terms, questions, seed

    def _forest(self, kind: str):
        from sklearn.ensemble import ExtraTreesClassifier, ExtraTreesRegressor

        options = {"n_estimators": 600, "min_samples_leaf": 2, "max_features": 0.3, "random_state": self.seed, "n_jobs": 1}
        return ExtraTreesRegressor(**options) if kind == "rating" else ExtraTreesClassifier(class_weight="balanced", **options)

    def _signals(self, items: Sequence[Item], covered: "np.ndarray", index: "pd.MultiIndex") -> "pd.DataFrame":
        import pandas as pd

        by_item = pd.Series(covered, index=index).groupby("item")
        table = features(items, self.texts, self.terms, self.questions)
        return table.assign(covered=by_item.mean(), covered_least=by_item.min(), covered_most=by_item.max())

    def fit(self, judged: "pd.DataFrame") -> Self:
        """Fit to judged answers (rows of `read_judged`); thresholds come from cross-validation by question."""
        import pandas as pd
        from sklearn.linear_model import LogisticRegression
        from sklearn.model_selection import GroupKFold, cross_val_predict
        from sklearn.pipeline import make_pipeline
        from sklearn.preprocessing import StandardScaler

        items = items_of(judged)
        groups, folds = judged.question_id.to_numpy(), GroupKFold(FOLDS)
        told = pair_signals(items, self.texts)
        states = pairs([*judged.covered], items)
        by_pair = groups[told.index.get_level_values("item")]
        self.coverage = make_pipeline(StandardScaler(), LogisticRegression())
        # as it will be of new answers: by a model that has not seen the question
        unseen = cross_val_predict(self.coverage, told, states, groups=by_pair, cv=folds, method="predict_proba")[:, 1]
        self.coverage.fit(told, states)
        signals = self._signals(items, unseen, told.index)
        guilty = labels_of(judged)
        chances, self.forests = {}, {}
        for category in CATEGORIES:
            forest = self._forest("category")
            chances[category] = cross_val_predict(
                forest, signals, guilty[category], groups=groups, cv=folds, method="predict_proba"
            )[:, 1]
            self.forests[category] = forest.fit(signals, guilty[category])
        self.thresholds = thresholds(pd.DataFrame(chances), guilty)
        ratings = pd.DataFrame([*judged.ratings])
        self.raters = {name: self._forest("rating").fit(signals, ratings[name]) for name in RATINGS}
        return self

    def examine(self, items: Sequence[Item]) -> "pd.DataFrame":
        """Signals of each item, one row each: what `chances` and `ratings` are made from."""
        told = pair_signals(items, self.texts)
        return self._signals(items, self.coverage.predict_proba(told)[:, 1], told.index)

    def chances(self, signals: "pd.DataFrame") -> "pd.DataFrame":
        """Score of each category, 0 to 1, one row per item of `examine`; no probability, since forests are not calibrated."""
        import pandas as pd

        return pd.DataFrame({c: forest.predict_proba(signals)[:, 1] for c, forest in self.forests.items()}, index=signals.index)

    def found(self, signals: "pd.DataFrame") -> "pd.DataFrame":
        """Whether each category (columns) is found in each item (rows)."""
        return self.chances(signals) >= self.thresholds

    def ratings(self, signals: "pd.DataFrame") -> "pd.DataFrame":
        """The four ratings, 1 to 5, of each item."""
        import pandas as pd

        return pd.DataFrame({name: rater.predict(signals) for name, rater in self.raters.items()}, index=signals.index)


def items_of(table: "pd.DataFrame") -> list[Item]:
    """Items of a table with the columns answer, question, reference and key_points."""
    return [Item(*row) for row in table[["answer", "question", "reference", "key_points"]].itertuples(index=False)]


def labels_of(judged: "pd.DataFrame") -> "pd.DataFrame":
    """Whether each category (columns) was marked in each judged answer (rows)."""
    import pandas as pd

    return pd.DataFrame({c: [any(label["category"] == c for label in one) for one in judged.labels] for c in CATEGORIES})


def thresholds(chances: "pd.DataFrame", guilty: "pd.DataFrame", accused: float = ACCUSED) -> "pd.Series":
    """Per category, the score from which on it is found: as often as it was marked, or less often, to spare good answers.

    Taking the threshold of the highest F1 instead would fit it to the ten or twenty answers that have the category.
    """
    import numpy as np
    import pandas as pd

    good, strictness = ~guilty.any(axis=1).to_numpy(), 1.0
    while True:
        found = {c: np.quantile(chances[c], 1 - strictness * guilty[c].mean()) for c in chances}
        if (chances[good] >= pd.Series(found)).any(axis=1).mean() <= accused or strictness < 0.1:
            return pd.Series(found)
        strictness -= 0.02
