"""What a search for better hyperparameters than run A's tries, in stages; the study that keeps its trials; what it found.

The study holds one slot per trial (see `plan`), so that each counts once however often it was begun; `workers` fills them.
"""

import os
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from . import config, data
from .config import TrainLora
from .rows import ANSWER, FILE, ID, LINE, PARENT, QUESTION
from .run import collect_parameters
from .splits import find_roots

if TYPE_CHECKING:
    import optuna
    import pandas as pd
    from datasets import Dataset

FIRST = "run A"
STAGES = {
    "rate and rank": ("learning_rate", "rank"),
    "alpha and dropout": ("alpha", "dropout"),
    "decay, warm-up and batch": ("weight_decay", "warmup_steps", "batch_size"),
}
NAMES = [name for names in STAGES.values() for name in names]
CHOICES = {"rank": (2, 4, 8, 16), "dropout": (0.01, 0.05, 0.1), "weight_decay": (0.001, 0.01, 0.1)}
CHOICES |= {"warmup_steps": (25, 50, 100), "batch_size": (1, 2, 4)}
ALPHAS = (4, 32)
HOPELESS = 0.05  # p of the Wilcoxon test against the best trial, below which a trial is stopped
HEARTBEAT_S, GRACE_S = 15, 120  # a running trial shows that it lives, and is given up when it has not for so long
WINNER = "searched"  # name of the winner as a run


class SearchError(RuntimeError):
    """A search that cannot begin or go on; the text says why, for people."""


# --- what is searched


def _profile_file(p: config.SearchHyperparameters) -> Path:
    return config.NOTEBOOKS / "params" / "profiles" / f"{p.profile}.yaml"


def first_run(p: config.SearchHyperparameters, *files: Path, **changes: Any) -> TrainLora:
    """Run A (or that of another run's file) as profile `p.profile` trains it, on the search's corpus, device and seed."""
    profile = _profile_file(p)
    files = files or (config.NOTEBOOKS / "params" / "runs" / "A.yaml",)
    notebook = config.NOTEBOOKS / f"{TrainLora.stem}.ipynb"
    found = collect_parameters(notebook, [*files, *([profile] if profile.exists() else [])], [])[1]
    shared = {"profile": p.profile, "corpus": p.corpus, "device": p.device, "seed": p.seed}
    return TrainLora(**found.model_dump() | shared | changes)


def _profile_of(p: config.SearchHyperparameters, stem: str) -> dict[str, Any]:
    """What the search's profile sets for a notebook."""
    path = _profile_file(p)
    return config.read_parameters(path, stem) if path.exists() else {}


def stratified_by(p: config.SearchHyperparameters) -> str:
    """The column that the corpus was split by, as the profile or else 01_prepare_data says."""
    default = config.parameters_cell(config.NOTEBOOKS / f"{config.PrepareData.stem}.ipynb")
    return (default | _profile_of(p, config.PrepareData.stem))["stratify_by"]


def space(p: config.SearchHyperparameters) -> dict[str, Any]:
    """Optuna's distribution of each searched parameter, widened where run A's own value would lie outside.

    Raises SearchError where the profile sets one for every run, so that a winner could not be trained as it was found.
    """
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    first, set_there = first_run(p), _profile_of(p, TrainLora.stem)
    for name in NAMES:
        if name in set_there and not (name == "learning_rate" and config.is_factor(set_there[name])):
            what = f"'{p.profile}' sets {name} = {set_there[name]} under {TrainLora.stem} for every run"
            raise SearchError(f"{name} cannot be searched: profile {what}. Take it out there, or write it into the runs' files")
    rates, alphas = (*p.learning_rates, first.learning_rate), (*ALPHAS, first.alpha)
    found: dict[str, Any] = {"learning_rate": FloatDistribution(min(rates), max(rates), log=True)}
    found["alpha"] = IntDistribution(min(alphas), max(alphas), log=True)
    found |= {name: CategoricalDistribution(sorted({*some, getattr(first, name)})) for name, some in CHOICES.items()}
    return {name: found[name] for name in NAMES}


def plan(trials: int) -> dict[str, str]:
    """Slot of each trial and the stage that it belongs to: run A first, the rest shared equally by the stages."""
    share, rest = divmod(trials - 1, len(STAGES))
    counts = [share + (place < rest) for place in range(len(STAGES))]
    slots = {f"{s}.{k}": stage for s, stage in enumerate(STAGES, start=1) for k in range(1, counts[s - 1] + 1)}
    return {"0.0": FIRST} | slots


