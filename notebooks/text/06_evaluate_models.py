# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Evaluate the models
#
# **Question.** On questions that none of them has seen, is the tuned model better than the base, and than simply looking up
# the nearest known question?
#
# **In:** the test part (`01_prepare_data`), the base model, each run's weights from each of its seeds (`04_train_lora`), good answers
# that were written in other words than ours (`data/raw/judged_answers.jsonl`).
# **Out:** every answer, its scores, and paired verdicts. **Needs:** about 7 minutes and 2 GB with the embedded model.

# %%
import math
import random

import matplotlib.pyplot as plt
import pandas as pd
import seaborn as sns
from IPython.display import Markdown, display

from interviewmate_utils import answering, data, errors, lora, metrics, models, plots, provenance, results, similarity, stats
from interviewmate_utils.config import ROOT, EvaluateModels
from interviewmate_utils.errors import judge, measure

# %% tags=["parameters"]
profile: str = "quick"  # names the folders below data/processed/ and reports/
model: str = "data/models/embedded"  # base; a folder, or owner/name@revision
device: str = "auto"  # cuda, else mps, else cpu
runs: list = ["A"]  # trained runs
seeds: list = [13]  # with which each of them was trained
encoder: str = "embedded-minilm"  # for retrieval and semantic similarity
items: int = 8  # test questions used; 0: all
shots: int = 2  # worked examples before each question, for the base once more; 0: not at all
max_new_tokens: int = 48  # length limit of an answer
batch_size: int = 48  # answers generated together
repetition_penalty: float = 1.2  # applied to every generating system alike; 1.0: none
resamples: int = 999  # of bootstrap and permutation test
seed: int = 13  # of both

# %%
params = EvaluateModels.from_cell(globals())
plots.setup()
provenance.overview(params)

# %% [markdown]
# ## The questions, and the retrieval baseline
#
# Retrieval answers with the stored answer of the nearest training question. It generates nothing, but its sentences are ours:
# a tuned model that does not beat it gives no reason, on these scores, to prefer it to a lookup.

# %%
dataset = data.load_parts(params.processed)
test = dataset["test"].select(range(params.items or len(dataset["test"])))
questions, references = list(test[data.QUESTION]), list(test[data.ANSWER])
encoder_model = similarity.load_encoder(params.encoder)
stored = similarity.embed(encoder_model, list(dataset["train"][data.QUESTION]))
index, cosine = similarity.nearest(similarity.embed(encoder_model, questions), stored)
answers = {("retrieval", 0): [dataset["train"][int(i)][data.ANSWER] for i in index]}
Markdown(f"{len(test)} questions. The nearest training question has a median cosine of **{pd.Series(cosine).median():.2f}**.")

# %% [markdown]
# ## Generate
#
# Every model answers the same prompts, greedily, in batches that share a KV cache. The perplexity of the reference answer
# needs no generation. It is per token of this tokenizer, over the reference as cut at `max_length`, so it compares models
# within a profile only.
#
# The base is the control: what it scores is earned without our answers. It answers once more with worked examples before each question
# (few-shot), the same for all, drawn from the training part. It has no training seed; 0 stands for that.

# %%
tokenizer = models.load_tokenizer(params.model)
rows = [dict(row) for row in test.select_columns(["input_ids", "labels"])]
options = {"max_new_tokens": params.max_new_tokens, "batch_size": params.batch_size}
options |= {"repetition_penalty": params.repetition_penalty}
worked, losses = answering.worked_examples(list(dataset["train"]), params.shots, params.seed), {}

# %%
folders = {("base", 0): None} | {(f"run {run}", k): params.weights_of(run, k) for run in params.runs for k in params.seeds}
for (name, k), folder in folders.items():
    print(name, f"seed {k}" if folder else "")
    where = params.model, *([folder] if folder else []), params.device
    generator = (lora.load_trained if folder else models.load_model)(*where)
    losses[name, k] = answering.answer_loss(generator, rows, tokenizer.pad_token_id)
    answers[name, k] = answering.generate_answers(generator, tokenizer, questions, **options)
    if name == "base" and params.shots:
        answers["few-shot base", 0] = answering.generate_answers(generator, tokenizer, questions, examples=worked, **options)

# %%
perplexity = pd.Series({n: math.exp(sum(s for s, _ in v) / sum(c for _, c in v)) for n, v in losses.items()})
perplexity = perplexity.groupby(level=0, sort=False).mean().rename("perplexity")
perplexity.round(1).to_frame("perplexity of the reference answer (lower is better), mean over seeds")

# %% [markdown]
# ## Read the answers
#
# No score replaces reading. Open a question: the reference, and each system's answer, of a run the one with its first seed.

