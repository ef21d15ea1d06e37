# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Search the hyperparameters
#
# **Question.** Are there hyperparameters that serve this model and corpus better than run A's?
#
# **In:** the prepared corpus (`01_prepare_data`), run A's file, and for the verdict its weights (`04_train_lora`). **Out:** a
# ranking of trials, and the best one as a run file. **Needs:** 3 GB, with the embedded model two to four minutes for the short
# search of `make report`; for the 12 trials of `make search` about twenty minutes on two cores, and then five for the verdict.

# %%
import matplotlib.pyplot as plt
import pandas as pd
from IPython.display import Markdown

from interviewmate_utils import data, plots, provenance, results, search, stats, workers
from interviewmate_utils.config import CAVEAT, EMBEDDED_MODEL, ROOT, SearchHyperparameters

# %% tags=["parameters"]
profile: str = "quick"  # names the folders below data/processed/ and reports/
study: str = "short"  # name of the search; one with another name has a report of its own
corpus: str = "original"  # prepared corpus; its folder says which base its tokens belong to
device: str = "auto"  # cuda, else mps, else cpu
trials: int = 2  # in all; more than before continue a finished search
folds: int = 2  # of the cross-validation
epochs: float = 0.1  # passes over the rows that a fold trains on
learning_rates: list = [1e-5, 1e-3]  # lowest and highest
max_new_tokens: int = 12  # length limit of an answer
repetition_penalty: float = 1.2  # as where the models are evaluated
storage: str = ""  # database URL, for a study that machines share; empty: an SQLite file among the outputs
processes: int = 1  # workers on this machine
prune: bool = True  # stop hopeless trials after a fold
verdict_seeds: list = []  # of the trainings that the test part judges; none: no verdict
seed: int = 13  # of folds, draws and trainings

# %%
params = SearchHyperparameters.from_cell(globals())
plots.setup()
provenance.overview(params)

# %% [markdown]
# ## The space and its stages
#
# The first trial is run A itself, so that the ranking always holds it. Each stage then varies two or three parameters that act
# on the same thing, and keeps all others at the best values so far: a full grid of these seven would take thousands of trials.
# Batch size goes with the warm-up, since it decides how many steps there are to warm up in.

# %%
space, first = search.space(params), search.first_run(params, epochs=params.epochs)
stage_of = {name: stage for stage, names in search.STAGES.items() for name in names}
rows = {name: {"stage": stage_of[name], "run A": f"{getattr(first, name):g}"} for name in space}
allowed = {n: getattr(d, "choices", None) or f"{d.low:g} to {d.high:g}, log scale" for n, d in space.items()}
pd.DataFrame(rows).T.assign(searched=pd.Series(allowed).map(str))

# %% [markdown]
# Within a stage the tree-structured Parzen estimator draws values (TPE, Bergstra et al. 2011), at random until a few trials have
# finished. Each trial draws from a seed of its own, but from what has finished by then: one worker that is not interrupted
# repeats a search exactly; several, or an interruption, may lead elsewhere.

# %%
pd.Series(search.plan(params.trials)).value_counts(sort=False).rename("trials").to_frame()

# %% [markdown]
# ## The folds
#
# Every trial trains once per fold, on the other folds' rows, and answers the questions held out. Folds are stratified as the
# corpus was split, and a follow-up stays with its first question. The validation part picks the epoch that is kept, as in every run; the folds
# alone rank; the test part is not touched before the verdict.

# %%
dataset = data.load_parts(params.processed)
table = search.split_folds(dataset["train"], params.folds, params.seed, search.stratified_by(params))
pd.crosstab(table.stratum, table.fold, margins=True, margins_name="all")

# %% [markdown]
# Two checks: every row is held out once, and no conversation is torn apart.

# %%
assert table.fold.between(1, params.folds).all()
assert table.groupby("conversation").fold.nunique().max() == 1
follow_ups = int((table.conversation != table.index).sum())
Markdown(f"{len(table)} rows, of them {follow_ups} follow-ups, each in the fold of its first question.")

