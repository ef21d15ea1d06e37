"""Workers of a search: each takes waiting trials from the study until all are finished, and several share it.

`python -m interviewmate_utils.workers PARAMETERS ROOT` is one of those that `run` starts. The trial of a killed worker fails
once its heartbeat is older than `search.GRACE_S`, and its slot is filled again.
"""

import contextlib
import functools
import shutil
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

from . import config, data, metrics
from .config import TrainLora
from .kernel import end_with_parent, environment_of_each
from .progress import relay
from .rows import ANSWER, PARENT, QUESTION
from .search import (
    FIRST,
    NAMES,
    STAGES,
    WINNER,
    SearchError,
    finished,
    first_run,
    open_study,
    plan,
    ranked,
    rounded,
    slots_of,
    space,
    split_folds,
    stratified_by,
)

if TYPE_CHECKING:
    import optuna
    import pandas as pd

DRAWS = 50  # of a trial's values, until they are none that were tried
RANDOM_TRIALS = 4  # finished trials that TPE wants before it models them
AT_ONCE = 48  # answers generated together
JUDGED = "judged"  # where the study keeps the test scores of trials that had a verdict
POLL_S = 1.0  # between looks at a study whose last trials others are running


class _Refused(Exception):
    """Not a trial of ours: its slot is taken, or it has none."""


def train_and_answer(p: config.SearchHyperparameters, run: TrainLora, dataset: Any, held: list[int], asked: list[int]) -> list:
    """Train `run` without the rows `held`, stopped early by the validation part, and answer the questions of rows `asked`."""
    import torch

    from . import answering, lora, models, training
    from .training import checkpoints
    from .training import trainer as trainers

    rows = dataset["train"]
    parts = {"train": rows.select(sorted({*range(len(rows))} - {*held})), "validation": dataset["validation"]}
    tokenizer, base = models.load_tokenizer(run.model), training.load_base(run)
    torch.manual_seed(run.seed)
    total = training.schedule(len(parts["train"]), run.epochs, run.batch_size)["total_steps"]
    whole = training.schedule(len(rows), first_run(p).epochs, run.batch_size)["total_steps"]
    # what a warm-up is in a run, it is in a trial, which has fewer rows and epochs: the same share of the steps
    run = run.model_copy(update={"warmup_steps": round(run.warmup_steps * total / whole)})
    (p.output / "folds").mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(dir=p.output / "folds") as folder:
        trainer = trainers.make_trainer(lora.adapt(base, run, total), parts, run, tokenizer.pad_token_id, Path(folder) / "run")
        checkpoints.fit(trainer, {})
    options = {"repetition_penalty": p.repetition_penalty, "report": lambda _: None}
    questions = list(rows.select(asked)[QUESTION])
    model = trainer.model.merge_and_unload() if hasattr(trainer.model, "merge_and_unload") else trainer.model
    return answering.generate_answers(model, tokenizer, questions, p.max_new_tokens, AT_ONCE, **options)


def _draw(p: config.SearchHyperparameters, study: "optuna.Study", trial: "optuna.Trial") -> TrainLora:
    """The run that `trial` is to be: its stage's parameters drawn by TPE, all others at the best values so far; a new one.

    The first slot is run A itself, whatever was found before it.

    Raises _Refused unless the trial is the one that fills its slot.
    """
    import optuna

    slot, slots = trial.user_attrs.get("slot"), plan(p.trials)
    if slot not in slots or slots_of(study, "RUNNING", "COMPLETE", "PRUNED")[slot].number != trial.number:
        raise _Refused
    best, first = ranked(study), first_run(p, epochs=p.epochs)
    start = best[0].params if best and slots[slot] != FIRST else {name: getattr(first, name) for name in NAMES}
    fixed = {name: value for name, value in start.items() if name not in STAGES.get(slots[slot], ())}
    others = slots_of(study, "RUNNING", "COMPLETE", "PRUNED").values()
    tried = [rounded(other.params) for other in others if other.params.keys() == {*NAMES}]
    rehearsal = optuna.create_study(direction="maximize")  # with the same past: a trial's own values are drawn but once
    rehearsal.add_trials(slots_of(study, "COMPLETE", "PRUNED").values())
    for attempt in range(DRAWS):
        seed = int(config.digest_of([p.seed, slot, attempt])[:8], 16)  # the slot's own
        tpe = optuna.samplers.TPESampler(seed=seed, n_startup_trials=RANDOM_TRIALS, multivariate=False)
        rehearsal.sampler = optuna.samplers.PartialFixedSampler(fixed, tpe)
        drawn = rehearsal.ask(space(p)).params
        if rounded(drawn) not in tried or slots[slot] == FIRST:
            break
    study.sampler = optuna.samplers.PartialFixedSampler(drawn, tpe)
    for name, allowed in space(p).items():
        if hasattr(allowed, "choices"):
            trial.suggest_categorical(name, allowed.choices)
        else:
            suggest = trial.suggest_int if isinstance(allowed.low, int) else trial.suggest_float
            suggest(name, allowed.low, allowed.high, log=True)
    return first.model_copy(update=rounded(trial.params))


