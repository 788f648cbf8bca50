"""The first Qwen (2023) as a structure whose step allocates what the published code's does; no weights, no generation.

Written from the published architecture (modeling_qwen.py of Qwen/Qwen-7B, read in a copy at
github.com/zhangningboo/Qwen-7B, 1ff20863b9e9; the code has a licence of its own and is not copied). What decides
memory:

- one fused projection for query, key and value, whose adapter has one input side;
- norms and rotary embedding in float32 where flash_attn's optional extensions are not installed, cast back after;
- the scores in flash_attn without a mask for a batch of one row; with ``sdpa`` a mask of length x length in the
  compute dtype, which torch's fused attention takes as a bias; with ``eager`` scores of every head, whose softmax
  autocast runs in float32;
- the head's 16-bit logits are shifted by a copy, and the loss casts that copy to float32 under autocast;
- checkpointing of whole blocks.

Running this file registers the type "qwen" with transformers' Auto classes.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.nn import functional
from transformers import AutoConfig, AutoModelForCausalLM, PretrainedConfig, PreTrainedModel
from transformers.modeling_outputs import CausalLMOutputWithPast


class QwenConfig(PretrainedConfig):  # type: ignore[misc]  # transformers is not type-checked here
    """Widths of a model; ``intermediate_size`` is that of one of the two MLP projections (half of the hub's figure)."""

    model_type = "qwen"

    def __init__(self, **settings: Any) -> None:
        self.vocab_size = 151936
        self.hidden_size = 4096
        self.intermediate_size = 11008
        self.num_hidden_layers = 32
        self.num_attention_heads = 32
        super().__init__(**{"tie_word_embeddings": False, **settings})


class _Norm(nn.Module):  # type: ignore[misc]
    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, states: Any) -> Any:
        wide = states.float()
        wide = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + 1e-6)
        return wide.type_as(states) * self.weight


def _rotated(states: Any, cosine: Any, sine: Any) -> Any:
    wide = states.float()
    first, second = wide.unflatten(-1, (2, -1)).unbind(-2)
    return (wide * cosine + torch.cat((-second, first), dim=-1) * sine).type_as(states)


class _Attention(nn.Module):  # type: ignore[misc]
    def __init__(self, config: QwenConfig) -> None:
        super().__init__()
        self.heads = config.num_attention_heads
        self.way = config._attn_implementation
        self.c_attn = nn.Linear(config.hidden_size, 3 * config.hidden_size)
        self.c_proj = nn.Linear(config.hidden_size, config.hidden_size, bias=False)

    def forward(self, states: Any, cosine: Any, sine: Any, mask: Any) -> Any:
        split = self.c_attn(states).split(states.shape[-1], dim=2)
        query, key, value = (each.unflatten(-1, (self.heads, -1)) for each in split)
        query, key = _rotated(query, cosine, sine), _rotated(key, cosine, sine)
        bias = None if self.way == "flash_attention_2" else _causal_bias(mask, query)
        query, key, value = (each.transpose(1, 2) for each in (query, key, value))
        if self.way == "eager":
            joined = _scored(query, key, value, bias)
        else:
            joined = functional.scaled_dot_product_attention(query, key, value, attn_mask=bias)
        return self.c_proj(joined.transpose(1, 2).contiguous().flatten(-2))


def _causal_bias(mask: Any, query: Any) -> Any:
    length = query.shape[1]
    causal = torch.tril(torch.ones((length, length), dtype=torch.bool, device=query.device))[None, None]
    wide = mask.expand(-1, -1, length, -1)
    return wide.masked_fill(~causal, torch.finfo(query.dtype).min)


def _scored(query: Any, key: Any, value: Any, bias: Any) -> Any:
    scores = torch.matmul(query, key.transpose(-1, -2)) / query.shape[-1] ** 0.5
    weights = functional.softmax(scores + bias, dim=-1).type(query.dtype)
    return torch.matmul(weights, value)


class _Mlp(nn.Module):  # type: ignore[misc]
    def __init__(self, config: QwenConfig) -> None:
        super().__init__()
        self.w1 = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.w2 = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.c_proj = nn.Linear(config.intermediate_size, config.hidden_size, bias=False)

    def forward(self, states: Any) -> Any:
        up, gate = self.w1(states), self.w2(states)
        product = up * functional.silu(gate)
        return self.c_proj(product)


class _Block(nn.Module):  # type: ignore[misc]
    def __init__(self, config: QwenConfig) -> None:
        super().__init__()
        self.ln_1, self.attn = _Norm(config.hidden_size), _Attention(config)
        self.ln_2, self.mlp = _Norm(config.hidden_size), _Mlp(config)

    def forward(self, states: Any, cosine: Any, sine: Any, mask: Any) -> Any:
        attended = self.attn(self.ln_1(states), cosine, sine, mask) + states
        return attended + self.mlp(self.ln_2(attended))


class _Transformer(nn.Module):  # type: ignore[misc]
    gradient_checkpointing = False

    def __init__(self, config: QwenConfig) -> None:
        super().__init__()
        self.head_width = config.hidden_size // config.num_attention_heads
        self.wte = nn.Embedding(config.vocab_size, config.hidden_size)
        self.h = nn.ModuleList(_Block(config) for _ in range(config.num_hidden_layers))
        self.ln_f = _Norm(config.hidden_size)

    def forward(self, tokens: Any, mask: Any) -> Any:
        states = self.wte(tokens)
        positions = torch.arange(2 * tokens.shape[1], device=tokens.device).float()
        angles = torch.outer(positions, torch.arange(self.head_width, device=tokens.device).float())[None, :, None]
        cosine, sine = angles.cos()[:, : tokens.shape[1]], angles.sin()[:, : tokens.shape[1]]
        spread = (1.0 - mask[:, None, None].to(states.dtype)) * torch.finfo(states.dtype).min
        for block in self.h:
            if self.gradient_checkpointing and self.training:
                states = self._gradient_checkpointing_func(block.__call__, states, cosine, sine, spread)
            else:
                states = block(states, cosine, sine, spread)
        return self.ln_f(states)


class QwenForCausalLM(PreTrainedModel):  # type: ignore[misc]
    """Qwen with its language-model head."""

    config_class = QwenConfig
    base_model_prefix = "transformer"
    supports_gradient_checkpointing = True
    _supports_sdpa = _supports_flash_attn_2 = True

    def __init__(self, config: QwenConfig) -> None:
        super().__init__(config)
        self.transformer = _Transformer(config)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)

    def get_input_embeddings(self) -> Any:
        """Returns the embedding, which checkpointing gives an output that needs a gradient."""
        return self.transformer.wte

    def get_output_embeddings(self) -> Any:
        """Returns the head, which quantization leaves as it is."""
        return self.lm_head

    def forward(
        self, input_ids: Any, labels: Any, attention_mask: Any = None, use_cache: bool | None = None, **_: Any
    ) -> Any:
        """Returns loss and logits of a batch; a missing mask is one of ones, as the published loop's collator makes."""
        del use_cache
        mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        logits = self.lm_head(self.transformer(input_ids, mask))
        shifted = logits[..., :-1, :].contiguous()
        # Autocast runs the loss in float32.
        wide = shifted.view(-1, shifted.shape[-1])
        wide = wide.float() if torch.is_autocast_enabled() else wide
        loss = functional.cross_entropy(wide, labels[..., 1:].contiguous().view(-1))
        return CausalLMOutputWithPast(loss=loss, logits=logits)


AutoConfig.register("qwen", QwenConfig)
AutoModelForCausalLM.register(QwenConfig, QwenForCausalLM)
