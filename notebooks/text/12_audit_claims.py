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
# **In:** the figures as published (`data/raw/published_claims.yaml`). **Out:** one row per claim: what we compute, the verdict, the
# reason. **Needs:** a minute and 1 GB; no weights are loaded, since models are counted on the meta device.
#
# A verdict is about a figure, not about people: a figure that does not follow may be a slip of the pen, another version of a run, or a
# definition that was left out.

# %%
import math
import re

import numpy as np
import pandas as pd
from IPython.display import Markdown
from scipy import integrate
from scipy import stats as distributions
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from transformers import BloomConfig, FalconConfig, GPT2Config, GPTNeoConfig, LlamaConfig, OPTConfig

from interviewmate_utils import audit, lora, models, plots, provenance, results, stats, training
from interviewmate_utils.config import ROOT, AuditClaims

# %% tags=["parameters"]
profile: str = "quick"  # names the folder below reports/
claims: str = "data/raw/published_claims.yaml"  # figures as published
seed: int = 13  # of the made-up data set

# %%
params = AuditClaims.from_cell(globals())
plots.setup()
found = audit.Audit(ROOT / params.claims)
agrees = audit.rounds_to
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
names = [f"r = {rank}, {targets} kinds of layer" for rank, targets in counted]
pd.DataFrame({"trainable": [t for t, _ in counted.values()], "percent of all": [*shares.values()]}, index=names).round(4)

# %%
said, ours = found.stated("1"), models.FALCON_RW_1B["vocab_size"]
found.judge("1", (total, ours) == (said["parameters"], said["vocabulary"]), f"{total:,}; vocabulary {ours:,}",
            "Counted from the model's own configuration.")  # fmt: skip
said, ours = found.stated("2"), {name: counted[rank, 1][0] for name, rank in [("A", 8), ("B", 4), ("C", 2)]}
llama = 32 * 4 * 8 * (4096 + 4096)
found.judge("2", ours["A"] == said["A"], ", ".join(f"{k} {v:,}" for k, v in ours.items()) + f"; A is {shares[8, 1]:.4f} %",
            f"The halving from A to B to C is right. {llama:,} is r = 8 on four square matrices in each of 32 layers of width 4,096, "
            "a model of seven billion parameters.")  # fmt: skip
said = found.stated("13")
found.judge("13", agrees(shares[16, 4], said["before_percent"], 1e-4) and agrees(shares[8, 4], said["now_percent"], 1e-4),
            f"{counted[16, 4][0]:,} ({shares[16, 4]:.4f} %) and {counted[8, 4][0]:,} ({shares[8, 4]:.4f} %)",
            "These are r = 16 and r = 8 on all four kinds of linear layer.")  # fmt: skip
found.show("1", "2", "13")

# %% [markdown]
# ## Splits, steps and time
#
# A schedule follows from the number of examples, the batch and the epochs. Whether early stopping could ever act follows from it, too.

# %%
said = found.stated("3")
ours = [100 * part / said["all"] for part in said["parts"]]
fits = sum(said["parts"]) == said["all"] and all(agrees(a, b, 0.1) for a, b in zip(ours, said["percent"], strict=True))
found.judge("3", fits, " / ".join(f"{share:.1f}" for share in ours) + " %", "The parts add up, and the shares are right.")
said = found.stated("4")
steps = training.schedule(said["examples"], said["epochs"], said["batch"])["total_steps"]
share = 100 * said["warmup_steps"] / steps
found.judge("4", agrees(share, said["percent"], 1), f"{steps} steps in all; {said['warmup_steps']} of them are {share:.1f} %",
            "211 examples in batches of 4 are 53 steps an epoch.")  # fmt: skip
said = found.stated("5")
per_epoch = math.ceil(said["examples"] / said["batch"])
looks, waiting = steps // said["save_steps"], said["patience_epochs"] * per_epoch
late = [k for k in range(1, looks + 1) if k * said["save_steps"] >= said["save_steps"] + waiting]
found.judge("5", None, f"{looks} looks in {steps} steps; the wait is {waiting} steps, so the first look that can stop is number {late[0]}",
            f"At most {len(late)} of {looks} looks could end a run. Counted in looks, as the usual callback counts, 3 are "
            f"{3 * said['save_steps'] / per_epoch:.1f} epochs; which was meant is not said.")  # fmt: skip
