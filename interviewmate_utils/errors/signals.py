"""Signals of what an answer says: its terms and numbers, and how near its sentences come to question and reference."""

import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

from .form import insistent_word, is_stop_word, sentences, words

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd

MOST_WORDS = 1000  # of an answer that are read for their meaning; the rest of a longer one only counts as length
AGAIN, NEARLY = 0.7, 0.65  # cosines of MiniLM from which on two sentences say the same
_NUMBER = re.compile(r"(?<![A-Za-z])\d[\d,]*(?:\.\d+)?(?:e-?\d+)?")
_NAME = re.compile(r"(?<=[a-z,;:] )[A-Z][A-Za-z-]{2,}")  # a capital within a sentence
_SOURCE = re.compile(
    r"\b(?:19|20)\d\d\b|\b(?:papers?|study|studies|studied|researchers|published|according to|introduced by|benchmark|"
    r"framework|version|standard|developed|proved|theorem|law)\b",
    re.IGNORECASE,
)
_HEDGE = re.compile(
    r"\b(?:may|might|can be|could|often|usually|tends? to|some|various|several|many|certain|appropriate|suitable|relevant)\b"
)
_ABSOLUTE = re.compile(
    r"\b(?:always|never|every|all|only|no|none|must|exactly|guarantee[sd]?|impossible|entirely|completely)\b"
)
_STOCK = re.compile(  # phrases that say nothing about a subject
    r"best practices?|it depends|trade-off|(?:it is )?important to|crucial|key role|stakeholders?|success criteria|"
    r"business (?:objective|value|goal)s?|structured|careful(?:ly)?|in practice|in general|as so often|robust|scalable|"
    r"state[- ]of[- ]the[- ]art|leverage|"
    r"ensur(?:e|ing)|(?:several|many|different|various) (?:aspects|factors|approaches|ways)|a number of|requirements|"
    r"the (?:first|second|third|next|last) step|finally, i would|in (?:conclusion|summary)|overall|proactive|right tool|"
    r"silver bullet|case by case|mindset|fundamental|holistic|comprehensive|"
    r"lessons learned|continuous(?:ly)? (?:improv|monitor|learn)\w+|"
    r"high[- ]quality|strengths and weaknesses|use case|at the end of the day|team player|best of both worlds",
    re.IGNORECASE,
)
_POLARITY = {
    "not": r"\b(?:not|no|never|without|cannot|nothing|none|neither|nor)\b|n't\b",
    "more": r"\b(?:more|higher|larger|greater|increas\w+|rises?|grows?)\b",
    "less": r"\b(?:less|lower|smaller|fewer|decreas\w+|falls?|shrinks?|reduc\w+)\b",
    "before": r"\bbefore\b",
    "after": r"\bafter\b",
}


class Item(NamedTuple):
    """An answer, with what is known of its question."""

    answer: str
    question: str
    reference: str
    key_points: Sequence[str]

    @property
    def given(self) -> str:
        """All that is known of the question, in one text."""
        return " ".join((self.question, self.reference, *self.key_points))


class Texts:
    """Embeddings of texts by `encoder` (see `similarity.load_encoder`), each made once."""

    def __init__(self, encoder) -> None:
        self.encoder, self.known = encoder, {}

    def add(self, texts: Iterable[str]) -> None:
        """Embed those not yet known, all at once."""
        from ..similarity import embed

        if new := [text for text in dict.fromkeys(texts) if text not in self.known]:
            self.known |= dict(zip(new, embed(self.encoder, new), strict=True))

    def vectors(self, texts: Sequence[str]) -> "np.ndarray":
        """Unit vectors, (texts, dimensions)."""
        import numpy as np

        self.add(texts)
        return np.stack([self.known[text] for text in texts])

    def spans(self, lines: Sequence[str]) -> "np.ndarray":
        """Unit vectors of sentences, and of each two neighbours (the mean of theirs), since a point may need both."""
        import numpy as np

        one = self.vectors(lines)
        two = one[:-1] + one[1:]
        return np.vstack([one, two / np.linalg.norm(two, axis=1, keepdims=True)])