# %% [markdown]
# ## Search
#
# The value of a trial is the mean ROUGE-L of all questions held out; where two are equal, corpus BLEU decides. After each fold a
# Wilcoxon test compares a trial with the best one on the same questions, and stops it where it is clearly behind. The test is made
# often, so it stops a good trial now and then: the price of the time saved. A trial whose loss is no longer a number is stopped,
# too. The study is kept in a database: an interrupted search goes on with what is missing, a killed worker's trial is begun
# again, a finished search trains nothing.

# %%
finished = workers.run(params)
ranking = search.table(finished, seed=params.seed)
best = search.ranked(finished)[0]

# %% [markdown]
# ## Ranking
#
# `sd` is the spread over folds, `low` to `high` a 95 % t interval from it, for complete trials. It is rough: folds share training
# rows, so their means are not independent, and some folds are harder for every trial. Trials therefore compare by `difference`,
# to run A's own trial on the same questions, in the right panel; `relative` is to the mean of the complete trials on the
# same questions. A dot without an interval in the left panel was stopped early, and its mean is of the folds it saw; its
# difference looks worse than it is, since being low is why it was stopped. All of this is exploratory: the best of several
# trials looks better than it is, too, since its score is why it was chosen.

# %%
scores = ["rouge_l", "sd", "low", "high", "bleu", "difference", "difference_low", "difference_high", "relative"]
style = ranking.drop(columns=["trial", "folds"]).style.format("{:.3g}", subset=search.NAMES)
style.format("{:.4f}", subset=scores, na_rep="-").format("{:.0f}", subset=["seconds"], na_rep="-")

# %%
fig, (left, right) = plt.subplots(1, 2, figsize=(11, 0.35 * len(ranking) + 1.2), sharey=True)
plots.interval_bars(ranking, "rouge_l", "low", "high", "ROUGE-L F1 of held-out questions\n(mean, rough 95 % t interval)", left)
paired = ("difference", "difference_low", "difference_high")
plots.interval_bars(ranking, *paired, "difference to run A's trial\n(same questions, 95 % BCa interval)", right)
right.axvline(0, color=plots.colour(search.FIRST), ls="--")
plots.save(fig, "ranking", params.output)

# %% [markdown]
# ## Which parameter matters
#
# The importance of a parameter is the share of the variance between trials that it explains alone, by a random forest fitted to
# them (fANOVA, Hutter et al. 2014). A trial counts by `relative`, its mean difference to the complete trials on the questions
# that it answered, so that stopped trials count, too. From a dozen trials this is a hint at most, the more so for parameters that
# were varied together, or in few trials.

# %%
compared, needed = int(ranking.relative.notna().sum()), 10
if compared >= needed:
    share = search.importance(finished, ranking)
    fig, ax = plt.subplots(figsize=(8, 3))
    ax.barh(share.index, share, color=plots.PALETTE[0])
    ax.set(xlabel=f"share of the variance explained (fANOVA, {compared} trials)")
    plots.save(fig, "importance", params.output)
else:
    print(f"Importance needs {needed} trials; there are {compared}.")

# %% [markdown]
# ## What was tried together
#
# One panel per stage, with the trials that varied its parameters; the square is run A, from which the first stage starts.
# Colour is the difference to the mean of the complete trials on the same questions: look for a direction in which it
# changes. Only trials of one panel are comparable, since a later stage starts from better values of the others.

# %%
labels = {"learning_rate": "peak learning rate", "dropout": "dropout (share)", "warmup_steps": "warm-up (steps)"}
labels |= {"rank": "rank", "alpha": "alpha", "weight_decay": "weight decay"}
limits = ranking.relative.min() - 1e-4, ranking.relative.max() + 1e-4