def rounded(values: Mapping[str, Any]) -> dict[str, Any]:
    """The values as they are trained with and shown: a learning rate has three digits."""
    return {name: float(f"{values[name]:.3g}") if name == "learning_rate" else values[name] for name in NAMES}


def split_folds(train: "Dataset", count: int, seed: int, stratify_by: str) -> "pd.DataFrame":
    """Per row of the training part its stratum, its conversation (the position of the first question) and its fold, from 1.

    Stratified by a column (not at all where there is none of that name); no conversation is torn apart.
    """
    import pandas as pd
    from sklearn.model_selection import StratifiedGroupKFold

    known = [name for name in (ID, PARENT, FILE, LINE, QUESTION, stratify_by) if name in train.column_names]
    rows = list(train.select_columns(known))
    table = pd.DataFrame({"stratum": [str(row.get(stratify_by, "all")) for row in rows]})
    table["conversation"] = [i if root is None else root for i, root in enumerate(find_roots(rows)[0])]
    if table.conversation.nunique() < count:
        raise SearchError(f"folds = {count}: the training part has only {table.conversation.nunique()} conversations")
    rare = table.groupby("stratum").conversation.transform("nunique") < count
    splitter = StratifiedGroupKFold(count, shuffle=True, random_state=seed)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The least populated class")
        parts = splitter.split(table, table.stratum.mask(rare, "(rare)"), table.conversation)
        for number, (_, held) in enumerate(parts, start=1):
            table.loc[held, "fold"] = number
    return table.astype({"fold": int})


# --- the study


def open_study(p: config.SearchHyperparameters) -> "optuna.Study":
    """The study in the database, made if it is not there. Its name tells data, weights and settings: others never mix in."""
    import optuna

    from .models import weights_digest

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    warnings.filterwarnings("ignore", category=optuna.exceptions.ExperimentalWarning)
    first, parts = first_run(p, epochs=p.epochs), data.load_parts(p.processed)
    columns = [c for c in (ID, PARENT, stratified_by(p), "input_ids", ANSWER) if c in parts["train"].column_names]
    content = [list(parts[name][column]) for name in ("train", "validation", "test") for column in columns]
    settings = p.model_dump(include={"folds", "learning_rates", "max_new_tokens", "repetition_penalty", "prune"})
    settings |= first.model_dump(exclude={"profile", "run", "device"}) | {"model": p.model, "weights": weights_digest(p.model)}
    url = os.path.expandvars(p.storage) or f"sqlite:///{p.output / 'study.db'}"
    options = {"connect_args": {"timeout": 60}} if url.startswith("sqlite") else {}  # one waits while another writes
    try:
        storage = optuna.storages.RDBStorage(url, options, heartbeat_interval=HEARTBEAT_S, grace_period=GRACE_S)
        return optuna.create_study(
            storage=storage,
            study_name=f"{p.study}-{config.digest_of([content, settings])}",
            load_if_exists=True,
            direction="maximize",
            sampler=optuna.samplers.RandomSampler(),  # replaced in each trial
            pruner=optuna.pruners.WilcoxonPruner(p_threshold=HOPELESS) if p.prune else optuna.pruners.NopPruner(),
        )
    except Exception as error:  # each database has errors of its own
        reason = " ".join(str(error.__cause__ or error).split())[:300]
        expected = "a database URL such as postgresql://me:$PASSWORD@host/name, or nothing for a file in the output folder"
        raise SearchError(f"storage = {p.storage!r}: cannot be opened ({reason}). Expected: {expected}") from error


def slots_of(study: "optuna.Study", *states: str) -> dict[str, "optuna.trial.FrozenTrial"]:
    """The trial that counts for each slot, of those in `states`: where two filled it at the same moment, the first."""
    trials = [t for t in study.get_trials(deepcopy=False) if t.state.name in states and "slot" in t.user_attrs]
    return {trial.user_attrs["slot"]: trial for trial in reversed(trials)}


def finished(study: "optuna.Study", trials: int) -> bool:
    return plan(trials).keys() <= slots_of(study, "COMPLETE", "PRUNED").keys()


def ranked(study: "optuna.Study") -> list["optuna.trial.FrozenTrial"]:
    """Complete trials, best first: by ROUGE-L, where that is equal by corpus BLEU, then the earlier one."""
    found = slots_of(study, "COMPLETE").values()
    return sorted(found, key=lambda t: (-round(t.value, 9), -t.user_attrs["bleu"], t.number))


def items(trial: "optuna.trial.FrozenTrial") -> "pd.Series":
    """ROUGE-L of each held-out question, by its position in the training part."""
    import pandas as pd

    return pd.Series(trial.intermediate_values, dtype=float).sort_index()


