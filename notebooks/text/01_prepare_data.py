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
# **In:** a JSONL or CSV file with a question and an answer column, and if wanted a second one that only enlarges the training
# part. **Out:** train, validation and test parts, tokenised, under `data/processed/<profile>/<corpus>/`; statistics as
# tables and figures. **Needs:** about half a minute and 1 GB of memory.

# %%
from pathlib import Path
from tempfile import TemporaryDirectory

import matplotlib.pyplot as plt
import pandas as pd
import seaborn as sns
from IPython.display import Markdown

from interviewmate_utils import data, models, plots, provenance, results, similarity, splits
from interviewmate_utils.config import ROOT, PrepareData
from interviewmate_utils.rows import DataError, read_rows, write_quarantine

# %% tags=["parameters"]
profile: str = "quick"  # names the folders below data/processed/ and reports/
corpus: str = "original"  # names the folder below data/processed/<profile>/
raw_file: str = "data/raw/interview_qa.jsonl"  # JSONL or CSV, relative to the repository
extra_file: str = ""  # further rows for training; validation and test stay those of raw_file
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
paths = [ROOT / name for name in (params.raw_file, params.extra_file) if name]
read = [read_rows(path, params.question_column, params.answer_column) for path in paths]
rows, problems = [row for found, _ in read for row in found], [problem for _, found in read for problem in found]
encoder = similarity.load_encoder(params.encoder)
pairs = similarity.find_pairs([row[data.QUESTION] for row in rows], encoder, params.near_duplicate)
kept, unfit = splits.keep_rows(rows, pairs, params.near_duplicate)
problems += unfit
pd.DataFrame([(p.file, p.line, p.field, p.reason) for p in problems], columns=["file", "line", "field", "reason"]).head(20)

# %% [markdown]
# Strict mode stops here at any problem. Otherwise every problem goes into `quarantine.jsonl` with the line's content, and
# the remaining rows go on.

# %%
if problems and params.strict:
    raise DataError(problems)
write_quarantine(problems, params.output / "quarantine.jsonl")
aside = len({(p.file, p.line) for p in problems})
rows, pairs = [rows[i] for i in kept], splits.renumber(pairs, kept)
Markdown(f"**{len(rows)} rows** go on, **{aside} lines** are set aside.")

# %% [markdown]
# ## Near neighbours
#
# Two questions at or above the dashed line would count as one. A follow-up may be near the question that it follows up; no
# other pair may. A corpus whose bars crowd at the line would be many wordings of few questions.

# %%
nearest = pd.concat([pairs.groupby(end).cosine.max() for end in ("first", "second")]).groupby(level=0).max()
fig, ax = plt.subplots()
sns.histplot(nearest, binwidth=0.02, ax=ax, color=plots.colour("train"))
ax.axvline(params.near_duplicate, color="black", ls="--")
ax.set(xlabel="cosine to the nearest other question (from the dashed line on: the same question)", ylabel="questions")
plots.save(fig, "neighbours", params.output)

# %% [markdown]
# The 20 closest pairs are worth reading: they show what the threshold lets through.

# %%
closest = pairs.head(20).round(3)
for end in ("first", "second"):
    closest[end] = [rows[i][data.QUESTION] for i in closest[end]]
plots.show_texts(closest, ["cosine", "first", "second"])

# %% [markdown]
# ## Split
#
# Stratified, in the shares above, fixed by the seed. A conversation (a question and its follow-ups) is never torn apart: the
# follow-ups of validation and test questions are the part `multi_turn`, and no other row of theirs is trained on.

# %%
roots, _ = splits.find_roots(rows)
shares = params.validation_share, params.test_share
parts = splits.split_rows(rows, roots, *shares, params.stratify_by, params.seed, Path(params.extra_file).name)
frame = pd.DataFrame({name: [row.get(name) for row in rows] for name in ("subfield", "difficulty", "question_type")})
frame = frame.dropna(axis=1, how="all").assign(part="")
for part, indices in parts.items():
    frame.loc[indices, "part"] = part