# %%
fig, axes = plt.subplots(1, 3, figsize=(12, 3.4))
for ax, (stage, names) in zip(axes, search.STAGES.items(), strict=True):
    ax.set(title=stage + (" (number: batch)" if len(names) > 2 else ""), xlabel=labels[names[0]], ylabel=labels[names[1]])
    points = plots.tried(ranking[ranking.stage == stage], names, space, "relative", limits, "o", ax)
names = search.STAGES["rate and rank"]
plots.tried(ranking[ranking.stage == search.FIRST], names, space, "relative", limits, "s", axes[0])
fig.colorbar(points, ax=axes, label="ROUGE-L F1,\ndifference to the mean")
plots.save(fig, "together", params.output)

# %% [markdown]
# ## The winner as a run
#
# The file is like those in `notebooks/params/runs/`: copy it there, and add its name to the `runs` of the profile, to have it trained
# and evaluated with the others. It trains for as many epochs as run A. Where the profile scales learning rates, the file holds
# the rate before that; the check reads it back as a training would.

# %%
path = search.write_winner(params, best)
again = search.first_run(params, path)
print(f"{path.relative_to(ROOT)}, trained under this profile with a learning rate of {again.learning_rate:g}:\n")
print(path.read_text())

# %% [markdown]
# ## Verdict on the test part
#
# The winner is trained on the whole training part with each seed, and compared with run A's kept weights on the test questions,
# a question's score being the mean over seeds. The study remembers what it judged: a winner that more trials bring is another
# look at the same questions, and Holm's correction is over all looks of this study. It cannot know of other studies, whose
# looks a reader has to add. If the two cannot be distinguished, that is the finding: run A's values were good enough, or
# the sample is too small to tell.

# %%
texts, numbers, by_seed = [], {}, pd.DataFrame()
if best.user_attrs["stage"] != search.FIRST and params.verdict_seeds:
    wide, by_seed = workers.judge(params, finished)
    verdict = stats.verdicts(wide, search.FIRST, 9999, params.seed)
    texts = [stats.sentence(name, search.FIRST, "ROUGE-L", row) for name, row in verdict.iterrows()]
    results.write_table(verdict, "verdict", params.output)
    numbers = {"test_difference_score": verdict.difference.iloc[0], "test_p": verdict.p_holm.iloc[0]}
    numbers |= {"looks_count": len(verdict)}

# %%
reason = "no seeds were given" if not params.verdict_seeds else "run A itself came first, and there is nothing to compare"
Markdown("\n".join(f"- {text}" for text in texts) or f"No verdict: {reason}.")

# %% [markdown]
# Interval and test say what other questions would have given, with these trainings. What other trainings would have given is seen
# from seed to seed; where the difference changes its sign there, a verdict is about these trainings only.

# %%
differences = by_seed.iloc[:, -1] - by_seed.iloc[:, 0] if len(by_seed) else pd.Series(dtype=float)
by_seed.assign(difference=differences).style.format("{:.4f}") if len(by_seed) else Markdown("No verdict, no seeds.")

# %% [markdown]
# ## Limits
#
# - Few trials in seven dimensions: another search of the same length may end elsewhere, and none shows that there is nothing better.
# - A fold trains on fewer rows, and for as many epochs as the table at the top says, its warm-up shortened in proportion. Settings
#   that learn fast are favoured by that.
# - One seed a trial: part of a difference between trials is what another seed would have given. The verdict averages its seeds
#   away before it tests, so it does not count that either.
# - ROUGE-L rewards shared words and fitting length, here as elsewhere.

# %%
results.write_table(ranking, "ranking", params.output)
outcomes = ranking.outcome.value_counts()
numbers |= {f"{name}_count": int(outcomes.get(name, 0)) for name in ("complete", "stopped", "diverged")}
numbers |= {"best_rouge_l_score": best.value, "best_bleu_score": best.user_attrs["bleu"], "search_s": ranking.seconds.sum()}
caveat = CAVEAT if params.model == EMBEDDED_MODEL else ""
print("Saved", results.write_results(params, numbers, headline="\n".join(texts), caveat=caveat).relative_to(ROOT))