# %%
names = sorted(dict.fromkeys(name for name, _ in answers), key=["retrieval"].count)  # retrieval last
first = {name: next(told for (who, _), told in answers.items() if who == name) for name in names}
plots.show_items(pd.DataFrame({"question": questions, "reference": references} | first), "question")

# %% [markdown]
# ## Score
#
# What each score is made of stands beside it: the same name with another tokeniser is another score.

# %%
metrics.describe().style.hide()

# %% [markdown]
# What can each score tell? A metric card: the mean score of an identical answer, of a good answer in other words, of the reference of another
# question, and of an empty answer. A score is of use as far as the second line is above the third.

# %%
judged = errors.read_judged()
good = judged[judged.primary.isna()]
others = [*good.reference[1:], good.reference.iloc[0]]
said = {"identical": good.reference, "in other words": good.answer, "of another question": others, "empty": [""] * len(good)}
card = {name: metrics.score_items([*told], [*good.reference]).mean() for name, told in said.items()}
for name, told in said.items():
    card[name]["similarity"] = metrics.semantic_similarity(encoder_model, [*told], [*good.reference]).mean()
card = pd.DataFrame(card).T
card.round(3)

# %% [markdown]
# And what does length do? Every other of the good answers in other words, cut after a share of their words, beyond 100 % followed by words of another
# answer; dashed, the same with the references of other questions. A score that rises along the dashed line pays for length alone.

# %%
shown = ["rouge1", "rougeL", metrics.meteor_name(), "similarity"]
fig, axes = plt.subplots(1, len(shown), figsize=(11, 2.8), sharey=True)
for told, style in (([*good.answer], "-"), (others, "--")):
    lengths = metrics.by_length(encoder_model, told[::2], [*good.reference][::2], [0.25, 0.5, 1.0, 1.5, 2.0])
    for ax, score in zip(axes, shown, strict=True):
        ax.plot(100 * lengths.index, lengths[score], style, color="black")
        ax.set(title=score, xlabel="words kept (%)", ylim=(0, 1), ylabel="mean score" if score == shown[0] else "")
plots.save(fig, "length", params.output)

# %%
tables = []
for (name, k), told in answers.items():
    table = metrics.score_items(told, references)
    table["answer_words"] = [len(text.split()) for text in told]
    sizes = [len(tokenizer(" " + text)["input_ids"]) for text in told]
    table["at_limit"] = [float(name != "retrieval" and size >= params.max_new_tokens) for size in sizes]
    if (name, k) in losses:
        table["reference_loss_nats"] = [total / count for total, count in losses[name, k]]
    ids = list(test["id"]) if "id" in test.column_names else None
    tables.append(table.assign(system=name, seed=k, item=range(len(table)), id=ids))
scores = pd.concat(tables, ignore_index=True)
everything = [text for told in answers.values() for text in told]
scores["similarity"] = metrics.semantic_similarity(encoder_model, everything, references * len(answers))

# %% [markdown]
# Means over questions and seeds, corpus BLEU (0 to 1) over all questions at once. Exact match is expected to be zero: nobody words a
# spoken answer of this length twice. Compare the answers' lengths before the scores: an answer that is merely longer gains
# on one that stops after a sentence. `at_limit` is the share of answers that were cut at `max_new_tokens`. `bleu_p` compares corpus BLEU
# with the base's by paired approximate randomisation; it is exploratory and not corrected.

# %%
measures = [*metrics.ROUGE, metrics.meteor_name(), "exact_match", "similarity", "answer_words", "at_limit"]
summary = scores.groupby("system")[measures].mean().loc[names]
trainings = {name: [told for (who, _), told in answers.items() if who == name] for name in names}
bleu = {n: metrics.compare_corpus_bleu(trainings["base"], told, references, 999, params.seed) for n, told in trainings.items()}
summary.insert(4, "corpus_bleu", pd.Series({name: found["second"] for name, found in bleu.items()}))
summary.insert(5, "bleu_p", pd.Series({name: found["p"] for name, found in bleu.items()}))
summary.insert(len(summary.columns), "perplexity", perplexity)
print("sacrebleu:", metrics.corpus_bleu(references, references)[1])
summary.round(3)

# %% [markdown]
# ## Verdicts on the primary score
#
# ROUGE-L was chosen beforehand. Each run is compared with the base on the same questions, a question's score being the mean over the
# run's seeds, and these comparisons form one Holm family. Everything else on this page is exploratory. `chance_of_best` is the share of
# bootstrap samples of the questions in which a system's mean is the highest.

# %%
wide = scores.pivot_table(index="item", columns="system", values=metrics.PRIMARY)[names]
run_names = [name for name in names if name.startswith("run")]
verdicts = stats.verdicts(wide[["base", *run_names]], "base", params.resamples, params.seed)
best = stats.chance_of_best(wide, params.resamples, params.seed)
verdicts.join(best).T.map(lambda value: f"{value:.4g}" if isinstance(value, float) else value)

