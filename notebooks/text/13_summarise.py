# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Summarise the comparison
#
# **Question.** What did this profile's runs find, in one figure and one table that can be shared?
#
# **In:** `results.json` and tables of the notebooks before. **Out:** the start page's figure, table and verdict.
# **Needs:** a few seconds; nothing is measured here.

# %%
import matplotlib.pyplot as plt
import pandas as pd
import seaborn as sns
from IPython.display import Markdown

from interviewmate_utils import plots, provenance, results, stats
from interviewmate_utils.config import (
    CAVEAT,
    EMBEDDED_MODEL,
    ROOT,
    BuildEmbeddedModel,
    EvaluateModels,
    PrepareData,
    Summarise,
    TrainLora,
)

# %% tags=["parameters"]
profile: str = "quick"  # names the folders below reports/
runs: list = ["A"]  # trained runs
seeds: list = [13]  # with which each of them was trained
seed: int = 13  # recorded with the results; nothing is drawn here

# %%
params = Summarise.from_cell(globals())
plots.setup()
provenance.overview(params)

# %% [markdown]
# ## What was run
#
# Every number below is read from the files that the notebooks wrote.

# %%
evaluation = params.sibling(EvaluateModels.stem)
found = {stem: results.read_results(params.sibling(stem)) for stem in (PrepareData.stem, BuildEmbeddedModel.stem)}
folders = {(f"run {run}", k): params.sibling(f"{TrainLora.stem}_{run}_seed{k}") for run in params.runs for k in params.seeds}
found |= {folder.name: results.read_results(folder) for folder in folders.values()}
found[EvaluateModels.stem] = results.read_results(evaluation)
pd.DataFrame({name: {"model": r.model or EMBEDDED_MODEL, "seed": r.seed} for name, r in found.items()}).T

# %% [markdown]
# ## The comparison
#
# ROUGE-L against our reference answers is the primary score, chosen beforehand; it says how near the wording is. The
# interval is over questions; the standard deviation is over training seeds, with its chi-square interval, wide for few seeds.

# %%
summary, means = results.read_table("summary", evaluation), results.read_table("means", evaluation)
verdicts = results.read_table("verdicts", evaluation)
comparison = pd.DataFrame({"ROUGE-L": means["mean"].map("{:.3f}".format)})
comparison["95 % interval"] = means.low.map("{:.3f}".format) + " to " + means.high.map("{:.3f}".format)
spread = results.read_table("seeds", evaluation)
texts = spread.apply(lambda row: f"{row.sd:.3f} ({row.sd_low:.3f} to {row.sd_high:.3f})", axis=1)
comparison["sd over seeds"] = texts.where(spread.sd.notna()).reindex(comparison.index).fillna("-")
comparison["against base"] = verdicts.verdict.reindex(comparison.index).fillna("-")
comparison["p (Holm)"] = verdicts.apply(stats.p_text, axis=1).reindex(comparison.index).fillna("-")
comparison["words"] = summary.answer_words.map("{:.0f}".format)
comparison["corpus BLEU"] = summary.corpus_bleu.map("{:.3f}".format)
comparison["similarity"] = summary.similarity.map("{:.3f}".format)
comparison["perplexity"] = summary.perplexity.map("{:.1f}".format).replace("nan", "-")

# %% [markdown]
# Systems are in the order base, few-shot base, tuned, retrieval, and not by score: a ranking by mean would hide that neighbours may not
# differ.

# %%
comparison.index.name = "system"
comparison

# %%
fig, ax = plt.subplots(figsize=(7.5, 2.6))
plots.interval_bars(means, "mean", "low", "high", "ROUGE-L F1 against the reference answers (mean, 95 % interval)", ax)
count = int(found[EvaluateModels.stem].metrics["items_count"])
name = "embedded model" if found[EvaluateModels.stem].model == EMBEDDED_MODEL else found[EvaluateModels.stem].model
ax.set_title(f"{name}, {count} test questions")
ax.set_xlim(0, means.high.max() * 1.15)
plots.save(fig, "comparison", params.output)

# %% [markdown]
# The dots are means over the test questions. Whether two systems differ is said by the paired verdicts, since overlapping
# intervals of means do not settle it.

# %%
embedded = found[EvaluateModels.stem].model == EMBEDDED_MODEL
lines = found[EvaluateModels.stem].headline.split("\n")
Markdown("\n".join(f"- {line}" for line in lines) + (f"\n\n**{CAVEAT}**" if embedded else ""))

# %% [markdown]
# ## The data behind it
#
# A comparison is as good as its questions: how many, how far from the training questions, how many were cut.

# %%
corpus = found[PrepareData.stem].metrics
pd.Series(corpus, name="value").map("{:.4g}".format).to_frame()

# %% [markdown]
# ## How the runs trained
#
# Each run was trained with several seeds, which change the adapter's start, the dropout and the order of the examples.
# Step 0 is the untouched base.

