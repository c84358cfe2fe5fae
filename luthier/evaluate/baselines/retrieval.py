"""Passages looked up in the user's documents and put before each question: for the untouched model, and for the tuned.

In: documents, a model. Out: answers to the test rows.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from luthier.errors import UserError
from luthier.evaluate.alternatives import Documents
from luthier.evaluate.baselines.base import Answered, Asked
from luthier.evaluate.baselines.prompted import JOINTS, NO_END, answers, room_left
from luthier.evaluate.baselines.wording import Shown, in_words, question, with_passages
from luthier.evaluate.costs import usage_of
from luthier.evaluate.lookup import Index, Vectors, bm25, passages_of
from luthier.evaluate.predict import Advance, predict
from luthier.prompts import prompt_row
from luthier.records import Example

Room = Callable[[Example], int]
"""Tokens that a row leaves for passages."""


def rag(asked: Asked, advance: Advance) -> Answered:
    """The untouched model with passages before each question."""
    assert asked.network is not None
    passages, note, seconds = look_up(asked, lambda example: room_left(asked, example, Shown()))
    made = answers(asked, [Shown(passages=each) for each in passages], f"the untouched model with {note}", advance)
    return replace(made, seconds=None if made.seconds is None else made.seconds + seconds)


def tuned_rag(asked: Asked, advance: Advance) -> Answered:
    """The tuned model with the same passages before each question, asked otherwise as it was in training."""
    assert asked.network is not None
    tokenizer, prompt_format = asked.network.tokenizer, asked.prompt_format
    writes = prompt_format.form == "generate"
    if writes:
        prompt_format = replace(prompt_format, max_length=asked.window or NO_END)
    longest = (asked.window or NO_END) - asked.max_new_tokens if writes else prompt_format.max_length

    def room(example: Example) -> int:
        whole = replace(prompt_format, max_length=NO_END)
        return longest - len(prompt_row(example.fields, tokenizer, whole).tokens) - JOINTS

    passages, note, seconds = look_up(asked, room)
    started = time.perf_counter()
    rows = [with_passages(example, each) for example, each in zip(asked.test, passages, strict=True)]
    made = predict(asked.network, rows, prompt_format, asked.max_new_tokens, advance)
    usage = usage_of(tokenizer, prompt_format, rows, made)
    seconds += time.perf_counter() - started
    asked_for = [replace(p, text=question(e)) for p, e in zip(made, asked.test, strict=True)]
    return Answered(asked_for, f"the tuned model with {note}", usage, seconds)


def look_up(asked: Asked, room: Room) -> tuple[list[tuple[str, ...]], str, float]:
    """The passages for each test row, as many as have room; how they were found; how long that took, in seconds."""
    assert asked.network is not None
    settings = asked.settings.documents
    assert settings is not None
    index, passages = index_of(asked, settings)
    started = time.perf_counter()
    found = index.nearest([question(example) for example in asked.test], settings.top_k)
    chosen, cut = [], 0
    for example, numbers in zip(asked.test, found, strict=True):
        wanted = [passages[number] for number in numbers]
        each = fitting_passages(wanted, room(example), asked.network.tokenizer)
        cut += each != tuple(wanted)
        chosen.append(each)
    by = f"words (BM25) in {settings.source}" if settings.embedder is None else f"{settings.embedder} and FAISS"
    note = f"the {settings.top_k} nearest of {len(passages):,} passages by {by}"
    if cut:
        note += f"; for {cut:,} rows passages were cut to fit its window"
    return chosen, note, time.perf_counter() - started


def index_of(asked: Asked, settings: Documents) -> tuple[Index, list[str]]:
    """The index of the passages, and the passages. Both baselines look in the same one: it is made once."""
    key = ("passages", settings.model_dump_json())
    if key not in asked.kept:
        texts = [document.fields["text"] for document in asked.documents]
        passages = passages_of(texts, settings.words)
        if not passages:
            raise UserError("holds no text to look in", where="evaluate.documents.source", mend="name another file")
        named = settings.embedder
        index: Index = bm25(passages) if named is None else Vectors(passages, named, asked.base_path)
        asked.kept[key] = (index, passages)
    found: tuple[Index, list[str]] = asked.kept[key]
    return found


def fitting_passages(passages: Sequence[str], room: int, tokenizer: Any) -> tuple[str, ...]:
    """The passages in their order, as far as so many tokens go; the last one that fits in part is cut."""

    def fits(chosen: Sequence[str]) -> bool:
        return len(tokenizer(in_words(chosen), add_special_tokens=False)["input_ids"]) <= room

    chosen: list[str] = []
    for passage in passages:
        words = passage.split()
        while words and not fits([*chosen, passage]):
            words = words[: len(words) * 3 // 4]
            passage = " ".join(words)
        if words:
            chosen.append(passage)
        if passage not in passages:
            break
    return tuple(chosen)
