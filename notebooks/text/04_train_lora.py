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
import time

import matplotlib.pyplot as plt
import pandas as pd
import torch
from IPython.display import Markdown

from interviewmate_utils import answering, data, lora, models, plots, provenance, results
from interviewmate_utils.config import ROOT, TrainLora, digest

# %% tags=["parameters"]
profile: str = "quick"  # names the folders below data/processed/ and reports/
run: str = "A"  # name of the run; its parameters stand in notebooks/params/runs/
model: str = "data/models/embedded"  # base; a folder, or owner/name@revision
device: str = "auto"  # cuda, else mps, else cpu
rank: int = 8  # of the two LoRA matrices
alpha: int = 16  # the update is scaled by alpha / rank
dropout: float = 0.05  # on the adapter's input
target_modules: list = ["query_key_value"]  # linear layers that get an adapter
learning_rate: float = 2e-4  # peak, after the warm-up
epochs: float = 0.2  # passes over the training part; may be a fraction
batch_size: int = 4  # examples an optimiser step
micro_batch: int = 4  # examples a forward pass; batch_size is a multiple of it
warmup_steps: int = 5  # linear, before the cosine
eval_steps: int = 5  # optimiser steps between evaluations, each with a checkpoint
seed: int = 13  # of adapter, dropout and order

# %%
params = TrainLora.from_cell(globals())
plots.setup()
torch.manual_seed(params.seed)
provenance.overview(params)

# %% [markdown]
# ## Data and schedule
#
# Steps follow from data, batch and epochs. On a small corpus a warm-up that is usual elsewhere takes a large share of them,
# so the share is shown. Early stopping waits three epochs, counted in evaluations, for a better validation loss.

# %%
dataset = data.load_parts(params.processed)
plan = lora.schedule(len(dataset["train"]), params.epochs, params.batch_size, params.eval_steps)
facts = {name: len(part) for name, part in dataset.items() if name != "test"} | plan
pd.Series(facts | {"warm-up, share of all steps": params.warmup_steps / plan["total_steps"]}).to_frame("value").round(2)

# %% [markdown]
# ## What is trained
#
# LoRA freezes the base and learns a low-rank update of the named layers. As a check on what "rank" and "targets" mean, the
# same choice is counted on Falcon-RW-1B at full size, on the meta device, against the number that follows from its shape.

# %%
tokenizer = models.load_tokenizer(params.model)
base = models.load_model(params.model, params.device)
dtype, where = base.dtype, base.device.type
adapted = lora.add_lora(base, params.rank, params.alpha, params.dropout, params.target_modules)
trainable, total = lora.count_parameters(adapted)

# %% [markdown]
# A matrix of rank r between a inputs and b outputs has r (a + b) parameters; the sum over layers must equal the count.

# %%
# inputs plus outputs of each layer, in units of the hidden size
ends = {"query_key_value": 1 + 3, "dense": 1 + 1, "dense_h_to_4h": 1 + 4, "dense_4h_to_h": 4 + 1}
counts = pd.DataFrame({"trainable": [trainable], "all": [total]}, index=[params.model])
if set(params.target_modules) <= ends.keys():  # else the base is not a Falcon
    counts.loc["Falcon-RW-1B"] = full = lora.full_size_counts(params.rank, params.target_modules)
    shape = models.FALCON_RW_1B
    layers = sum(ends[target] for target in params.target_modules) * shape["num_hidden_layers"]
    assert full[0] == params.rank * layers * shape["hidden_size"], full
counts.assign(share=(counts.trainable / counts["all"]).map("{:.4%}".format))

# %% [markdown]
# ## Before training
#
# The validation loss of the untouched base is the line that the curves start from: LoRA's second matrix starts at zero, so
# the adapted model begins as the base itself.

# %%
validation = [dict(row) for row in dataset["validation"].select_columns(["input_ids", "labels"])]
losses = answering.answer_loss(adapted, validation, tokenizer.pad_token_id)
loss_before = sum(s for s, _ in losses) / sum(n for _, n in losses)
Markdown(f"Validation loss of the base: **{loss_before:.3f}** nats per answer token ({where}, {dtype}).")

# %% [markdown]
# ## Train
#
# A killed run goes on from its last complete checkpoint; one with other parameters, data or weights starts afresh.

# %%
trainer = lora.make_trainer(adapted, dataset, params, tokenizer.pad_token_id, params.output / "checkpoints")
source = digest(ROOT / params.model) if (ROOT / params.model).is_dir() else params.model
started = time.perf_counter()
read_before = lora.train(trainer, params.model_dump() | {"data": digest(params.processed), "weights": source})
seconds = time.perf_counter() - started

# %% [markdown]
# What it cost: tokens a second count what the model reads, padding left out, evaluations and checkpoints included in the
# time.

# %%
log = lora.history(trainer)
peak_gb = models.peak_memory_gb(where)
tokens_per_second = (trainer.state.num_input_tokens_seen - read_before) / seconds
cost = {"optimiser steps": trainer.state.global_step, "seconds": seconds, "input tokens per second": tokens_per_second}
cost |= {"peak memory (GB)": peak_gb, "resumed": read_before > 0}
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
epochs_table = lora.epoch_table(log)
epochs_table.style.format("{:.3f}", subset=["train_loss", "validation_loss"]).format("{:.2e}", subset=["learning_rate"])

# %%
best_step = int((trainer.state.best_model_checkpoint or "-0").rsplit("-", 1)[1])
Markdown(
    f"Best validation loss **{trainer.state.best_metric:.3f}** at step {best_step} of {trainer.state.global_step} "
    f"(base {loss_before:.3f}). "
    f"{'It had not yet stopped learning. ' if best_step == trainer.state.global_step else ''}"
    f"Training {'ended early' if trainer.state.global_step < plan['total_steps'] else 'ran to its end'}."
)

# %% [markdown]
# ## Keep the adapter
#
# The adapter of the best checkpoint goes to `adapter/`; checkpoints are only for interrupted runs and go once it is kept.

# %%
kept = answering.answer_loss(trainer.model, validation, tokenizer.pad_token_id)
loss_after = sum(s for s, _ in kept) / sum(n for _, n in kept)
assert abs(loss_after - trainer.state.best_metric) < 0.01, "the adapter to keep is not the one that was best"
lora.save_adapter(trainer.model, params.output / "adapter")
size_mb = (params.output / "adapter" / "adapter_model.safetensors").stat().st_size / 1e6
Markdown(f"Validation loss of the kept adapter, measured anew: **{loss_after:.3f}**. It takes {size_mb:.2f} MB.")

# %% [markdown]
# ## Limits
#
# - One seed: the spread between seeds is not in these curves.
# - A lower loss on our answers says that the model has come nearer to our wording. Whether its answers are right is judged
#   elsewhere, and a model of a few million parameters will not be.
# - On a CPU the peak memory is the process's own, the libraries included; on CUDA it is that of the tensors.

# %%
results.write_table(log, "history", params.output)
metrics = {"trainable_count": trainable, "trainable_share": trainable / total, "best_step_steps": best_step}
metrics |= {"train_tps": tokens_per_second, "peak_memory_gb": peak_gb, "steps_steps": trainer.state.global_step}
metrics |= {"loss_before_nats": loss_before, "loss_after_nats": loss_after}
metrics |= {} if read_before else {"train_time_s": seconds}  # a resumed run does not know its whole time
print("Saved", results.write_results(params, metrics).relative_to(ROOT))
lora.discard_checkpoints(params.output / "checkpoints")
