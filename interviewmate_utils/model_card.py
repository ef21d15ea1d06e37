"""Keep a pretrained model: weights, tokenizer, model card and the checksums by which a later reader knows them."""

import hashlib
import json
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import FalconForCausalLM, PreTrainedTokenizerFast


def save_build(model: "FalconForCausalLM", tokenizer: "PreTrainedTokenizerFast", folder: Path, record: dict) -> None:
    """Write weights (bf16 safetensors), tokenizer, `training.json`, the model card and SHA256SUMS into `folder`."""
    import copy

    import torch
    from transformers.utils import logging

    logging.disable_progress_bar()
    plain = copy.deepcopy(model).to(torch.bfloat16)
    plain.config.hidden_dropout = 0.0  # a fine-tuning run sets its own, in its adapter
    plain.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    (folder / "training.json").write_text(json.dumps(record, indent=1) + "\n")
    weights = hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()
    (folder / "README.md").write_text(_model_card(record, weights))
    files = sorted(p for p in folder.iterdir() if p.suffix in (".safetensors", ".json", ".md") and p.is_file())
    sums = [f"{hashlib.sha256(p.read_bytes()).hexdigest()}  {p.name}\n" for p in files]
    (folder / "SHA256SUMS").write_text("".join(sums))
    (folder / "checkpoint.pt").unlink(missing_ok=True)  # it served to resume, and the build is complete


def verify_build(folder: Path) -> list[str]:
    """Names of files in `folder` that are missing or differ from its SHA256SUMS; empty if all agree."""
    lines = (folder / "SHA256SUMS").read_text().splitlines()
    listed = [(digest, folder / name) for digest, name in (line.split("  ", 1) for line in lines)]
    return [p.name for digest, p in listed if not p.is_file() or hashlib.sha256(p.read_bytes()).hexdigest() != digest]


def _model_card(record: dict, weights: str) -> str:
    sources = "\n".join(
        f"| {row['package']} | {row['version']} | {row['licence']} | {row['words']:,} |" for row in record["sources"]
    )
    held = "; ".join(f"{name} {value:.4f}" for name, value in record["held_out_nats_per_char"].items())
    points = record["curve"][:: max(1, len(record["curve"]) // 10)] + record["curve"][-1:]
    curve = "\n".join(f"| {p['step']:,} | {p['tokens']:,} | {p['train_loss']:.3f} | {p['validation']:.4f} |" for p in points)
    licences = ", ".join(sorted({row["licence"] for row in record["sources"]}))
    recipe = "\n".join(f"- {name}: {value}" for name, value in record["recipe"].items())
    return f"""---
license: apache-2.0
language: en
library_name: transformers
---
# A small Falcon, pretrained on docstrings

{record["parameters"]:,} parameters in Falcon-RW-1B's architecture (ALiBi, fused `query_key_value`, sequential attention,
biases), with its own byte-level BPE of {record["vocab_size"]:,} tokens. It exists so that every notebook of InterviewMate
runs offline on two CPU cores.
**It shows the method; it is not a coach.** Its sentences are grammatical and shallow, and what they say about machine
learning is often wrong. Do not use it to advise anybody.

## Text

{record["words"]:,} words of prose from the docstrings of installed packages under permissive licences: no code, no
parameter lists, near-repeats removed (`interviewmate_utils/docstrings.py`). Nothing of the interview corpus.
The docstrings remain their authors' under the licences below; they are not redistributed here.

## Training

{record["steps"]:,} steps, {record["tokens"]:,} tokens read. SHA-256 of `model.safetensors`: `{weights}`; of all files:
`SHA256SUMS`. Every hundredth step is in `training.json`; the last row of the curve is the averaged model.

| step | tokens | training loss (nats per token) | held-out lines (nats per character) |
|---|---|---|---|
{curve}

{recipe}

## Held-out text

Nats per character on packages that were never trained on: {held}.

## Sources

Licences as the packages declare them: {licences}.

| package | version | licence as declared | words |
|---|---|---|---|
{sources}
"""
