"""Contract tests for methods: subclass, set ``method_name``, and pytest runs what every method must hold.

::

    class TestMine(PeftMethodContract):
        method_name = "mine"
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from autopeft.methods import MethodContext, PeftMethod, get_method
from autopeft.specs import Candidate, Device, ModelSpec

if TYPE_CHECKING:
    import torch

STEPS = 12
CPU = Device(
    name="test CPU",
    kind="cpu",
    total_memory_bytes=2**33,
    free_memory_bytes=2**33,
    supports_bfloat16=True,
    supports_nf4=True,
    supports_int8=True,
)


def tiny_llama(folder: Path) -> Path:
    """Returns a folder with a real but tiny Llama, random weights, in safetensors; made on first use."""
    target = folder / "tiny-llama"
    if not target.exists():
        import torch
        from transformers import LlamaConfig, LlamaForCausalLM

        torch.manual_seed(0)
        config = LlamaConfig(
            hidden_size=64,
            intermediate_size=128,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            vocab_size=260,
            tie_word_embeddings=False,
        )
        LlamaForCausalLM(config).save_pretrained(target)
    return target


class PeftMethodContract:
    """What holds for every registered method. Needs the training stack and pytest."""

    method_name: ClassVar[str]

    @property
    def method(self) -> PeftMethod:
        """The method under test."""
        return get_method(self.method_name)

    def candidate(self, model: ModelSpec) -> Candidate:
        """Returns a candidate of the method's search space; override for a method that needs more."""
        from autopeft.spaces import all_spaces

        space = all_spaces()[self.method_name]
        quantization = space.fixed.get("quantization", "none")
        candidate = Candidate(
            method=self.method_name,
            r=4 if "r" in space.parameters else None,
            lora_alpha=self.method.lora_alpha(4, space.scaling) if space.scaling is not None else None,
            target_modules=("down_proj", "q_proj", "v_proj") if self.method.has_adapter else (),
            quantization=quantization,  # type: ignore[arg-type]  # checked by spaces
            dtype="float32",
            adapter_dtype="float32" if self.method.has_adapter else None,
            learning_rate=1e-2,
            trainer="transformers",
        )
        candidate = replace(candidate, options=self.method.complete_options(candidate))
        assert self.method.why_not(candidate, model, CPU) is None, "the contract's candidate must be possible"
        return candidate

    def test_has_a_search_space_of_the_same_name(self) -> None:
        from autopeft.spaces import all_spaces

        space = all_spaces()[self.method_name]
        assert "learning_rate" in space.parameters, "a fair comparison tunes the learning rate of every method"
        assert all(distribution.effect for distribution in space.parameters.values())

    def test_closed_form_counts_what_peft_trains(self, tmp_path: Path) -> None:
        model, spec, candidate = self._built(tmp_path)
        built = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
        assert self.method.trainable_parameters(candidate, spec) == built

    def test_scaling_is_what_the_search_space_says(self, tmp_path: Path) -> None:
        from autopeft.spaces import all_spaces

        model, _, candidate = self._built(tmp_path)
        scaling = all_spaces()[self.method_name].scaling
        for layer in _adapted(model):
            found = layer.scaling["default"] / (float(layer.ranknum["default"]) if hasattr(layer, "ranknum") else 1.0)
            assert scaling is not None
            # alpha is a whole number, so a square root of the rank may be off by a half.
            assert math.isclose(found, scaling, rel_tol=0.15), (candidate.method, found, scaling)

    def test_starts_where_the_base_model_is_or_nearer_to_the_original(self, tmp_path: Path) -> None:
        import torch

        model, _, candidate = self._built(tmp_path)
        batch = _batch()
        reference = self._base(tmp_path, candidate)(**batch).logits
        original = self._base(tmp_path, _unquantized(candidate))(**batch).logits
        start = model(**batch).logits
        if candidate.quantization == "none":
            torch.testing.assert_close(start, reference, rtol=1e-4, atol=1e-4)
        else:
            assert (start - original).norm() <= (reference - original).norm() * 1.0001

    def test_a_step_moves_trained_weights_and_only_those(self, tmp_path: Path) -> None:
        model, _, candidate = self._built(tmp_path)
        before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
        self._train(model, candidate, steps=2)
        moved = {name for name, parameter in model.named_parameters() if not _equal(parameter, before[name])}
        trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
        assert moved <= trained
        assert moved, "two steps with a learning rate of 1e-2 must move something"

    def test_training_lowers_the_loss_on_what_it_is_trained_on(self, tmp_path: Path) -> None:
        model, _, candidate = self._built(tmp_path)
        losses = self._train(model, candidate, steps=STEPS)
        assert losses[-1] < losses[0]

    def test_a_saved_adapter_gives_the_same_outputs(self, tmp_path: Path) -> None:
        import torch

        model, _, candidate = self._built(tmp_path)
        start = self.method.snapshot(model)
        self._train(model, candidate, steps=STEPS)
        self.method.save(model, tmp_path / "saved", start)
        loaded = self._loaded(tmp_path, candidate)
        with torch.no_grad():
            torch.testing.assert_close(
                loaded.eval()(**_batch()).logits, model.eval()(**_batch()).logits, rtol=1e-4, atol=1e-4
            )

    def test_the_same_seed_builds_the_same_adapter(self, tmp_path: Path) -> None:
        first, _, _ = self._built(tmp_path)
        second, _, _ = self._built(tmp_path)
        pairs = zip(first.parameters(), second.parameters(), strict=True)
        assert all(_equal(one, other) for one, other in pairs)

    def _built(self, tmp_path: Path) -> tuple[Any, ModelSpec, Candidate]:
        """Returns a tiny model with the method's adapter, prepared for training, with its spec and candidate."""
        import torch

        from autopeft.engine.adapters import inject
        from autopeft.profiling.model import load_model

        spec = load_model(str(tiny_llama(tmp_path)))
        candidate = self.candidate(spec)
        torch.manual_seed(0)
        model = inject(self._base(tmp_path, candidate), candidate, STEPS)
        self.method.prepare(model, self._context(tmp_path, candidate))
        return model, spec, candidate

    def _base(self, tmp_path: Path, candidate: Candidate) -> Any:
        return self._load(tiny_llama(tmp_path), candidate)

    @staticmethod
    def _load(folder: Path, candidate: Candidate) -> Any:
        from autopeft.engine.base import load_base

        return load_base(folder, candidate, "cpu").eval()

    def _loaded(self, tmp_path: Path, candidate: Candidate) -> Any:
        """Returns the saved result, loaded as a user loads it."""
        if not self.method.has_adapter:
            return self._load(tmp_path / "saved", candidate)
        from peft import PeftModel

        with warnings.catch_warnings():
            # peft takes AdaLoRA's saved rank pattern for LoRA's and says that it ignores it; the ranks are right.
            warnings.filterwarnings("ignore", "The following rank_pattern keys", RuntimeWarning)
            return PeftModel.from_pretrained(self._base(tmp_path, candidate), str(tmp_path / "saved"))

    def _context(self, tmp_path: Path, candidate: Candidate) -> MethodContext:
        from autopeft.engine.base import OriginalWeights

        weights = OriginalWeights(tiny_llama(tmp_path))
        batch = {**_batch(), "labels": _batch()["input_ids"]}
        return MethodContext(
            candidate=candidate, steps=STEPS, seed=0, weights=weights, batches=lambda: iter([batch] * 2)
        )

    def _train(self, model: Any, candidate: Candidate, steps: int) -> list[float]:
        """Trains on one batch; returns the loss before each step and after the last."""
        from autopeft.engine.optimizer import make_optimizer
        from autopeft.engine.step import StepParts, training_step

        context = MethodContext(candidate=candidate, steps=STEPS, seed=0, weights=None)  # type: ignore[arg-type]
        optimizer = make_optimizer(model, candidate)
        parts = StepParts(model=model, method=self.method, context=context, optimizer=optimizer, device_type="cpu")
        model.train()
        batch = {**_batch(), "labels": _batch()["input_ids"]}
        losses = [float(model(**batch).loss.detach())]
        for step in range(1, steps + 1):
            training_step(parts, [batch], step, num_items=batch["labels"][:, 1:].numel())
            losses.append(float(model(**batch).loss.detach()))
        return losses


def _batch() -> dict[str, torch.Tensor]:
    import torch

    generator = torch.Generator().manual_seed(1)
    tokens = torch.randint(0, 260, (2, 12), generator=generator)
    return {"input_ids": tokens, "attention_mask": torch.ones_like(tokens)}


def _adapted(model: Any) -> Iterator[Any]:
    for layer in model.modules():
        if hasattr(layer, "lora_A") and hasattr(layer, "scaling"):
            yield layer


def _unquantized(candidate: Candidate) -> Candidate:
    return replace(candidate, quantization="none")


def _equal(left: Any, right: Any) -> bool:
    import torch

    return bool(torch.equal(left, right))
