"""Tokens, batches and the dataset on disk; real files of others all the way."""

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import FOREIGN, foreign_data
from tiny import numbered

from interviewmate_utils import config, data, models, similarity, splits
from interviewmate_utils.config import ROOT
from interviewmate_utils.rows import read_rows

PARTS = ["train", "validation", "test"]


@pytest.fixture(scope="module")
def tokenizer():
    return models.load_tokenizer("data/models/embedded")


@foreign_data
@pytest.mark.parametrize(("name", "count"), [("ajitsingh98", 532), ("kalyanks_llm", 115)])
def test_real_foreign_files_go_all_the_way(name: str, count: int, encoder, tokenizer, tmp_path: Path) -> None:
    rows, problems = read_rows(FOREIGN / f"{name}.jsonl", "question", "answer")
    pairs = similarity.find_pairs([row["question"] for row in rows], encoder, 0.9)
    kept, repeats = splits.keep_rows(rows, pairs, 0.9)
    assert len(kept) + len({p.line for p in [*problems, *repeats]}) == count
    rows, pairs = [rows[i] for i in kept], splits.renumber(pairs, kept)
    roots, _ = splits.find_roots(rows)
    parts = splits.split_rows(rows, roots, 0.15, 0.15, "section", 13)
    splits.check_leakage(rows, roots, parts, pairs, 0.9)
    data.save_dataset(data.build_dataset(rows, parts, tokenizer, 512), tmp_path / "out", "data/models/embedded")
    loaded = data.load_parts(tmp_path / "out")
    assert sum(len(part) for part in loaded.values()) == len(kept)
    assert all("question" in part.column_names and "section" in part.column_names for part in loaded.values())


# Tokens


@pytest.mark.parametrize("max_length", [16, 40, 100, 256, 512])
def test_labels_are_the_answer_and_its_end_if_it_fits(corpus: list[dict], tokenizer, max_length: int) -> None:
    truncated = 0
    for row in corpus[::4]:
        out = data.tokenise(row, tokenizer, max_length)
        text = f"Question: {row['question']}\nAnswer: {row['answer']}"
        prompt = len(tokenizer(f"Question: {row['question']}\nAnswer:", add_special_tokens=False)["input_ids"])
        counted = [label for label in out["labels"] if label != data.IGNORED]
        assert len(out["input_ids"]) == len(out["labels"]) == out["length"] <= max_length
        assert out["labels"][:prompt] == [data.IGNORED] * min(prompt, max_length)
        assert counted == out["input_ids"][prompt:]
        assert out["answer_tokens"] == len(counted)
        assert out["truncated"] == (out["full_length"] > max_length)
        if out["truncated"]:
            truncated += 1
            assert out["length"] == max_length
            assert tokenizer.eos_token_id not in out["input_ids"]
            assert text.startswith(tokenizer.decode(out["input_ids"]).rstrip("\ufffd"))
        else:
            assert out["length"] == out["full_length"]
            assert counted[-1] == tokenizer.eos_token_id
            assert tokenizer.decode(out["input_ids"]) == text + tokenizer.eos_token
            assert tokenizer.decode(counted) == " " + row["answer"] + tokenizer.eos_token
    assert (truncated == len(corpus[::4])) == (max_length <= 100)


def test_the_end_is_learnt_at_exactly_the_full_length(tokenizer) -> None:
    row = {"question": "What is bias?", "answer": "A systematic error, such as a scale that reads 2 kg high."}
    full = data.tokenise(row, tokenizer, 512)["full_length"]
    assert data.tokenise(row, tokenizer, full)["labels"][-1] == tokenizer.eos_token_id
    short = data.tokenise(row, tokenizer, full - 1)
    assert (short["truncated"], short["length"], short["full_length"]) == (True, full - 1, full)
    assert tokenizer.eos_token_id not in short["labels"]


def test_a_question_that_fills_the_length_leaves_no_answer(tokenizer) -> None:
    out = data.tokenise({"question": "why " * 100, "answer": "Because."}, tokenizer, 32)
    assert out["labels"] == [data.IGNORED] * 32
    assert out["answer_tokens"] == 0


