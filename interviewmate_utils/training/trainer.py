"""The Trainer of a run: what a step is, what is watched, and what stops it."""

import contextlib
import math
import shutil
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import broadcast
from safetensors import SafetensorError
from transformers import EarlyStoppingCallback, Trainer, TrainerCallback, TrainingArguments
from transformers.trainer_callback import PrinterCallback
from transformers.trainer_pt_utils import LengthGroupedSampler

from .. import config, data, lora, models
from . import DivergedError, TrainingError, checkpoints, mean_loss, packing, schedule

_RANKS = "ranks.pt"  # in a checkpoint of AdaLoRA
ACTIVATIONS = {"cpu": 2.5e9, "mps": 5e9, "cuda": 12e9}  # bytes that one forward pass may keep for its backward pass


def tokens_at_once(model: Any, longest: int, device: str) -> int:
    """Most tokens, padding included, of one forward pass: what a token keeps was counted in `packing` (per layer 20 numbers
    for each of its width, dropout's masks included, and a row of attention per head), and is near that elsewhere."""
    settings = model.config.get_text_config()
    kept = 20 * settings.hidden_size + settings.num_attention_heads * longest
    return int(ACTIVATIONS[device] / (settings.num_hidden_layers * kept * model.dtype.itemsize))


def in_parts(lengths: Sequence[int], tokens: int, padded: bool) -> list[list[int]]:
    """Positions of rows in parts of at most `tokens` tokens, at least a row each, alike in length.

    Where rows are padded to the longest of their part, the padding counts.
    """
    parts: list[list[int]] = []
    for i in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        part = parts[-1] if parts else []
        size = lengths[part[0]] * (len(part) + 1) if part and padded else sum(lengths[j] for j in part) + lengths[i]
        if part and size <= tokens:
            part.append(i)
        else:
            parts.append([i])
    return parts


class _EpochOrder(LengthGroupedSampler):
    """An order that follows from seed and epoch alone: the Trainer's own is drawn from the global random state, and a run
    resumed in a later epoch would see some examples twice and others never. `blank` fills the last batch up."""

    def __init__(self, p: config.TrainLora, lengths: list[int], blank: list[int]) -> None:
        super().__init__(p.batch_size, lengths=lengths)
        self.seed, self.blank = p.seed, blank

    def set_epoch(self, epoch: int) -> None:
        self.generator = torch.Generator().manual_seed(10_000 * self.seed + epoch)

    def __iter__(self) -> Iterator[int]:
        yield from super().__iter__()
        yield from self.blank

    def __len__(self) -> int:
        return super().__len__() + len(self.blank)


