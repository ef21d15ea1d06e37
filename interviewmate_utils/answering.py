"""Answer questions with a causal model, and measure how likely it finds a given answer."""

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from .data import IGNORED, PROMPT, collate, turn

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

ROOM = 64  # tokens that the KV cache grows by at once
NEXT_QUESTION = "\nQuestion:"  # where a model goes on after its answer with a question of its own


def _options(
    tokenizer: "PreTrainedTokenizerBase", width: int, max_new_tokens: int, repetition_penalty: float
) -> dict[str, Any]:
    """Greedy generation after a prompt of `width` tokens, whose repetition is not penalised: an answer may well take up a
    word of its question, and in a batch the padding, which is the end-of-text token, would count as said."""
    from transformers import LogitsProcessorList, RepetitionPenaltyLogitsProcessor

    penalty = RepetitionPenaltyLogitsProcessor(float(repetition_penalty), prompt_ignore_length=width)
    options = {"max_new_tokens": max_new_tokens, "do_sample": False, "logits_processor": LogitsProcessorList([penalty])}
    options |= {"eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id}
    return options | {"stop_strings": [NEXT_QUESTION], "tokenizer": tokenizer}


def _finishing(tokenizer: "PreTrainedTokenizerBase", rows: int) -> Any:
    """A criterion that stops a batch of `rows` once a quarter of it has ended: generation goes on without those."""
    import torch
    from transformers import EosTokenCriteria, StoppingCriteria, StoppingCriteriaList, StopStringCriteria

    endings = StoppingCriteriaList([EosTokenCriteria(tokenizer.eos_token_id), StopStringCriteria(tokenizer, [NEXT_QUESTION])])

    class Finishing(StoppingCriteria):
        def __init__(self) -> None:
            self.ended, self.enough = torch.zeros(rows, dtype=torch.bool), False

        def __call__(self, input_ids: Any, scores: Any, **_: Any) -> "torch.Tensor":
            if not self.enough:  # on MPS generation asks once more, of a token that it then takes back
                self.ended |= endings(input_ids, scores).cpu()
            self.enough = bool(4 * self.ended.sum() >= rows)
            return torch.full((rows,), self.enough, device=input_ids.device)

    return Finishing()


def _roomy_cache(model: "PreTrainedModel") -> Any:
    """transformers' KV cache, but for its growth: that copies everything said so far with each new token."""
    from transformers.cache_utils import DynamicCache, DynamicLayer

    class RoomyLayer(DynamicLayer):
        rooms: tuple = ()

        def update(self, key_states: Any, value_states: Any, *_: Any, **__: Any) -> tuple:
            start = self.get_seq_length()
            end, rows = start + key_states.shape[-2], len(key_states)
            if not self.is_initialized:
                self.lazy_initialization(key_states, value_states)
            if not self.rooms or self.rooms[0].shape[-2] < end or len(self.rooms[0]) != rows:
                shapes = [(*states.shape[:2], end + ROOM, states.shape[-1]) for states in (key_states, value_states)]
                self.rooms = tuple(self.keys.new_empty(shape) for shape in shapes)
                for room, kept in zip(self.rooms, (self.keys, self.values), strict=True):
                    room[..., :start, :] = kept if start else 0
            for room, states in zip(self.rooms, (key_states, value_states), strict=True):
                room[..., start:end, :] = states
            self.keys, self.values = (room[..., :end, :] for room in self.rooms)
            return self.keys, self.values

    cache = DynamicCache(config=model.config)
    cache.layers = [RoomyLayer() if type(layer) is DynamicLayer else layer for layer in cache.layers]
    return cache


def _generate(
    model: "PreTrainedModel", tokenizer: "PreTrainedTokenizerBase", batch: dict, options: dict
) -> list["torch.Tensor"]:
    """Per row of a left-padded `batch`, what follows its prompt. Rows that have ended leave the batch and its KV cache."""
    import torch

    ids, mask, cache = batch["input_ids"], batch["attention_mask"], _roomy_cache(model)
    width = ids.shape[1]
    answers, alive = [ids[0, :0]] * len(ids), torch.arange(len(ids))
    while len(alive):
        finishing = _finishing(tokenizer, len(alive))
        # the criterion looks for the stop string itself; twice a token would be once too often
        changed = {"max_new_tokens": options["max_new_tokens"] - (ids.shape[1] - width), "stop_strings": None}
        out = model.generate(
            input_ids=ids, attention_mask=mask, past_key_values=cache, **options | changed,
            stopping_criteria=[finishing], return_dict_in_generate=True,
        )  # fmt: skip
        ids, cache = out.sequences, out.past_key_values
        ended = finishing.ended | (ids.shape[1] - width >= options["max_new_tokens"])
        for row in ended.nonzero()[:, 0].tolist():
            answers[alive[row]] = ids[row, width:]
        alive, staying = alive[~ended], (~ended).nonzero()[:, 0]  # on the CPU: the layers' caches may lie on several devices
        mask = torch.cat([mask, mask.new_ones(len(mask), ids.shape[1] - mask.shape[1])], 1)[staying]
        ids = ids[staying]
        cache.batch_select_indices(staying)
    return answers


def worked_examples(rows: Sequence[dict], count: int, seed: int) -> str:
    """Questions with their answers, `count` of `rows` drawn by `seed`, as they stand before a question put to a base model."""
    import random

    if count > len(rows):
        raise ValueError(
            f"{count} worked examples are asked for, but there are {len(rows)} training questions to draw them from"
        )
    chosen = random.Random(seed).sample(range(len(rows)), count)
    return "".join(turn(rows[i]) for i in chosen)


def generate_answers(
    model: "PreTrainedModel",
    tokenizer: "PreTrainedTokenizerBase",
    questions: Sequence[str],
    max_new_tokens: int,
    batch_size: int,
    repetition_penalty: float = 1.0,
    report: Callable[[str], None] = print,
    examples: str = "",
) -> list[str]:
    """Greedy answers in the order of `questions`; batches of similar length share one KV cache, which ended answers leave.

    `examples` stand before every question (few-shot; see `worked_examples`). An answer ends at the end-of-text token,
    at `max_new_tokens`, or where the model starts a question of its own.
    """
    import torch

    model.eval()
    order = sorted(range(len(questions)), key=lambda i: len(questions[i]))
    answers = [""] * len(questions)
    for start in range(0, len(order), batch_size):
        chosen = order[start : start + batch_size]
        prompts = [examples + PROMPT.format(question=questions[i]) for i in chosen]
        batch = tokenizer(prompts, return_tensors="pt", padding=True, add_special_tokens=False).to(model.device)
        options = _options(tokenizer, batch["input_ids"].shape[1], max_new_tokens, repetition_penalty)
        with torch.inference_mode():
            told = _generate(model, tokenizer, batch, options)
        for i, tokens in zip(chosen, told, strict=True):
            answers[i] = tokenizer.decode(tokens, skip_special_tokens=True).split(NEXT_QUESTION)[0].strip()
        report(f"  {min(start + batch_size, len(order))}/{len(order)} answers")
    return answers


def stream_answer(
    model: "PreTrainedModel",
    tokenizer: "PreTrainedTokenizerBase",
    question: str,
    max_new_tokens: int,
    repetition_penalty: float,
) -> Iterator[str]:
    """The answer to one question, piece by piece as it is generated; joined, the one that `generate_answers` gives."""
    import threading

    from transformers import TextIteratorStreamer

    streamer = TextIteratorStreamer(tokenizer, skip_prompt=True, skip_special_tokens=True)
    batch = tokenizer(PROMPT.format(question=question), return_tensors="pt", add_special_tokens=False).to(model.device)
    batch = {name: batch[name] for name in ("input_ids", "attention_mask")}
    options = _options(tokenizer, batch["input_ids"].shape[1], max_new_tokens, repetition_penalty)
    failures: list[Exception] = []

    def generate() -> None:
        try:
            model.eval().generate(**batch, **options, streamer=streamer)
        except Exception as error:
            failures.append(error)
            streamer.end()  # else the reader would wait for ever

    threading.Thread(target=generate, daemon=True).start()
    text, shown = "", 0
    for piece in streamer:
        text += piece
        held = next(n for n in range(len(NEXT_QUESTION) - 1, -1, -1) if text.endswith(NEXT_QUESTION[:n]))  # perhaps its start
        ready = text[: len(text) - held].split(NEXT_QUESTION)[0].strip()
        yield ready[shown:]
        shown = max(shown, len(ready))
    if failures:
        raise failures[0]
    yield text.split(NEXT_QUESTION)[0].strip()[shown:]


def answer_loss(model: "PreTrainedModel", rows: Sequence[dict], pad_id: int, batch_size: int = 8) -> list[tuple[float, int]]:
    """Per row, the summed cross-entropy (nats) and the number of its labelled tokens, in the order of `rows`.

    The mean loss of a set is the sum of the first over the sum of the second; its exponential is the perplexity.
    """
    import torch

    from .training import packing

    model.eval()
    packed = packing.supports(model)
    order = sorted(range(len(rows)), key=lambda i: len(rows[i]["input_ids"]))
    result: list[tuple[float, int]] = [(0.0, 0)] * len(rows)
    for start in range(0, len(order), batch_size):
        chosen = order[start : start + batch_size]
        with torch.no_grad():  # inference mode would leave FSDP with buffers that it cannot train with
            if packed:
                told = [[torch.tensor(rows[i][k], device=model.device) for k in ("input_ids", "labels")] for i in chosen]
                sums = [(losses.sum().item(), len(losses)) for losses in packing.token_losses(model, told)]
            else:
                batch = {k: v.to(model.device) for k, v in collate([rows[i] for i in chosen], pad_id).items()}
                labels = batch.pop("labels")[:, 1:]
                logits = model(**batch).logits[:, :-1].float()
                losses = torch.nn.functional.cross_entropy(
                    logits.transpose(1, 2), labels, reduction="none", ignore_index=IGNORED
                )
                sums = [*zip(losses.sum(1).tolist(), (labels != IGNORED).sum(1).tolist(), strict=True)]
        for i, found in zip(chosen, sums, strict=True):
            result[i] = found
    return result
