"""What is trained: counts, every variant kept and loaded again, and refusals where weights and base do not belong together."""

import importlib.util
import json
import resource
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny import save_tiny

from interviewmate_utils import config, lora, models, training

ALL_LINEAR = ["query_key_value", "dense", "dense_h_to_4h", "dense_4h_to_h"]
DEFAULTS = {
    "profile": "tiny",
    "seed": 3,
    "run": "T",
    "corpus": "original",
    "device": "cpu",
    "variants": [],
    "rank": 4,
    "alpha": 8,
    "dropout": 0.1,
    "target_modules": ["query_key_value", "dense"],
    "learning_rate": 5e-3,
    "weight_decay": 0.0,
    "epochs": 5.0,
    "batch_size": 4,
    "warmup_steps": 5,
}
ENDS = (32 + 96) + (32 + 32)  # inputs and outputs of the two targets in one of the tiny model's two layers
VARIANTS = [[], ["rslora"], ["dora"], ["pissa"], ["olora"], ["adalora"], ["full"]]
COMBINED = [["dora", "rslora"], ["pissa", "rslora"], ["olora", "rslora"], ["adalora", "rslora"]]
IDS = torch.tensor([[17, 4, 256, 99, 31, 8, 402, 3]])


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a tiny model."""
    return save_tiny(tmp_path_factory.mktemp("tiny") / "model")


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty repository."""
    monkeypatch.setattr(config, "ROOT", tmp_path)
    return tmp_path


def run_on(model: Path | str, **changes: object) -> config.TrainLora:
    """The parameters of a run whose corpus was prepared for `model`, in the repository of `root`."""
    p = config.TrainLora(**DEFAULTS | changes)
    p.processed.mkdir(parents=True, exist_ok=True)
    (p.processed / config.PREPARED).write_text(json.dumps({"model": str(model)}))
    return p


def trained(p: config.TrainLora, start: Path | None = None) -> torch.nn.Module:
    """The model of run `p` as if it had learnt something: each of its trainable weights has moved a little."""
    torch.manual_seed(p.seed)
    model = lora.adapt(models.load_model(p.model, "cpu"), p, total_steps=100).eval()
    if start:
        model.save_pretrained(str(start))
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in (q for q in model.parameters() if q.requires_grad):
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    return model


def keep(p: config.TrainLora) -> torch.nn.Module:
    """The trained model of run `p`, after it was saved."""
    start = p.output / "start" if {"pissa", "olora"} & set(p.variants) else None
    model = trained(p, start)
    lora.save_trained(model, p, p.trained, start)
    return model


def logits(model: torch.nn.Module) -> torch.Tensor:
    with torch.inference_mode():
        return model.eval()(input_ids=IDS).logits


# --- counts


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
    p = config.TrainLora(**DEFAULTS | {"rank": rank, "target_modules": targets})
    counted, total = lora.count_run(p, models.FALCON_RW_1B)
    assert (counted, total - counted) == (trainable, 1_311_625_216)
    assert f"{100 * counted / total:.4f}" == share


@pytest.mark.parametrize("name", ["A", "B", "C", "enhanced"])
def test_published_runs_have_the_counts_that_their_files_name(name: str) -> None:
    file = config.NOTEBOOKS / "params" / "runs" / f"{name}.yaml"
    p = config.TrainLora(**DEFAULTS | config.read_parameters(file, "04_train_lora"))
    counted, total = lora.count_run(p, models.FALCON_RW_1B)
    first = file.read_text().splitlines()[0]
    assert f"{counted:,} trainable parameters" in first
    assert f"{100 * counted / total:.4f} %" in first


def test_all_of_falcon_rw_1b_is_what_full_trains() -> None:
    p = config.TrainLora(**DEFAULTS | {"variants": ["full"]})
    assert lora.count_run(p, models.FALCON_RW_1B) == (1_311_625_216, 1_311_625_216)


def test_counts_of_falcon_rw_1b_need_no_memory() -> None:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    lora.count_run(config.TrainLora(**DEFAULTS | {"variants": ["dora"]}), models.FALCON_RW_1B)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 500_000  # kB; the weights are 5 GB


