"""Speed of training and of generation at the full size of Falcon-RW-1B, with random weights and the corpus's real lengths.

    python tests/bench_falcon.py [ROWS]

Training: ours (`training.train`, which 04_train_lora calls) beside the published recipe and TRL, with the targets of the
enhanced run, each in a process of its own, over the same ROWS (8) examples twice, in batches of 8. Counted are the tokens
that are not padding, in the second pass. Generation: `answering.generate_answers`, one by one and all at once. The table
goes to reports/published/.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

import psutil

from interviewmate_utils import answering, config, data, models, run, training
from interviewmate_utils.kernel import KERNEL_ENVIRONMENT

MODEL = "data/models/full_size"
LENGTH, BATCH, EPOCHS = 256, 8, 2
ALONE, TOGETHER, NEW_TOKENS = 4, 46, 96  # questions answered one by one and at once, tokens each
OPERATIONS = 4  # per parameter and token: forward, and backward to the activations; frozen weights have no gradients
# what this project set itself, for a CPU with bf16 instructions: times as fast as each way, share of the ceiling, GB
GOALS = {"published recipe": 4.0, "TRL, defaults": 2.5, "TRL, best": 2.0, "ceiling": 0.75, "memory": 7.0, "answering": 12.0}
PLAIN = {"num_train_epochs": EPOCHS, "report_to": "none", "save_strategy": "no", "disable_tqdm": True}
PLAIN |= {"use_cpu": models.pick_device() == "cpu"}  # without it TRL's default, bf16, is refused there


def corpus(count: int) -> list[dict]:
    lines = (config.ROOT / "data/raw/interview_qa.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines[:: len(lines) // count]][:count]


def prepare(root: Path, count: int) -> dict:
    """A folder with the model and a prepared corpus of `count` training rows, spread over the lengths of the real one."""
    import torch
    from transformers import AutoTokenizer, FalconConfig, FalconForCausalLM

    tokenizer = AutoTokenizer.from_pretrained(Path(__file__).parents[1] / config.EMBEDDED_MODEL)
    rows, parts = corpus(count + 2), {"train": range(count), "validation": [count], "test": [count + 1]}
    config.ROOT = root
    data.save_dataset(data.build_dataset(rows, parts, tokenizer, LENGTH), parameters().processed, MODEL)
    torch.manual_seed(0)
    dtype = models.pick_dtype(models.pick_device(), models.FALCON_RW_1B["hidden_size"])
    model = FalconForCausalLM._from_config(FalconConfig(**models.FALCON_RW_1B), dtype=dtype)
    model.save_pretrained(root / MODEL)
    tokenizer.save_pretrained(root / MODEL)
    return {"parameters": model.num_parameters()}


def parameters() -> config.TrainLora:
    """The enhanced run, but for its epochs."""
    changes = [("profile", "bench"), ("corpus", "original"), ("epochs", str(EPOCHS)), ("warmup_steps", "1")]
    files = [config.NOTEBOOKS / "params" / "runs" / "enhanced.yaml"]
    return run.collect_parameters(config.NOTEBOOKS / "04_train_lora.ipynb", files, changes)[1]


def timed(cls: type, steps: list[float]) -> None:
    """Have every `training_step` of a Trainer class add its seconds to `steps`."""
    step = cls.training_step

    def measured(self: object, *arguments: object, **options: object) -> object:
        started = time.perf_counter()
        found = step(self, *arguments, **options)
        steps.append(time.perf_counter() - started)
        return found

    cls.training_step = measured


def plain(p: config.TrainLora) -> object:
    return data.load_parts(p.processed)["train"].select_columns(["input_ids", "labels"])


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
    options = PLAIN | {"per_device_train_batch_size": 1, "gradient_accumulation_steps": BATCH, "remove_unused_columns": False}
    arguments = TrainingArguments(str(p.output), learning_rate=p.learning_rate, **options)
    Published(model, arguments, train_dataset=plain(p), data_collator=padded).train()


def train_trl(p: config.TrainLora, steps: list[float], model: object = None, **options: object) -> None:
    from peft import LoraConfig
    from trl import SFTConfig, SFTTrainer

    timed(SFTTrainer, steps)
    adapter = LoraConfig(
        r=p.rank, lora_alpha=p.alpha, lora_dropout=p.dropout, target_modules=p.target_modules, task_type="CAUSAL_LM"
    )
    options = PLAIN | {"learning_rate": p.learning_rate, "dataset_kwargs": {"skip_prepare_dataset": True}} | options
    SFTTrainer(
        model or str(config.ROOT / p.model), SFTConfig(str(p.output), **options), train_dataset=plain(p),
        processing_class=models.load_tokenizer(p.model), peft_config=adapter,
    ).train()  # fmt: skip


def train_trl_without_more(size: int) -> Callable:
    """TRL in the data type that this device runs fastest, without checkpointing, with batches of `size` alike in length."""

    def train_it(p: config.TrainLora, steps: list[float]) -> None:
        options = {"per_device_train_batch_size": size, "gradient_accumulation_steps": BATCH // size, "bf16": False}
        options |= {"train_sampling_strategy": "group_by_length", "gradient_checkpointing": False}
        train_trl(p, steps, models.load_model(p.model), **options)

    return train_it


WAYS: dict[str, tuple[Callable, str]] = {
    "published recipe": (train_published, "fp32, padded to 256, batch 1 x 8"),
    "TRL, defaults": (train_trl, "SFTTrainer as it comes: fp32 weights, bf16 autocast, checkpointing, batch 8"),
    "TRL, batch 4": (train_trl_without_more(4), "weights in the device's data type, 4 x 2 alike in length, no checkpointing"),
    "TRL, batch 1": (train_trl_without_more(1), "weights in the device's data type, 1 x 8, no padding, no checkpointing"),
    "ours": (train_ours, "training.train"),
}


def train(way: str) -> dict:
    """Train in this process; useful tokens a second of the second pass, and peak memory."""
    p, steps = parameters(), []
    useful = sum(data.load_parts(p.processed)["train"]["length"])
    WAYS[way][0](p, steps)
    later = steps[len(steps) // EPOCHS :]  # the first pass warms up
    return {"tokens_per_s": useful / sum(later), "memory_gb": models.peak_memory_gb(models.pick_device())}


def generate(count: int, batch_size: int) -> dict:
    """Answer `count` questions; new tokens a second with the time for the prompts and, beside it, without."""
    model, tokenizer = models.load_model(MODEL), models.load_tokenizer(MODEL)
    questions = json.loads((config.ROOT / "questions.json").read_text())
    questions = questions[:: len(questions) // count][:count]
    rows, prompts, begun = [], [], []
    model.register_forward_pre_hook(lambda _module, _inputs: begun.append(time.perf_counter()))

    def after(_module: object, _inputs: object, options: dict, out: object) -> None:
        rows.append(out.logits[:, -1, 0].tolist())  # waits for a GPU
        if options["input_ids"].shape[1] > 1:
            prompts.append(time.perf_counter() - begun[-1])

    model.register_forward_hook(after, with_kwargs=True)
    started = time.perf_counter()
    answering.generate_answers(model, tokenizer, questions, NEW_TOKENS, batch_size, report=lambda _: None)
    seconds, made = time.perf_counter() - started, sum(map(len, rows))
    further = (made - count) / (seconds - sum(prompts))
    return {"tokens_per_s": made / seconds, "further_per_s": further, "memory_gb": models.peak_memory_gb(models.pick_device())}


def matrix_rate(dtype_name: str) -> float:
    """Operations a second (in 10^9) of a matrix product of the model's MLP with 1,024 tokens."""
    import torch

    dtype, device = getattr(torch, dtype_name), models.pick_device()
    x, weight = torch.randn(1024, 2048).to(device, dtype), torch.randn(8192, 2048).to(device, dtype)
    times = []
    for _ in range(8):
        started = time.perf_counter()
        torch.nn.functional.linear(x, weight)[0, 0].item()  # waits for a GPU
        times.append(time.perf_counter() - started)
    return 2 * 1024 * 2048 * 8192 / min(times) / 1e9


