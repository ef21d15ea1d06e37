"""LoRA training: what is trained, that batching does not change it, and that a kill at any moment does not either."""

import json
import math
import multiprocessing
import resource
import shutil
import time
from pathlib import Path

import pandas as pd
import pytest
import torch
from safetensors.torch import load_file
from tiny import corpus_rows, save_tiny
from transformers import AutoTokenizer, TrainerCallback

from interviewmate_utils import answering, config, data, lora, models

ALL_LINEAR = ["query_key_value", "dense", "dense_h_to_4h", "dense_4h_to_h"]
DEFAULTS = {
    "profile": "tiny",
    "seed": 3,
    "run": "T",
    "device": "cpu",
    "rank": 4,
    "alpha": 32,
    "dropout": 0.1,
    "target_modules": ["query_key_value"],
    "learning_rate": 5e-3,
    "epochs": 5.0,
    "batch_size": 4,
    "micro_batch": 2,
    "warmup_steps": 5,
    "eval_steps": 7,
}
WEIGHTS = "adapter/adapter_model.safetensors"


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a tiny model and a prepared corpus."""
    folder = tmp_path_factory.mktemp("tiny")
    save_tiny(folder / "model")
    parts = {"train": range(64), "validation": range(64, 70), "test": range(70, 72)}
    tokenizer = AutoTokenizer.from_pretrained(folder / "model")
    data.save_dataset(data.build_dataset(corpus_rows(72), parts, tokenizer, 96), folder / "corpus")
    return folder


def prepare(tiny: Path, folder: Path, examples: int = 22, **changes: object):
    """A trainer as the notebook makes it. 22 examples are 6 steps an epoch, the last of them with half a batch."""
    p = config.TrainLora(**DEFAULTS | {"model": str(tiny / "model")} | changes)
    torch.manual_seed(p.seed)
    dataset = data.load_parts(tiny / "corpus")
    dataset["train"] = dataset["train"].select(range(examples))
    model = lora.add_lora(models.load_model(p.model, p.device), p.rank, p.alpha, p.dropout, p.target_modules)
    return lora.make_trainer(model, dataset, p, 0, folder / "checkpoints"), p


def run_training(tiny: Path, folder: Path, **changes: object) -> bool:
    """Train in `folder` and keep adapter and history there; True if it went on from a checkpoint."""
    trainer, p = prepare(tiny, folder, **changes)
    resumed = lora.train(trainer, p.model_dump())
    lora.history(trainer).to_json(folder / "history.json", double_precision=15)
    lora.save_adapter(trainer.model, folder / "adapter")
    (folder / "resumed.json").write_text(json.dumps(resumed))
    return resumed


def log_of(folder: Path) -> pd.DataFrame:
    return pd.read_json(folder / "history.json", precise_float=True)


# --- what is trained


@pytest.mark.parametrize(
    ("rank", "targets", "trainable", "share"),
    [
        (8, ["query_key_value"], 1_572_864, "0.1198"),
        (4, ["query_key_value"], 786_432, "0.0599"),
        (2, ["query_key_value"], 393_216, "0.0300"),
        (8, ALL_LINEAR, 6_291_456, "0.4774"),
        (16, ALL_LINEAR, 12_582_912, "0.9502"),
    ],
)
def test_full_size_counts_are_those_of_falcon_rw_1b(rank: int, targets: list[str], trainable: int, share: str) -> None:
    counted, total = lora.full_size_counts(rank, targets)
    assert (counted, total - counted) == (trainable, 1_311_625_216)
    assert f"{100 * counted / total:.4f}" == share


def test_tiny_counts_by_hand(tiny: Path) -> None:
    model = models.load_model(str(tiny / "model"), "cpu")
    _, before = lora.count_parameters(model)
    trainable, total = lora.count_parameters(lora.add_lora(model, 4, 8, 0.0, ["query_key_value", "dense"]))
    assert trainable == 2 * 4 * ((32 + 96) + (32 + 32))  # layers x rank x (inputs + outputs)
    assert total == before + trainable


def test_unknown_target_is_named_with_those_there_are(tiny: Path) -> None:
    with pytest.raises(ValueError, match=r"q_proj, v_proj not in this model") as caught:
        lora.add_lora(models.load_model(str(tiny / "model"), "cpu"), 4, 8, 0.0, ["q_proj", "dense", "v_proj"])
    assert str(caught.value).endswith("dense, dense_4h_to_h, dense_h_to_4h, query_key_value")


def test_wrapping_twice_is_refused(tiny: Path) -> None:
    base = models.load_model(str(tiny / "model"), "cpu")
    adapted = lora.add_lora(base, 4, 8, 0.0, ["query_key_value"])
    for again in (adapted, base):  # peft changes the base in place
        with pytest.raises(ValueError, match="already carries an adapter"):
            lora.add_lora(again, 4, 8, 0.0, ["query_key_value"])


def test_schedule_by_hand() -> None:
    assert lora.schedule(211, 5, 4, 25) == {"steps_per_epoch": 53, "total_steps": 265, "patience": 6}
    assert lora.schedule(8, 0.5, 4, 25) == {"steps_per_epoch": 2, "total_steps": 1, "patience": 1}


@pytest.mark.parametrize("micro_batch", [1, 2, 4])
def test_steps_are_those_of_the_schedule(tiny: Path, tmp_path: Path, micro_batch: int) -> None:
    run_training(tiny, tmp_path, micro_batch=micro_batch, epochs=1.5)
    assert log_of(tmp_path).step.max() == lora.schedule(22, 1.5, 4, 7)["total_steps"] == 9


# --- the loss, the order and the steps


@pytest.mark.parametrize("micro_batch", [1, 4])
def test_training_loss_is_the_cross_entropy_of_the_answer_tokens(tiny: Path, tmp_path: Path, micro_batch: int) -> None:
    trainer, _ = prepare(tiny, tmp_path, 4, dropout=0.0, epochs=1.0, eval_steps=1, warmup_steps=1, micro_batch=micro_batch)
    tokenizer = models.load_tokenizer(str(tiny / "model"))
    total, count = 0.0, 0
    for row in data.load_parts(tiny / "corpus")["train"].select(range(4)):
        prompt = len(tokenizer(data.PROMPT.format(question=row["question"]))["input_ids"])
        with torch.inference_mode():
            chances = trainer.model.eval()(input_ids=torch.tensor([row["input_ids"]])).logits[0].log_softmax(-1)
        answer = list(enumerate(row["input_ids"]))[prompt:]
        total -= sum(chances[position - 1, token].item() for position, token in answer)
        count += len(answer)
    trainer.train()
    assert lora.history(trainer).train_loss[0] == pytest.approx(total / count, rel=1e-5)


def test_micro_batches_do_not_change_the_run(tiny: Path, tmp_path: Path) -> None:
    for micro_batch in (1, 2, 4):
        run_training(tiny, tmp_path / str(micro_batch), micro_batch=micro_batch, dropout=0.0)
    whole, weights = log_of(tmp_path / "4").drop(columns="epoch"), load_file(tmp_path / "4" / WEIGHTS)
    moved = max(tensor.abs().max().item() for name, tensor in weights.items() if "lora_B" in name)  # they start at zero
    for micro_batch in ("1", "2"):
        log = log_of(tmp_path / micro_batch).drop(columns="epoch")  # its fractions count micro-batches
        pd.testing.assert_frame_equal(log, whole, rtol=1e-3)
        for name, tensor in load_file(tmp_path / micro_batch / WEIGHTS).items():
            assert (tensor - weights[name]).abs().max() < 0.01 * moved, name


def test_batches_are_alike_in_length_and_each_epoch_has_its_own_order(tiny: Path, tmp_path: Path) -> None:
    trainer, _ = prepare(tiny, tmp_path, 64)
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


def test_learning_rate_warms_up_and_falls_as_a_cosine(tiny: Path, tmp_path: Path) -> None:
    run_training(tiny, tmp_path)
    log, warm, total = log_of(tmp_path), 5, 30
    assert log.step.tolist() == list(range(1, total + 1))
    for done, rate in enumerate(log.learning_rate):
        turned = math.pi * (done - warm) / (total - warm)
        assert rate == pytest.approx(5e-3 * (done / warm if done < warm else 0.5 * (1 + math.cos(turned))), abs=1e-9)


def test_gradients_are_clipped_to_norm_one(tiny: Path, tmp_path: Path) -> None:
    norms = []

    class Measure(TrainerCallback):
        def on_pre_optimizer_step(self, _args, _state, _control, model, **_):
            norms.append(torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None]).norm().item())

    trainer, _ = prepare(tiny, tmp_path, alpha=256, epochs=1.0)
    trainer.add_callback(Measure())
    trainer.train()
    logged = lora.history(trainer).gradient_norm.tolist()
    assert max(logged) > 1.5  # there was something to clip
    assert norms == pytest.approx([min(1.0, norm) for norm in logged], rel=1e-4)


# --- the best adapter, and when to stop


@pytest.fixture(scope="module")
def worsening(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run whose learning rate is absurd, so that its validation loss soon gets worse."""
    folder = tmp_path_factory.mktemp("worsening")
    run_training(tiny, folder, learning_rate=0.5, alpha=64, epochs=12.0, eval_steps=6)
    return folder


