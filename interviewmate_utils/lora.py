"""LoRA training (Hu et al. 2021, arXiv 2106.09685) through peft and the Trainer, resumable after a kill."""

import json
import math
import shutil
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from . import config
from .data import collate

if TYPE_CHECKING:
    import pandas as pd
    import torch
    from peft import PeftModel
    from transformers import PreTrainedModel, Trainer

PATIENCE_EPOCHS = 3  # early stopping waits this long for a better validation loss


def add_lora(model: "PreTrainedModel", rank: int, alpha: int, dropout: float, target_modules: Sequence[str]) -> "PeftModel":
    """Wrap `model` with fresh LoRA matrices.

    Raises ValueError if a target module is not in the model (naming those that are) or the model is wrapped already,
    since a second wrapping would silently train an adapter inside an adapter.
    """
    import torch
    from peft import LoraConfig, PeftModel, get_peft_model

    if isinstance(model, PeftModel) or hasattr(model, "peft_config"):
        raise ValueError("the model already carries an adapter; load the base again before adding another")
    linear = sorted({name.split(".")[-1] for name, m in model.named_modules() if isinstance(m, torch.nn.Linear)} - {"lm_head"})
    if unknown := [name for name in target_modules if name not in linear]:
        raise ValueError(f"target_modules: {', '.join(unknown)} not in this model; its linear layers are {', '.join(linear)}")
    settings = LoraConfig(
        r=rank, lora_alpha=alpha, lora_dropout=dropout, target_modules=[*target_modules], task_type="CAUSAL_LM"
    )
    return get_peft_model(model, settings)


def count_parameters(model: "torch.nn.Module") -> tuple[int, int]:
    """Trainable parameters, and all of them (adapter included)."""
    sizes = [(p.numel(), p.requires_grad) for p in model.parameters()]
    return sum(n for n, trainable in sizes if trainable), sum(n for n, _ in sizes)


def full_size_counts(rank: int, target_modules: Sequence[str]) -> tuple[int, int]:
    """Trainable and all parameters of Falcon-RW-1B with LoRA, counted on the meta device: no weights, no memory."""
    import torch
    from transformers import FalconConfig, FalconForCausalLM

    from .models import FALCON_RW_1B

    with torch.device("meta"):
        model = FalconForCausalLM(FalconConfig(**FALCON_RW_1B))
    return count_parameters(add_lora(model, rank, rank, 0.0, target_modules))