@pytest.mark.parametrize("spare", [400, 0, -1, -5, -30, -200])
def test_a_long_conversation_loses_its_beginning_before_the_answer_its_end(tokenizer, spare: int) -> None:
    rows = [row | {"id": f"r{i}", "parent_id": f"r{i - 1}" if i else None} for i, row in enumerate(numbered(3))]
    dataset = data.build_dataset(rows, {"all": [0, 1, 2]}, tokenizer, 4096)["all"]
    assert dataset[2]["context"] == "Question: Question 0?\nAnswer: Answer 0.\nQuestion: Question 1?\nAnswer: Answer 1.\n"
    assert tokenizer.decode(dataset[2]["input_ids"][:-1]) == dataset[2]["context"] + "Question: Question 2?\nAnswer: Answer 2."
    whole, alone = dataset[2]["input_ids"], data.tokenise(rows[2], tokenizer, 4096)["input_ids"]
    assert whole[-len(alone) :] == alone
    limit = len(whole) + spare
    cut = data.tokenise(dataset[2], tokenizer, limit) if limit > 0 else data.tokenise(dataset[2], tokenizer, 16)
    if spare > -(len(whole) - len(alone)):
        assert cut["input_ids"] == whole[-limit:]
        assert cut["truncated"] is False
        assert [i for i in cut["labels"] if i != data.IGNORED] == [i for i in dataset[2]["labels"] if i != data.IGNORED]
    else:
        assert cut["input_ids"] == alone[:16]
        assert cut["truncated"] is (len(alone) > 16)
    assert cut["full_length"] == len(whole)


def test_tokens_in_files_are_the_tokens_in_memory(tokenizer, tmp_path: Path) -> None:
    rows, parts = numbered(12), {"train": [3, 1, 2], "test": [0]}
    there = data.build_dataset(rows, parts, tokenizer, 64, tmp_path)
    assert there["train"].cache_files
    here = data.build_dataset(rows, parts, tokenizer, 64)
    assert {name: part.to_list() for name, part in there.items()} == {name: part.to_list() for name, part in here.items()}


def test_markup_and_foreign_scripts_survive_the_tokenizer(tokenizer) -> None:
    row = {"question": "Is <script> \u65e5\u672c\u8a9e \U0001f600 safe?", "answer": "a\nb  \u00e9 \u2264 {x} <|not special|>"}
    out = data.tokenise(row, tokenizer, 512)
    assert tokenizer.decode(out["input_ids"][:-1]) == data.PROMPT.format(**row) + " " + row["answer"]


def test_the_prompt_of_training_is_the_prompt_of_asking(corpus: list[dict], tokenizer) -> None:
    for row in corpus[:20]:
        asked = tokenizer(data.PROMPT.format(question=row["question"]))["input_ids"]
        assert data.tokenise(row, tokenizer, 512)["input_ids"][: len(asked)] == asked


def test_collate_pads_on_the_right() -> None:
    batch = data.collate([{"input_ids": [5, 6, 7], "labels": [-100, 6, 7]}, {"input_ids": [8], "labels": [8]}], pad_id=0)
    assert batch["input_ids"].tolist() == [[5, 6, 7], [8, 0, 0]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1], [1, 0, 0]]
    assert batch["labels"].tolist() == [[-100, 6, 7], [8, -100, -100]]


# On disk


@pytest.fixture
def small(tokenizer):
    rows = numbered(12, section="s")
    parts = {"train": [0, 2, 4, 6, 8, 10], "validation": [1, 3, 5], "test": [7, 9, 11]}
    return rows, parts, data.build_dataset(rows, parts, tokenizer, 64)


def test_dataset_round_trip_is_memory_mapped(small, tokenizer, tmp_path: Path) -> None:
    rows, parts, dataset = small
    data.save_dataset(dataset, tmp_path / "deep" / "corpus", "any")
    loaded = data.load_parts(tmp_path / "deep" / "corpus")
    assert list(loaded) == PARTS
    for name, part in loaded.items():
        assert part.to_list() == [rows[i] | {"context": ""} | data.tokenise(rows[i], tokenizer, 64) for i in parts[name]]
        files = [Path(f["filename"]) for f in part.cache_files]
        assert files
        assert all(f.is_relative_to(tmp_path / "deep" / "corpus") for f in files)
    assert [p.name for p in (tmp_path / "deep").iterdir()] == ["corpus"]


@pytest.mark.parametrize("model", ["data/models/embedded", "owner/name@0123abcd", 'models/größer "eins"'])
def test_dataset_says_whose_tokens_it_holds(small, tmp_path: Path, model: str) -> None:
    assert config.prepared_for(tmp_path / "corpus") == ""
    data.save_dataset(small[2], tmp_path / "corpus", model)
    assert config.prepared_for(tmp_path / "corpus") == model
    before = config.digest(tmp_path / "corpus")
    data.save_dataset(small[2], tmp_path / "corpus", model + "x")
    assert config.digest(tmp_path / "corpus") != before, "a corpus for another model is another input"