# %% [markdown]
# The same in sentences that can be quoted, each with what a reader needs to doubt it.

# %%
sentences = [stats.sentence(name, "base", "ROUGE-L", row) for name, row in verdicts.iterrows()]
Markdown("\n".join(f"- {text}" for text in sentences))

# %%
fig, (left, right) = plt.subplots(1, 2, figsize=(11, 3))
means = stats.mean_intervals(wide, params.resamples, params.seed)
plots.interval_bars(means, "mean", "low", "high", "ROUGE-L F1 (mean, 95 % BCa interval)", left)
plots.interval_bars(verdicts, "difference", "low", "high", "difference to the base (95 % BCa interval)", right)
right.axvline(0, color=plots.colour("base"), ls="--")
plots.save(fig, "comparison", params.output)

# %% [markdown]
# Intervals of means overlap easily although paired differences are clear; the right panel is the comparison.
#
# ## Spread from training seeds, beside spread from questions
#
# The intervals above say what other questions would have given. Another training of the same run gives other weights, too:
# its standard deviation is estimated here from few seeds, so its own interval (chi-square) is wide. The last two columns
# compare: the standard error that a run's mean has from its seeds (`sd` over the root of their number), and from the questions.
# A mixed model over questions, seeds and both at once says the same in one: its intervals speak of other questions and other trainings (empty where so few
# scores do not settle it).

# %%
per_seed = scores.groupby(["system", "seed"])[metrics.PRIMARY].mean().rename("mean").reset_index()
per_seed = per_seed[per_seed.system.str.startswith("run")]
seed_spread = pd.DataFrame({run: stats.spread(group["mean"]) for run, group in per_seed.groupby("system")}).T
seed_spread["se_seeds"] = seed_spread.sd / seed_spread.n**0.5
seed_spread["se_questions"] = wide.std(ddof=1) / len(wide) ** 0.5
tested = scores[scores.system.isin(["base", *run_names])].rename(columns={metrics.PRIMARY: "score"})
mixed, parts = stats.mixed_model(tested, "base")
display(seed_spread.round(4), mixed.round(4))
Markdown("Standard deviation from " + ", ".join(f"{name} {value:.4f}" for name, value in parts.items()) + ".")

# %%
fig, ax = plt.subplots(figsize=(8, 0.5 * len(seed_spread) + 1.2))
plots.interval_bars(means.loc[seed_spread.index], "mean", "low", "high", "ROUGE-L F1", ax)
strokes = {"marker": "|", "size": 16, "linewidth": 2, "color": "black", "jitter": False, "zorder": 3}
sns.stripplot(data=per_seed, x="mean", y="system", order=list(seed_spread.index), ax=ax, **strokes)
ax.set(xlabel="ROUGE-L F1: mean with 95 % interval over questions; strokes: single seeds", ylabel="")
plots.save(fig, "seeds", params.output)

# %% [markdown]
# ## Exploratory: item by item
#
# A mean hides whether a system is a little better everywhere or much better on a few questions.

# %%
fig, ax = plt.subplots(figsize=(8, 3.2))
palette = {name: plots.colour(name) for name in names}
long = wide.melt(var_name="system", value_name="score")
sns.stripplot(data=long, x="score", y="system", hue="system", palette=palette, alpha=0.6, legend=False, ax=ax)
ax.set(xlabel="ROUGE-L F1 of a question's answers (mean over seeds)", ylabel="", xlim=(0, None))
plots.save(fig, "items", params.output)

# %% [markdown]
# Are the gains the same everywhere? By subfield, difficulty and type of the question, with the number of questions; under 10 there is no
# interval (a cross). So many groups are looked at that some will stand out by chance.

# %%
labels = [name for name in ("subfield", "difficulty", "question_type") if name in test.column_names]
groups = stats.by_group(wide[["base", *run_names]], "base", test.to_pandas()[labels], seed=params.seed)
fig, axes = plt.subplots(1, max(1, len(labels)), figsize=(13, 4.5), squeeze=False)
for ax, label in zip(axes[0], labels, strict=False):
    plots.group_differences(groups, label, ax)
fig.supxlabel("difference to the base in ROUGE-L F1 (95 % BCa interval)")
fig.legend(*axes[0][0].get_legend_handles_labels(), loc="outside upper right", ncols=len(run_names))
plots.save(fig, "groups", params.output)

