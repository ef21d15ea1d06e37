"""How well errors are found: F1 with intervals, good answers accused, and what a zero-effort rule and an encoder give."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from . import OF_FORM
from .signals import Item, Texts

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd


def detection(
    marked: "pd.DataFrame", found: "pd.DataFrame", questions: Sequence[str], resamples: int = 999, seed: int = 0
) -> "pd.DataFrame":
    """F1, precision and recall of each category (columns of both tables, rows are answers), with 95 % intervals of F1.

    Rows `all` and `form` are the macro means over all categories and over those of form; `good, accused` is the share of the
    answers without a mark that are found to have one. Percentile bootstrap over questions, whose answers are drawn together. A
    category that no answer has is left out of the means, and its F1 is NaN.
    """
    import numpy as np
    import pandas as pd

    y, z = marked.to_numpy(bool), found[marked.columns].to_numpy(bool)
    number = pd.factorize(pd.Series([*questions]))[0]
    form = np.isin(marked.columns, OF_FORM)

    def measure(weight: "np.ndarray") -> "np.ndarray":
        hits, marks, finds = ((weight[:, None] * part).sum(0) for part in (y & z, y, z))
        with np.errstate(invalid="ignore", divide="ignore"):
            f1 = np.where(marks > 0, 2 * hits / (marks + finds), np.nan)
            good = ~y.any(1)
            accused = (weight * (good & z.any(1))).sum() / (weight * good).sum()
        return np.array([*f1, np.nanmean(f1), np.nanmean(f1[form]), accused])

    rng, drawn = np.random.default_rng(seed), []
    for _ in range(resamples):
        times = np.bincount(rng.integers(number.max() + 1, size=number.max() + 1), minlength=number.max() + 1)
        drawn.append(measure(times[number].astype(float)))
    names = [*marked.columns, "all", "form", "good, accused"]
    table = pd.DataFrame({"value": measure(np.ones(len(y)))}, index=names)
    table["low"], table["high"] = np.nanquantile(drawn, 0.025, axis=0), np.nanquantile(drawn, 0.975, axis=0)
    with np.errstate(invalid="ignore"):
        table["precision"] = pd.Series((y & z).sum(0) / z.sum(0), marked.columns)
        table["recall"] = pd.Series((y & z).sum(0) / y.sum(0), marked.columns)
    table["marked"], table["found"] = pd.Series(y.sum(0), marked.columns), pd.Series(z.sum(0), marked.columns)
    return table


def zero_effort(items: Sequence[Item], categories: Sequence[str]) -> "pd.DataFrame":
    """What a minute's work finds: too short or too long, no full stop at the end, a sentence said twice, a list."""
    import pandas as pd

    from .signals import sentences

    rows = []
    for item in items:
        count, lines = len(item.answer.split()), sentences(item.answer)
        rule = {"length mismatch": not 25 <= count <= 260, "incomplete": not item.answer.rstrip().endswith((".", "!", "?"))}
        rule |= {"repetitive": len({*lines}) < len(lines), "format": "\n- " in item.answer or "**" in item.answer}
        rows.append({category: rule.get(category, False) for category in categories})
    return pd.DataFrame(rows, columns=[*categories])


def encoder_found(texts: Texts, train: "pd.DataFrame", judged: "pd.DataFrame") -> "pd.DataFrame":
    """What logistic regression on embeddings finds: of the answer, and of its products with question and reference.

    Fitted to the judged answers `train`; its thresholds are chosen as those of `Judge`, by cross-validation.
    """
    import numpy as np
    import pandas as pd
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import GroupKFold, cross_val_predict

    from .judge import FOLDS, labels_of, thresholds

    def rows(of: "pd.DataFrame") -> "np.ndarray":
        said, asked, known = (
            texts.vectors([t.strip() or "-" for t in of[name]]) for name in ("answer", "question", "reference")
        )
        return np.hstack([said, said * asked, said * known])

    x, marked, chances, unseen = rows(train), labels_of(train), {}, {}
    for category in marked:
        model, folds = LogisticRegression(C=10.0, class_weight="balanced", max_iter=2000), GroupKFold(FOLDS)
        unseen[category] = cross_val_predict(
            model, x, marked[category], groups=train.question_id, cv=folds, method="predict_proba"
        )[:, 1]
        chances[category] = model.fit(x, marked[category]).predict_proba(rows(judged))[:, 1]
    return pd.DataFrame(chances) >= thresholds(pd.DataFrame(unseen), marked)
