"""The search: folds, stages, ranking, the winner as a run; that kills, second workers and reruns count no trial twice."""

import itertools
import json
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import optuna
import pandas as pd
import psutil
import pytest
import yaml
from optuna.trial import TrialState
from safetensors.torch import load_file, save_file
from tiny import corpus_rows, save_tiny
from transformers import AutoTokenizer

from interviewmate_utils import config, data, results, search, training, workers
from interviewmate_utils.run import collect_parameters
from interviewmate_utils.training import trainer as trainers

MODEL = "data/models/tiny"
DEFAULTS = {
    "profile": "tiny",
    "seed": 3,
    "study": "short",
    "corpus": "original",
    "device": "cpu",
    "trials": 4,
    "folds": 3,
    "epochs": 1.0,
    "learning_rates": [1e-5, 1e-2],
    "max_new_tokens": 8,
    "repetition_penalty": 1.2,
    "storage": "",
    "processes": 1,
    "prune": False,
    "verdict_seeds": [],
}
FINISHED = (TrialState.COMPLETE, TrialState.PRUNED)
DRIVER = """
import sys
from interviewmate_utils import config, search, workers
from pathlib import Path
search.HEARTBEAT_S, search.GRACE_S, config.ROOT = 1, 3, Path(sys.argv[2])
p = config.SearchHyperparameters.model_validate_json(sys.argv[1])
{"run": workers.run, "work": workers.work}[sys.argv[3]](p)
"""