sizes = frame["part"].value_counts()[list(parts)].to_frame("rows")
sizes.assign(conversations=[len({roots[i] for i in parts[part]}) for part in parts])

# %% [markdown]
# The split is refused if a question of the training part has a near duplicate, a parent or a follow-up in another part: a model
# must not be judged on what it has seen. Near duplicates are gone by now, so the check fails only if a step before it did.

# %%
leakage = splits.check_leakage(rows, roots, parts, pairs, params.near_duplicate)
plots.show_texts(leakage.head(5).round(3), ["cosine", "part", "question", "other", "nearest"])

# %% [markdown]
# The closest pairs on two sides of the split, above, are what a model could profit from most.

# %% [markdown]
# ## Tokenise with the model's own tokenizer
#
# Prompt and answer become one sequence, before a follow-up also the conversation up to it; the loss will see the answer
# alone. A sequence that does not fit loses the beginning of the conversation, then the answer's end, and with that the
# end-of-text label, so that the model does not learn to stop in mid-sentence.

# %%
tokenizer = models.load_tokenizer(params.model)
with TemporaryDirectory() as scratch:
    data.save_dataset(
        data.build_dataset(rows, parts, tokenizer, params.max_length, Path(scratch)), params.processed, params.model
    )
dataset = data.load_parts(params.processed)
tokens = pd.concat([part.select_columns(["length", "full_length", "truncated"]).to_pandas() for part in dataset.values()])
truncated = int(tokens.truncated.sum())
cut = int((tokens.full_length > params.max_length).sum()) - truncated
Markdown(
    f"Of {len(tokens)} sequences, **{truncated}** ({truncated / len(tokens):.1%}) lose the end of their answer at "
    f"{params.max_length} tokens; {cut} more lose only the beginning of the conversation before them."
)

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
if set(frame.get("difficulty", ())) == set(levels := ["easy", "medium", "hard"]):
    frame["difficulty"] = pd.Categorical(frame["difficulty"], levels)  # in this order, not the alphabet's
labels = [name for name in frame.drop(columns="part") if frame[name].nunique() < 30]
if labels:
    fig, axes = plt.subplots(1, len(labels), figsize=(11, 4), squeeze=False)
for name, ax in zip(labels, axes[0] if labels else [], strict=True):
    counts = pd.crosstab(frame[name], frame["part"])[list(parts)]
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
frame["question_chars"] = [len(row[data.QUESTION]) for row in rows]
frame["answer_words"] = [len(row[data.ANSWER].split()) for row in rows]
frame["term_density"] = data.term_density([row[data.ANSWER] for row in rows], data.read_terms())
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
sns.boxplot(data=frame, y=group, x="term_density", order=order, ax=ax, color=plots.colour("train"), width=0.6)
ax.set(xlabel="technical terms per 100 words of the answer", ylabel="")
plots.save(fig, "term_density", params.output)

# %% [markdown]
# ## Limits
#
# - Near duplicates are found on questions alone, by one encoder at one threshold; two questions that ask the same thing in
#   very different words pass. In a large corpus (`similarity.ALL_PAIRS`) only
#   pairs with enough wording in common are compared.
# - The glossary is ours and short: a low density may mean an unlisted vocabulary.
# - Subfield, difficulty and type are labels of a language model, checked by another; no person rated them
#   (`data/README.md`).

# %%
results.write_table(leakage, "leakage", params.output)
metrics = {f"{part}_count": len(indices) for part, indices in parts.items()}
metrics |= {"set_aside_count": aside, "truncated_share": truncated / len(tokens)}
metrics |= {"median_question_chars": summary.loc["50%", "question_chars"], "median_length_tokens": tokens.length.median()}
metrics |= {"median_answer_words": summary.loc["50%", "answer_words"]}
metrics |= {} if leakage.empty else {"nearest_across_parts_score": leakage.cosine.max()}
print("Saved", results.write_results(params, metrics).relative_to(ROOT))
