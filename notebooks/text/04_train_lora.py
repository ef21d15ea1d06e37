# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Train a LoRA run
#
# **Question.** How far does a low-rank adapter move the base model towards our answers, at what cost, and when does it stop
# learning?
#
# **In:** the prepared corpus (`01_prepare_data`) and a base model. **Out:** an adapter, its loss curves and its cost.
# **Needs:** the embedded model about 3 minutes and 2 GB; Falcon-RW-1B about an hour and 6 GB on two cores with bf16.

# %%
import matplotlib.pyplot as plt
import pandas as pd
from IPython.display import Markdown

from interviewmate_utils import data, lora, models, plots, provenance, results, training
from interviewmate_utils.config import ROOT, TrainLora

# %% tags=["parameters"]
profile: str = "quick"  # names the folders below data/processed/ and reports/
run: str = "A"  # name of the run; its parameters stand in notebooks/params/runs/
corpus: str = "original"  # prepared corpus; its folder says which base its tokens belong to
device: str = "auto"  # cuda, else mps, else cpu; "cuda*4": four processes; "cuda*4+fsdp": weights sharded
variants: list = []  # none: LoRA; dora, rslora, pissa, olora, adalora, 4bit, full, checkpointing
rank: int = 8  # of the two LoRA matrices
alpha: int = 16  # the update is scaled by alpha / rank
dropout: float = 0.05  # on the adapter's input
target_modules: list = ["query_key_value"]  # linear layers that get an adapter
learning_rate: float = 2e-4  # peak, after the warm-up
weight_decay: float = 0.0  # of AdamW
epochs: float = 0.2  # passes over the training part; may be a fraction
batch_size: int = 4  # examples an optimiser step
warmup_steps: int = 5  # linear, before the cosine
seed: int = 13  # of adapter, dropout and order

# %%
params = TrainLora.from_cell(globals())
plots.setup()
provenance.overview(params)

# %% [markdown]
# ## Data and schedule
#
# Steps follow from data, batch and epochs. On a small corpus a warm-up that is usual elsewhere takes a large share of them,
# so the share is shown. The run is evaluated and checkpointed twice an epoch, and ends early when a third of its evaluations
# (`patience`: two at least, those of three epochs at most) have brought no better validation loss.

# %%
dataset = data.load_parts(params.processed)
plan = training.schedule(len(dataset["train"]), params.epochs, params.batch_size)
facts = {name: len(dataset[name]) for name in ("train", "validation")} | plan
pd.Series(facts | {"warm-up, share of all steps": params.warmup_steps / plan["total_steps"]}).to_frame("value").round(2)

# %% [markdown]
# ## What is trained
#
# LoRA freezes the base and learns a low-rank update of the named layers; `variants` may change the update's form or start, or
# train all weights (`full`). As a check on what "rank" and "targets" mean, the same choice is counted on Falcon-RW-1B at full
# size, on the meta device, against the number that follows from its shape.

# %%
trainable, total = lora.count_run(params)
counts = pd.DataFrame({"trainable": [trainable], "all": [total]}, index=[params.model])

# %% [markdown]
# A matrix of rank r between a inputs and b outputs has r (a + b) parameters; the sum over layers must equal the count.

# %%
# inputs plus outputs of each layer, in units of the hidden size
ends = {"query_key_value": 1 + 3, "dense": 1 + 1, "dense_h_to_4h": 1 + 4, "dense_4h_to_h": 4 + 1}
shape = models.FALCON_RW_1B
if set(params.target_modules) <= ends.keys():  # else the base is not a Falcon
    counts.loc["Falcon-RW-1B"] = full = lora.count_run(params, shape)
    layers = sum(ends[target] for target in params.target_modules) * shape["num_hidden_layers"]
    plain = not {"dora", "adalora", "full"} & set(params.variants)  # these train more than the two matrices
    assert not plain or full[0] == params.rank * layers * shape["hidden_size"], full
counts.assign(share=(counts.trainable / counts["all"]).map("{:.4%}".format))

# %% [markdown]
# ## Train
#
# Step 0 is the untouched base: LoRA's second matrix starts at zero, so the adapted model begins as the base itself. A killed run goes on
# from its last whole checkpoint; one with other parameters, data or weights starts afresh.

