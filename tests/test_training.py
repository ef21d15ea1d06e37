"""Training: the loss and the steps, that a kill at any moment changes nothing, and what is said when it cannot go on."""

import contextlib
import functools
import json
import math
import multiprocessing
import os
import resource
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pandas as pd
import psutil
import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny import corpus_rows, save_tiny
from transformers import AutoTokenizer, TrainerCallback

from interviewmate_utils import config, data, lora, models, training
from interviewmate_utils.training import checkpoints, packing
from interviewmate_utils.training import trainer as trainers

MODEL = "data/models/tiny"
DEFAULTS = {
    "profile": "tiny",
    "seed": 3,
    "run": "T",
    "corpus": "original",  # 22 examples are 6 steps an epoch, the last of them with half a batch
    "device": "cpu",
    "variants": [],
    "rank": 4,
    "alpha": 32,
    "dropout": 0.1,
    "target_modules": ["query_key_value"],
    "learning_rate": 2e-3,  # so that the validation loss falls to the end
    "weight_decay": 0.0,
    "epochs": 5.0,
    "batch_size": 4,
    "warmup_steps": 5,
}
# Accelerate shards over GPUs alone; told that processes on a CPU are of another such kind, it shards over them
SHARDED = """
import sys
from pathlib import Path
from accelerate.state import DistributedType, PartialState
from interviewmate_utils import config, training
from interviewmate_utils.training import checkpoints

def begin(self, *arguments, begin=PartialState.__init__, **options):
    begin(self, *arguments, **options)
    if self.distributed_type == DistributedType.MULTI_CPU:
        self.distributed_type = DistributedType.MULTI_XPU

def fit(trainer, identity, fit=checkpoints.fit):
    read = fit(trainer, identity)
    sys.stdout.write(f"sharded {all(hasattr(q, 'placements') for q in trainer.model.parameters())}\\n")
    return read

PartialState.__init__ = begin
checkpoints.fit, config.ROOT = fit, Path(sys.argv[2])
training.train_here(config.TrainLora.model_validate_json(sys.argv[1]))
"""
WORSENING = {"learning_rate": 0.5, "alpha": 64, "epochs": 12.0}


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A repository with a tiny model and two prepared corpora."""
    root = tmp_path_factory.mktemp("template")
    save_tiny(root / MODEL)
    tokenizer = AutoTokenizer.from_pretrained(root / MODEL)
    for name, count in (("original", 22), ("long", 64)):
        parts = {"train": range(count), "validation": range(64, 70), "test": range(70, 72)}
        dataset = data.build_dataset(corpus_rows(72), parts, tokenizer, 96)
        data.save_dataset(dataset, root / "data" / "processed" / "tiny" / name, MODEL)
    return root


def parameters(**changes: object) -> config.TrainLora:
    return config.TrainLora(**DEFAULTS | changes)


def prepare(root: Path, **changes: object):
    """A trainer as `training.train` makes it."""
    p = parameters(**changes)
    torch.manual_seed(p.seed)
    dataset = data.load_parts(p.processed)
    plan = training.schedule(len(dataset["train"]), p.epochs, p.batch_size)
    model = lora.adapt(models.load_model(p.model, "cpu"), p, plan["total_steps"])
    return trainers.make_trainer(model, dataset, p, 0, p.output / "checkpoints")


def train_in(root: Path, changes: dict) -> None:
    config.ROOT = root
    torch.set_num_threads(1)  # runs are compared to the bit; how many threads MKL takes may depend on the load
    with (root / "said.txt").open("a") as said, contextlib.redirect_stdout(said):
        training.train(parameters(**changes))


def log_of(root: Path, **changes: object) -> pd.DataFrame:
    record = json.loads((root / "reports" / "tiny" / parameters(**changes).run_name / "trained" / "training.json").read_text())
    return pd.DataFrame(record["log"]).astype(float)


def checkpoints_of(root: Path) -> Path:
    return root / "reports" / "tiny" / parameters().run_name / "checkpoints"


# --- the schedule, the loss, the order and the steps


def test_schedule_by_hand() -> None:
    expected = {"steps_per_epoch": 53, "total_steps": 265, "eval_steps": 27, "patience": 3}
    assert training.schedule(211, 5, 4) == expected
    assert training.schedule(8, 0.5, 4) == {"steps_per_epoch": 2, "total_steps": 1, "eval_steps": 1, "patience": 2}
    assert training.schedule(211, 12, 4)["patience"] == 6


@pytest.mark.parametrize("padded", [False, True])
def test_parts_hold_every_row_once_and_keep_to_the_limit(padded: bool) -> None:
    lengths = [5, 90, 17, 17, 40, 3, 61, 200, 8]
    for limit in (10, 100, 130, 1000):
        parts = trainers.in_parts(lengths, limit, padded)
        assert sorted(i for part in parts for i in part) == list(range(len(lengths)))
        for part in parts:
            sizes = [lengths[i] for i in part]
            size = len(part) * max(sizes) if padded else sum(sizes)
            assert size <= limit or len(part) == 1
    assert len(trainers.in_parts(lengths, 10_000, padded)) == 1


def test_what_a_token_keeps_for_the_backward_pass_is_known(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trainer, kept = (
        prepare(root, dropout=0.1, target_modules=["query_key_value", "dense", "dense_h_to_4h", "dense_4h_to_h"]),
        {},
    )
    weights = {q.untyped_storage().data_ptr() for q in trainer.model.parameters()}
    row = torch.arange(2, 66)

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        losses = packing.token_losses(trainer.model.train(), [(row, row)])
    monkeypatch.setitem(trainers.ACTIVATIONS, "cpu", sum(kept.values()))
    assert losses[0].shape == (63,)
    assert 0.7 * 64 <= trainers.tokens_at_once(trainer.model, 64, "cpu") <= 1.3 * 64


@pytest.mark.parametrize("tokens", [1, 10_000])
def test_training_loss_is_the_cross_entropy_of_the_answer_tokens(root: Path, monkeypatch, tokens: int) -> None:
    monkeypatch.setattr(trainers, "tokens_at_once", lambda *_, tokens=tokens: tokens)
    trainer = prepare(root, dropout=0.0, epochs=1.0, warmup_steps=1, batch_size=22)
    tokenizer, total, count = models.load_tokenizer(MODEL), 0.0, 0
    for row in data.load_parts(parameters().processed)["train"]:
        prompt = len(tokenizer(data.PROMPT.format(question=row["question"]))["input_ids"])
        with torch.inference_mode():
            chances = trainer.model.eval()(input_ids=torch.tensor([row["input_ids"]])).logits[0].log_softmax(-1)
        answer = list(enumerate(row["input_ids"]))[prompt:]
        total -= sum(chances[position - 1, token].item() for position, token in answer)
        count += len(answer)
    trainer.train()
    assert training.history(trainer).train_loss.dropna().item() == pytest.approx(total / count, rel=1e-5)


def test_neither_parts_nor_packing_change_the_run(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whole batches packed, rows one by one, padded batches, and padded rows two at a time."""
    found = []
    for tokens, packed in ((10_000, True), (1, True), (10_000, False), (130, False)):
        monkeypatch.setattr(trainers, "tokens_at_once", lambda *_, tokens=tokens: tokens)
        monkeypatch.setattr(packing, "supports", lambda _, packed=packed: packed)
        training.train(parameters(dropout=0.0))
        found.append((log_of(root), load_file(checkpoints_of(root).parent / "trained" / "adapter_model.safetensors")))
    whole, weights = found[0]
    moved = max(tensor.abs().max().item() for name, tensor in weights.items() if "lora_B" in name)  # they start at zero
    for log, other in found[1:]:
        pd.testing.assert_frame_equal(log, whole, rtol=1e-3)
        for name, tensor in other.items():
            assert (tensor - weights[name]).abs().max() < 0.01 * moved, name


