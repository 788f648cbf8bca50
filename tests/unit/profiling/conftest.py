"""Little models whose tokenizers let expected counts be counted by hand."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import tokenizers
from tokenizers import models, pre_tokenizers

from autopeft.specs import ModelSpec


def _model_at(folder: Path | None, **changes: Any) -> ModelSpec:
    """Returns a model of which only the tokenizer, the context and the template matter here."""
    model = ModelSpec(
        id="little",
        format="folder" if folder else "profile",
        path=str(folder) if folder else None,
        revision=None,
        model_type="llama",
        kind="causal_lm",
        parameter_count=1,
        parameter_count_source="config",
        layers=1,
        hidden_size=1,
        intermediate_size=1,
        vocab_size=1,
        attention_heads=1,
        key_value_heads=1,
        head_dim=1,
        tie_word_embeddings=True,
        linear_layers=(),
        context_length=512,
    )
    return replace(model, **changes)


@pytest.fixture(scope="session")
def model_at() -> Callable[..., ModelSpec]:
    """Makes models of a folder, with changes."""
    return _model_at


@pytest.fixture(scope="session")
def word_model(tmp_path_factory: pytest.TempPathFactory) -> ModelSpec:
    """A model whose tokenizer makes one token of every word, so that expected counts are counted words."""
    folder = tmp_path_factory.mktemp("words")
    tokenizer = tokenizers.Tokenizer(models.WordLevel({"[UNK]": 0}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.save(str(folder / "tokenizer.json"))
    return _model_at(folder)


@pytest.fixture(scope="session")
def byte_model(tmp_path_factory: pytest.TempPathFactory) -> ModelSpec:
    """A model with a token for every byte."""
    folder = tmp_path_factory.mktemp("bytes")
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = tokenizers.Tokenizer(models.BPE({letter: place for place, letter in enumerate(alphabet)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = tokenizers.decoders.ByteLevel()
    tokenizer.save(str(folder / "tokenizer.json"))
    return _model_at(folder)
