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
    run_labels,
)

# %% tags=["parameters"]
profile: str = "quick"  # names the folders below reports/
runs: list = ["A_seed13"]  # trained runs, as <run>_seed<k>
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
found |= {f"{TrainLora.stem}_{run}": results.read_results(params.sibling(f"{TrainLora.stem}_{run}")) for run in params.runs}
found[EvaluateModels.stem] = results.read_results(evaluation)
pd.DataFrame({name: {"model": r.model or EMBEDDED_MODEL, "seed": r.seed} for name, r in found.items()}).T

# %% [markdown]
# ## The comparison
#
# ROUGE-L against our reference answers is the primary score, chosen beforehand; it says how near the wording is. The
# interval is over questions.

# %%
summary, means = results.read_table("summary", evaluation), results.read_table("means", evaluation)
verdicts = results.read_table("verdicts", evaluation)
comparison = pd.DataFrame({"ROUGE-L": means["mean"].map("{:.3f}".format)})
comparison["95 % interval"] = means.low.map("{:.3f}".format) + " to " + means.high.map("{:.3f}".format)
comparison["against base"] = verdicts.verdict.reindex(comparison.index).fillna("-")
comparison["p (Holm)"] = verdicts.apply(stats.p_text, axis=1).reindex(comparison.index).fillna("-")
comparison["words"] = summary.answer_words.map("{:.0f}".format)
comparison["corpus BLEU"] = summary.corpus_bleu.map("{:.3f}".format)
comparison["similarity"] = summary.similarity.map("{:.3f}".format)
comparison["perplexity"] = summary.perplexity.map("{:.1f}".format).replace("nan", "-")

# %% [markdown]
# Systems are in the order base, tuned, retrieval, and not by score: a ranking by mean would hide that neighbours may not
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
pd.Series(corpus, name="value").to_frame().round(3)

# %% [markdown]
# ## What it cost
#
# Trainable parameters, time and loss of each run, so that a gain can be set against its price.

# %% [markdown]
# The share is of all parameters, the adapter included; losses are on the validation part, in nats per answer token; times
# are of this machine, without one where the run was interrupted and resumed.

# %%
trained = {label: found[f"{TrainLora.stem}_{run}"].metrics for run, label in run_labels(params.runs).items()}
columns = ["trainable_count", "trainable_share", "train_time_s", "loss_before_nats", "loss_after_nats"]
cost = pd.DataFrame(trained).T.reindex(columns=columns)
cost.style.format(
    {"trainable_count": "{:,.0f}", "trainable_share": "{:.3%}", "train_time_s": "{:.0f}"}, precision=3, na_rep="-"
)

# %% [markdown]
# ## Limits
#
# - This page repeats numbers; how they were made, and what they cannot show, stands in the notebooks themselves.
# - Similar wording is not a right answer, a longer answer is not a better one, and a small test set shows large effects only.

# %%
results.write_table(comparison.reset_index(), "comparison", params.output)
texts = {"headline": found[EvaluateModels.stem].headline, "caveat": CAVEAT if embedded else ""}
print("Saved", results.write_results(params, found[EvaluateModels.stem].metrics, **texts).relative_to(ROOT))