def test_training_stops_three_epochs_after_the_best(worsening: Path) -> None:
    validation = log_of(worsening).set_index("step").validation_loss.dropna()
    assert validation.index.tolist() == list(range(6, validation.index[-1] + 1, 6))
    assert validation.index[-1] == validation.idxmin() + 3 * 6 < 72
    assert validation.iloc[-1] > validation.min()


def test_kept_adapter_is_the_best_one(worsening: Path, tiny: Path) -> None:
    model = models.load_adapted(str(tiny / "model"), worsening / "adapter", "cpu")
    losses = answering.answer_loss(model, list(data.load_parts(tiny / "corpus")["validation"]), 0)
    assert sum(s for s, _ in losses) / sum(n for _, n in losses) == pytest.approx(
        log_of(worsening).validation_loss.min(), rel=1e-5
    )


# --- kill -9

_processes = multiprocessing.get_context("forkserver")
_processes.set_forkserver_preload(
    ["datasets", "peft", "transformers.trainer", "interviewmate_utils.lora", "interviewmate_utils.models"]
)


def start(tiny: Path, folder: Path, changes: dict) -> multiprocessing.Process:
    """`run_training` in a process of its own, with one thread, as the kill may hit it anywhere."""
    process = _processes.Process(target=run_training, args=(tiny, folder), kwargs=changes)
    process.start()
    return process