def test_rows_with_different_and_mixed_columns_are_kept(tokenizer) -> None:
    odd = [
        {"score": 1},
        {"score": "high"},
        {"score": None},
        {"tags": ["a"]},
        {"tags": "b"},
        {"big": 10**30},
        {"deep": {"a": [1]}},
    ]
    rows = [row | extra for row, extra in zip(numbered(12), odd + [{}] * 5, strict=True)]
    dataset = data.build_dataset(rows, {"all": range(12)}, tokenizer, 64)["all"]
    assert list(dataset["score"])[:4] == ["1", '"high"', None, None]
    assert list(dataset["tags"])[2:6] == [None, '["a"]', '"b"', None]
    assert list(dataset["big"])[5] == str(10**30)
    assert list(dataset["deep"])[5:7] == [None, {"a": [1]}]


def test_a_half_written_draft_changes_nothing_and_is_cleared(small, tmp_path: Path) -> None:
    _, parts, dataset = small
    data.save_dataset(dataset, tmp_path / "corpus", "first")
    draft = tmp_path / ".corpus.new" / "train"
    draft.mkdir(parents=True)
    (draft / "data-00000-of-00001.arrow").write_bytes(b"half")
    assert len(data.load_parts(tmp_path / "corpus")["train"]) == 6
    assert config.prepared_for(tmp_path / "corpus") == "first"
    data.save_dataset(dataset.filter(lambda row: row["line"] > 12), tmp_path / "corpus", "second")
    assert config.prepared_for(tmp_path / "corpus") == "second"
    assert len(data.load_parts(tmp_path / "corpus")["train"]) == len(parts["train"]) - 2
    assert [p.name for p in tmp_path.iterdir()] == ["corpus"]


def test_killed_between_the_two_renames_the_old_dataset_comes_back_first(small, tmp_path: Path) -> None:
    data.save_dataset(small[2], tmp_path / "corpus", "first")
    (tmp_path / "corpus").rename(tmp_path / ".corpus.old")

    (tmp_path / ".corpus.new").write_text("a file where the draft's folder should go: the save fails")
    with pytest.raises(OSError, match=r"\.corpus\.new"):
        data.save_dataset(small[2], tmp_path / "corpus", "second")
    assert len(data.load_parts(tmp_path / "corpus")["train"]) == 6
    assert config.prepared_for(tmp_path / "corpus") == "first"


SAVER = """
import sys
from pathlib import Path
import datasets
from interviewmate_utils import data
datasets.disable_progress_bars()
print("started", flush=True)
while True:
    rows = {"line": list(range(300_000)), "text": ["x" * 50] * 300_000}
    data.save_dataset(datasets.DatasetDict(train=datasets.Dataset.from_dict(rows)), Path(sys.argv[1]), "second")
"""


def test_kill_during_a_save_leaves_a_whole_dataset(small, tmp_path: Path) -> None:
    folder = tmp_path / "corpus"
    data.save_dataset(small[2], folder, "first")
    process = subprocess.Popen([sys.executable, "-c", SAVER, str(folder)], stdout=subprocess.PIPE)
    try:
        process.stdout.readline()
        deadline = time.monotonic() + 60
        while not any((tmp_path / ".corpus.new").rglob("*.arrow")):
            assert time.monotonic() < deadline
            time.sleep(0.001)
        process.send_signal(signal.SIGKILL)
    finally:
        process.kill()
        process.wait()
        process.stdout.close()
    assert (tmp_path / ".corpus.new").exists()
    assert len(data.load_parts(folder)["train"]) == 6
    assert config.prepared_for(folder) == "first"
    data.save_dataset(small[2], folder, "third")
    assert config.prepared_for(folder) == "third"
    assert [p.name for p in tmp_path.iterdir()] == ["corpus"]


def test_a_missing_corpus_says_which_notebook_makes_it(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"nowhere: no prepared corpus; run notebooks/01_prepare_data\.ipynb"):
        data.load_parts(tmp_path / "nowhere")
    assert (ROOT / "notebooks" / "01_prepare_data.ipynb").exists()


# Terms


@pytest.mark.parametrize(
    ("text", "density"),
    [
        ("Gradient descent follows the gradient", 100 * 2 / 5),  # the longest match first: two terms, not three
        ("k-means, K-Means! and k-meansish", 100 * 2 / 4),
        ("losses and embeddings", 100 * 2 / 3),  # plurals
        ("lossy gloss", 0),
        ("C++ (C++) p-value", 100 * 2 / 3),
        ("", 0),
    ],
)
def test_term_density_by_hand(text: str, density: float) -> None:
    terms = ["gradient", "gradient descent", "descent", "k-means", "loss", "embedding", "C++"]
    assert data.term_density([text], terms) == [pytest.approx(density)]


def test_term_density_without_terms_is_zero() -> None:
    assert data.term_density(["a, b", ""], []) == [0.0, 0.0]
