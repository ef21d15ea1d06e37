"""How a run is trained: through the Trainer, in one process or several, resumable after a kill, stopping at faults.

`python -m interviewmate_utils.training PARAMETERS ROOT` is one of several processes that `train` starts for itself.
"""

import contextlib
import json
import math
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from . import config, data, lora, models
from .answering import answer_loss

if TYPE_CHECKING:
    import pandas as pd
    import torch
    from transformers import Trainer

EVALUATIONS_PER_EPOCH = 2  # each with a checkpoint
PATIENCE_EPOCHS = 3  # early stopping waits this long for a better validation loss
TOKENS = {"cpu": 1_536, "mps": 4_096, "cuda": 16_384}  # most tokens, padding included, of one forward pass
RECORD = "training.json"  # in the folder of trained weights: how they came about
_CHECKSUMS = "checksums.json"  # in a checkpoint, written last: what its files must be


class TrainingError(RuntimeError):
    """A training that cannot go on; the text says where it stopped, what is kept and what to change."""


class DivergedError(TrainingError):
    """The loss or a gradient is no longer a number: these parameters cannot be trained with."""


def schedule(examples: int, epochs: float, batch_size: int) -> dict[str, int]:
    """Optimiser steps per epoch and in all, steps between evaluations, and how many evaluations without progress end it."""
    per_epoch = math.ceil(examples / batch_size)
    between = math.ceil(per_epoch / EVALUATIONS_PER_EPOCH)
    total = math.ceil(per_epoch * epochs)
    patience = PATIENCE_EPOCHS * EVALUATIONS_PER_EPOCH
    return {"steps_per_epoch": per_epoch, "total_steps": total, "eval_steps": min(between, total), "patience": patience}


def in_parts(lengths: Sequence[int], tokens: int, padded: bool) -> list[list[int]]:
    """Positions of rows in parts of at most `tokens` tokens, at least a row each, alike in length.

    Where rows are padded to the longest of their part, the padding counts.
    """
    parts: list[list[int]] = []
    for i in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        size = (lengths[parts[-1][0]] * len(parts[-1]) if padded else sum(lengths[j] for j in parts[-1])) if parts else tokens
        if size + lengths[parts[-1][0] if parts and padded else i] <= tokens:
            parts[-1].append(i)
        else:
            parts.append([i])
    return parts


