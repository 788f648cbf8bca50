"""Builds a model without weights, with its adapter, and turns it into fake tensors of the device."""

from __future__ import annotations

import collections
import contextlib
import copy
import dataclasses
import functools
import itertools
import json
import re
import runpy
from collections.abc import Iterator
from typing import Any
from unittest import mock

import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from autopeft.engine.adapters import enable_checkpointing, inject
from autopeft.engine.base import torch_dtype
from autopeft.engine.loss import prepare_loss
from autopeft.errors import AutoPeftError, ModelError
from autopeft.memory.tracing.fake_quantization import dequantizing_stand_in, pack_weights, quantize_modules
from autopeft.memory.tracing.fakes import as_parameter, fake_of
from autopeft.memory.tracing.hollow import CheapInitialization, hollow
from autopeft.memory.tracing.request import TraceRequest
from autopeft.specs.candidate import Candidate

MANY_STEPS = 1000
"""Length of training that the adapter is built for: AdaLoRA then masks no rank in the steps that are traced."""

DEPTH_FIELDS = ("adapter_layers", "num_layers")
"""Settings of peft's configurations that hold the model's number of layers, or a smaller one."""

SHARING_TYPES = frozenset({"LILY"})
"""peft types whose neighbouring layers share weights in a rhythm of their own (tests/golden tries every type)."""

LAYER_FIELDS = ("layers_to_transform", "layer_replication")
PATTERN_FIELDS = ("rank_pattern", "alpha_pattern", "target_modules", "exclude_modules", "modules_to_save")


@functools.cache
def load_model_code(path: str) -> None:
    """Runs a Python file that registers an architecture with transformers' Auto classes, once; "" is none.

    Raises:
        ModelError: if there is no such file, or it fails.
    """
    if not path:
        return
    try:
        runpy.run_path(path, run_name="autopeft_model_code")
    except Exception as error:
        raise ModelError(f"the model code {path} does not run: {type(error).__name__}: {error}") from error


def configuration(request: TraceRequest) -> Any:
    """Returns transformers' configuration of the whole model.

    Raises:
        ModelError: if the installed transformers does not know the architecture or refuses the configuration.
    """
    from transformers import AutoConfig

    dropped = ("model_type", "dtype", "torch_dtype", "quantization_config", "transformers_version", "auto_map")
    # A copy: transformers writes into nested settings (rope_scaling).
    settings = copy.deepcopy({name: value for name, value in request.config.items() if name not in dropped})
    try:
        return AutoConfig.for_model(request.model_type, **settings)
    except (ValueError, KeyError, TypeError) as error:
        text = f"the installed transformers cannot build a {request.model_type!r} model from its config.json"
        raise ModelError(f"{text}: {error}") from error


def built_model(request: TraceRequest, config: Any) -> tuple[Any, tuple[str, ...]]:
    """Returns the model with its adapter, ready to train, and notes on what was left unquantized.

    The base is on the meta device, which plays the training device; adapters are made on the host processor, as peft
    makes them, and moved to the base. Those whose shapes depend on the values of weights are built wholly on the host,
    above weights that take one element of memory each.
    """
    try:
        return _built_model(request, config, wholly_on_host=False)
    except AutoPeftError:
        raise
    except Exception as error:
        if request.candidate.quantization != "none":
            raise  # packed weights have values nowhere, and what peft refuses there it refuses in a training too
        try:
            return _built_model(request, config, wholly_on_host=True)
        except Exception as second:
            raise second from error


def _built_model(request: TraceRequest, config: Any, *, wholly_on_host: bool) -> tuple[Any, tuple[str, ...]]:
    candidate = request.candidate
    with dequantizing_stand_in(candidate), CheapInitialization():
        with torch.device("meta"):
            model = _base_model(request, config)
            notes = quantize_modules(model, candidate)
            if not request.encoder:
                prepare_loss(model, candidate.trainer)
        if wholly_on_host:
            _hollow_out(model)
        task = "SEQ_CLS" if request.encoder else "CAUSAL_LM"
        model = inject(model, _at_depth(candidate, request, config), MANY_STEPS, task)
    model.wholly_on_host = wholly_on_host
    if request.style.float32_norms:
        _cast_norms(model, torch_dtype(candidate.dtype))
    if request.style.float32_logits and not request.encoder:
        model.get_output_embeddings().register_forward_hook(_upcast_output)
    model.config.use_cache = request.style.key_value_cache
    if candidate.activation_checkpointing:
        enable_checkpointing(model, reentrant=request.style.reentrant_checkpointing)
    return model.train(), notes


