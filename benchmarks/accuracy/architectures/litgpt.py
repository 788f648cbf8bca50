"""LitGPT's model, LoRA layers and chunked loss as a structure whose step allocates what the published code's does.

Written from litgpt/lora.py, model.py, utils.py and finetune/lora_legacy.py of litgpt 0.5.13 on PyPI (Apache-2.0); not
copied. What decides memory:

- query, key and value are one projection; its adapter's output is padded with zeros where a part is not adapted;
- norms in float32, rotary embedding in the compute dtype with float32 tables; keys and values repeated for every head;
- the head runs on chunks of 128 tokens, and so does the loss, in the logits' own dtype;
- under bitsandbytes every linear layer is quantized, the head too, and the embedding is replaced by one with a norm
  after the adapters were marked as trained and the optimizer was made: it gets a gradient that nothing ever clears, and
  the first embedding stays alive.

Running this file registers the type "litgpt" with transformers' Auto classes. The model trains its own adapters, so it
is built as if it were fully trained, and keeps what it freezes frozen.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.nn import functional
from transformers import AutoConfig, AutoModelForCausalLM, PretrainedConfig, PreTrainedModel
from transformers.modeling_outputs import CausalLMOutputWithPast

CHUNK = 128
"""Tokens of a piece of the head and of the loss."""


class LitGptConfig(PretrainedConfig):  # type: ignore[misc]  # transformers is not type-checked here
    """Shapes of a model and of its adapters.

    ``family`` is "llama" or "phi" (one norm a block, attention and MLP side by side, biases). ``adapted`` names the
    adapted layers: "query", "key", "value", "projection", "mlp", "head". ``four_bits`` says whether layers are
    quantized.
    """

    model_type = "litgpt"

    def __init__(self, **settings: Any) -> None:
        self.family = "llama"
        self.vocab_size = 32000
        self.hidden_size = 4096
        self.intermediate_size = 11008
        self.num_hidden_layers = self.num_attention_heads = self.num_key_value_heads = 32
        self.head_dim = 128
        self.rotary_width = 128
        self.adapted = ("query", "value")
        self.lora_r = 8
        self.lora_dropout = 0.05
        self.four_bits = False
        super().__init__(**{"tie_word_embeddings": False, **settings})


class _RmsNorm(nn.Module):  # type: ignore[misc]
    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, states: Any) -> Any:
        dtype = states.dtype
        states = states.float()
        squares = torch.mean(states * states, dim=-1, keepdim=True)
        normed = states * torch.rsqrt(squares + 1e-5)
        return (normed * self.weight.float()).to(dtype)


def _norm(config: LitGptConfig) -> Any:
    return nn.LayerNorm(config.hidden_size) if config.family == "phi" else _RmsNorm(config.hidden_size)


class _LoraLinear(nn.Module):  # type: ignore[misc]
    def __init__(self, config: LitGptConfig, width: int, out: int, *, adapted: bool, bias: bool) -> None:
        super().__init__()
        self.linear = nn.Linear(width, out, bias=bias)
        self.adapted = adapted
        if adapted:
            self.lora_dropout = nn.Dropout(config.lora_dropout)
            self.lora_A = nn.Parameter(torch.zeros(config.lora_r, width))
            self.lora_B = nn.Parameter(torch.zeros(out, config.lora_r))

    def forward(self, states: Any) -> Any:
        pretrained = self.linear(states)
        if not self.adapted:
            return pretrained
        update = (self.lora_dropout(states) @ self.lora_A.transpose(0, 1) @ self.lora_B.transpose(0, 1)) * 2.0
        return pretrained + update


class _LoraQkv(nn.Module):  # type: ignore[misc]
    def __init__(self, config: LitGptConfig) -> None:
        super().__init__()
        heads, groups = config.num_attention_heads, config.num_key_value_heads
        self.grouped = heads != groups
        widths = [config.head_dim * count for count in (heads, groups, groups)]
        self.linear = nn.Linear(config.hidden_size, sum(widths), bias=config.family == "phi")
        parts = [name in config.adapted for name in ("query", "key", "value")]
        self.adapted, self.whole = any(parts), all(parts)
        if not self.adapted:
            return
        starts = [sum(widths[:index]) for index in range(3)]
        places = zip(starts, widths, parts, strict=True)
        columns = torch.cat([torch.arange(start, start + width) for start, width, part in places if part])
        self.register_buffer("columns", columns, persistent=False)
        self.widths = [width for width, part in zip(widths, parts, strict=True) if part]
        self.lora_dropout = nn.Dropout(config.lora_dropout)
        self.lora_A = nn.Parameter(torch.zeros(config.lora_r * len(self.widths), config.hidden_size))
        self.lora_B = nn.Parameter(torch.zeros(sum(self.widths), config.lora_r))

    def forward(self, states: Any) -> Any:
        pretrained = self.linear(states)
        if not self.adapted:
            return pretrained
        inner = functional.linear(self.lora_dropout(states), self.lora_A)
        outer = self._raised(inner.transpose(-2, -1), self.lora_B.unsqueeze(-1)).transpose(-2, -1)
        update = self._padded(outer, pretrained.shape[-1]) * 2.0
        return pretrained + update

    def _raised(self, inner: Any, weight: Any) -> Any:
        if not self.grouped:
            return functional.conv1d(inner, weight, groups=len(self.widths))
        parts = zip(inner.chunk(len(self.widths), dim=1), weight.split(self.widths), strict=True)
        return torch.cat([functional.conv1d(part, piece) for part, piece in parts], dim=1)

    def _padded(self, update: Any, width: int) -> Any:
        if self.whole:
            return update
        zeros = update.new_zeros(*update.shape[:-1], width)
        return zeros.index_copy_(dim=-1, index=self.columns, source=update)


def _rotated(states: Any, cosine: Any, sine: Any) -> Any:
    half = states.shape[-1] // 2
    turned = torch.cat((-states[..., half:], states[..., :half]), dim=-1)
    return ((states * cosine) + (turned * sine)).to(states.dtype)


class _Attention(nn.Module):  # type: ignore[misc]
    def __init__(self, config: LitGptConfig) -> None:
        super().__init__()
        self.config = config
        self.qkv = _LoraQkv(config)
        out = config.head_dim * config.num_attention_heads
        adapted, bias = "projection" in config.adapted, config.family == "phi"
        self.proj = _LoraLinear(config, out, config.hidden_size, adapted=adapted, bias=bias)

    def forward(self, states: Any, cosine: Any, sine: Any) -> Any:
        heads, groups, width = self.config.num_attention_heads, self.config.num_key_value_heads, self.config.head_dim
        parts = self.qkv(states).split((heads * width, groups * width, groups * width), dim=-1)
        query, key, value = (part.unflatten(-1, (-1, width)).transpose(1, 2) for part in parts)
        turned = self.config.rotary_width
        query_turned = _rotated(query[..., :turned], cosine, sine)
        key_turned = _rotated(key[..., :turned], cosine, sine)
        query = torch.cat((query_turned, query[..., turned:]), dim=-1)
        key = torch.cat((key_turned, key[..., turned:]), dim=-1)
        if groups != heads:
            key = key.repeat_interleave(heads // groups, dim=1)
            value = value.repeat_interleave(heads // groups, dim=1)
        joined = functional.scaled_dot_product_attention(query, key, value, is_causal=True).transpose(1, 2)
        return self.proj(joined.reshape(*joined.shape[:2], -1))


class _Mlp(nn.Module):  # type: ignore[misc]
    def __init__(self, config: LitGptConfig) -> None:
        super().__init__()
        settings = {"adapted": "mlp" in config.adapted, "bias": config.family == "phi"}
        self.gated = config.family == "llama"
        self.fc_1 = _LoraLinear(config, config.hidden_size, config.intermediate_size, **settings)
        if self.gated:
            self.fc_2 = _LoraLinear(config, config.hidden_size, config.intermediate_size, **settings)
        self.proj = _LoraLinear(config, config.intermediate_size, config.hidden_size, **settings)

    def forward(self, states: Any) -> Any:
        first = self.fc_1(states)
        if not self.gated:
            first = functional.gelu(first, approximate="tanh")
            return self.proj(first)
        second = self.fc_2(states)
        states = functional.silu(first) * second
        return self.proj(states)


class _Block(nn.Module):  # type: ignore[misc]
    def __init__(self, config: LitGptConfig) -> None:
        super().__init__()
        self.beside = config.family == "phi"
        self.norm_1, self.attn, self.mlp = _norm(config), _Attention(config), _Mlp(config)
        if not self.beside:
            self.norm_2 = _norm(config)

    def forward(self, states: Any, cosine: Any, sine: Any) -> Any:
        normed = self.norm_1(states)
        states = self.attn(normed, cosine, sine) + states
        if not self.beside:
            normed = self.norm_2(states)
        return self.mlp(normed) + states


class LitGptForCausalLM(PreTrainedModel):  # type: ignore[misc]
    """LitGPT's GPT with its own LoRA and its loss."""

    config_class = LitGptConfig
    _supports_sdpa = True

    def __init__(self, config: LitGptConfig) -> None:
        super().__init__(config)
        adapted = "head" in config.adapted
        bias = config.family == "phi"
        self.lm_head = _LoraLinear(config, config.hidden_size, config.vocab_size, adapted=adapted, bias=bias)
        self.wte = nn.Embedding(config.vocab_size, config.hidden_size)
        if config.four_bits:
            self.replaced = nn.Embedding(config.vocab_size, config.hidden_size)
            self.register_buffer("embedding_gradient", torch.zeros_like(self.wte.weight), persistent=False)
            self.embedding_norm = nn.LayerNorm(config.hidden_size)
        self.h = nn.ModuleList(_Block(config) for _ in range(config.num_hidden_layers))
        self.ln_f = _norm(config)

    def requires_grad_(self, requires_grad: bool = True) -> Any:
        """Trains the adapters alone, whatever is asked."""
        for name, parameter in self.named_parameters():
            parameter.requires_grad = requires_grad and "lora_" in name
        return self

    def get_input_embeddings(self) -> Any:
        """Returns the embedding."""
        return self.wte

    def forward(self, input_ids: Any, labels: Any, **_: Any) -> Any:
        """Returns the loss, computed in chunks, and the chunks of logits."""
        states = self.wte(input_ids)
        if self.config.four_bits:
            states = self.embedding_norm(states).requires_grad_()  # its gradient is asked for, see embedding_gradient
        positions = torch.arange(input_ids.shape[1], device=input_ids.device).float()
        columns = torch.arange(self.config.rotary_width, device=input_ids.device).float()
        angles = torch.outer(positions, columns)[None]
        cosine, sine = angles.cos(), angles.sin()
        for block in self.h:
            states = block(states, cosine, sine)
        states = self.ln_f(states)
        logits = [self.lm_head(piece) for piece in states.split(CHUNK, dim=1)]
        logits[-1] = logits[-1][..., :-1, :]
        return CausalLMOutputWithPast(loss=_chunked_loss(logits, labels[..., 1:]), logits=logits)


def _chunked_loss(logits: list[Any], targets: Any) -> Any:
    pieces = [piece.reshape(-1, piece.shape[-1]) for piece in logits]
    wanted = [piece.reshape(-1) for piece in targets.split(logits[0].shape[1], dim=1)]
    losses = [functional.cross_entropy(a, b, reduction="none") for a, b in zip(pieces, wanted, strict=True)]
    return torch.cat(losses).sum() / torch.tensor(targets.numel())


AutoConfig.register("litgpt", LitGptConfig)
AutoModelForCausalLM.register(LitGptConfig, LitGptForCausalLM)
