# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Audit published claims
#
# **Question.** Five published descriptions of earlier work of this kind state figures. Which of them follow from what the same
# documents state, which do not, and which cannot be told?
#
# **In:** the figures as published, each with the reason for our verdict (`data/raw/published_claims.yaml`); what this repository
# published itself. **Out:** one row per claim: what we compute, the verdict, the reason. **Needs:** a minute and 1 GB; no weights
# are loaded, since models are counted on the meta device.
#
# A verdict is about a figure, not about people: one that does not follow may be a slip of the pen, another version of a run, or
# rest on a definition that was left out.

# %%
import json
import math

import numpy as np
import pandas as pd
from IPython.display import Markdown, display
from scipy import integrate
from scipy import stats as distributions
from transformers import BloomConfig, FalconConfig, GPT2Config, GPTNeoConfig, LlamaConfig, OPTConfig

from interviewmate_utils import audit, data, lora, models, plots, results, stats, training
from interviewmate_utils.config import CAVEAT, ROOT, AuditClaims

# %% tags=["parameters"]
profile: str = "quick"  # names the folder below reports/
claims: str = "data/raw/published_claims.yaml"  # figures as published, and why we judge them so
measured: str = "reports/published/embedded.json"  # what this repository published itself
seed: int = 13  # of a random half of made-up data

# %%
params = AuditClaims.from_cell(globals())
plots.setup()
found, agrees = audit.Audit(ROOT / params.claims), audit.rounds_to
pd.Series([claim["document"] for claim in found.claims.values()]).value_counts(sort=False).to_frame("claims")

# %% [markdown]
# ## What can be counted
#
# The number of a model's parameters follows from its configuration. We build each on the meta device, where a tensor has a
# shape but no memory, and count; LoRA adds rank x (inputs + outputs) to each layer that it adapts.

# %%
attention = ["query_key_value"]
linear = [*attention, "dense", "dense_h_to_4h", "dense_4h_to_h"]
counted = {}
for rank, targets in [(8, attention), (4, attention), (2, attention), (8, linear), (16, linear)]:
    falcon = models.outline(FalconConfig(**models.FALCON_RW_1B))
    total = falcon.num_parameters()
    counted[rank, len(targets)] = lora.count_parameters(lora.add_lora(falcon, rank, 2 * rank, 0.0, targets))
shares = {key: 100 * trained / everything for key, (trained, everything) in counted.items()}
names = [f"r = {rank}, {'attention alone' if targets == 1 else 'all linear layers'}" for rank, targets in counted]
trainable = [f"{trained:,}" for trained, _ in counted.values()]
pd.DataFrame({"trainable": trainable, "percent of all": [*shares.values()]}, index=names).round(4)

# %%
said, words = found.stated("1"), models.FALCON_RW_1B["vocab_size"]
found.judge("1", (total, words) == (said["parameters"], said["vocabulary"]), f"{total:,}; vocabulary {words:,}")
said, ours = found.stated("2"), {name: counted[rank, 1][0] for name, rank in [("A", 8), ("B", 4), ("C", 2)]}
other = 32 * 4 * 8 * (4096 + 4096)
told = ", ".join(f"{run} {count:,}" for run, count in ours.items())
found.judge(
    "2", ours["A"] == said["A"], f"{told}; A is {shares[8, 1]:.4f} %. r = 8 on 32 layers of four 4,096 x 4,096: {other:,}"
)
said = found.stated("13")
fits = agrees(shares[16, 4], said["before_percent"], 1e-4) and agrees(shares[8, 4], said["now_percent"], 1e-4)
found.judge("13", fits, f"{counted[16, 4][0]:,} ({shares[16, 4]:.4f} %) and {counted[8, 4][0]:,} ({shares[8, 4]:.4f} %)")
found.show("1", "2", "13")

# %% [markdown]
# ## Splits, steps and time
#
# A schedule follows from the number of examples, the batch and the epochs. Whether early stopping could ever act follows from it, too.

