"""ROUGE per item (Lin 2004) with Google's rouge-score, as a local `evaluate` module."""

import datasets
import evaluate
from rouge_score import rouge_scorer

TYPES = ["rouge1", "rouge2", "rougeL", "rougeLsum"]


class RougeItems(evaluate.Metric):
    """F1 with Porter stems; sentences of ROUGE-Lsum are separated by line breaks."""

    def _info(self):
        features = datasets.Features({"predictions": datasets.Value("string"), "references": datasets.Value("string")})
        return evaluate.MetricInfo(description=__doc__, citation="Lin 2004", features=features)

    def _compute(self, predictions, references):
        scorer = rouge_scorer.RougeScorer(TYPES, use_stemmer=True)
        scores = [scorer.score(reference, prediction) for prediction, reference in zip(predictions, references, strict=True)]
        return {name: [score[name].fmeasure for score in scores] for name in TYPES}
