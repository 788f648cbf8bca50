"""Bytes an element has in the parts of a training step, and the dimensions that the formulas multiply them with."""

from __future__ import annotations

from dataclasses import dataclass

from autopeft.memory._block import Family, Site, adapted, adapted_by_site, family_of, targets_of
from autopeft.memory._static import DTYPE_BYTES, TrainedTensors
from autopeft.methods import get_method
from autopeft.specs import Candidate, DeviceKind, LinearLayer, ModelSpec


@dataclass(frozen=True, slots=True, kw_only=True)
class Widths:
    """Dimensions, and bytes of one element of each kind of tensor.

    Attributes:
        layers: adapted linear layers; empty where the base itself is trained.
        sites: those inside the blocks, by where they stand.
        tokens: of one forward, ``rows * sequence_length``.
        trained: whether the base weights themselves are trained.
        autocast: whether products run in 16 bits on float32 trainable weights (``autopeft.engine.loss``).
        quantized: whether linear layers are bitsandbytes modules.
        dora: whether the weight is decomposed into direction and magnitude.
        base: bytes of the dtype that base weights are computed with.
        adapter: bytes of an adapter weight.
        product: bytes of what an adapter's products read and write.
        stream: bytes of the residual stream between the blocks.
        inner: bytes of the MLP's inner activations.
    """

    candidate: Candidate
    model: ModelSpec
    family: Family
    layers: tuple[LinearLayer, ...]
    sites: dict[Site, tuple[LinearLayer, ...]]
    kind: DeviceKind
    tokens: int
    sequence_length: int
    trained: bool
    autocast: bool
    quantized: bool
    dora: bool
    base: int
    adapter: int
    product: int
    stream: int
    inner: int

    @property
    def query(self) -> int:
        """Width of all query heads."""
        return self.model.attention_heads * self.model.head_dim

    @property
    def key(self) -> int:
        """Width of all key heads, and of all value heads."""
        return self.model.key_value_heads * self.model.head_dim

    @property
    def normed(self) -> int:
        """Bytes of a norm's output, which the attention and the MLP read."""
        return 4 if self.stream == 4 or (self.autocast and self.family.norm != "rms") else self.base


def widths_of(candidate: Candidate, model: ModelSpec, kind: DeviceKind, *, sequence_length: int) -> Widths:
    """Returns the widths of a candidate's training step."""
    method = get_method(candidate.method)
    family = family_of(model)
    targets = targets_of(model, candidate.target_modules)
    base = DTYPE_BYTES[candidate.dtype]
    adapter = DTYPE_BYTES[candidate.adapter_dtype or candidate.dtype]
    autocast = base == 2 and candidate.adapter_dtype == "float32"
    quantized = candidate.quantization != "none"
    spec = method.adapter_spec(candidate, _ENOUGH_STEPS) if method.has_adapter else None
    dora = spec is not None and bool(spec.settings.get("use_dora"))
    # bitsandbytes' layers answer in the dtype they were asked in: once something is float32, the stream stays so.
    # prepare_kbit makes the norms so, DoRA its magnitudes, autocast on CUDA torch's own layer norm.
    float32_source = autocast and kind != "cpu" and (dora or family.norm != "rms")
    upcast = quantized and (candidate.prepare_kbit or float32_source)
    return Widths(
        candidate=candidate,
        model=model,
        family=family,
        layers=adapted(targets),
        sites=adapted_by_site(targets),
        kind=kind,
        tokens=candidate.per_device_batch_size * sequence_length,
        sequence_length=sequence_length,
        trained=not method.has_adapter,
        autocast=autocast,
        quantized=quantized,
        dora=dora,
        base=base,
        adapter=adapter,
        product=base if autocast else adapter,
        stream=4 if upcast or (autocast and family.norm == "post") else base,
        inner=4 if upcast else base,
    )


def trainable_parameters(candidate: Candidate, model: ModelSpec) -> int:
    """Returns how many parameters require gradients."""
    method = get_method(candidate.method)
    if not method.has_adapter:
        return method.trainable_parameters(candidate, model)
    layers = adapted(targets_of(model, candidate.target_modules))
    return sum(layer.count * method.layer_parameters(candidate, layer) for layer in layers)


def trained_tensors(candidate: Candidate, model: ModelSpec) -> tuple[TrainedTensors, ...]:
    """Returns the shapes of all tensors that are trained: the adapter's factors, or every weight of the model.

    What belongs to no linear layer and to no adapter's factor (norms, biases, magnitudes) counts as one vector each.
    """
    method = get_method(candidate.method)
    found: list[TrainedTensors] = []
    if not method.has_adapter:
        found += [
            TrainedTensors(x.out_features, x.in_features, x.count) for x in model.linear_layers if not _tied(x, model)
        ]
        found.append(TrainedTensors(model.vocab_size, model.hidden_size, 1))
        rest = method.trainable_parameters(candidate, model) - sum(each.count * each.entries for each in found)
        return (*found, TrainedTensors(max(0, rest), 1, 1))
    for layer in adapted(targets_of(model, candidate.target_modules)):
        parameters = method.layer_parameters(candidate, layer)
        rank = parameters // (layer.in_features + layer.out_features)
        found.append(TrainedTensors(rank, layer.in_features, layer.count))
        found.append(TrainedTensors(layer.out_features, rank, layer.count))
        rest = parameters - rank * (layer.in_features + layer.out_features)
        if rest:
            found.append(TrainedTensors(rest, 1, layer.count))
    return tuple(found)


def _tied(layer: LinearLayer, model: ModelSpec) -> bool:
    return model.tie_word_embeddings and layer.path == "lm_head"


_ENOUGH_STEPS = 1000
"""Steps that an adapter's specification is asked for; none of its settings that memory depends on changes with them."""