# %%
said = found.stated("3")
ours = [100 * part / said["all"] for part in said["parts"]]
fits = sum(said["parts"]) == said["all"] and all(agrees(a, b, 0.1) for a, b in zip(ours, said["percent"], strict=True))
found.judge("3", fits, " / ".join(f"{share:.1f}" for share in ours) + " %")
said = found.stated("4")
steps = training.schedule(said["examples"], said["epochs"], said["batch"])["total_steps"]
share = 100 * said["warmup_steps"] / steps
found.judge("4", agrees(share, said["percent"], 1), f"{steps} steps in all; {said['warmup_steps']} of them are {share:.1f} %")
said = found.stated("5")
per_epoch, looks = math.ceil(said["examples"] / said["batch"]), steps // said["save_steps"]
able = [k for k in range(1, looks + 1) if (k - 1) * said["save_steps"] >= said["patience_epochs"] * per_epoch]
told = f"{looks} looks in {steps} steps; three epochs without a gain can be seen at the last {len(able)} of them only; "
found.judge("5", None, told + f"three looks are {3 * said['save_steps'] / per_epoch:.1f} epochs")
found.show("3", "4", "5")

# %% [markdown]
# The warm-up is a larger share than stated, and when early stopping can act depends on what patience counts. The enhanced run next.

# %%
said = found.stated("14")
steps = training.schedule(said["examples"], said["epochs"], said["batch"])["total_steps"]
speeds = [count / (60 * said["minutes"]) for count in (said["epochs"] * said["examples"], said["steps"])]
fits = (
    steps == said["steps"] and agrees(speeds[0], said["samples_per_s"], 1e-3) and agrees(speeds[1], said["steps_per_s"], 1e-3)
)
found.judge("14", fits, f"{steps} steps, {speeds[0]:.3f} samples/s, {speeds[1]:.4f} steps/s")
said = found.stated("16")
growth = 100 * (said["now"] / said["before"] - 1)
found.judge("16", agrees(growth, said["percent"], 1), f"+{growth:.1f} %")
said = found.stated("16b")
told = "; ".join(f"{name} {said['here'][name]:,} and {said['overview'][name]:,}" for name in said["here"])
found.judge("16b", None, told)
found.show("14", "16", "16b")

# %% [markdown]
# ## Losses
#
# transformers reports as `train_loss` the mean over all steps of a run, which is not the loss at its end. Two of the claims make
# sense when read so.

# %%
said = found.stated("6")
fifth, fall = 5 * said["final"] - sum(said["by_epoch"]), 100 * (1 - said["by_epoch"][3] / said["by_epoch"][2])
told = f"from epoch 3 to 4 it falls by {fall:.0f} %; a mean of {said['final']} over five epochs needs {fifth:.2f} in the fifth"
found.judge("6", 0 < fifth <= said["by_epoch"][3] and fall < 10, told)
said = found.stated("15")
better, fall = (100 * (1 - b / a) for a, b in [(said["before"], said["final"]), said["epoch_1"]])
found.judge(
    "15", agrees(better, said["percent"], 1) and agrees(fall, said["epoch_1_percent"], 0.1), f"{better:.1f} % and {fall:.1f} %"
)
said = found.stated("17")
first, (highest, lowest) = 2 * said["final"] - sum(said["epoch_2"]) / 2, said["epoch_1"]
found.judge("17", lowest <= first <= highest, f"a mean of {said['final']} over both epochs needs {first:.2f} in the first")
found.show("6", "15", "17")

# %% [markdown]
# ## Scores and their statistics
#
# A share of 46 questions is a number of 46ths. A paired t on n items gives d = t / sqrt(n) and an interval around the mean difference,
# and for scores of 0 or 1 it cannot exceed what all gains and no loss would give.

# %%
scores = found.stated("7")
n, exact = scores["items"], {run: scores[run]["exact_match"] for run in "ABC"}
near = {run: round(share * n) for run, share in exact.items()}
ratios = [scores[name]["rouge2"] / scores[name]["rouge1"] for name in ("base", *"ABC")]
told = ", ".join(f"{run} {count}/{n} = {count / n:.3f}" for run, count in near.items())
others = [(scores[run]["rouge2"] - exact[run]) / (scores[run]["rouge1"] - exact[run]) for run in "ABC"]
shares_of = " and ".join(f"{min(of):.0%} to {max(of):.0%}" for of in (ratios, others))
told += f"; ROUGE-2 is {shares_of} of ROUGE-1, with and without exact matches"
found.judge("7", all(agrees(near[run] / n, exact[run], 0.01) for run in exact), told)
said = found.stated("8")["percent"]
ours = {row: {m: 100 * (scores["A"][m] / scores[row][m] - 1) for m in said} for row in ("base", "B")}
told = "; ".join(f"A against {row}: " + ", ".join(f"+{gain:.0f}" for gain in gains.values()) for row, gains in ours.items())
found.judge("8", all(agrees(ours["B"][m], said[m], 1) for m in said), f"{told} %")
found.show("7", "8")

