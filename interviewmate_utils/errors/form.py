"""Errors of form: seen in the text of an answer alone, by rules that say which passage breaks them.

Limits follow the guideline (`data/GUIDELINE.md`) or were set on the development half of the judged answers. Each rule gives the
passages that break it, verbatim, so that a reader can check it.
"""

import re
from collections import Counter
from collections.abc import Mapping

SHORT, LONG = 27, 255  # words; the guideline's "about 25" and "about 260"
WORD = re.compile(r"[A-Za-z]+(?:['\u2019][a-z]+)?|\d[\d.,]*")
_LIST = re.compile(r"^[ \t]*(?:[-*\u2022\u2013]|\d+(?:\.\d+)*[.)]?|[a-z]\))[ \t]+\S.*$", re.MULTILINE)
_BLOCK = re.compile(
    r"^[ \t]*(?:#{1,6}[ \t]+\S.*|\*\*[^*\n]+\*\*.*|```.*|\|.*\|[ \t]*)$", re.MULTILINE
)  # heading, bold lead, code, table
_ECHO = re.compile(r"^[ \t]*(?:Question|Answer|Q|A|User|Assistant|System|Interviewer|Candidate)[ \t]*:.*$", re.MULTILINE)
_MARKUP = re.compile(r"</?[a-z]+[^<>]*>|&(?:[a-z]+|#\d+);|\\(?:[a-zA-Z]+\b|[()\[\]])|\$(?![\d\s])[^$\n]{1,80}\$")
_MOJIBAKE = re.compile(r"Ã.|â€.?|Â[^\w\s]?(?=\s|\W)|\ufffd|\\u[0-9a-f]{4}")
_OTHER_SCRIPT = re.compile(r"[\u0400-\u052f\u0590-\u06ff\u0900-\u0dff\u0e00-\u0e7f\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af]+")
# from the start of a word alone: a word of 200,000 letters must not be tried from each of them
_SPACING = re.compile(r"(?<![a-z])[a-z]{2,}(?:[,;?!][A-Za-z]{2,}|\.[A-Z][a-z]+)|(?:\b\w+)? [.,;](?=\w)\w+")
_EMOJI = re.compile(r"[\U0001F300-\U0001FAFF\u2600-\u27BF]")
_COLLOQUIAL = re.compile(
    r"\b(?:kinda|sorta|gonna|wanna|gotta|lemme|dunno|ain't|y'all|lol|lmao|omg|btw|tbh|imho|yeah|yep|yup|nope|nah|ooh|oops|ouch|"
    r"meh|ugh|hey|wow|haha|dude|bro|folks|guys?|buddy|stuff|crap|heck|damn|hell|sucks?|cool|cute|crazy|awesome|super|chill|"
    r"muppet|honestly|literally|totally|whatever|like,)(?!\w)",
    re.IGNORECASE,
)
_BOOKISH = re.compile(
    r"\b(?:hereby|herein|heretofore|aforementioned|henceforth|thereof|thereby|wherein|whilst|pursuant|alas|behold|thus|"
    r"in this (?:paper|section|essay)|the (?:author|candidate|undersigned|present (?:author|work))|"
    r"dear (?:sir|madam|interviewer|all|team)|(?:best|kind) regards|sincerely)\b",
    re.IGNORECASE,
)
_BRIEF = re.compile(
    r"(?:in (?:one|a|two) (?:single )?(?:sentence|word|line)s?|in a nutshell|briefly|in short|(?:keep|make) (?:it|this) "
    r"(?:short|brief)|(?:one|the) short answer|(?:one|just a) word|quick answer)\b",
    re.IGNORECASE,
)
_ANNOUNCED = re.compile(
    r"\b(two|three|four|five|six|seven) (?:\w+ )?"
    r"(?:reasons|things|steps|points|parts|fixes|causes|ways|questions|checks|ideas|aspects)\b",
    re.IGNORECASE,
)
_LAST = re.compile(
    r"[.!?…][\"'\u201d\u2019)\]`*_]*$|[\U0001F300-\U0001FAFF\u2600-\u27BF]$|```$|</[a-z]+>$|\$\$?$|\\end\{\w+\}$|\|$"
)


def words(text: str) -> list[str]:
    """Lower-case words and numbers."""
    return WORD.findall(text.lower())


def sentences(text: str) -> list[str]:
    """Sentences and lines of at least three words."""
    parts = re.split(r"(?<=[.!?])\s+|\n+", text)
    return [part.strip() for part in parts if len(part.split()) >= 3]


def is_stop_word(word: str) -> bool:
    """Whether a word says nothing about a subject (scikit-learn's English list)."""
    from sklearn.feature_extraction.text import ENGLISH_STOP_WORDS

    return word in ENGLISH_STOP_WORDS


def unfinished(text: str) -> bool:
    """Whether a text breaks off: it has words, and no final mark or a dangling one."""
    end = text.rstrip()
    return bool(words(end)) and (not _LAST.search(end) or end.endswith(("...", "…")))


def ending(text: str, size: int) -> str:
    """The last `size` words, as they stand in the text."""
    starts = [match.start() for match in re.finditer(r"\S+", text)]
    return text[starts[-size:][0] :].rstrip() if starts else ""


def repeated_passage(text: str, size: int) -> str:
    """The first passage of `size` words that comes again later without overlap, as it stands in the text."""
    spots = list(WORD.finditer(text))
    seen: dict[tuple[str, ...], int] = {}
    for i in range(len(spots) - size + 1):
        gram = tuple(spot.group().lower() for spot in spots[i : i + size])
        if gram in seen and i - seen[gram] >= size:
            return text[spots[seen[gram]].start() : spots[seen[gram] + size - 1].end()]
        seen.setdefault(gram, i)
    return ""


