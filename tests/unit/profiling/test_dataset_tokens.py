"""Token counts: equal to what transformers makes of the same rows, with and without a chat template."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest
import tokenizers
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import decoders, models, pre_tokenizers, processors, trainers

from autopeft.errors import DataError, ModelError
from autopeft.profiling._formats import Example, Message
from autopeft.profiling._tokens import CharacterCounter, CountedRow, TokenizerCounter

SPECIAL = ["<s>", "</s>", "<|im_start|>", "<|im_end|>"]
SAMPLE = [
    "The quick brown fox jumps over the lazy dog, and nobody knows why.",
    "user assistant system tool",
    "ääää 中文",
]

CHATML = """
{%- for message in messages %}
    {% if true %}
{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n' }}
    {% endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\n' }}{%- endif %}
"""
DEFAULT_SYSTEM = (
    "{% if messages[0]['role'] != 'system' %}{{ '<|im_start|>system\nBe kind.<|im_end|>\n' }}{% endif %}"
    + CHATML.strip()
)
LLAMA = (
    "{{ bos_token }}{% for message in messages %}"
    "{{ '[' + message.role + ']\n\n' + message.content | trim + eos_token }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '[assistant]\n\n' }}{% endif %}"
)
GENERATION = (
    "{% for message in messages %}{{ '<|im_start|>' + message.role + '\n' }}{% if message.role == 'assistant' %}"
    "{% generation %}{{ message.content + '<|im_end|>' }}{% endgeneration %}{% else %}"
    "{{ message.content + '<|im_end|>' }}{% endif %}{% if tools %}{{ tools | tojson }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
ALTERNATING = (
    "{{ bos_token }}{% for message in messages %}"
    "{% if (message.role == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('roles must alternate') }}{% endif %}"
    "{% if message.role == 'user' %}{{ '[INST] ' + message.content + ' [/INST]' }}"
    "{% else %}{{ ' ' + message.content + eos_token }}{% endif %}{% endfor %}"
)
TEMPLATES = {
    "chatml": CHATML,
    "default system": DEFAULT_SYSTEM,
    "llama": LLAMA,
    "generation": GENERATION,
    "alternating": ALTERNATING,
}
TURNS: tuple[Message, ...] = (
    ("user", "The quick fox?"),
    ("assistant", " jumps over the dog, ääh 中文.\n"),
    ("user", "why"),
    ("assistant", "nobody knows"),
)


def make_folder(folder: Path, *, template: str | None = None, around: bool = False) -> Path:
    """Writes a small byte-level tokenizer, like a model folder's; ``around`` puts <s> and </s> around a text."""
    tokenizer = tokenizers.Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=340, special_tokens=SPECIAL, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(SAMPLE * 5, trainer)
    if around:
        tokenizer.post_processor = processors.TemplateProcessing(
            "<s> $0 </s>", special_tokens=[("<s>", 0), ("</s>", 1)]
        )
    tokenizer.enable_truncation(8)
    tokenizer.enable_padding(length=16)
    tokenizer.save(str(folder / "tokenizer.json"))
    config: dict[str, Any] = {"bos_token": "<s>", "eos_token": {"content": "</s>"}}
    (folder / "tokenizer_config.json").write_text(
        json.dumps(config | ({"chat_template": template} if template else {}))
    )
    return folder


def pair(prompt: str, completion: str) -> Example:
    """Returns a prompt and its completion as raw texts."""
    return Example(file="f", line=1, messages=(("user", prompt), ("assistant", completion)), context_turns=1)


def reference(folder: Path, template: str) -> Any:
    """Returns the same tokenizer in transformers."""
    import transformers

    file = str(folder / "tokenizer.json")
    return transformers.PreTrainedTokenizerFast(
        tokenizer_file=file, bos_token="<s>", eos_token="</s>", chat_template=template
    )


def templated(tokenizer: Any, turns: tuple[Message, ...], *, asks: bool = False) -> list[int]:
    """Returns a conversation's ids as transformers makes them."""
    messages = [{"role": role, "content": content} for role, content in turns]
    ids = tokenizer.apply_chat_template(messages, add_generation_prompt=asks, return_dict=False, tokenize=True)
    return list(ids)


@pytest.mark.skipif(importlib.util.find_spec("transformers") is None, reason="compares with transformers")
@pytest.mark.parametrize("name", TEMPLATES)
def test_conversations_count_as_transformers_tokenizes_them(tmp_path: Path, name: str) -> None:
    folder = make_folder(tmp_path, template=TEMPLATES[name])
    tokenizer = reference(folder, TEMPLATES[name])
    (row,) = TokenizerCounter(folder).count([Example(file="f", line=1, messages=TURNS)])
    asked = [len(templated(tokenizer, TURNS[:turn], asks=True)) for turn in (1, 3)]
    ended = [len(templated(tokenizer, TURNS[: turn + 1])) for turn in (1, 3)]
    assert row == CountedRow(ended[1], tuple(zip(asked, ended, strict=True)))


def test_a_raw_pair_is_prompt_completion_and_end_token(tmp_path: Path) -> None:
    folder = make_folder(tmp_path)
    tokenizer = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.no_truncation()
    tokenizer.no_padding()
    prompt, whole = (len(tokenizer.encode(text).ids) for text in ("The quick fox?", "The quick fox? nobody knows</s>"))
    assert TokenizerCounter(folder).count([pair("The quick fox?", " nobody knows")]) == [
        CountedRow(whole, ((prompt, whole),))
    ]


def test_special_tokens_that_the_tokenizer_adds_are_counted_once(tmp_path: Path) -> None:
    # Single letters that the sample never pairs: each is a token of its own, and so are <s> and </s>.
    folder = make_folder(tmp_path, around=True)
    text = Example(file="f", line=1, text="XYZ")
    assert TokenizerCounter(folder).count([pair("XY", "Z"), text]) == [
        CountedRow(5, ((3, 5),)),
        CountedRow(5, ((0, 5),)),
    ]


def test_plain_text_ends_with_the_end_token_and_all_of_it_counts(tmp_path: Path) -> None:
    text = Example(file="f", line=1, text="XYZ")
    label = Example(file="f", line=1, text="XYZ", label="a")
    assert TokenizerCounter(make_folder(tmp_path)).count([text, label]) == [
        CountedRow(4, ((0, 4),)),
        CountedRow(3, ((0, 3),)),
    ]


def test_turns_without_a_template_are_joined_by_their_separator(tmp_path: Path) -> None:
    chat = Example(file="f", line=1, messages=(("user", "X"), ("assistant", "Y")), turn_separator="\n")
    # X, newline | Y, </s>
    assert TokenizerCounter(make_folder(tmp_path)).count([chat]) == [CountedRow(4, ((2, 4),))]


def test_a_token_across_the_border_is_predicted(tmp_path: Path) -> None:
    folder = make_folder(tmp_path)
    # "The" is one token of the trained sample, so that the border inside it falls to the completion.
    assert TokenizerCounter(folder).count([pair("Th", "e")]) == [CountedRow(2, ((0, 2),))]


def test_a_template_file_wins_over_the_configuration(tmp_path: Path) -> None:
    folder = make_folder(tmp_path, template="{{ raise_exception('not me') }}")
    (folder / "chat_template.jinja").write_text("XYZ")
    assert TokenizerCounter(folder).count([pair("a", "b")])[0].tokens == 3


def test_of_several_named_templates_the_default_is_taken(tmp_path: Path) -> None:
    folder = make_folder(tmp_path)
    named = [{"name": "tool_use", "template": "XXXXX"}, {"name": "default", "template": "XYZ"}]
    (folder / "tokenizer_config.json").write_text(json.dumps({"chat_template": named}))
    assert TokenizerCounter(folder).count([pair("a", "b")])[0].tokens == 3


def test_a_template_that_refuses_the_roles_is_an_error_that_names_the_row(tmp_path: Path) -> None:
    counter = TokenizerCounter(make_folder(tmp_path, template=ALTERNATING))
    wrong = Example(file="d.jsonl", line=7, messages=(("system", "S"), *TURNS))
    with pytest.raises(DataError, match=r"d\.jsonl:7: the chat template in .* \(roles: system, user, .*must alternate"):
        counter.count([wrong])


def test_a_template_cannot_reach_out_of_its_sandbox(tmp_path: Path) -> None:
    template = "{{ messages.__class__.__mro__[1].__subclasses__() }}"
    with pytest.raises(DataError, match=r"refuses the conversation .* unsafe"):
        TokenizerCounter(make_folder(tmp_path, template=template)).count([pair("a", "b")])


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("tokenizer.json", "{}", r"tokenizer\.json is no tokenizer that can be read"),
        ("tokenizer_config.json", "{", r"tokenizer_config\.json is not valid JSON"),
        ("chat_template.jinja", "a\n{% if %}", r"chat template in .*chat_template\.jinja is broken at line 2"),
    ],
)
def test_broken_tokenizer_files_are_errors_of_the_model(tmp_path: Path, name: str, content: str, expected: str) -> None:
    folder = make_folder(tmp_path)
    (folder / name).write_text(content)
    with pytest.raises(ModelError, match=expected):
        TokenizerCounter(folder)