# %%
said, n = found.stated("9"), found.stated("9")["free"] + 1
gain = scores["A"]["rougeL"] - scores["base"]["rougeL"]
effect, half = said["t"]["rougeL"] / n**0.5, distributions.t.ppf(0.975, n - 1) * gain / said["t"]["rougeL"]
right = np.arange(n) < near["A"]
largest = right.mean() / stats.standard_error(right)
fits = (
    agrees(effect, said["d"], 0.02)
    and agrees(gain - half, said["interval"][0], 0.01)
    and agrees(gain + half, said["interval"][1], 0.01)
)
told = f"d = {effect:.2f}; interval {gain - half:.2f} to {gain + half:.2f}; power {stats.power(n, said['d']):.4f}; "
told += (
    f"with {right.sum()} of {n} right and a base with none, t of exact match is {largest:.2f}, and less with any of the base"
)
found.judge("9", fits and said["t"]["exact_match"] <= largest, told)
found.show("9")

# %% [markdown]
# ## Shares, speed and memory of a LoRA run
#
# LoRA leaves the forward pass as it is and adds to it; what it saves is gradients and optimiser state, and of the backward pass the
# part that makes gradients of weights.

# %%
trained, total = counted[8, 1]
frozen = total - trained
faster, slower = 6 * total / (4 * frozen + 6 * trained), total / frozen
found.judge("10", None, f"at most {faster:.2f} times as fast a step; an answer takes {slower:.4f} times the operations")
shares_told = found.stated("11")["percent"]
found.judge("11", sum(shares_told) == 100, f"sum {sum(shares_told)} %")
saved = {"all": 1 - (4 * total + 12 * trained) / (16 * frozen), "optimiser's state": 1 - trained / frozen}
told = "; ".join(f"{name}: {share:.2%} less" for name, share in saved.items())
found.judge("12", agrees(100 * saved["all"], found.stated("12")["percent"], 0.01), told)
found.judge("12b", True, "arXiv 2306.01116 is Penedo et al. 2023")
found.show("10", "11", "12", "12b")

# %% [markdown]
# ## Local models: size, memory, cost
#
# Weights alone take two bytes a parameter at fp16, which weights held in full cannot go below. Energy is power times time.

# %%
neo = {"hidden_size": 2048, "num_layers": 24, "num_heads": 16, "attention_types": [[["global", "local"], 12]]}
opt = {"hidden_size": 2560, "num_hidden_layers": 32, "ffn_dim": 10240, "num_attention_heads": 32, "word_embed_proj_dim": 2560}
tiny = {
    "hidden_size": 2048,
    "num_hidden_layers": 22,
    "num_attention_heads": 32,
    "num_key_value_heads": 4,
    "intermediate_size": 5632,
}
shapes = {"DialoGPT-medium": GPT2Config(n_embd=1024, n_layer=24, n_head=16), "GPT-Neo-1.3B": GPTNeoConfig(**neo)}
shapes |= {"OPT-2.7B": OPTConfig(**opt), "TinyLlama-1.1B": LlamaConfig(**tiny)}
shapes["BLOOM-560M"] = BloomConfig(hidden_size=1024, n_layer=24, n_head=16)
sizes = {name: models.outline(shape).num_parameters() for name, shape in shapes.items()}
sizes["Flan-T5-large"] = 783_150_080  # T5 1.1's shape in two stacks, no causal model: counted once from its configuration
pd.Series(sizes, name="parameters").map("{:,}".format).to_frame()

# %%
said = found.stated("18")
need = [said["bytes"] * said["times"] * billions for billions in said["billions"]]
most = said["gb"] / said["bytes"] / said["times"]
told = f"{need[0]:.1f} and {need[1]:.1f} GB; {said['gb']} GB hold {most:.1f} billion parameters"
found.judge("18", need[-1] <= said["gb"], told)
said = found.stated("19")["gb"]
weights = {name: 2 * sizes[name] / 2**30 for name in said}
told = ", ".join(f"{name} {size:.2f} GiB" for name, size in weights.items())
found.judge("19", all(weights[name] <= said[name] for name in said), f"{told} of weights alone")
said = found.stated("20")
told = ", ".join(f"{name} {sizes[name] / 1e6:,.0f} million" for name in said)
found.judge("20", all(agrees(sizes[name], said[name], 0.05 * said[name]) for name in said), told)
found.show("18", "19", "20")

