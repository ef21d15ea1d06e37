"""`make ask`: what is missing is said, and a question gets two answers side by side."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from tiny import corpus_rows, save_tiny

from interviewmate_utils import answering, config, data, interview, lora, models


def ask(**environment: str) -> subprocess.CompletedProcess:
    """The command in a process of its own, as make starts it."""
    clean = {name: value for name, value in os.environ.items() if name not in ("Q", "PROFILE")} | environment
    command = [sys.executable, "-m", "interviewmate_utils.interview"]
    return subprocess.run(command, env=clean, cwd=config.ROOT, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("question", [{}, {"Q": ""}, {"Q": "  \n"}])
def test_without_a_question_it_says_how_to_ask(question: dict) -> None:
    done = ask(**question)
    assert done.returncode == 2
    assert 'make ask Q="' in done.stderr
    assert not done.stdout


def test_a_profile_without_a_run_names_the_command_that_makes_one() -> None:
    done = ask(Q="Why?", PROFILE="nosuch")
    assert done.returncode == 2
    assert "make report PROFILE=nosuch" in done.stderr


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A repository with a tiny profile: model, corpus, two adapters of which `B` is the newer."""
    root = tmp_path_factory.mktemp("repository")
    save_tiny(root / "models" / "tiny")
    profile = root / "notebooks" / "params" / "profiles" / "tiny.yaml"
    profile.parent.mkdir(parents=True)
    profile.write_text("shared:\n  model: models/tiny\n06_evaluate_models:\n  max_new_tokens: 12\n")
    shutil.copy(config.NOTEBOOKS / "06_evaluate_models.ipynb", root / "notebooks")
    tokenizer = models.load_tokenizer(str(root / "models" / "tiny"))
    parts = {"train": range(12), "validation": range(12, 14), "test": range(14, 16)}
    data.save_dataset(
        data.build_dataset(corpus_rows(16), parts, tokenizer, 96), root / "data" / "processed" / "tiny" / "original"
    )
    for age, run in ((100, "A"), (50, "B")):
        folder = root / "reports" / "tiny" / f"04_train_lora_{run}_seed13" / "adapter"
        folder.parent.mkdir(parents=True)
        model = lora.add_lora(models.load_model(str(root / "models" / "tiny"), "cpu"), 4, 8, 0.0, ["query_key_value"])
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.data.fill_(age / 1000)
        lora.save_adapter(model, folder)
        os.utime(folder / "adapter_model.safetensors", (1e9 - age, 1e9 - age))
    return root


@pytest.fixture
def asked(home: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(config, "ROOT", home)
    monkeypatch.setattr(config, "NOTEBOOKS", home / "notebooks")
    monkeypatch.setenv("PROFILE", "tiny")
    monkeypatch.setenv("Q", "")
    return home


def test_both_answers_adapter_and_device_are_printed(
    asked: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    train = data.load_parts(asked / "data" / "processed" / "tiny" / "original")["train"]
    monkeypatch.setenv("Q", f"  Tell me: {train['question'][5]}  ")
    assert interview.main() == 0
    printed = capsys.readouterr().out
    adapter = asked / "reports" / "tiny" / "04_train_lora_B_seed13" / "adapter"
    model, tokenizer = models.load_adapted("models/tiny", adapter), models.load_tokenizer("models/tiny")
    question = f"Tell me: {train['question'][5]}"
    penalty = config.parameters_cell(config.NOTEBOOKS / "06_evaluate_models.ipynb")["repetition_penalty"]  # the report's own
    (answer,) = answering.generate_answers(model, tokenizer, [question], 12, 1, penalty, report=lambda _: None)
    assert answer
    assert answer in printed
    assert question in printed
    assert "reports/tiny/04_train_lora_B_seed13/adapter" in printed
    assert f"on {model.device}" in printed
    assert printed.index(answer) < printed.index(train["answer"][5])  # the retrieved one, of the nearest question
    assert train["answer"][4] not in printed


def test_a_model_that_cannot_be_loaded_is_an_error_for_people(
    asked: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setenv("Q", "Why?")
    profile = asked / "notebooks" / "params" / "profiles" / "tiny.yaml"
    before = profile.read_text()
    for broken, reason in (
        (before.replace("models/tiny", "./gone"), "./gone: no such folder"),
        ("shared: [", "not valid YAML"),
    ):
        profile.write_text(broken)
        assert interview.main() == 2
        assert reason in capsys.readouterr().err
    profile.unlink()
    assert interview.main() == 2
    assert "tiny.yaml: no such file" in capsys.readouterr().err
    profile.write_text(before)


def test_an_adapter_without_a_prepared_corpus_asks_for_a_report(
    asked: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setenv("Q", "Why?")
    processed = asked / "data" / "processed" / "tiny" / "original"
    processed.rename(processed.with_name("away"))
    try:
        assert interview.main() == 2
    finally:
        processed.with_name("away").rename(processed)
    assert "make report PROFILE=tiny" in capsys.readouterr().err
