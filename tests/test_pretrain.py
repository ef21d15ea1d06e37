"""Pretraining resumes bit for bit, scores as a plain softmax would, and what it keeps can be checked and read back."""

import copy
import itertools
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from tiny import corpus_rows

from interviewmate_utils import model_card, models, pretrain

TEXTS = [row["answer"] + " " + row["question"] for row in corpus_rows(60)]
SMALL = {"hidden": 32, "layers": 2, "heads": 4}
RECIPE = {"steps": 9, "batch": 4, "length": 16, "muon_lr": 0.02, "adam_lr": 0.003, "weight_decay": 0.1, "seed": 5, "every": 3}
CHILD = f"""
import json, sys, time
from pathlib import Path
import torch
from interviewmate_utils import pretrain
torch.set_num_threads(1)
checkpoint, documents, stop = Path(sys.argv[1]), json.loads(Path(sys.argv[2]).read_text()), int(sys.argv[3])
model = pretrain.build_falcon(300, **{SMALL!r}, dropout=0.2, seed=1)
def report(row):
    print(row["step"], flush=True)
    if row["step"] == stop:  # trained that far, but not yet kept: hang until the kill comes
        time.sleep(300)
pretrain.pretrain(model, documents, **{RECIPE!r}, average_from=0.5, checkpoint=checkpoint, report=report)
"""


def numbers(count: int = 40) -> list[list[int]]:
    """Documents of token ids, of unequal length, no token twice: it tells where it came from."""
    generator = torch.Generator().manual_seed(0)
    lengths = torch.randint(3, 30, (count,), generator=generator).tolist()
    starts = [sum(lengths[:i]) for i in range(count)]
    return [list(range(start, start + length)) for start, length in zip(starts, lengths, strict=True)]


def train(model, documents: list[list[int]], **changes: object) -> list[dict]:
    return pretrain.pretrain(model, documents, **RECIPE | {"report": lambda row: None} | changes)


def fresh(dropout: float = 0.2, seed: int = 1):
    return pretrain.build_falcon(300, **SMALL, dropout=dropout, seed=seed)


def same(one: dict, other: dict) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def documents() -> list[list[int]]:
    generator = torch.Generator().manual_seed(3)
    return [torch.randint(1, 300, (n,), generator=generator).tolist() for n in range(5, 45)]


@pytest.fixture(scope="module")
def trained() -> tuple:
    """A tokenizer and a tiny model that has read enough for its predictions to depend on what stands before."""
    tokenizer = pretrain.train_tokenizer(TEXTS, 400)
    model = pretrain.build_falcon(len(tokenizer), **SMALL, dropout=0.0, seed=0)
    encoded = pretrain.encode_documents(tokenizer, TEXTS)
    curve = train(model, encoded, steps=60, batch=8, length=32, every=30)
    assert curve[-1]["train_loss"] < curve[0]["train_loss"] < 6.0, "it learns"
    return model, tokenizer


def nats_by_hand(model, tokenizer, ids: list[int]) -> float:
    """Summed loss of one piece of text after the end-of-text token, by a full softmax in float32."""
    with torch.inference_mode():
        logits = model.float().eval()(input_ids=torch.tensor([[tokenizer.eos_token_id, *ids]])).logits[0].double()
    probabilities = logits.exp() / logits.exp().sum(1, keepdim=True)
    return -sum(probabilities[i, token].log().item() for i, token in enumerate(ids))


def test_batches_depend_on_step_alone() -> None:
    documents, cache = numbers(), {}
    per_epoch = sum(map(len, documents)) // (4 * 8)
    one_pass = [pretrain._batch(documents, step, 4, 8, 7, cache) for step in range(2 * per_epoch + 3)]
    for step in (0, per_epoch - 1, per_epoch, 2 * per_epoch + 2, 1):  # resumed there, in any order
        assert torch.equal(pretrain._batch(documents, step, 4, 8, 7, {}), one_pass[step])
    assert not torch.equal(pretrain._batch(documents, 0, 4, 8, 8, {}), one_pass[0]), "another seed, another order"