def _objective(
    p: config.SearchHyperparameters, study: "optuna.Study", dataset: Any, folds: list, trial: "optuna.Trial"
) -> float:
    """Mean ROUGE-L of all questions held out by the folds; after each a hopeless trial, unless it is run A, is stopped."""
    import optuna

    from .training import DivergedError

    run, rows, started = _draw(p, study, trial), dataset["train"], time.perf_counter()
    references, parents = list(rows[ANSWER]), rows[PARENT] if PARENT in rows.column_names else [None] * len(rows)
    answers: dict[int, str] = {}
    known: dict[str, list[float]] = {"folds": [], "scores": []}
    for number, held in enumerate(folds, start=1):
        asked = [i for i in held if not parents[i]]  # a follow-up cannot be answered without what came before
        try:
            told = train_and_answer(p, run, dataset, held, asked)
        except DivergedError as error:
            trial.set_user_attr("diverged", str(error))
            raise optuna.TrialPruned from None
        answers |= dict(zip(asked, told, strict=True))
        scores = metrics.score_items(told, [references[i] for i in asked])[metrics.PRIMARY].tolist()
        for i, score in zip(asked, scores, strict=True):
            trial.report(score, i)
        known["scores"] += scores
        known["folds"].append(sum(scores) / len(scores))
        trial.set_user_attr("folds", known["folds"])
        trial.set_user_attr("bleu", metrics.corpus_bleu([*answers.values()], [references[i] for i in answers])[0])
        trial.set_user_attr("seconds", time.perf_counter() - started)
        if number < len(folds) and trial.user_attrs["stage"] != FIRST and trial.should_prune():
            raise optuna.TrialPruned
    return sum(known["scores"]) / len(known["scores"])


def _say(_: "optuna.Study", trial: "optuna.trial.FrozenTrial") -> None:
    """One plain line about a finished trial."""
    if trial.state.name not in ("COMPLETE", "PRUNED"):
        return
    known = trial.user_attrs
    values = ", ".join(f"{name} {value:g}" for name, value in rounded(trial.params).items())
    folds = " ".join(f"{mean:.4f}" for mean in known.get("folds", []))
    end = f"ROUGE-L {trial.value:.4f}" if trial.state.name == "COMPLETE" else "diverged" if "diverged" in known else "stopped"
    print(
        f"  trial {trial.number} ({known['stage']}): {values}: {end} (folds {folds}), {known.get('seconds', 0):.0f} s",
        flush=True,
    )


def _fill(study: "optuna.Study", p: config.SearchHyperparameters) -> None:
    """Queue a trial for the earliest slot that has none, or only failed ones, unless one waits: stages stay in order."""
    slots, there = plan(p.trials), slots_of(study, "WAITING", "RUNNING", "COMPLETE", "PRUNED")
    missing = [slot for slot in slots if slot not in there]
    if missing and not slots_of(study, "WAITING").keys() & slots.keys():
        study.enqueue_trial({}, {"slot": missing[0], "stage": slots[missing[0]]})


def work(p: config.SearchHyperparameters) -> None:
    """Take waiting trials until all of the search are finished, by this worker or by others."""
    import optuna

    study, dataset = open_study(p), data.load_parts(p.processed)
    table = split_folds(dataset["train"], p.folds, p.seed, stratified_by(p))
    folds = [table.index[table.fold == number].tolist() for number in range(1, p.folds + 1)]
    for trial in study.get_trials(states=[optuna.trial.TrialState.RUNNING]):
        study._storage.record_heartbeat(trial._trial_id)  # one killed before its first heartbeat would never count as dead
    while not finished(study, p.trials):
        optuna.storages.fail_stale_trials(study)
        _fill(study, p)
        if not slots_of(study, "WAITING").keys() & plan(p.trials).keys():
            time.sleep(POLL_S)  # others are at work on the last ones
            continue
        try:
            study.optimize(functools.partial(_objective, p, study, dataset, folds), 1, catch=(_Refused,), callbacks=[_say])
        except ValueError as error:
            if "Cannot tell a FAIL trial" not in str(error):  # another worker took this one for dead, and took it over
                raise