def test_adalora_is_regularised_once_a_batch_however_many_parts_it_has(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """peft adds the regulariser, of about 0.1 here, to the loss of every forward pass."""
    logs = []
    for tokens in (10_000, 1):
        monkeypatch.setattr(trainers, "tokens_at_once", lambda *_, tokens=tokens: tokens)
        training.train(parameters(variants=["adalora"], dropout=0.0, epochs=2.0))
        logs.append(log_of(root))
    pd.testing.assert_frame_equal(*logs, rtol=1e-3)


def test_batches_are_alike_in_length_and_each_epoch_has_its_own_order(root: Path) -> None:
    trainer = prepare(root, corpus="long")
    lengths, loader = trainer.train_dataset["length"], trainer.get_train_dataloader()
    orders = []
    for epoch in (0, 1, 0):
        loader.set_epoch(epoch)
        torch.manual_seed(epoch + len(orders))  # nothing but seed and epoch may matter
        orders.append(list(loader.batch_sampler.sampler))
    assert orders[0] == orders[2] != orders[1]
    assert all(sorted(order) == list(range(64)) for order in orders)

    def padding(order: list[int]) -> int:
        batches = [[lengths[i] for i in order[k : k + 4]] for k in range(0, 64, 4)]
        return sum(len(batch) * max(batch) - sum(batch) for batch in batches)

    assert max(map(padding, orders)) < padding(list(range(64))) / 2


def test_learning_rate_warms_up_and_falls_as_a_cosine(uninterrupted: Path) -> None:
    log, warm, total = log_of(uninterrupted), 5, 30
    assert log.step.tolist() == list(range(total + 1))
    for done, rate in enumerate(log.learning_rate[1:]):
        turned = math.pi * (done - warm) / (total - warm)
        assert rate == pytest.approx(2e-3 * (done / warm if done < warm else 0.5 * (1 + math.cos(turned))), abs=1e-9)


def test_gradients_are_clipped_to_norm_one(root: Path) -> None:
    norms = []

    class Measure(TrainerCallback):
        def on_pre_optimizer_step(self, _args, _state, _control, model, **_):
            norms.append(torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None]).norm().item())

    trainer = prepare(root, alpha=256, epochs=1.0)
    trainer.add_callback(Measure())
    trainer.train()
    logged = training.history(trainer).gradient_norm.dropna().tolist()
    assert max(logged) > 1.5  # there was something to clip
    assert norms == pytest.approx([min(1.0, norm) for norm in logged], rel=1e-4)