@pytest.mark.parametrize(
    ("variants", "trainable", "frozen"),
    [
        ([], 2 * 4 * ENDS, 0),  # layers x rank x (inputs + outputs)
        (["rslora"], 2 * 4 * ENDS, 0),
        (["pissa"], 2 * 4 * ENDS, 0),
        (["olora"], 2 * 4 * ENDS, 0),
        (["4bit"], 2 * 4 * ENDS, 0),
        (["checkpointing"], 2 * 4 * ENDS, 0),
        (["dora"], 2 * (4 * ENDS + 96 + 32), 0),  # a magnitude per output
        (["dora", "rslora", "4bit"], 2 * (4 * ENDS + 96 + 32), 0),
        (["adalora"], 2 * 6 * (ENDS + 2), 2 * 2),  # rank 6; a vector of that size, and a frozen number of ranks, per target
    ],
    ids=lambda value: "+".join(value) if isinstance(value, list) else None,
)
def test_tiny_counts_by_hand(root: Path, base: Path, variants: list[str], trainable: int, frozen: int) -> None:
    before = sum(q.numel() for q in models.load_model(str(base), "cpu").parameters())
    assert lora.count_run(run_on(base, variants=variants)) == (trainable, before + trainable + frozen)


def test_full_trains_all_there_is(root: Path, base: Path) -> None:
    everything = sum(q.numel() for q in models.load_model(str(base), "cpu").parameters())
    assert lora.count_run(run_on(base, variants=["full"])) == (everything, everything)


@pytest.mark.parametrize(("rank", "first"), [(1, 2), (2, 3), (3, 5), (8, 12)])
def test_adalora_starts_at_one_and_a_half_times_the_rank_rounded_up(root: Path, base: Path, rank: int, first: int) -> None:
    assert lora.count_run(run_on(base, variants=["adalora"], rank=rank))[0] == 2 * first * (ENDS + 2)


@pytest.mark.parametrize("variants", VARIANTS, ids=lambda v: "+".join(v) or "lora")
def test_counting_without_weights_agrees_with_the_model_that_trains(root: Path, base: Path, variants: list[str]) -> None:
    p = run_on(base, variants=variants)
    adapted = lora.adapt(models.load_model(p.model, "cpu"), p, total_steps=100)
    assert lora.count_parameters(adapted) == lora.count_run(p)


# --- wrapping


def test_unknown_target_is_named_with_those_there_are(base: Path) -> None:
    with pytest.raises(ValueError, match=r"q_proj, v_proj not in this model") as caught:
        lora.add_lora(models.load_model(str(base), "cpu"), 4, 8, 0.0, ["q_proj", "dense", "v_proj"])
    assert str(caught.value).endswith("dense, dense_4h_to_h, dense_h_to_4h, query_key_value")


@pytest.mark.parametrize("variants", [[], ["dora"], ["adalora"]], ids=lambda v: "+".join(v) or "lora")
def test_wrapping_twice_is_refused(base: Path, variants: list[str]) -> None:
    model = models.load_model(str(base), "cpu")
    adapted = lora.add_lora(model, 4, 8, 0.0, ["query_key_value"], variants, 100)
    for again in (adapted, model):  # peft changes the base in place
        with pytest.raises(ValueError, match="already carries an adapter"):
            lora.add_lora(again, 4, 8, 0.0, ["query_key_value"])


@pytest.mark.parametrize("variants", [*VARIANTS, *COMBINED], ids=lambda v: "+".join(v) or "lora")
def test_every_variant_starts_as_the_base(root: Path, base: Path, variants: list[str]) -> None:
    p = run_on(base, variants=variants)
    adapted = lora.adapt(models.load_model(p.model, "cpu"), p, total_steps=100)
    torch.testing.assert_close(logits(adapted), logits(models.load_model(p.model, "cpu")), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("variants", "divisor"), [([], 4), (["rslora"], 2)], ids=["lora", "rslora"])