def _hollow_out(model: Any) -> None:
    """Replaces meta parameters by zeros of the same shape that share one element of memory; tied ones stay tied."""
    made: dict[int, Any] = {}
    for module in model.modules():
        for name, parameter in module._parameters.items():
            if parameter is not None and parameter.is_meta:
                if id(parameter) not in made:
                    empty = hollow(parameter.shape, parameter.dtype)
                    made[id(parameter)] = (torch.nn.Parameter(empty, requires_grad=parameter.requires_grad), parameter)
                module._parameters[name] = made[id(parameter)][0]


def _at_depth(candidate: Candidate, request: TraceRequest, config: Any) -> Candidate:
    """Returns the candidate with what a saved adapter configuration says of the number of layers made to fit."""
    text = candidate.options.get("peft_config")
    if text is None:
        return candidate
    content = json.loads(str(text))
    layers = request.layers
    for name in DEPTH_FIELDS:
        if content.get(name) == layers:
            content[name] = config.num_hidden_layers
    if "progressbar" in content:
        content["progressbar"] = False
    return dataclasses.replace(candidate, options={**candidate.options, "peft_config": json.dumps(content)})


def depends_on_depth(request: TraceRequest) -> bool:
    """Returns whether a saved adapter configuration names single layers, so that no shallow model stands for it."""
    content = json.loads(str(request.candidate.options.get("peft_config", "{}")))
    if content.get("peft_type") in SHARING_TYPES or any(content.get(name) for name in LAYER_FIELDS):
        return True
    odd = [name for name in DEPTH_FIELDS if content.get(name) not in (None, request.layers)]
    return bool(odd) or any(re.search(r"\.\d+\.", str(content.get(name))) for name in PATTERN_FIELDS)


def _cast_norms(model: Any, dtype: torch.dtype) -> None:
    for name, module in model.named_modules():
        if isinstance(module, torch.nn.LayerNorm) or "norm" in name.rpartition(".")[2].lower():
            module.to(torch.float32)
        elif isinstance(module, torch.nn.Embedding) or name.endswith("lm_head"):
            module.to(dtype)


def _upcast_output(module: Any, args: Any, output: Any) -> Any:
    del module, args
    return output.float()


def _base_model(request: TraceRequest, config: Any) -> Any:
    from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

    auto = AutoModelForSequenceClassification if request.encoder else AutoModelForCausalLM
    attention = request.candidate.attention
    flash = attention == "flash_attention_2"
    wanted = "sdpa" if flash and not _chosen_at_construction() else attention
    try:
        with _flash_attention_allowed() if flash else contextlib.nullcontext():
            settings = {_dtype_keyword(): torch_dtype(request.candidate.dtype), "attn_implementation": wanted}
            model = auto.from_config(config, **settings)
    except (ValueError, ImportError) as error:
        first = str(error).splitlines()[0]
        text = f"a {request.model_type!r} model cannot be built with attention {attention!r}: {first}"
        raise ModelError(text) from error
    if flash:
        model.config._attn_implementation = attention
    return model


def _dtype_keyword() -> str:
    """The setting ``torch_dtype`` was renamed in transformers 4.56."""
    return "dtype" if _transformers_version() >= (4, 56) else "torch_dtype"


def _transformers_version() -> tuple[int, int]:
    import transformers

    major, minor = transformers.__version__.split(".")[:2]
    return int(major), int(minor)


def _chosen_at_construction() -> bool:
    """Whether some architectures have a class for each attention implementation, as before transformers 5."""
    return _transformers_version() < (5, 0)


@contextlib.contextmanager
def _flash_attention_allowed() -> Iterator[None]:
    """Spares a model the question whether the flash_attn package is there, on a machine without a GPU."""
    from transformers import PreTrainedModel

    def allow(cls: Any, config: Any, *args: Any, **kwargs: Any) -> Any:
        del cls, args, kwargs
        config._attn_implementation = "flash_attention_2"
        return config

    name = "_check_and_enable_flash_attn_2"
    if not hasattr(PreTrainedModel, name):
        yield
        return
    with mock.patch.object(PreTrainedModel, name, classmethod(allow)):
        yield


def materialize(model: Any, request: TraceRequest, mode: FakeTensorMode) -> None:
    """Turns tensors of every kind into fake ones of a mode, on the device or on the host.

    The host processor plays the device here, and the meta device the host. What modules share stays shared;
    ``Module.to_empty`` would part it, and fails on adapters that share parameters.
    """
    fakes = _Fakes(mode, host_plays_device=model.wholly_on_host)
    moved = not request.style.host_buffers
    _send_offloaded_to_host(model, fakes)
    for module in model.modules():
        for name, parameter in module._parameters.items():
            if parameter is not None:
                module._parameters[name] = fakes.of(parameter, moved=moved)
        for name, buffer in module._buffers.items():
            if buffer is not None:
                module._buffers[name] = fakes.of(buffer, moved=moved)
        for name in sorted(vars(module).keys() - _MODULE_ATTRIBUTES):
            setattr(module, name, fakes.within(getattr(module, name)))
    pack_weights(model, request.candidate, functools.partial(fake_of, mode))