found.show("3", "4", "5")

# %%
said = found.stated("14")
steps = training.schedule(said["examples"], said["epochs"], said["batch"])["total_steps"]
seconds = 60 * said["minutes"]
speeds = said["epochs"] * said["examples"] / seconds, said["steps"] / seconds
fits = steps == said["steps"] and agrees(speeds[0], said["samples_per_s"], 1e-3) and agrees(speeds[1], said["steps_per_s"], 1e-3)
found.judge("14", fits, f"{steps} steps, {speeds[0]:.3f} samples/s, {speeds[1]:.4f} steps/s",
            "The figures fit each other. All 905 were trained on, so no part of them can judge the run.")  # fmt: skip
said = found.stated("16")
growth = 100 * (said["now"] / said["before"] - 1)
found.judge("16", agrees(growth, said["percent"], 1), f"+{growth:.1f} %", "Right to the whole percent.")
said = found.stated("16b")
pairs = [f"{k} {said['here'][k]:,} and {said['overview'][k]:,}" for k in said["here"]]
found.judge("16b", said["here"] == said["overview"], "; ".join(pairs),
            "No figure is the same: the two documents describe different runs, or one of them is wrong.")  # fmt: skip
found.show("14", "16", "16b")

# %% [markdown]
# ## Losses
#
# transformers reports as `train_loss` the mean over all steps of a run, which is not the loss at its end. Two of the claims make
# sense when read so.

# %%
said = found.stated("6")
fifth, fall = 5 * said["final"] - sum(said["by_epoch"]), 100 * (1 - said["by_epoch"][3] / said["by_epoch"][1])
found.judge("6", False, f"from epoch 2 to 4 the loss falls by {fall:.0f} %; a mean of 1.17 over five epochs needs {fifth:.2f} in the fifth",
            "1.17 cannot be the last loss, but fits as the mean over the run. A loss that falls by two thirds is not stable.")  # fmt: skip
said = found.stated("15")
better = 100 * (1 - said["final"] / said["before"])
fall = 100 * (1 - said["epoch_1"][1] / said["epoch_1"][0])
found.judge("15", agrees(better, said["percent"], 1) and agrees(fall, said["epoch_1_percent"], 0.1), f"{better:.1f} % and {fall:.1f} %",
            "The arithmetic is right. Both are training losses, of different data: they do not tell which model answers better.")  # fmt: skip
said = found.stated("17")
first = 2 * said["final"] - sum(said["epoch_2"]) / 2
found.judge("17", said["epoch_1"][1] <= first <= said["epoch_1"][0], f"a mean of {said['final']} over both epochs needs {first:.2f} in the first",
            "Possible if the final loss is the mean over the run, since epoch 1 ran from 2.03 to 0.11.")  # fmt: skip
found.show("6", "15", "17")

# %% [markdown]
# ## Scores and their statistics
#
# A share of 46 questions is a number of 46ths. A paired t on n items gives d = t / sqrt(n) and an interval around the mean difference,
# and for scores of 0 or 1 it cannot exceed what all gains and no loss would give.

# %%
said = found.stated("7")
n, exact = said["items"], {run: said[run]["exact_match"] for run in "ABC"}
near = {run: round(share * n) for run, share in exact.items()}
ratios = {name: scores["rouge2"] / scores["rouge1"] for name, scores in said.items() if name != "items"}
told = ", ".join(f"{run} {count}/{n} = {count / n:.3f}" for run, count in near.items())
found.judge("7", all(agrees(near[run] / n, exact[run], 0.01) for run in exact), f"nearest shares: {told}",
            f"No number of 46ths rounds to 0.25. ROUGE-2 is {min(ratios.values()):.0%} to {max(ratios.values()):.0%} of ROUGE-1: nearly all shared "
            "words are shared in pairs, which free answers do not do, and the base has no exact match stated.")  # fmt: skip