def test_weight_decay_pulls_the_weights_towards_zero(root: Path) -> None:
    sizes = []
    for decay in (0.0, 0.9):
        training.train(parameters(weight_decay=decay, learning_rate=0.05))
        weights = load_file(checkpoints_of(root).parent / "trained" / "adapter_model.safetensors")
        sizes.append(sum(t.norm().item() for name, t in weights.items() if "lora_A" in name))
    assert sizes[1] < 0.98 * sizes[0]


@pytest.mark.parametrize("variants", [[], ["full"]], ids=["lora", "full"])
def test_a_base_with_dropout_of_its_own_is_not_packed_in_training(root: Path, variants: list[str]) -> None:
    """Packed it would train without that dropout; where dropout is off, as in a model just read, it may be packed."""
    path = root / MODEL / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"hidden_dropout": 0.1}))
    trainer = prepare(root, variants=variants)
    assert not trainer.packed
    assert packing.supports(trainer.model.eval())


def test_gradient_checkpointing_gives_the_same_run(root: Path, uninterrupted: Path) -> None:
    training.train(parameters(variants=["checkpointing"]))
    pd.testing.assert_frame_equal(log_of(root), log_of(uninterrupted), rtol=1e-5)


@pytest.mark.parametrize("variants", [["full"], ["dora"], ["rslora"], ["pissa"], ["olora"], ["adalora"]])
def test_every_variant_learns_and_keeps_what_it_learnt(root: Path, variants: list[str]) -> None:
    """The kept weights, loaded as any reader would, show the best validation loss of the log."""
    rate = {"full": 1e-3, "adalora": 0.1}.get(variants[0], 5e-3)  # AdaLoRA's product of three starts more slowly
    p = parameters(variants=variants, epochs=3.0, learning_rate=rate)
    record = training.train(p)
    log = pd.DataFrame(record["log"]).astype(float).set_index("step").validation_loss.dropna()
    assert log.min() < log[0] - 0.02
    kept = lora.load_trained(MODEL, p.trained, "cpu")
    loss = training.mean_loss(kept, data.load_parts(p.processed)["validation"], 0)
    assert loss == pytest.approx(log[1:].min(), rel=2e-3)
    assert not list(p.output.glob("checkpoints")) + list(p.output.glob("start"))