def _send_offloaded_to_host(model: Any, fakes: _Fakes) -> None:
    """FRoD computes with factors of a weight and keeps the weight itself in the host's memory while it trains."""
    for module in model.modules():
        if any(getattr(module, "runtime_offload_base_weight", {}).values()):
            fakes.of(module.get_base_layer().weight, on_host=True)


_MODULE_ATTRIBUTES = frozenset(vars(torch.nn.Module()))

_SIZES = 16
"""Up to so many whole numbers on the host stay what they are: sizes that an adapter stores as a tensor."""


class _Fakes:
    """The fake tensors that stand for a model's own, each kept with its original so that no id is used twice."""

    def __init__(self, mode: FakeTensorMode, *, host_plays_device: bool) -> None:
        self._mode = mode
        self._host_plays_device = host_plays_device
        self._made: dict[int, Any] = {}

    def of(self, tensor: Any, *, on_host: bool = False, moved: bool = False) -> Any:
        """Returns the fake tensor that stands for a tensor; ``moved`` to the device wherever it was made."""
        if id(tensor) not in self._made:
            self._made[id(tensor)] = (self._make(tensor, on_host, moved), tensor)
        return self._made[id(tensor)][0]

    def within(self, value: Any) -> Any:
        """Returns a plain attribute with the tensors in it replaced; mappings and lists keep their identity."""
        if isinstance(value, torch.Tensor):
            return self.of(value)
        if type(value) in (dict, collections.OrderedDict):
            value.update({key: self.within(entry) for key, entry in value.items()})
        elif type(value) is list:
            value[:] = [self.within(entry) for entry in value]
        elif type(value) is tuple:
            return tuple(self.within(entry) for entry in value)
        return value

    def _make(self, tensor: Any, on_host: bool, moved: bool) -> Any:
        if not tensor.is_meta and not tensor.is_floating_point() and tensor.numel() <= _SIZES:
            return tensor
        on_device = not on_host and (tensor.is_meta or moved or self._host_plays_device)
        fake = fake_of(self._mode, tensor, "cpu" if on_device else "meta")
        if isinstance(tensor, torch.nn.Parameter):
            return as_parameter(fake, tensor.requires_grad)
        return fake


def plain_tensors(module: Any) -> Iterator[torch.Tensor]:
    """Returns the tensors that a module keeps as plain attributes, or in lists and mappings."""
    for name in sorted(vars(module).keys() - _MODULE_ATTRIBUTES):
        yield from _tensors_in(getattr(module, name))


def _tensors_in(value: Any) -> Iterator[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        yield value
    elif type(value) in (dict, collections.OrderedDict):
        yield from itertools.chain.from_iterable(map(_tensors_in, value.values()))
    elif type(value) in (list, tuple):
        yield from itertools.chain.from_iterable(map(_tensors_in, value))


def batch_of(request: TraceRequest) -> dict[str, Any]:
    """Returns one batch of full rows; with ``style.padded`` one with a padding mask."""
    rows, length = request.candidate.per_device_batch_size, request.sequence_length
    packed = request.candidate.packing and request.candidate.attention == "flash_attention_2"
    shape = (1, rows * length) if packed else (rows, length)
    tokens = torch.zeros(shape, dtype=torch.long)
    labels = torch.zeros(rows, dtype=torch.long) if request.encoder else torch.zeros(shape, dtype=torch.long)
    batch = {"input_ids": tokens, "labels": labels}
    if request.style.padded:
        batch["attention_mask"] = torch.zeros(shape, dtype=torch.long)
    return batch


@contextlib.contextmanager
def documents_in_rows(request: TraceRequest) -> Iterator[None]:
    """Answers without reading values whether rows hold several documents, so that attention needs a mask of blocks."""
    try:
        from transformers import masking_utils
    except ImportError:  # before transformers 4.53
        yield
        return
    if not hasattr(masking_utils, "find_packed_sequence_indices"):
        yield
        return
    shape = (request.candidate.per_device_batch_size, request.sequence_length)
    masked = request.candidate.packing and request.candidate.attention != "flash_attention_2"

    def found(*args: Any, **kwargs: Any) -> Any:
        del args, kwargs
        return torch.zeros(shape, dtype=torch.long) if masked else None

    with mock.patch.object(masking_utils, "find_packed_sequence_indices", found):
        yield


@contextlib.contextmanager
def blank_quantization_map() -> Iterator[None]:
    """Spares bitsandbytes' 8-bit optimizers the values of their code book, which fake tensors cannot be sorted by."""
    try:
        from bitsandbytes import functional
    except ImportError:
        yield
        return
    with mock.patch.object(functional, "create_dynamic_map", _blank_map):
        yield


def _blank_map(**settings: Any) -> torch.Tensor:
    del settings
    return torch.empty(256)