def test_an_epoch_reads_every_token_once_and_the_next_one_in_another_order() -> None:
    documents, cache = numbers(), {}
    total = sum(map(len, documents))
    per_epoch = total // (4 * 8)
    epochs = [
        torch.stack([pretrain._batch(documents, e * per_epoch + i, 4, 8, 7, cache) for i in range(per_epoch)]) for e in (0, 1)
    ]
    for epoch in epochs:
        assert epoch.unique().numel() == epoch.numel() == per_epoch * 32
        assert total - epoch.numel() < 32, "only the rest of a batch is left out"
    assert not torch.equal(*epochs)
    inside = {(a, b) for d in documents for a, b in itertools.pairwise(d)}
    pairs = list(itertools.pairwise(epochs[0].flatten().tolist()))
    assert len(pairs) - len(inside.intersection(pairs)) < len(documents), "documents stay whole, end to end"


def test_too_little_text_is_refused() -> None:
    with pytest.raises(ValueError, match="30 tokens do not fill one batch of 4 x 8"):
        pretrain._batch([list(range(30))], 0, 4, 8, 0, {})


def test_kill_and_resume_equals_the_uninterrupted_run(tmp_path: Path, documents: list[list[int]]) -> None:
    path, texts = tmp_path / "c.pt", tmp_path / "documents.json"
    texts.write_text(json.dumps(documents))
    for stop, expected in ((6, "3\n6\n"), (9, "6\n9\n")):  # the second kill comes amid averaging, which begins at step 5
        command = [sys.executable, "-c", CHILD, str(path), str(texts), str(stop)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"}) as child:
            assert child.stdout.readline() + child.stdout.readline() == expected, "begun behind the last checkpoint"
            os.kill(child.pid, signal.SIGKILL)
            assert child.wait() == -signal.SIGKILL
        assert torch.load(path, weights_only=True)["step"] == stop - 3
    path.with_suffix(".tmp").write_bytes(b"half a checkpoint")  # as a kill amid writing leaves it
    whole, resumed, steps = fresh(), fresh(seed=2), []
    expected = train(whole, documents, average_from=0.5)
    found = train(resumed, documents, average_from=0.5, checkpoint=path, report=lambda row: steps.append(row["step"]))
    assert steps == [9]
    assert same(whole.state_dict(), resumed.state_dict())
    assert [row["train_loss"] for row in found] == [row["train_loss"] for row in expected]


def test_checkpoint_keeps_its_format(tmp_path: Path, documents: list[list[int]]) -> None:
    path = tmp_path / "c.pt"
    model = fresh()
    curve = train(model, documents, checkpoint=path, average_from=0.5)
    state = torch.load(path, weights_only=True)
    assert state.keys() == {"model", "mean", "step", "curve", "optimizers", "rng", "recipe"}
    assert state["step"] == 9
    assert [{k: v for k, v in row.items() if k != "validation"} for row in state["curve"]] == [
        {k: v for k, v in row.items() if k != "validation"} for row in curve
    ]
    # one written before `recipe` was: it is taken up, and being complete gives the same weights without a step
    torch.save({name: value for name, value in state.items() if name != "recipe"}, path)
    again = fresh(seed=2)
    assert len(train(again, documents, checkpoint=path, average_from=0.5, validate=None)) == 3
    assert same(again.state_dict(), model.state_dict())


@pytest.mark.parametrize("change", [{"muon_lr": 0.01}, {"steps": 12}, {"seed": 6}, {"average_from": 0.7}])
def test_checkpoint_of_another_recipe_is_not_taken_up(tmp_path: Path, documents: list[list[int]], change: dict) -> None:
    train(fresh(), documents, checkpoint=tmp_path / "c.pt", average_from=0.5)
    resumed, direct = fresh(), fresh()
    options = {"average_from": 0.5} | change
    train(resumed, documents, checkpoint=tmp_path / "c.pt", **options)
    train(direct, documents, **options)
    assert same(resumed.state_dict(), direct.state_dict())


def test_checkpoint_of_other_text_or_another_model_is_not_taken_up(tmp_path: Path, documents: list[list[int]]) -> None:
    train(fresh(), documents, checkpoint=tmp_path / "c.pt")
    for build, texts in ((fresh, documents[:-1]), (lambda: fresh(dropout=0.0), documents)):
        resumed, direct = build(), build()
        train(resumed, texts, checkpoint=tmp_path / "c.pt")
        train(direct, texts)
        assert same(resumed.state_dict(), direct.state_dict())


def test_average_of_the_last_steps(documents: list[list[int]]) -> None:
    # begun at 0.75 x 9 = 6.75: the weights after the last two steps, with decay 1 - 1 / max(2, 0.04 x 9) = 1/2
    after = []

    def keep(model) -> float:
        after.append(copy.deepcopy(model.state_dict()))
        return 0.0

    averaged, plain = fresh(), fresh()
    train(plain, documents, validate=keep, every=1)
    train(averaged, documents, average_from=0.75)
    assert len(after) == 9
    for name, tensor in averaged.state_dict().items():
        assert torch.allclose(tensor, (after[7][name] + after[8][name]) / 2, atol=1e-6)
    assert not same(averaged.state_dict(), plain.state_dict())


@pytest.mark.parametrize("steps", [1, 2, 3])
def test_few_steps(documents: list[list[int]], steps: int) -> None:
    model = fresh()
    before = copy.deepcopy(model.state_dict())
    curve = train(model, documents, steps=steps, average_from=0.6)
    assert [row["step"] for row in curve] == [steps]
    assert curve[0]["tokens"] == steps * 4 * 16
    assert all(tensor.isfinite().all() for tensor in model.state_dict().values())
    assert not same(before, model.state_dict())


def test_nats_per_character_by_hand(trained: tuple) -> None:
    model, tokenizer = trained
    for text in (TEXTS[1], TEXTS[2], "x", "é—☃ not in the text"):
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        expected = nats_by_hand(model, tokenizer, ids) / len(text)
        assert pretrain.nats_per_character(model, tokenizer, [text]) == pytest.approx(expected, rel=0.01)  # of bf16


def test_long_documents_are_read_to_their_end(trained: tuple) -> None:
    model, tokenizer = trained
    text = " ".join(TEXTS)
    ids = tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
    assert len(ids) > 2 * 1023
    expected = sum(nats_by_hand(model, tokenizer, ids[i : i + 1023]) for i in range(0, len(ids), 1023)) / len(text)
    assert pretrain.nats_per_character(model, tokenizer, [text]) == pytest.approx(expected, rel=0.01)


def test_nats_per_character_does_not_depend_on_grouping(trained: tuple) -> None:
    model, tokenizer = trained
    texts = [*TEXTS[:25], "Short one.", " ".join(TEXTS[25:40])]
    together = pretrain.nats_per_character(model, tokenizer, texts)
    alone = [pretrain.nats_per_character(model, tokenizer, [text]) for text in texts]
    weighted = sum(value * len(text) for value, text in zip(alone, texts, strict=True)) / sum(map(len, texts))
    assert together == pytest.approx(weighted, rel=2e-3)
    assert pretrain.nats_per_character(model, tokenizer, texts[::-1]) == pytest.approx(together, rel=2e-3)
    assert max(alone) > 1.05 * min(alone), "the texts do differ"


def test_dropout_is_off_while_scoring() -> None:
    tokenizer = pretrain.train_tokenizer(TEXTS, 300)
    model = pretrain.build_falcon(len(tokenizer), **SMALL, dropout=0.5, seed=0).train()
    assert len({pretrain.nats_per_character(model, tokenizer, TEXTS[:2]) for _ in range(3)}) == 1


def test_modules_are_named_as_in_falcon_rw_1b() -> None:
    from transformers import FalconConfig, FalconForCausalLM

    with torch.device("meta"):
        full = FalconForCausalLM(FalconConfig(**models.FALCON_RW_1B | {"num_hidden_layers": 2}))
        own = pretrain.build_falcon(300, **SMALL, dropout=0.1, seed=0)
    assert [n for n, _ in own.named_parameters()] == [n for n, _ in full.named_parameters()]
    assert {n.split(".")[-2] for n, p in own.named_parameters() if p.ndim == 2 and ".h.0." in n} == {
        "query_key_value",
        "dense",
        "dense_h_to_4h",
        "dense_4h_to_h",
    }
    same_settings = ("alibi", "bias", "multi_query", "parallel_attn", "new_decoder_architecture", "hidden_act", "activation")
    for name in same_settings:
        assert getattr(own.config, name, None) == getattr(full.config, name, None), name


def test_tracked_size_by_hand() -> None:
    with torch.device("meta"):
        model = pretrain.build_falcon(8192, hidden=256, layers=6, heads=8, dropout=0.1, seed=0)
    attention = 256 * 768 + 768 + 256 * 256 + 256
    mlp = 256 * 1024 + 1024 + 1024 * 256 + 256
    assert model.num_parameters() == 8192 * 256 + 6 * (attention + mlp + 4 * 256) + 2 * 256 == 6_836_224
    assert 6e6 < model.num_parameters() < 9.5e6


def test_tokenizer_is_lossless_and_has_falcons_special_token(trained: tuple) -> None:
    _, tokenizer = trained
    for text in (TEXTS[0], "naïve — ☃\n\ttabs  and spaces", " leading", ""):
        assert tokenizer.decode(tokenizer(text)["input_ids"]) == text
    assert len(tokenizer) == 400
    assert (tokenizer.eos_token, tokenizer.eos_token_id, tokenizer.pad_token) == ("<|endoftext|>", 0, None)
    assert pretrain.encode_documents(tokenizer, ["a", ""]) == [[*tokenizer("a")["input_ids"], 0], [0]]


@pytest.fixture(scope="module")
def record() -> dict:
    sources = [("scipy", "1.17.1", "BSD License", 150_000), ("torch", "2.13.0", "Apache-2.0 AND MIT", 1_234)]
    return {
        "parameters": 40_000,
        "vocab_size": 400,
        "words": 151_234,
        "steps": 60,
        "tokens": 15_360,
        "recipe": {"optimiser": "Muon 0.02", "dropout": 0.1},
        "held_out_nats_per_char": {"networkx": 1.23456, "seaborn": 2.0},
        "curve": [{"step": 60, "tokens": 15_360, "train_loss": 5.5, "validation": 2.5}],
        "sources": [dict(zip(("package", "version", "licence", "words"), row, strict=True)) for row in sources],
    }


@pytest.fixture
def build(tmp_path: Path, trained: tuple, record: dict) -> Path:
    model_card.save_build(*trained, tmp_path / "build", record)
    return tmp_path / "build"


def test_build_round_trip_in_bf16(build: Path, trained: tuple) -> None:
    model, tokenizer = trained
    loaded, loaded_tokenizer = models.load_model(str(build), "cpu"), models.load_tokenizer(str(build))
    expected = {name: tensor.bfloat16().float() for name, tensor in model.state_dict().items()}
    assert same(expected, {name: tensor.float() for name, tensor in loaded.state_dict().items()})
    assert next(model.parameters()).dtype == torch.float32, "the model that was saved stays as it was"
    assert loaded_tokenizer(TEXTS)["input_ids"] == tokenizer(TEXTS)["input_ids"]
    weights = (build / "model.safetensors").stat().st_size
    assert weights < 2 * model.num_parameters() + 5000, "two bytes a parameter, tied embeddings once"
    assert not list(build.glob("*.bin"))


def test_build_trains_without_the_dropout_of_pretraining(tmp_path: Path, trained: tuple, record: dict) -> None:
    model = pretrain.build_falcon(len(trained[1]), **SMALL, dropout=0.3, seed=0)
    model_card.save_build(model, trained[1], tmp_path, record)
    assert models.load_model(str(tmp_path), "cpu").config.hidden_dropout == 0.0
    assert model.config.hidden_dropout == 0.3


def test_untouched_build_verifies(build: Path) -> None:
    assert model_card.verify_build(build) == []
    listed = {line.split("  ")[1] for line in (build / "SHA256SUMS").read_text().splitlines()}
    assert {"model.safetensors", "config.json", "tokenizer.json", "training.json", "README.md"} <= listed
    assert subprocess.run(["sha256sum", "-c", "SHA256SUMS"], cwd=build, capture_output=True).returncode == 0


@pytest.mark.parametrize("name", ["model.safetensors", "tokenizer.json", "README.md"])
def test_one_flipped_bit_is_found(build: Path, name: str) -> None:
    content = bytearray((build / name).read_bytes())
    content[len(content) // 2] ^= 1
    (build / name).write_bytes(content)
    assert model_card.verify_build(build) == [name]


def test_missing_and_cut_files_are_found(build: Path) -> None:
    (build / "config.json").unlink()
    (build / "training.json").write_bytes((build / "training.json").read_bytes()[:-1])
    assert model_card.verify_build(build) == ["config.json", "training.json"]


def test_model_card_says_what_the_model_is(build: Path, record: dict) -> None:
    card = " ".join((build / "README.md").read_text().split())
    assert "It shows the method; it is not a coach." in card
    assert "Nothing of the interview corpus." in card
    for row in record["sources"]:
        assert f"| {row['package']} | {row['version']} | {row['licence']} | {row['words']:,} |" in card
    for part in ("40,000 parameters", "151,234 words", "60 steps", "networkx 1.2346; seaborn 2.0000", "- dropout: 0.1"):
        assert part in card
    assert json.loads((build / "training.json").read_text()) == record