# --- the best weights, and when to stop


@pytest.fixture(scope="module")
def worsening(template: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run whose learning rate is absurd, so that its validation loss soon gets worse."""
    folder = Path(shutil.copytree(template, tmp_path_factory.mktemp("worsening") / "root"))
    finish(folder, WORSENING)
    return folder


def test_training_stops_three_epochs_after_the_best(worsening: Path) -> None:
    validation = log_of(worsening).set_index("step").validation_loss.dropna()[1:]
    assert validation.index.tolist() == list(range(3, int(validation.index[-1]) + 1, 3))
    assert validation.index[-1] == validation.idxmin() + 3 * 6 < 72
    assert validation.iloc[-1] > validation.min()


def test_kept_weights_are_the_best_ones(worsening: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(config, "ROOT", worsening)
    model = lora.load_trained(MODEL, parameters().trained, "cpu")
    loss = training.mean_loss(model, data.load_parts(parameters().processed)["validation"], 0)
    assert loss == pytest.approx(log_of(worsening).validation_loss[1:].min(), rel=1e-5)
    assert loss < log_of(worsening).validation_loss.dropna().iloc[-1]


def test_step_zero_is_the_base(uninterrupted: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(config, "ROOT", uninterrupted)
    rows = data.load_parts(parameters().processed)["validation"]
    base = training.mean_loss(models.load_model(MODEL, "cpu"), rows, 0)
    assert log_of(uninterrupted).validation_loss[0] == pytest.approx(base, rel=1e-5)


# --- kill -9

_processes = multiprocessing.get_context("forkserver")
_processes.set_forkserver_preload(["datasets", "peft", "transformers.trainer", "interviewmate_utils.training"])


def start(root: Path, changes: dict) -> multiprocessing.Process:
    """The training in a process of its own, as the kill may hit it anywhere."""
    process = _processes.Process(target=train_in, args=(root, changes))
    process.start()
    return process


def finish(root: Path, changes: dict) -> None:
    process = start(root, changes)
    process.join(180)
    assert process.exitcode == 0


def kill_at(root: Path, changes: dict, sign: str) -> None:
    """SIGKILL the run as soon as `sign`, a file or folder among its checkpoints, is there."""
    process = start(root, changes)
    deadline = time.monotonic() + 180
    while not (checkpoints_of(root) / sign).exists() and process.is_alive() and time.monotonic() < deadline:
        time.sleep(0.001)
    process.kill()
    process.join()
    assert process.exitcode == -9, "the run ended before the kill"


def assert_same_run(one: Path, other: Path) -> None:
    pd.testing.assert_frame_equal(log_of(one), log_of(other), check_exact=True)
    kept = [checkpoints_of(root).parent / "trained" / "adapter_model.safetensors" for root in (one, other)]
    assert kept[0].read_bytes() == kept[1].read_bytes()


def resumed(root: Path) -> bool:
    return json.loads((checkpoints_of(root).parent / "trained" / "training.json").read_text())["resumed"]


@pytest.fixture(scope="module")
def uninterrupted(template: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = Path(shutil.copytree(template, tmp_path_factory.mktemp("uninterrupted") / "root"))
    finish(folder, {})
    return folder


def test_kills_and_reruns_equal_the_uninterrupted_run(root: Path, uninterrupted: Path) -> None:
    """Killed while the first checkpoint is written, again in the third epoch with the newest one half written."""
    kill_at(root, {}, "checkpoint-3")
    kill_at(root, {}, "checkpoint-15/checksums.json")
    (checkpoints_of(root) / "checkpoint-15" / "checksums.json").unlink()
    assert (checkpoints_of(root) / "checkpoint-12" / "checksums.json").exists()
    kill_at(root, {}, "checkpoint-18/checksums.json")
    finish(root, {})
    assert resumed(root)
    assert_same_run(root, uninterrupted)


def test_kill_between_epochs_equals_the_uninterrupted_run(root: Path, uninterrupted: Path) -> None:
    kill_at(root, {}, "checkpoint-12/checksums.json")
    finish(root, {})
    assert_same_run(root, uninterrupted)


def test_adalora_killed_while_it_gives_ranks_up_and_after_goes_on_as_the_uninterrupted_run(root: Path, template: Path) -> None:
    """30 steps, of which 3 to 15 give ranks up: by how important each has been, which must survive the kill.

    Not to the bit: matrices this small are multiplied by code that depends on where they lie in memory.
    """
    changes = {"variants": ["adalora"], "learning_rate": 0.1}
    whole = Path(shutil.copytree(template, root.parent / "whole"))
    finish(whole, changes)
    kill_at(root, changes, "checkpoint-9/checksums.json")
    kill_at(root, changes, "checkpoint-18/checksums.json")
    finish(root, changes)
    assert resumed(root)
    pd.testing.assert_frame_equal(log_of(root), log_of(whole), rtol=1e-4)
    kept = [load_file(checkpoints_of(one).parent / "trained" / "adapter_model.safetensors") for one in (root, whole)]
    for name, weight in kept[0].items():
        torch.testing.assert_close(weight, kept[1][name], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("file", ["adapter_model.safetensors", "optimizer.pt", "trainer_state.json", "rng_state.pth"])
def test_a_damaged_checkpoint_is_named_and_skipped(root: Path, uninterrupted: Path, file: str) -> None:
    kill_at(root, {}, "checkpoint-12/checksums.json")
    newest = max(checkpoints_of(root).glob("checkpoint-*"), key=lambda p: int(p.name.split("-")[1]))
    content = bytearray((newest / file).read_bytes())
    content[len(content) // 2] ^= 0xFF
    (newest / file).write_bytes(content)
    finish(root, {})
    assert f"{newest.name} is skipped: {file} is damaged" in (root / "said.txt").read_text()
    assert resumed(root)
    assert_same_run(root, uninterrupted)


def test_without_its_best_checkpoint_a_run_starts_afresh(worsening: Path, root: Path) -> None:
    kill_at(root, WORSENING, "checkpoint-18/checksums.json")
    best = json.loads(next(checkpoints_of(root).glob("checkpoint-1*/trainer_state.json")).read_text())["best_global_step"]
    (checkpoints_of(root) / f"checkpoint-{best}" / "adapter_model.safetensors").unlink()
    finish(root, WORSENING)
    assert f"is skipped: the best one before it, checkpoint-{best}, is damaged" in (root / "said.txt").read_text()
    assert not resumed(root)
    assert_same_run(root, worsening)


def test_early_stopping_waits_no_longer_after_a_kill(worsening: Path, root: Path) -> None:
    """Killed in the middle of its waiting for a better validation loss."""
    best = int(log_of(worsening).set_index("step").validation_loss[1:].idxmin())
    kill_at(root, WORSENING, f"checkpoint-{best + 9}/checksums.json")
    finish(root, WORSENING)
    assert resumed(root)
    assert_same_run(root, worsening)


def test_a_kill_after_the_last_step_does_not_train_on(worsening: Path, root: Path, monkeypatch) -> None:
    """An early stop, and the process dies before the weights are kept."""
    with monkeypatch.context() as patch:
        patch.setattr(lora, "save_trained", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            training.train(parameters(**WORSENING))
    newest = max(int(p.name.split("-")[1]) for p in checkpoints_of(root).glob("checkpoint-*"))
    training.train(parameters(**WORSENING))
    assert log_of(root).step.max() == newest == log_of(worsening).step.max()
    assert resumed(root)


def test_other_parameters_start_afresh(root: Path, uninterrupted: Path) -> None:
    kill_at(root, {"rank": 2}, "checkpoint-6/checksums.json")
    finish(root, {})
    assert not resumed(root)
    assert_same_run(root, uninterrupted)


def test_other_data_or_weights_start_afresh(root: Path) -> None:
    kill_at(root, {}, "checkpoint-6/checksums.json")
    path = root / MODEL / "model.safetensors"
    weights = {name: tensor * 1.01 for name, tensor in load_file(path).items()}
    save_file(weights, path, metadata={"format": "pt"})
    finish(root, {})
    assert not resumed(root)


# --- what stops a training


def test_a_loss_that_is_not_a_number_names_step_and_batch(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ids = data.load_parts(parameters().processed)["train"][17]["input_ids"]
    real, steps = packing.token_losses, []

    def poisoned(model, rows):
        steps.append(model.training)
        losses = real(model, rows)
        return [loss * math.nan if row.tolist() == ids else loss for (row, _), loss in zip(rows, losses, strict=True)]

    monkeypatch.setattr(packing, "token_losses", poisoned)
    with pytest.raises(
        training.TrainingError, match=r"the loss is nan at step \d+, in the batch of the training rows"
    ) as caught:
        training.train(parameters())
    message = str(caught.value)
    assert f"at step {sum(steps)}," in message
    assert "17" in message.split("rows ")[1].split(".")[0].split(", ")
    assert "Lower learning_rate (0.002) or lengthen warmup_steps (5)" in message
    assert not parameters().trained.exists()


def test_a_diverging_run_keeps_its_last_good_checkpoint(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real, calls = packing.token_losses, []

    def failing(model, rows):
        losses = real(model, rows)
        calls.append(model.training)
        return [loss * math.inf for loss in losses] if sum(calls) > 10 else losses

    monkeypatch.setattr(packing, "token_losses", failing)
    with pytest.raises(training.TrainingError, match=r"checkpoint-9, is kept"):
        training.train(parameters())
    monkeypatch.setattr(packing, "token_losses", real)
    training.train(parameters())
    assert resumed(root)


def test_out_of_memory_halves_the_parts_and_gives_the_same_run(root: Path, uninterrupted: Path, monkeypatch, capsys) -> None:
    """The allocator's refusal is played here: how much fits is not for a test to know."""
    real = packing.token_losses

    def small(model, rows):
        if model.training and len(rows) > 1 and sum(len(ids) for ids, _ in rows) > 150:
            raise RuntimeError("[enforce fail at alloc_cpu.cpp:124] DefaultCPUAllocator: can't allocate memory")
        return real(model, rows)

    monkeypatch.setattr(packing, "token_losses", small)
    training.train(parameters(dropout=0.0))
    assert "out of memory: from here on at most" in capsys.readouterr().out
    cramped = log_of(root)
    monkeypatch.setattr(packing, "token_losses", real)
    training.train(parameters(dropout=0.0))
    pd.testing.assert_frame_equal(cramped, log_of(root), rtol=1e-3)


CRAMPED = """
import resource, sys
from pathlib import Path
sys.path.insert(0, sys.argv[2])
import torch
from interviewmate_utils import config, training
from interviewmate_utils.training import packing
from test_training import parameters
config.ROOT = Path(sys.argv[1])
real = packing.token_losses
def limited(model, rows):
    if model.training:  # from the first step on, the process gets no more address space than it has
        size = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (size, size))
        torch.empty(2**27)
    return real(model, rows)
packing.token_losses = limited
try:
    training.train(parameters())
except training.TrainingError as error:
    print("SAID", error)
"""


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="needs /proc, to limit the memory of a process")
def test_out_of_memory_says_what_to_lower(root: Path) -> None:
    command = [os.sys.executable, "-c", CRAMPED, str(root), str(Path(__file__).parent)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=os.environ | {"OMP_NUM_THREADS": "1"})
    said = done.stdout.split("SAID ")[1]
    assert "out of memory at step 1, with" in said, done.stderr[-2000:]
    assert "add 'checkpointing' to variants; lower max_length in 01_prepare_data; choose fewer target_modules" in said


