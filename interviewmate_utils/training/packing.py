"""A Falcon's forward pass and loss without padding and without what training adapters does not need.

The sequences of a batch lie end to end, each attending to itself alone, so that no token is computed that nobody reads.
Logits are computed where labels are, in slices, and never kept; an adapter's small matrices are cast, not its large inputs.
The architecture is that of Falcon-RW (ALiBi, sequential attention and MLP); other models take the usual way (`supports`).
Checked against transformers' and peft's own forward and backward passes in `tests/test_packing.py`.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch.nn import functional as F

from ..data import IGNORED

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_LOGITS = 2**24  # most logits at once: 64 MB in fp32


def supports(model: "PreTrainedModel") -> bool:
    """Whether `model`, adapted or not, is a Falcon of the RW kind, whole, on one device, its own dropout absent or off."""
    settings = model.config
    wrapped = getattr(model, "hf_device_map", None) or getattr(model, "is_quantized", False)
    wrapped = wrapped or hasattr(next(model.parameters()), "placements")  # FSDP gathers weights where its own hooks are called
    return (
        settings.model_type == "falcon"
        and settings.alibi
        and not (settings.multi_query or settings.parallel_attn or settings.new_decoder_architecture or wrapped)
        and (settings.hidden_dropout == settings.attention_dropout == 0 or not model.training)
        and getattr(settings, "activation", "gelu") == "gelu"
    )


class _LoraLinear(torch.autograd.Function):
    """y = x W^T + b + scale * dropout(x) A^T B^T for x of shape (tokens, inputs), with W and b frozen.

    Keeps dropout(x) and one byte per input for its mask; peft's own layer keeps a copy of x in fp32 besides.
    """

    @staticmethod
    def forward(ctx: Any, x: Any, weight: Any, bias: Any, a: Any, b: Any, scale: float, rate: float) -> "torch.Tensor":
        dropped = _dropped(x, rate) if rate else None
        kept = x.masked_fill(dropped, 0) if rate else x
        small_a, small_b = a.to(x.dtype), b.to(x.dtype)
        inner = kept @ small_a.T
        scale = scale / (1 - rate)
        y = F.linear(x, weight, bias).addmm_(inner, small_b.T, alpha=scale)
        ctx.save_for_backward(kept, dropped, weight, small_a, small_b, inner)
        ctx.scale, ctx.dtype = scale, a.dtype
        return y

    @staticmethod
    def backward(ctx: Any, dy: Any) -> tuple:
        kept, dropped, weight, a, b, inner = ctx.saved_tensors
        through = dy @ b
        da = (through.T @ kept).to(ctx.dtype).mul_(ctx.scale)
        db = (dy.T @ inner).to(ctx.dtype).mul_(ctx.scale)
        dx = None
        if ctx.needs_input_grad[0]:
            dx = dy @ weight
            if dropped is None:
                dx.addmm_(through, a, alpha=ctx.scale)
            else:
                dx.add_((through @ a).masked_fill_(dropped, 0), alpha=ctx.scale)
        return dx, None, None, da, db, None, None


def _dropped(x: "torch.Tensor", rate: float) -> "torch.Tensor":
    """A mask of x's shape, True with probability `rate` (to 2^-16): four draws from each random 64-bit integer."""
    if x.device.type == "mps":  # has no random integers of that size
        return torch.rand(x.shape, device=x.device) < rate
    bits = torch.empty(-(-x.numel() // 4), dtype=torch.int64, device=x.device).random_(-(2**63), None)
    return (bits.view(torch.int16)[: x.numel()] < round(rate * 2**16) - 2**15).view(x.shape)


class _Attention(torch.autograd.Function):
    """softmax(scale * q k^T + bias) v for one sequence; fused q, k, v (length, heads, 3, size) -> (length, heads * size).

    In fp32 on a CPU faster than torch's fused kernel (reports/LOG.md), at the price of keeping the probabilities.
    """

    @staticmethod
    def forward(ctx: Any, fused: Any, bias: Any) -> "torch.Tensor":
        query, key, value = fused.permute(2, 1, 0, 3).contiguous()
        scale = fused.shape[-1] ** -0.5
        chances = torch.baddbmm(bias, query, key.transpose(1, 2), alpha=scale).softmax(-1)
        told = chances @ value
        ctx.save_for_backward(query, key, value, chances, told)
        ctx.scale = scale
        return told.transpose(0, 1).flatten(1)

    @staticmethod
    def backward(ctx: Any, upstream: Any) -> tuple:
        query, key, value, chances, told = ctx.saved_tensors
        heads, length, size = query.shape
        upstream = upstream.view(length, heads, size).transpose(0, 1).contiguous()
        gradient = query.new_empty(3, heads, length, size)
        torch.bmm(chances.transpose(1, 2), upstream, out=gradient[2])
        through = torch.bmm(upstream, value.transpose(1, 2))
        through.sub_((upstream * told).sum(-1, keepdim=True)).mul_(chances)
        torch.bmm(through, key.mul(ctx.scale), out=gradient[0])
        torch.bmm(through.transpose(1, 2), query.mul(ctx.scale), out=gradient[1])
        return gradient.permute(2, 1, 0, 3), None


def _attention(fused: "torch.Tensor", bias: "torch.Tensor") -> "torch.Tensor":
    if fused.dtype == torch.float32 and fused.device.type == "cpu":
        return _Attention.apply(fused, bias)
    query, key, value = fused.permute(2, 1, 0, 3)[:, None]
    return F.scaled_dot_product_attention(query, key, value, attn_mask=bias[None])[0].transpose(0, 1).flatten(1)


class _TokenLosses(torch.autograd.Function):
    """Cross-entropy of each target (tokens,) given hidden states (tokens, hidden) and a frozen output matrix.

    The gradient is formed slice by slice with the loss, so that no more than `_LOGITS` logits exist at any time (the idea of
    Liger Kernel's fused linear cross-entropy, Hsu et al. 2024, arXiv 2410.10989).
    """

    @staticmethod
    def forward(ctx: Any, hidden: Any, weight: Any, targets: Any) -> "torch.Tensor":
        losses = torch.empty(len(targets), device=hidden.device)
        gradient = torch.empty_like(hidden) if ctx.needs_input_grad[0] else None
        size = max(1, _LOGITS // len(weight))
        for start in range(0, len(targets), size):
            part, wanted = slice(start, start + size), targets[start : start + size, None]
            logits = F.linear(hidden[part], weight).float()
            told = logits.gather(1, wanted)
            largest = logits.amax(1, keepdim=True)
            weights = logits.sub_(largest).exp_()  # softmax but for its denominator, which is cheaper to divide by below
            total = weights.sum(1, keepdim=True)
            losses[part] = (total.log() + largest - told)[:, 0]
            if gradient is not None:
                expected = (weights.to(hidden.dtype) @ weight).div_(total.to(hidden.dtype))
                gradient[part] = expected.sub_(weight[wanted[:, 0]])
        if gradient is not None:
            ctx.save_for_backward(gradient)
        return losses

    @staticmethod
    def backward(ctx: Any, upstream: Any) -> tuple:
        (gradient,) = ctx.saved_tensors
        return gradient * upstream[:, None].to(gradient.dtype), None, None


def _linear(layer: Any, x: "torch.Tensor", training: bool) -> "torch.Tensor":
    """What `layer` computes, adapted or not; kinds of adapter not known here go through their own forward pass."""
    from peft.tuners.lora import Linear

    if isinstance(layer, torch.nn.Linear):
        return F.linear(x, layer.weight, layer.bias)
    names = layer.active_adapters
    plain = type(layer) is Linear and len(names) == 1 and not (layer.merged or layer.use_dora.get(names[0]))
    if not plain or layer.base_layer.weight.requires_grad or layer.lora_bias.get(names[0]):
        return layer(x)
    name, base = names[0], layer.base_layer
    rate = layer.lora_dropout[name].p if training and isinstance(layer.lora_dropout[name], torch.nn.Dropout) else 0.0
    a, b = layer.lora_A[name].weight, layer.lora_B[name].weight
    return _LoraLinear.apply(x, base.weight, base.bias, a, b, layer.scaling[name], rate)


def _block(block: Any, hidden: "torch.Tensor", bias: "torch.Tensor", lengths: Sequence[int], training: bool) -> "torch.Tensor":
    attention, mlp = block.self_attention, block.mlp
    heads = attention.num_heads
    fused = _linear(attention.query_key_value, block.input_layernorm(hidden), training).view(len(hidden), heads, 3, -1)
    told = [_attention(part, bias[:, : len(part), : len(part)]) for part in fused.split(list(lengths))]
    hidden = hidden + _linear(attention.dense, torch.cat(told), training)
    inner = F.gelu(_linear(mlp.dense_h_to_4h, block.post_attention_layernorm(hidden), training))
    return hidden + _linear(mlp.dense_4h_to_h, inner, training)


def token_losses(model: "PreTrainedModel", rows: Sequence[tuple["torch.Tensor", "torch.Tensor"]]) -> list["torch.Tensor"]:
    """Per row of (input ids, labels), each of shape (length,), the cross-entropy in nats of its labelled tokens.

    As usual for causal models, a token is predicted from those before it; labels of IGNORED are skipped. Respects the
    model's training mode and gradient checkpointing. Raises ValueError for a model that `supports` refuses.
    """
    from transformers.models.falcon.modeling_falcon import build_alibi_tensor

    if not supports(model):
        raise ValueError(f"{type(model).__name__}: only a Falcon of the RW kind can be packed")
    causal = model.get_base_model() if hasattr(model, "get_base_model") else model
    trunk, settings, training = causal.transformer, causal.config, model.training
    hidden = trunk.word_embeddings(torch.cat([ids for ids, _ in rows]))
    lengths, longest = [len(ids) for ids, _ in rows], max(len(ids) for ids, _ in rows)
    # ALiBi as transformers rounds it, since the published weights were trained with that rounding
    alibi = build_alibi_tensor(
        torch.ones(1, longest, dtype=torch.long, device=hidden.device), settings.num_attention_heads, hidden.dtype
    )
    future = torch.ones(longest, longest, dtype=torch.bool, device=hidden.device).triu(1)
    slope = alibi / (settings.hidden_size // settings.num_attention_heads) ** 0.5
    bias = slope.masked_fill(future, torch.finfo(hidden.dtype).min)
    for block in trunk.h:
        if training and getattr(block, "gradient_checkpointing", False):
            from torch.utils.checkpoint import checkpoint

            hidden = checkpoint(_block, block, hidden, bias, lengths, training, use_reentrant=False)
        else:
            hidden = _block(block, hidden, bias, lengths, training)
    following = torch.cat([F.pad(labels[1:], (0, 1), value=IGNORED) for _, labels in rows])
    told = following != IGNORED
    hidden, targets, weight = trunk.ln_f(hidden[told]), following[told], causal.lm_head.weight
    if weight.requires_grad:
        losses = F.cross_entropy(F.linear(hidden, weight).float(), targets, reduction="none")
    else:
        losses = _TokenLosses.apply(hidden, weight, targets)
    return list(losses.split([int((labels[1:] != IGNORED).sum()) for _, labels in rows]))
