"""What can be measured in an answer without understanding it: length, repetition, likeness to what was asked, form.

Each signal is a number per answer; several also name the passages that show it, which a reader then sees highlighted.
"""

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd

_WORD = re.compile(r"[A-Za-z]+(?:'[a-z]+)?|\d[\d.,]*")
_NUMBER = re.compile(r"(?<![A-Za-z])\d[\d,]*(?:\.\d+)?(?:e-?\d+)?")
_SENTENCE = re.compile(r"[^.!?\n]+(?:[.!?]+(?=\s|$)|\n|$)|[^.!?\n]*[.!?](?=\S)[^.!?\n]*")
# phrases that say nothing about a subject; written for this purpose from the development half and from common speech
STOCK = (
    "best practice", "it depends", "trade-off", "important to", "it is important", "plays a crucial role", "a crucial",
    "key role", "stakeholder", "business objective", "success criteria", "communication", "structured", "careful",
    "in practice", "in general", "as so often", "state-of-the-art", "state of the art", "robust", "scalable", "leverage",
    "ensure", "several aspects", "various", "different approaches", "many factors", "a number of", "requirements",
    "the first step", "the second step", "finally, i would", "in conclusion", "in summary", "overall", "proactive",
    "right tool", "no silver bullet", "case by case", "mindset", "deliver value", "fundamental", "holistic",
    "comprehensive", "continuous improvement", "lessons learned", "high quality", "data quality is",
)  # fmt: skip
_ECHO = re.compile(r"^\s*(Question|Answer|Q|A|User|Assistant|System|Interviewer|Candidate)\s*:", re.MULTILINE)
_MARKUP = re.compile(
    r"^\s*(?:#{1,6}\s|[-*•]\s+\S|\d+(?:\.\d+)*[.)]?\s+[A-Z]|\|.*\|)|```|\*\*[^*]+\*\*|</?[a-z]+[^>]*>|&[a-z]+;|\\[a-zA-Z]+\{|\$[^$\n]+\$",
    re.MULTILINE,
)
_BROKEN = re.compile(
    r"[\ufffd\u4e00-\u9fff\u3040-\u30ff\u0400-\u04ff]|Ã.|â€.?|\\u[0-9a-f]{4}|[a-z]{3,}[.,;:][A-Za-z]{3,}|\w{28,}"
)
_EMOJI = re.compile(r"[\U0001F300-\U0001FAFF\u2600-\u27BF]")


class Item(NamedTuple):
    """An answer, with what is known of its question."""

    answer: str
    question: str
    reference: str
    key_points: Sequence[str]


class Texts:
    """Embeddings of texts, each made once by `encoder`."""

    def __init__(self, encoder) -> None:
        self.encoder, self.known = encoder, {}

    def add(self, texts: "Iterable[str]") -> None:
        """Embed those not yet known, all at once."""
        from ..similarity import embed

        if new := [text for text in dict.fromkeys(texts) if text not in self.known]:
            self.known |= dict(zip(new, embed(self.encoder, new), strict=True))

    def vectors(self, texts: Sequence[str]) -> "np.ndarray":
        """Unit vectors, (texts, dimensions)."""
        import numpy as np

        self.add(texts)
        return np.stack([self.known[text] for text in texts])

    @staticmethod
    def windows(text: str) -> list[str]:
        """Sentences, and each two that follow each other; the text itself where it has no sentence, '-' for an empty one."""
        parts = sentences(text) or [text.strip() or "-"]
        return parts + [f"{one} {two}" for one, two in zip(parts, parts[1:], strict=False)]


def words(text: str) -> list[str]:
    """Lower-case words and numbers."""
    return _WORD.findall(text.lower())


def sentences(text: str) -> list[str]:
    """Sentences and lines of at least three words."""
    parts = re.split(r"(?<=[.!?])[\s]+|\n+", text)
    return [part.strip() for part in parts if len(part.split()) >= 3]


