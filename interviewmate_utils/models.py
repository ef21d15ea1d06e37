"""Load causal language models, local or from the Hugging Face hub, and generate with them.

`python -m interviewmate_utils.models MODEL` converts a checkpoint that has no safetensors, once.
"""

import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from . import config

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

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

FILLED = 0.8  # share of a device's free memory that weights may take; the rest is for what is computed with them
ORIGIN = "converted_from"  # in a converted folder: the id and revision that it was made of


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


def peak_memory_gb(device: str) -> float:
    """Most memory that this process has held so far, in GB: on CUDA the tensors' peak, on MPS what the driver holds now,
    on a CPU the resident set's peak, the libraries included."""
    import resource

    import torch

    if device == "cuda":
        return torch.cuda.max_memory_allocated() / 1e9
    if device == "mps":
        return torch.mps.driver_allocated_memory() / 1e9
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024) / 1e9


def free_bytes(device: str) -> int:
    """Memory that can still be taken: of the current CUDA device, of what MPS advises, or of the machine.

    What torch holds but does not use counts as free, and models that nobody uses any more are given up first.
    """
    import gc

    import psutil
    import torch

    gc.collect()
    if device == "cuda":
        return torch.cuda.mem_get_info()[0] + torch.cuda.memory_reserved() - torch.cuda.memory_allocated()
    if device == "mps":
        return torch.mps.recommended_max_memory() - torch.mps.current_allocated_memory()
    return psutil.virtual_memory().available


def converted_folder(model: str) -> Path:
    """Where the converted copy of a Hugging Face id lies, and is found: `data/models/falcon-rw-1b`."""
    return config.ROOT / "data" / "models" / model.partition("@")[0].rpartition("/")[2]


def locate(model: str) -> tuple[str, dict[str, str]]:
    """`data/models/embedded`, another folder, or `owner/name@revision` -> what `from_pretrained` takes."""
    name, at, revision = model.partition("@")
    folder = config.ROOT / name
    if name and folder.is_dir():
        return str(folder), {}
    if name.startswith(("data/", "reports/", ".", "/")):
        raise ModelError(f"{name}: no such folder")
    converted = converted_folder(model)
    if (converted / ORIGIN).exists() and (converted / ORIGIN).read_text().strip() == model:
        return str(converted), {}
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


def load_config(model: str) -> "PreTrainedConfig":
    """The model's configuration, without its weights."""
    from transformers import AutoConfig

    return _load(AutoConfig.from_pretrained, model)


def outline(settings: "PreTrainedConfig", dtype: "torch.dtype | None" = None) -> "PreTrainedModel":
    """The causal model that `settings` describe with every weight on the meta device: shapes and types, no memory."""
    import torch
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(settings, dtype=dtype or torch.float32)


def weights_digest(model: str) -> str:
    """What tells a folder's weights from others of the same name; empty for a Hugging Face id, whose revision does that."""
    folder = Path(locate(model)[0])
    return config.digest_of([config.digest(file) for file in sorted(folder.glob("*.safetensors"))]) if folder.is_dir() else ""


def load_model(model: str, device: str = "auto", **options: Any) -> "PreTrainedModel":
    """A causal model on its device, in the data type that the device runs fastest. Safetensors only, no remote code.

    A model whose weights would fill more than FILLED of the device's free memory is spread (`device_map="auto"`) over all
    CUDA devices, then over main memory and disk, from where it can be read but not trained. `options` go to
    `from_pretrained` and win: `dtype`, `quantization_config`, `device_map`. Raises ModelError, also for a checkpoint that
    lacks some of the model's weights, which would otherwise be drawn at random.
    """
    from transformers import AutoModelForCausalLM

    device = pick_device(device)
    hint = " Weights are read from safetensors only. If there is only a pytorch_model.bin, convert it once, with "
    hint += f"{sys.executable} -m interviewmate_utils.models {model} and then run the same again."
    settings = load_config(model)
    options = {"dtype": pick_dtype(device, settings.get_text_config().hidden_size)} | options
    if "device_map" not in options:
        size, free = outline(settings, options["dtype"]).get_memory_footprint(), free_bytes(device)
        if size > FILLED * free:
            print(f"  {model}: {size / 1e9:.1f} GB of weights, more than fits into {free / 1e9:.1f} GB: spread")
            options["device_map"] = "auto"
            options |= {"max_memory": {"cpu": int(FILLED * free)}} if device == "cpu" else {}  # though there may be a GPU
    loaded, found = _load(
        AutoModelForCausalLM.from_pretrained, model, hint, use_safetensors=True, output_loading_info=True, **options
    )
    if lacking := sorted(found["missing_keys"]):
        some = ", ".join(lacking[:3]) + (", ..." if len(lacking) > 3 else "")
        raise ModelError(
            f"{model}: the checkpoint lacks {len(lacking)} of the model's weights ({some}); it is of another model"
        )
    return loaded if "device_map" in options else loaded.to(device)


def overflow(model: "PreTrainedModel") -> list[str]:
    """Modules of a spread model that lie in main memory or on disk though the model computes elsewhere."""
    places = getattr(model, "hf_device_map", {})
    return [name for name, place in places.items() if place == "disk" or (place == "cpu" and model.device.type != "cpu")]


def convert_to_safetensors(model: str, folder: Path) -> None:
    """Write `model`, whose weights are pickled (pytorch_model.bin), and its tokenizer into `folder` as safetensors.

    torch reads tensors alone from the pickle and runs none of its code. The weights keep their data type.
    """
    from transformers import AutoModelForCausalLM

    loaded = _load(AutoModelForCausalLM.from_pretrained, model, use_safetensors=False, weights_only=True, dtype="auto")
    tokenizer = load_tokenizer(model)
    with config.replacing(folder) as draft:
        loaded.save_pretrained(draft)
        tokenizer.save_pretrained(draft)
        (draft / ORIGIN).write_text(f"{model}\n")


def main(arguments: Sequence[str] | None = None) -> int:
    """Convert a checkpoint to safetensors. Exit code 2 says why it cannot be."""
    import argparse

    parser = argparse.ArgumentParser(prog="python -m interviewmate_utils.models", description=main.__doc__)
    parser.add_argument("model", help="a folder, or owner/name@revision, that holds pytorch_model.bin")
    chosen = parser.parse_args(arguments)
    folder = converted_folder(chosen.model)
    try:
        convert_to_safetensors(chosen.model, folder)
    except ModelError as error:
        print(error, file=sys.stderr)
        return 2
    print(f"Written to {folder}, where `model: {chosen.model}` finds it.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