def rows_with_follow_ups(count: int) -> list[dict]:
    """Questions in three subfields; every fifth is followed up by the last rows, and one of those again."""
    rows = [row | {"id": f"q{i}", "parent_id": None} for i, row in enumerate(corpus_rows(count))]
    for i, row in enumerate(rows):
        row |= {"subfield": ("maths", "models", "systems")[i % 3], "file": "f.jsonl", "line": i + 1}
    for k, row in enumerate(rows[-6:]):
        row["parent_id"] = f"q{5 * k}" if k < 5 else rows[-2]["id"]
    return rows


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A repository with a tiny model and two prepared corpora, one with follow-ups."""
    root = tmp_path_factory.mktemp("template")
    save_tiny(root / MODEL)
    tokenizer = AutoTokenizer.from_pretrained(root / MODEL)
    for name, rows in (("original", rows_with_follow_ups(42)[:36]), ("follow_ups", rows_with_follow_ups(42))):
        held = {"validation": range(24, 30), "test": range(30, 36)}
        train = [i for i in range(len(rows)) if not 24 <= i < 36]
        dataset = data.build_dataset(rows, {"train": train} | held, tokenizer, 96)
        data.save_dataset(dataset, root / "data" / "processed" / "tiny" / name, MODEL)
    return root


def parameters(**changes: object) -> config.SearchHyperparameters:
    return config.SearchHyperparameters(**DEFAULTS | changes)


def counted(study: optuna.Study) -> Counter:
    """How often each slot was finished."""
    return Counter(t.user_attrs["slot"] for t in study.get_trials(states=FINISHED))


@pytest.fixture
def pretend(monkeypatch: pytest.MonkeyPatch) -> Callable:
    """Trials that train nothing: each answers with as much of the reference as `quality` (0 to 1) of its run says."""

    def put(quality: Callable[[config.TrainLora], float]) -> list[config.TrainLora]:
        seen = []

        def answer(p: object, run: config.TrainLora, dataset: dict, held: list, asked: list) -> list[str]:
            seen.append(run)
            texts = [dataset["train"][i]["answer"].split() for i in asked]
            return [" ".join(words[: round(quality(run) * len(words))]) for words in texts]

        monkeypatch.setattr(workers, "train_and_answer", answer)
        return seen

    return put


# --- folds


def test_folds_are_stratified_cover_everything_once_and_keep_conversations_together(root: Path) -> None:
    train = data.load_parts(parameters(corpus="follow_ups").processed)["train"]
    table = search.split_folds(train, 3, 13, "subfield")
    assert len(table) == len(train) == 30
    assert set(table.fold) == {1, 2, 3}
    assert table.groupby("conversation").fold.nunique().eq(1).all()
    place = {one: i for i, one in enumerate(train["id"])}
    followed = [(i, place[parent]) for i, parent in enumerate(train["parent_id"]) if parent]
    assert len(followed) == 6
    assert all(table.fold[i] == table.fold[j] for i, j in followed)
    firsts = table[table.conversation == table.index]
    sizes = firsts.groupby(["stratum", "fold"]).size().unstack()
    assert (sizes.max(axis=1) - sizes.min(axis=1)).max() <= 2, sizes
    assert table.equals(search.split_folds(train, 3, 13, "subfield"))
    assert not table.fold.equals(search.split_folds(train, 3, 14, "subfield").fold)


def test_folds_need_no_subfield_and_say_when_there_are_too_few_rows(root: Path) -> None:
    train = data.load_parts(parameters().processed)["train"]
    assert search.split_folds(train, 3, 1, "absent").fold.value_counts().tolist() == [8, 8, 8]
    with pytest.raises(search.SearchError, match="folds = 3: the training part has only 2 conversations"):
        search.split_folds(train.select(range(2)), 3, 1, "subfield")


def test_folds_are_stratified_by_the_column_that_the_corpus_was_split_by(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert search.stratified_by(parameters()) == "subfield"
    monkeypatch.setattr(config, "NOTEBOOKS", Path(shutil.copytree(config.NOTEBOOKS, root / "notebooks")))
    (config.NOTEBOOKS / "params/profiles/tiny.yaml").write_text("01_prepare_data: {stratify_by: topic}\nshared: {seeds: [1]}\n")
    assert search.stratified_by(parameters()) == "topic"


def test_a_fold_trains_on_the_other_folds_and_is_asked_its_first_questions_alone(root: Path, monkeypatch) -> None:
    p, seen = parameters(corpus="follow_ups", trials=1), []

    def look(_p: object, _run: object, dataset: dict, held: list, asked: list) -> list[str]:
        seen.append((held, asked))
        return [""] * len(asked)

    monkeypatch.setattr(workers, "train_and_answer", look)
    workers.work(p)
    parents = data.load_parts(p.processed)["train"]["parent_id"]
    assert sorted(i for held, _ in seen for i in held) == list(range(30))
    assert all(asked == [i for i in held if not parents[i]] for held, asked in seen)


def test_training_and_validation_rows_of_a_fold(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    p, given = parameters(), {}
    make = trainers.make_trainer

    def look(model: object, dataset: dict, *rest: object) -> object:
        given.update({name: list(part["id"]) for name, part in dataset.items()} | {"warmup": rest[0].warmup_steps})
        return make(model, dataset, *rest)

    monkeypatch.setattr(trainers, "make_trainer", look)
    dataset = data.load_parts(p.processed)
    told = workers.train_and_answer(p, search.first_run(p, epochs=1.0), dataset, [0, 2, 4], [2, 4])
    # run A warms up in 50 of 6 x 5 steps, whatever they are; 21 rows for one epoch make 6 steps
    assert search.first_run(p).warmup_steps == 50
    assert given["warmup"] == 50 * 6 / 30
    assert given["train"] == [f"q{i}" for i in range(24) if i not in (0, 2, 4)]
    assert given["validation"] == [f"q{i}" for i in range(24, 30)]
    assert len(told) == 2
    assert not list((p.output / "folds").iterdir())


# --- space and stages


def test_plan_begins_with_run_a_and_shares_the_rest() -> None:
    assert list(search.plan(1).values()) == ["run A"]
    assert list(search.plan(2).values()) == ["run A", "rate and rank"]
    assert list(Counter(search.plan(12).values()).values()) == [1, 4, 4, 3]
    assert search.plan(12).items() <= search.plan(20).items()


def test_space_is_the_documented_one_and_holds_run_a() -> None:
    p = parameters(profile="embedded", learning_rates=[2e-4, 2e-2])
    space, first = search.space(p), search.first_run(p)
    assert first.learning_rate == 0.004
    assert (space["learning_rate"].low, space["learning_rate"].high, space["learning_rate"].log) == (2e-4, 2e-2, True)
    assert (space["alpha"].low, space["alpha"].high) == (4, 32)
    choices = {name: space[name].choices for name in search.CHOICES}
    assert choices == {
        "rank": (2, 4, 8, 16),
        "dropout": (0.01, 0.05, 0.1),
        "weight_decay": (0.0, 0.001, 0.01, 0.1),  # run A has none
        "warmup_steps": (25, 50, 100),
        "batch_size": (1, 2, 4),
    }
    narrow = search.space(parameters(learning_rates=[1e-5, 1e-4]))["learning_rate"]
    assert narrow.high == 2e-4, "run A's own rate"


def test_stages_vary_their_parameters_around_the_best_so_far(root: Path, pretend: Callable) -> None:
    pretend(lambda run: 0.2 + 0.04 * run.rank + 0.002 * run.alpha - 0.2 * run.weight_decay)
    p = parameters(trials=13)
    workers.work(p)
    trials = search.open_study(p).trials
    first = search.first_run(p)
    assert trials[0].params == {name: getattr(first, name) for name in search.NAMES}
    for trial in trials[1:]:
        best = max(trials[: trial.number], key=lambda t: (t.value, t.user_attrs["bleu"], -t.number)).params
        moved = {name for name in search.NAMES if trial.params[name] != best[name]}
        assert moved <= set(search.STAGES[trial.user_attrs["stage"]])
    for stage, names in search.STAGES.items():
        for name in names:
            assert len({t.params[name] for t in trials if t.user_attrs["stage"] == stage}) > 1, name
    assert search.ranked(search.open_study(p))[0].value > trials[0].value


def test_an_interrupted_search_draws_as_one_in_one_go(root: Path, pretend: Callable) -> None:
    pretend(lambda run: 0.04 * run.rank)
    for trials in (3, 9):
        workers.work(parameters(trials=trials))
    parts = search.open_study(parameters()).trials
    assert len(parts) == 9
    workers.work(parameters(trials=9, study="whole"))
    whole = search.slots_of(search.open_study(parameters(study="whole")), "COMPLETE")
    first_stage = [t for t in parts if t.user_attrs["slot"] in ("0.0", "1.1")]
    assert [t.params for t in first_stage] == [whole[t.user_attrs["slot"]].params for t in first_stage]


def test_no_trial_repeats_another(root: Path, pretend: Callable) -> None:
    """The last stage has 36 combinations of choices, of which TPE likes some again and again."""
    pretend(lambda run: 0.2 + 0.04 * run.rank - 0.5 * run.weight_decay)
    workers.work(parameters(trials=31))
    tried = [tuple(search.rounded(trial.params).values()) for trial in search.open_study(parameters()).trials]
    assert len(set(tried)) == len(tried) == 31


def test_importance_counts_stopped_trials_and_finds_the_one_parameter_that_matters(root: Path, pretend: Callable) -> None:
    pretend(lambda run: 0.2 + 0.04 * run.rank + 0.002 * run.alpha)
    workers.work(parameters(trials=13))
    study = search.open_study(parameters())
    evaluator = optuna.importance.FanovaImportanceEvaluator(seed=0)
    expected = optuna.importance.get_param_importances(study, evaluator=evaluator)
    assert search.importance(study, search.table(study)).to_dict() == pytest.approx(expected, abs=0.05)

    p = parameters(trials=13, prune=True)
    workers.work(p)
    ranking = search.table(search.open_study(p))
    assert "stopped" in set(ranking.outcome)
    share = search.importance(search.open_study(p), ranking)
    assert set(share.index) == set(search.NAMES)
    for name in ("rank", "alpha", "dropout", "weight_decay"):  # whichever stage it is varied in
        told = ranking.assign(relative=ranking[name].astype(float))
        share = search.importance(search.open_study(p), told)
        assert share.idxmax() == name
        assert share[name] > 0.5


# --- end to end


def test_a_search_of_a_few_trials_ranks_them_and_keeps_the_winner(root: Path, capfd) -> None:
    p = parameters(trials=3, processes=1, prune=True)
    study = workers.run(p)
    said = [line for line in capfd.readouterr().out.splitlines() if line.startswith("  trial")]
    assert len(said) == 3
    assert "trial 0 (run A): learning_rate 0.0002, rank 8, alpha 16" in said[0]
    table = search.table(study)
    assert "run A" in table.index
    done = table[table.outcome == "complete"]
    assert done.rouge_l.is_monotonic_decreasing
    assert (done.low <= done.rouge_l).all()
    assert table.drop("run A").difference.notna().all()
    for trial in search.ranked(study):
        assert len(search.items(trial)) == 24
        assert trial.value == pytest.approx(search.items(trial).mean())
    results.write_table(table, "ranking", p.output)
    assert search.write_winner(p, search.ranked(study)[0]).exists()
    assert sorted(path.name for path in p.output.iterdir()) == ["searched.yaml", "study.db", "tables"]


def test_the_verdict_trains_the_winner_on_all_rows_and_scores_the_test_part(root: Path) -> None:
    p = parameters(verdict_seeds=[3, 4])
    for seed in p.verdict_seeds:
        training.train(search.first_run(p, run="A", seed=seed, epochs=1.0))
    study, found = search.open_study(p), {"rank": 2, "learning_rate": 0.01}
    study.add_trial(told(0.3, 0.1, "1.1", p, **found))
    wide, by_seed = workers.judge(p, study)
    assert wide.columns.tolist() == ["run A", "trial 0"]
    assert len(wide) == 6
    assert by_seed.columns.tolist() == ["run A", "trial 0"]
    assert by_seed.index.tolist() == p.verdict_seeds
    pd.testing.assert_series_equal(wide.mean(), by_seed.mean(), check_names=False)
    record = json.loads((p.weights_of("searched_short", 4) / "adapter_config.json").read_text())
    assert record["r"] == 2
    missing = parameters(verdict_seeds=[9]).inputs()
    assert root / "reports/tiny/04_train_lora_A_seed9/trained" in missing

    study.add_trial(told(0.4, 0.1, "1.2", p, **found, dropout=0.1))
    again, _ = workers.judge(p, study)
    assert again.columns.tolist() == ["run A", "trial 1", "trial 0"], "a later winner is another look at the same questions"
    pd.testing.assert_series_equal(again["trial 0"], wide["trial 0"])
    third, _ = workers.judge(p, search.open_study(p))
    assert third.columns.tolist() == ["run A", "trial 1", "trial 0"], "the same one is not"
    pd.testing.assert_frame_equal(third, again)


def test_a_verdict_on_another_corpus_than_run_as_is_refused() -> None:
    with pytest.raises(ValueError, match="the verdict compares with run A, which learns from 'original'"):
        parameters(corpus="follow_ups", verdict_seeds=[3])


# --- interrupted, and shared


def start(root: Path, p: config.SearchHyperparameters, what: str = "work") -> subprocess.Popen:
    command = [sys.executable, "-c", DRIVER, p.model_dump_json(), str(root), what]
    return subprocess.Popen(command, cwd=root, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)


def wait_for_trial(p: config.SearchHyperparameters, process: subprocess.Popen, number: int) -> None:
    deadline = time.monotonic() + 180
    while time.monotonic() < deadline:
        assert process.poll() is None, process.stdout.read().decode()[-2000:]
        if (p.output / "study.db").exists():
            running = search.open_study(p).get_trials(deepcopy=False, states=[TrialState.RUNNING])
            if any(trial.number >= number for trial in running):
                return
        time.sleep(0.02)
    pytest.fail("the trial never began")


def test_a_killed_workers_trial_is_run_again_and_counts_once(root: Path) -> None:
    p = parameters(trials=4, epochs=4.0)
    worker = start(root, p)
    wait_for_trial(p, worker, 1)
    time.sleep(0.3)  # into the training
    worker.kill()
    worker.wait()
    study = search.open_study(p)
    assert len(study.get_trials(states=[TrialState.RUNNING])) == 1
    assert start(root, p).wait(300) == 0
    study = search.open_study(p)
    assert counted(study) == dict.fromkeys(search.plan(4), 1)
    assert [t.state for t in study.trials].count(TrialState.FAIL) == 1
    assert len(study.trials) == 5
    workers.run(p)
    assert not (p.output / "folds").exists()  # what the killed one left


def test_a_worker_killed_before_its_first_heartbeat_is_not_waited_for_in_vain(root: Path, pretend, monkeypatch) -> None:
    monkeypatch.setattr(search, "HEARTBEAT_S", 1)
    monkeypatch.setattr(search, "GRACE_S", 2)
    pretend(lambda run: 0.5)
    study = search.open_study(parameters())
    study.enqueue_trial({}, {"slot": "1.1", "stage": "rate and rank"})
    study.ask()  # takes the trial; no heartbeat follows
    workers.work(parameters())
    assert counted(search.open_study(parameters())) == dict.fromkeys(search.plan(4), 1)


def test_workers_end_when_their_notebook_is_killed(root: Path) -> None:
    p = parameters(trials=4, epochs=50.0, processes=2)
    parent = start(root, p, "run")
    wait_for_trial(p, parent, 1)
    children = psutil.Process(parent.pid).children(recursive=True)
    assert len(children) == 2
    parent.send_signal(signal.SIGKILL)
    parent.wait()
    _, alive = psutil.wait_procs(children, 20)
    assert not alive


def test_run_a_begun_again_after_others_is_run_a(root: Path, pretend: Callable) -> None:
    """Its worker was killed while another finished a better trial."""
    seen = pretend(lambda run: 0.04 * run.rank)
    p = parameters(trials=2)
    study = search.open_study(p)
    study.add_trial(told(0.9, 0.5, "1.1", p, rank=16, learning_rate=0.01))
    workers.work(p)
    first = search.first_run(p)
    assert {tuple(getattr(run, name) for name in search.NAMES) for run in seen} == {
        tuple(getattr(first, name) for name in search.NAMES)
    }
    assert search.slots_of(search.open_study(p), "COMPLETE")["0.0"].params == {n: getattr(first, n) for n in search.NAMES}


def test_what_is_recorded_is_what_was_trained(root: Path, pretend: Callable) -> None:
    seen = pretend(lambda run: 0.04 * run.rank)
    workers.work(parameters(trials=9))
    trained = [tuple(getattr(run, name) for name in search.NAMES) for run in seen[::3]]
    assert trained == [tuple(search.rounded(t.params).values()) for t in search.open_study(parameters()).trials]


def test_a_trial_that_failed_is_run_before_later_stages(root: Path, pretend: Callable) -> None:
    pretend(lambda run: 0.5)
    workers.work(parameters(trials=4))
    study = search.open_study(parameters(trials=8))
    study.enqueue_trial({}, {"slot": "1.2", "stage": "rate and rank"})
    study.tell(study.ask(), state=TrialState.FAIL)
    workers.work(parameters(trials=8))
    slots = [t.user_attrs["slot"] for t in search.open_study(parameters()).get_trials(states=FINISHED)]
    assert slots == ["0.0", "1.1", "2.1", "3.1", "1.2", "1.3", "2.2", "3.2"]


def test_two_workers_share_a_study_and_run_no_trial_twice(root: Path) -> None:
    p = parameters(trials=6, processes=2, epochs=3.0)
    study = workers.run(p)
    assert counted(study) == dict.fromkeys(search.plan(6), 1)
    assert not [t for t in study.get_trials(states=[TrialState.FAIL]) if t.intermediate_values], "a trial was trained twice"
    times = sorted((t.datetime_start, t.datetime_complete) for t in study.get_trials(states=FINISHED))
    assert any(later[0] < earlier[1] for earlier, later in itertools.pairwise(times)), "one did all the work"


def test_a_slot_that_two_workers_filled_at_once_is_run_once(root: Path, pretend: Callable) -> None:
    seen = pretend(lambda run: 0.5)
    study = search.open_study(parameters())
    for _ in range(2):
        study.enqueue_trial({}, {"slot": "1.1", "stage": "rate and rank"})
    workers.work(parameters())
    assert counted(search.open_study(parameters())) == dict.fromkeys(search.plan(4), 1)
    assert len(seen) == 4 * 3


def test_a_trial_taken_over_while_its_worker_slept_does_not_end_that_worker(root: Path, monkeypatch) -> None:
    p, calls = parameters(), []

    def sleep_once(_p: object, _run: object, dataset: dict, held: list, asked: list) -> list[str]:
        calls.append(held)
        if len(calls) == 4:  # the second trial's first fold: somebody else declares it dead
            study = search.open_study(p)
            (running,) = study.get_trials(states=[TrialState.RUNNING])
            study._storage.set_trial_state_values(running._trial_id, TrialState.FAIL)
        return [""] * len(asked)

    monkeypatch.setattr(workers, "train_and_answer", sleep_once)
    workers.work(p)
    assert counted(search.open_study(p)) == dict.fromkeys(search.plan(4), 1)


def test_a_finished_search_trains_nothing_and_more_trials_continue_it(root: Path, pretend, monkeypatch) -> None:
    seen = pretend(lambda run: 0.5)
    workers.work(parameters(trials=3))
    monkeypatch.setattr(subprocess, "Popen", lambda *_, **__: pytest.fail("a worker was started"))
    before = len(seen)
    study = workers.run(parameters(trials=3))
    assert len(search.table(study)) == 3
    workers.work(parameters(trials=3))
    assert len(seen) == before
    workers.work(parameters(trials=5))
    assert len(seen) == before + 2 * 3
    assert counted(search.open_study(parameters())) == dict.fromkeys(search.plan(5), 1)


def test_a_failing_worker_is_an_error_with_its_last_lines_and_a_rerun_goes_on(root: Path) -> None:
    p = parameters(trials=2)
    configuration = root / MODEL / "config.json"
    kept = configuration.read_text()
    configuration.unlink()
    with pytest.raises(search.SearchError, match=r"(?s)a worker ended with exit code 1; its last lines:.*cannot be loaded"):
        workers.run(p)
    configuration.write_text(kept)
    assert counted(workers.run(p)) == dict.fromkeys(search.plan(2), 1)


# --- hopeless trials


def test_a_hopeless_trial_is_stopped_after_a_fold(root: Path, pretend: Callable) -> None:
    seen = pretend(lambda run: 1.0 if run.learning_rate == 2e-4 else 0.1)
    p = parameters(trials=2, prune=True)
    workers.work(p)
    study = search.open_study(p)
    assert [t.state for t in study.trials] == [TrialState.COMPLETE, TrialState.PRUNED]
    assert len(seen) == 3 + 1
    table = search.table(study)
    assert table.outcome.tolist() == ["complete", "stopped"]
    assert table.folds.tolist() == [3, 1]
    assert table.difference.iloc[1] < -0.3
    assert search.finished(study, 2)


def test_nothing_is_stopped_when_that_is_switched_off_nor_is_run_a(root: Path, pretend: Callable) -> None:
    seen = pretend(lambda run: 1.0 if run.learning_rate == 2e-4 else 0.1)
    workers.work(parameters(trials=2, prune=False))
    assert len(seen) == 6
    seen = pretend(lambda run: 0.1 if run.learning_rate == 2e-4 else 1.0)
    p = parameters(trials=2, prune=True)
    search.open_study(p).enqueue_trial({}, {"slot": "1.1", "stage": "rate and rank"})  # before run A
    workers.work(p)
    assert [run.learning_rate == 2e-4 for run in seen] == [False] * 3 + [True] * 3
    assert {t.state for t in search.open_study(p).trials} == {TrialState.COMPLETE}


def test_as_good_a_trial_is_not_stopped(root: Path, pretend: Callable) -> None:
    pretend(lambda run: 0.5)
    p = parameters(trials=4, prune=True)
    workers.work(p)
    assert {t.state for t in search.open_study(p).trials} == {TrialState.COMPLETE}


def test_a_diverging_trial_is_stopped_and_the_search_goes_on(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def diverge(_p: object, run: config.TrainLora, dataset: dict, held: list, asked: list) -> list[str]:
        if run.learning_rate != 2e-4:
            raise training.DivergedError("the loss is nan at step 3")
        return ["some words"] * len(asked)

    monkeypatch.setattr(workers, "train_and_answer", diverge)
    p = parameters(trials=3)
    workers.work(p)
    table = search.table(search.open_study(p))
    assert table.loc["trial 1", "outcome"] == "diverged"
    assert table.folds.loc["trial 1"] == 0
    results.write_table(table, "ranking", p.output)


def test_a_trial_ends_early_when_the_validation_loss_gets_worse(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of three epochs, as `make search` trains them."""
    p, made = parameters(), []
    make = trainers.make_trainer
    monkeypatch.setattr(trainers, "make_trainer", lambda *arguments: made.append(make(*arguments)) or made[0])
    run = search.first_run(p, epochs=3.0, warmup_steps=0, learning_rate=0.5, alpha=64)
    workers.train_and_answer(p, run, data.load_parts(p.processed), [0, 1], [0])
    assert made[0].state.global_step < made[0].state.max_steps


