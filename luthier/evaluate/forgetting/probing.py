"""Probes put to a model that writes, and what it makes of them.

In: a network, probes of one kind. Out: an `Outcome` for each, in their order.

- multiple choice: each choice's log-probability after the query; the likeliest by character is the answer (`acc_norm`
  of EleutherAI's evaluation harness), and the likeliest as a whole (`acc`) is told beside it;
- last words: right where greedy decoding writes the target (LAMBADA, Paperno et al. 2016, arXiv:1606.06031);
- grammatical pairs: right where the good sentence is likelier as a whole (BLiMP, Warstadt et al. 2020,
  arXiv:1912.00582);
- general prose: the share of tokens that greedy decoding would write, and bits per byte;
- instructions: right where the answer keeps to what can be checked of it.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from luthier.engine.continuations import Continuation, Scores, score_continuations
from luthier.engine.generate import generate
from luthier.evaluate.forgetting.checkers import keeps
from luthier.evaluate.forgetting.packs import Kind, Probe
from luthier.models.network import Network
from luthier.prompts import PromptFormat, choose_template, prompt_row, stop_ids

Advance = Callable[[int], Any]
LONGEST_PROSE = 1024
"""Tokens of a text that are read; less where the window is shorter."""
ANSWER_TOKENS = 24
"""Longest answer to an instruction."""
ASKED = ("Question:", "Passage:")
"""A query that begins so is followed by a line `Answer:`."""


@dataclass(frozen=True)
class Outcome:
    """What came of one probe."""

    right: float
    """Of `of`: 1 or 0, or tokens."""
    of: float = 1.0
    plain: float | None = None
    """Of multiple choice: whether the likeliest choice as a whole is right."""
    bits: float | None = None
    """Of prose: what all of its tokens cost."""
    size: int | None = None
    """Of prose: its bytes (UTF-8)."""
    answer: str | None = None
    """What the model chose or wrote, where it did."""


def ask(network: Network, kind: Kind, probes: Sequence[Probe], prompt_format: PromptFormat) -> list[Outcome]:
    """The outcome of each probe; all are of that kind."""
    network.model.eval()
    return ASKERS[kind](network, probes, prompt_format)


def ask_choices(network: Network, probes: Sequence[Probe], prompt_format: PromptFormat) -> list[Outcome]:
    asked = [(query_of(probe), choices_of(probe)) for probe in probes]
    found = score_continuations(network, encode(network, [[(q, c) for c in choices] for q, choices in asked]))
    outcomes = []
    for probe, scores in zip(probes, found, strict=True):
        choices, answer = probe.fields["choices"], probe.fields["answer"]
        sums = [score.sum for score in scores]
        by_length = [total / len(choice) for total, choice in zip(sums, choices, strict=True)]
        best = first_best(by_length)
        outcomes.append(
            Outcome(float(best == answer), plain=float(first_best(sums) == answer), answer=choices[best]),
        )
    return outcomes


def query_of(probe: Probe) -> str:
    query = str(probe.fields.get("query", "")).strip()
    return f"{query}\nAnswer:" if query.startswith(ASKED) else query


def choices_of(probe: Probe) -> list[str]:
    """As they follow the query."""
    before = " " if probe.fields.get("query", "").strip() else ""
    return [before + choice for choice in probe.fields["choices"]]


def first_best(values: Sequence[float]) -> int:
    return max(range(len(values)), key=values.__getitem__)


def ask_cloze(network: Network, probes: Sequence[Probe], prompt_format: PromptFormat) -> list[Outcome]:
    pairs = [[(p.fields["context"].rstrip(), f" {p.fields['target'].strip()}")] for p in probes]
    found = score_continuations(network, encode(network, pairs), likeliest=True)
    return [Outcome(float(score.greedy)) for (score,) in found]


def ask_pairs(network: Network, probes: Sequence[Probe], prompt_format: PromptFormat) -> list[Outcome]:
    names = ("sentence_good", "sentence_bad")
    found = score_continuations(network, encode(network, [[("", p.fields[name]) for name in names] for p in probes]))
    likelier = [good.sum > bad.sum for good, bad in found]
    return [Outcome(float(ok), answer=p.fields[names[not ok]]) for p, ok in zip(probes, likelier, strict=True)]


def ask_prose(network: Network, probes: Sequence[Probe], prompt_format: PromptFormat) -> list[Outcome]:
    limit = min(LONGEST_PROSE, network.window or LONGEST_PROSE)
    wholes = encode(network, [[("", probe.fields["text"])] for probe in probes], whole=True)
    groups = [[Continuation(each.tokens[:limit], each.start)] for (each,) in wholes]
    found = score_continuations(network, groups, likeliest=True)
    return [
        prose_outcome(network, probe.fields["text"], each, scores)
        for probe, (each,), (scores,) in zip(probes, groups, found, strict=True)
    ]


def prose_outcome(network: Network, text: str, each: Continuation, scores: Scores) -> Outcome:
    read = network.tokenizer.decode(each.tokens[each.start :], skip_special_tokens=True)
    size = min(len(text.encode()), max(1, len(read.encode())))
    return Outcome(sum(scores.likeliest), len(scores.likeliest), bits=-scores.sum / math.log(2), size=size)


def ask_instructions(network: Network, probes: Sequence[Probe], prompt_format: PromptFormat) -> list[Outcome]:
    answers = answers_to(network, [probe.fields["instruction"] for probe in probes], prompt_format, ANSWER_TOKENS)
    return [
        Outcome(float(keeps(answer, probe.fields["check"], probe.fields.get("with", {}))), answer=answer)
        for probe, answer in zip(probes, answers, strict=True)
    ]


def answers_to(network: Network, asked: Sequence[str], prompt_format: PromptFormat, most: int) -> list[str]:
    """Greedy answers of at most so many tokens to messages of a user, in the chat format of the model."""
    chat = conversation_format(network, prompt_format)
    fields = [{"messages": [{"role": "user", "content": text}]} for text in asked]
    prompts = [list(prompt_row(each, network.tokenizer, chat).tokens) for each in fields]
    answers = generate(network, prompts, max_new_tokens=most, stop_ids=stop_ids(network.tokenizer, chat))
    return [answer.text.strip() for answer in answers]


def conversation_format(network: Network, prompt_format: PromptFormat) -> PromptFormat:
    """The format in which the model is talked to: its own chat template, also where it was tuned on plain texts."""
    template = prompt_format.chat_template or choose_template(network.tokenizer)
    return dataclasses.replace(prompt_format, task="chat", chat_template=template)


def encode(
    network: Network, groups: Sequence[Sequence[tuple[str, str]]], whole: bool = False
) -> list[list[Continuation]]:
    """Contexts and what follows them as tokens.

    The two are tokenised together, so that the tokens at the seam are those of a text; those of the context alone say
    where it ends. Too long ones lose their beginning, unless `whole`. A text without context follows the token that
    opens or ends texts.
    """
    tokenizer = network.tokenizer
    flat = [pair for group in groups for pair in group]
    if not flat:
        return []
    wholes = tokenizer([context + rest for context, rest in flat], add_special_tokens=False)["input_ids"]
    contexts = list(dict.fromkeys(context for context, _ in flat))
    bare = tokenizer(contexts, add_special_tokens=False)["input_ids"]
    sizes = {context: len(ids) for context, ids in zip(contexts, bare, strict=True)}
    opening = opening_tokens(tokenizer)
    closing = (
        [] if opening else [tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.eos_token_id]
    )
    made = []
    for (context, _), ids in zip(flat, wholes, strict=True):
        before = opening or (closing if not context else [])
        start = len(before) + min(sizes[context], len(ids) - 1)
        length = len(before) + len(ids)
        cut = 0 if whole or network.window is None else max(0, length - network.window)
        made.append(Continuation([*before, *ids][cut:], max(1, start - cut)))
    each = iter(made)
    return [[next(each) for _ in group] for group in groups]


def opening_tokens(tokenizer: Any) -> list[int]:
    """The special tokens with which the tokenizer opens every text."""
    bare = tokenizer("a", add_special_tokens=False)["input_ids"]
    whole = tokenizer("a")["input_ids"]
    return list(whole[: whole.index(bare[0])]) if bare and bare[0] in whole else []


ASKERS: dict[Kind, Callable[[Network, Sequence[Probe], PromptFormat], list[Outcome]]] = {
    "choices": ask_choices,
    "cloze": ask_cloze,
    "pairs": ask_pairs,
    "prose": ask_prose,
    "instructions": ask_instructions,
}