def schedule(examples: int, epochs: float, batch_size: int, eval_steps: int) -> dict[str, int]:
    """Optimiser steps per epoch and in all, and how many evaluations without progress end the training."""
    per_epoch = math.ceil(examples / batch_size)
    return {
        "steps_per_epoch": per_epoch,
        "total_steps": math.ceil(per_epoch * epochs),
        "patience": max(1, PATIENCE_EPOCHS * per_epoch // eval_steps),
    }


def _last_complete_checkpoint(folder: Path) -> Path | None:
    """The newest checkpoint whose last-written file is whole; half-written ones, from a kill while saving, are removed."""
    for path in sorted(folder.glob("checkpoint-*"), key=lambda p: -int(p.name.split("-")[1])):
        try:
            json.loads((path / "trainer_state.json").read_text())
            return path
        except (OSError, ValueError):
            shutil.rmtree(path)
    return None


def train(trainer: "Trainer", identity: dict[str, Any]) -> int:
    """Train, going on from the last checkpoint of an interrupted run of the same `identity`.

    Returns the number of input tokens that had been read before, 0 for a run from its start.

    Checkpoints of a run with other parameters, data or model are removed first: resuming from them would mix two runs.
    """
    from peft import load_peft_weights, set_peft_model_state_dict
    from transformers import TrainerState

    folder = Path(trainer.args.output_dir)
    marker, wanted = folder / "identity.json", json.dumps(identity, sort_keys=True, default=str)
    if folder.exists() and (not marker.exists() or marker.read_text() != wanted):
        shutil.rmtree(folder)
    if not marker.exists():
        folder.mkdir(parents=True, exist_ok=True)
        marker.write_text(wanted)
    last = _last_complete_checkpoint(folder)
    state = TrainerState.load_from_json(str(last / "trainer_state.json")) if last else None
    if state and state.stateful_callbacks["TrainerControl"]["args"]["should_training_stop"]:
        trainer.state = state  # killed after the last step: the Trainer would train on beyond an early stop
        best = load_peft_weights(str(folder / f"checkpoint-{state.best_global_step}"), device="cpu")
        set_peft_model_state_dict(trainer.model, best)
    else:
        trainer.train(resume_from_checkpoint=str(last) if last else None)
    return int(state.num_input_tokens_seen) if state else 0


def make_trainer(model: "PeftModel", dataset: Any, p: config.TrainLora, pad_id: int, folder: Path) -> "Trainer":
    """A Trainer for run `p`: cosine schedule, clipping at 1.0, token-weighted validation loss, early stopping.

    Batches are grouped by length and the loss is normalised over the answer tokens of the whole batch, both whatever
    `micro_batch` is, so that it does not change the result.
    """
    import torch
    from transformers import EarlyStoppingCallback, Trainer, TrainerCallback, TrainingArguments
    from transformers.trainer_callback import PrinterCallback
    from transformers.trainer_pt_utils import LengthGroupedSampler

    from .answering import answer_loss

    plan = schedule(len(dataset["train"]), p.epochs, p.batch_size, p.eval_steps)
    keep = {"input_ids", "labels", "length"}
    parts = {name: part.remove_columns([c for c in part.column_names if c not in keep]) for name, part in dataset.items()}

    class EpochOrder(LengthGroupedSampler):
        """An order that follows from seed and epoch alone: the Trainer's own is drawn from the global random state, and a
        run resumed in a later epoch would see some examples twice and others never."""

        def set_epoch(self, epoch: int) -> None:
            self.generator = torch.Generator().manual_seed(10_000 * p.seed + epoch)

    class AnswerTrainer(Trainer):
        """Validation loss over all answer tokens: the Trainer's own is a mean of batch means."""

        def _get_train_sampler(self, *_: Any) -> EpochOrder:
            return EpochOrder(p.batch_size, lengths=list(parts["train"]["length"]))

        def evaluate(self, *_args: Any, metric_key_prefix: str = "eval", **_kwargs: Any) -> dict[str, float]:
            sums = answer_loss(self.model, self.eval_dataset, pad_id)
            metrics = {f"{metric_key_prefix}_loss": sum(s for s, _ in sums) / sum(n for _, n in sums)}
            self.log(metrics)
            self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
            return metrics

    class Lines(TrainerCallback):
        """One plain line per evaluation: bars store widget state in the report."""

        def on_train_begin(self, *_: Any, **__: Any) -> None:
            self.started = time.perf_counter()

        def on_evaluate(self, _args: Any, state: Any, _control: Any, metrics: dict, **_: Any) -> None:
            seconds = time.perf_counter() - self.started
            print(f"  step {state.global_step}/{state.max_steps}: validation loss {metrics['eval_loss']:.4f} ({seconds:.0f} s)")

    arguments = TrainingArguments(
        output_dir=str(folder),
        num_train_epochs=p.epochs,
        per_device_train_batch_size=p.micro_batch,
        gradient_accumulation_steps=p.batch_size // p.micro_batch,
        learning_rate=p.learning_rate,
        lr_scheduler_type="cosine",
        warmup_steps=p.warmup_steps,
        max_grad_norm=1.0,
        weight_decay=0.0,
        eval_strategy="steps",
        eval_steps=p.eval_steps,
        save_strategy="steps",
        save_steps=p.eval_steps,
        save_total_limit=2,
        load_best_model_at_end=True,
        metric_for_best_model="eval_loss",
        greater_is_better=False,
        logging_steps=math.gcd(5, p.eval_steps),  # none spans a checkpoint, so that a resumed run logs the same
        logging_nan_inf_filter=False,
        seed=p.seed,
        data_seed=p.seed,
        report_to="none",
        disable_tqdm=True,
        use_cpu=model.device.type == "cpu",
        dataloader_pin_memory=model.device.type == "cuda",
        remove_unused_columns=False,
        include_num_input_tokens_seen="non_padding",
    )
    trainer = AnswerTrainer(
        model=model,
        args=arguments,
        train_dataset=parts["train"],
        eval_dataset=parts["validation"],
        data_collator=lambda rows: collate(rows, pad_id),
        callbacks=[EarlyStoppingCallback(early_stopping_patience=plan["patience"]), Lines()],
    )
    trainer.remove_callback(PrinterCallback)
    return trainer


def history(trainer: "Trainer") -> "pd.DataFrame":
    """One row per logged step: step, epoch, train_loss, validation_loss, learning_rate, gradient_norm."""
    import pandas as pd

    names = {"loss": "train_loss", "eval_loss": "validation_loss", "grad_norm": "gradient_norm"}
    columns = ["step", "epoch", "train_loss", "validation_loss", "learning_rate", "gradient_norm"]
    rows: dict[int, dict] = {}
    for entry in trainer.state.log_history:
        kept = {names.get(k, k): v for k, v in entry.items() if k in ("epoch", "learning_rate", *names)}
        rows.setdefault(entry["step"], {"step": entry["step"]}).update(kept)
    return pd.DataFrame([rows[step] for step in sorted(rows)], columns=columns)


def epoch_table(log: "pd.DataFrame") -> "pd.DataFrame":
    """Per epoch: mean training loss, last validation loss and last learning rate."""
    numbered = log.assign(epoch=log["epoch"].sub(1e-9).astype(int) + 1)
    return numbered.groupby("epoch").agg(
        train_loss=("train_loss", "mean"), validation_loss=("validation_loss", "last"), learning_rate=("learning_rate", "last")
    )


def save_adapter(model: "PeftModel", folder: Path) -> None:
    """Write beside `folder`, then swap, so that a reader never meets half an adapter and a failed save loses none."""
    with config.replacing(folder) as draft:
        model.save_pretrained(str(draft))


def discard_checkpoints(folder: Path) -> None:
    """Remove the checkpoints of a run whose adapter is kept: they serve interrupted runs alone."""
    shutil.rmtree(folder, ignore_errors=True)
