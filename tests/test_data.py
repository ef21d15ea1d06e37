"""Duplicates, split, leakage, tokens and the dataset on disk, against known answers and brute force."""

import re
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from interviewmate_utils import data, models
from interviewmate_utils.config import ROOT
from interviewmate_utils.rows import read_rows

FOREIGN = ROOT.parent / "shared" / "data" / "qa"
PARTS = ["train", "validation", "test"]


@pytest.fixture(scope="module")
def corpus() -> list[dict]:
    rows, problems = read_rows(ROOT / "data" / "raw" / "interview_qa.jsonl", "question", "answer")
    assert problems == []
    return rows


@pytest.fixture(scope="module")
def encoder():
    return data.load_encoder("embedded-minilm")


@pytest.fixture(scope="module")
def vectors(corpus: list[dict], encoder) -> np.ndarray:
    return data.embed(encoder, [row["question"] for row in corpus])


@pytest.fixture(scope="module")
def tokenizer():
    return models.load_tokenizer("data/models/embedded")


def unit_vectors(count: int, seed: int = 0, width: int = 16) -> np.ndarray:
    vectors = np.random.default_rng(seed).normal(size=(count, width)).astype(np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def numbered(count: int, **columns: str) -> list[dict]:
    return [{"line": 10 + i, "question": f"Question {i}?", "answer": f"Answer {i}.", **columns} for i in range(count)]


def grouped(sizes: dict[str, int]) -> list[dict]:
    rows = [{"subfield": name} for name, size in sizes.items() for _ in range(size)]
    return [row | {"line": i, "question": f"{i}?", "answer": "a"} for i, row in enumerate(rows)]


# Duplicates


def test_exact_duplicates_differ_in_case_punctuation_and_space_only() -> None:
    questions = [
        "What is bias?",
        "what is  BIAS",
        "\u201cWhat is bias?\u201d",
        "What is C?",
        "What is C++?",
        "What is C#?",
        "???",
        "!",
    ]
    rows = [{"line": 2 * i + 1, "question": q, "answer": str(i)} for i, q in enumerate(questions)]
    kept, problems = data.drop_duplicates(rows, np.eye(len(rows)), 0.9, "f.jsonl")
    assert kept == [0, 3, 4, 5, 6, 7]
    assert list(map(str, problems)) == [
        "f.jsonl:3: question: exact duplicate of line 1",
        "f.jsonl:5: question: exact duplicate of line 1",
    ]
    assert '"answer": "2"' in problems[1].content


def test_near_duplicates_are_those_at_the_threshold_from_a_kept_row() -> None:
    """Rows on a circle, 20 degrees apart (cosine 0.94): each repeats the one before it, but only if that one is kept."""
    angles = np.radians([0, 20, 40, 60, 90])
    vectors = np.stack([np.cos(angles), np.sin(angles)], 1)
    kept, problems = data.drop_duplicates(numbered(5), vectors, 0.9, "f.jsonl")
    assert kept == [0, 2, 4]
    assert [(p.line, p.reason) for p in problems] == [
        (11, "near duplicate of line 10 (cosine 0.940)"),
        (13, "near duplicate of line 12 (cosine 0.940)"),
    ]
    assert data.drop_duplicates(numbered(5), vectors, 0.95, "f.jsonl") == ([0, 1, 2, 3, 4], [])


def test_kept_rows_hold_no_pair_at_the_threshold_and_each_dropped_one_has_a_kept_neighbour() -> None:
    vectors = unit_vectors(400, width=4)
    kept, problems = data.drop_duplicates(numbered(400), vectors, 0.9, "f.jsonl")
    cosines = vectors @ vectors.T
    assert len(kept) + len(problems) == 400
    assert (np.triu(cosines[np.ix_(kept, kept)], 1) < 0.9).all()
    for problem in problems:
        i, j = problem.line - 10, int(re.search(r"line (\d+)", problem.reason)[1]) - 10
        assert j in kept
        assert j < i
        assert cosines[i, j] >= 0.9


def test_planted_paraphrases_are_found_and_their_lines_named(corpus: list[dict], encoder, vectors: np.ndarray) -> None:
    questions = {
        corpus[0]["question"].upper().replace("?", " ?!"): corpus[0]["line"],
        corpus[100]["question"].replace(" the ", " a "): corpus[100]["line"],
        "Please tell me: " + corpus[200]["question"]: corpus[200]["line"],
    }
    planted = [{"line": 1000 + i, "question": q, "answer": "x"} for i, q in enumerate(questions)]
    added = data.embed(encoder, list(questions))
    kept, problems = data.drop_duplicates([*corpus, *planted], np.vstack([vectors, added]), 0.9, "f.jsonl")
    assert kept == list(range(302))
    assert [p.line for p in problems] == [1000, 1001, 1002]
    assert [int(re.search(r"line (\d+)", p.reason)[1]) for p in problems] == list(questions.values())
    assert [p.reason.split()[0] for p in problems] == ["exact", "near", "near"]


@pytest.mark.parametrize("own", [True, False])
def test_nearest_equals_brute_force_beyond_one_block(own: bool) -> None:
    vectors, others = unit_vectors(1500), unit_vectors(1100, seed=1)
    index, cosine = data.nearest(vectors) if own else data.nearest(vectors, others)
    cosines = vectors @ (vectors if own else others).T
    if own:
        np.fill_diagonal(cosines, -np.inf)
    np.testing.assert_array_equal(index, cosines.argmax(1))
    np.testing.assert_allclose(cosine, cosines.max(1), atol=1e-6)


def test_embeddings_are_unit_vectors(encoder) -> None:
    vectors = data.embed(encoder, ["What is bias?", "x", "word " * 3000])
    assert vectors.shape == (3, 384)
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)


