"""What usually helps against each kind of error, for whoever tunes the model. Suggestions, not measured here."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pandas as pd

REMEDIES = {
    ("hallucination", "factual inaccuracy"): "Put the passage that settles the fact into the prompt; tuning adds few facts.",
    ("hallucination", "concept confusion"): "Add questions that contrast the two concepts, with both named in one answer.",
    ("hallucination", "domain misunderstanding"): "Start from a base that has read the field, before more tuning.",
    ("generic", "over-general"): "Prefer training answers with a number, a condition or an example in every paragraph.",
    ("generic", "unspecific"): "Ask for mechanism and magnitude in the prompt; drop vague answers from training.",
    ("generic", "template-like"): "Look for frames in the training answers and rewrite them; vary the openings.",
    ("technical error", "misapplied concept"): "Add questions in which the concept does not apply, and say why.",
    ("technical error", "confused terms"): "Add pairs of terms to the comparison questions; check the tokens of rare terms.",
    ("technical error", "misunderstood process"): "Add derivations and procedures whose answers give the steps in order.",
    ("length mismatch", "too short"): "Set a least number of new tokens, and look for short answers in training.",
    ("length mismatch", "too long"): "Lower max_new_tokens, and check that training answers end with the end-of-text token.",
    ("length mismatch", "inconsistent"): "State the wanted length in the prompt and train on answers that keep it.",
    ("incomplete", "truncated"): "Raise max_new_tokens; if answers never end, train on the end-of-text token.",
    ("incomplete", "missing component"): "Train on questions of several parts; ask for each part in the prompt.",
    ("incomplete", "partial coverage"): "Retrieve more context, or sample several answers and keep the one that covers most.",
    ("repetitive", "words"): "Raise repetition_penalty in small steps, and compare the scores of both settings.",
    ("repetitive", "phrases"): "Forbid repeated n-grams (no_repeat_ngram_size) or sample instead of decoding greedily.",
    ("repetitive", "content"): "Shorten max_new_tokens to the training answers' length; loops begin where these ended.",
    ("off-topic", "question misread"): "Train with nearby questions as contrasts; retrieve by question and by answer.",
    ("off-topic", "context confused"): "Name the field in the prompt, and add the term's other sense as a contrast.",
    ("off-topic", "irrelevant"): "The base does not follow the prompt: a larger or instruction-tuned base, before more tuning.",
    ("format", "structure"): "Remove lists and echoed prompts from training answers; stop generation at the next 'Question:'.",
    ("format", "style"): "Add answers in spoken register; see that no written register dominates training.",
    ("format", "presentation"): "Normalise training text (markup, encodings), and check the tokenizer's round trip.",
}  # fmt: skip


def suggest(labels: "pd.DataFrame", shares: "pd.DataFrame", least: float = 0.05) -> "pd.DataFrame":
    """A remedy for each category whose share has an interval above `least`, most frequent first.

    `shares`: `mean`, `low` and `high` of each category (index).
    `labels`: one row per label found, with `category` and `subtype`; the remedy is that of the category's commonest subtype.
    """
    import pandas as pd

    rows = []
    for category, share in shares[shares.low > least].sort_values("mean", ascending=False).iterrows():
        kinds = labels[labels.category == category].subtype.value_counts()
        shown = f"{share['mean']:.0%} ({share.low:.0%} to {share.high:.0%}) of answers"
        rows.append(
            (category, shown, f"{kinds.index[0]} ({kinds.iloc[0] / kinds.sum():.0%})", REMEDIES[category, kinds.index[0]])
        )
    return pd.DataFrame(rows, columns=["category", "found in", "mostly", "what to try"])
