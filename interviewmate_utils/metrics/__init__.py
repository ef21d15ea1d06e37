"""Scores of answers against references, through local `evaluate` modules that need no network.

Each module (a folder here) returns one score per item, besides corpus BLEU, so that comparisons can be paired.
"""

import itertools
import re
from collections.abc import Sequence
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING

from .randomisation import compare_corpus_bleu as compare_corpus_bleu

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd

ROUGE = ("rouge1", "rouge2", "rougeL", "rougeLsum")
PRIMARY = "rougeL"


@cache
def _module(name: str):
    import evaluate

    return evaluate.load(str(Path(__file__).parent / name))


@cache
def meteor_name() -> str:
    """`meteor` where NLTK finds WordNet, else `meteor_exact_stem`: the same formula without the synonym stage.

    One name a process: WordNet that comes later needs a new one.
    """
    from nltk.corpus import wordnet

    try:
        wordnet.ensure_loaded()
    except (LookupError, OSError):  # none; or one that NLTK does not load (not whole, or linked from elsewhere)
        return "meteor_exact_stem"
    return "meteor"


def one_sentence_a_line(text: str) -> str:
    """ROUGE-Lsum wants sentences on lines of their own."""
    return re.sub(r"(?<=[.!?]) +(?=[A-Z\"'(])", "\n", text)


def score_items(predictions: Sequence[str], references: Sequence[str]) -> "pd.DataFrame":
    """One row per item, scores from 0 to 1: ROUGE-1/2/L/Lsum F1, METEOR, exact match, sentence BLEU (for reading only)."""
    import pandas as pd

    lines = [one_sentence_a_line(t) for t in predictions], [one_sentence_a_line(t) for t in references]
    table = pd.DataFrame(_module("rouge_items").compute(predictions=lines[0], references=lines[1]))
    table[meteor_name()] = _module("meteor_items").compute(
        predictions=predictions, references=references, synonyms=meteor_name() == "meteor"
    )["scores"]
    table["exact_match"] = _module("exact_match_items").compute(predictions=predictions, references=references)["scores"]
    table["sentence_bleu"] = _module("bleu_corpus").compute(predictions=predictions, references=references)["sentences"]
    return table


def corpus_bleu(predictions: Sequence[str], references: Sequence[str]) -> tuple[float, str]:
    """BLEU of the whole set, 0 to 1, and sacrebleu's signature (tokeniser, smoothing, version)."""
    result = _module("bleu_corpus").compute(predictions=predictions, references=references)
    return result["bleu"], result["signature"]


def semantic_similarity(encoder, predictions: Sequence[str], references: Sequence[str]) -> "np.ndarray":
    """Cosine of sentence embeddings, per item; an empty answer scores 0. Texts over 256 word pieces are cut there."""
    import numpy as np

    from ..similarity import embed

    filled = np.array([bool(text.strip()) for text in predictions])
    return np.where(filled, (embed(encoder, predictions) * embed(encoder, references)).sum(1), 0.0)


def by_length(encoder, predictions: Sequence[str], references: Sequence[str], shares: Sequence[float]) -> "pd.DataFrame":
    """Mean scores when only the first share of each prediction's words is kept; above 1, the next predictions follow.

    One row per share, columns as of `score_items`, and similarity: what length alone adds to a score or takes away.
    """
    import pandas as pd

    said, rows = [text.split() for text in predictions], {}
    for share in shares:
        cut = [" ".join(list(itertools.chain(*said[i:], *said[:i]))[: round(share * len(one))]) for i, one in enumerate(said)]
        rows[share] = score_items(cut, references).mean()
        rows[share]["similarity"] = semantic_similarity(encoder, cut, references).mean()
    return pd.DataFrame(rows).T.rename_axis("share of words")


def describe() -> "pd.DataFrame":
    """Which package, version and tokeniser stands behind each score."""
    import pandas as pd

    rouge, nltk = (f"{name} {metadata.version(name)}" for name in ("rouge-score", "nltk"))
    bleu = f"sacrebleu {metadata.version('sacrebleu')}"
    stages = "exact, stem, synonym" if meteor_name() == "meteor" else "exact, stem (no WordNet here, so no synonyms)"
    rows = [
        ("ROUGE-1, -2, -L, -Lsum", rouge, "lower case, [a-z0-9]+, Porter stems; F1"),
        ("corpus BLEU, sentence BLEU", bleu, "13a, case kept; exponential smoothing"),
        (meteor_name(), nltk, f"lower case, words and punctuation; stages: {stages}"),
        ("exact match", "this repository", "case, articles, punctuation and white space ignored, as in SQuAD"),
        (
            "semantic similarity",
            f"sentence-transformers {metadata.version('sentence-transformers')}",
            "MiniLM word pieces, 256 at most",
        ),
        ("perplexity", f"transformers {metadata.version('transformers')}", "the model's own; of the reference answer"),
    ]
    return pd.DataFrame(rows, columns=["score", "package", "tokeniser and setting"])
