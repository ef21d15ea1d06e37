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