@pytest.fixture
def full_disk(root: Path) -> Iterator[Path]:
    """A file system of 3 MB for the run's folder."""
    folder = parameters().output
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=3m", "tmpfs", str(folder)], capture_output=True, check=False)
    if done.returncode:
        pytest.skip("needs the right to mount a small file system (root)")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_a_full_disk_keeps_the_last_good_checkpoint(root: Path, full_disk: Path, monkeypatch) -> None:
    real = checkpoints.seal

    def fill(checkpoint: Path) -> None:
        real(checkpoint)
        if checkpoint.name == "checkpoint-6":
            room = shutil.disk_usage(full_disk).free
            (full_disk / "filler").write_bytes(bytes(max(0, room - 20_000)))

    monkeypatch.setattr(checkpoints, "seal", fill)
    with pytest.raises(training.TrainingError, match=r"checkpoint-9 could not be written") as caught:
        training.train(parameters(learning_rate=1e-3))
    assert "No space left" in str(caught.value)
    assert "checkpoint-6, is kept" in str(caught.value)
    (full_disk / "filler").unlink()
    assert sorted(p.name for p in checkpoints_of(root).iterdir())[-2] == "checkpoint-6"


def test_limit_on_file_size_stops_with_the_reason(root: Path) -> None:
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4_000, limits[1]))
    try:
        with pytest.raises(training.TrainingError, match=r"checkpoint-3 could not be written.*No checkpoint had been written"):
            training.train(parameters())
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert not list(checkpoints_of(root).glob("checkpoint-*"))