# Split and leakage


def test_the_302_give_211_45_46_every_time(corpus: list[dict]) -> None:
    parts = data.split_rows(corpus, 0.15, 0.15, "subfield", 13)
    assert {name: len(indices) for name, indices in parts.items()} == {"train": 211, "validation": 45, "test": 46}
    assert sorted(i for indices in parts.values() for i in indices) == list(range(302))
    assert parts == data.split_rows(corpus, 0.15, 0.15, "subfield", 13)
    assert all(indices == sorted(indices) for indices in parts.values())
    assert parts["test"] != data.split_rows(corpus, 0.15, 0.15, "subfield", 14)["test"]


@pytest.mark.parametrize("seed", range(5))
def test_each_part_holds_each_subfield_in_proportion(corpus: list[dict], seed: int) -> None:
    parts = data.split_rows(corpus, 0.15, 0.15, "subfield", seed)
    whole = Counter(row["subfield"] for row in corpus)
    for indices in parts.values():
        here = Counter(corpus[i]["subfield"] for i in indices)
        off = {name: here[name] - count * len(indices) / 302 for name, count in whole.items()}
        assert max(map(abs, off.values())) <= 1.5, off


def test_an_unstratified_split_is_out_of_proportion(corpus: list[dict]) -> None:
    """The check above can fail: without the column, some seed breaks it."""
    whole, worst = Counter(row["subfield"] for row in corpus), 0.0
    for seed in range(5):
        indices = data.split_rows(corpus, 0.15, 0.15, "no such column", seed)["test"]
        here = Counter(corpus[i]["subfield"] for i in indices)
        worst = max(worst, *(abs(here[name] - count * 46 / 302) for name, count in whole.items()))
    assert worst > 1.5


@pytest.mark.parametrize(
    "sizes",
    [
        {"a": 10},
        {"a": 7, "b": 3},
        {"a": 7, "b": 7},
        {"a": 9, "b": 1},
        {"a": 60, "b": 2},
        {"a": 60, "b": 7},
        {"a": 60, "b": 1, "c": 1, "d": 1, "e": 1, "f": 1, "g": 1, "h": 1},
        {f"only {i}": 1 for i in range(40)},
        {f"group {i}": 7 for i in range(30)},
        {"a": 7, "b": 7, "c": 7, "d": 6, "e": 5, "f": 1},
    ],
    ids=str,
)
@pytest.mark.parametrize("shares", [(0.15, 0.15), (0.05, 0.2), (0.2, 0.7), (0.05, 0.8), (0.45, 0.45)], ids=str)
def test_small_and_rare_groups_split_all_the_same(sizes: dict[str, int], shares: tuple[float, float]) -> None:
    rows = grouped(sizes)
    n = len(rows)
    for seed in range(10):
        try:
            parts = data.split_rows(rows, *shares, "subfield", seed)
        except ValueError as error:
            assert "leave a part without rows" in str(error)  # noqa: PT017
            assert min(int(n * (1 - sum(shares)) + 1e-9), round(n * shares[0]), n * shares[1] - 0.5) < 1
            continue
        assert sorted(i for indices in parts.values() for i in indices) == list(range(n))
        assert [bool(parts[name]) for name in PARTS] == [True, True, True]
        assert len(parts["validation"]) == round(n * shares[0])


def test_a_rare_group_does_not_spoil_the_proportion_of_the_others() -> None:
    rows = grouped({"a": 50, "b": 50, "c": 2})
    for seed in range(30):
        for indices in data.split_rows(rows, 0.15, 0.4, "subfield", seed).values():
            here = Counter(rows[i]["subfield"] for i in indices)
            assert abs(here["a"] - here["b"]) <= 3, (seed, here)


def test_too_few_rows_and_impossible_shares_are_refused() -> None:
    with pytest.raises(ValueError, match="9 rows are too few to split; 10 are the least"):
        data.split_rows(numbered(9), 0.15, 0.15, "subfield", 13)
    with pytest.raises(ValueError, match="leave a part without rows: 100 become 0/50/50"):
        data.split_rows(numbered(100), 0.5, 0.5, "subfield", 13)
    with pytest.raises(ValueError, match="leave a part without rows: 20 become 19/0/1"):
        data.split_rows(numbered(20), 0.01, 0.01, "subfield", 13)