scores, said = said, found.stated("8")["percent"]
against = {row: {m: 100 * (scores["A"][m] / scores[row][m] - 1) for m in said} for row in ("base", "B")}
fits = {row: all(agrees(against[row][m], said[m], 1) for m in said) for row in against}
found.judge("8", fits["B"], "A against B: " + ", ".join(f"+{value:.0f} %" for value in against["B"].values()),
            "The figures stated are those of A against the base." if fits["base"] else "They are of neither row.")  # fmt: skip
found.show("7", "8")

# %%
said, n = found.stated("9"), found.stated("9")["free"] + 1
gain = scores["A"]["rougeL"] - scores["base"]["rougeL"]
effect, half = said["t"]["rougeL"] / n**0.5, distributions.t.ppf(0.975, n - 1) * gain / said["t"]["rougeL"]
correct = near["A"]
most = stats.compare_paired(np.zeros(n), np.arange(n) < correct, resamples=99)
largest = most["difference"] / stats.standard_error(np.arange(n) < correct)
fits = agrees(effect, said["d"], 0.01) and agrees(gain - half, said["interval"][0], 0.01) and said["t"]["exact_match"] <= largest
found.judge("9", fits, f"d = {effect:.2f}; interval {gain - half:.2f} to {gain + half:.2f}; t of exact match at most {largest:.2f}; "
            f"power at d = {said['d']}: {stats.power(n, said['d']):.4f}",
            f"With {correct} of {n} right, against a base with none, t is {largest:.2f}; any match of the base makes it smaller.")  # fmt: skip
found.show("9")

# %% [markdown]
# ## Shares, speed and memory of a LoRA run
#
# LoRA leaves the forward pass as it is and adds to it; what it saves is gradients and optimiser state, and of the backward pass the
# part that makes gradients of weights.

# %%
trained, total = counted[8, 1]
full, tuned = 6 * total, 4 * (total - trained) + 6 * trained
said = found.stated("10")
found.judge("10", False, f"at most {full / tuned:.2f} times as fast a step; an answer takes {total / (total - trained):.4f} times the operations",
            "6 operations per parameter and token against 4 for a frozen one. Merged, an adapter costs nothing; it never makes the base faster.")  # fmt: skip
said = found.stated("11")["percent"]
found.judge("11", sum(said) == 100, f"sum {sum(said)} %", "They add up; how many answers were sorted, and by whom, is not said.")
said = found.stated("12")["percent"]
memory = {"all": (4 * total + 12 * trained) / (16 * (total - trained)), "optimiser state": trained / (total - trained)}
found.judge("12", agrees(100 * (1 - memory["all"]), said, 0.01), "; ".join(f"{k}: {1 - share:.2%} less" for k, share in memory.items()),
            "99.24 is 100 less the 0.76 % of claim 2: the share that is not trained. In fp32 the weights stay, so all that training holds but "
            "activations (weights, gradients, Adam's moments) shrinks to a quarter.")  # fmt: skip
found.judge("12b", True, "RefinedWeb (Penedo et al. 2023)",
            "Looked up, not computed: the paper of the data set, whose authors trained this model to compare data.")  # fmt: skip
found.show("10", "11", "12", "12b")

# %% [markdown]
# ## Local models: size, memory, cost
#
# Weights alone take two bytes a parameter at fp16; a process that holds them cannot take less. Energy is power times time.

# %%
gpt2 = {"n_embd": 1024, "n_layer": 24, "n_head": 16}
neo = {"hidden_size": 2048, "num_layers": 24, "num_heads": 16, "attention_types": [[["global", "local"], 12]]}
opt = {"hidden_size": 2560, "num_hidden_layers": 32, "ffn_dim": 10240, "num_attention_heads": 32, "word_embed_proj_dim": 2560}
tiny = {"hidden_size": 2048, "num_hidden_layers": 22, "num_attention_heads": 32, "num_key_value_heads": 4, "intermediate_size": 5632}
shapes = {"DialoGPT-medium": GPT2Config(**gpt2), "GPT-Neo-1.3B": GPTNeoConfig(**neo), "OPT-2.7B": OPTConfig(**opt)}
shapes |= {"BLOOM-560M": BloomConfig(hidden_size=1024, n_layer=24, n_head=16), "TinyLlama-1.1B": LlamaConfig(**tiny)}
sizes = {name: models.outline(shape).num_parameters() for name, shape in shapes.items()}
sizes["Flan-T5-large"] = 783_150_080  # T5 1.1's shape, two stacks: no causal model; counted once from its configuration
pd.Series(sizes, name="parameters").map("{:,}".format).to_frame()

