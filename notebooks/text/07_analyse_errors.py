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
# each system's shares with intervals, examples with their evidence, remedies. **Needs:** about 4 minutes and 2 GB.

# %%
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from IPython.display import Markdown, display

from interviewmate_utils import data, errors, plots, provenance, results, similarity, stats
from interviewmate_utils.config import ROOT, AnalyseErrors, EvaluateModels
from interviewmate_utils.errors import judge, measure, remedies, show

# %% tags=["parameters"]
profile: str = "quick"  # names the folders below data/processed/ and reports/
encoder: str = "embedded-minilm"  # for likeness in meaning
examples: int = 3  # shown of each category
resamples: int = 999  # of the bootstrap
seed: int = 13  # of the bootstrap and of the classifier

# %%
params = AnalyseErrors.from_cell(globals())
plots.setup()
provenance.overview(params)

# %% [markdown]
# ## What is looked for
#
# Eight categories with three subtypes each; an answer may have several. A language model wrote and marked the answers of the development
# and test half; those of `model` are real outputs of the embedded model, also marked by a language model (`data/README.md` says
# how far two passes agree).

# %%
judged = errors.read_judged()
halves = {part: group.reset_index(drop=True) for part, group in judged.groupby("part", sort=False)}
marked = {part: judge.categories_of(group.labels) for part, group in halves.items()}
counts = pd.DataFrame({part: table.sum() for part, table in marked.items()}).rename_axis("category").reset_index()
counts.insert(1, "subtypes", [", ".join(errors.CATEGORIES[category]) for category in counts.category])
plots.show_texts(counts, list(counts.columns))

# %% [markdown]
# ## How well errors are found
#
# Rules find what breaks the form (length, breaking off, loops, markup, register) and show the passage. What an answer says is judged
# by a small classifier on signals of it: which key points are stated or contradicted, terms and numbers that the reference does not
# know, likeness to this and to other questions. Both were built on the development half. The test half has other questions.

# %%
judging = judge.fitted(similarity.load_encoder(params.encoder), params.seed)
seen = {part: judging.judge(judge.items_of(halves[part])) for part in ("test", "model")}
test, names = halves["test"], [*errors.CATEGORIES]
found = {
    "rules and classifier": judge.categories_of(seen["test"].labels),
    "encoder alone": measure.encoder_found(judging.texts, halves["development"], test),
    "zero effort": measure.zero_effort(judge.items_of(test), names),
}

# %% [markdown]
# Beside ours: a logistic regression on sentence embeddings that names one category an answer, and what a minute's work finds (very short or long, no full stop at the
# end, a sentence said twice, a list). `macro of form` is over length, incomplete, repetitive and format. `good, accused` is the share of good answers in which something is found; there, less is better.

# %%
scope = (test.question_id, params.resamples, params.seed)
detected = {name: measure.detection(marked["test"], table, *scope) for name, table in found.items()}
fig, ax = plt.subplots(figsize=(8, 4.6))
for k, (name, part) in enumerate(detected.items()):
    places, bars = np.arange(len(part)) + 0.25 * (k - 1), np.clip([part.value - part.low, part.high - part.value], 0, None)
    ax.errorbar(part.value, places, xerr=bars, fmt="osD"[k], color=plots.PALETTE[k], label=name, capsize=2)
ax.set_yticks(range(len(part)), part.index)
ax.set(xlabel="F1 on the test half, share for the last line (95 % interval)", xlim=(-0.02, 1.02), ylim=(len(part) - 0.5, -0.5))
fig.legend(loc="outside upper center", ncols=3)
plots.save(fig, "detection", params.output)

# %%
detected["rules and classifier"].round(2)

# %% [markdown]
# A false statement in good English looks like a true one to an encoder, so expect little of hallucination. The intervals are wide: read
# them before the values. What is taken for what: rows are the main error that was marked, columns everything found; each cell is a
# share of its row's answers.

# %%
confused = found["rules and classifier"].assign(none=~found["rules and classifier"].any(axis=1))
confused = confused.groupby(test.primary.fillna("none")).mean().reindex(index=[*names, "none"], columns=[*names, "none"])
fig, ax = plt.subplots(figsize=(8, 4.8))
bar = {"label": "share of the row's answers"}
sns.heatmap(confused, annot=True, fmt=".2f", cmap="cividis", vmin=0, vmax=1, cbar_kws=bar, ax=ax)
ax.set(xlabel="found", ylabel="marked as the main error")
plots.save(fig, "confusion", params.output)

