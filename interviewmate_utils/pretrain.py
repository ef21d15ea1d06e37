"""Pretrain the embedded default: a small Falcon with Falcon-RW-1B's architecture, from scratch, on two CPU cores.

Muon for the matrices and AdamW for embeddings, biases and norms, in bf16 autocast. The text is short and read several
times, so the model is regularised: dropout, weight decay and averaged weights (on regularisation where text is the limit
see Kim et al. 2025, arXiv 2509.14786).
"""

import math
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from .answering import answer_loss
from .config import digest_of
from .data import IGNORED

if TYPE_CHECKING:
    import torch
    from transformers import FalconForCausalLM, PreTrainedTokenizerFast

END_OF_TEXT = "<|endoftext|>"


def train_tokenizer(documents: Sequence[str], vocab_size: int, max_length: int = 1024) -> "PreTrainedTokenizerFast":
    """Byte-level BPE (Radford et al. 2019) with one special token; like Falcon-RW-1B's it has no padding token."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size, special_tokens=[END_OF_TEXT], initial_alphabet=alphabet, show_progress=False
    )
    bpe.train_from_iterator(documents, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=bpe, eos_token=END_OF_TEXT, model_max_length=max_length)


def build_falcon(vocab_size: int, hidden: int, layers: int, heads: int, dropout: float, seed: int) -> "FalconForCausalLM":
    """Falcon-RW-1B's architecture at another size: ALiBi, fused `query_key_value`, biases, sequential attention.

    Attention dropout stays 0: with it the CPU has no fused attention kernel.
    """
    import torch
    from transformers import FalconConfig, FalconForCausalLM

    torch.manual_seed(seed)
    config = FalconConfig(
        vocab_size=vocab_size,
        hidden_size=hidden,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        alibi=True,
        bias=True,
        multi_query=False,
        parallel_attn=False,
        new_decoder_architecture=False,
        hidden_dropout=dropout,
        attention_dropout=0.0,
        bos_token_id=0,
        eos_token_id=0,
    )
    return FalconForCausalLM(config)


def encode_documents(tokenizer: "PreTrainedTokenizerFast", documents: Sequence[str]) -> list[list[int]]:
    """Token ids of each document, closed by the end-of-text token."""
    ids = tokenizer(list(documents), add_special_tokens=False, verbose=False)["input_ids"]
    return [[*row, tokenizer.eos_token_id] for row in ids]


def _batch(documents: list[list[int]], step: int, batch: int, length: int, seed: int, cache: dict) -> "torch.Tensor":
    """Batch number `step`, (batch, length): documents reshuffled each epoch, packed end to end. Depends on step alone."""
    import torch

    per_epoch = sum(map(len, documents)) // (batch * length)
    if per_epoch == 0:
        total = sum(map(len, documents))
        raise ValueError(f"{total:,} tokens do not fill one batch of {batch} x {length}; add packages or shrink the batch")
    epoch, index = divmod(step, per_epoch)
    if cache.get("epoch") != epoch:
        order = torch.randperm(len(documents), generator=torch.Generator().manual_seed(seed + epoch))
        flat = [token for i in order.tolist() for token in documents[i]][: per_epoch * batch * length]
        cache.update(epoch=epoch, rows=torch.tensor(flat).view(per_epoch, batch, length))
    return cache["rows"][index]


def nats_per_character(model: "FalconForCausalLM", tokenizer: "PreTrainedTokenizerFast", documents: Sequence[str]) -> float:
    """Cross-entropy of `documents` in nats per character, each document read on its own, its end not counted.

    Per character, so that models with different vocabularies compare (bits per byte in other units). A document of more
    than 1,023 tokens is read in pieces of that length, each on its own, so that every character counted is also read.
    """
    encoded = tokenizer(list(documents), add_special_tokens=False, verbose=False)["input_ids"]
    pieces = [[tokenizer.eos_token_id, *ids[i : i + 1023]] for ids in encoded for i in range(0, len(ids), 1023)]
    rows = [{"input_ids": piece, "labels": [IGNORED, *piece[1:]]} for piece in pieces]
    return sum(loss for loss, _ in answer_loss(model, rows, tokenizer.eos_token_id)) / sum(map(len, documents))


def pretrain(
    model: "FalconForCausalLM",
    documents: list[list[int]],
    *,
    steps: int,
    batch: int,
    length: int,
    muon_lr: float,
    adam_lr: float,
    weight_decay: float,
    seed: int,
    average_from: float = 0.0,
    checkpoint: Path | None = None,
    validate: Callable[["FalconForCausalLM"], float] | None = None,
    every: int = 100,
    report: Callable[[dict], None] = print,
) -> list[dict]:
    """Train in place for `steps` batches of (batch, length) tokens; return the curve, one row every `every` steps.

    The rate warms up over 3 % of the steps, then falls linearly to zero. `average_from` > 0 replaces the weights at the
    end by their exponential average (horizon 4 % of the steps) begun at that fraction of the run. `checkpoint` is
    written every `every` steps, atomically, and resumed from when it exists and belongs to the same documents,
    architecture and recipe; another one is replaced by a fresh start. Rows hold step, tokens, train_loss (nats
    per token), validation (what `validate` returns) and tokens_per_s.
    """
    import torch

    matrices = [p for n, p in model.named_parameters() if p.ndim == 2 and "word_embeddings" not in n]
    others = [p for n, p in model.named_parameters() if p.ndim != 2 or "word_embeddings" in n]
    optimizers = [
        torch.optim.Muon(matrices, lr=muon_lr, weight_decay=weight_decay, momentum=0.95),
        torch.optim.AdamW(others, lr=adam_lr, betas=(0.9, 0.95), weight_decay=0.0),
    ]
    peaks, warmup, cache, curve, first = (muon_lr, adam_lr), max(1, round(0.03 * steps)), {}, [], 0
    mean = torch.optim.swa_utils.AveragedModel(
        model, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(1 - 1 / max(2, 0.04 * steps))
    )
    torch.manual_seed(seed)
    settings = [steps, batch, length, muon_lr, adam_lr, weight_decay, seed, average_from, model.config.to_dict()]
    recipe = digest_of([*settings, documents])
    state = torch.load(checkpoint, weights_only=True) if checkpoint and checkpoint.exists() else None
    if state and state.get("recipe", recipe) == recipe:
        model.load_state_dict(state["model"])
        mean.load_state_dict(state["mean"])
        for optimizer, saved in zip(optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
        torch.set_rng_state(state["rng"])
        first, curve = state["step"], state["curve"]
    losses, started = [], time.perf_counter()
    for step in range(first, steps):
        model.train()
        scale = min((step + 1) / warmup, (steps - step) / max(1, steps - warmup))
        for optimizer, peak in zip(optimizers, peaks, strict=True):
            optimizer.param_groups[0]["lr"] = peak * scale
        ids = _batch(documents, step, batch, length, seed, cache)
        parts = ids.split(8)  # small parts stay in the cache: 6,800 against 3,400 tokens/s on two cores
        loss = 0.0
        for part in parts:
            with torch.autocast("cpu", torch.bfloat16):
                logits = model(input_ids=part, use_cache=False).logits
            share = torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1).float(), part[:, 1:].flatten())
            (share * len(part) / len(ids)).backward()
            loss += share.item() * len(part) / len(ids)
        torch.nn.utils.clip_grad_norm_(others, 1.0)
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
        if average_from and step >= min(average_from * steps, steps - 1):
            mean.update_parameters(model)
        losses.append(loss)
        if (step + 1) % every == 0 or step + 1 == steps:
            speed = len(losses) * batch * length / (time.perf_counter() - started)
            if average_from and step + 1 == steps:
                model.load_state_dict(mean.module.state_dict())
            row = {"step": step + 1, "tokens": (step + 1) * batch * length, "train_loss": sum(losses) / len(losses)}
            row |= {"validation": validate(model) if validate else math.nan, "tokens_per_s": speed}
            curve.append(row)
            report(row)
            if checkpoint:
                state = {"model": model.state_dict(), "mean": mean.state_dict(), "step": step + 1, "curve": curve}
                state |= {"optimizers": [o.state_dict() for o in optimizers], "rng": torch.get_rng_state(), "recipe": recipe}
                torch.save(state, checkpoint.with_suffix(".tmp"))
                checkpoint.with_suffix(".tmp").replace(checkpoint)
            losses, started = [], time.perf_counter()
    return curve