def test_model_that_overflows_its_devices_is_not_trained(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """peft cannot train what lies on disk, and adding an adapter to it would rewrite the base's own file."""
    spread = functools.partial(models.load_model, device_map="auto", max_memory={"cpu": 90_000})
    trained, digest = training.train(parameters(epochs=1.0)), models.weights_digest(MODEL)
    assert trained["steps"] == 6
    monkeypatch.setattr(models, "load_model", spread)
    with pytest.raises(training.TrainingError, match=rf"{MODEL} does not fit .* 4 bits .*cuda\*4\+fsdp"):
        training.train(parameters(run="other"))
    with pytest.raises(models.ModelError, match=f"{MODEL} does not fit into the memory"):
        lora.load_trained(MODEL, parameters().trained, "cpu")
    assert models.weights_digest(MODEL) == digest


# --- several processes


def assert_same_curve_and_kept_weights(root: Path, one: pd.DataFrame) -> None:
    two = log_of(root)
    pd.testing.assert_frame_equal(one, two, rtol=1e-3)
    kept = lora.load_trained(MODEL, parameters().trained, "cpu")
    loss = training.mean_loss(kept, data.load_parts(parameters().processed)["validation"], 0)
    assert loss == pytest.approx(two.validation_loss[1:].min(), rel=1e-3)


def test_two_processes_give_the_loss_curve_of_one(root: Path) -> None:
    """The same batches, halved; without dropout, whose draws differ. Sums in another order differ in the last digits."""
    one = pd.DataFrame(training.train(parameters(dropout=0.0, epochs=2.0))["log"]).astype(float)
    training.train(parameters(dropout=0.0, epochs=2.0, device="cpu*2"))
    assert_same_curve_and_kept_weights(root, one)


@pytest.mark.parametrize("variants", [[], ["full"]], ids=["lora", "full"])
def test_processes_that_share_the_weights_give_the_loss_curve_of_one(root: Path, variants: list[str]) -> None:
    """Killed once on the way, too."""
    changes = {"dropout": 0.0, "epochs": 2.0, "variants": variants, "learning_rate": 1e-3}
    one = pd.DataFrame(training.train(parameters(**changes))["log"]).astype(float)
    (root / "sharded.py").write_text(SHARDED)
    p = parameters(**changes, device="cpu*2+fsdp")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", str(root / "sharded.py")]
    options = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True, "cwd": Path(training.__file__).parents[2]}
    with subprocess.Popen([*command, p.model_dump_json(), str(root)], start_new_session=True, **options) as killed:
        deadline = time.monotonic() + 120
        while not (checkpoints_of(root) / "checkpoint-6/checksums.json").exists() and time.monotonic() < deadline:
            assert killed.poll() is None, killed.stdout.read()[-3000:]
            time.sleep(0.01)
        for process in [*psutil.Process(killed.pid).children(recursive=True), psutil.Process(killed.pid)]:
            process.kill()
    done = subprocess.run([*command, p.model_dump_json(), str(root)], timeout=180, check=False, **options)
    assert done.returncode == 0, done.stdout[-3000:]
    assert done.stdout.count("sharded True") == 2
    assert resumed(root)
    assert_same_curve_and_kept_weights(root, one)


