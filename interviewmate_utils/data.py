"""From rows to what a model reads: prompt, tokens and labels, batches, datasets on disk."""

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from . import config
from .config import PREPARED, replacing
from .rows import ANSWER, ID, PARENT, QUESTION

if TYPE_CHECKING:
    import pyarrow as pa
    import torch
    from datasets import DatasetDict
    from transformers import PreTrainedTokenizerBase

CONTEXT = "context"  # the earlier turns of a follow-up's conversation
PROMPT = "Question: {question}\nAnswer:"  # the one place that says how a question is put to a causal model
IGNORED = -100  # label that the loss skips


def tokenise(row: Mapping[str, str], tokenizer: "PreTrainedTokenizerBase", max_length: int) -> dict:
    """Ids and labels of one example: earlier turns and prompt (labels ignored), answer, end of text.

    Of an example beyond `max_length`, first the beginning of the earlier turns (`context`) goes, then the end of the answer:
    that one is truncated and carries no end-of-text label, so that the model does not learn to stop in mid-sentence.
    `answer_tokens` counts the labels that the loss sees.
    """
    asked = PROMPT.format(question=row[QUESTION])
    prompt = tokenizer((row.get(CONTEXT) or "") + asked, add_special_tokens=False)["input_ids"]
    answer = tokenizer(" " + row[ANSWER], add_special_tokens=False)["input_ids"]
    full_length = len(prompt) + len(answer) + 1
    if row.get(CONTEXT) and full_length > max_length:
        own = len(tokenizer(asked, add_special_tokens=False)["input_ids"])
        prompt = prompt[min(full_length - max_length, len(prompt) - own) :]
    ids = [*prompt, *answer, tokenizer.eos_token_id]
    labels = [IGNORED] * len(prompt) + ids[len(prompt) :]
    return {
        "input_ids": ids[:max_length],
        "labels": labels[:max_length],
        "length": min(len(ids), max_length),
        "answer_tokens": max(0, min(len(ids), max_length) - len(prompt)),
        "full_length": full_length,
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


def turn(row: Mapping[str, str]) -> str:
    """A question with its answer, as it stands before the next question."""
    return PROMPT.format(question=row[QUESTION]) + f" {row[ANSWER]}\n"


def _contexts(rows: Sequence[Mapping]) -> list[str]:
    """The earlier turns of each row's conversation, as they stand before its own prompt; empty for a first question."""
    by_id = {row[ID]: row for row in rows if row.get(ID) is not None}
    contexts = []
    for row in rows:
        turns = []
        while row := by_id.get(row.get(PARENT)):
            turns.append(turn(row))
        contexts.append("".join(reversed(turns)))
    return contexts


def _column_type(values: Sequence) -> "pa.DataType | None":
    """The Arrow type that holds all of `values`; None where none does, because their types are mixed."""
    import pyarrow as pa

    if all(isinstance(value, str) for value in values):  # most columns: no copy of a million answers to find out
        return pa.string()
    try:
        return pa.array(values).type
    except (pa.ArrowException, OverflowError):
        return None


def build_dataset(
    rows: Sequence[Mapping],
    parts: Mapping[str, Sequence[int]],
    tokenizer: "PreTrainedTokenizerBase",
    max_length: int,
    scratch: Path | None = None,
) -> "DatasetDict":
    """The parts as one DatasetDict with text, `context` (the earlier turns of a follow-up), labels and token columns.

    A column of mixed types, which Arrow cannot hold, is kept as JSON text. With a folder `scratch` everything goes to files in
    it, row by row, and not into memory: `save_dataset` copies them, and the folder can go.
    """
    import pyarrow as pa
    from datasets import Dataset, DatasetDict, Features, List, Value
    from datasets.arrow_writer import ArrowWriter

    names = dict.fromkeys(name for row in rows for name in row)
    types = {name: _column_type([row.get(name) for row in rows]) for name in names}
    schema = pa.schema([(name, kind or pa.string()) for name, kind in types.items()])
    made = {"input_ids": List(Value("int32")), "labels": List(Value("int32")), "truncated": Value("bool")}
    made |= dict.fromkeys(("length", "answer_tokens", "full_length"), Value("int32")) | {CONTEXT: Value("string")}
    features, contexts, result = Features(Features.from_arrow_schema(schema) | made), _contexts(rows), DatasetDict()
    mixed = [name for name, kind in types.items() if kind is None]
    for name, members in parts.items():
        target = str(scratch / f"{name}.arrow") if scratch else pa.BufferOutputStream()
        with ArrowWriter(features=features, **{"path" if scratch else "stream": target}) as writer:
            for i in members:
                row = {column: rows[i].get(column) for column in names} | {CONTEXT: contexts[i]}
                row |= {c: None if row[c] is None else json.dumps(row[c], ensure_ascii=False) for c in mixed}
                writer.write(row | tokenise(row, tokenizer, max_length))
            writer.finalize()
        result[name] = Dataset.from_file(target) if scratch else Dataset.from_buffer(target.getvalue())
    return result


def save_dataset(dataset: "DatasetDict", folder: Path, model: str) -> None:
    """Write beside `folder`, then swap, so that an interrupted save never leaves half a dataset in its place.

    `model`, whose tokens these are, is kept beside them: training takes its base from there.
    """
    with replacing(folder) as draft:
        dataset.save_to_disk(str(draft))
        (draft / PREPARED).write_text(json.dumps({"model": model}) + "\n", encoding="utf-8")


def load_parts(folder: Path) -> "DatasetDict":
    """The prepared parts, memory-mapped; raises FileNotFoundError that says which notebook makes them."""
    from datasets import load_from_disk

    if not (folder / "dataset_dict.json").exists():
        raise FileNotFoundError(f"{folder}: no prepared corpus; run notebooks/01_prepare_data.ipynb with this profile first")
    return load_from_disk(str(folder))


def read_terms() -> list[str]:
    """Technical terms of the field, as tracked in `data/raw/technical_terms.txt`."""
    return list(filter(None, (config.ROOT / config.TERMS).read_text(encoding="utf-8").splitlines()))


def term_density(texts: Sequence[str], terms: Sequence[str]) -> list[float]:
    """Technical terms per 100 words in each text. A term counts once per occurrence, the longest match first."""
    if not terms:
        return [0.0] * len(texts)
    alternatives = "|".join(re.escape(t) for t in sorted(terms, key=len, reverse=True))
    pattern = re.compile(rf"(?<!\w)(?:{alternatives})(?:s|es)?(?!\w)", re.I)
    return [100 * len(pattern.findall(text)) / max(1, len(text.split())) for text in texts]