# %% [markdown]
# Of the errors whose category is right, how often is the subtype right, and does the severity found, one number an answer, go with theirs?

# %%
both = [
    (one["category"], one["subtype"] == other["subtype"], one["severity"], other["severity"])
    for mine, theirs in zip(seen["test"].labels, test.labels, strict=True)
    for other in theirs
    for one in [next((label for label in mine if label["category"] == other["category"]), None)]
    if one
]
both = pd.DataFrame(both, columns=["category", "subtype right", "severity found", "severity marked"])
order = both["severity found"].corr(both["severity marked"], method="spearman")
display(both.groupby("category")["subtype right"].agg(["mean", "size"]).reindex(names).round(2))
Markdown(f"Severity: Spearman's correlation **{order:.2f}** over {len(both)} errors.")

# %% [markdown]
# The same on 100 real outputs of the embedded base and run A. They are bad in a few ways, several at once; a category that none has
# cannot be measured here.

# %%
real = halves["model"]
found_real = judge.categories_of(seen["model"].labels)
on_real = measure.detection(marked["model"], found_real, real.question_id, *scope[1:])
on_real.round(2)

# %% [markdown]
# ## The systems
#
# What is found in the test answers of `06_evaluate_models`: the share of questions, a run's mean over its seeds, with its 95 % BCa interval
# over questions. These are shares *found*. Above each panel: of its errors in the 100 real outputs, how many were found, and how many of
# the finds were right. Where either is low, the panel says little of how often the error is made.

# %%
told = results.read_table("answers", params.sibling(EvaluateModels.stem))
known = data.load_parts(params.processed)["test"].to_pandas().set_index(data.QUESTION)
known = known.loc[known.index.intersection(told.question)]
long = told.melt(["question", "reference"], var_name="who", value_name="answer")
long["system"] = long.who.str.split(", seed ").str[0]
long = long.join(known[known.columns.intersection(["key_points"])], on="question")
long = long.join(judging.judge(judge.items_of(long)))
flags = judge.categories_of(long.labels).astype(float).assign(question=long.question, system=long.system)
systems = list(dict.fromkeys(long.system))

# %%
by_item = flags.groupby(["system", "question"])[names].mean()
wide = {category: by_item[category].unstack("system")[systems] for category in names}
shares = {category: stats.mean_intervals(table, params.resamples, params.seed) for category, table in wide.items()}
shares = pd.concat(shares, names=["category", "system"])
fig, axes = plt.subplots(2, 4, figsize=(12, 6), sharex=True, sharey=True)
for ax, category in zip(axes.flat, names, strict=True):
    plots.interval_bars(shares.loc[category], "mean", "low", "high", "", ax)
    there, hits = on_real.loc[category], (marked["model"][category] & found_real[category]).sum()
    ax.set_title(f"{category}\n{hits} of {there.marked:.0f} found, {hits} of {there.found:.0f} right")
    ax.set_xlim(-0.03, 1.03)
fig.supxlabel("share of the questions in whose answer it is found (mean over seeds, 95 % BCa interval)")
plots.save(fig, "shares", params.output)

# %% [markdown]
# ### Change against the base
#
# Paired by question: the difference in share, with its 95 % BCa interval. Eight categories for every system make many comparisons, so
# this is exploratory; read what stands out by far. What an answer says is harder to tell where its form is broken, so a run that loops
# more may seem to make fewer errors of content.

# %%
change = {category: stats.verdicts(table, "base", params.resamples, params.seed) for category, table in wide.items()}
change = pd.concat(change, names=["category", "system"])[["difference", "low", "high", "n"]]  # the rest takes more as better
fig, axes = plt.subplots(2, 4, figsize=(12, 5.2), sharex=True, sharey=True)
for ax, category in zip(axes.flat, names, strict=True):
    plots.interval_bars(change.loc[category], "difference", "low", "high", "", ax)
    ax.axvline(0, color=plots.colour("base"), ls="--")
    ax.set(title=category)
fig.supxlabel("change in share against the base (95 % BCa interval); left is better")
plots.save(fig, "change", params.output)

# %% [markdown]
# ### Which errors come together, and where
#
# Left, of the runs' answers with the row's error, the share that also has the column's. Right, the share of the runs' answers by subfield,
# with the number of questions: few, so differences of less than about a third mean little. An answer gets at most one of hallucination,
# generic, technical error and off-topic, the likeliest: the zeros among them are ours, not the systems'.