def content_words(text: str) -> list[str]:
    """Words that carry a subject: no stop words."""
    from sklearn.feature_extraction.text import ENGLISH_STOP_WORDS

    return [word for word in words(text) if word not in ENGLISH_STOP_WORDS and len(word) > 1]


def numbers(text: str) -> set[float]:
    """Values of the numbers in a text; '12 %' and '12' alike."""
    return {float(found.replace(",", "").rstrip(".")) for found in _NUMBER.findall(text) if found.replace(",", "").rstrip(".")}


def repeated_ngrams(text: str, size: int) -> tuple[float, list[str]]:
    """Share of the n-grams of `size` words that have come before, and those that recur most."""
    said = words(text)
    grams = Counter(tuple(said[i : i + size]) for i in range(len(said) - size + 1))
    total = sum(grams.values())
    again = [(gram, count) for gram, count in grams.most_common(3) if count > 1]
    return (total - len(grams)) / total if total else 0.0, [" ".join(gram) for gram, _ in again]


def doubled_words(text: str) -> list[str]:
    """Words that are said twice in a row ('the the')."""
    return [match.group() for match in re.finditer(r"\b([A-Za-z]+)(?:\s+\1\b)+", text)]


def insistent_word(text: str, question: str) -> tuple[float, str]:
    """Highest share that a word outside the question takes of all words, and the word."""
    asked, said = set(words(question)), words(text)
    counts = Counter(word for word in content_words(text) if word not in asked)
    word, count = counts.most_common(1)[0] if counts else ("", 0)
    return (count / len(said) if said and count > 2 else 0.0), word


def longest_repeat(text: str) -> tuple[int, str]:
    """Length in words, and text, of the longest passage that occurs twice."""
    said, best = words(text), (0, "")
    seen: dict[tuple, int] = {}
    for size in (24, 16, 12, 8, 6, 5, 4):
        seen.clear()
        for i in range(len(said) - size + 1):
            gram = tuple(said[i : i + size])
            if gram in seen and i - seen[gram] >= size:
                return size, " ".join(gram)
            seen.setdefault(gram, i)
    return best


def unfinished(text: str) -> bool:
    """Whether a text breaks off: no final mark, or a last word that wants another one."""
    from sklearn.feature_extraction.text import ENGLISH_STOP_WORDS

    end = text.rstrip()
    if not end or re.search(r"[.!?…][\"')\]`*]*$|[\U0001F300-\U0001FAFF]$|```$|</[a-z]+>$", end):
        return end.endswith(("...", "…"))
    return True if words(end) else bool(ENGLISH_STOP_WORDS)


def features(items: Sequence[Item], encoder, terms: Sequence[str], questions: Sequence[str]) -> "pd.DataFrame":
    """Signals of each item, one row each. `terms` are technical terms, `questions` all questions that might be meant.

    Embeds answers, sentences, questions, references and key points, once each.
    """
    import numpy as np
    import pandas as pd

    from ..similarity import embed

    parts = [sentences(item.answer) or [item.answer or "-"] for item in items]
    flat = [part for one in parts for part in one]
    vectors = np.split(embed(encoder, flat), np.cumsum([len(one) for one in parts])[:-1])
    whole = embed(encoder, [item.answer or "-" for item in items])
    asked, known = embed(encoder, [item.question for item in items]), embed(encoder, [item.reference for item in items])
    points = np.split(
        embed(encoder, [point for item in items for point in item.key_points]),
        np.cumsum([len(item.key_points) for item in items])[:-1],
    )
    possible = embed(encoder, list(questions))
    pattern = re.compile(
        r"(?<![\w-])(?:" + "|".join(map(re.escape, sorted(terms, key=len, reverse=True))) + r")(?![\w-])", re.I
    )
    rows = []
    for i, item in enumerate(items):
        rows.append(
            _form(item)
            | _subject(item, pattern)
            | _meaning(vectors[i], whole[i], asked[i], known[i], points[i], possible, [*questions].index(item.question))
        )
    return pd.DataFrame(rows)