def table(study: "optuna.Study", resamples: int = 999, seed: int = 0) -> "pd.DataFrame":
    """One row per finished trial, complete ones ranked, then those stopped early, whose scores are of the folds they saw.

    `sd` is over folds, `low` and `high` are the t interval from it: rough, since folds share their training rows, and given for
    complete trials alone.
    `difference` is to run A's own trial, paired over the questions that both answered, with its 95 % BCa interval; `relative`
    is to the mean of the complete trials on the questions answered, so that stopped trials compare, whatever their folds.
    """
    import numpy as np
    import pandas as pd
    from scipy import stats as student

    from .stats import compare_paired

    rows, best, first = {}, ranked(study), slots_of(study, "COMPLETE").get("0.0")
    usual = pd.DataFrame({trial.number: items(trial) for trial in best}).mean(axis=1)
    stopped = sorted(slots_of(study, "PRUNED").values(), key=lambda t: (-len(t.user_attrs.get("folds", ())), t.number))
    for trial in [*best, *stopped]:
        known, scores = trial.user_attrs, items(trial)
        outcome = "complete" if trial in best else "diverged" if "diverged" in known else "stopped"
        row = {"trial": trial.number, "stage": known["stage"]} | rounded(trial.params) | {"rouge_l": scores.mean()}
        if len(means := np.array(known.get("folds", []))) > 1:
            row["sd"] = means.std(ddof=1)
            if outcome == "complete":
                half = student.t.ppf(0.975, len(means) - 1) * row["sd"] / len(means) ** 0.5
                row |= {"low": scores.mean() - half, "high": scores.mean() + half}
        row |= {"folds": len(means), "outcome": outcome} | {k: known[k] for k in ("bleu", "seconds") if k in known}
        if len(scores):
            row["relative"] = (scores - usual.reindex(scores.index)).mean()
        if first and trial.number != first.number and len(scores):
            paired = compare_paired(items(first)[scores.index], scores, resamples, seed)
            row |= {"difference": paired["difference"], "difference_low": paired["low"], "difference_high": paired["high"]}
        rows[FIRST if known["stage"] == FIRST else f"trial {trial.number}"] = row
    columns = ["trial", "stage", *NAMES, "rouge_l", "sd", "low", "high", "bleu", "folds", "outcome", "seconds"]
    columns += ["difference", "difference_low", "difference_high", "relative"]
    return pd.DataFrame(rows).T.reindex(columns=columns).infer_objects().rename_axis("name")


def importance(study: "optuna.Study", ranking: "pd.DataFrame") -> "pd.Series":
    """Share of each parameter in the variance of the trials' scores (fANOVA, Hutter et al. 2014, ICML; Optuna's forest).

    From all trials of `ranking` (see `table`), stopped ones too, by what `relative` says there. PED-ANOVA, Optuna's default,
    asks what the best trials have in common, which in a staged search is what the first stage decided.
    """
    import optuna
    import pandas as pd

    gains = ranking.set_index("trial").relative.dropna()
    compared = optuna.create_study(direction="maximize")
    for trial in study.get_trials(deepcopy=False):
        if trial.number in gains.index:
            known = {"params": trial.params, "distributions": trial.distributions, "value": gains[trial.number]}
            compared.add_trial(optuna.trial.create_trial(**known))
    forest = optuna.importance.FanovaImportanceEvaluator(seed=0)
    return pd.Series(optuna.importance.get_param_importances(compared, evaluator=forest)).sort_values()


# --- the winner


def write_winner(p: config.SearchHyperparameters, trial: "optuna.trial.FrozenTrial") -> Path:
    """The trial as a run file in the output folder; run under the profile, it gives the values that were found.

    Where the profile scales the learning rate, the file holds the unscaled one.
    """
    import yaml

    source = config.NOTEBOOKS / "params" / "runs" / "A.yaml"
    plain = config.read_parameters(source, TrainLora.stem)
    found, scaled = rounded(trial.params), first_run(p).learning_rate / plain["learning_rate"]
    values = plain | found | {"run": WINNER, "learning_rate": float(f"{found['learning_rate'] / scaled:.12g}")}
    values |= {"corpus": p.corpus} if p.corpus != config.ORIGINAL else {}
    path = p.output / f"{WINNER}.yaml"
    rate = f"a rate of {found['learning_rate']:g} under profile {p.profile}"
    path.write_text(f"# Trial {trial.number} of study '{p.study}': {rate}\n" + yaml.safe_dump(values, sort_keys=False))
    return path