@pytest.mark.parametrize(
    ("device", "variants", "said"),
    [
        ("cpu*2+fsdp", [], r"device = 'cpu\*2\+fsdp': weights are sharded over GPUs"),
        ("cuda*2+fsdp", ["adalora"], "variants: adalora cannot be sharded"),
        ("cuda*2+fsdp", ["4bit"], "variants: 4bit cannot be sharded"),
    ],
)
def test_what_cannot_be_sharded_is_refused(root: Path, device: str, variants: list[str], said: str) -> None:
    with pytest.raises((training.TrainingError, ValueError), match=said):
        training.train(parameters(device=device, variants=variants))


def test_processes_end_with_the_one_that_started_them_and_a_rerun_goes_on_as_if_nothing_had_been(
    root: Path, template: Path
) -> None:
    """Killed in mid-epoch, where the order of the rest of the epoch must not be drawn anew."""
    changes = {"device": "cpu*2", "epochs": 3.0}
    whole = Path(shutil.copytree(template, root.parent / "whole"))
    finish(whole, changes)
    kill_at(root, changes, "checkpoint-9/checksums.json")
    ours = [p for p in psutil.process_iter(["cmdline"]) if str(root) in " ".join(p.info["cmdline"] or [])]
    _, alive = psutil.wait_procs(ours, 60)
    assert not alive
    finish(root, changes)
    assert resumed(root)
    pd.testing.assert_frame_equal(log_of(root), log_of(whole), rtol=1e-5)


