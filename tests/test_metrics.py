"""Scores agree with the reference packages and with hand computation, and need neither network nor WordNet."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import sacrebleu
from conftest import read_raw
from nltk.translate import meteor_score
from rouge_score import rouge_scorer

from interviewmate_utils import metrics

CORPUS = [row["answer"] for row in read_raw("interview_qa.jsonl")]
PREDICTIONS, REFERENCES = CORPUS[:20], CORPUS[20:40]
OFFLINE = {"HF_HUB_OFFLINE": "1", "HF_EVALUATE_OFFLINE": "1"}
CHILD = """
import json, socket, sys
def refuse(*arguments): raise AssertionError(f"the network was asked for: {arguments}")
socket.socket.connect = socket.getaddrinfo = refuse
from interviewmate_utils import metrics
table = metrics.score_items(["the auto", "a cat sat"], ["the car", "A cat sat."])
print(json.dumps({"name": metrics.meteor_name(), "bleu": metrics.corpus_bleu(["a b"], ["a b"])[0]} | table.to_dict("list")))
"""


def in_fresh_process(folder: Path, **variables: str) -> dict:
    """Score two items in a new process with an empty cache, no route to the network and its own NLTK data."""
    environment = os.environ | OFFLINE | {"HF_HOME": str(folder / "hf"), "NLTK_DATA": str(folder / "nltk")} | variables
    done = subprocess.run([sys.executable, "-c", CHILD], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def write_wordnet(folder: Path) -> None:
    """A whole WordNet database in its own file format that knows one synset: car, auto."""
    root = folder / "nltk" / "corpora" / "wordnet"
    root.mkdir(parents=True)
    for name in [f"{kind}.{pos}" for kind in ("data", "index") for pos in ("verb", "adj", "adv")] + ["cntlist.rev"]:
        (root / name).write_text("")
    for pos in ("noun", "verb", "adj", "adv"):
        (root / f"{pos}.exc").write_text("")
    (root / "lexnames").write_text("".join(f"{i:02d}\tnoun.{i}\t1\n" for i in range(45)))
    (root / "data.noun").write_text("00000000 06 n 02 car 0 auto 0 000 | a motor vehicle with four wheels  \n")
    words = ("auto", "car")
    (root / "index.noun").write_text("".join(f"{word} n 1 0 1 1 00000000  \n" for word in words))
    (root / "index.sense").write_text("".join(f"{word}%1:06:00:: 00000000 1 0\n" for word in words))


def one(prediction: str, reference: str) -> dict[str, float]:
    return metrics.score_items([prediction], [reference]).iloc[0].to_dict()


@pytest.fixture(scope="module")
def table():
    return metrics.score_items(PREDICTIONS, REFERENCES)


@pytest.fixture
def meteor() -> str:
    return metrics.meteor_name()


def test_rouge_equals_rouge_score(table) -> None:
    scorer = rouge_scorer.RougeScorer(list(metrics.ROUGE), use_stemmer=True)
    for i, (prediction, reference) in enumerate(zip(PREDICTIONS, REFERENCES, strict=True)):
        lines = [re.sub(r"(?<=[.!?]) +(?=[A-Z\"'(])", "\n", text) for text in (reference, prediction)]
        for name, score in scorer.score(*lines).items():
            assert table[name][i] == score.fmeasure
    assert table.rougeL.between(0.03, 0.5).all(), "20 different answers: neither empty nor equal"


def test_bleu_equals_sacrebleu(table) -> None:
    bleu, signature = metrics.corpus_bleu(PREDICTIONS, REFERENCES)
    assert bleu == pytest.approx(sacrebleu.corpus_bleu(PREDICTIONS, [REFERENCES]).score / 100, abs=1e-12)
    direct = [sacrebleu.sentence_bleu(p, [r]).score / 100 for p, r in zip(PREDICTIONS, REFERENCES, strict=True)]
    assert table.sentence_bleu.tolist() == pytest.approx(direct, abs=1e-12)
    assert "tok:13a" in signature.split("|")
    assert f"version:{sacrebleu.__version__}" in signature.split("|")


def test_meteor_equals_nltk(table, meteor: str) -> None:
    class KnowsNothing:
        def synsets(self, word):
            return []

    def tokens(text: str) -> list[str]:
        return re.findall(r"\w+|[^\w\s]", text.lower())

    options = {} if meteor == "meteor" else {"wordnet": KnowsNothing()}
    pairs = zip(PREDICTIONS, REFERENCES, strict=True)
    direct = [meteor_score.single_meteor_score(tokens(r), tokens(p), **options) for p, r in pairs]
    assert table[meteor].tolist() == pytest.approx(direct, abs=1e-12)


def test_rouge_by_hand() -> None:
    scores = one("down the cat sat", "the cat sat down")
    assert scores["rouge1"] == 1.0
    assert scores["rouge2"] == pytest.approx(2 / 3)  # the cat, cat sat; of three bigrams each
    assert scores["rougeL"] == pytest.approx(3 / 4)  # the cat sat
    shorter = one("the cats", "the cat sat down")  # stems agree: precision 1, recall 1/2
    assert shorter["rouge1"] == pytest.approx(2 / 3)


def test_meteor_by_hand(meteor: str) -> None:
    # precision 1, recall 2/3, one chunk of two matches; swapped arguments would give 0.893
    mean = (1 * 2 / 3) / (0.9 * 1 + 0.1 * 2 / 3)
    assert one("the cat", "the cat sat")[meteor] == pytest.approx((1 - 0.5 * (1 / 2) ** 3) * mean)
    # all four match in two chunks
    assert one("sat down the cat", "the cat sat down")[meteor] == pytest.approx(1 - 0.5 * (2 / 4) ** 3)
    assert one("he walks", "he walking")[meteor] == pytest.approx(1 - 0.5 * (1 / 2) ** 3)  # by stem


def test_bleu_by_hand() -> None:
    # 13a splits the full stop off: 5 of 6, 3 of 5, 1 of 4 n-grams match for n = 1, 2, 3; 4-grams: 0 of 3, smoothed to 1/2
    bleu, _ = metrics.corpus_bleu(["the cat sat on it."], ["the cat sat down it."])
    assert bleu == pytest.approx((5 / 6 * 3 / 5 * 1 / 4 * 1 / 6) ** 0.25)


@pytest.mark.parametrize(
    ("prediction", "reference", "expected"),
    [
        ("The  Cat, sat!", "a cat sat", 1.0),
        ("cat sat", "cats sat", 0.0),
        ("theme", "me", 0.0),  # articles are whole words
        ("sat cat", "cat sat", 0.0),
        ("the", "a", 0.0),  # nothing left on either side is no answer
    ],
)
def test_exact_match_normalisation(prediction: str, reference: str, expected: float) -> None:
    assert one(prediction, reference)["exact_match"] == expected


def test_identical_answers_score_one(meteor: str) -> None:
    table = metrics.score_items(CORPUS[:5], CORPUS[:5])
    assert (table.drop(columns=meteor) == 1.0).all(axis=None)
    lengths = [len(re.findall(r"\w+|[^\w\s]", text)) for text in CORPUS[:5]]
    assert table[meteor].tolist() == pytest.approx([1 - 0.5 / n**3 for n in lengths])
    assert metrics.corpus_bleu(CORPUS[:5], CORPUS[:5])[0] == 1.0


@pytest.mark.parametrize("empty", ["", "   ", "\n\t"])
def test_empty_answers_score_zero(empty: str, encoder) -> None:
    table = metrics.score_items([empty, CORPUS[0], empty], [CORPUS[0], CORPUS[0], "The."])
    assert (table.iloc[[0, 2]] == 0.0).all(axis=None)
    assert table.rougeL[1] == 1.0
    assert metrics.corpus_bleu([empty], [CORPUS[0]])[0] == 0.0
    assert metrics.semantic_similarity(encoder, [empty, CORPUS[0]], CORPUS[:2]).tolist()[0] == 0.0


def test_scores_follow_their_items(table) -> None:
    order = np.random.default_rng(0).permutation(20)
    shuffled = metrics.score_items([PREDICTIONS[i] for i in order], [REFERENCES[i] for i in order])
    assert np.array_equal(shuffled.to_numpy(), table.iloc[order].to_numpy())
    unpaired = metrics.score_items([PREDICTIONS[i] for i in order], REFERENCES)
    assert not np.allclose(unpaired.rougeL, table.rougeL)
    assert table.drop(columns="exact_match").stack().between(0, 1).all()


def test_unequal_numbers_are_refused_and_leave_nothing_behind(table) -> None:
    with pytest.raises(ValueError, match=r"\(20\).*\(19\)"):
        metrics.score_items(PREDICTIONS, REFERENCES[:19])
    assert metrics.score_items(PREDICTIONS, REFERENCES).equals(table)


def test_lsum_reads_sentence_by_sentence() -> None:
    scores = one("It overfits. More data helps.", "More data helps. It overfits.")
    assert scores["rougeLsum"] == 1.0
    assert scores["rougeL"] == pytest.approx(3 / 5)
    assert metrics.one_sentence_a_line("About 0.5 of e.g. these. Then stop.") == "About 0.5 of e.g. these.\nThen stop."


def test_semantic_similarity_is_a_cosine(encoder) -> None:
    same = metrics.semantic_similarity(encoder, CORPUS[:3], CORPUS[:3])
    assert same.tolist() == pytest.approx([1.0] * 3, abs=1e-5)
    texts = ["Dropout regularizes a network.", "A network is regularized by dropout.", "The soup was cold, sadly."]
    close, far = metrics.semantic_similarity(encoder, [texts[0]] * 2, texts[1:])
    assert -1 <= far < 0.3 < 0.7 < close <= 1
    assert close == pytest.approx(metrics.semantic_similarity(encoder, [texts[1]], [texts[0]])[0], abs=1e-5)


def test_no_network_no_cache_no_wordnet(tmp_path: Path) -> None:
    scores = in_fresh_process(tmp_path)
    assert scores["name"] == "meteor_exact_stem"
    assert "meteor" not in scores
    assert scores["meteor_exact_stem"][0] == pytest.approx(0.25)  # `the` alone: F 1/2, one chunk of one match
    assert scores["exact_match"] == [0.0, 1.0]


def test_wordnet_gives_the_full_metric_its_own_name(tmp_path: Path) -> None:
    write_wordnet(tmp_path)
    scores = in_fresh_process(tmp_path)
    assert scores["name"] == "meteor"
    assert "meteor_exact_stem" not in scores
    assert scores["meteor"][0] == pytest.approx(1 - 0.5 * (1 / 2) ** 3)  # car and auto agree


def test_wordnet_that_does_not_load_counts_as_none(tmp_path: Path) -> None:
    write_wordnet(tmp_path / "elsewhere")
    (tmp_path / "elsewhere/nltk/corpora/wordnet/index.sense").unlink()  # as in a system package
    scores = in_fresh_process(tmp_path / "elsewhere")
    assert scores["name"] == "meteor_exact_stem"
    assert scores["meteor_exact_stem"][0] == pytest.approx(0.25)


def test_description_names_every_package_and_its_version(meteor: str) -> None:
    rows = metrics.describe().set_index("score")
    assert meteor in rows.index
    assert f"sacrebleu {sacrebleu.__version__}" in rows.package.tolist()
    assert "13a" in rows.loc["corpus BLEU, sentence BLEU", "tokeniser and setting"]


def test_the_child_would_notice_the_network() -> None:
    code = CHILD.replace("from interviewmate_utils import metrics", "socket.create_connection(('localhost', 9))")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert "the network was asked for" in done.stderr


WORDS = re.findall(r"\w+", "the model learns a weight from each row and then we test it on new data before it ships to users")


def told(seed: int, count: int = 30, keep: float = 0.7) -> tuple[list[str], list[str]]:
    """Answers that keep most words of their references, and the references."""
    rng = np.random.default_rng(seed)
    references = [" ".join(rng.permutation(WORDS)) for _ in range(count)]
    return [" ".join(w if rng.random() < keep else rng.choice(WORDS) for w in text.split()) for text in references], references


def test_corpus_bleu_is_compared_as_by_sacrebleu() -> None:
    from sacrebleu.metrics import BLEU
    from sacrebleu.significance import PairedTest

    _, references = told(0)
    rng = np.random.default_rng(9)
    first, second = ([" ".join(w for w in t.split() if rng.random() < keep) for t in references] for keep in (0.8, 0.83))
    found = metrics.compare_corpus_bleu([first], [second], references, resamples=2999)
    test = PairedTest([("a", first), ("b", second)], {"bleu": BLEU()}, [references], test_type="ar", n_samples=3000)
    theirs = next(value for name, value in test()[1].items() if name != "System")
    assert (found["first"], found["second"]) == pytest.approx((theirs[0].score / 100, theirs[1].score / 100))
    assert 0.02 < theirs[1].p_value < 0.98
    assert found["p"] == pytest.approx(theirs[1].p_value, abs=0.04)  # Monte Carlo errors of both, 0.009 each


def test_randomisation_equals_enumeration_with_all_trainings_of_an_item_together() -> None:
    import itertools

    _, references = told(1, 8)
    rng = np.random.default_rng(2)
    first, second = (
        [[" ".join(w for w in t.split() if rng.random() < k) for t in references] for _ in range(2)] for k in (0.80, 0.84)
    )
    found = metrics.compare_corpus_bleu(first, second, references, resamples=4999)

    def difference(swaps) -> float:
        sides = [[[b if s else a for a, b, s in zip(*pair, swaps, strict=True)] for pair in zip(*order, strict=True)]
                 for order in ((first, second), (second, first))]  # fmt: skip
        means = [np.mean([sacrebleu.corpus_bleu(told, [references]).score / 100 for told in side]) for side in sides]
        return means[1] - means[0]

    null = np.array([difference(swaps) for swaps in itertools.product((0, 1), repeat=8)])
    assert found["difference"] == pytest.approx(null[0])
    expected = (abs(null) >= abs(null[0]) - 1e-12).mean()
    assert 0.05 < expected < 0.9, "trainings that changed sides one by one would give another p"
    assert found["p"] == pytest.approx(expected, abs=0.03)  # four standard errors


def test_one_training_meets_each_of_several() -> None:
    answers, references = told(3)
    others = [told(seed)[0] for seed in (4, 5)]
    assert metrics.compare_corpus_bleu([answers], others, references, 99) == metrics.compare_corpus_bleu(
        [answers, answers], others, references, 99
    )


def test_the_same_answers_have_no_different_bleu() -> None:
    answers, references = told(6)
    found = metrics.compare_corpus_bleu([answers], [answers], references, 99)
    assert (found["difference"], found["p"]) == (0.0, 1.0)


@pytest.mark.parametrize(("first", "second", "count"), [(1, 1, 0), (1, 1, 5), (2, 3, 30)])
def test_answers_that_do_not_pair_up_are_refused(first, second, count) -> None:
    answers, references = told(7)
    with pytest.raises(ValueError, match="trainings do not pair up" if count == 30 else "each system needs one answer"):
        metrics.compare_corpus_bleu([answers] * first, [answers] * second, references[:count], 99)


def test_length_alone_changes_scores_as_by_hand(encoder) -> None:
    references = ["one two three four", "five six seven eight"]
    found = metrics.by_length(encoder, references, references, [0.5, 1.0, 1.5])
    assert found.loc[1.0, "rouge1"] == 1
    assert found.loc[0.5, "rouge1"] == pytest.approx(2 * 1 * 0.5 / 1.5)  # precision 1, recall a half
    assert found.loc[1.5, "rouge1"] == pytest.approx(2 * (2 / 3) / (5 / 3))  # recall 1; two words of the next answer follow
    assert found.similarity.idxmax() == 1.0