def test_a_planted_near_duplicate_across_parts_is_refused() -> None:
    rows, vectors = numbered(30), unit_vectors(30, width=64)
    parts = {"train": list(range(20)), "validation": list(range(20, 25)), "test": list(range(25, 30))}
    table = data.check_leakage(rows, parts, vectors, 0.9)
    assert len(table) == 5 + 5 + 5
    assert table.cosine.is_monotonic_decreasing
    assert table.cosine.max() < 0.9
    for held, other in ((22, 3), (27, 19), (29, 21)):
        changed = vectors.copy()
        changed[held] = changed[other]
        with pytest.raises(
            ValueError, match=rf"1 near-duplicate pair.*\n  line {10 + held} .* and line {10 + other} .* 1\.000"
        ):
            data.check_leakage(rows, parts, changed, 0.9)
    changed = vectors.copy()
    changed[3] = changed[4]  # within one part: no leak
    data.check_leakage(rows, parts, changed, 0.9)


def test_the_corpus_split_is_clean_and_its_table_names_real_neighbours(corpus: list[dict], vectors: np.ndarray) -> None:
    parts = data.split_rows(corpus, 0.15, 0.15, "subfield", 13)
    table = data.check_leakage(corpus, parts, vectors, 0.9)
    assert len(table) == 45 + 46 + 46
    by_line = {row["line"]: i for i, row in enumerate(corpus)}
    for row in table.itertuples():
        i, j = by_line[row.line], by_line[row.other_line]
        assert i in parts[row.part]
        assert j in parts[row.other]
        assert row.cosine == pytest.approx((vectors[parts[row.other]] @ vectors[i]).max(), abs=1e-5)
        assert (row.question, row.nearest) == (corpus[i]["question"], corpus[j]["question"])


@pytest.mark.skipif(not FOREIGN.exists(), reason="../shared/data is not beside this checkout")
@pytest.mark.parametrize(("name", "count"), [("ajitsingh98", 532), ("kalyanks_llm", 115)])
def test_real_foreign_files_go_all_the_way(name: str, count: int, encoder, tokenizer, tmp_path: Path) -> None:
    rows, problems = read_rows(FOREIGN / f"{name}.jsonl", "question", "answer")
    vectors = data.embed(encoder, [row["question"] for row in rows])
    kept, repeats = data.drop_duplicates(rows, vectors, 0.9, name)
    assert len(kept) + len({p.line for p in [*problems, *repeats]}) == count
    rows, vectors = [rows[i] for i in kept], vectors[kept]
    parts = data.split_rows(rows, 0.15, 0.15, "section", 13)
    data.check_leakage(rows, parts, vectors, 0.9)
    data.save_dataset(data.build_dataset(rows, parts, tokenizer, 512), tmp_path / "out")
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
    data.save_dataset(dataset, tmp_path / "deep" / "corpus")
    loaded = data.load_parts(tmp_path / "deep" / "corpus")
    assert list(loaded) == PARTS
    for name, part in loaded.items():
        assert part.to_list() == [rows[i] | data.tokenise(rows[i], tokenizer, 64) for i in parts[name]]
        files = [Path(f["filename"]) for f in part.cache_files]
        assert files
        assert all(f.is_relative_to(tmp_path / "deep" / "corpus") for f in files)
    assert [p.name for p in (tmp_path / "deep").iterdir()] == ["corpus"]


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
    data.save_dataset(dataset, tmp_path / "corpus")
    draft = tmp_path / ".corpus.new" / "train"
    draft.mkdir(parents=True)
    (draft / "data-00000-of-00001.arrow").write_bytes(b"half")
    assert len(data.load_parts(tmp_path / "corpus")["train"]) == 6
    data.save_dataset(dataset.filter(lambda row: row["line"] > 12), tmp_path / "corpus")
    assert len(data.load_parts(tmp_path / "corpus")["train"]) == len(parts["train"]) - 2
    assert [p.name for p in tmp_path.iterdir()] == ["corpus"]


def test_killed_between_the_two_renames_the_old_dataset_comes_back_first(small, tmp_path: Path) -> None:
    data.save_dataset(small[2], tmp_path / "corpus")
    (tmp_path / "corpus").rename(tmp_path / ".corpus.old")

    (tmp_path / ".corpus.new").write_text("a file where the draft's folder should go: the save fails")
    with pytest.raises(OSError, match=r"\.corpus\.new"):
        data.save_dataset(small[2], tmp_path / "corpus")
    assert len(data.load_parts(tmp_path / "corpus")["train"]) == 6


SAVER = """
import sys
from pathlib import Path
import datasets
from interviewmate_utils import data
datasets.disable_progress_bars()
print("started", flush=True)
while True:
    rows = {"line": list(range(300_000)), "text": ["x" * 50] * 300_000}
    data.save_dataset(datasets.DatasetDict(train=datasets.Dataset.from_dict(rows)), Path(sys.argv[1]))
"""


def test_kill_during_a_save_leaves_a_whole_dataset(small, tmp_path: Path) -> None:
    folder = tmp_path / "corpus"
    data.save_dataset(small[2], folder)
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
    data.save_dataset(small[2], folder)
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