def test_a_loss_that_is_no_number_is_a_divergence(root: Path) -> None:
    p = parameters()
    run = search.first_run(p, epochs=2.0, warmup_steps=0)
    run = run.model_copy(update={"learning_rate": 1e30})  # beyond what a person could ask for
    with pytest.raises(training.DivergedError, match=r"is (nan|inf|not finite)"):
        workers.train_and_answer(p, run, data.load_parts(p.processed), [0, 1], [0])


# --- ranking and winner


def told(value: float, bleu: float, slot: str, p: object = None, **params: object) -> optuna.trial.FrozenTrial:
    p = p or parameters(profile="embedded")
    values = {name: getattr(search.first_run(p), name) for name in search.NAMES} | params
    attributes = {"slot": slot, "stage": search.plan(12)[slot], "bleu": bleu, "folds": [value], "seconds": 1.0}
    return optuna.create_trial(value=value, params=values, distributions=search.space(p), user_attrs=attributes)


def test_ties_in_rouge_are_broken_by_bleu_then_by_age() -> None:
    study = optuna.create_study(direction="maximize")
    scores = [(0.2, 0.01), (0.3, 0.01), (0.3, 0.02), (0.1 + 0.2, 0.02), (0.1, 0.9)]  # 0.1 + 0.2 is not quite 0.3
    for slot, (value, bleu) in zip(search.plan(12), scores, strict=False):
        study.add_trial(told(value, bleu, slot))
    assert [t.number for t in search.ranked(study)] == [2, 3, 1, 0, 4]


