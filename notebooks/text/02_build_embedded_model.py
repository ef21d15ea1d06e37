# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Build the embedded model
#
# **Question.** Can a Falcon small enough for two CPU cores learn English from what every installation already holds, and
# how far is it from a useful model?
#
# **In:** docstrings of the installed packages; the tracked weights in `data/models/embedded/`. **Out:** a model built here
# from scratch, and its score beside the tracked one on packages that neither has read. **Needs:** 30 s at the defaults,
# a minute or two over all packages, about 80 minutes for the tracked weights (`notebooks/params/pretraining/embedded.yaml`).

# %%
import json
import random

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from IPython.display import Markdown
from transformers import FalconConfig, FalconForCausalLM

from interviewmate_utils import answering, docstrings, model_card, models, plots, pretrain, provenance, results
from interviewmate_utils.config import EMBEDDED_MODEL, ROOT, TRIAL_RECORD, BuildEmbeddedModel

# %% tags=["parameters"]
profile: str = "quick"  # names the folder below reports/
build_dir: str = ""  # where the model goes; empty: data/processed/<profile>_model
packages: list = ["scikit-learn"]  # whose docstrings are read; ["*"]: every permissively licensed one
held_out: list = ["networkx", "seaborn"]  # never trained on
held_out_documents: int = 30  # of each held-out package scored here; 0: all
vocab_size: int = 2048  # of the byte-level BPE
hidden: int = 128  # width
layers: int = 2  # depth
dropout: float = 0.1  # on the residual path
steps: int = 10  # optimiser steps; the tracked weights took hundreds of times as many
batch: int = 8  # sequences of 256 tokens a step
muon_lr: float = 0.02  # for the matrices; AdamW takes 0.003 for the rest
average_from: float = 0.6  # averaging of weights starts at this share of the steps; 0: none
seed: int = 0  # of initialisation, order and validation sample

# %%
params = BuildEmbeddedModel.from_cell(globals())
plots.setup()
build = ROOT / (params.build_dir or f"data/processed/{params.profile}_model")
tracked_folder = ROOT / EMBEDDED_MODEL
provenance.overview(params)

# %% [markdown]
# ## The text: docstrings under permissive licences
#
# Sources are parsed, not imported. Code, parameter lists, tables and near-repeats go; paragraphs of prose stay. Held-out
# packages come last, so that a paragraph which mostly repeats one of a training package is dropped.

# %%
installed = docstrings.list_packages()
known = {p.name for p in installed}
wanted = known if params.packages == ["*"] else set(params.packages)
if missing := (wanted | set(params.held_out)) - known:
    raise ValueError(f"not installed, or not under a permissive licence: {', '.join(sorted(missing))}")
seen: set[int] = set()
texts = docstrings.prose_of([p for p in installed if p.name in wanted - set(params.held_out)], seen)
held = docstrings.prose_of([p for p in installed if p.name in params.held_out], seen)

# %%
words = {name: sum(len(d.split()) for d in documents) for name, documents in (texts | held).items()}
sources = pd.DataFrame([(p.name, p.version, p.licence) for p in installed], columns=["package", "version", "licence"])
sources = sources.assign(words=sources.package.map(words)).dropna().sort_values("words", ascending=False)
sources = sources.astype({"words": int}).assign(use=lambda t: t.package.isin(held).map({True: "held out", False: "train"}))
sources.head(15).reset_index(drop=True)

# %% [markdown]
# A few packages give most of the words, so the model will sound like them. A small sample of docstrings is put aside to
# watch the training.

