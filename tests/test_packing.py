"""Packed training against transformers' and peft's own passes: the same losses and gradients, without the padding."""

from pathlib import Path

import pytest
import torch
from tiny import corpus_rows, save_tiny
from transformers import AutoTokenizer, FalconConfig, FalconForCausalLM

from interviewmate_utils import data, lora, models
from interviewmate_utils.training import packing

ALL_LINEAR = ["query_key_value", "dense", "dense_h_to_4h", "dense_4h_to_h"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny(tmp_path_factory.mktemp("tiny") / "model", loudness=3.0)


@pytest.fixture(scope="module")
def rows(folder: Path) -> list[dict]:
    tokenizer = AutoTokenizer.from_pretrained(folder)
    return [data.tokenise(row, tokenizer, 96) for row in corpus_rows(7)]


def adapted(folder: Path, targets: list[str], dropout: float = 0.0, variants: tuple = (), dtype=torch.float32):
    """An adapter that does something: its second matrices are not zero."""
    torch.manual_seed(0)
    base = models.load_model(str(folder), "cpu", dtype=dtype)
    model = lora.add_lora(base, 4, 8, dropout, targets, variants)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.3)
    return model.train()


def as_pairs(rows: list[dict]) -> list[tuple[torch.Tensor, torch.Tensor]]:
    return [(torch.tensor(row["input_ids"]), torch.tensor(row["labels"])) for row in rows]


def usual(model, rows: list[dict]) -> torch.Tensor:
    """The summed loss as transformers computes it on a padded batch."""
    return model(**data.collate(rows, 0), use_cache=False, num_items_in_batch=1).loss


def gradients(model, loss: torch.Tensor) -> dict[str, torch.Tensor]:
    model.zero_grad()
    loss.backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("targets", [["query_key_value"], ["dense_4h_to_h"], ALL_LINEAR])
@pytest.mark.parametrize("variants", [(), ("rslora",), ("dora",), ("pissa",)])
def test_losses_and_gradients_are_those_of_transformers_and_peft(folder, rows, targets, variants) -> None:
    model = adapted(folder, targets, variants=variants)
    theirs = usual(model, rows)
    expected = gradients(model, theirs)
    losses = packing.token_losses(model, as_pairs(rows))
    found = gradients(model, torch.cat(losses).sum())
    assert torch.cat(losses).sum().item() == pytest.approx(theirs.item(), rel=1e-5)
    assert found.keys() == expected.keys()
    for name, gradient in found.items():
        torch.testing.assert_close(gradient, expected[name], rtol=1e-3, atol=1e-4 * float(expected[name].abs().max()))


def test_all_weights_can_be_trained(folder, rows) -> None:
    model = models.load_model(str(folder), "cpu").requires_grad_(True).train()
    theirs = usual(model, rows)
    expected = gradients(model, theirs)
    found = gradients(model, torch.cat(packing.token_losses(model, as_pairs(rows))).sum())
    assert found.keys() == expected.keys()
    for name, gradient in found.items():
        torch.testing.assert_close(gradient, expected[name], rtol=1e-3, atol=1e-4 * float(expected[name].abs().max()))


def test_each_row_has_its_own_losses(folder, rows) -> None:
    model = adapted(folder, ALL_LINEAR).eval()
    for row, losses in zip(rows, packing.token_losses(model, as_pairs(rows)), strict=True):
        with torch.inference_mode():
            logits = model(input_ids=torch.tensor([row["input_ids"]])).logits[0, :-1].float()
        labels = torch.tensor(row["labels"][1:])
        alone = torch.nn.functional.cross_entropy(logits, labels, reduction="none", ignore_index=data.IGNORED)
        torch.testing.assert_close(losses, alone[labels != data.IGNORED], rtol=1e-4, atol=1e-5)


def test_a_sequence_does_not_see_its_neighbours(folder, rows) -> None:
    model = adapted(folder, ALL_LINEAR).eval()
    pairs = as_pairs(rows)
    other = (pairs[0][0].flip(0), pairs[0][1])
    _, *before = packing.token_losses(model, pairs)
    _, *after = packing.token_losses(model, [other, *pairs[1:]])
    for one, two in zip(before, after, strict=True):
        torch.testing.assert_close(one, two, rtol=0, atol=0)


def test_bf16_is_as_near_to_fp32_as_transformers_own(folder, rows) -> None:
    exact = usual(adapted(folder, ALL_LINEAR), rows).item()
    theirs = usual(adapted(folder, ALL_LINEAR, dtype=torch.bfloat16), rows).item()
    ours = torch.cat(packing.token_losses(adapted(folder, ALL_LINEAR, dtype=torch.bfloat16), as_pairs(rows))).sum().item()
    assert abs(ours - exact) < 2 * abs(theirs - exact) + 0.002 * exact