def test_without_a_tokenizer_a_token_is_three_and_a_half_bytes() -> None:
    # 7 ASCII characters are 2 tokens; 7 Chinese ones are 21 bytes, so 6. Each turn ends with a token of its own.
    assert CharacterCounter(chat=False).count([pair("a" * 7, "\u4e2d" * 7)]) == [CountedRow(10, ((3, 10),))]


def test_without_a_tokenizer_a_chat_template_costs_five_tokens_a_message() -> None:
    # start, role, newline, 2 tokens, end, newline: of the answer's turn the first three are the prompt's.
    assert CharacterCounter(chat=True).count([pair("a" * 7, "a" * 7)]) == [CountedRow(14, ((10, 14),))]


@given(st.lists(st.integers(0, 9), min_size=2, max_size=6), st.integers(0, 60))
def test_a_limit_keeps_never_more_than_itself_and_everything_once_it_is_long_enough(
    steps: list[int], limit: int
) -> None:
    ends = [sum(steps[: index + 1]) for index in range(len(steps))]
    row = CountedRow(ends[-1], tuple(zip(ends[::2], ends[1::2], strict=False)))
    positions = {position for begin, end in row.supervised for position in range(begin, end)}
    assert row.supervised_within(limit) == sum(position < limit for position in positions)