# %%
said = found.stated("18")
need = [said["bytes"] * said["times"] * billions for billions in said["billions"]]
found.judge("18", need[-1] <= said["gb"], f"{need[0]:.1f} and {need[1]:.1f} GB; {said['gb']} GB hold {said['gb'] / 2.8:.1f} billion parameters",
            "By the rule itself. What 1.4 stands for (context, cache) is not said, and decides with long contexts.")  # fmt: skip
said = found.stated("19")["gb"]
weights = {name: 2 * sizes[name] / 1e9 for name in said}
found.judge("19", all(weights[k] <= said[k] for k in said), ", ".join(f"{k} {v:.1f} GB" for k, v in weights.items()) + " of weights alone",
            "Each measured figure is below the weights that it should contain.")  # fmt: skip
said = found.stated("20")
found.judge("20", all(agrees(sizes[k], said[k], 0.01 * said[k] * 2) for k in said), ", ".join(f"{k} {sizes[k] / 1e6:,.0f} million" for k in said),
            "GPT-Neo is right, Flan-T5-large near; DialoGPT-medium has the size of GPT-2 medium, 1.5 billion is GPT-2 XL's.")  # fmt: skip
found.show("18", "19", "20")

# %%
said = found.stated("21")
costs = [said["watts"] * ms / 1000 / 3.6e6 * said["usd_per_kwh"] for ms in said["ms"]]
saved = [100 * (1 - cost / said["api_usd"]) for cost in costs]
requests = said["usd_a_year"] / (said["api_usd"] - costs[0]) / 365
fits = agrees(costs[0], said["usd"], 1e-7) and all(agrees(a, b, 0.1) for a, b in zip(saved, said["percent"], strict=True))
found.judge("21", fits, f"{costs[0]:.7f} $; savings {', '.join(f'{share:.1f} %' for share in saved)}; 54 $ need {requests:,.0f} requests a day",
            "The fastest is said to save least. Left out: the machine, its idle power, and that the compared answers differ in length.")  # fmt: skip
said = found.stated("24")
hourly = [3.6e6 / ms for ms in said["ms"]]
found.judge("24", None, f"{min(hourly):,.0f} to {max(hourly):,.0f} one at a time",
            f"33,000 would take {said['an_hour'][1] / max(hourly):.0f} to {said['an_hour'][1] / min(hourly):.0f} at once; batching is not described.")  # fmt: skip
found.show("21", "24")

# %% [markdown]
# ## Local models: the ranking
#
# Five ratings give a mean with four degrees of freedom; 1.96 is the factor for infinitely many. Two means with their errors give the
# chance that the one is really the higher, here from t distributions around each (a flat prior).

# %%
said = found.stated("22")
(opt_mean, opt_half, opt_n), (bloom_mean, bloom_half, bloom_n) = (said["scores"][k] for k in ("OPT-2.7B", "BLOOM (elsewhere)"))
errors = opt_half / 1.96, bloom_half / 1.96
halves = [error * distributions.t.ppf(0.975, k - 1) for error, k in zip(errors, (opt_n, bloom_n), strict=True)]
spread = math.hypot(*errors)
free = spread**4 / (errors[0] ** 4 / (opt_n - 1) + errors[1] ** 4 / (bloom_n - 1))
p = 2 * distributions.t.sf((opt_mean - bloom_mean) / spread, free)
lower = {k: said["first_estimates"][k.split(" (")[0]] - mean for k, (mean, _, _) in said["scores"].items()}
fits = all(said["lower_by"][0] <= value <= said["lower_by"][1] for value in lower.values())
found.judge("22", fits, f"with t: {opt_mean} ± {halves[0]:.2f}, {bloom_mean} ± {halves[1]:.2f}; OPT against BLOOM (elsewhere) Welch p = {p:.2f}; "
            f"lower by {', '.join(f'{value:.2f}' for value in lower.values())}",
            "BLOOM has two means, one of them equal to the local server's of claim 26. Against the other, OPT is not distinguishable.")  # fmt: skip

