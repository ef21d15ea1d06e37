"""Speed of a LoRA step on a full-size Falcon-RW-1B with random weights: ours beside the published recipe and TRL, in one run.

    python tests/bench_training.py [ROWS]

Targets are those of the enhanced run, lengths those of the corpus. Each way trains in a process of its own, over the same
ROWS (16) examples twice, in batches of 8: tokens a second count what is not padding, the second time; memory is the process's
peak. Ours goes through `training.train`, the function that 04_train_lora calls.
"""

import json
import os
import platform
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from interviewmate_utils import config, data, models, training

TARGETS = ["query_key_value", "dense", "dense_h_to_4h", "dense_4h_to_h"]
LENGTH, BATCH, EPOCHS = 256, 8, 2
WAYS = {
    "published recipe": "fp32, padded to 256, batch 1 x 8",
    "TRL defaults": "SFTTrainer as it comes",
    "TRL, best settings": "SFTTrainer: base in the device's data type, batches of 4 alike in length, no checkpointing",
    "ours": "training.train",
}


def prepare(root: Path, count: int) -> None:
    """A folder with the model and a prepared corpus of `count` training rows, spread over the lengths of the real one."""
    import torch
    from transformers import AutoTokenizer, FalconConfig, FalconForCausalLM

    tokenizer = AutoTokenizer.from_pretrained(config.ROOT / config.EMBEDDED_MODEL)
    lines = (config.ROOT / "data/raw/interview_qa.jsonl").read_text(encoding="utf-8").splitlines()
    rows = [json.loads(line) for line in lines[:: len(lines) // (count + 2)]][: count + 2]
    parts = {"train": range(count), "validation": [count], "test": [count + 1]}
    dataset = data.build_dataset(rows, parts, tokenizer, LENGTH)
    data.save_dataset(dataset, root / "data/processed/bench/original", "data/models/full_size")
    torch.manual_seed(0)
    hidden = models.FALCON_RW_1B["hidden_size"]
    model = FalconForCausalLM._from_config(FalconConfig(**models.FALCON_RW_1B), dtype=models.pick_dtype("cpu", hidden))
    model.save_pretrained(root / "data/models/full_size")
    tokenizer.save_pretrained(root / "data/models/full_size")


def run_of(root: Path) -> config.TrainLora:
    values = {"profile": "bench", "seed": 13, "run": "enhanced", "corpus": "original", "device": "auto", "variants": []}
    values |= {"rank": 8, "alpha": 16, "dropout": 0.1, "target_modules": TARGETS, "learning_rate": 5e-4, "weight_decay": 0.0}
    return config.TrainLora(**values, epochs=float(EPOCHS), batch_size=BATCH, warmup_steps=1)


def timed(cls: type, steps: list[float]) -> None:
    """Have every `training_step` of a Trainer class add its seconds to `steps`."""
    step = cls.training_step

    def measured(self: object, *arguments: object, **options: object) -> object:
        started = time.perf_counter()
        found = step(self, *arguments, **options)
        steps.append(time.perf_counter() - started)
        return found

    cls.training_step = measured


def train_ours(p: config.TrainLora, steps: list[float]) -> None:
    from interviewmate_utils.training import trainer

    timed(trainer.AnswerTrainer, steps)
    training.train(p)


def train_published(p: config.TrainLora, steps: list[float]) -> None:
    import torch
    from transformers import Trainer, TrainingArguments

    from interviewmate_utils import lora

    class Published(Trainer):
        pass

    def padded(rows: list[dict]) -> dict:
        batch = data.collate(rows, 0)
        more = LENGTH - batch["input_ids"].shape[1]
        fill = {"input_ids": 0, "attention_mask": 0, "labels": data.IGNORED}
        return {k: torch.nn.functional.pad(v, (0, more), value=fill[k]) for k, v in batch.items()}

    timed(Published, steps)
    model = lora.adapt(models.load_model(p.model, dtype=torch.float32), p)
    arguments = TrainingArguments(
        str(p.output), num_train_epochs=EPOCHS, per_device_train_batch_size=1, gradient_accumulation_steps=BATCH,
        learning_rate=p.learning_rate, report_to="none", save_strategy="no", remove_unused_columns=False, disable_tqdm=True,
    )  # fmt: skip
    Published(model, arguments, train_dataset=plain(p), data_collator=padded).train()


def train_trl(p: config.TrainLora, steps: list[float], best: bool) -> None:
    import torch
    from peft import LoraConfig
    from trl import SFTConfig, SFTTrainer

    timed(SFTTrainer, steps)
    adapter = LoraConfig(r=p.rank, lora_alpha=p.alpha, lora_dropout=p.dropout, target_modules=TARGETS, task_type="CAUSAL_LM")
    options = {"num_train_epochs": EPOCHS, "learning_rate": p.learning_rate, "report_to": "none", "save_strategy": "no"}
    options |= {"disable_tqdm": True, "dataset_kwargs": {"skip_prepare_dataset": True}}
    dtype = torch.float32
    if best:
        dtype = models.pick_dtype(models.pick_device(), models.FALCON_RW_1B["hidden_size"])
        options |= {"per_device_train_batch_size": 4, "gradient_accumulation_steps": BATCH // 4, "bf16": False}
        options |= {"train_sampling_strategy": "group_by_length", "activation_checkpointing": False}
    SFTTrainer(
        models.load_model(p.model, dtype=dtype), SFTConfig(str(p.output), **options), train_dataset=plain(p),
        processing_class=models.load_tokenizer(p.model), peft_config=adapter,
    ).train()  # fmt: skip


def plain(p: config.TrainLora) -> object:
    return data.load_parts(p.processed)["train"].select_columns(["input_ids", "labels"])


def one(way: str, root: Path) -> dict:
    """Train in this process; tokens a second of the steps after the first optimiser step, and peak memory."""
    config.ROOT, steps = root, []
    p = run_of(root)
    useful = sum(data.load_parts(p.processed)["train"]["length"])
    if way == "ours":
        train_ours(p, steps)
    elif way == "published recipe":
        train_published(p, steps)
    else:
        train_trl(p, steps, best=way.endswith("settings"))
    per_epoch = len(steps) // EPOCHS
    later = steps[per_epoch:]  # the first epoch warms up
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024) / 1e9
    return {"way": way, "useful_tps": useful * (len(later) / per_epoch) / sum(later), "peak_memory_gb": memory}


def matrix_rate(dtype_name: str) -> float:
    """Operations a second (in 10^9) of a matrix product of the model's MLP with 1,024 tokens."""
    import torch

    dtype = getattr(torch, dtype_name)
    x, weight = torch.randn(1024, 2048).to(dtype), torch.randn(8192, 2048).to(dtype)
    times = []
    for _ in range(8):
        started = time.perf_counter()
        torch.nn.functional.linear(x, weight)
        times.append(time.perf_counter() - started)
    return 2 * 1024 * 2048 * 8192 / min(times) / 1e9


def main() -> None:
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 16
    from interviewmate_utils.kernel import KERNEL_ENVIRONMENT

    rates = {name: matrix_rate(name) for name in ("bfloat16", "float32")}
    print(f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores; matrix rate " + ", ".join(
        f"{name} {rate:.0f} GFLOP/s" for name, rate in rates.items()))  # fmt: skip
    with tempfile.TemporaryDirectory(dir=config.ROOT / "build") as name:
        root = Path(name)
        prepare(root, count)
        found = []
        for way, description in WAYS.items():
            environment = os.environ | KERNEL_ENVIRONMENT | {"PYTHONWARNINGS": "ignore"}
            done = subprocess.run(
                [sys.executable, __file__, way, str(root)], capture_output=True, text=True, env=environment, check=False
            )
            if done.returncode:
                print(f"{way:20} failed: {done.stderr.strip().splitlines()[-1]}", flush=True)
                continue
            found.append(json.loads(done.stdout.splitlines()[-1]))
            last = found[-1]
            print(f"{way:20} {last['useful_tps']:7.1f} tokens/s {last['peak_memory_gb']:6.1f} GB   {description}", flush=True)
    ceiling = max(rates.values()) * 1e9 / (4 * 1_311_625_216)
    ours = next(row["useful_tps"] for row in found if row["way"] == "ours")
    for row in found[:-1]:
        print(f"ours is {ours / row['useful_tps']:.2f} times {row['way']}")
    print(f"ours is {ours / ceiling:.0%} of {ceiling:.1f} tokens/s, at 4 operations per parameter and token")


if __name__ == "__main__":
    if len(sys.argv) == 3:
        print(json.dumps(one(sys.argv[1], Path(sys.argv[2]))))
    else:
        main()