def make_trainer(model: Any, dataset: Any, p: config.TrainLora, pad_id: int, folder: Path) -> "Trainer":
    """A Trainer for run `p`: cosine schedule, clipping at 1.0, token-weighted validation loss, early stopping.

    A batch goes through the model in parts that fit into memory (TOKENS; halved when they do not); its loss is normalised
    over the answer tokens of the whole batch, so that the parts do not change the result.
    """
    import torch
    from safetensors import SafetensorError
    from transformers import EarlyStoppingCallback, Trainer, TrainerCallback, TrainingArguments
    from transformers.trainer_callback import PrinterCallback
    from transformers.trainer_pt_utils import LengthGroupedSampler

    from . import packing

    hardware, plan = p.hardware, schedule(len(dataset["train"]), p.epochs, p.batch_size)
    keep = {"input_ids", "labels", "length"}
    parts = {name: part.remove_columns([c for c in part.column_names if c not in keep]) for name, part in dataset.items()}
    rows = len(parts["train"])
    # processes share a batch equally: the last one of an epoch is filled up with a row that has nothing to learn from
    blank = -rows % p.batch_size if hardware.processes > 1 else 0
    if blank:
        parts["train"] = parts["train"].add_item({"input_ids": [pad_id], "labels": [data.IGNORED], "length": 1})
    parts["train"] = parts["train"].add_column("row", range(len(parts["train"])))
    named = [*(dataset["train"]["id"] if "id" in dataset["train"].column_names else range(rows)), "none"]

    # AdaLoRA adds to its loss in its own forward pass; several processes need that of their wrapper
    packed = hardware.processes == 1 and not hardware.fsdp and "adalora" not in p.variants and packing.supports(model)

    class EpochOrder(LengthGroupedSampler):
        """An order that follows from seed and epoch alone: the Trainer's own is drawn from the global random state, and a
        run resumed in a later epoch would see some examples twice and others never."""

        def set_epoch(self, epoch: int) -> None:
            self.generator = torch.Generator().manual_seed(10_000 * p.seed + epoch)

        def __iter__(self) -> Iterator[int]:
            yield from super().__iter__()
            yield from [rows] * blank

        def __len__(self) -> int:
            return rows + blank

    class AnswerTrainer(Trainer):
        tokens = TOKENS[model.device.type]

        def _get_train_sampler(self, *_: Any) -> EpochOrder:
            return EpochOrder(p.batch_size, lengths=list(parts["train"]["length"])[:rows])

        def training_step(self, model: Any, inputs: dict, num_items_in_batch: "torch.Tensor | None" = None) -> "torch.Tensor":
            model.train()
            inputs = self._prepare_inputs(inputs)
            batch = [named[i] for i in inputs.pop("row").tolist()]
            while True:
                try:
                    loss = self._backward(model, inputs, num_items_in_batch)
                    break
                except RuntimeError as error:  # CUDA has a class of its own for it, the CPU's allocator only a text
                    if not isinstance(error, torch.OutOfMemoryError) and "can't allocate memory" not in str(error):
                        raise
                    self._make_room(inputs, error)
            if not math.isfinite(loss):
                self._stop_at(f"the loss is {loss.item()}", batch)
            if not all(q.grad is None or q.grad.isfinite().all() for q in model.parameters()):
                self._stop_at("a gradient is not finite", batch)
            return loss

        def _backward(self, model: Any, inputs: dict, count: "torch.Tensor") -> "torch.Tensor":
            ids, labels, mask = inputs["input_ids"], inputs["labels"], inputs["attention_mask"]
            lengths = mask.sum(1).tolist()
            if hardware.processes > 1:  # sharded weights are gathered in each pass, so all processes make equally many
                size = max(1, self.tokens // max(parts["train"]["length"]))
                chosen = [[*range(i, min(i + size, len(ids)))] for i in range(0, len(ids), size)]
            else:
                chosen = in_parts(lengths, self.tokens, padded=not packed)
            total = torch.zeros((), device=ids.device)
            for number, part in enumerate(chosen, start=1):
                with contextlib.nullcontext() if number == len(chosen) else self.accelerator.no_sync(model):
                    if packed:
                        pairs = [(ids[i, : lengths[i]], labels[i, : lengths[i]]) for i in part]
                        loss = torch.cat(packing.token_losses(model, pairs)).sum() / count
                    else:
                        width = max(lengths[i] for i in part)
                        cut = {k: v[part, :width] for k, v in inputs.items()}
                        loss = model(**cut, use_cache=False, num_items_in_batch=count).loss * hardware.processes
                    self.accelerator.backward(loss)
                total += loss.detach()
            return total

        def _make_room(self, inputs: dict, error: RuntimeError) -> None:
            """After out of memory: smaller parts, or an error once a part is a single row."""
            longest = int(inputs["attention_mask"].sum(1).max())
            if hardware.processes > 1 or self.tokens <= longest or len(inputs["input_ids"]) == 1:
                less = [] if "checkpointing" in p.variants else ["add 'checkpointing' to variants"]
                less += ["lower max_length in 01_prepare_data", "choose fewer target_modules or a smaller model"]
                raise TrainingError(
                    f"out of memory at step {self.state.global_step + 1}, with {longest} tokens in one pass "
                    f"({str(error).splitlines()[0][:200]}). To need less: {'; '.join(less)}. {self._kept()}"
                ) from None
            self.optimizer.zero_grad()
            self.tokens = max(longest, min(self.tokens, inputs["input_ids"].numel()) // 2)
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
            print(f"  out of memory: from here on at most {self.tokens} tokens go through the model at once")

        def _stop_at(self, what: str, rows: list) -> None:
            raise DivergedError(
                f"{what} at step {self.state.global_step + 1}, in the batch of the training rows {', '.join(map(str, rows))}. "
                f"Lower learning_rate ({p.learning_rate:g}) or lengthen warmup_steps ({p.warmup_steps}). {self._kept()}"
            )

        def _kept(self) -> str:
            found = [path.name for path in _checkpoints(folder) if not _damage(path)]
            return f"The last good checkpoint, {found[0]}, is kept." if found else "No checkpoint had been written yet."

        def evaluate(self, *_args: Any, metric_key_prefix: str = "eval", **_kwargs: Any) -> dict[str, float]:
            """Validation loss over all answer tokens: the Trainer's own is a mean of batch means."""
            metrics = {f"{metric_key_prefix}_loss": mean_loss(self.model, self.eval_dataset, pad_id)}
            self.log(metrics)
            self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
            return metrics

        def _save_checkpoint(self, model: Any, trial: Any) -> None:
            target = folder / f"checkpoint-{self.state.global_step}"
            try:
                super()._save_checkpoint(model, trial)
                if self.is_world_process_zero():
                    _seal(target)
            except (OSError, SafetensorError, RuntimeError) as error:
                shutil.rmtree(target, ignore_errors=True)
                raise TrainingError(
                    f"{target.name} could not be written to {folder} ({str(error).splitlines()[0][:200]}). {self._kept()} "
                    "Free some space and run the same again: it goes on from there"
                ) from error

    class Events(TrainerCallback):
        """The base's own loss as step 0 of the curve, and one plain line per evaluation: bars store widget state."""

        def on_train_begin(self, _args: Any, state: Any, _control: Any, **_: Any) -> None:
            self.started = time.perf_counter()
            if not state.global_step:
                loss = mean_loss(trainer.model, parts["validation"], pad_id)
                state.log_history.append({"step": 0, "epoch": 0.0, "eval_loss": loss})
                self._line(state, loss)

        def on_evaluate(self, _args: Any, state: Any, _control: Any, metrics: dict, **_: Any) -> None:
            self._line(state, metrics["eval_loss"])

        def _line(self, state: Any, loss: float) -> None:
            if state.is_world_process_zero:
                seconds = time.perf_counter() - self.started
                print(f"  step {state.global_step}/{state.max_steps}: validation loss {loss:.4f} ({seconds:.0f} s)", flush=True)

    class Allocate(TrainerCallback):
        """AdaLoRA moves ranks between layers after each step, while the gradients are still there."""

        def on_optimizer_step(self, _args: Any, state: Any, _control: Any, **_: Any) -> None:
            trainer.model.base_model.update_and_allocate(state.global_step + 1)

    arguments = TrainingArguments(
        output_dir=str(folder),
        num_train_epochs=p.epochs,
        per_device_train_batch_size=p.batch_size // hardware.processes,
        learning_rate=p.learning_rate,
        lr_scheduler_type="cosine",
        warmup_steps=p.warmup_steps,
        max_grad_norm=1.0,
        weight_decay=p.weight_decay,
        eval_strategy="steps",
        eval_steps=plan["eval_steps"],
        save_strategy="steps",
        save_steps=plan["eval_steps"],
        save_total_limit=2,
        load_best_model_at_end=True,
        metric_for_best_model="eval_loss",
        greater_is_better=False,
        logging_steps=math.gcd(5, plan["eval_steps"]),  # none spans a checkpoint, so that a resumed run logs the same
        logging_nan_inf_filter=False,
        activation_checkpointing="checkpointing" in p.variants,
        activation_checkpointing_kwargs={"use_reentrant": False},  # the other kind gives NaN on MPS
        seed=p.seed,
        data_seed=p.seed,
        report_to="none",
        disable_tqdm=True,
        use_cpu=model.device.type == "cpu",
        ddp_backend="gloo" if model.device.type == "cpu" and hardware.processes > 1 else None,
        fsdp=hardware.fsdp or None,
        dataloader_pin_memory=model.device.type == "cuda",
        remove_unused_columns=False,
        include_num_input_tokens_seen="non_padding",
    )
    callbacks = [EarlyStoppingCallback(early_stopping_patience=plan["patience"]), Events()]
    trainer = AnswerTrainer(
        model=model,
        args=arguments,
        train_dataset=parts["train"],
        eval_dataset=parts["validation"],
        data_collator=lambda rows: data.collate(rows, pad_id) | {"row": torch.tensor([row["row"] for row in rows])},
        callbacks=callbacks + ([Allocate()] if "adalora" in p.variants else []),
    )
    trainer.remove_callback(PrinterCallback)
    return trainer


def mean_loss(model: Any, rows: Any, pad_id: int) -> float:
    """Cross-entropy in nats per answer token, over all answer tokens of `rows`."""
    sums = answer_loss(model, rows, pad_id)
    return sum(s for s, _ in sums) / sum(n for _, n in sums)


# --- checkpoints


def _checkpoints(folder: Path) -> list[Path]:
    """Newest first."""
    return sorted(folder.glob("checkpoint-*"), key=lambda p: -int(p.name.split("-")[1]))


def _seal(checkpoint: Path) -> None:
    sums = {file.name: config.digest(file) for file in sorted(checkpoint.iterdir()) if file.name != _CHECKSUMS}
    (checkpoint / ".sums").write_text(json.dumps(sums))
    (checkpoint / ".sums").rename(checkpoint / _CHECKSUMS)


def _damage(checkpoint: Path) -> str:
    """Why a checkpoint cannot be used; empty for a whole one."""
    try:
        sums = json.loads((checkpoint / _CHECKSUMS).read_text())
    except (OSError, ValueError):
        return "it was not written to its end"
    bad = [name for name, expected in sums.items() if config.digest(checkpoint / name) != expected]
    return f"{', '.join(bad)} {'is' if len(bad) == 1 else 'are'} damaged" if bad else ""


def _resume_from(folder: Path) -> Path | None:
    """The newest checkpoint that is whole, and whose best one so far is; others are named and removed."""
    for path in _checkpoints(folder):
        problem = _damage(path)
        if not problem:
            best = json.loads((path / "trainer_state.json").read_text())["best_global_step"]
            problem = (
                best and _damage(folder / f"checkpoint-{best}") and f"the best one before it, checkpoint-{best}, is damaged"
            )
        if not problem:
            return path
        print(f"  {path.name} is skipped: {problem}", flush=True)
        shutil.rmtree(path)
    return None


def fit(trainer: "Trainer", identity: dict[str, Any]) -> int:
    """Train, going on from the last whole checkpoint of an interrupted run of the same `identity`.

    Returns the number of input tokens that had been read before, 0 for a run from its start. Checkpoints of a run with other
    parameters, data or model are removed first: resuming from them would mix two runs. Raises TrainingError.
    """
    from transformers import TrainerState

    folder = Path(trainer.args.output_dir)
    marker, wanted = folder / "identity.json", json.dumps(identity, sort_keys=True, default=str)
    with trainer.accelerator.main_process_first():
        if trainer.is_world_process_zero():
            if folder.exists() and (not marker.exists() or marker.read_text() != wanted):
                shutil.rmtree(folder)
            if not marker.exists():
                folder.mkdir(parents=True, exist_ok=True)
                marker.write_text(wanted)
        last = _resume_from(folder)
    state = TrainerState.load_from_json(str(last / "trainer_state.json")) if last else None
    if state and state.stateful_callbacks["TrainerControl"]["args"]["should_training_stop"]:
        # killed after the last step: the Trainer would train on beyond an early stop
        trainer.state = state
        state.best_model_checkpoint = str(folder / f"checkpoint-{state.best_global_step}")
        trainer._load_best_model()
    else:
        trainer.train(resume_from_checkpoint=str(last) if last else None)
    return int(state.num_input_tokens_seen) if state else 0


def history(trainer: "Trainer") -> "pd.DataFrame":
    """One row per logged step, the base as step 0: step, epoch, train_loss, validation_loss, learning_rate, gradient_norm."""
    import pandas as pd

    names = {"loss": "train_loss", "eval_loss": "validation_loss", "grad_norm": "gradient_norm"}
    columns = ["step", "epoch", "train_loss", "validation_loss", "learning_rate", "gradient_norm"]
    rows: dict[int, dict] = {}
    for entry in trainer.state.log_history:
        kept = {names.get(k, k): v for k, v in entry.items() if k in ("epoch", "learning_rate", *names)}
        rows.setdefault(entry["step"], {"step": entry["step"]}).update(kept)
    return pd.DataFrame([rows[step] for step in sorted(rows)], columns=columns)


def epoch_table(log: "pd.DataFrame") -> "pd.DataFrame":
    """Per epoch (0 is the base): mean training loss, last validation loss and last learning rate."""
    numbered = log.assign(epoch=log["epoch"].sub(1e-9).floordiv(1).astype(int) + 1)
    return numbered.groupby("epoch").agg(
        train_loss=("train_loss", "mean"), validation_loss=("validation_loss", "last"), learning_rate=("learning_rate", "last")
    )


# --- a whole run


def train(p: config.TrainLora) -> dict[str, Any]:
    """Train run `p` from its prepared corpus and keep the weights at its lowest validation loss in `p.trained`.

    With `cuda*4` and the like in as many processes, through accelerate. A killed run goes on from its last whole
    checkpoint. Returns the record kept beside the weights: log (see `history`), best_step, steps, seconds, input_tokens,
    resumed, peak_memory_gb, device, dtype.

    Raises TrainingError or ModelError, before anything is loaded where it can be known then.
    """
    kind = models.pick_device(p.hardware.kind)
    lora.require(p.variants, kind)
    if p.hardware.processes == 1 and not p.hardware.fsdp:
        _train_here(p)
    elif kind == "mps":
        raise TrainingError(f"device = '{p.device}': MPS trains in one process")
    else:
        _train_in_processes(p)
    return json.loads((p.trained / RECORD).read_text())


def _train_in_processes(p: config.TrainLora) -> None:
    """The same in processes of their own, started as `accelerate launch` starts them, their lines shown as they come."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={p.hardware.processes}"]
    command += ["-m", "interviewmate_utils.training", p.model_dump_json(), str(config.ROOT)]
    threads = max(1, (os.cpu_count() or 1) // p.hardware.processes)
    environment = {"OMP_NUM_THREADS": str(threads)} | os.environ
    with subprocess.Popen(
        command, cwd=config.ROOT, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    ) as started:
        lines = []
        for line in started.stdout:
            lines.append(line)
            if line.startswith("  "):
                print(line, end="", flush=True)
    if started.returncode:
        said = re.findall(r"^(?:\[rank\d+\]: )?[\w.]*(?:TrainingError|DivergedError|ModelError): (.*)", "".join(lines), re.M)
        raise TrainingError(said[0] if said else "a training process failed:\n" + "".join(lines[-30:]))


def load_base(p: config.TrainLora) -> Any:
    """The base of run `p` as its variants need it: fp32 to train all weights (bf16 would swallow small updates), or 4 bits."""
    import torch

    options: dict[str, Any] = {"dtype": torch.float32} if "full" in p.variants else {}
    kind = models.pick_device(p.hardware.kind)
    if "4bit" in p.variants:
        from peft import prepare_model_for_kbit_training
        from transformers import BitsAndBytesConfig

        four = {"bnb_4bit_quant_type": "nf4", "bnb_4bit_use_double_quant": True, "bnb_4bit_compute_dtype": torch.bfloat16}
        options |= {"quantization_config": BitsAndBytesConfig(load_in_4bit=True, **four), "device_map": {"": 0}}
        return prepare_model_for_kbit_training(models.load_model(p.model, kind, **options), use_gradient_checkpointing=False)
    if kind == "cuda" and "LOCAL_RANK" in os.environ:
        kind = f"cuda:{os.environ['LOCAL_RANK']}"
    return models.load_model(p.model, kind, **options)


def _train_here(p: config.TrainLora) -> None:
    import torch

    dataset, base = data.load_parts(p.processed), load_base(p)
    pad_id, dtype = models.load_tokenizer(p.model).pad_token_id, str(base.dtype).removeprefix("torch.")
    torch.manual_seed(p.seed)
    model = lora.adapt(base, p, schedule(len(dataset["train"]), p.epochs, p.batch_size)["total_steps"])
    start = p.output / "start" if any(name in p.variants for name in lora.INITIALISERS) else None
    if start:
        model.save_pretrained(str(start))
    checkpoints = p.output / "checkpoints"
    trainer = make_trainer(model, dataset, p, pad_id, checkpoints)
    started = time.perf_counter()
    known = {"data": config.digest(p.processed), "model": p.model, "weights": models.weights_digest(p.model)}
    read_before = fit(trainer, p.model_dump() | known)
    seconds = time.perf_counter() - started
    if not trainer.is_world_process_zero():
        return
    lora.save_trained(trainer.model, p, p.trained, start)
    record = {
        "log": json.loads(history(trainer).to_json(orient="records", double_precision=15)),
        "best_step": trainer.state.best_global_step,
        "steps": trainer.state.global_step,
        "seconds": seconds,
        "input_tokens": trainer.state.num_input_tokens_seen - read_before,
        "resumed": read_before > 0,
        "peak_memory_gb": models.peak_memory_gb(model.device.type),
        "device": model.device.type,
        "dtype": dtype,
    }
    (p.trained / RECORD).write_text(json.dumps(record))
    for leftover in (checkpoints, p.output / "start"):
        shutil.rmtree(leftover, ignore_errors=True)  # they serve interrupted runs alone


if __name__ == "__main__":
    config.ROOT = Path(sys.argv[2])
    _train_here(config.TrainLora.model_validate_json(sys.argv[1]))