# %%
documents = [d for name in sorted(texts) for d in texts[name]]
chosen = set(random.Random(params.seed).sample(range(len(documents)), min(400, len(documents) // 40)))
validation = [documents[i] for i in sorted(chosen)]
documents = [d for i, d in enumerate(documents) if i not in chosen]
train_words = sum(len(d.split()) for d in documents)
Markdown(f"**{train_words:,} words** in {len(documents):,} docstrings to train on; {len(validation)} docstrings validate.")

# %% [markdown]
# A glance at what is left tells more than a count: it should read as prose, if dry.

# %%
sample = random.Random(params.seed).sample(documents, 4)
plots.show_texts(pd.DataFrame({"a docstring, after cleaning": [s[:400] for s in sample]}), ["a docstring, after cleaning"])

# %% [markdown]
# ## Tokenizer and architecture
#
# A small vocabulary spends few parameters and more tokens a word. The modules must be Falcon-RW-1B's, name for name, so
# that whatever is done to the small model below works on the large one.

# %%
tokenizer = pretrain.train_tokenizer(documents, params.vocab_size)
encoded = pretrain.encode_documents(tokenizer, documents)
model = pretrain.build_falcon(len(tokenizer), params.hidden, params.layers, 8, params.dropout, params.seed)
characters_per_token = sum(map(len, documents)) / sum(map(len, encoded))
Markdown(f"{model.num_parameters():,} parameters; {characters_per_token:.2f} characters per token.")

# %% [markdown]
# The check compares parameter names with a configuration of Falcon-RW-1B shrunk to the same depth: one name too many or
# too few stops the notebook.

# %%
full = FalconConfig(**models.FALCON_RW_1B | {"hidden_size": 64, "num_hidden_layers": params.layers, "vocab_size": 64})
reference = {name for name, _ in FalconForCausalLM(full).named_parameters()}
own = {name for name, _ in model.named_parameters()}
assert own == reference, sorted(own ^ reference)
Markdown(f"All {len(own)} parameter names of {params.layers} layers agree with Falcon-RW-1B's.")

# %% [markdown]
# ## Pretrain
#
# We expect the loss to fall fast at first (frequent words), then slowly. The run resumes from its checkpoint when it was
# interrupted.

# %%
build.mkdir(parents=True, exist_ok=True)
curve = pretrain.pretrain(
    model,
    encoded,
    steps=params.steps,
    batch=params.batch,
    length=256,
    muon_lr=params.muon_lr,
    adam_lr=0.003,
    weight_decay=0.1,
    seed=params.seed,
    average_from=params.average_from,
    checkpoint=build / "checkpoint.pt",
    validate=lambda m: pretrain.nats_per_character(m, tokenizer, validation),
    every=min(100, max(5, params.steps // 2)),
    report=lambda row: print("  step {step}: {validation:.3f} nats per character".format(**row)),
)

# %% [markdown]
# ## Score on packages that nobody trained on
#
# Nats per character compare models with different vocabularies; lower is better. We expect the model built here at the
# defaults to be far behind the tracked one, which trained far longer. The trial recipe is an earlier attempt
# (`params/pretraining/trial_recipe.yaml`): less text, no dropout, no averaging, fewer steps; so the gain over it is that of
# all these together, not of one.

# %%
held = {name: d if params.held_out_documents == 0 else d[: params.held_out_documents] for name, d in held.items()}
characters = [sum(map(len, documents)) for documents in held.values()]


def scored(scored_model, its_tokenizer):
    each = {name: pretrain.nats_per_character(scored_model, its_tokenizer, documents) for name, documents in held.items()}
    return each | {"both": float(np.average([*each.values()], weights=characters))}


here = scored(model, tokenizer)
recipe = {"optimiser": f"Muon {params.muon_lr} and AdamW 0.003, weight decay 0.1", "dropout": params.dropout}
recipe |= {"batch": f"{params.batch} x 256 tokens", "average of weights from": params.average_from, "dtype": "bf16 autocast"}
record = {"parameters": model.num_parameters(), "vocab_size": len(tokenizer), "words": train_words, "steps": params.steps}
record |= {"tokens": curve[-1]["tokens"], "recipe": recipe, "held_out_nats_per_char": here, "curve": curve}
record |= {"sources": sources[sources.use == "train"].drop(columns="use").to_dict("records")}
model_card.save_build(model, tokenizer, build, record)

# %% [markdown]
# The tracked weights are first checked against their SHA-256 sums, then scored on the same documents, here and now.

# %%
changed = model_card.verify_build(tracked_folder)
assert not changed, f"tracked files differ from their SHA256SUMS: {', '.join(changed)}"
tracked = json.loads((tracked_folder / "training.json").read_text())
trial = json.loads((ROOT / TRIAL_RECORD).read_text())
tracked_model, tracked_tokenizer = models.load_model(EMBEDDED_MODEL, "cpu"), models.load_tokenizer(EMBEDDED_MODEL)
now = scored(tracked_model, tracked_tokenizer)

# %%
scores = pd.DataFrame(
    {"built here": here, "tracked, scored here": now, "tracked, as recorded": tracked["held_out_nats_per_char"]}
)
scores["trial recipe, as recorded"] = pd.Series(trial["held_out_nats_per_char"])
gain = 1 - tracked["held_out_nats_per_char"]["both"] / trial["held_out_nats_per_char"]["both"]
scores.round(4).rename_axis("nats per character")

# %% [markdown]
# "As recorded" was measured when the weights were made, on all held-out docstrings of the versions installed then; where
# the two columns of the tracked model differ, the sample or the versions do.

# %%
Markdown(
    f"The tracked model needs **{gain:.1%} fewer nats per character** than the trial recipe on {' and '.join(params.held_out)} "
    f"together, as recorded when both were trained ({trial['tokens'] / 1e6:.1f} million tokens read by the trial recipe, "
    f"{tracked['tokens'] / 1e6:.1f} million by the tracked model). "
    f"Scored here on {sum(map(len, held.values())):,} docstrings it needs {now['both']:.4f} nats per character."
)

# %%
fig, ax = plt.subplots()
series = {
    "trial recipe": (trial["curve"], "#7F7F7F"),
    "tracked model": (tracked["curve"], "#0072B2"),
    "built here": (curve, "#D55E00"),
}
for name, (points, colour) in series.items():
    line = pd.DataFrame(points)
    ax.plot(line.tokens / 1e6, line.validation, label=name, color=colour, marker="." if len(line) < 8 else "")
ax.set(xlabel="tokens read (millions, log scale)", ylabel="validation loss\n(nats per character)", xscale="log")
ax.legend()
plots.save(fig, "pretraining", params.output)

# %% [markdown]
# Each curve is on held-out lines of the packages it trained on, which differ between the recipes: the table above, not
# this figure, compares them. The last point of a curve is the averaged model, the others are not.

# %% [markdown]
# ## What it writes
#
# Fluency is not knowledge. The continuations below are greedy, from the tracked model before any fine-tuning.

# %%
prompts = ["What is the purpose of regularization in machine learning?", "How does a random forest make a prediction?"]
answers = answering.generate_answers(tracked_model, tracked_tokenizer, prompts, 40, 2, 1.2, report=lambda _: None)
plots.show_texts(pd.DataFrame({"question": prompts, "continuation": answers}), ["question", "continuation"])

# %% [markdown]
# ## Limits
#
# - **This model shows the method, not a coach.** No result of it may be read as Falcon-RW-1B's.
# - Docstrings describe software; interview answers argue. The base has hardly seen an argument.
# - Licences are taken from the packages' own metadata. Another set of installed versions gives another text, so scores
#   agree with the recorded ones only as far as the lock file does.

# %%
results.write_table(sources, "sources", params.output)
metrics = {"words_words": train_words, "parameters_count": model.num_parameters(), "trained_tokens": curve[-1]["tokens"]}
metrics |= {"built_nats_per_char": here["both"], "tracked_nats_per_char": now["both"], "gain_over_trial_share": gain}
metrics |= {"tracked_parameters_count": tracked_model.num_parameters()}
print("Saved", results.write_results(params, metrics).relative_to(ROOT))