# %% [markdown]
# ## Answer quality, as far as it can be rated
#
# Accuracy, relevance, completeness and tone, 1 to 5 each, estimated by a small model from the signals of `07_analyse_errors`: key points
# stated and contradicted, and others. A rating is worth what its rank correlation with the authors' ratings on other answers is worth, so
# that stands above each panel: on the test half, where answers were written to be good or bad, which flatters it, and on 100 real outputs,
# which are nearer to these (nan: all of them were rated alike). Where it is low, or its interval wide, do not read the panel. A grey one
# has not been shown to say anything about real outputs.

# %%
judging, valid = judge.fitted(encoder_model, params.seed), {}
for part in ("test", "model"):
    group = judged[judged.part == part].reset_index(drop=True)
    valid[part] = measure.validity(group, judging.judge(judge.items_of(group)), params.resamples, params.seed)
told = pd.DataFrame([(who, i, text) for (who, _), texts in answers.items() for i, text in enumerate(texts)])
told.columns = ["system", "item", "answer"]
known = test.to_pandas().rename(columns={data.QUESTION: "question", data.ANSWER: "reference"})
rated = told.join(known[known.columns.intersection(["question", "reference", "key_points"])], on="item")
rated = rated.join(judging.judge(judge.items_of(rated))[[*judge.RATINGS]])
ratings = rated.groupby(["system", "item"])[[*judge.RATINGS]].mean()
validity = pd.concat(valid, names=["answers", "rating"])
validity.round(2)

# %%
fig, axes = plt.subplots(1, 4, figsize=(13, 3.4), sharex=True, sharey=True)
for ax, name in zip(axes, judge.RATINGS, strict=True):
    shown = stats.mean_intervals(ratings[name].unstack("system")[names], params.resamples, params.seed)
    plots.interval_bars(shown, "mean", "low", "high", "", ax)
    half, real = (table.loc[name] for table in valid.values())
    said = [f"{row.correlation:.2f} ({row.low:.2f} to {row.high:.2f})" for row in (half, real)]
    ax.set_title(f"{name}\ntest half: {said[0]}\nreal: {said[1]}", fontsize=10)
    ax.set_facecolor("white" if real.low > 0 else "lightgray")
fig.supxlabel("rating, 1 to 5 (mean over questions, 95 % BCa interval); above, its rank correlation with the authors' ratings")
plots.save(fig, "ratings", params.output)

# %% [markdown]
# ## Against retrieval
#
# The second half of the question: against retrieval, and retrieval and the few-shot base against the base. All this stands outside the Holm
# family above, so it is exploratory. Beside it, what the answers of randomly drawn training questions score: how much of ROUGE-L is our
# register, whatever the subject.

# %%
pairs = [(name, "retrieval") for name in run_names] + [(name, "base") for name in names if name not in ("base", *run_names)]
explored = [(a, b, stats.verdicts(wide[[b, a]], b, params.resamples, params.seed).loc[a]) for a, b in pairs]
drawn = random.Random(params.seed).choices(list(dataset["train"][data.ANSWER]), k=len(test))
chance = metrics.score_items(drawn, references)[metrics.PRIMARY].mean()
lines = [f"{stats.sentence(a, b, 'ROUGE-L', row)} (exploratory, not corrected)" for a, b, row in explored]
Markdown("\n".join(f"- {line}" for line in [*lines, f"Answers to randomly drawn training questions score {chance:.3f}."]))

# %% [markdown]
# ## Limits
#
# - ROUGE, BLEU and METEOR reward shared words. An answer that is right in other words scores low, one that is wrong in our
#   words scores high.
# - Lengths differ between systems, and ROUGE-L F1 rewards an answer for being about as long as the reference: read no
#   difference between systems of different length as one of content.
# - Greedy decoding, and few training seeds: the intervals of the verdicts speak about other questions; what another training
#   would give is only bounded roughly.
# - With the embedded model these scores show the method; none is Falcon-RW-1B's.

# %%
told = {f"{name}, seed {k}" if k else name: texts for (name, k), texts in answers.items()}
answers_table = pd.DataFrame({"question": questions, "reference": references} | told)
tables = {"scores": scores, "summary": summary, "verdicts": verdicts, "answers": answers_table, "means": means}
for name, table in (tables | {"seeds": seed_spread, "groups": groups, "card": card, "validity": validity}).items():
    results.write_table(table, name, params.output)
numbers = {f"{n.replace(' ', '_')}_rouge_l_score": wide[n].mean() for n in names}
numbers |= {f"{n.replace(' ', '_')}_perplexity_score": value for n, value in perplexity.items()}
numbers |= {f"{n.replace(' ', '_')}_p": verdicts.p_holm[n] for n in run_names}
numbers |= {f"{n.replace(' ', '_')}_d": verdicts.d_z[n] for n in run_names}
numbers |= {"items_count": len(test), "random_answer_rouge_l_score": chance}
print("Saved", results.write_results(params, numbers, headline="\n".join([*sentences, *lines])).relative_to(ROOT))
