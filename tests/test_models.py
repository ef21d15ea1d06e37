"""Loading models, from folders and from a hub cache, and generating with them."""

import io
import json
import os
import shutil
import string
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny import corpus_rows, parrot, save_tiny
from transformers import FalconConfig, FalconForCausalLM
from transformers.generation import utils

from interviewmate_utils import answering, config, data, models

REVISION = "e4b9872bb803165eb22f0a867d4e6a64d34fce19"
FALCON = f"tiiuae/falcon-rw-1b@{REVISION}"
QUESTIONS = [
    "Why does dropout help?",
    "What is the difference between bagging and boosting, and when would you prefer one of them in production?",
    "How do you choose k?",
    "Explain the bias-variance trade-off to a product manager who has never trained a model.",
    "What does a confusion matrix show?",
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def model(folder: Path):
    return models.load_model(str(folder), "cpu")


@pytest.fixture(scope="module")
def tokenizer(folder: Path):
    return models.load_tokenizer(str(folder))


@pytest.fixture(scope="module")
def rows(tokenizer) -> list[dict]:
    return [row | data.tokenise(row, tokenizer, 96) for row in corpus_rows(9)]


def answers(model, tokenizer, questions=QUESTIONS, max_new_tokens=24, batch_size=8, penalty=1.0) -> list[str]:
    return answering.generate_answers(model, tokenizer, questions, max_new_tokens, batch_size, penalty, report=lambda _: None)


def test_worked_examples_stand_before_every_question_as_a_conversation_would(model, tokenizer, rows) -> None:
    examples = answering.worked_examples(rows, 2, seed=3)
    assert examples == answering.worked_examples(rows, 2, seed=3) != answering.worked_examples(rows, 2, seed=4)
    assert examples.count("Question: ") == examples.count("\nAnswer: ") == 2
    assert sum(row["answer"] in examples for row in rows) == 2
    assert answering.worked_examples(rows, 0, seed=3) == ""
    shown = answering.generate_answers(model, tokenizer, QUESTIONS, 12, 8, report=lambda _: None, examples=examples)
    spelt = [(examples + f"Question: {question}").removeprefix("Question: ") for question in QUESTIONS]
    assert shown == answers(model, tokenizer, spelt, 12) != answers(model, tokenizer, QUESTIONS, 12)


# --- errors for people


@pytest.mark.parametrize("name", ["data/models/nosuch", "./nosuch", "/nosuch/model"])
def test_missing_folder_is_named(name: str) -> None:
    with pytest.raises(models.ModelError, match=f"{name}: no such folder"):
        models.load_tokenizer(name)


@pytest.mark.parametrize(
    "name", ["", "a/b/c", "not a model", "https://huggingface.co/gpt2", "a/b@", "@main", "../../etc/passwd"]
)
def test_nonsense_is_neither_folder_nor_id(name: str) -> None:
    with pytest.raises(models.ModelError, match=r"no such folder|neither a folder nor a Hugging Face id"):
        models.load_model(name, "cpu")


def test_locate_tells_folders_from_ids(folder: Path) -> None:
    assert models.locate(str(folder)) == (str(folder), {})
    assert models.locate(FALCON) == ("tiiuae/falcon-rw-1b", {"revision": REVISION})
    assert models.locate("gpt2") == ("gpt2", {})


def test_folder_without_a_model_is_an_error_for_people(tmp_path: Path) -> None:
    for load in (models.load_model, models.load_tokenizer):
        with pytest.raises(models.ModelError, match=f"{tmp_path}: cannot be loaded"):
            load(str(tmp_path))


def test_damaged_weights_are_an_error_for_people(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder, tmp_path / "damaged")
    weights = tmp_path / "damaged" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(models.ModelError, match="damaged: cannot be loaded"):
        models.load_model(str(tmp_path / "damaged"), "cpu")


def test_checkpoint_that_lacks_weights_is_refused(folder: Path, tmp_path: Path) -> None:
    """transformers would draw them at random, and say so only in its log."""
    shutil.copytree(folder, tmp_path / "lacking")
    weights = load_file(folder / "model.safetensors")
    weights = {k: v for k, v in weights.items() if "h.1.mlp" not in k}
    save_file(weights, tmp_path / "lacking" / "model.safetensors", {"format": "pt"})
    with pytest.raises(models.ModelError, match=r"lacking: the checkpoint lacks 4 of .*transformer\.h\.1\.mlp\.dense_4h_to_h"):
        models.load_model(str(tmp_path / "lacking"), "cpu")


# --- a model larger than its device


def test_spread_model_answers_and_scores_as_a_whole_one(folder: Path, model, tokenizer, rows) -> None:
    room = {"cpu": int(0.8 * model.get_memory_footprint())}  # the rest stays on disk
    spread = models.load_model(str(folder), "cpu", device_map="auto", max_memory=room)
    assert {"cpu", "disk"} == set(spread.hf_device_map.values())
    assert models.overflow(spread)
    assert not models.overflow(model)
    assert answers(spread, tokenizer) == answers(model, tokenizer)
    expected = answering.answer_loss(model, rows, 0)
    assert answering.answer_loss(spread, rows, 0) == [(pytest.approx(loss, rel=1e-5), count) for loss, count in expected]


def test_model_is_spread_when_it_would_fill_the_device(folder: Path, model, monkeypatch, capsys) -> None:
    size = model.get_memory_footprint()
    for free, spread in ((size / models.FILLED + 1, False), (size / models.FILLED - 1, True)):
        monkeypatch.setattr(models, "free_bytes", lambda _, free=free: free)
        models.load_model(str(folder), "cpu")
        assert ("more than fits" in capsys.readouterr().out) == spread


def test_free_memory_is_the_machines() -> None:
    taken = torch.ones(200_000_000, dtype=torch.uint8)
    before = models.free_bytes("cpu") + len(taken)
    del taken
    assert models.free_bytes("cpu") == pytest.approx(before, rel=0.1)
    falcon = models.outline(FalconConfig(**models.FALCON_RW_1B), torch.bfloat16)
    assert falcon.get_memory_footprint() == pytest.approx(2 * 1_311_625_216, rel=1e-6)  # and a few buffers


def test_code_in_a_model_folder_never_runs(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not even if somebody, or a pipe, says yes to transformers' question."""
    hostile = tmp_path / "hostile"
    shutil.copytree(folder, hostile)
    (hostile / "trap.py").write_text(f"open({str(tmp_path / 'sprung')!r}, 'w')\n")
    for name in ("config.json", "tokenizer_config.json"):
        settings = json.loads((hostile / name).read_text()) | {"model_type": "hostile", "tokenizer_class": "Trap"}
        settings["auto_map"] = {
            "AutoConfig": "trap.Trap",
            "AutoTokenizer": ["trap.Trap", None],
            "AutoModelForCausalLM": "trap.Trap",
        }
        (hostile / name).write_text(json.dumps(settings))
    for load in (models.load_tokenizer, models.load_model):
        monkeypatch.setattr("sys.stdin", io.StringIO("y\n" * 9))
        with pytest.raises(models.ModelError, match="hostile: cannot be loaded"):
            load(str(hostile))
    assert not (tmp_path / "sprung").exists()


# --- device and data type


def test_absent_device_is_an_error_that_names_those_present() -> None:
    present = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    for name in [*(name for name, here in present.items() if not here), "tpu"]:
        with pytest.raises(models.ModelError, match=f"'{name}' is not available here; there is .*cpu"):
            models.pick_device(name)
    assert models.pick_device("cpu") == "cpu"
    assert models.pick_device("auto") == next(name for name, here in present.items() if here)


def test_small_models_stay_in_float32_on_a_cpu(model) -> None:
    assert models.pick_dtype("cpu", 1023) == torch.float32 == model.dtype


def test_data_type_and_the_like_can_be_chosen(folder: Path) -> None:
    assert models.load_model(str(folder), "cpu", dtype=torch.bfloat16).dtype == torch.bfloat16


def test_digest_of_weights_follows_the_weights_alone(folder: Path, tmp_path: Path) -> None:
    own = tmp_path / "own"
    shutil.copytree(folder, own)
    before = models.weights_digest(str(own))
    assert before == models.weights_digest(str(folder))
    (own / "config.json").write_text("{}")
    assert models.weights_digest(str(own)) == before
    (own / "model.safetensors").write_bytes(b"other")
    assert models.weights_digest(str(own)) != before
    assert models.weights_digest(FALCON) == ""
    with pytest.raises(models.ModelError, match="no such folder"):
        models.weights_digest("data/models/nosuch")


def test_configuration_is_read_without_weights(folder: Path, tmp_path: Path) -> None:
    shutil.copy(folder / "config.json", tmp_path)
    assert models.load_config(str(tmp_path)).hidden_size == 32
    with pytest.raises(models.ModelError, match="cannot be loaded"):
        models.load_model(str(tmp_path), "cpu")


@pytest.mark.skipif(not Path("/proc/cpuinfo").exists(), reason="reads the processor's flags from /proc/cpuinfo")
def test_large_models_take_bf16_where_the_processor_has_it() -> None:
    flags = Path("/proc/cpuinfo").read_text()
    has_bf16 = "avx512_bf16" in flags or "amx_tile" in flags
    assert models.pick_dtype("cpu", 2048) == (torch.bfloat16 if has_bf16 else torch.float32)


# --- a hub cache, as `huggingface_hub` lays it out


def fill_cache(home: Path, source: Path, *, safetensors: bool) -> None:
    """tiiuae/falcon-rw-1b as a download at REVISION leaves it: its own older file formats, and code that must not run."""
    repository = home / "hub" / "models--tiiuae--falcon-rw-1b"
    snapshot = repository / "snapshots" / REVISION
    shutil.copytree(source, snapshot)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(REVISION)
    settings = json.loads((source / "config.json").read_text())
    settings["torch_dtype"] = settings.pop("dtype", "float32")
    settings |= {"bos_token_id": 1, "eos_token_id": 2, "transformers_version": "4.27.4"}
    code = {"AutoConfig": "configuration_falcon.FalconConfig", "AutoModelForCausalLM": "modeling_falcon.FalconForCausalLM"}
    (snapshot / "config.json").write_text(json.dumps(settings | {"auto_map": code}))
    (snapshot / "generation_config.json").write_text(json.dumps({"bos_token_id": 1, "eos_token_id": 2}))
    for name in ("configuration_falcon.py", "modeling_falcon.py"):
        (snapshot / name).write_text("raise SystemExit('code from the hub was run')\n")
    tokens = json.loads((source / "tokenizer_config.json").read_text()) | {"tokenizer_class": "PreTrainedTokenizerFast"}
    (snapshot / "tokenizer_config.json").write_text(json.dumps(tokens))
    if not safetensors:
        torch.save(load_file(snapshot / "model.safetensors"), snapshot / "pytorch_model.bin")
        (snapshot / "model.safetensors").unlink()


def offline(home: Path, *command: object) -> subprocess.CompletedProcess:
    """Run Python with `home` as the hub's cache and no network."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "HUGGINGFACE"))}
    environment |= {"HF_HOME": str(home), "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(config.ROOT)}
    return subprocess.run([sys.executable, *map(str, command)], env=environment, capture_output=True, text=True, check=False)


LOAD_FROM_HUB = """
import json, sys
from pathlib import Path
from interviewmate_utils import answering, config, lora, models
model, question, config.ROOT = *sys.argv[1:3], Path(sys.argv[3])
p = config.validate(config.TrainLora, config.parameters_cell(config.NOTEBOOKS / "04_train_lora.ipynb") | {"profile": "hub"})
p.processed.mkdir(parents=True)
(p.processed / config.PREPARED).write_text(json.dumps({"model": model}))
texts = []
for wrong in ("nobody/nothing", model.split("@")[0] + "@" + "0" * 40):
    try:
        models.load_model(wrong, "cpu")
    except models.ModelError as error:
        texts.append(str(error))
tokenizer = models.load_tokenizer(model)
base = models.load_model(model, "cpu")
answer = answering.generate_answers(base, tokenizer, [question], 16, 1, report=lambda _: None)
adapted = lora.adapt(base, p)
lora.save_trained(adapted, p, p.trained)
merged = lora.load_trained(model, p.trained, "cpu")
again = answering.generate_answers(merged, tokenizer, [question], 16, 1, report=lambda _: None)
print(json.dumps([texts, answer, again, lora.count_parameters(adapted), lora.count_run(p), str(p.trained)]))
"""


def test_falcon_rw_1b_loads_by_name_from_a_cache(folder: Path, model, tokenizer, tmp_path: Path) -> None:
    fill_cache(tmp_path / "home", folder, safetensors=True)
    done = offline(tmp_path / "home", "-c", LOAD_FROM_HUB, FALCON, QUESTIONS[1], tmp_path / "root")
    assert done.returncode == 0, done.stderr
    (unknown, other_revision), answer, again, (trainable, total), counted, kept = json.loads(done.stdout.splitlines()[-1])
    assert "nobody/nothing: cannot be loaded" in unknown
    assert "needs a network once, or a filled cache with HF_HUB_OFFLINE=1" in unknown
    assert "0" * 40 in other_revision
    assert answer == again == answers(model, tokenizer, [QUESTIONS[1]], 16)  # a fresh adapter changes nothing
    assert trainable == 2 * 8 * (32 + 96)
    assert counted == [trainable, total]
    assert json.loads((Path(kept) / "base.json").read_text()) == {"model": FALCON, "weights": ""}  # the revision is in the name
    assert json.loads((Path(kept) / "adapter_config.json").read_text())["base_model_name_or_path"] == FALCON


def test_checkpoint_without_safetensors_is_converted_once(folder: Path, model, tokenizer, tmp_path: Path) -> None:
    """The real repository holds only pytorch_model.bin at this revision."""
    fill_cache(tmp_path / "home", folder, safetensors=False)
    script = f"from interviewmate_utils import models; models.load_model({FALCON!r}, 'cpu')"
    refused = offline(tmp_path / "home", "-c", script)
    assert refused.returncode == 1
    assert f"-m interviewmate_utils.models {FALCON} " in refused.stderr.splitlines()[-1]

    converted = tmp_path / "root" / "data" / "models" / "falcon-rw-1b"
    root = f"config.ROOT = Path({str(tmp_path / 'root')!r})"
    start = f"import sys; from pathlib import Path; from interviewmate_utils import config, models; {root}"
    done = offline(tmp_path / "home", "-c", f"{start}; sys.exit(models.main([{FALCON!r}]))")
    assert done.returncode == 0, done.stderr
    assert str(converted) in done.stdout
    assert sorted(p.suffix for p in tmp_path.iterdir()) == ["", ""], "a draft is left behind"
    assert not list(converted.glob("*.bin"))
    loaded = models.load_model(str(converted), "cpu")
    for name, tensor in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], tensor), name
    assert answers(loaded, models.load_tokenizer(str(converted))) == answers(model, tokenizer)

    script = f"{start}; models.load_model({FALCON!r}, 'cpu'); print('found')"
    assert "found" in offline(tmp_path / "empty", "-c", script).stdout, "the profile's own name leads to the copy"
    script = f"{start}; models.load_model({FALCON.partition('@')[0] + '@' + '0' * 40!r}, 'cpu')"
    assert offline(tmp_path / "empty", "-c", script).returncode == 1, "another revision is another model"


def test_failed_conversion_says_why_and_writes_nothing(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    assert models.main(["not a model"]) == 2
    assert "'not a model' is neither a folder nor" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


class Trap:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def test_conversion_runs_no_code_from_a_pickle(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder, tmp_path / "hostile")
    (tmp_path / "hostile" / "model.safetensors").unlink()
    weights = torch.nn.Linear(1, 1).state_dict() | {"trap": Trap(tmp_path / "sprung")}
    torch.save(weights, tmp_path / "hostile" / "pytorch_model.bin")
    with pytest.raises(models.ModelError, match="hostile: cannot be loaded"):
        models.convert_to_safetensors(str(tmp_path / "hostile"), tmp_path / "out")
    assert not (tmp_path / "sprung").exists()
    assert not (tmp_path / "out").exists()


# --- generation


@pytest.mark.parametrize("penalty", [1.0, 1.3])
@pytest.mark.parametrize("batch_size", [2, 5])
def test_batches_answer_as_one_by_one(model, tokenizer, batch_size: int, penalty: float) -> None:
    """Left padding must change nothing, neither through ALiBi nor through the penalty on repeated tokens."""
    alone = [answers(model, tokenizer, [q], penalty=penalty)[0] for q in QUESTIONS]
    assert len(set(alone)) == len(alone)  # the model has an answer of its own to each: the order is theirs
    assert answers(model, tokenizer, batch_size=batch_size, penalty=penalty) == alone
    assert answers(model, tokenizer, QUESTIONS[::-1], batch_size=batch_size, penalty=penalty) == alone[::-1]


def test_greedy_answer_is_the_argmax_of_the_full_forward_pass(model, tokenizer) -> None:
    """The KV cache changes nothing: token by token without it, the same words."""
    for question in QUESTIONS:
        ids = tokenizer(data.PROMPT.format(question=question), return_tensors="pt")["input_ids"]
        width = ids.shape[1]
        with torch.inference_mode():
            for _ in range(16):
                ids = torch.cat([ids, model(input_ids=ids, use_cache=False).logits[:, -1:].argmax(-1)], 1)
        said = tokenizer.decode(ids[0, width:]).split(tokenizer.eos_token)[0].split("\nQuestion:")[0].strip()
        assert answers(model, tokenizer, [question], 16)[0] == said


def reciter(tokenizer) -> tuple:
    """A parrot that goes on from any of thirteen words to the last of them, and ends; the words."""
    words = [f" {letter}" for letter in string.ascii_letters if len(tokenizer(f" {letter}")["input_ids"]) == 1][:13]
    return parrot(tokenizer, [*(tokenizer(word)["input_ids"][0] for word in words), tokenizer.eos_token_id]), words


def test_ended_answers_leave_the_batch(tokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    """Answers of 1 to 12 words, by a parrot that goes on from a question's last word; nobody waits for the longest."""
    monkeypatch.setattr(answering, "PROMPT", "{question}")
    talker, words = reciter(tokenizer)
    rows = []
    talker.transformer.word_embeddings.register_forward_hook(lambda _, ids, __: rows.append(len(ids[0])))
    questions = ["Why" + word for word in words[:-1]]
    assert answers(talker, tokenizer, questions, batch_size=12) == ["".join(words[i:]).strip() for i in range(1, 13)]
    assert rows[0] == 12
    assert rows[-1] == 1
    assert sum(rows) < 0.75 * 12 * 13  # twelve rows for thirteen steps without it; 90 if each left at once


def test_where_generation_notices_an_end_one_token_late_answers_are_the_same(tokenizer, monkeypatch) -> None:
    """As transformers does on MPS: it generates a token more, and takes it back. Forced here, on a CPU."""
    monkeypatch.setattr(answering, "PROMPT", "{question}")
    talker, words = reciter(tokenizer)
    questions = ["Why" + word for word in words[:-1]]
    expected = answers(talker, tokenizer, questions, batch_size=12)
    late: list[int] = []
    finish = utils.DeferredStopCheck.finish
    monkeypatch.setattr(utils.DeferredStopCheck, "is_supported", lambda *_, **__: True)
    monkeypatch.setattr(utils.DeferredStopCheck, "finish", lambda self: late.append(finish(self)) or late[-1])
    monkeypatch.setattr(torch, "Event", lambda **_: SimpleNamespace(record=lambda: None, synchronize=lambda: None))
    assert answers(talker, tokenizer, questions, batch_size=12) == expected
    assert any(late)


def torn(tokenizer, script: list[int], after: int, other: int):
    """A parrot of which, after the token `after`, `other` is nearly as likely as the script's next."""
    talker = parrot(tokenizer, script)
    with torch.no_grad():
        talker.lm_head.weight[other, after] = 0.9
    return talker


def test_words_of_the_question_are_not_penalised(tokenizer) -> None:
    """An answer may well take them up."""
    (said,), (other,) = (tokenizer(word)["input_ids"] for word in (" a", " b"))
    last = tokenizer(data.PROMPT.format(question="Why?"))["input_ids"][-1]
    talker = torn(tokenizer, [said, tokenizer.eos_token_id], last, other)
    assert answers(talker, tokenizer, ["Is it a or c?"], penalty=1.3) == ["a"]


def test_repetition_in_the_answer_is_penalised(tokenizer) -> None:
    (said,), (other,) = (tokenizer(word)["input_ids"] for word in (" a", " b"))
    talker = torn(tokenizer, [said], said, other)
    with torch.no_grad():
        talker.lm_head.weight[said, said] = 1.0
    assert answers(talker, tokenizer, ["Why?"], 3) == ["a a a"]
    assert answers(talker, tokenizer, ["Why?"], 2, penalty=1.3) == ["a b"]


def test_padding_does_not_count_as_a_repetition_of_the_end(tokenizer) -> None:
    """The padding of a short question is the end-of-text token: penalised, the answer would go on."""
    (said,), (other,) = (tokenizer(word)["input_ids"] for word in (" a", " b"))
    talker = torn(tokenizer, [said, tokenizer.eos_token_id], said, other)
    assert answers(talker, tokenizer, ["Why?", QUESTIONS[1]], 4, penalty=1.3) == ["a", "a"]


def script_of(tokenizer, text: str) -> list[int]:
    ids = tokenizer(text)["input_ids"]
    assert len(set(ids)) == len(ids)
    return ids


def test_answer_ends_at_the_end_of_text(tokenizer) -> None:
    words = script_of(tokenizer, " the model is good")
    assert (
        answers(parrot(tokenizer, [*words, tokenizer.eos_token_id]), tokenizer, ["Why?", "How so?"])
        == ["the model is good"] * 2
    )


def test_answer_ends_at_max_new_tokens(tokenizer) -> None:
    words = script_of(tokenizer, " the model is good")
    for n in (1, 2, 3):
        assert answers(parrot(tokenizer, words), tokenizer, ["Why?"], n) == [tokenizer.decode(words[:n]).strip()]


def test_answer_ends_where_the_model_asks_itself(tokenizer) -> None:
    words = script_of(tokenizer, " the model is good\nQuestion:")
    talker, lengths = parrot(tokenizer, words), []
    talker.register_forward_hook(lambda _module, _inputs, output: lengths.append(output.logits.shape[1]))
    assert answers(talker, tokenizer, ["Why?"], 400) == ["the model is good"]
    assert "".join(answering.stream_answer(talker, tokenizer, "Why?", 400, 1.0)) == "the model is good"
    assert len(lengths) <= 2 * (len(words) + 2), "it went on generating what nobody reads"


@pytest.mark.parametrize("penalty", [1.0, 1.3])
def test_streamed_answer_is_the_generated_one(model, tokenizer, penalty: float) -> None:
    for question in QUESTIONS:
        pieces = list(answering.stream_answer(model, tokenizer, question, 24, penalty))
        assert "".join(pieces) == answers(model, tokenizer, [question], penalty=penalty)[0]
        assert len(pieces) > 1


@pytest.mark.timeout(60)
def test_streaming_passes_an_error_on_and_does_not_hang(model, tokenizer) -> None:
    with pytest.raises(ValueError, match="max_new_tokens"):
        list(answering.stream_answer(model, tokenizer, "Why?", 0, 1.0))


# --- loss of the answers


def test_answer_loss_is_that_of_transformers(model, rows: list[dict]) -> None:
    for row, (total, count) in zip(rows, answering.answer_loss(model, rows, 0), strict=True):
        with torch.inference_mode():
            own = model(input_ids=torch.tensor([row["input_ids"]]), labels=torch.tensor([row["labels"]])).loss.item()
        assert count == row["answer_tokens"]
        assert total / count == pytest.approx(own, rel=1e-5)


@pytest.mark.parametrize("batch_size", [1, 4])
def test_answer_loss_does_not_depend_on_the_batch(model, rows: list[dict], batch_size: int) -> None:
    together, apart = (answering.answer_loss(model, rows, 0, size) for size in (len(rows), batch_size))
    assert [n for _, n in together] == [n for _, n in apart]
    assert [s for s, _ in together] == pytest.approx([s for s, _ in apart], rel=1e-5)


def test_answer_loss_leaves_the_prompt_out(model, rows: list[dict]) -> None:
    """Hand-computed: a prompt whose tokens were labelled would give another sum."""
    row = rows[0]
    start = len(row["input_ids"]) - row["answer_tokens"]
    with torch.inference_mode():
        chances = model(input_ids=torch.tensor([row["input_ids"]])).logits[0].log_softmax(-1)
    by_hand = -sum(chances[i - 1, row["input_ids"][i]].item() for i in range(start, len(row["input_ids"])))
    assert answering.answer_loss(model, [row], 0)[0][0] == pytest.approx(by_hand, rel=1e-5)
    everything = row | {"labels": row["input_ids"]}
    assert answering.answer_loss(model, [everything], 0)[0][0] > by_hand * 1.1


def test_full_size_configuration_has_the_module_names_of_the_small_one(model) -> None:
    with torch.device("meta"):
        full = FalconForCausalLM(FalconConfig(**models.FALCON_RW_1B))
    names = [{n.split(".h.1.")[1] for n, _ in m.named_modules() if ".h.1." in n} for m in (full, model)]
    assert names[0] == names[1]


def test_peak_memory_sees_a_large_tensor():
    before = models.peak_memory_gb("cpu")
    held = torch.ones(int(before * 1e9 / 4) + 50_000_000)
    assert models.peak_memory_gb("cpu") >= before + 0.15
    assert held.sum() > 0
