"""How well errors are found: F1 with intervals, good answers accused, and what a zero-effort rule and an encoder give."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from . import OF_FORM
from .form import sentences
from .judge import GOOD, RATINGS, categories_of
from .signals import Item, Texts

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd


def _redrawn(groups: Sequence, resamples: int, seed: int):
    """Weights of the rows in each bootstrap sample of the groups, whose rows are drawn together."""
    import numpy as np
    import pandas as pd

    number, names = pd.factorize(pd.Series([*groups]))
    rng = np.random.default_rng(seed)
    for _ in range(resamples):
        yield np.bincount(rng.integers(len(names), size=len(names)), minlength=len(names))[number].astype(float)


def detection(
    marked: "pd.DataFrame", found: "pd.DataFrame", questions: Sequence[str], resamples: int = 999, seed: int = 0
) -> "pd.DataFrame":
    """F1, precision and recall of each category (columns of both tables; rows are answers), with 95 % intervals of F1.

    Rows `macro` and `macro of form` are means over the categories and over those of form; `good, accused` is the share of the
    answers without a mark in which something is found. Percentile bootstrap over questions. A category that no answer has gets
    NaN, and is left out of the means.

    Raises:
        ValueError: the tables differ in length or columns, or there is no answer.
    """
    import numpy as np
    import pandas as pd

    if len(marked) != len(found) or len(marked) != len(questions) or not len(marked) or {*marked} != {*found}:
        raise ValueError(
            f"detection: {len(marked)} marked answers in {len({*marked})} categories, {len(found)} found in {len({*found})}, "
            f"and {len(questions)} questions; give the same answers and categories to each, and at least one answer"
        )
    y, z = marked.to_numpy(bool), found[marked.columns].to_numpy(bool)
    form, good = np.isin(marked.columns, OF_FORM), ~y.any(1)

    def mean(values: "np.ndarray") -> float:
        return float(values[~np.isnan(values)].mean()) if (~np.isnan(values)).any() else float("nan")

    def measure(weight: "np.ndarray") -> "np.ndarray":
        hits, marks, finds = ((weight[:, None] * part).sum(0) for part in (y & z, y, z))
        with np.errstate(invalid="ignore", divide="ignore"):
            f1 = np.where(marks > 0, 2 * hits / (marks + finds), np.nan)
            accused = (weight * (good & z.any(1))).sum() / (weight * good).sum()
        return np.array([*f1, mean(f1), mean(f1[form]), accused])

    drawn = pd.DataFrame([measure(weight) for weight in _redrawn(questions, resamples, seed)])
    table = pd.DataFrame(
        {"value": measure(np.ones(len(y)))}, index=[*marked.columns, "macro", "macro of form", "good, accused"]
    )
    table["low"], table["high"] = drawn.quantile(0.025).to_numpy(), drawn.quantile(0.975).to_numpy()
    table.loc[table.value.isna(), ["low", "high"]] = np.nan
    with np.errstate(invalid="ignore"):
        table["precision"] = pd.Series((y & z).sum(0) / z.sum(0), marked.columns)
        table["recall"] = pd.Series((y & z).sum(0) / y.sum(0), marked.columns)
    return table.assign(marked=pd.Series(y.sum(0), marked.columns), found=pd.Series(z.sum(0), marked.columns))


def validity(judged: "pd.DataFrame", rated: "pd.DataFrame", resamples: int = 999, seed: int = 0) -> "pd.DataFrame":
    """Spearman's rank correlation of each rating with the authors', with 95 % intervals (percentile bootstrap over questions).

    NaN where all ratings of one side are equal: nothing can be said then.
    """
    import numpy as np
    import pandas as pd
    from scipy.stats import rankdata

    rows = {}
    for name in RATINGS:
        theirs, ours = np.array([one[name] for one in judged.ratings], float), rated[name].to_numpy(float)

        def correlation(weight: "np.ndarray", theirs=theirs, ours=ours) -> float:
            drawn = np.repeat(np.arange(len(theirs)), weight.astype(int))
            if len({*theirs[drawn]}) < 2 or len({*ours[drawn]}) < 2:
                return float("nan")
            return float(np.corrcoef(rankdata(theirs[drawn]), rankdata(ours[drawn]))[0, 1])

        drawn = [correlation(weight) for weight in _redrawn(judged.question_id, resamples, seed)]
        value = correlation(np.ones(len(theirs)))
        low, high = (np.nan, np.nan) if np.isnan(value) else np.nanquantile(drawn, [0.025, 0.975])
        rows[name] = {"correlation": value, "low": low, "high": high, "answers": len(theirs)}
    return pd.DataFrame(rows).T


def zero_effort(items: Sequence[Item], categories: Sequence[str]) -> "pd.DataFrame":
    """What a minute's work finds: too short or too long, no full stop at the end, a sentence said twice, a list."""
    import pandas as pd

    rows = []
    for item in items:
        count, lines = len(item.answer.split()), sentences(item.answer)
        rule = {"length mismatch": not 25 <= count <= 260, "incomplete": not item.answer.rstrip().endswith((".", "!", "?"))}
        rule |= {"repetitive": len({*lines}) < len(lines), "format": "\n- " in item.answer or "**" in item.answer}
        rows.append({category: rule.get(category, False) for category in categories})
    return pd.DataFrame(rows, columns=[*categories])


def encoder_found(texts: Texts, train: "pd.DataFrame", judged: "pd.DataFrame") -> "pd.DataFrame":
    """What an encoder classifier finds: logistic regression on embeddings of the answer and its products with question and
    reference, fitted to the primary categories of `train`; the likeliest category of each answer in `judged`."""
    import numpy as np
    from sklearn.linear_model import LogisticRegression

    def rows(of: "pd.DataFrame") -> "np.ndarray":
        said, asked, known = (
            texts.vectors([text.strip()[:2000] or "-" for text in of[name]]) for name in ("answer", "question", "reference")
        )
        return np.hstack([said, said * asked * 10, said * known * 10])  # products are a tenth as large

    model = LogisticRegression(C=10.0, class_weight="balanced", max_iter=2000)
    chosen = model.fit(rows(train), train.primary.fillna(GOOD)).predict(rows(judged))
    return categories_of([[] if name == GOOD else [{"category": name}] for name in chosen])
