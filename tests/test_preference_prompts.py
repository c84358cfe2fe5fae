"""Pairs as tokens: the prompt in both parts, weight on the answers, the end of a long prompt kept."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from luthier.batches import collate
from luthier.models.load import load_tokenizer
from luthier.prompts import PromptFormat, choose_format, prompt_row, tokenise
from luthier.records import Example, Row

ASKED = [
    {"role": "user", "content": "what is two plus two?"},
    {"role": "assistant", "content": "four"},
    {"role": "user", "content": "and three plus one?"},
]


def answer(text: str) -> list[dict[str, str]]:
    return [{"role": "assistant", "content": text}]


def made(tokenizer: Any, prompt_format: PromptFormat, fields: dict[str, Any]) -> tuple[Row, int]:
    done = tokenise([Example("00", fields, "row 1", 0.5)], tokenizer, prompt_format)
    assert not done.problems
    return done.rows[0], done.truncated


def parts(row: Row) -> list[tuple[list[int], list[float]]]:
    ends = [0, *row.parts] if row.parts else [0, len(row.tokens)]
    starts = [sum(ends[: i + 1]) for i in range(len(ends))]
    weight = row.token_streams["weight"]
    return [(list(row.tokens[a:b]), list(weight[a:b])) for a, b in pairwise(starts)]


@pytest.fixture
def tokenizer(tiny: Callable[..., Path]) -> Any:
    return load_tokenizer(tiny("llama"))


def test_pairs_share_their_prompt_and_learn_their_answers(tokenizer: Any) -> None:
    prompt_format = choose_format("prefer", tokenizer, (), False, 200)
    fields = {"messages": ASKED, "chosen": answer("four"), "rejected": answer("nine, maybe ten")}
    row, truncated = made(tokenizer, prompt_format, fields)
    prompt = list(prompt_row(fields, tokenizer, prompt_format).tokens)
    assert truncated == 0 and row.example_streams == {"weight": 0.5, "desirable": [1.0, 0.0]}
    for (tokens, weight), text in zip(parts(row), ("four", "nine, maybe ten"), strict=True):
        assert tokens[: len(prompt)] == prompt and not any(weight[: len(prompt)])
        learned = [token for token, each in zip(tokens, weight, strict=True) if each]
        assert tokenizer.decode(learned) == f"{text}<|im_end|>" and set(weight) == {0.0, 1.0}
    batch = collate([row, row])
    assert len(batch) == 4 and batch.example_streams["desirable"].shape == (4, 2)


def test_several_turns_of_an_answer_are_learned(tokenizer: Any) -> None:
    prompt_format = choose_format("prefer", tokenizer, (), False, 200)
    several = [*answer("one"), {"role": "user", "content": "more"}, *answer("two")]
    row, _ = made(tokenizer, prompt_format, {"messages": ASKED, "chosen": several, "rejected": answer("ten")})
    tokens, weight = parts(row)[0]
    learned = [token for token, each in zip(tokens, weight, strict=True) if each]
    assert tokenizer.decode(learned) == "one<|im_end|>two<|im_end|>"


def test_a_single_answer(tokenizer: Any) -> None:
    prompt_format = choose_format("prefer", tokenizer, (), False, 200)
    row, _ = made(tokenizer, prompt_format, {"messages": ASKED, "completion": answer("four"), "desirable": False})
    assert row.parts == () and row.example_streams["desirable"] == 0.0


@pytest.mark.parametrize("limit", [60, 30, 16, 8, 4])
def test_what_is_too_long_loses_the_start_of_the_prompt(limit: int, tokenizer: Any) -> None:
    fields = {"messages": ASKED, "chosen": answer("four"), "rejected": answer("nine, maybe ten")}
    whole, _ = made(tokenizer, choose_format("prefer", tokenizer, (), False, 500), fields)
    cut, truncated = made(tokenizer, choose_format("prefer", tokenizer, (), False, limit), fields)
    assert truncated == any(length > limit for length in whole.parts)
    prompts = []
    for (tokens, weight), (all_tokens, all_weight) in zip(parts(cut), parts(whole), strict=True):
        start, all_start = weight.index(1.0), all_weight.index(1.0)
        assert len(tokens) <= limit and start >= 1
        assert tokens[:start] == all_tokens[all_start - start : all_start], "the end of the prompt is kept"
        assert tokens[start:] == all_tokens[all_start:][: len(tokens) - start], "the start of the answer is kept"
        assert len(tokens) - start == len(all_tokens) - all_start or len(tokens) == limit
        prompts.append(tokens[:start])
    assert prompts[0] == prompts[1]


def test_a_cut_prompt_keeps_the_mark_that_opens_every_text(tiny: Callable[..., Path]) -> None:
    tokenizer = load_tokenizer(tiny("llama"))
    tokenizer.chat_template = "{{ bos_token }}" + tokenizer.chat_template
    fields = {"messages": ASKED, "chosen": answer("four"), "rejected": answer("nine")}
    cut, _ = made(tokenizer, choose_format("prefer", tokenizer, (), False, 30), fields)
    assert all(tokens[0] == tokenizer.bos_token_id and len(tokens) <= 30 for tokens, _ in parts(cut))