# %%
said = found.stated("21")
costs = [said["watts"] * ms / 1000 / 3.6e6 * said["usd_per_kwh"] for ms in said["ms"]]
saved = [100 * (1 - cost / said["api_usd"]) for cost in costs]
daily = said["usd_a_year"] / (said["api_usd"] - costs[0]) / 365
fits = agrees(costs[0], said["usd"], 1e-7) and all(agrees(a, b, 0.1) for a, b in zip(saved, said["percent"], strict=True))
told = f"{costs[0]:.7f} $; savings {', '.join(f'{share:.1f}' for share in saved)} %; "
told += f"{said['usd_a_year']} $ a year need {daily:,.0f} requests a day"
found.judge("21", fits, told)
said = found.stated("24")
hourly = sorted(3.6e6 / ms for ms in said["ms"])
told = f"{hourly[0]:,.0f} to {hourly[-1]:,.0f} one at a time; {said['an_hour'][1]:,} take "
found.judge("24", None, told + f"{said['an_hour'][1] / hourly[-1]:.0f} to {said['an_hour'][1] / hourly[0]:.0f} at once")
found.show("21", "24")

# %% [markdown]
# ## Local models: the ranking
#
# Five ratings give a mean with four degrees of freedom; 1.96 is the factor for infinitely many. Two means with their errors give the
# chance that the one is really the higher, here from t distributions around each (a flat prior).

# %%
said = found.stated("22")
(opt_mean, opt_half, opt_n), (bloom_mean, bloom_half, bloom_n) = (said["scores"][k] for k in ("OPT-2.7B", "BLOOM (elsewhere)"))
opt_t, bloom_t = (
    distributions.t(opt_n - 1, opt_mean, opt_half / 1.96),
    distributions.t(bloom_n - 1, bloom_mean, bloom_half / 1.96),
)
deviations = [half / 1.96 * count**0.5 for half, count in ((opt_half, opt_n), (bloom_half, bloom_n))]
p = distributions.ttest_ind_from_stats(
    opt_mean, deviations[0], opt_n, bloom_mean, deviations[1], bloom_n, equal_var=False
).pvalue
lower = [said["first_estimates"][name.split(" (")[0]] - mean for name, (mean, _, _) in said["scores"].items()]
halves = [law.ppf(0.975) - law.mean() for law in (opt_t, bloom_t)]
told = f"with t OPT-2.7B {opt_mean} ± {halves[0]:.2f}, BLOOM (elsewhere) {bloom_mean} ± {halves[1]:.2f}, Welch p = {p:.2f}; "
told += f"lower by {', '.join(f'{value:.2f}' for value in lower)}"
found.judge("22", all(said["lower_by"][0] <= round(value) <= said["lower_by"][1] for value in lower), told)

# %%
best = integrate.quad(lambda x: opt_t.pdf(x) * bloom_t.cdf(x), -40, 60, points=[bloom_mean, opt_mean], limit=200)[0]
told = f"lower end with t {opt_t.ppf(0.025):.2f}; better than BLOOM (elsewhere) with a chance of {best:.2f}"
found.judge("23", opt_mean >= found.stated("23")["threshold"], told)
said = found.stated("26")
found.judge("26", None, f"{said['manual'] - said['server']:.2f} points apart")
found.show("22", "23", "26")

# %% [markdown]
# ## A quality score, and a text without meaning
#
# The published part of the score is a formula. We give it a text that says nothing.

# %%
said = found.stated("25")
text = " ".join([*said["words"], *["thing"] * said["ranges"]["technical"][0]]) + ". Yes."
score = audit.quality_score(text, said, "technical")
found.judge("25", None, f"{len(text.split())} words without meaning score {score:g} of 10 in this dimension")
Markdown(f"> {text[:160]} ...\n\nscores **{score:g}** of 10 in this dimension.")

# %% [markdown]
# ## Synthetic data, and what makes it easy
#
# Templates with slots repeat their words. A classifier of words then recognises the template, whatever the slot: the score on a
# random split says how few templates there are, not how well anything is understood.