# %%
tables = {run: results.read_table("history", folder).assign(seed=run[1]) for run, folder in folders.items()}
logs = pd.concat(tables, names=["run", None]).droplevel(-1).reset_index()
fig, ax = plt.subplots(figsize=(8, 3.6))
palette = {run: plots.colour(run) for run in logs.run.unique()}
lines = logs.dropna(subset="validation_loss")
sns.lineplot(lines, x="epoch", y="validation_loss", hue="run", units="seed", estimator=None, palette=palette, marker="o", ax=ax)
ax.set(xlabel="epoch", ylabel="validation loss (nats per answer token)")
ax.legend(title="a line per seed")
plots.save(fig, "training", params.output)

# %% [markdown]
# Convergence: the epoch at which a run's validation loss was lowest, and after which it stayed within 1 % of that; means, with the
# range over seeds. Then that loss, its standard deviation over seeds with the chi-square interval. `last gain` is what the last
# evaluation improved on the one before, half an epoch earlier. A run whose best epoch is its last was still at its lowest when
# the schedule ended; as the learning rate falls towards zero by then, that does not tell whether a longer schedule would help.

# %%
trained = pd.DataFrame({run: found[folder.name].metrics for run, folder in folders.items()}).T
trained.index.names = ["run", "seed"]
by_run = trained.groupby("run", sort=False)
losses = lines.sort_values("step").groupby(["run", "seed"], sort=False)
settled = losses.apply(lambda log: log.epoch[log.validation_loss > 1.01 * log.validation_loss.min()].max())
best = pd.DataFrame({"last epoch": logs.groupby("run", sort=False).epoch.max()})
for name, epochs in {"best epoch": trained.best_epoch_epochs, "within 1 % after": settled}.items():
    each = epochs.groupby("run", sort=False)
    best[name] = [f"{one.mean():.1f} ({one.min():.1f} to {one.max():.1f})" for _, one in each]
gains = losses.validation_loss.agg(lambda loss: loss.iloc[-2] - loss.iloc[-1])
best["last gain"] = gains.groupby("run").mean()
spreads = pd.DataFrame({run: stats.spread(loss) for run, loss in by_run.loss_after_nats}).T.drop(columns="n")
best.join(spreads.rename(columns={"mean": "loss"})).style.format("{:.3f}").format(
    "{}", subset=["best epoch", "within 1 % after"]
).format("{:g}", subset=["last epoch"])

# %% [markdown]
# ## What it cost
#
# Trainable parameters, time, memory and loss of each run, so that a gain can be set against its price: means over seeds, in
# the figure with the range over seeds. The share is of all parameters, the adapter included; losses are on the validation part,
# in nats per answer token; times are of this machine, other trainings perhaps beside them, and without one where a run was
# interrupted and resumed.

# %%
columns = ["trainable_count", "trainable_share", "train_time_s", "peak_memory_gb", "loss_before_nats", "loss_after_nats"]
cost = trained.reindex(columns=columns).groupby("run", sort=False).mean()
cost.style.format(
    {"trainable_count": "{:,.0f}", "trainable_share": "{:.3%}", "train_time_s": "{:.0f}"}, precision=3, na_rep="-"
)

# %%
prices = {"trainable_count": "trainable parameters", "train_time_s": "training time (s)", "peak_memory_gb": "peak memory (GB)"}
fig, axes = plt.subplots(1, 3, figsize=(11, 3.2), sharey=True)
for ax, (column, label) in zip(axes, prices.items(), strict=True):
    for run, row in means.loc[cost.index].iterrows():
        errors = [[row["mean"] - row.low], [row.high - row["mean"]]]
        price, seeds = cost.loc[run, column], trained.loc[run, column]
        across = [[price - seeds.min()], [seeds.max() - price]]
        ax.errorbar(price, row["mean"], errors, across, fmt="o", color=plots.colour(run), label=run, capsize=3)
    ax.set(xlabel=label, xlim=(0, 1.15 * cost[column].fillna(0).max() or 1))  # all may have been resumed: no time is known
axes[0].set(xscale="log", xlim=(cost.trainable_count.min() / 2, cost.trainable_count.max() * 2))
axes[0].set_xticks(cost.trainable_count, [f"{count:,.0f}" for count in cost.trainable_count], rotation=40, minor=False)
axes[0].minorticks_off()
axes[0].set_ylabel("ROUGE-L F1\n(mean, 95 % interval)")
fig.legend(*axes[0].get_legend_handles_labels(), loc="outside right upper")
plots.save(fig, "price", params.output)

# %% [markdown]
# Whether seeds or questions matter more: the standard deviation of a run's score over seeds, with its chi-square interval,
# and the standard errors that its mean has from the seeds and from the sample of questions.

# %%
spread.style.format("{:.4f}").format("{:.0f}", subset=["n"])

# %% [markdown]
# ## Limits
#
# - This page repeats numbers; how they were made, and what they cannot show, stands in the notebooks themselves.
# - Similar wording is not a right answer, a longer answer is not a better one, and a small test set shows large effects only.

# %%
results.write_table(comparison.reset_index(), "comparison", params.output)
texts = {"headline": found[EvaluateModels.stem].headline, "caveat": CAVEAT if embedded else ""}
print("Saved", results.write_results(params, found[EvaluateModels.stem].metrics, **texts).relative_to(ROOT))