class Corpus:
    """What the project's own questions and answers say about the field: which words are usual, which question lies near.

    `rows` are a corpus's rows (question, answer, key_points), `terms` technical terms.
    """

    def __init__(self, rows: Sequence[Mapping], terms: Sequence[str], texts: Texts) -> None:
        self.vocabulary = Counter(word for row in rows for word in words(f"{row['question']} {row['answer']}"))
        self._documents = Counter(word for row in rows for word in {*content_words(row["answer"])})
        self._size = len(rows)
        longest_first = sorted(map(re.escape, terms), key=len, reverse=True)
        self.terms = re.compile(rf"(?<![\w-])(?:{'|'.join(longest_first)})(?![\w-])", re.IGNORECASE)
        questions, references = [row["question"] for row in rows], [row["answer"] for row in rows]
        points = [point for row in rows for point in row["key_points"]]
        texts.add([*questions, *references, *points])  # at once, then as matrices, (texts, dimensions)
        self.questions, self.references, self.points = map(texts.vectors, (questions, references, points))
        self.point_of = [i for i, row in enumerate(rows) for _ in row["key_points"]]

    def rarity(self, word: str) -> float:
        """Inverse document frequency of a word among the corpus's answers, in nats."""
        return math.log((self._size + 1) / (self._documents[word] + 1))


def read(item: Item) -> list[str]:
    """Sentences of an answer that are read for their meaning; '-' for an empty one."""
    start = re.match(rf"\s*(?:\S+\s*){{0,{MOST_WORDS}}}", item.answer).group()
    return sentences(start) or [start.strip()[:2000] or "-"]


def sizes(lines: Sequence[str]) -> "np.ndarray":
    """Words of each sentence."""
    import numpy as np

    return np.array([len(line.split()) for line in lines], float)


def repetition(vectors: "np.ndarray") -> "tuple[np.ndarray, float]":
    """Of each sentence the greatest cosine to one before it; the mean cosine of all pairs."""
    import numpy as np

    likeness = vectors @ vectors.T
    pairs = likeness[np.triu_indices(len(vectors), 1)]
    return np.tril(likeness, -1).max(1), float(pairs.mean()) if len(pairs) else 0.0


def content_words(text: str) -> list[str]:
    """Words that carry a subject: no stop words."""
    return [word for word in words(text) if not is_stop_word(word) and len(word) > 1]


def numbers(text: str) -> set[float]:
    """Values of the numbers in a text; '12 %' and '12' alike."""
    found = (match.replace(",", "").rstrip(".") for match in _NUMBER.findall(text))
    return {float(value[:300]) for value in found if value}


def polarity(text: str) -> set[str]:
    """Which directions a sentence speaks of: not, more, less, before, after."""
    return {name for name, pattern in _POLARITY.items() if re.search(pattern, text, re.IGNORECASE)}


def features(items: Sequence[Item], texts: Texts, corpus: Corpus) -> "pd.DataFrame":
    """Signals of each item, one row each."""
    import pandas as pd

    return pd.DataFrame([_wording(item, corpus) | _meaning(item, texts, corpus) for item in items])


def _wording(item: Item, corpus: Corpus) -> dict[str, float]:
    said, text, lines = words(item.answer), item.answer.lower(), sentences(item.answer)
    count, told = max(1, len(said)), content_words(item.answer)
    given, strange = item.given.lower(), numbers(item.answer) - numbers(item.given)
    here, there, asked = set(told), set(content_words(item.reference)), set(content_words(item.question))
    found, meant = ({term.lower() for term in corpus.terms.findall(part)} for part in (item.answer, item.reference))
    capitals = _NAME.findall(item.answer)
    names = {name for name in capitals if name.lower() not in given and not corpus.terms.fullmatch(name)}
    rarity = sorted((corpus.rarity(word) for word in told), reverse=True)
    return {
        "length_ratio": math.log((len(said) + 1) / (len(words(item.reference)) + 1)),
        "sentence_words": count / max(1, len(lines)),
        "first_person": sum(word in ("i", "i'd", "i'm", "i've", "i'll", "my", "we", "we'd", "our") for word in said) / count,
        "stop_words": sum(map(is_stop_word, said)) / count,
        "rarity": sum(rarity) / max(1, len(rarity)),
        "rarity_top": sum(rarity[:15]) / max(1, len(rarity[:15])),
        "rare_words": sum(value > 4 for value in rarity) / count,
        "unusual_words": sum(word.isalpha() and corpus.vocabulary[word] < 3 for word in said) / count,
        "stock": len(_STOCK.findall(text)) / count * 100,
        "hedges": len(_HEDGE.findall(text)) / count * 100,
        "absolute": len(_ABSOLUTE.findall(text)) / count * 100,
        "sources": float(len(_SOURCE.findall(item.answer))),
        "capitals": len(capitals) / count,
        "strange_names": float(len(names)),
        "numbers": len(_NUMBER.findall(item.answer)) / count * 100,
        "strange_numbers": float(len(strange)),
        "strange_numbers_share": len(strange) / count,
        "terms": len(corpus.terms.findall(item.answer)) / count * 100,
        "terms_of_reference": len(found & meant) / max(1, len(meant)),
        "strange_terms": len(found - meant) / max(1, len(found)),
        "words_of_reference": len(here & there) / max(1, len(there)),
        "words_of_question": len(here & asked) / max(1, len(asked)),
        "only_question": len(here & asked) / max(1, len(here)),
        "insistent": insistent_word(item.answer, item.question)[0],
    }