def _form(item: Item) -> dict[str, float]:
    said, lines = words(item.answer), sentences(item.answer)
    count = max(1, len(said))
    marked = [m.group() for m in _MARKUP.finditer(item.answer)]
    return {
        "words": len(said),
        "log_length_ratio": __import__("math").log((len(said) + 1) / (len(words(item.reference)) + 1)),
        "unfinished": float(unfinished(item.answer)),
        "repeated_1": repeated_ngrams(item.answer, 1)[0],
        "repeated_3": repeated_ngrams(item.answer, 3)[0],
        "repeated_5": repeated_ngrams(item.answer, 5)[0],
        "longest_repeat": float(longest_repeat(item.answer)[0]),
        "doubled": float(len(doubled_words(item.answer))),
        "insistent": insistent_word(item.answer, item.question)[0],
        "markup": len(marked) / count * 100,
        "echo": float(len(_ECHO.findall(item.answer))),
        "broken": float(len(_BROKEN.findall(item.answer))),
        "emoji": float(len(_EMOJI.findall(item.answer))),
        "exclamations": item.answer.count("!") / max(1, len(lines)),
        "sentence_words": count / max(1, len(lines)),
        "openings": 1 - len({tuple(words(line)[:3]) for line in lines}) / max(1, len(lines)),
    }


def _subject(item: Item, terms: re.Pattern) -> dict[str, float]:
    from sklearn.feature_extraction.text import ENGLISH_STOP_WORDS

    said, text = words(item.answer), item.answer.lower()
    count = max(1, len(said))
    given = numbers(item.question) | numbers(item.reference) | {n for point in item.key_points for n in numbers(point)}
    told = numbers(item.answer)
    here, there = set(content_words(item.answer)), set(content_words(item.reference))
    asked = set(content_words(item.question))
    found = {term.lower() for term in terms.findall(item.answer)}
    meant = {term.lower() for term in terms.findall(item.reference)}
    return {
        "stock": sum(text.count(phrase) for phrase in STOCK) / count * 100,
        "number_density": len(_NUMBER.findall(item.answer)) / count * 100,
        "strange_numbers": float(len(told - given)),
        "missing_numbers": len(given - told) / max(1, len(given)),
        "term_density": len(terms.findall(item.answer)) / count * 100,
        "terms_of_reference": len(found & meant) / max(1, len(meant)),
        "strange_terms": len(found - meant) / max(1, len(found)),
        "words_of_reference": len(here & there) / max(1, len(there)),
        "words_of_question": len(here & asked) / max(1, len(asked)),
        "only_question": len(here & asked) / max(1, len(here)),
        "stop_words": sum(word in ENGLISH_STOP_WORDS for word in said) / count,
        "first_person": sum(word in ("i", "i'd", "i'm", "i've", "my", "we", "we'd", "you") for word in said) / count,
        "hedges": sum(text.count(h) for h in ("may ", "might", "can be", "could", "often", "usually", "tend", "some "))
        / count
        * 100,
    }


def _meaning(
    parts: "np.ndarray", whole: "np.ndarray", asked: "np.ndarray", known: "np.ndarray", points: "np.ndarray",
    possible: "np.ndarray", own: int,
) -> dict[str, float]:  # fmt: skip
    import numpy as np

    among = np.triu(parts @ parts.T, 1)
    pairs = among[np.triu_indices(len(parts), 1)] if len(parts) > 1 else np.zeros(1)
    best = (points @ parts.T).max(1)
    others = possible @ whole
    return {
        "like_question": float(whole @ asked),
        "like_reference": float(whole @ known),
        "question_rank": float(np.log1p((others > others[own] + 1e-6).sum())),
        "nearer_question": float(others.max() - others[own]),
        "point_least": float(best.min()),
        "point_mean": float(best.mean()),
        "points_below": float((best < 0.5).mean()),
        "redundant_most": float(pairs.max()),
        "redundant_mean": float(pairs.mean()),
        "last_like_first": float(parts[0] @ parts[-1]) if len(parts) > 1 else 0.0,
        "sentence_to_question_least": float((parts @ asked).min()),
    }