@pytest.mark.parametrize("profile", ["embedded", "tiny"])
def test_winner_file_run_under_the_profile_gives_what_was_found(root: Path, profile: str) -> None:
    p = parameters(profile=profile)
    found = {"learning_rate": 0.00123456, "rank": 16, "alpha": 7, "dropout": 0.1, "weight_decay": 0.01}
    found |= {"warmup_steps": 25, "batch_size": 2}
    path = search.write_winner(p, told(0.3, 0.1, "1.1", **found))
    file = config.NOTEBOOKS / "params" / "profiles" / "embedded.yaml"
    read = collect_parameters(config.NOTEBOOKS / "04_train_lora.ipynb", [path, *([file] if profile == "embedded" else [])], [])
    assert read[1].run == "searched"
    assert {name: getattr(read[1], name) for name in found} == found | {"learning_rate": pytest.approx(0.00123)}
    assert read[1].epochs == 5.0
    text = path.read_text()
    assert f"a rate of 0.00123 under profile {profile}" in text
    assert yaml.safe_load(text)["learning_rate"] == pytest.approx(0.00123 / (20 if profile == "embedded" else 1))


def test_a_profile_that_fixes_a_searched_value_is_named(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(config, "NOTEBOOKS", Path(shutil.copytree(config.NOTEBOOKS, root / "notebooks")))
    (config.NOTEBOOKS / "params/profiles/tiny.yaml").write_text("shared: {profile: tiny}\n04_train_lora: {rank: 4}\n")
    said = "rank cannot be searched: profile 'tiny' sets rank = 4 under 04_train_lora for every run"
    monkeypatch.setattr(subprocess, "Popen", lambda *_, **__: pytest.fail("a worker was started"))
    with pytest.raises(search.SearchError, match=said):
        workers.run(parameters())


# --- the study


def test_other_data_weights_or_settings_are_another_study(root: Path) -> None:
    names = [search.open_study(parameters()).study_name]
    same = {"trials": 9, "processes": 2, "verdict_seeds": [1], "device": "auto"}
    assert search.open_study(parameters(**same)).study_name == names[0]
    for changes in ({"seed": 4}, {"folds": 2}, {"epochs": 2.0}, {"max_new_tokens": 9}, {"corpus": "follow_ups"}):
        names.append(search.open_study(parameters(**changes)).study_name)
    weights = load_file(root / MODEL / "model.safetensors")
    save_file({name: 1.1 * tensor for name, tensor in weights.items()}, root / MODEL / "model.safetensors")
    names.append(search.open_study(parameters()).study_name)
    assert len(set(names)) == 7


@pytest.mark.parametrize("url", ["nonsense", "sqlite:////nowhere/at/all/study.db", "unheardof://me@host/name"])
def test_a_database_that_cannot_be_opened_is_an_error_before_any_training(root: Path, monkeypatch, url: str) -> None:
    monkeypatch.setattr(subprocess, "Popen", lambda *_, **__: pytest.fail("a worker was started"))
    with pytest.raises(search.SearchError, match=r"storage = '.*': cannot be opened \(.+\)\. Expected: a database URL such as"):
        workers.run(parameters(storage=url))


def test_a_password_in_the_address_is_refused_unless_it_comes_from_the_environment(root: Path, monkeypatch) -> None:
    with pytest.raises(ValueError, match=r"write \$NAME for the password"):
        parameters(storage="postgresql://me:hunter2@host/name")
    assert parameters(storage="postgresql+psycopg2://me:$DB_PASSWORD@host/name")
    assert parameters(storage="postgresql://me@host:5432/name")
    monkeypatch.setenv("STUDY_FILE", str(root / "elsewhere.db"))
    search.open_study(parameters(storage="sqlite:///$STUDY_FILE"))
    assert (root / "elsewhere.db").exists()


def test_a_study_at_a_shared_address_is_continued_from_another_checkout(root: Path, pretend, monkeypatch) -> None:
    seen, url = pretend(lambda run: 0.5), f"sqlite:///{root / 'shared.db'}"
    workers.work(parameters(storage=url, trials=2))
    monkeypatch.setattr(config, "ROOT", Path(shutil.copytree(root, root.with_name("another"))))
    workers.work(parameters(storage=url, trials=4))
    assert len(seen) == 4 * 3


def test_learning_rates_are_a_range() -> None:
    with pytest.raises(ValueError, match="the lowest rate comes first"):
        parameters(learning_rates=[1e-3, 1e-5])
    assert json.loads(parameters().model_dump_json())["learning_rates"] == [1e-5, 1e-2]
    assert parameters(study="full").run_name == "05_search_hyperparameters_full"