# %%
kinds = {
    "technical": ["Explain how {} works.", "What are the limits of {}?"],
    "system": ["Design a service for {}.", "How would you scale {}?"],
}
kinds["behavioural"] = ["Tell me about a time you used {}.", "How did you convince others of {}?"]
accuracy = audit.accuracy_by_split(
    kinds, [f"{claim['document']} {number}" for number, claim in found.claims.items()], params.seed
)
told = ", ".join(f"{name} {share:.2f}" for name, share in accuracy.items())
found.judge("27", None, f"{told} (accuracy on a toy of ours with six templates and three classes)")
found.show("25", "27")

# %% [markdown]
# ## Named entities: what counting padding does
#
# Most words of a sentence belong to no entity, and a sentence padded to 75 tokens is mostly padding. Two taggers of the technical
# terms in our answers: one gives each word its usual tag in seven tenths of the sentences, the other says "no entity" throughout.

# %%
answers = pd.read_json(ROOT / "data/raw/interview_qa.jsonl", lines=True).answer
words = audit.tag_terms(answers, data.read_terms())
train, test = words[words.sentence % 10 < 7], words[words.sentence % 10 >= 7]
usual = train.groupby("word").label.agg(lambda labels: labels.value_counts().index[0])
tags = {"the usual tag of each word": test.word.map(usual).fillna("O"), "no entity anywhere": pd.Series("O", test.index)}
scored = pd.DataFrame({name: audit.score_tags(test, told, found.stated("28")["length"]) for name, told in tags.items()}).T
told = [
    f"{n}: {row['tokens and padding']:.3f} of tokens and padding, {row['whole entities']:.3f} of entities"
    for n, row in scored.iterrows()
]
found.judge("28", None, f"{'; '.join(told)} (F1; our answers, technical terms)")
scored.round(3)

# %% [markdown]
# ## A service: Little's law
#
# Requests in the system are arrivals per second times the time each stays (Little 1961).

# %%
said = found.stated("29")
found.judge("29", None, f"{said['requests_per_s'] * said['ms'] / 1000:.0f} requests at work at any time")
said = found.stated("30")
documents, down = said["requests_per_s"] * 86_400 / 1e6, 365 * 24 * 60 * (1 - said["uptime_percent"] / 100)
told = f"{documents:,.0f} million a day; {said['uptime_percent']} % allow {down:.0f} minutes a year of downtime"
found.judge("30", None, told)
found.show("28", "29", "30")

# %% [markdown]
# ## All claims
#
# By document, and then one by one.

# %%
everything = found.table()
everything.groupby("document", sort=False).verdict.value_counts().unstack(fill_value=0)

# %%
found.show()

# %% [markdown]
# ## Measured here, under the same settings
#
# Runs A, B and C with the published settings (ranks, epochs, batches, 46 test questions), but on our own questions and on the embedded
# model, whose learning rates are 20 times as high: ROUGE-L and the effect against the base, as claimed and as measured. The difference between the columns says nothing about
# the claim, since model and questions differ; the order and the size of the gains can be looked at. Shares of errors (claim 11) are not
# set beside ours: `07_analyse_errors` finds too few of the embedded model's errors to give them.

# %%
ours = json.loads((ROOT / params.measured).read_text(encoding="utf-8"))["metrics"]
pairs = {"base": "base", "A": "run_A", "B": "run_B", "C": "run_C"}
compared = pd.DataFrame({"claimed": {name: scores[name]["rougeL"] for name in pairs}})
compared["embedded model"] = [ours[f"{name}_rouge_l_score"] for name in pairs.values()]
compared["d claimed"] = pd.Series({"A": found.stated("9")["d"]})
compared["d, embedded model"] = pd.Series({name: ours.get(f"{run}_d") for name, run in pairs.items()})
display(compared.round(3).fillna("-"))
Markdown(f"An answer to a randomly drawn other question scores {ours['random_answer_rouge_l_score']:.3f} there. **{CAVEAT}**")

# %% [markdown]
# ## Limits
#
# - We judge from a list of the claims, not from the full documents: "not stated" means not in that list, and a figure may be right for a
#   reason that the list does not give.
# - The reasons were reread for fairness by a second language model, which changed half of them; no author of the documents was asked.
# - "Consistent" says that figures fit each other, not that the work was done as described.
# - The base model's paper (12b) was looked up by the authors of this page, not computed.

# %%
results.write_table(everything.reset_index(), "claims", params.output)
numbers = {f"{name.replace(' ', '_')}_count": int(count) for name, count in everything.verdict.value_counts().items()}
print("Saved", results.write_results(params, numbers).relative_to(ROOT))