def test_scale_is_alpha_over_rank_and_of_rslora_over_its_root(base: Path, variants: list[str], divisor: float) -> None:
    model = lora.add_lora(models.load_model(str(base), "cpu"), 4, 8, 0.0, ["dense"], variants).eval()
    (layer, *_) = [module for name, module in model.named_modules() if name.endswith("self_attention.dense")]
    x, b = torch.randn(5, 32), torch.randn(32, 4)
    with torch.no_grad():
        layer.lora_B["default"].weight.copy_(b)
        added = layer(x) - layer.base_layer(x)
        by_hand = 8 / divisor * x @ layer.lora_A["default"].weight.T @ b.T
    torch.testing.assert_close(added, by_hand, rtol=1e-4, atol=1e-4)


def test_adalora_shrinks_to_the_rank_between_a_tenth_and_half_of_the_steps(base: Path) -> None:
    model = lora.add_lora(models.load_model(str(base), "cpu"), 4, 8, 0.0, ["query_key_value", "dense"], ["adalora"], 100)
    ranks = {}
    for step in range(1, 101):
        model(input_ids=IDS, labels=IDS).loss.backward()
        model.base_model.update_and_allocate(step)
        model.zero_grad()
        kept = [q for name, q in model.named_parameters() if "lora_E" in name]
        ranks[step] = sum(int(q.count_nonzero()) for q in kept) if step > 10 else None
        with torch.no_grad():
            for q in kept:
                q[q != 0] += 0.01
                q[q == 0] += 0.0 if step > 10 else 0.01
    assert model.peft_config["default"].tinit == 10
    assert model.peft_config["default"].tfinal == 50
    assert ranks[50] == ranks[100] == 4 * 4  # rank 4 on average over the four adapted layers


# --- kept and loaded again


@pytest.mark.parametrize("variants", [*VARIANTS, *COMBINED], ids=lambda v: "+".join(v) or "lora")
def test_what_is_kept_is_what_was_trained(root: Path, base: Path, variants: list[str]) -> None:
    p = run_on(base, variants=variants)
    wanted, untouched = logits(keep(p)), logits(models.load_model(p.model, "cpu"))
    again = lora.load_trained(p.model, p.trained, "cpu")
    assert not any("lora" in name for name, _ in again.named_parameters())
    torch.testing.assert_close(logits(again), wanted, rtol=1e-3, atol=1e-3)
    assert (wanted - untouched).abs().max() > 0.1  # the training did something
    torch.testing.assert_close(logits(models.load_model(p.model, "cpu")), untouched, rtol=0, atol=0)


