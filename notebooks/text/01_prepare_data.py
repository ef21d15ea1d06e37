# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Prepare the interview data
#
# **Question.** Are the question-answer pairs fit to train and to judge a model on, and which of them may each step see?
#
# **In:** one JSONL or CSV file with a question and an answer column. **Out:** train, validation and test parts, tokenised,
# under `data/processed/<profile>/`; statistics as tables and figures. **Needs:** about half a minute and 1 GB of memory.

# %%
import matplotlib.pyplot as plt
import pandas as pd
import seaborn as sns
from IPython.display import Markdown

from interviewmate_utils import data, models, plots, provenance, results
from interviewmate_utils.config import ROOT, PrepareData
from interviewmate_utils.rows import DataError, read_rows, write_quarantine

# %% tags=["parameters"]
profile: str = "quick"  # names the folders below data/processed/ and reports/
raw_file: str = "data/raw/interview_qa.jsonl"  # JSONL or CSV, relative to the repository
question_column: str = "question"  # its name in the file
answer_column: str = "answer"  # its name in the file
stratify_by: str = "subfield"  # column kept in proportion over the parts; ignored where absent
strict: bool = True  # stop at bad rows; False sets them aside in a quarantine file
model: str = "data/models/embedded"  # whose tokenizer counts; a folder, or owner/name@revision
max_length: int = 512  # tokens; 256 for Falcon-RW-1B, whose words cost fewer
encoder: str = "embedded-minilm"  # sentence encoder that finds near duplicates
near_duplicate: float = 0.90  # cosine from which two questions count as the same
validation_share: float = 0.15  # of all rows
test_share: float = 0.15  # of all rows
seed: int = 13  # of the split

# %%
params = PrepareData.from_cell(globals())
plots.setup()
provenance.overview(params)

# %% [markdown]
# ## Read and validate
#
# Text is normalised (Unicode NFC, invisible and control characters out, white space folded). We expect no problem in our
# own corpus; in a file from elsewhere we expect some, and each is named with its line, field and reason.

# %%
path = ROOT / params.raw_file
rows, problems = read_rows(path, params.question_column, params.answer_column)
vectors = data.embed(data.load_encoder(params.encoder), [row[data.QUESTION] for row in rows])
kept, repeats = data.drop_duplicates(rows, vectors, params.near_duplicate, path.name)
problems += repeats
pd.DataFrame([(p.line, p.field, p.reason) for p in problems], columns=["line", "field", "reason"]).head(20)

# %% [markdown]
# Strict mode stops here at any problem. Otherwise every problem goes into `quarantine.jsonl` with the line's content, and
# the remaining rows go on.

# %%
if problems and params.strict:
    raise DataError(problems)
write_quarantine(problems, params.output / "quarantine.jsonl")
rows, vectors = [rows[i] for i in kept], vectors[kept]
Markdown(f"**{len(rows)} rows** go on, **{len({p.line for p in problems})} lines** are set aside.")

# %% [markdown]
# ## Split
#
# Stratified, in the shares above, fixed by the seed. The split is refused if a question of one part has a near duplicate in
# another: a model must not be judged on a question that it has seen in other words. Near duplicates are gone by now, so the
# check fails only if that step failed; the figure shows the margin.

# %%
parts = data.split_rows(rows, params.validation_share, params.test_share, params.stratify_by, params.seed)
leakage = data.check_leakage(rows, parts, vectors, params.near_duplicate)
frame = pd.DataFrame(rows).assign(part="")
for part, indices in parts.items():
    frame.loc[indices, "part"] = part
frame["part"].value_counts()[["train", "validation", "test"]].to_frame("rows")

# %%
fig, ax = plt.subplots()
nearest = leakage.groupby(["part", "line"], as_index=False).cosine.max()
sns.histplot(data=nearest, x="cosine", hue="part", binwidth=0.02, multiple="stack", palette=plots.FIXED, ax=ax)
ax.axvline(params.near_duplicate, color="black", ls="--")
ax.set(xlabel="cosine to the nearest question of an earlier part (from the dashed line on: refused)", ylabel="questions")
plots.save(fig, "leakage", params.output)

# %% [markdown]
# The distance between the bars and the dashed line is the safety margin. The closest pairs are worth reading: they show
# what the threshold lets through.

# %%
closest = leakage.head(5).round(3)
plots.show_texts(closest, ["part", "question", "other", "nearest", "cosine"])

# %% [markdown]
# ## Tokenise with the model's own tokenizer
#
# Prompt and answer become one sequence; the loss will see the answer alone. A sequence that does not fit loses its end,
# and with it the end-of-text label, so that the model does not learn to stop in mid-sentence.

