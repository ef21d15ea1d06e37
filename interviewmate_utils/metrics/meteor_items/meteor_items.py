"""METEOR per item (Banerjee and Lavie 2005) with NLTK, as a local `evaluate` module."""

import re

import datasets
import evaluate
from nltk.translate.meteor_score import single_meteor_score


class NoSynonyms:
    """Stands where WordNet would, and knows no synonym: exact and stem matches only."""

    @staticmethod
    def synsets(*_):
        return []


def words(text):
    return re.findall(r"\w+|[^\w\s]", text.lower())


class MeteorItems(evaluate.Metric):
    """With `synonyms` the full metric, without it exact and stem stages; the caller gives the two different names."""

    def _info(self):
        features = datasets.Features({"predictions": datasets.Value("string"), "references": datasets.Value("string")})
        return evaluate.MetricInfo(description=__doc__, citation="Banerjee and Lavie 2005", features=features)

    def _compute(self, predictions, references, synonyms):
        options = {} if synonyms else {"wordnet": NoSynonyms()}
        pairs = zip(predictions, references, strict=True)
        return {"scores": [single_meteor_score(words(r), words(p), **options) if p.strip() else 0.0 for p, r in pairs]}