def finish(tiny: Path, folder: Path, changes: dict) -> None:
    process = start(tiny, folder, changes)
    process.join(120)
    assert process.exitcode == 0


def kill_at(tiny: Path, folder: Path, changes: dict, sign: str) -> None:
    """SIGKILL the run as soon as `sign`, a file or folder among its checkpoints, is there."""
    process = start(tiny, folder, changes)
    deadline = time.monotonic() + 120
    while not (folder / "checkpoints" / sign).exists() and process.is_alive() and time.monotonic() < deadline:
        time.sleep(0.001)
    process.kill()
    process.join()
    assert process.exitcode == -9, "the run ended before the kill"


def assert_same_run(one: Path, other: Path) -> None:
    pd.testing.assert_frame_equal(log_of(one), log_of(other), check_exact=True)
    assert (one / WEIGHTS).read_bytes() == (other / WEIGHTS).read_bytes()


@pytest.fixture(scope="module")
def uninterrupted(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("uninterrupted")
    finish(tiny, folder, {})
    return folder


def test_kills_and_reruns_equal_the_uninterrupted_run(tiny: Path, tmp_path: Path, uninterrupted: Path) -> None:
    """Killed in the second epoch while the checkpoint is written, again in the fourth with the newest checkpoint half
    written, and once more after the end of training but before the adapter was kept."""
    checkpoints = tmp_path / "checkpoints"
    kill_at(tiny, tmp_path, {}, "checkpoint-7")
    kill_at(tiny, tmp_path, {}, "checkpoint-21/trainer_state.json")
    (checkpoints / "checkpoint-21" / "trainer_state.json").unlink()
    assert (checkpoints / "checkpoint-14" / "trainer_state.json").exists()
    kill_at(tiny, tmp_path, {}, "checkpoint-28/trainer_state.json")
    state = checkpoints / "checkpoint-28" / "trainer_state.json"
    state.write_text(state.read_text()[:100])
    finish(tiny, tmp_path, {})
    assert json.loads((tmp_path / "resumed.json").read_text())
    assert_same_run(tmp_path, uninterrupted)
    shutil.rmtree(tmp_path / "adapter")
    finish(tiny, tmp_path, {})
    assert_same_run(tmp_path, uninterrupted)


def test_kill_between_epochs_equals_the_uninterrupted_run(tiny: Path, tmp_path: Path) -> None:
    changes = {"eval_steps": 6, "epochs": 3.0}
    finish(tiny, tmp_path / "whole", changes)
    kill_at(tiny, tmp_path / "killed", changes, "checkpoint-12/trainer_state.json")
    finish(tiny, tmp_path / "killed", changes)
    assert_same_run(tmp_path / "killed", tmp_path / "whole")


def test_rerun_of_a_run_that_stopped_early_does_not_train_on(tiny: Path, worsening: Path, tmp_path: Path) -> None:
    shutil.copytree(worsening, tmp_path / "rerun")
    shutil.rmtree(tmp_path / "rerun" / "adapter")
    assert run_training(tiny, tmp_path / "rerun", learning_rate=0.5, alpha=64, epochs=12.0, eval_steps=6)
    assert_same_run(tmp_path / "rerun", worsening)


def test_other_parameters_start_afresh(tiny: Path, tmp_path: Path, uninterrupted: Path) -> None:
    kill_at(tiny, tmp_path, {"rank": 2}, "checkpoint-7/trainer_state.json")
    finish(tiny, tmp_path, {})
    assert not json.loads((tmp_path / "resumed.json").read_text())
    assert_same_run(tmp_path, uninterrupted)


# --- what a reader gets


def test_history_has_all_columns_even_where_nothing_was_validated_yet(tiny: Path, tmp_path: Path, uninterrupted: Path) -> None:
    columns = ["step", "epoch", "train_loss", "validation_loss", "learning_rate", "gradient_norm"]
    log = log_of(uninterrupted)
    assert log.columns.tolist() == columns
    assert log.validation_loss.dropna().index.tolist() == [6, 13, 20, 27, 29]  # steps 7, 14, 21, 28 and the last
    assert log.epoch.iloc[-1] == 5
    trainer, _ = prepare(tiny, tmp_path)
    assert lora.history(trainer).columns.tolist() == columns


def test_epoch_table_by_hand() -> None:
    nothing = float("nan")
    log = pd.DataFrame(
        {
            "epoch": [0.5, 1.0, 1.5, 2.0, 2.5],
            "train_loss": [4.0, 2.0, 1.5, 0.5, 0.25],
            "validation_loss": [nothing, 3.0, 2.5, nothing, nothing],
            "learning_rate": [0.1, 0.2, 0.15, 0.05, 0.0],
        }
    )
    table = lora.epoch_table(log)
    assert table.index.tolist() == [1, 2, 3]
    assert table.train_loss.tolist() == [3.0, 1.0, 0.25]
    assert table.validation_loss.tolist()[:2] == [3.0, 2.5]
    assert math.isnan(table.validation_loss[3])
    assert table.learning_rate.tolist() == [0.2, 0.05, 0.0]


def test_failed_save_leaves_the_last_adapter(tiny: Path, tmp_path: Path) -> None:
    """A limit on the size of files stands for a full disk."""
    trainer, _ = prepare(tiny, tmp_path)
    lora.save_adapter(trainer.model, tmp_path / "adapter")
    before = {p.name: p.read_bytes() for p in (tmp_path / "adapter").iterdir()}
    with torch.no_grad():
        for parameter in trainer.model.parameters():
            parameter.add_(1.0)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))
    try:
        with pytest.raises(Exception, match=r"File too large|os error 27"):
            lora.save_adapter(trainer.model, tmp_path / "adapter")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert {p.name: p.read_bytes() for p in (tmp_path / "adapter").iterdir()} == before
    lora.save_adapter(trainer.model, tmp_path / "adapter")
    assert (tmp_path / WEIGHTS).read_bytes() != before["adapter_model.safetensors"]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["adapter", "checkpoints"], "drafts are left behind"
