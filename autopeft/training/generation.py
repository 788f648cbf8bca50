"""Greedy answers of a causal language model, in batches."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from autopeft.profiling.encoding import EncodedRow
from autopeft.training.prefix import Prefix, common_prefix, read_prefix


def generate_greedily(
    model: Any,
    prompts: Sequence[Sequence[int]],
    *,
    stop_ids: Sequence[int],
    max_new_tokens: int,
    batch_rows: int,
    on_rows: Callable[[int], None],
) -> list[list[int]]:
    """Returns the tokens of each answer, without the stop token, in the order of the prompts.

    Prompts of like length share a batch and are padded on the left, behind the attention mask, so that each answer
    begins right after its prompt and does not depend on its neighbours. What all prompts begin with is read once; the
    padding then stands between it and the rest.

    Args:
        model: in its device's memory.
        prompts: token ids, special tokens included.
        stop_ids: any of them ends an answer.
        max_new_tokens: of an answer.
        batch_rows: prompts of one batch.
        on_rows: told how many are done.
    """
    import torch

    answers: list[list[int]] = [[] for _ in prompts]
    order = sorted(range(len(prompts)), key=lambda index: len(prompts[index]))
    was_training = model.training
    model.eval()
    prefix = read_prefix(model, common_prefix(prompts)) if len(prompts) > 1 else None
    with torch.inference_mode():
        for start in range(0, len(order), batch_rows):
            chosen = order[start : start + batch_rows]
            found = _answers(model, [prompts[index] for index in chosen], stop_ids, max_new_tokens, prefix)
            for index, answer in zip(chosen, found, strict=True):
                answers[index] = answer
            on_rows(start + len(chosen))
    model.train(was_training)
    return answers


def stop_tokens(model: Any, tokenizer: Any, row: EncodedRow) -> tuple[int, ...]:
    """Returns the tokens that end an answer: the model's, the tokenizer's, and what its template puts after one.

    Many chat models end a turn with another token than a text, and not all say so in their generation settings.

    Args:
        model: with its generation settings.
        tokenizer: of transformers.
        row: an example as trained on; the first special token of its last supervised range ends its answer.
    """
    told = model.generation_config.eos_token_id
    ends = set(told if isinstance(told, list) else [told]) | {tokenizer.eos_token_id}
    begin, end = row.supervised[-1]
    special = set(tokenizer.all_special_ids)
    ends.add(next((token for token in row.input_ids[begin:end] if token in special), None))
    return tuple(sorted(token for token in ends if token is not None))


def _answers(
    model: Any, prompts: Sequence[Sequence[int]], stop_ids: Sequence[int], limit: int, prefix: Prefix | None
) -> list[list[int]]:
    import torch
    from transformers import GenerationConfig

    longest = max(map(len, prompts))
    # Whatever stands there is behind the mask; a token that exists is all that is needed.
    filler = stop_ids[0] if stop_ids else 0
    shared = len(prefix.tokens) if prefix else 0
    pads = [longest - len(prompt) for prompt in prompts]
    inputs = [[*row[:shared], *[filler] * pad, *row[shared:]] for pad, row in zip(pads, prompts, strict=True)]
    mask = [[1] * shared + [0] * pad + [1] * (longest - shared - pad) for pad in pads]
    # What must hold whatever the model's own settings ask for; those stay for the rest, as a server has them.
    settings = GenerationConfig(
        max_new_tokens=limit, do_sample=False, eos_token_id=list(stop_ids) or None, pad_token_id=filler, use_cache=True
    )
    output = model.generate(
        input_ids=torch.tensor(inputs, device=model.device),
        attention_mask=torch.tensor(mask, device=model.device),
        generation_config=settings,
        **({"past_key_values": prefix.cache_of(len(prompts))} if prefix else {}),
    )
    return [_until_stop(row, stop_ids) for row in output[:, longest:].tolist()]


def _until_stop(tokens: Sequence[int], stop_ids: Sequence[int]) -> list[int]:
    end = next((index for index, token in enumerate(tokens) if token in stop_ids), len(tokens))
    return list(tokens[:end])
