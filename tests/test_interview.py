"""`make ask`: what is missing is said, and a question gets two answers side by side."""

import json
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
    """A repository with a tiny profile: model, corpus, three trained runs of which `B` has the lowest validation loss, and
    one that was killed before it was kept."""
    root = tmp_path_factory.mktemp("repository")
    save_tiny(root / "models" / "tiny")
    profile = root / "notebooks" / "params" / "profiles" / "tiny.yaml"
    profile.parent.mkdir(parents=True)
    profile.write_text("shared:\n  model: models/tiny\n06_evaluate_models:\n  max_new_tokens: 12\n")
    shutil.copy(config.NOTEBOOKS / "06_evaluate_models.ipynb", root / "notebooks")
    tokenizer = models.load_tokenizer(str(root / "models" / "tiny"))
    parts = {"train": range(12), "validation": range(12, 14), "test": range(14, 16)}
    processed = root / "data" / "processed" / "tiny" / "original"
    data.save_dataset(data.build_dataset(corpus_rows(16), parts, tokenizer, 96), processed, "models/tiny")
    defaults = config.parameters_cell(config.NOTEBOOKS / "04_train_lora.ipynb") | {"profile": "tiny"}
    losses = {"A": [2.5, None, 2.0, 1.5], "B": [2.5, None, 1.0, 3.0], "C": [2.5, None, 1.5, 1.2], "D": []}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(config, "ROOT", root)
        for number, (run, log) in enumerate(losses.items(), start=1):
            p = config.validate(config.TrainLora, defaults | {"run": run})
            model = lora.adapt(models.load_model(p.model, "cpu"), p)
            for name, parameter in model.named_parameters():
                if "lora_B" in name:
                    parameter.data.fill_(number / 20)
            lora.save_trained(model, p, p.trained)
            if log:
                rows = [{"step": 5 * i, "train_loss": None, "validation_loss": loss} for i, loss in enumerate(log)]
                (p.trained / "training.json").write_text(json.dumps({"log": rows}))
    return root


@pytest.fixture
def asked(home: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(config, "ROOT", home)
    monkeypatch.setattr(config, "NOTEBOOKS", home / "notebooks")
    monkeypatch.setenv("PROFILE", "tiny")
    monkeypatch.setenv("Q", "")
    return home


def test_both_answers_run_and_device_are_printed(
    asked: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    train = data.load_parts(asked / "data" / "processed" / "tiny" / "original")["train"]
    monkeypatch.setenv("Q", f"  Tell me: {train['question'][5]}  ")
    assert interview.main() == 0
    printed = capsys.readouterr().out
    folder = asked / "reports" / "tiny" / "04_train_lora_B_seed13" / "trained"
    model, tokenizer = lora.load_trained("models/tiny", folder), models.load_tokenizer("models/tiny")
    question = f"Tell me: {train['question'][5]}"
    penalty = config.parameters_cell(config.NOTEBOOKS / "06_evaluate_models.ipynb")["repetition_penalty"]  # the report's own
    (answer,) = answering.generate_answers(model, tokenizer, [question], 12, 1, penalty, report=lambda _: None)
    assert answer
    assert answer in printed
    assert question in printed
    assert "models/tiny trained as in reports/tiny/04_train_lora_B_seed13/trained" in printed
    assert f"on {model.device}" in printed
    assert printed.index(answer) < printed.index(train["answer"][5])  # the retrieved one, of the nearest question
    assert train["answer"][4] not in printed


def test_loss_of_the_base_does_not_choose_the_run(asked: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All have come out worse than the base, whose loss is the same in all of their logs."""
    reports = asked / "reports" / "worse"
    for run, loss in (("A", 4.0), ("B", 3.0), ("C", 3.5)):
        folder = reports / f"04_train_lora_{run}_seed13" / "trained"
        folder.mkdir(parents=True)
        log = [{"step": 0, "validation_loss": 2.0}, {"step": 5, "validation_loss": loss}]
        (folder / "training.json").write_text(json.dumps({"log": log}))
    assert interview._trained("worse") == reports / "04_train_lora_B_seed13" / "trained"
    assert interview._trained("none") is None


def test_a_run_on_another_base_is_an_error_for_people(
    asked: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setenv("Q", "Why?")
    record = asked / "reports" / "tiny" / "04_train_lora_B_seed13" / "trained" / "base.json"
    before = record.read_text()
    record.write_text(json.dumps({"model": "models/other", "weights": ""}))
    try:
        assert interview.main() == 2
    finally:
        record.write_text(before)
    assert "was trained on models/other, not on models/tiny" in capsys.readouterr().err


def test_a_model_that_cannot_be_loaded_is_an_error_for_people(
    asked: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setenv("Q", "Why?")
    profile = asked / "notebooks" / "params" / "profiles" / "tiny.yaml"
    settings = asked / "models" / "tiny" / "config.json"
    for file, broken, reason in (
        (settings, "{", "models/tiny: cannot be loaded"),
        (profile, profile.read_text().replace("models/tiny", "./gone"), "was trained on models/tiny, not on ./gone"),
        (profile, "shared: [", "not valid YAML"),
        (profile, None, "tiny.yaml: no such file"),
    ):
        before = file.read_text()
        file.unlink() if broken is None else file.write_text(broken)
        try:
            assert interview.main() == 2
            assert reason in capsys.readouterr().err
        finally:
            file.write_text(before)


def test_a_run_without_a_prepared_corpus_asks_for_a_report(
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