class AnswerTrainer(Trainer):
    """transformers' Trainer, but for the order, the step, the validation loss, and what is said when it cannot go on.

    A batch goes through the model in parts that fit into memory (ACTIVATIONS; halved when they do not), packed where the
    model allows it; its loss is normalised over the answer tokens of the whole batch: the parts do not change the result.
    """

    def __init__(self, model: Any, dataset: Any, p: config.TrainLora, pad_id: int, **options: Any) -> None:
        keep = {"input_ids", "labels", "length"}
        train, validation = (
            part.remove_columns([c for c in part.column_names if c not in keep])
            for part in (dataset["train"], dataset["validation"])
        )
        self.p, self.pad_id, rows = p, pad_id, len(train)
        # AdaLoRA adds to its loss in its own forward pass; several processes need that of their wrapper
        several = p.hardware.processes > 1 or p.hardware.fsdp
        self.packed = not several and "adalora" not in p.variants and packing.supports(model.train())
        # processes share a batch equally: the last one of an epoch is filled up with a row that has nothing to learn from
        blank = -rows % p.batch_size if several else 0
        if blank:
            train = train.add_item({"input_ids": [pad_id], "labels": [data.IGNORED], "length": 1})
        self.order = _EpochOrder(p, list(train["length"])[:rows], [rows] * blank)
        self.longest = max(train["length"])
        self.tokens = tokens_at_once(model, self.longest, models.pick_device(p.hardware.kind))
        self.names = [*(dataset["train"]["id"] if "id" in dataset["train"].column_names else range(rows)), "none"]
        train = train.add_column("row", range(len(train)))
        super().__init__(model=model, train_dataset=train, eval_dataset=validation, data_collator=self._collate, **options)
        self.folder = Path(self.args.output_dir)
        self.regulariser = self.model.peft_config["default"].orth_reg_weight if "adalora" in p.variants else 0.0

    def _collate(self, rows: list[dict]) -> dict[str, torch.Tensor]:
        return data.collate(rows, self.pad_id) | {"row": torch.tensor([row["row"] for row in rows])}

    def _get_train_sampler(self, *_: Any) -> _EpochOrder:
        return self.order

    def training_step(self, model: Any, inputs: dict, num_items_in_batch: torch.Tensor | None = None) -> torch.Tensor:
        model.train()
        inputs = self._prepare_inputs(inputs)
        names = [self.names[i] for i in inputs.pop("row").tolist()]
        while True:
            try:
                loss = self._backward(model, inputs, num_items_in_batch)
                break
            except RuntimeError as error:  # CUDA has a class of its own for it; the CPU's allocator and MPS only say so
                if not any(said in str(error) for said in ("out of memory", "can't allocate memory")):
                    raise
                self._make_room(inputs, error)
        if not math.isfinite(loss):
            self._stop_at(f"the loss is {loss.item()}", names)
        if not all(q.grad is None or q.grad.isfinite().all() for q in model.parameters()):
            self._stop_at("a gradient is not finite", names)
        return loss

    def _backward(self, model: Any, inputs: dict, count: torch.Tensor) -> torch.Tensor:
        ids, labels, lengths = inputs["input_ids"], inputs["labels"], inputs["attention_mask"].sum(1).tolist()
        if self.args.world_size > 1:  # sharded weights are gathered in each pass, so all processes make equally many
            size = max(1, self.tokens // self.longest)
            parts = [[*range(i, min(i + size, len(ids)))] for i in range(0, len(ids), size)]
        else:
            parts = in_parts(lengths, self.tokens, padded=not self.packed)
        if "adalora" in self.p.variants:  # adds its regulariser to each part's loss, in each process; it counts once a batch
            self.model.peft_config["default"].orth_reg_weight = self.regulariser / (len(parts) * self.args.world_size)
        total = torch.zeros((), device=ids.device)
        for number, part in enumerate(parts, start=1):
            with contextlib.nullcontext() if number == len(parts) else self.accelerator.no_sync(model):
                if self.packed:
                    pairs = [(ids[i, : lengths[i]], labels[i, : lengths[i]]) for i in part]
                    loss = torch.cat(packing.token_losses(model, pairs)).sum() / count
                else:
                    width = max(lengths[i] for i in part)
                    cut = {name: values[part, :width] for name, values in inputs.items()}
                    loss = model(**cut, use_cache=False, num_items_in_batch=count).loss * self.args.world_size
                self.accelerator.backward(loss)
            total += loss.detach()
        return total

    def _make_room(self, inputs: dict, error: RuntimeError) -> None:
        """After out of memory: smaller parts, or an error once a part is a single row."""
        longest = int(inputs["attention_mask"].sum(1).max())
        if self.args.world_size > 1 or self.tokens <= longest or len(inputs["input_ids"]) == 1:
            less = [] if "checkpointing" in self.p.variants else ["add 'checkpointing' to variants"]
            less += ["lower max_length in 01_prepare_data", "choose fewer target_modules or a smaller model"]
            raise TrainingError(
                f"out of memory at step {self.state.global_step + 1}, with {longest} tokens in one pass "
                f"({str(error).splitlines()[0][:200]}). To need less: {'; '.join(less)}. {checkpoints.kept(self.folder)}"
            ) from None
        self.optimizer.zero_grad()
        self.tokens = max(longest, min(self.tokens, inputs["input_ids"].numel()) // 2)
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        print(f"  out of memory: from here on at most {self.tokens} tokens go through the model at once")

    def _stop_at(self, what: str, names: list) -> None:
        raise DivergedError(
            f"{what} at step {self.state.global_step + 1}, in the batch of the training rows {', '.join(map(str, names))}. "
            f"Lower learning_rate ({self.p.learning_rate:g}) or lengthen warmup_steps ({self.p.warmup_steps}). "
            f"{checkpoints.kept(self.folder)}"
        )

    def evaluate(self, *_args: Any, metric_key_prefix: str = "eval", **_kwargs: Any) -> dict[str, float]:
        """Validation loss over all answer tokens: the Trainer's own is a mean of batch means."""
        loss = mean_loss(self.model, self.eval_dataset, self.pad_id)
        if self.args.world_size > 1:  # all stop at the same step, even if their last digits differ
            loss = broadcast(torch.tensor(loss, device=self.args.device)).item()
        metrics = {f"{metric_key_prefix}_loss": loss}
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        target = self.folder / f"checkpoint-{self.state.global_step}"
        try:
            super()._save_checkpoint(model, trial)
            self.accelerator.wait_for_everyone()  # each process writes a file of its own
            if self.is_world_process_zero():
                if "adalora" in self.p.variants:
                    torch.save(lora.rank_state(self.model), target / _RANKS)
                checkpoints.seal(target)
        except (OSError, SafetensorError, RuntimeError) as error:
            shutil.rmtree(target, ignore_errors=True)
            raise TrainingError(
                f"{target.name} could not be written to {self.folder} ({str(error).splitlines()[0][:200]}). "
                f"{checkpoints.kept(self.folder)} Free some space and run the same again: it goes on from there"
            ) from error

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        if "adalora" in self.p.variants:
            state = torch.load(Path(resume_from_checkpoint) / _RANKS, weights_only=True, map_location=self.args.device)
            lora.restore_ranks(self.model, state)
        else:
            super()._load_from_checkpoint(resume_from_checkpoint, model)

    def _load_best_model(self) -> None:
        if "adalora" in self.p.variants:
            self._load_from_checkpoint(self.state.best_model_checkpoint)
        else:
            super()._load_best_model()


class _Events(TrainerCallback):
    """The base's own loss as step 0 of the curve, and one plain line per evaluation: bars store widget state."""

    trainer: AnswerTrainer

    def on_train_begin(self, _args: Any, state: Any, _control: Any, **_: Any) -> None:
        self.started = time.perf_counter()
        if not state.global_step:
            loss = mean_loss(self.trainer.model, self.trainer.eval_dataset, self.trainer.pad_id)
            state.log_history.append({"step": 0, "epoch": 0.0, "eval_loss": loss})
            self._line(state, loss)

    def on_epoch_begin(self, _args: Any, state: Any, _control: Any, **_: Any) -> None:
        # where a run goes on in mid-epoch, neither accelerate nor the Trainer looks as deep as this order is wrapped then
        self.trainer.order.set_epoch(int(state.epoch))

    def on_evaluate(self, _args: Any, state: Any, _control: Any, metrics: dict, **_: Any) -> None:
        self._line(state, metrics["eval_loss"])

    def _line(self, state: Any, loss: float) -> None:
        if state.is_world_process_zero:
            seconds = time.perf_counter() - self.started
            print(f"  step {state.global_step}/{state.max_steps}: validation loss {loss:.4f} ({seconds:.0f} s)", flush=True)

    def on_optimizer_step(self, _args: Any, state: Any, _control: Any, **_: Any) -> None:
        if "adalora" in self.trainer.p.variants:  # it moves ranks between layers while the gradients are still there
            self.trainer.model.base_model.update_and_allocate(state.global_step + 1)


def make_trainer(model: Any, dataset: Any, p: config.TrainLora, pad_id: int, folder: Path) -> AnswerTrainer:
    """A Trainer for run `p`: cosine schedule, clipping at 1.0, token-weighted validation loss, early stopping."""
    hardware, kind = p.hardware, models.pick_device(p.hardware.kind)
    plan = schedule(len(dataset["train"]), p.epochs, p.batch_size)
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
        restore_callback_states_from_checkpoint=True,  # how long early stopping has been waiting
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
        use_cpu=kind == "cpu",
        ddp_backend="gloo" if kind == "cpu" and hardware.processes > 1 else None,
        fsdp=hardware.fsdp or None,
        dataloader_pin_memory=kind == "cuda",
        remove_unused_columns=False,
        include_num_input_tokens_seen="non_padding",
    )
    arguments._n_gpu = min(arguments.n_gpu, 1)  # the Trainer would use all GPUs that it sees, through DataParallel
    events = _Events()
    stopping = EarlyStoppingCallback(early_stopping_patience=plan["patience"])
    trainer = AnswerTrainer(model, dataset, p, pad_id, args=arguments, callbacks=[stopping, events])
    events.trainer = trainer
    trainer.remove_callback(PrinterCallback)
    return trainer
