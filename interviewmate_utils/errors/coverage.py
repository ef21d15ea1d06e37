"""Which of a question's key points an answer states, and which it contradicts: signals of each pair of both."""

from collections.abc import Sequence
from functools import cache
from itertools import pairwise
from typing import TYPE_CHECKING

from .form import sentences
from .signals import Item, Texts, content_words, numbers, read

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd


@cache
def _stem(word: str) -> str:
    from nltk.stem import PorterStemmer

    return PorterStemmer().stem(word)


def _stems(text: str) -> set[str]:
    return set(map(_stem, content_words(text)))


def _spoken(lines: Sequence[str]) -> list[set[str]]:
    """Stems of each of `Texts.spans`."""
    one = [_stems(line) for line in lines]
    return [*one, *(first | second for first, second in pairwise(one))]


def pair_signals(items: Sequence[Item], texts: Texts) -> "pd.DataFrame":
    """One row per item and key point (index: item, point): likeness in meaning and in words of the point to what is said."""
    import numpy as np
    import pandas as pd

    rows, index = [], []
    for i, item in enumerate(items):
        lines, parts = read(item), sentences(item.reference) or [item.reference]
        said = texts.spans(lines)
        points, asked = texts.vectors(item.key_points), texts.vectors([item.question])[0]
        known, origins = texts.spans(parts), _spoken(parts)
        stems, spoken = _spoken(lines), numbers(item.answer)
        everything = set().union(*stems)
        for p, point in enumerate(item.key_points):
            likeness, source = said @ points[p], (known @ points[p]).argmax()  # where the reference says it
            wanted, told, origin = _stems(point), numbers(point), origins[source]
            others = np.delete(points, p, 0) @ said.T if len(points) > 1 else np.zeros((1, len(said)))
            index.append((i, p))
            rows.append(
                {
                    "best": likeness.max(),
                    "mean": likeness.mean(),
                    "source": (said @ known[source]).max(),
                    "source_words": len(origin & everything) / max(1, len(origin)),
                    "asked": float(points[p] @ asked),
                    "beyond_asked": likeness.max() - float(points[p] @ asked),
                    "words_best": max(len(wanted & one) for one in stems) / max(1, len(wanted)),
                    "words_any": len(wanted & everything) / max(1, len(wanted)),
                    "numbers": len(told & spoken) / len(told) if told else 0.5,
                    "other_points": others.max(),
                    "length": np.log1p(len(item.answer.split())),
                }
            )
    return pd.DataFrame(rows, index=pd.MultiIndex.from_tuples(index, names=["item", "point"]))


def pairs(labels: Sequence[Sequence[int]], items: Sequence[Item]) -> "np.ndarray":
    """Per item and key point, whether the point is among the item's `labels`, in the order of `pair_signals`."""
    import numpy as np

    return np.array([p in told for item, told in zip(items, labels, strict=True) for p in range(len(item.key_points))])
