"""What can be measured in an answer without understanding it: length, repetition, likeness to what was asked, form.

Each signal is a number per answer; several also name the passages that show it, which a reader then sees highlighted.
"""

import itertools
import math
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


_NAME = re.compile(r"(?<=[a-z,;:] )[A-Z][A-Za-z-]{2,}")  # a capital within a sentence
_SOURCE = re.compile(
    r"\b(?:19|20)\d\d\b|\b(?:papers?|study|studies|studied|researchers|published|according to|introduced by|"
    r"benchmark|framework|version|"
    r"standard|developed|proved|theorem|law)\b", re.I
)  # fmt: skip
_SLANG = re.compile(
    r"\b(?:kinda|gonna|wanna|gotta|lol|ouch|yep|nope|ooh|meh|dude|guys?|cute|super|stuff|muppet|honestly|basically|heck|damn|btw|tbh|cause|"
    r"okay|ok|wow|hey|cool|crazy|journey|tapestry|beacon|soar\w*|breathtaking|visionary|embark\w*|alas)\b", re.I
)  # fmt: skip
_HEDGE = re.compile(
    r"\b(?:may|might|can be|could|often|usually|tends? to|some|various|several|many|certain|appropriate|suitable|relevant)\b"
)
_ABSOLUTE = re.compile(
    r"\b(?:always|never|every|all|only|no|none|must|exactly|guarantee[sd]?|impossible|entirely|completely)\b"
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
        return parts + [f"{one} {two}" for one, two in itertools.pairwise(parts)]


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


def polarity(text: str) -> set[str]:
    """Which directions a sentence speaks of: not, more, less, before, after."""
    return {name for name, pattern in _POLARITY.items() if re.search(pattern, text, re.I)}


def unfinished(text: str) -> bool:
    """Whether a text breaks off: no final mark, or a last word that wants another one."""
    from sklearn.feature_extraction.text import ENGLISH_STOP_WORDS

    end = text.rstrip()
    if not end or re.search(r"[.!?…][\"')\]`*]*$|[\U0001F300-\U0001FAFF]$|```$|</[a-z]+>$", end):
        return end.endswith(("...", "…"))
    return True if words(end) else bool(ENGLISH_STOP_WORDS)


def features(items: Sequence[Item], texts: Texts, terms: Sequence[str], questions: Sequence[str]) -> "pd.DataFrame":
    """Signals of each item, one row each. `terms` are technical terms, `questions` all questions that might be meant."""
    import pandas as pd

    texts.add(part for item in items for part in (*sentences(item.answer), *sentences(item.reference), *item.key_points))
    texts.add([*(item.answer.strip() or "-" for item in items), *(item.reference for item in items), *questions])
    pattern = re.compile(
        r"(?<![\w-])(?:" + "|".join(map(re.escape, sorted(terms, key=len, reverse=True))) + r")(?![\w-])", re.I
    )
    return pd.DataFrame([_form(item) | _subject(item, pattern) | _meaning(item, texts, questions) for item in items])


def _form(item: Item) -> dict[str, float]:
    said, lines = words(item.answer), sentences(item.answer)
    count, text = max(1, len(said)), item.answer
    return {
        "log_words": math.log1p(len(said)),
        "too_short": max(0.0, math.log(30 / count)),
        "too_long": max(0.0, math.log(count / 240)),
        "log_length_ratio": math.log((len(said) + 1) / (len(words(item.reference)) + 1)),
        "unfinished": float(unfinished(text)),
        "repeated_1": repeated_ngrams(text, 1)[0],
        "repeated_3": repeated_ngrams(text, 3)[0],
        "repeated_5": repeated_ngrams(text, 5)[0],
        "longest_repeat": float(longest_repeat(text)[0]),
        "doubled": float(len(doubled_words(text))),
        "insistent": insistent_word(text, item.question)[0],
        "openings": 1 - len({tuple(words(line)[:3]) for line in lines}) / max(1, len(lines)),
        "markup": len(_MARKUP.findall(text)) / count * 100,
        "echo": float(len(_ECHO.findall(text))),
        "broken": float(len(_BROKEN.findall(text))),
        "emoji": float(len(_EMOJI.findall(text))),
        "exclamations": text.count("!") / max(1, len(lines)),
        "sentence_words": count / max(1, len(lines)),
        "small_starts": sum(line[0].islower() for line in lines) / max(1, len(lines)),
        "slang": len(_SLANG.findall(text)) / count * 100,
        "addressed": sum(word in ("you", "your", "yourself") for word in said) / count,
        "first_person": sum(word in ("i", "i'd", "i'm", "i've", "i'll", "my", "we", "we'd", "our") for word in said) / count,
    }


def _subject(item: Item, terms: re.Pattern) -> dict[str, float]:
    from sklearn.feature_extraction.text import ENGLISH_STOP_WORDS

    said, text = words(item.answer), item.answer.lower()
    count = max(1, len(said))
    given = " ".join((item.question, item.reference, *item.key_points))
    told, known = numbers(item.answer), numbers(given)
    here, there, asked = (set(content_words(part)) for part in (item.answer, item.reference, item.question))
    found, meant = ({term.lower() for term in terms.findall(part)} for part in (item.answer, item.reference))
    names = {name for name in _NAME.findall(item.answer) if name.lower() not in given.lower() and not terms.fullmatch(name)}
    return {
        "stock": sum(text.count(phrase) for phrase in STOCK) / count * 100,
        "number_density": len(_NUMBER.findall(item.answer)) / count * 100,
        "strange_numbers": float(len(told - known)),
        "missing_numbers": len(numbers(item.reference) - told) / max(1, len(numbers(item.reference))),
        "strange_names": float(len(names)),
        "sources": float(len(_SOURCE.findall(item.answer))),
        "term_density": len(terms.findall(item.answer)) / count * 100,
        "terms_of_reference": len(found & meant) / max(1, len(meant)),
        "strange_terms": len(found - meant) / max(1, len(found)),
        "words_of_reference": len(here & there) / max(1, len(there)),
        "words_of_question": len(here & asked) / max(1, len(asked)),
        "only_question": len(here & asked) / max(1, len(here)),
        "stop_words": sum(word in ENGLISH_STOP_WORDS for word in said) / count,
        "hedges": len(_HEDGE.findall(text)) / count * 100,
        "absolute": len(_ABSOLUTE.findall(text)) / count * 100,
    }


def _meaning(item: Item, texts: Texts, questions: Sequence[str]) -> dict[str, float]:
    import numpy as np

    parts = texts.vectors(lines := sentences(item.answer) or [item.answer.strip() or "-"])
    whole, asked, known = texts.vectors([item.answer.strip() or "-", item.question, item.reference])
    source = texts.vectors(sources := sentences(item.reference) or [item.reference])
    points = texts.vectors(item.key_points)
    pairs = (parts @ parts.T)[np.triu_indices(len(parts), 1)] if len(parts) > 1 else np.zeros(1)
    best, support = (points @ parts.T).max(1), parts @ source.T
    sizes = np.array([len(line.split()) for line in lines], float)
    nearest = (parts @ points.T).argmax(1)
    others = texts.vectors(questions) @ whole
    own = float(whole @ asked)
    opposed = [
        polarity(line) ^ polarity(sources[row.argmax()]) for line, row in zip(lines, support, strict=True) if row.max() > 0.55
    ]
    return {
        "like_question": own,
        "like_reference": float(whole @ known),
        "question_rank": float(np.log1p((others > own + 1e-6).sum())),
        "nearer_question": float(others.max() - own),
        "point_least": float(best.min()),
        "point_mean": float(best.mean()),
        "support_mean": float((support.max(1) * sizes).sum() / sizes.sum()),
        "support_least": float(support.max(1).min()),
        "unsupported": float(sizes[support.max(1) < 0.4].sum() / sizes.sum()),
        "source_least": float(support.max(0).min()),
        "source_mean": float(support.max(0).mean()),
        "dominant_point": max(sizes[nearest == p].sum() for p in range(len(points))) / sizes.sum(),
        "opposed": float(sum(map(len, opposed))),
        "redundant_most": float(pairs.max()),
        "redundant_mean": float(pairs.mean()),
        "sentence_to_question_least": float((parts @ asked).min()),
        "first_to_question": float(parts[0] @ asked),
        "last_to_question": float(parts[-1] @ asked),
    }


def evidence(category: str, item: Item, texts: Texts, most: int = 3) -> list[str]:
    """Passages of an answer, verbatim, that speak for a category; none where the answer as a whole does, or what it lacks."""
    import numpy as np

    lines = sentences(item.answer) or [item.answer.strip()]
    if category == "repetitive":
        size, _ = longest_repeat(item.answer)
        again = [line for i, line in enumerate(lines) if line in lines[:i]] or doubled_words(item.answer)
        again = again or [word for share, word in [insistent_word(item.answer, item.question)] if share]
        return again[:most] or ([passage(item.answer, size)] if size else [])
    if category == "format":
        found = [
            m.group().strip() for pattern in (_ECHO, _BROKEN, _MARKUP, _EMOJI, _SLANG) for m in pattern.finditer(item.answer)
        ]
        return [text for text in dict.fromkeys(found) if text][:most]
    if category == "incomplete":
        return [lines[-1][-80:]] if unfinished(item.answer) else []
    if category == "generic":
        return [m.group() for p in STOCK for m in re.finditer(re.escape(p), item.answer, re.I)][:most]
    if category == "off-topic":
        order = np.argsort(texts.vectors(lines) @ texts.vectors([item.question])[0])
        return [lines[i] for i in order[: min(most, len(lines))]]
    if category in ("hallucination", "technical error"):
        support = texts.vectors(lines) @ texts.vectors(sentences(item.reference) or [item.reference]).T
        return [lines[i] for i in np.argsort(support.max(1))[: min(2, len(lines))]]
    return []


def passage(text: str, size: int) -> str:
    """The first passage of `size` words that comes again later, as it stands in the text."""
    spots = list(_WORD.finditer(text))
    seen: dict[tuple, int] = {}
    for i in range(len(spots) - size + 1):
        gram = tuple(spot.group().lower() for spot in spots[i : i + size])
        if gram in seen:
            return text[spots[seen[gram]].start() : spots[seen[gram] + size - 1].end()]
        seen.setdefault(gram, i)
    return ""
