"""Load causal language models, local or from the Hugging Face hub, and generate with them.

`python -m interviewmate_utils.models MODEL FOLDER` converts a checkpoint that has no safetensors, once.
"""

import re
import shutil
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from . import config
from .data import IGNORED, PROMPT, collate

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

# tiiuae/falcon-rw-1b's own configuration, for counting on the meta device where the hub is out of reach
FALCON_RW_1B = {
    "vocab_size": 50304,
    "hidden_size": 2048,
    "num_hidden_layers": 24,
    "num_attention_heads": 32,
    "alibi": True,
    "bias": True,
    "multi_query": False,
    "parallel_attn": False,
    "new_decoder_architecture": False,
}


NEXT_QUESTION = "\nQuestion:"  # where a model goes on after its answer with a question of its own


class ModelError(RuntimeError):
    """A model that cannot be loaded; the text says why and what to do."""


def pick_device(wanted: str = "auto") -> str:
    """`auto` is cuda, else mps, else cpu. Raises ModelError if a named device is not there."""
    import torch

    present = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if wanted == "auto":
        return next(name for name, here in present.items() if here)
    if not present.get(wanted):
        raise ModelError(f"device '{wanted}' is not available here; there is {', '.join(k for k, v in present.items() if v)}")
    return wanted


def pick_dtype(device: str, hidden_size: int) -> "torch.dtype":
    """bfloat16 where this device runs it faster, else float32; a rule, not a timing, so that a resumed run agrees.

    On a CPU with bf16 instructions a full-size Falcon-RW-1B LoRA step runs three times as fast in bf16; below a hidden
    size of 1,024 the casts eat the gain.
    """
    import torch

    if device == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float32
    if device == "cpu":
        has_bf16 = any(getattr(torch.cpu, name, bool)() for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported"))
        return torch.bfloat16 if has_bf16 and hidden_size >= 1024 else torch.float32
    return torch.bfloat16 if hidden_size >= 1024 else torch.float32


def locate(model: str) -> tuple[str, dict[str, str]]:
    """`data/models/embedded`, another folder, or `owner/name@revision` -> what `from_pretrained` takes."""
    name, at, revision = model.partition("@")
    folder = config.ROOT / name
    if name and folder.is_dir():
        return str(folder), {}
    if name.startswith(("data/", "reports/", ".", "/")):
        raise ModelError(f"{name}: no such folder")
    if not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", name) or (at and not revision):
        raise ModelError(f"{model!r} is neither a folder nor a Hugging Face id (owner/name, or owner/name@revision)")
    return name, {"revision": revision} if revision else {}


def _load(loader: Callable, model: str, hint: str = "", **options: Any) -> Any:
    from transformers.utils import logging

    logging.disable_progress_bar()  # its lines would stand in every report
    name, revision = locate(model)
    online = "" if Path(name).is_dir() else " A Hugging Face id needs a network once, or a filled cache with HF_HUB_OFFLINE=1."
    try:  # without `trust_remote_code=False` transformers asks on the terminal whether to run a repository's code
        return loader(name, **revision, trust_remote_code=False, **options)
    except Exception as error:  # every file format has an error of its own
        reason = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
        raise ModelError(f"{model}: cannot be loaded ({reason}).{online}{hint}") from error


def load_tokenizer(model: str) -> "PreTrainedTokenizerBase":
    """The model's own tokenizer, padding on the left for generation with its end-of-text token where it has no other."""
    from transformers import AutoTokenizer

    tokenizer = _load(AutoTokenizer.from_pretrained, model)
    tokenizer.padding_side = "left"
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def load_model(model: str, device: str = "auto") -> "PreTrainedModel":
    """A causal model on its device, in the data type that the device runs fastest. Safetensors only, no remote code."""
    from transformers import AutoConfig, AutoModelForCausalLM

    device = pick_device(device)
    hidden = _load(AutoConfig.from_pretrained, model).get_text_config().hidden_size
    folder = f"data/models/{model.partition('@')[0].rstrip('/').rpartition('/')[2]}"
    hint = " Weights are read from safetensors only. If there is only a pytorch_model.bin, convert it once, with "
    hint += f"python -m interviewmate_utils.models {model} {folder} and then name that folder as `model`."
    options = {"dtype": pick_dtype(device, hidden), "use_safetensors": True}
    return _load(AutoModelForCausalLM.from_pretrained, model, hint, **options).to(device)


def convert_to_safetensors(model: str, folder: Path) -> None:
    """Write `model`, whose weights are pickled (pytorch_model.bin), and its tokenizer into `folder` as safetensors.

    torch reads tensors alone from the pickle and runs none of its code. The weights keep their data type.
    """
    from transformers import AutoModelForCausalLM

    loaded = _load(AutoModelForCausalLM.from_pretrained, model, use_safetensors=False, weights_only=True, dtype="auto")
    tokenizer = load_tokenizer(model)
    draft = folder.with_name(f".{folder.name}.new")
    shutil.rmtree(draft, ignore_errors=True)
    loaded.save_pretrained(draft)
    tokenizer.save_pretrained(draft)
    shutil.rmtree(folder, ignore_errors=True)
    draft.rename(folder)


def load_adapted(model: str, adapter: Path, device: str = "auto") -> "PreTrainedModel":
    """The base model with a LoRA adapter merged into it, so that generation costs no more than the base."""
    from peft import PeftModel

    if not (adapter / "adapter_model.safetensors").exists():
        raise ModelError(f"{adapter}: no adapter; run notebooks/04_train_lora.ipynb with this profile and run first")
    return PeftModel.from_pretrained(load_model(model, device), str(adapter)).merge_and_unload()


def _options(
    tokenizer: "PreTrainedTokenizerBase", width: int, max_new_tokens: int, repetition_penalty: float
) -> dict[str, Any]:
    """Greedy generation after a prompt of `width` tokens, whose repetition is not penalised: an answer may well take up a
    word of its question, and in a batch the padding, which is the end-of-text token, would count as said."""
    from transformers import LogitsProcessorList, RepetitionPenaltyLogitsProcessor

    penalty = RepetitionPenaltyLogitsProcessor(float(repetition_penalty), prompt_ignore_length=width)
    options = {"max_new_tokens": max_new_tokens, "do_sample": False, "logits_processor": LogitsProcessorList([penalty])}
    options |= {"eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id}
    return options | {"stop_strings": [NEXT_QUESTION], "tokenizer": tokenizer}


def generate_answers(
    model: "PreTrainedModel",
    tokenizer: "PreTrainedTokenizerBase",
    questions: Sequence[str],
    max_new_tokens: int,
    batch_size: int,
    repetition_penalty: float = 1.0,
    report: Callable[[str], None] = print,
) -> list[str]:
    """Greedy answers in the order of `questions`; batches of similar length share one KV cache.

    An answer ends at the end-of-text token, at `max_new_tokens`, or where the model starts a question of its own.
    """
    import torch

    model.eval()
    order = sorted(range(len(questions)), key=lambda i: len(questions[i]))
    answers = [""] * len(questions)
    for start in range(0, len(order), batch_size):
        chosen = order[start : start + batch_size]
        batch = tokenizer([PROMPT.format(question=questions[i]) for i in chosen], return_tensors="pt", padding=True)
        batch = {name: batch[name].to(model.device) for name in ("input_ids", "attention_mask")}
        width = batch["input_ids"].shape[1]
        with torch.inference_mode():
            out = model.generate(**batch, **_options(tokenizer, width, max_new_tokens, repetition_penalty))
        texts = tokenizer.batch_decode(out[:, width:], skip_special_tokens=True)
        for i, text in zip(chosen, texts, strict=True):
            answers[i] = text.split(NEXT_QUESTION)[0].strip()
        report(f"  {min(start + batch_size, len(order))}/{len(order)} answers")
    return answers


def stream_answer(
    model: "PreTrainedModel",
    tokenizer: "PreTrainedTokenizerBase",
    question: str,
    max_new_tokens: int,
    repetition_penalty: float,
) -> Iterator[str]:
    """The answer to one question, piece by piece as it is generated; joined, the one that `generate_answers` gives."""
    import threading

    from transformers import TextIteratorStreamer

    streamer = TextIteratorStreamer(tokenizer, skip_prompt=True, skip_special_tokens=True)
    batch = tokenizer(PROMPT.format(question=question), return_tensors="pt").to(model.device)
    batch = {name: batch[name] for name in ("input_ids", "attention_mask")}
    options = _options(tokenizer, batch["input_ids"].shape[1], max_new_tokens, repetition_penalty)
    failures: list[Exception] = []

    def generate() -> None:
        try:
            model.eval().generate(**batch, **options, streamer=streamer)
        except Exception as error:
            failures.append(error)
            streamer.end()  # else the reader would wait for ever

    threading.Thread(target=generate, daemon=True).start()
    text, shown = "", 0
    for piece in streamer:
        text += piece
        held = next(n for n in range(len(NEXT_QUESTION) - 1, -1, -1) if text.endswith(NEXT_QUESTION[:n]))  # perhaps its start
        ready = text[: len(text) - held].split(NEXT_QUESTION)[0].strip()
        yield ready[shown:]
        shown = max(shown, len(ready))
    if failures:
        raise failures[0]
    yield text.split(NEXT_QUESTION)[0].strip()[shown:]


def answer_loss(model: "PreTrainedModel", rows: Sequence[dict], pad_id: int, batch_size: int = 8) -> list[tuple[float, int]]:
    """Per row, the summed cross-entropy (nats) and the number of its labelled tokens, in the order of `rows`.

    The mean loss of a set is the sum of the first over the sum of the second; its exponential is the perplexity.
    """
    import torch

    model.eval()
    order = sorted(range(len(rows)), key=lambda i: len(rows[i]["input_ids"]))
    result: list[tuple[float, int]] = [(0.0, 0)] * len(rows)
    for start in range(0, len(order), batch_size):
        chosen = order[start : start + batch_size]
        batch = {k: v.to(model.device) for k, v in collate([rows[i] for i in chosen], pad_id).items()}
        labels = batch.pop("labels")[:, 1:]
        with torch.inference_mode():
            logits = model(**batch).logits[:, :-1].float()
        losses = torch.nn.functional.cross_entropy(logits.transpose(1, 2), labels, reduction="none", ignore_index=IGNORED)
        counts = (labels != IGNORED).sum(1)
        for i, loss, count in zip(chosen, losses.sum(1).tolist(), counts.tolist(), strict=True):
            result[i] = (loss, count)
    return result


def main(arguments: Sequence[str] | None = None) -> int:
    """Convert a checkpoint to safetensors. Exit code 2 says why it cannot be."""
    import argparse

    parser = argparse.ArgumentParser(prog="python -m interviewmate_utils.models", description=main.__doc__)
    parser.add_argument("model", help="a folder, or owner/name@revision, that holds pytorch_model.bin")
    parser.add_argument("folder", type=Path, help="where to write it, such as data/models/NAME")
    chosen = parser.parse_args(arguments)
    try:
        convert_to_safetensors(chosen.model, chosen.folder)
    except ModelError as error:
        print(error, file=sys.stderr)
        return 2
    print(f"Written to {chosen.folder}. Name it in a profile: `model: {chosen.folder}`")
    return 0


if __name__ == "__main__":
    sys.exit(main())