def test_checkpointing_keeps_less_and_changes_neither_loss_nor_gradients(folder, rows) -> None:
    model, kept = adapted(folder, ALL_LINEAR, dropout=0.3), []

    def loss_of_all() -> torch.Tensor:
        kept.append(0)
        count = lambda tensor: kept.__setitem__(-1, kept[-1] + tensor.numel()) or tensor  # noqa: E731
        torch.manual_seed(5)
        with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
            return torch.cat(packing.token_losses(model, as_pairs(rows))).sum()

    loss = loss_of_all()
    expected = gradients(model, loss)
    model.gradient_checkpointing_enable({"use_reentrant": False})
    again = loss_of_all()
    assert kept[1] < kept[0] / 3
    assert again.item() == loss.item()
    for name, gradient in gradients(model, again).items():
        torch.testing.assert_close(gradient, expected[name], rtol=0, atol=0)


def test_many_slices_of_logits_give_the_same(folder, rows, monkeypatch: pytest.MonkeyPatch) -> None:
    model = adapted(folder, ALL_LINEAR)
    expected = gradients(model, torch.cat(packing.token_losses(model, as_pairs(rows))).sum())
    monkeypatch.setattr(packing, "_LOGITS", 2_000)  # four rows of 500
    found = gradients(model, torch.cat(packing.token_losses(model, as_pairs(rows))).sum())
    for name, gradient in found.items():
        torch.testing.assert_close(gradient, expected[name], rtol=1e-4, atol=1e-5)


# --- dropout


@pytest.mark.parametrize("rate", [0.05, 0.1, 0.5])
def test_the_dropped_share_is_the_rate(rate: float) -> None:
    torch.manual_seed(0)
    count = 1_000_003  # not a multiple of four
    dropped = packing._dropped(torch.empty(count), rate).double().mean().item()
    assert abs(dropped - rate) < 5 * (rate * (1 - rate) / count) ** 0.5 + 2**-16


def test_dropout_is_on_the_adapter_input_and_scaled(folder) -> None:
    """By hand, with the mask that the same seed gives: value and all gradients, against autograd on the plain formula."""
    torch.manual_seed(1)
    x, weight, bias = torch.randn(9, 32, requires_grad=True), torch.randn(96, 32), torch.randn(96)
    a, b = torch.randn(4, 32, requires_grad=True), torch.randn(96, 4, requires_grad=True)
    torch.manual_seed(2)
    ours = packing._LoraLinear.apply(x, weight, bias, a, b, 2.0, 0.25)
    torch.manual_seed(2)
    kept = ~packing._dropped(x, 0.25)
    assert 0 < kept.float().mean() < 1
    plain = x @ weight.T + bias + 2.0 * (x * kept / 0.75) @ a.T @ b.T
    torch.testing.assert_close(ours, plain)
    upstream = torch.randn_like(plain)
    for one, two in zip(
        torch.autograd.grad(ours, (x, a, b), upstream), torch.autograd.grad(plain, (x, a, b), upstream), strict=True
    ):
        torch.testing.assert_close(one, two)


def test_evaluation_drops_nothing(folder, rows) -> None:
    model = adapted(folder, ALL_LINEAR, dropout=0.5)
    trained = torch.cat(packing.token_losses(model, as_pairs(rows)))
    model.eval()
    first, second = (torch.cat(packing.token_losses(model, as_pairs(rows))) for _ in range(2))
    assert torch.equal(first, second)
    assert not torch.allclose(first, trained)


# --- what cannot be packed


@pytest.mark.parametrize(
    "change",
    [{"alibi": False}, {"multi_query": True}, {"parallel_attn": True}, {"hidden_dropout": 0.1}, {"activation": "relu"}],
)
def test_other_architectures_are_refused(change: dict) -> None:
    shape = {"vocab_size": 50, "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4, "bias": True}
    kind = {"alibi": True, "multi_query": False, "parallel_attn": False}
    assert packing.supports(FalconForCausalLM(FalconConfig(**shape, **kind)))
    other = FalconForCausalLM(FalconConfig(**shape, **kind | change))
    assert not packing.supports(other)
    with pytest.raises(ValueError, match="only a Falcon of the RW kind"):
        packing.token_losses(other, [(torch.tensor([1, 2]), torch.tensor([1, 2]))])
