"""What is trained: LoRA (Hu et al. 2021, arXiv 2106.09685) and its relatives through peft, counted and loaded."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from . import config, models

if TYPE_CHECKING:
    import torch
    from peft import PeftModel
    from transformers import PreTrainedModel

INITIALISERS = ("pissa", "olora")  # these change the base's weights, too, so their adapters are converted when saved
_IMPORTANCE = ("ipt", "exp_avg_ipt", "exp_avg_unc")  # of AdaLoRA's ranks, kept by peft's allocator
BASE = "base.json"  # in the folder of trained weights: what they were trained on


def require(variants: Sequence[str], device: str) -> None:
    """Raise ModelError if `variants` ask for what this machine lacks; called before any weights are loaded."""
    import importlib.util

    if "4bit" not in variants:
        return
    lacking = (
        [] if models.pick_device(device) == "cuda" else [f"a CUDA device (this machine trains on {models.pick_device(device)})"]
    )
    if not importlib.util.find_spec("bitsandbytes"):
        lacking.append("the package bitsandbytes (pip install bitsandbytes)")
    if lacking:
        raise models.ModelError(f"variants: 4bit (QLoRA) needs {' and '.join(lacking)}; without it, leave '4bit' out")


def add_lora(
    model: "PreTrainedModel",
    rank: int,
    alpha: int,
    dropout: float,
    target_modules: Sequence[str],
    variants: Sequence[str] = (),
    total_steps: int = 0,
) -> "PeftModel":
    """Wrap `model` with fresh adapters of the kind that `variants` (see `config.Variant`) name; none is plain LoRA.

    `dora` (Liu et al. 2024, arXiv 2402.09353), `rslora` (Kalajdzievski 2023, 2312.03732), `pissa` (Meng et al. 2024,
    2404.02948), `olora` (Büyükakyüz 2024, 2406.01775), `adalora` (Zhang et al. 2023, 2303.10512). The last starts at 1.5 times
    `rank`, shrinks to it on average between a tenth and half of `total_steps`, and so needs their number.

    Raises ValueError if a target module is not in the model (naming those that are) or the model is wrapped already,
    since a second wrapping would silently train an adapter inside an adapter.
    """
    import torch
    from peft import AdaLoraConfig, LoraConfig, PeftModel, get_peft_model

    if isinstance(model, PeftModel) or hasattr(model, "peft_config"):
        raise ValueError("the model already carries an adapter; load the base again before adding another")
    linear = sorted({name.split(".")[-1] for name, m in model.named_modules() if isinstance(m, torch.nn.Linear)} - {"lm_head"})
    if unknown := [name for name in target_modules if name not in linear]:
        raise ValueError(f"target_modules: {', '.join(unknown)} not in this model; its linear layers are {', '.join(linear)}")
    settings: dict[str, Any] = {"lora_alpha": alpha, "lora_dropout": dropout, "target_modules": [*target_modules]}
    settings |= {"task_type": "CAUSAL_LM", "use_rslora": "rslora" in variants}
    if "adalora" in variants:
        budget = {"init_r": -(-3 * rank // 2), "target_r": rank, "total_step": total_steps}
        budget |= {"tinit": total_steps // 10, "tfinal": total_steps // 2, "deltaT": max(1, total_steps // 100)}
        return get_peft_model(model, AdaLoraConfig(**settings, **budget))
    start = next((name for name in INITIALISERS if name in variants), True)
    return get_peft_model(model, LoraConfig(r=rank, use_dora="dora" in variants, init_lora_weights=start, **settings))


def adapt(model: "PreTrainedModel", p: config.TrainLora, total_steps: int = 0) -> "PreTrainedModel | PeftModel":
    """The model of run `p` before its first step: `model` with adapters, or with all weights trainable for `full`."""
    if "full" in p.variants:
        return model.requires_grad_(True)
    return add_lora(model, p.rank, p.alpha, p.dropout, p.target_modules, p.variants, total_steps)


def count_parameters(model: "torch.nn.Module") -> tuple[int, int]:
    """Trainable parameters, and all of them (adapter included)."""
    sizes = [(p.numel(), p.requires_grad) for p in model.parameters()]
    return sum(n for n, trainable in sizes if trainable), sum(n for n, _ in sizes)


def count_run(p: config.TrainLora, shape: dict | None = None) -> tuple[int, int]:
    """Trainable and all parameters of run `p` on its own base, or on a Falcon of `shape` (such as `models.FALCON_RW_1B`).

    Counted on the meta device: no weights, no memory. AdaLoRA counts as it starts.
    """
    import torch
    from transformers import FalconConfig

    plain = p.model_copy(update={"variants": [name for name in p.variants if name not in (*INITIALISERS, "4bit")]})
    model = models.outline(FalconConfig(**shape) if shape else models.load_config(p.model))
    with torch.device("meta"):
        return count_parameters(adapt(model, plain, total_steps=100))


def rank_state(model: "PeftModel") -> dict[str, Any]:
    """What an AdaLoRA adapter is at this step: weights at full rank, ranks given up, and how important each has been.

    peft saves the adapter at its present ranks and forgets the importance, so that a resumed run would choose others.
    """
    allocator = model.base_model.rankallocator
    return {
        "weights": {name: weight.detach() for name, weight in model.named_parameters() if "lora_" in name or "ranknum" in name},
        "pattern": model.peft_config["default"].rank_pattern,
        "importance": {name: getattr(allocator, name) for name in _IMPORTANCE},
    }


def restore_ranks(model: "PeftModel", state: dict[str, Any]) -> None:
    """The reverse of `rank_state`, in place."""
    import torch

    weights = dict(model.named_parameters())
    with torch.no_grad():
        for name, weight in state["weights"].items():
            weights[name].copy_(weight)
    model.peft_config["default"].rank_pattern = state["pattern"]
    for name in _IMPORTANCE:
        setattr(model.base_model.rankallocator, name, state["importance"][name])


def save_trained(
    model: Any, p: config.TrainLora, folder: Path, start: Path | None = None, weights: dict[str, Any] | None = None
) -> None:
    """Keep an adapter, or for `full` the whole model, in `folder`, with the base that it belongs to (BASE).

    Written beside it and then swapped, so that a reader never meets half of it and a failed save loses nothing. `start`
    holds the adapter as it was before training, which a PiSSA or OLoRA one is converted with into one for the plain base;
    `weights` are given where `model` itself holds only a share of them.
    """
    with config.replacing(folder) as draft:
        options: dict[str, Any] = {"path_initial_model_for_weight_conversion": str(start)} if start else {}
        options |= {"state_dict": weights} if weights is not None else {}
        if hasattr(model, "peft_config"):
            model.peft_config["default"].base_model_name_or_path = p.model
            options["save_embedding_layers"] = False  # else peft asks the hub whether the vocabulary has grown
        model.save_pretrained(str(draft), **options)
        (draft / BASE).write_text(json.dumps({"model": p.model, "weights": models.weights_digest(p.model)}) + "\n")


def load_trained(model: str, folder: Path, device: str = "auto") -> "PreTrainedModel":
    """What a run kept in `folder`: `model` with the adapter merged into it, or for `full` the trained model itself.

    Raises ModelError where there is nothing, what is there was trained on another base, or the base overflows the devices:
    with a part of the base on disk, peft would write its own names for the weights into the base's files.
    """
    from peft import PeftModel

    if not (folder / BASE).exists():
        raise models.ModelError(f"{folder}: no trained run; run notebooks/04_train_lora.ipynb with this profile and run first")
    base = json.loads((folder / BASE).read_text())
    if base["model"] != model:
        raise models.ModelError(
            f"{folder} was trained on {base['model']}, not on {model}; use that one, or train on {model} anew"
        )
    if base["weights"] != models.weights_digest(model):
        raise models.ModelError(
            f"{folder} was trained on other weights of {model} (SHA-256 {base['weights']}, now "
            f"{models.weights_digest(model)}); run 04_train_lora again"
        )
    if not (folder / "adapter_config.json").exists():
        return models.load_model(str(folder), device)
    loaded = models.load_model(model, device)
    if models.overflow(loaded):
        raise models.ModelError(f"{model} does not fit into the memory of the devices here; its adapter cannot be added to it")
    return PeftModel.from_pretrained(loaded, str(folder)).merge_and_unload()