def test_ranks_that_adalora_gave_up_are_kept_given_up(root: Path, base: Path) -> None:
    p = run_on(base, variants=["adalora"])
    model = trained(p).train()
    for step in range(1, 101):
        model(input_ids=IDS, labels=IDS).loss.backward()
        model.base_model.update_and_allocate(step)
        model.zero_grad()
    lora.save_trained(model, p, p.trained)
    stored = load_file(p.trained / "adapter_model.safetensors")
    assert sum(len(tensor) for name, tensor in stored.items() if "lora_E" in name) == 4 * 4
    again = lora.load_trained(p.model, p.trained, "cpu")
    torch.testing.assert_close(logits(again), logits(model), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("variants", [["pissa"], ["olora"]], ids="+".join)
def test_changed_base_is_converted_back_to_an_adapter_of_twice_the_rank(root: Path, base: Path, variants: list[str]) -> None:
    p = run_on(base, variants=variants)
    keep(p)
    stored = load_file(p.trained / "adapter_model.safetensors")
    assert {tensor.shape[0] for name, tensor in stored.items() if "lora_A" in name} == {2 * p.rank}
    assert json.loads((p.trained / "adapter_config.json").read_text())["init_lora_weights"] is True


def test_kept_weights_name_their_base(root: Path, base: Path) -> None:
    p = run_on(base)
    keep(p)
    assert json.loads((p.trained / lora.BASE).read_text()) == {"model": str(base), "weights": models.weights_digest(str(base))}
    assert json.loads((p.trained / "adapter_config.json").read_text())["base_model_name_or_path"] == str(base)


# --- refusals


def test_missing_run_names_the_notebook(root: Path, base: Path) -> None:
    with pytest.raises(models.ModelError, match=r"nowhere: no trained run; run notebooks/04_train_lora\.ipynb"):
        lora.load_trained(str(base), root / "nowhere", "cpu")
    assert (config.NOTEBOOKS / "04_train_lora.ipynb").exists()


@pytest.mark.parametrize("variants", [[], ["full"]], ids=["lora", "full"])
def test_another_base_is_refused_and_both_are_named(root: Path, base: Path, variants: list[str]) -> None:
    p = run_on(base, variants=variants)
    keep(p)
    shutil.copytree(base, root / "copy")  # even with the same weights: the name is what a report says
    with pytest.raises(models.ModelError) as error:
        lora.load_trained(str(root / "copy"), p.trained, "cpu")
    assert f"{p.trained} was trained on {base}, not on {root / 'copy'}" in str(error.value)


@pytest.mark.parametrize("variants", [[], ["full"]], ids=["lora", "full"])
def test_other_weights_of_the_same_name_are_refused(root: Path, base: Path, variants: list[str]) -> None:
    own = root / "own"
    shutil.copytree(base, own)
    p = run_on(own, variants=variants)
    keep(p)
    before = models.weights_digest(str(own))
    (own / "README.md").write_text("not a weight")
    lora.load_trained(str(own), p.trained, "cpu")
    weights = load_file(own / "model.safetensors")
    next(iter(weights.values())).view(-1)[0] += 1
    save_file(weights, own / "model.safetensors", {"format": "pt"})
    with pytest.raises(models.ModelError) as error:
        lora.load_trained(str(own), p.trained, "cpu")
    assert f"was trained on other weights of {own}" in str(error.value)
    assert before in str(error.value)
    assert models.weights_digest(str(own)) in str(error.value)


def test_four_bits_say_what_this_machine_lacks_before_any_weights_are_loaded(root: Path) -> None:
    lacking = [] if torch.cuda.is_available() else ["a CUDA device (this machine trains on "]
    lacking += [] if importlib.util.find_spec("bitsandbytes") else ["the package bitsandbytes (pip install bitsandbytes)"]
    if not lacking:
        pytest.skip("this machine lacks nothing for it")
    (root / "hollow").mkdir()  # a model folder without weights: loading it would be another error
    p = run_on(root / "hollow", variants=["4bit"], device="auto")
    with pytest.raises(models.ModelError, match=r"variants: 4bit \(QLoRA\) needs ") as error:
        training.train(p)
    assert [words for words in lacking if words not in str(error.value)] == []


def test_machine_without_anything_for_four_bits_is_told_both(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    with pytest.raises(models.ModelError, match=r"needs a CUDA device \(this machine trains on cpu\) and the package bitsand"):
        lora.require(["dora", "4bit"], "cpu")
    lora.require(["dora", "full"], "cpu")
    monkeypatch.setattr(models, "pick_device", lambda _: "cuda")
    with pytest.raises(models.ModelError, match=r"needs the package bitsandbytes \(pip install bitsandbytes\); without it"):
        lora.require(["4bit"], "cuda")


@pytest.mark.parametrize("variants", [[], ["full"], ["pissa"]], ids=lambda v: "+".join(v) or "lora")
def test_failed_save_leaves_the_last_whole_one(root: Path, base: Path, variants: list[str]) -> None:
    """A limit on the size of files stands for a full disk."""
    p = run_on(base, variants=variants)
    model = keep(p)
    start = p.output / "start" if "pissa" in variants else None
    before = {file.name: file.read_bytes() for file in p.trained.iterdir()}
    with torch.no_grad():
        for parameter in (q for q in model.parameters() if q.requires_grad):
            parameter.add_(1.0)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))
    try:
        with pytest.raises(Exception, match=r"File too large|os error 27"):
            lora.save_trained(model, p, p.trained, start)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert {file.name: file.read_bytes() for file in p.trained.iterdir()} == before
    lora.save_trained(model, p, p.trained, start)
    (weights,) = (name for name in before if name.endswith(".safetensors"))
    assert (p.trained / weights).read_bytes() != before[weights]
    assert sorted(file.name for file in p.output.iterdir()) == ["start", "trained"][start is None :], "drafts are left behind"