def _meaning(item: Item, texts: Texts, corpus: Corpus) -> dict[str, float]:
    import numpy as np

    lines, sources = read(item), sentences(item.reference) or [item.reference]
    parts, source, points = texts.vectors(lines), texts.vectors(sources), texts.vectors(item.key_points)
    whole, asked, known = texts.vectors([" ".join(lines), item.question, item.reference])
    (before, usual), size = repetition(parts), sizes(lines)
    share = size / size.sum()
    support, near_point, to_question = parts @ source.T, parts @ points.T, parts @ asked
    relevant = np.maximum(np.maximum(to_question, near_point.max(1)), support.max(1))
    best_point = near_point.max(0)
    clear = [(line, sources[row.argmax()]) for line, row in zip(lines, support, strict=True) if row.max() > 0.5]
    given = numbers(item.given)
    nearest = near_point.argmax(1)
    found = {
        "like_question": float(whole @ asked),
        "to_question": float(share @ to_question),
        "first_to_question": float(to_question[0]),
        "support": float(share @ support.max(1)),
        "support_most": float(support.max()),
        "unsupported": float(share[support.max(1) < 0.4].sum()),
        "reference_least": float(support.max(0).min()),
        "point_least": float(best_point.min()),
        "irrelevant": float(share[relevant < 0.45].sum()),
        "irrelevant_words": float(size[relevant < 0.4].sum()),
        "relevance_least": float(relevant.min()),
        "relevance_end": float(relevant[-3:].mean()),
        "dominant_point": max(share[nearest == p].sum() for p in range(len(points))),
        "opposed": float(sum(len(polarity(one) ^ polarity(other)) for one, other in clear)),
        "numbers_differ": float(sum(bool(numbers(one) - given) for one, _ in clear)),
        "said_before": float((before > AGAIN).sum()),
        "said_before_share": float(share[before > NEARLY].sum()),
        "said_before_most": float(np.sort(before)[-2:].mean()),
        "alike": usual,
    }
    return found | _place(item, texts, corpus, whole, parts, known)


def _place(item: Item, texts: Texts, corpus: Corpus, whole, parts, known) -> dict[str, float]:
    """How many questions of the corpus an answer fits better than its own, by four measures (as log(1 + rank))."""
    import numpy as np

    said = texts.spans(read(item))
    to_points = (corpus.points @ said.T).max(1)
    by_question = np.bincount(corpus.point_of, to_points) / np.bincount(corpus.point_of)
    own = {
        "question": (corpus.questions @ whole, float(texts.vectors([item.question])[0] @ whole)),
        "reference": (corpus.references @ whole, float(known @ whole)),
        "points": (by_question, float((texts.vectors(item.key_points) @ said.T).max(1).mean())),
    }
    ranks = {f"rank_by_{name}": float(np.log1p((others > mine + 1e-6).sum())) for name, (others, mine) in own.items()}
    margins = {f"margin_by_{name}": mine - float(others.max()) for name, (others, mine) in own.items()}
    nearer = (corpus.references @ parts.T > known @ parts.T + 1e-6).sum(0)
    return ranks | margins | {"rank_by_sentence": float(np.log1p(nearer).mean())}