# %%
tokenizer = models.load_tokenizer(params.model)
dataset = data.build_dataset(rows, parts, tokenizer, params.max_length)
data.save_dataset(dataset, params.processed)
tokens = pd.concat([part.select_columns(["length", "full_length", "truncated"]).to_pandas() for part in dataset.values()])
truncated = int(tokens.truncated.sum())
Markdown(f"**{truncated} of {len(tokens)}** sequences ({truncated / len(tokens):.1%}) exceed {params.max_length} tokens.")

# %%
fig, ax = plt.subplots()
sns.histplot(tokens.full_length, ax=ax, color=plots.colour("train"), binwidth=20)
ax.axvline(params.max_length, color="black", ls="--")
ax.set(xlabel="tokens of question and answer (the dashed line cuts)", ylabel="examples", xlim=(0, None))
plots.save(fig, "token_lengths", params.output)

# %% [markdown]
# ## What the corpus covers
#
# A corpus that is thin in one subfield or all easy would make every later comparison a comparison on something else.

# %%
labels = [c for c in ("subfield", "difficulty", "question_type") if c in frame and frame[c].nunique() < 30]
if labels:
    fig, axes = plt.subplots(1, len(labels), figsize=(11, 4), squeeze=False)
for name, ax in zip(labels, axes[0] if labels else [], strict=True):
    counts = pd.crosstab(frame[name], frame["part"])[["train", "validation", "test"]]
    counts.plot.barh(stacked=True, ax=ax, color=[plots.colour(c) for c in counts], legend=False, width=0.8)
    ax.set(xlabel="questions", ylabel="", title=name.replace("_", " "))
if labels:
    fig.legend(*axes[0][0].get_legend_handles_labels(), loc="outside upper right", ncols=3)
    plots.save(fig, "coverage", params.output)

# %% [markdown]
# Difficulty should not be a stand-in for subfield: each cell of the next table counts the questions of one subfield at one
# difficulty.

# %%
columns = [c for c in ("subfield", "difficulty") if c in labels]
coverage = pd.crosstab(frame[columns[0]], frame[columns[-1]], margins=True) if columns else pd.DataFrame()
coverage

# %% [markdown]
# ## Lengths and technical terms
#
# Short questions and answers dense in technical terms are what an interview sounds like. The density counts terms of the
# tracked glossary `data/raw/technical_terms.txt` per 100 words; it measures vocabulary, not correctness.

# %%
terms = (ROOT / "data/raw/technical_terms.txt").read_text().split("\n")
frame["question_chars"] = frame[data.QUESTION].str.len()
frame["answer_words"] = frame[data.ANSWER].str.split().str.len()
frame["term_density"] = data.term_density(frame[data.ANSWER], [t for t in terms if t])
summary = frame[["question_chars", "answer_words", "term_density"]].describe().loc[["min", "25%", "50%", "75%", "max"]]
summary.round(1)

# %%
fig, axes = plt.subplots(1, 3, figsize=(11, 3.2))
names = {"question_chars": "characters per question", "answer_words": "words per answer"}
for ax, (name, label) in zip(axes, (names | {"term_density": "technical terms per 100 words"}).items(), strict=True):
    sns.histplot(frame[name], ax=ax, color=plots.colour("train"))
    ax.set(xlabel=label, ylabel="examples" if ax is axes[0] else "")
plots.save(fig, "lengths", params.output)

# %% [markdown]
# If subfields differ in term density, a score that rewards vocabulary would favour some of them.

# %%
group = columns[0] if columns else "part"
fig, ax = plt.subplots()
order = frame.groupby(group)["term_density"].median().sort_values().index
sns.boxplot(data=frame, y=group, x="term_density", order=order, ax=ax, color=plots.colour("retrieval"), width=0.6)
ax.set(xlabel="technical terms per 100 words of the answer", ylabel="")
plots.save(fig, "term_density", params.output)

# %% [markdown]
# ## Limits
#
# - Near duplicates are found on questions alone, by one encoder at one threshold; two questions that ask the same thing in
#   very different words pass.
# - The glossary is ours and short: a low density may mean an unlisted vocabulary.
# - Subfield, difficulty and type are labels of a language model, checked by another; no person rated them
#   (`data/README.md`).

# %%
results.write_table(leakage, "leakage", params.output)
metrics = {f"{part}_count": len(indices) for part, indices in parts.items()}
metrics |= {"set_aside_count": len({p.line for p in problems}), "truncated_share": truncated / len(tokens)}
metrics |= {"median_question_chars": summary.loc["50%", "question_chars"], "median_length_tokens": tokens.length.median()}
metrics |= {"nearest_across_parts_score": leakage.cosine.max(), "median_answer_words": summary.loc["50%", "answer_words"]}
print("Saved", results.write_results(params, metrics).relative_to(ROOT))
