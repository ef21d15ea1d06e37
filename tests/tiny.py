"""Tiny rows, vectors and models for the tests: the real architecture and tokenizer code, small enough for a second."""

import itertools
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from interviewmate_utils import config, data, pretrain


def numbered(count: int, **columns: str) -> list[dict]:
    rows = [{"file": "f.jsonl", "line": 10 + i, "question": f"Question {i}?", "answer": f"Answer {i}."} for i in range(count)]
    return [row | columns for row in rows]


def unit_vectors(count: int, seed: int = 0, width: int = 16) -> np.ndarray:
    vectors = np.random.default_rng(seed).normal(size=(count, width)).astype(np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def corpus_rows(count: int) -> list[dict]:
    """Questions of the corpus with answers cut to 4 to 30 words, so that a batch holds very unequal lengths."""
    lines = (config.ROOT / "data" / "raw" / "interview_qa.jsonl").read_text(encoding="utf-8").splitlines()
    rows = [json.loads(line) for line in lines[: count * 4 : 4]]
    words = itertools.cycle((4, 30, 11, 19, 7, 26, 5))
    return [{"question": r["question"], "answer": " ".join(r["answer"].split()[: next(words)])} for r in rows]


def save_tiny(folder: Path, loudness: float = 6.0) -> Path:
    """A Falcon of 2 layers, saved with its tokenizer. `loudness` multiplies its fresh weights: an untrained model
    prefers all tokens alike, and would hide what disturbs it; this one has opinions that differ from word to word."""
    lines = (config.ROOT / "data" / "raw" / "interview_qa.jsonl").read_text(encoding="utf-8").splitlines()[:200]
    tokenizer = pretrain.train_tokenizer([data.PROMPT.format(**json.loads(line)) for line in lines], 500)
    model = pretrain.build_falcon(len(tokenizer), hidden=32, layers=2, heads=4, dropout=0.0, seed=0)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 2:
                parameter.mul_(loudness)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def parrot(tokenizer, script: Sequence[int]):
    """A Falcon that says `script` after a prompt and begins again whenever the prompt's last token comes: its attention and
    MLP add nothing, its embeddings are one-hot, and its head maps each token to the next. The tokens must differ."""
    from transformers import FalconConfig, FalconForCausalLM

    size = len(tokenizer)
    shape = {"vocab_size": size, "hidden_size": size, "num_hidden_layers": 1, "num_attention_heads": 1}
    model = FalconForCausalLM(
        FalconConfig(**shape, alibi=True, bias=True, multi_query=False, parallel_attn=False, tie_word_embeddings=False)
    )
    last = tokenizer(data.PROMPT.format(question="Why?"))["input_ids"][-1]
    assert len(set(script)) == len(script), "a bigram model cannot say a token twice with different successors"
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "dense" in name:
                parameter.zero_()
        model.transformer.word_embeddings.weight.copy_(torch.eye(size))
        model.lm_head.weight.zero_()
        for now, following in itertools.pairwise([last, *script]):
            model.lm_head.weight[following, now] = 1.0
    return model.eval()