def machine() -> str:
    import torch

    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    name = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.processor())
    return f"{name}, {os.cpu_count()} cores, {psutil.virtual_memory().total / 2**30:.0f} GiB"


def child(root: Path, *task: object, needed: bool = True) -> dict | str:
    """What one task finds in a process of its own, whose peak memory is then its own; text says why there is nothing."""
    environment = os.environ | KERNEL_ENVIRONMENT | {"PYTHONWARNINGS": "ignore", "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, __file__, "--task", json.dumps(task), "--root", str(root)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    if done.returncode == 0:
        return json.loads(done.stdout.splitlines()[-1])
    if needed:
        sys.exit(f"{task} failed:\n{done.stderr[-3000:]}")
    return done.stderr.strip().splitlines()[-1]


def main(count: int) -> None:
    rates = {name: matrix_rate(name) for name in ("bfloat16", "float32")}
    dtype = str(models.pick_dtype(models.pick_device(), models.FALCON_RW_1B["hidden_size"])).removeprefix("torch.")
    versions = ", ".join(f"{name} {version(name)}" for name in ("torch", "transformers", "peft", "trl"))
    measured = ", ".join(f"{name} {rate:,.0f} GFLOP/s" for name, rate in rates.items())
    said = [f"# Speed at the full size of Falcon-RW-1B, {models.pick_device()}, {dtype}", ""]
    said += [f"{machine()}; {platform.system()}; {versions}; matrix rate {measured}."]
    said += [f"Random weights, the corpus's real lengths. Made by `make bench`, {count} rows.", ""]
    said += ["| training | useful tokens/s | ours is | peak memory, GB | settings |", "| --- | ---: | ---: | ---: | --- |"]
    print("\n".join(said), flush=True)
    (config.ROOT / "build").mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(dir=config.ROOT / "build") as name:
        root = Path(name)
        size = child(root, "prepare", count)["parameters"]
        (root / "questions.json").write_text(json.dumps([row["question"] for row in corpus(TOGETHER)]))
        found = {}
        for way in reversed(WAYS):
            found[way] = child(root, "train", way, needed=way == "ours")
            said.append(row(way, found[way], found["ours"], WAYS[way][1]))
            print(said[-1], flush=True)
        ours = found["ours"]["tokens_per_s"]
        ceilings = {name: rate * 1e9 / (OPERATIONS * size) for name, rate in rates.items()}
        shares = [f"{ours / most:.0%} of {most:.1f} tokens/s ({name})" for name, most in ceilings.items()]
        per_token = f"{OPERATIONS} operations per parameter and token"
        said += ["", f"Ours is at {' and '.join(shares)}, what the matrix rates allow at {per_token}."]
        together, alone = child(root, "generate", TOGETHER, TOGETHER), child(root, "generate", ALONE, 1)
        times = {name: together[name] / alone[name] for name in ("tokens_per_s", "further_per_s")}
        said += ["", f"| answering, {NEW_TOKENS} tokens each | new tokens/s | after the prompt, tokens/s | peak memory, GB |"]
        said += ["| --- | ---: | ---: | ---: |"]
        for name, made in ((f"{TOGETHER} at once", together), (f"{ALONE} one by one", alone)):
            said.append(f"| {name} | {made['tokens_per_s']:.1f} | {made['further_per_s']:.1f} | {made['memory_gb']:.1f} |")
        said += [
            "",
            "At once is {tokens_per_s:.1f} times as fast, {further_per_s:.1f} times after the prompts.".format(**times),
        ]
    speeds = {way: known["tokens_per_s"] for way, known in found.items() if isinstance(known, dict)}
    speeds["TRL, best"] = max((speed for way, speed in speeds.items() if way.startswith("TRL")), default=float("nan"))
    reached = {way: ours / speed for way, speed in speeds.items() if way in GOALS}
    reached |= {"ceiling": ours / max(ceilings.values()), "memory": found["ours"]["memory_gb"]}
    reached |= {"answering": times["tokens_per_s"]}
    said += ["", "| goal, for a CPU with bf16 instructions | wanted | here | |", "| --- | ---: | ---: | --- |"]
    for name, value in reached.items():
        met = value <= GOALS[name] if name == "memory" else value >= GOALS[name]
        said.append(f"| {name} | {GOALS[name]:g} | {value:.2f} | {'met' if met else 'not met'} |")
    print("\n".join(said[7 + len(WAYS) :]))
    target = config.ROOT / "reports" / "published" / f"speed_{models.pick_device()}_{dtype}.md"
    target.write_text("\n".join(said) + "\n")


def row(name: str, found: dict | str, reference: dict, settings: str) -> str:
    if isinstance(found, str):
        return f"| {name} | - | - | - | failed: {found} |"
    ratio = reference["tokens_per_s"] / found["tokens_per_s"]
    return f"| {name} | {found['tokens_per_s']:.1f} | {ratio:.2f}x | {found['memory_gb']:.1f} | {settings} |"


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("rows", nargs="?", type=int, default=8)
    parser.add_argument("--task", type=json.loads, help=argparse.SUPPRESS)
    parser.add_argument("--root", type=Path, help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if not chosen.task:
        main(chosen.rows)
    elif chosen.task[0] == "prepare":
        print(json.dumps(prepare(chosen.root, chosen.task[1])))
    else:
        config.ROOT = chosen.root
        print(json.dumps({"train": train, "generate": generate}[chosen.task[0]](*chosen.task[1:])))