def recurring(text: str, size: int, least: int) -> list[str]:
    """Passages of `size` words, no formula, that occur `least` times or more, as they first stand in the text."""
    spots = list(WORD.finditer(text))
    grams = [tuple(spot.group().lower() for spot in spots[i : i + size]) for i in range(len(spots) - size + 1)]
    often = [gram for gram, count in Counter(grams).most_common() if count >= least and min(map(len, gram)) > 1]
    return [text[spots[first].start() : spots[first + size - 1].end()] for first in map(grams.index, often)]


def insistent_word(text: str, question: str) -> tuple[float, str]:
    """Share of all words that the most frequent word outside the question takes, and the word; 0 under five times."""
    asked, said = set(words(question)), words(text)
    counts = Counter(word for word in said if word not in asked and not is_stop_word(word) and len(word) > 1)
    word, count = counts.most_common(1)[0] if counts else ("", 0)
    return (count / len(said) if count >= 5 else 0.0), word


def _structure(text: str) -> list[str]:
    lists = _LIST.findall(text)
    return [*(lists if len(lists) > 1 else []), *_BLOCK.findall(text), *_ECHO.findall(text)]


def _presentation(text: str) -> list[str]:
    several = [found for found in (_MARKUP.findall(text), _SPACING.findall(text)) if len(found) > 2]  # one may be meant
    return [*(passage for found in several for passage in found), *_MOJIBAKE.findall(text), *_OTHER_SCRIPT.findall(text)]


def _style(text: str, vocabulary: Mapping[str, int]) -> list[str]:
    said, lines = words(text), sentences(text)
    if len(said) <= SHORT:
        return _EMOJI.findall(text)
    casual, bookish = _COLLOQUIAL.findall(text), _BOOKISH.findall(text)
    shouted = [line for line in lines if line.endswith("!")]
    clipped = [line for line in lines if len(line.split()) < 5]
    rare = [word for word in WORD.findall(text) if word.isalpha() and vocabulary.get(word.lower(), 0) < 3]
    lecturing = [line for line in lines if re.search(r"\byou(?:r|rself)?\b", line, re.IGNORECASE)]
    telegraphic = len(clipped) / max(1, len(lines)) > 0.22 and sum(map(is_stop_word, said)) / len(said) < 0.3
    return [
        *_EMOJI.findall(text),
        *(casual if len(casual) > 2 and len(casual) / len(said) > 0.02 else []),
        *(bookish if len(bookish) > 2 else []),
        *(shouted if len(shouted) / max(1, len(lines)) > 0.3 else []),
        *(clipped if telegraphic else []),
        *(lecturing if sum(word in ("you", "your", "yourself") for word in said) / len(said) > 0.07 else []),
        *(dict.fromkeys(rare) if len(rare) / len(said) > 0.25 else []),
    ]


def _repetition(text: str, question: str) -> dict[str, list[str]]:
    lines = sentences(text)
    doubled = [match.group() for match in re.finditer(r"\b([A-Za-z]+)(?:\s+\1\b)+", text)]
    share, word = insistent_word(text, question)
    openings = Counter(tuple(words(line)[:2]) for line in lines).most_common(1)
    same = [line for line in lines if openings and tuple(words(line)[:2]) == openings[0][0]]
    passage = repeated_passage(text, 8)
    return {
        "words": [*(doubled if len(doubled) > 1 else []), *([word] if share > 0.055 else [])],
        "phrases": [
            *([passage] if passage else recurring(text, 4, 3)),
            *(same if len(lines) > 4 and len(same) / len(lines) > 0.4 else []),
        ],
    }


def _other_than_announced(text: str) -> list[str]:
    """Short announced and long given, or several things announced of which the last get a few words."""
    lines = sentences(text)
    brief = _BRIEF.match(lines[0]) if lines else None
    if brief and len(words(text)) > 100:
        return [lines[0]]
    parts = [len(words(part)) for part in re.split(r"\b(?:First|Second|Third|Fourth|Fifth|Sixth)(?:ly)?\b[,:]?", text)[1:]]
    announced = _ANNOUNCED.search(text)
    if announced and len(parts) > 1 and parts[0] > 60 and max(parts[1:]) < 10:
        return [announced.group(), ending(text, 8)]
    return []


def breaches(text: str, question: str, vocabulary: Mapping[str, int]) -> dict[tuple[str, str], list[str]]:
    """(category, subtype) of each error of form in an answer, with the passages that show it.

    `vocabulary`: how often each word occurs in the corpus's own answers, which sets what an unusual word is.
    """
    count = len(words(text))
    found = {("format", "structure"): _structure(text), ("format", "presentation"): _presentation(text)}
    sound = not found["format", "presentation"]  # where text is broken, its words and its end say nothing about the rest
    if sound:
        found["format", "style"] = _style(text, vocabulary)
        found |= {("repetitive", subtype): shown for subtype, shown in _repetition(text, question).items()}
        found["incomplete", "truncated"] = [ending(text, 12)] if unfinished(text) else []
    found["length mismatch", "inconsistent"] = _other_than_announced(text)
    found["length mismatch", "too short"] = [text.strip() or "(empty)"] if count <= SHORT else []
    found["length mismatch", "too long"] = [ending(text, 12)] if count > LONG else []
    return {label: shown for label, shown in found.items() if shown}