def test_why_a_training_process_failed_is_said(root: Path) -> None:
    for file in parameters().processed.rglob("*.arrow"):
        file.write_bytes(b"no table")
    with pytest.raises(training.TrainingError, match=r"(?s)a training process failed:\nTraceback.*Arrow"):
        training.train(parameters(device="cpu*2"))


# --- what a reader gets


def test_history_has_all_columns_even_where_nothing_was_validated_yet(root: Path, uninterrupted: Path) -> None:
    columns = ["step", "epoch", "train_loss", "validation_loss", "learning_rate", "gradient_norm"]
    log = log_of(uninterrupted)
    assert log.columns.tolist() == columns
    assert log.validation_loss.dropna().index.tolist() == list(range(0, 31, 3))
    assert log.epoch.iloc[-1] == 5
    assert training.history(prepare(root)).columns.tolist() == columns


def test_epoch_table_by_hand() -> None:
    nothing = float("nan")
    log = pd.DataFrame(
        {
            "epoch": [0.0, 0.5, 1.0, 1.5, 2.0, 2.5],
            "train_loss": [nothing, 4.0, 2.0, 1.5, 0.5, 0.25],
            "validation_loss": [5.0, nothing, 3.0, 2.5, nothing, nothing],
            "learning_rate": [nothing, 0.1, 0.2, 0.15, 0.05, 0.0],
        }
    )
    table = training.epoch_table(log)
    assert table.index.tolist() == [0, 1, 2, 3]
    assert table.train_loss.tolist()[1:] == [3.0, 1.0, 0.25]
    assert table.validation_loss.tolist()[:3] == [5.0, 3.0, 2.5]
    assert math.isnan(table.validation_loss[3])
    assert table.learning_rate.tolist()[1:] == [0.2, 0.05, 0.0]