# %%
runs = flags[flags.system.str.startswith("run")]
together = runs[names].T @ runs[names]
together = together.div(np.diag(together), axis=0).where(~np.eye(len(names), dtype=bool))
fig, (left, right) = plt.subplots(1, 2, figsize=(13, 4.6))
sns.heatmap(together, annot=True, fmt=".2f", cmap="cividis", vmin=0, vmax=1, cbar=False, ax=left)
left.set(xlabel="also found", ylabel="found")
left.grid(False)
if "subfield" in known:
    fields = known.subfield.fillna("not stated")
    where = runs.groupby(runs.question.map(fields))[names].mean()
    where.index = [f"{name} (n = {(fields == name).sum()})" for name in where.index]
    sns.heatmap(where, annot=True, fmt=".2f", cmap="cividis", vmin=0, vmax=1, cbar_kws={"label": "share"}, ax=right)
    right.set(ylabel="", xlabel="found")
else:
    right.axis("off")
plots.save(fig, "together", params.output)

# %% [markdown]
# ### The hardest questions
#
# By the score of a question's key points (0 to 1; from 0.5 on a point counts as stated), mean over the answers of all systems that
# generate.

# %%
generated = long[long.system != "retrieval"]
covered = generated.points.map(np.mean).groupby(generated.question).mean()
worst = known.loc[covered.nsmallest(8).index, [n for n in ("subfield", "difficulty") if n in known]]
plots.show_texts(worst.assign(covered=covered.round(2)).reset_index(), ["question", *worst.columns, "covered"])

# %% [markdown]
# ## Examples
#
# From the runs, of each category the answers rated most severe first, one question each. Highlighted: the passages that broke a rule, or, for what an answer
# says, those farthest from question, reference and key points, which are where to look and no proof.

# %%
spread = long.explode("labels").dropna(subset="labels").reset_index(drop=True)
spread = spread.join(pd.json_normalize(spread.labels))
mine = spread[spread.system.str.startswith("run")].sort_values("severity", ascending=False, kind="stable")
shown = [mine[mine.category == name].drop_duplicates("question").head(params.examples) for name in names]
shown = pd.concat(shown).assign(error=lambda t: t.category + ": " + t.subtype + ", severity " + t.severity.astype(str))
shown["error"] += " (" + shown.who + ")"
show.show_marked(shown)

# %% [markdown]
# ## What to try
#
# For the run with the fewest errors found, every category whose interval of the share found lies above 5 % (the figure of shares). The
# remedy belongs to its commonest subtype. These are suggestions to be measured; nothing here shows that one works.

# %%
total = by_item.mean(axis=1).groupby("system").mean()
best = total[total.index.str.startswith("run")].idxmin()
advice = remedies.suggest(spread[spread.system == best], shares.xs(best, level="system"))
display(Markdown(f"For **{best}**:"), plots.show_texts(advice, list(advice.columns)))

# %% [markdown]
# ## Limits
#
# - The test half was written for this purpose, each bad answer to show one error. Real answers fail in several ways at once, and the
#   real outputs above are all of a tiny model. How much is found in a good model's answers was not measured.
# - The good answers of both halves share a terse voice, so good answers in another voice may be accused more often.
# - The marks are a language model's. F1 says how far we agree with it.
# - The classifier learnt from the development half alone, few answers of each category. Subtypes of content and severity are rough.
# - Usual words, terms and neighbouring questions are those of this project's 302 questions, and the limits of likeness are MiniLM's: with
#   questions of your own or another encoder, measure first. Where questions list no key points, the reference's sentences are these.
# - With the embedded model these shares show the method; none is Falcon-RW-1B's.

# %%
tables = {
    "detection": detected["rules and classifier"],
    "real": on_real,
    "shares": shares.reset_index(),
    "change": change.reset_index(),
}
for name, table in tables.items():
    results.write_table(table, name, params.output)
ours = detected["rules and classifier"].value
numbers = {"macro_f1_score": ours["macro"], "form_f1_score": ours["macro of form"], "accused_score": ours["good, accused"]}
numbers |= {f"{name.replace(' ', '_')}_errors_score": value for name, value in (total * len(names)).items()}
row = detected["rules and classifier"].loc["macro"]
headline = (
    f"Errors are found with a macro-F1 of {row.value:.2f} ({row.low:.2f} to {row.high:.2f}) on {len(test)} judged answers."
)
print("Saved", results.write_results(params, numbers, headline=headline).relative_to(ROOT))