# %%
record = training.train(params)
log = pd.DataFrame(record["log"]).astype(float)
loss_before, best = log.validation_loss.iloc[0], log.loc[log.validation_loss.iloc[1:].idxmin()]

# %% [markdown]
# What it cost: tokens a second count what the model reads, padding left out, evaluations and checkpoints included in the
# time.

# %%
tokens_per_second = record["input_tokens"] / record["seconds"]
cost = {"optimiser steps": record["steps"], "seconds": record["seconds"], "input tokens per second": tokens_per_second}
cost |= {"peak memory (GB)": record["peak_memory_gb"], "resumed": record["resumed"]}
cost |= {"device": record["device"], "data type of the base": record["dtype"]}
pd.Series(cost, name="value").to_frame()

# %% [markdown]
# ## Loss and learning rate
#
# Training loss should fall throughout; validation loss falls, then turns where the run begins to memorise. The kept adapter
# is the one at the lowest validation loss.

# %%
fig, (ax, rate) = plt.subplots(1, 2, figsize=(11, 3.6), width_ratios=(2, 1))
for name, column in {"train": "train_loss", "validation": "validation_loss"}.items():
    points = log[["epoch", column]].dropna()
    ax.plot(points.epoch, points[column], label=name, color=plots.colour(name), marker="o" if name == "validation" else "")
ax.axhline(loss_before, color=plots.colour("base"), ls="--", label="validation, base")
ax.set(xlabel="epoch", ylabel="loss (nats per answer token)")
ax.legend()
points = log[["epoch", "learning_rate"]].dropna()
rate.plot(points.epoch, points.learning_rate, color=plots.colour("train"))
rate.set(xlabel="epoch", ylabel="learning rate")
plots.save(fig, "curves", params.output)

# %% [markdown]
# The same by epoch. The training loss is a mean over the epoch, while the model was changing; the validation loss is that
# of the epoch's last evaluation, with dropout off. A validation loss below the training loss of the same epoch is therefore no contradiction.

# %%
epochs_table = training.epoch_table(log)
epochs_table.style.format("{:.3f}", subset=["train_loss", "validation_loss"]).format("{:.2e}", subset=["learning_rate"])

# %%
Markdown(
    f"Best validation loss **{best.validation_loss:.3f}** nats per answer token at step {best.step:.0f} of {record['steps']} "
    f"(base {loss_before:.3f}). "
    f"{'The loss was still at its lowest when the schedule ended. ' if best.step == record['steps'] else ''}"
    f"Training {'ended early' if record['steps'] < plan['total_steps'] else 'ran to its end'}."
)

# %% [markdown]
# ## The weights that are kept
#
# They are those at the lowest validation loss. Loaded as any reader would load them, they must show it again.

# %%
tokenizer = models.load_tokenizer(params.model)
kept = lora.load_trained(params.model, params.trained, params.hardware.kind)
loss_after = training.mean_loss(kept, dataset["validation"], tokenizer.pad_token_id)
rounding = 0.1 if "4bit" in params.variants else 0.01  # it learnt on a base in 4 bits, and is added to the whole one
assert abs(loss_after - best.validation_loss) < rounding, "the weights kept are not those that were best"
size_mb = sum(file.stat().st_size for file in params.trained.glob("*.safetensors")) / 1e6
Markdown(f"Validation loss of the kept weights, measured anew: **{loss_after:.3f}**. They take {size_mb:.2f} MB.")

# %% [markdown]
# ## Limits
#
# - One seed: the spread between seeds is shown where all runs are compared (`13_summarise`).
# - A lower loss on our answers says that the model has come nearer to our wording. Whether its answers are right is judged
#   elsewhere, and a model of a few million parameters will not be.
# - On a CPU the peak memory is the process's own, the libraries included; on CUDA it is that of the tensors.

# %%
results.write_table(log, "history", params.output)
metrics = {"trainable_count": trainable, "trainable_share": trainable / total, "best_step_steps": int(best.step)}
metrics |= {"best_epoch_epochs": best.epoch, "train_tps": tokens_per_second, "peak_memory_gb": record["peak_memory_gb"]}
metrics |= {"steps_steps": record["steps"], "loss_before_nats": loss_before, "loss_after_nats": loss_after}
metrics |= {} if record["resumed"] else {"train_time_s": record["seconds"]}  # a resumed run does not know its whole time
print("Saved", results.write_results(params, metrics).relative_to(ROOT))