def run(p: config.SearchHyperparameters) -> "optuna.Study":
    """The finished study: goes on where an earlier call was interrupted, with `p.processes` processes of its own.

    Raises SearchError, before anything is trained where it can be known then.
    """
    study = open_study(p)
    space(p)  # raises where the profile fixes a parameter
    split_folds(data.load_parts(p.processed)["train"], p.folds, p.seed, stratified_by(p))  # raises where there are too few rows
    if finished(study, p.trials):
        print("  all trials are finished; nothing is trained anew")
        shutil.rmtree(p.output / "folds", ignore_errors=True)
        return study
    _fill(study, p)
    command = [sys.executable, "-m", "interviewmate_utils.workers", p.model_dump_json(), str(config.ROOT)]
    options = {"cwd": config.ROOT, "env": environment_of_each(p.processes), "text": True}
    options |= {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
    with contextlib.ExitStack() as stack:
        started = [stack.enter_context(subprocess.Popen(command, **options)) for _ in range(p.processes)]
        pool = stack.enter_context(ThreadPoolExecutor(p.processes))
        stack.callback(lambda: [worker.kill() for worker in started])  # an interrupted notebook leaves none behind
        said = list(pool.map(lambda worker: relay(worker, "  trial "), started))
        codes = [worker.wait() for worker in started]
    shutil.rmtree(p.output / "folds", ignore_errors=True)  # of killed workers
    if any(codes) and not finished(study, p.trials):
        worker = next(i for i, code in enumerate(codes) if code)
        raise SearchError(f"a worker ended with exit code {codes[worker]}; its last lines:\n" + "".join(said[worker][-12:]))
    if not ranked(study):
        raise SearchError("no trial came to its end: lower the learning_rates")
    return study


def judge(p: config.SearchHyperparameters, study: "optuna.Study") -> tuple["pd.DataFrame", "pd.DataFrame"]:
    """The best trial, trained here on all rows with each of `verdict_seeds`, beside run A's kept weights, on the test part.

    Returns ROUGE-L of each question (mean over seeds), with a column for every trial that this study ever judged, since each
    was a look at the same questions; and ROUGE-L of each seed for run A and the best trial. The study keeps the scores.
    """
    import pandas as pd

    from . import answering, lora, models, training

    test, tokenizer, winner = data.load_parts(p.processed)["test"], models.load_tokenizer(p.model), ranked(study)[0]
    options = {"repetition_penalty": p.repetition_penalty, "report": lambda _: None}
    scores = {}
    for seed in p.verdict_seeds:
        # under a name of its own: a run `searched` that the report trains is another training
        found = first_run(p, run=f"{WINNER}_{p.study}", seed=seed, **rounded(winner.params))
        training.train(found)
        for name, folder in ((FIRST, p.weights_of("A", seed)), (f"trial {winner.number}", found.trained)):
            model = lora.load_trained(p.model, folder, p.device)
            told = answering.generate_answers(model, tokenizer, list(test[QUESTION]), p.max_new_tokens, AT_ONCE, **options)
            scores[name, seed] = metrics.score_items(told, list(test[ANSWER]))[metrics.PRIMARY]
    each = pd.DataFrame(scores)
    wide = each.T.groupby(level=0, sort=False).mean().T
    told = study.user_attrs.get(JUDGED, {})
    study.set_user_attr(JUDGED, told | {name: wide[name].tolist() for name in wide if name != FIRST})
    earlier = pd.DataFrame({name: known for name, known in told.items() if name not in wide}, index=wide.index)
    return pd.concat([wide, earlier], axis=1), each.mean().unstack(0, sort=False)


def main() -> None:
    config.ROOT = Path(sys.argv[2])
    end_with_parent()
    work(config.SearchHyperparameters.model_validate_json(sys.argv[1]))


if __name__ == "__main__":
    main()
