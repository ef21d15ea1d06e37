"""How a run is trained: through the Trainer, in one process or several, resumable after a kill, stopping at faults.

`trainer` says what a step is, `packing` how a batch goes through a Falcon, `checkpoints` what a run can go on from.
"""

import json
import math
import os
import re
import shutil
import subprocess
import sys
import time
from typing import TYPE_CHECKING, Any

from .. import config, data, lora, models
from ..answering import answer_loss
from ..kernel import environment_of_each
from ..progress import relay

if TYPE_CHECKING:
    import pandas as pd
    from transformers import Trainer

EVALUATIONS_PER_EPOCH = 2  # each with a checkpoint
PATIENCE_EPOCHS = 3  # early stopping waits at most this long for a better validation loss
RECORD = "training.json"  # in the folder of trained weights: how they came about


class TrainingError(RuntimeError):
    """A training that cannot go on; the text says where it stopped, what is kept and what to change."""


class DivergedError(TrainingError):
    """The loss or a gradient is no longer a number: these parameters cannot be trained with."""


def schedule(examples: int, epochs: float, batch_size: int) -> dict[str, int]:
    """Optimiser steps per epoch and in all, steps between evaluations, and how many evaluations without progress end it.

    Those are a third of all evaluations, so that short trainings can end early, too; two at least.
    """
    per_epoch = math.ceil(examples / batch_size)
    between = math.ceil(per_epoch / EVALUATIONS_PER_EPOCH)
    total = math.ceil(per_epoch * epochs)
    between = min(between, total)
    patience = min(max(2, math.ceil(total / between) // 3), PATIENCE_EPOCHS * EVALUATIONS_PER_EPOCH)
    return {"steps_per_epoch": per_epoch, "total_steps": total, "eval_steps": between, "patience": patience}


def mean_loss(model: Any, rows: Any, pad_id: int) -> float:
    """Cross-entropy in nats per answer token, over all answer tokens of `rows`."""
    sums = answer_loss(model, rows, pad_id)
    return sum(s for s, _ in sums) / sum(n for _, n in sums)


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


def train(p: config.TrainLora) -> dict[str, Any]:
    """Train run `p` from its prepared corpus and keep the weights at its lowest validation loss in `p.trained`.

    With `cuda*4` and the like in as many processes, through accelerate. A killed run goes on from its last whole
    checkpoint. Returns the record kept beside the weights: log (see `history`), best_step, steps, seconds, input_tokens,
    resumed, peak_memory_gb, device, dtype.

    Raises TrainingError or ModelError, before anything is loaded where it can be known then.
    """
    kind = models.pick_device(p.hardware.kind)
    lora.require(p.variants, kind)
    if kind == "mps" and "checkpointing" in p.variants and p.dropout:
        raise TrainingError(
            "variants: checkpointing computes dropout anew, and MPS would draw it differently; set dropout to 0"
        )
    if p.hardware.processes == 1 and not p.hardware.fsdp:
        train_here(p)
    elif kind == "mps":
        raise TrainingError(f"device = '{p.device}': MPS trains in one process")
    elif kind == "cpu" and p.hardware.fsdp:
        raise TrainingError(f"device = '{p.device}': weights are sharded over GPUs, not over processes on a CPU")
    else:
        _train_in_processes(p)
    return json.loads((p.trained / RECORD).read_text())


def _train_in_processes(p: config.TrainLora) -> None:
    """The same in processes of their own, started as `accelerate launch` starts them, their lines shown as they come."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={p.hardware.processes}"]
    command += ["-m", "interviewmate_utils.training", p.model_dump_json(), str(config.ROOT)]
    environment = environment_of_each(p.hardware.processes)
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}  # see `end_with_parent`
    with subprocess.Popen(command, cwd=config.ROOT, env=environment, text=True, **pipes) as started:
        lines = relay(started, "  ")
    if started.returncode:
        said = re.findall(r"^(?:\[rank\d+\]: )?[\w.]*(?:TrainingError|DivergedError|ModelError): (.*)", "".join(lines), re.M)
        reason = "".join(lines)
        reason = reason[max(0, reason.find("Traceback")) :]  # that of the process; torchrun's own comes after it
        raise TrainingError(said[0] if said else "a training process failed:\n" + reason[:4000])


def load_base(p: config.TrainLora) -> Any:
    """The base of run `p` as its variants need it: fp32 to train all weights (bf16 would swallow small updates), or 4 bits."""
    import torch

    options: dict[str, Any] = {"dtype": torch.float32} if "full" in p.variants else {}
    kind = models.pick_device(p.hardware.kind)
    if kind == "cuda" and "LOCAL_RANK" in os.environ:
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    if "4bit" in p.variants:
        from peft import prepare_model_for_kbit_training
        from transformers import BitsAndBytesConfig

        four = {"bnb_4bit_quant_type": "nf4", "bnb_4bit_use_double_quant": True, "bnb_4bit_compute_dtype": torch.bfloat16}
        options |= {"quantization_config": BitsAndBytesConfig(load_in_4bit=True, **four)}
        options |= {"device_map": {"": torch.cuda.current_device()}}
        return prepare_model_for_kbit_training(models.load_model(p.model, kind, **options), use_gradient_checkpointing=False)
    if p.hardware.fsdp:  # sharded from main memory, since the whole may not fit into one device
        hidden = models.load_config(p.model).get_text_config().hidden_size
        return models.load_model(p.model, "cpu", **{"dtype": models.pick_dtype(kind, hidden)} | options)
    model = models.load_model(p.model, kind, **options)
    if p.hardware.processes > 1 and getattr(model, "hf_device_map", None):
        raise TrainingError(
            f"{p.model} does not fit into one device, and each of {p.hardware.processes} processes needs all of it. Share it "
            f"among them: device: '{p.device}+fsdp'"
        )
    if outside := models.overflow(model):
        raise TrainingError(
            f"{p.model} does not fit into the memory of the devices here ({len(outside)} of its parts lie outside). Train it "
            "in 4 bits (variants: [4bit]), on more devices (device: 'cuda*4+fsdp'), or train a smaller model"
        )
    return model


def train_here(p: config.TrainLora) -> None:
    """The part of `train` that each process does: all of it where there is one."""
    import torch

    from .checkpoints import fit
    from .trainer import make_trainer

    kind = models.pick_device(p.hardware.kind)
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
    trainer.accelerator.wait_for_everyone()  # the first process clears up what others may still read
    weights = trainer.accelerator.get_state_dict(trainer.model) if p.hardware.fsdp else None  # each process holds a share
    if not trainer.is_world_process_zero():
        return
    lora.save_trained(trainer.model, p, p.trained, start, weights)
    record = {
        "log": json.loads(history(trainer).to_json(orient="records", double_precision=15)),
        "best_step": trainer.state.best_global_step,
        "steps": trainer.state.global_step,
        "seconds": seconds,
        "input_tokens": trainer.state.num_input_tokens_seen - read_before,
        "resumed": read_before > 0,
        "peak_memory_gb": models.peak_memory_gb(kind),
        "device": kind,
        "dtype": dtype,
    }
    (p.trained / RECORD).write_text(json.dumps(record))
    for leftover in filter(None, (checkpoints, start)):
        shutil.rmtree(leftover, ignore_errors=True)  # they serve interrupted runs alone