# %%
said = found.stated("23")
opt_t, bloom_t = distributions.t(opt_n - 1, opt_mean, errors[0]), distributions.t(bloom_n - 1, bloom_mean, errors[1])
best = integrate.quad(lambda x: opt_t.pdf(x) * bloom_t.cdf(x), -40, 60, points=[bloom_mean, opt_mean], limit=200)[0]
found.judge("23", opt_mean >= said["threshold"], f"lower end with t {opt_mean - halves[0]:.2f}; the better of the two with a chance of {best:.2f}",
            "The rule picks it, and the interval clears the threshold; that it is the best is likely, not shown.")  # fmt: skip
said = found.stated("26")
found.judge("26", None, f"{said['manual'] - said['server']:.2f} points apart",
            "Model, quantisation and way of running changed together: none of them can be given the difference.")  # fmt: skip
found.show("22", "23", "26")

# %% [markdown]
# ## A quality score, and a text without meaning
#
# The published part of the score is a formula. We give it a text that says nothing.

# %%
said = found.stated("25")
low, high = said["ranges"]["technical"]
text = " ".join([*said["words"], *["thing"] * low]) + ". " + "Yes."
count, terms = len(text.split()), sum(word in text for word in said["words"])
score = said["start"] + said["in_range"] * (low <= count <= high) + min(said["words_at_most"], said["each_word"] * terms)
score = min(10, score + said["two_full_stops"] * (text.count(".") >= 2))
found.judge("25", None, f"{count} words without meaning score {score:g} of 10",
            "The formula counts words and full stops, and a text can have all of them and say nothing; the other three dimensions are unpublished.")  # fmt: skip
Markdown(f"> {text[:160]} ...\n\nscores **{score:g}** of 10.")

# %% [markdown]
# ## Synthetic data, and what makes it easy
#
# Templates with slots repeat their words. A classifier of words then recognises the template, whatever the slot: the score on a
# random split says how many templates there are, not how well anything is understood.

# %%
kinds = {"technical": ["Explain how {} works.", "What are the limits of {}?"], "system": ["Design a service for {}.", "How would you scale {}?"],
         "behavioural": ["Tell me about a time you used {}.", "How did you convince others of {}?"]}  # fmt: skip
