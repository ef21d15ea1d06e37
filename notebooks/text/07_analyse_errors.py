# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Analyse the errors
#
# **Question.** What kinds of errors do the systems make, how sure can we be of that, and what would help?
#
# **In:** the answers of `06_evaluate_models`; 420 judged answers (`data/raw/judged_answers.jsonl`). **Out:** how well errors are found,
# each system's shares with intervals, examples with their evidence, remedies. **Needs:** about 3 minutes and 2 GB.

# %%
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from IPython.display import Markdown, display

from interviewmate_utils import data, errors, plots, provenance, results, similarity, stats
from interviewmate_utils.config import QUESTIONS, ROOT, TERMS, AnalyseErrors, EvaluateModels
from interviewmate_utils.errors import judge, measure, remedies, signals

# %% tags=["parameters"]
profile: str = "quick"  # names the folders below data/processed/ and reports/
encoder: str = "embedded-minilm"  # for likeness in meaning
examples: int = 3  # shown of each category
resamples: int = 999  # of the bootstrap
seed: int = 13  # of the bootstrap and of the detectors' forests

# %%
params = AnalyseErrors.from_cell(globals())
plots.setup()
provenance.overview(params)

# %% [markdown]
# ## What is looked for
#
# Eight categories with three subtypes each; an answer may have several. They were marked by a language model and checked by another
# (`data/README.md` says how far two passes agree).

# %%
judged = errors.read_judged()
counts = pd.DataFrame({part: judge.labels_of(group).sum() for part, group in judged.groupby("part", sort=False)})
counts.insert(0, "subtypes", [", ".join(errors.CATEGORIES[category]) for category in counts.index])
plots.show_texts(counts.rename_axis("category").reset_index(), ["category", "subtypes", "development", "test", "model"])

# %% [markdown]
# ## Detectors
#
# Signals of form (length, repetition, breaking off, markup), of subject (terms, numbers, names) and of meaning (which key points are
# said, how near sentences come to question and reference), and a forest for each category. All of it was chosen and fitted on the
# development half; the test half has other questions and was looked at once.

# %%
asked = pd.read_json(ROOT / QUESTIONS, lines=True)
terms = list(filter(None, (ROOT / TERMS).read_text(encoding="utf-8").splitlines()))
texts = signals.Texts(similarity.load_encoder(params.encoder))
halves = {part: group.reset_index(drop=True) for part, group in judged.groupby("part", sort=False)}
judging = judge.Judge(texts, terms, list(asked.question), params.seed).fit(halves["development"])
seen = {part: judging.examine(judge.items_of(group)) for part, group in halves.items()}
marked = {part: judge.labels_of(group) for part, group in halves.items()}

# %% [markdown]
# Beside ours: what a minute's work finds (length, no full stop, a sentence said twice, a list), and an encoder classifier (logistic
# regression on sentence embeddings), with thresholds chosen in the same way. `good, accused` is the share of good answers found to have an error.

# %%
test = halves["test"]
found = {"ours": judging.found(seen["test"])}
found["zero effort"] = measure.zero_effort(judge.items_of(test), list(errors.CATEGORIES))
found["encoder"] = measure.encoder_found(texts, halves["development"], test)
detected = {n: measure.detection(marked["test"], f, test.question_id, params.resamples, params.seed) for n, f in found.items()}
table = pd.concat({name: part[["value", "low", "high"]] for name, part in detected.items()}, axis=1)
table.round(2)

# %%
fig, ax = plt.subplots(figsize=(8, 4.2))
for k, (name, part) in enumerate(detected.items()):
    places = np.arange(len(part)) + 0.25 * (k - 1)
    ax.errorbar(part.value, places, xerr=[part.value - part.low, part.high - part.value], fmt="o", color=plots.PALETTE[k], label=name, capsize=2)
ax.set_yticks(range(len(part)), part.index)
ax.set(xlabel="F1 on the test half (of `good, accused`: share), 95 % interval", xlim=(0, 1), ylim=(len(part) - 0.5, -0.5))
ax.legend(loc="lower right")
plots.save(fig, "detection", params.output)

# %% [markdown]
# What is taken for what: rows are the main error that was marked, columns all that was found; each row is a share of its answers.

# %%
confused = found["ours"].assign(none=~found["ours"].any(axis=1)).groupby(test.primary.fillna("none")).mean()
confused = confused.reindex(index=[*errors.CATEGORIES, "none"], columns=[*errors.CATEGORIES, "none"])
fig, ax = plt.subplots(figsize=(8, 4.5))
sns.heatmap(confused, annot=True, fmt=".2f", cmap="cividis", vmin=0, vmax=1, cbar_kws={"label": "share of the row's answers"}, ax=ax)
ax.set(xlabel="found", ylabel="marked as the main error")
plots.save(fig, "confusion", params.output)

# %% [markdown]
# The same detectors on 100 real outputs of the embedded base and run A, which are almost all bad in the same few ways: categories that
# hardly any of them has say nothing here.

# %%
real = halves["model"]
measure.detection(marked["model"], judging.found(seen["model"]), real.question_id, params.resamples, params.seed).round(2)

# %% [markdown]
# ## The systems
#
# What the detectors find in the test answers of `06_evaluate_models`: the share of questions, a run's mean over its seeds, with its 95 % interval
# over questions. These are shares found, not shares there: the table above says how far the two go together.

# %%
told = results.read_table("answers", params.sibling(EvaluateModels.stem))
known = data.load_parts(params.processed)["test"].to_pandas().set_index(data.QUESTION)
long = told.melt(["question", "reference"], var_name="who", value_name="answer")
long[["system", "seed"]] = long.who.str.split(", seed ", expand=True).reindex(columns=[0, 1])
long["key_points"] = long.question.map(known.key_points)
flags = judging.found(judging.examine(judge.items_of(long)))
