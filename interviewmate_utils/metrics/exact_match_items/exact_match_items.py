"""Exact match per item, normalised as in SQuAD (Rajpurkar et al. 2016), as a local `evaluate` module."""

import re
import string

import datasets
import evaluate


def normal(text):
    text = "".join(c for c in text.lower() if c not in string.punctuation)
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", text).split())


class ExactMatchItems(evaluate.Metric):
    """1 where prediction and reference agree after normalisation, else 0; 0 also where nothing is left of both."""

    def _info(self):
        features = datasets.Features({"predictions": datasets.Value("string"), "references": datasets.Value("string")})
        return evaluate.MetricInfo(description=__doc__, citation="Rajpurkar et al. 2016", features=features)

    def _compute(self, predictions, references):
        pairs = zip(map(normal, predictions), map(normal, references), strict=True)
        return {"scores": [float(bool(p) and p == r) for p, r in pairs]}