topics = [claim["document"] + " " + number for number, claim in found.claims.items()]
made = pd.DataFrame([(k, t, t.format(topic)) for k, ts in kinds.items() for t in ts for topic in topics], columns=["kind", "template", "text"])
shuffled, accuracy = made.sample(frac=1, random_state=params.seed), {}
second = made.template.isin([templates[1] for templates in kinds.values()])
splits = {"random split": (shuffled[: len(made) // 2], shuffled[len(made) // 2 :]), "unseen templates": (made[~second], made[second])}
for name, (train, test) in splits.items():
    vectors = TfidfVectorizer().fit(train.text)
    accuracy[name] = LogisticRegression().fit(vectors.transform(train.text), train.kind).score(vectors.transform(test.text), test.kind)
found.judge("27", None, ", ".join(f"{name} {share:.2f}" for name, share in accuracy.items()) + " (accuracy, our toy of six templates)",
            "Scores on data made by the same templates as the training data cannot be told from scores of recognising a template.")  # fmt: skip
found.show("25", "27")

# %% [markdown]
# ## Named entities: what counting padding does
#
# Most tokens of a sentence carry no entity, and a sentence padded to 75 tokens is mostly padding. A tagger that says nothing but
# "nothing here" is right nearly everywhere; strict scores count whole entities.

# %%
terms = sorted(filter(None, (ROOT / "data/raw/technical_terms.txt").read_text().splitlines()), key=len, reverse=True)
pattern = re.compile(r"\b(?:" + "|".join(map(re.escape, terms)) + r")\b", re.IGNORECASE)
answers = pd.read_json(ROOT / "data/raw/interview_qa.jsonl", lines=True).answer
sentences, words = [s for answer in answers for s in re.split(r"(?<=[.!?]) ", answer)], []
for number, sentence in enumerate(sentences):
    spans = [match.span() for match in pattern.finditer(sentence)]
    for word in re.finditer(r"\w+|[^\w\s]", sentence):
        span = next((s for s in spans if s[0] <= word.start() < s[1]), None)
        words.append((number, word.group().lower(), "O" if span is None else "B" if span[0] == word.start() else "I"))
words = pd.DataFrame(words, columns=["sentence", "word", "label"])
train, test = words[words.sentence % 10 < 7], words[words.sentence % 10 >= 7].copy()
usual = train.groupby("word").label.agg(lambda labels: labels.value_counts().index[0])
test["tagged"] = test.word.map(usual).fillna("O")

# %%
said, length = found.stated("28"), found.stated("28")["length"]
padding = length * test.sentence.nunique() - len(test)
rows, spans = [("the usual tag of each word", "tagged"), ("nothing anywhere", "nothing")], {}
test["nothing"] = "O"
for column in ("label", "tagged", "nothing"):
    entity = test.assign(row=range(len(test)), begun=(test[column] == "B").cumsum())[test[column] != "O"]
    spans[column] = set(entity.groupby(["sentence", "begun"]).row.agg(["min", "max"]).itertuples(index=False, name=None))
table = [
    {"tagger": name, "tokens and padding": ((test[c] == test.label).sum() + padding) / (len(test) + padding),
     "tokens": (test[c] == test.label).mean(), "whole entities": 2 * len(spans[c] & spans["label"]) / (len(spans[c]) + len(spans["label"]))}
    for name, c in rows
]  # fmt: skip
scored = pd.DataFrame(table).set_index("tagger")
found.judge("28", None, "; ".join(f"{name}: {row['tokens and padding']:.3f} of tokens with padding, {row['whole entities']:.3f} of whole entities"
                                  for name, row in scored.iterrows()) + " (micro F1, our answers, technical terms)",
            "The way of counting is not stated. Padding and 'no entity' alone carry a score near 1, and feed-forward above recurrent fits that.")  # fmt: skip
scored.round(3)

# %% [markdown]
# ## A service: Little's law
#
# Requests in the system are arrivals per second times the time each stays (Little 1961).

# %%
said = found.stated("29")
found.judge("29", None, f"{said['requests_per_s'] * said['ms'] / 1000:.0f} requests at work at any time",
            "Possible with that many at once; neither the number of workers nor the machine is stated.")  # fmt: skip
said = found.stated("30")
documents, down = said["requests_per_s"] * 86_400, 365 * 24 * 60 * (1 - said["uptime_percent"] / 100)
found.judge("30", None, f"{documents / 1e6:,.0f} million a day at 2,000 requests/s; 99.99 % allows {down:.0f} minutes a year of downtime",
            "Ten million follow easily. A return needs costs and gains, uptime a year of records; neither is given.")  # fmt: skip
found.show("28", "29", "30")

# %% [markdown]
# ## All claims

# %%
everything = found.table()
counts = everything.groupby("document", sort=False).verdict.value_counts().unstack(fill_value=0)
counts

# %%
found.show()

# %% [markdown]
# ## Limits
#
# - A claim is judged by what the five documents state. A figure may be right for a reason that none of them gives.
# - "Consistent" says that figures fit each other, not that the work was done as described.
# - Claims without a computation (the base model's paper) were looked up by the authors of this page.

# %%
results.write_table(everything.reset_index(), "claims", params.output)
numbers = {f"{name.replace(' ', '_')}_count": int(count) for name, count in everything.verdict.value_counts().items()}
print("Saved", results.write_results(params, numbers).relative_to(ROOT))
