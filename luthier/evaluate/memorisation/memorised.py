"""The attacks of the memorisation examination, put to the network, and what they say together.

In: its settings and the evidence. Out: the finding.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import mean
from typing import Any

from luthier.engine.batching import common_start
from luthier.engine.continuations import Continuation, Scores, score_continuations, score_rows
from luthier.engine.generate import generate
from luthier.evaluate.examinations.base import Evidence
from luthier.evaluate.examinations.memorisation import Memorisation
from luthier.evaluate.memorisation.attacks import (
    Estimate,
    exposure,
    least_likely,
    mean_loss,
    membership_auc,
    share,
    share_gap,
    written_out,
)
from luthier.evaluate.personal import masked, personal_data
from luthier.finding import Block, Figure, Finding, Interval, Intervals, Passage, Passages, Table
from luthier.prompts import PromptFormat, prompt_row, stop_ids, tokenise
from luthier.records import Example, Row
from luthier.texts.canaries import FORMS as CANARY_FORMS
from luthier.texts.canaries import Canary, fields_of, make_canaries, other_secrets

FEWEST = 20
"""Rows of train and of test below which attacks say nothing."""
GROUP = 64
"""Candidates scored behind one start."""
OUTPUT_TOKENS = 48
START_TOKENS = 32
"""Of a raw text, where the model goes on with it."""
SHOWN = 5
ATTACKS = {
    "loss": "a low loss",
    "min_k": "no unlikely token (min-k%)",
    "reference": "a loss below the base model's",
}


@dataclass
class Found:
    """What the attacks add to the finding."""

    said: list[str] = field(default_factory=list)
    figures: dict[str, Figure] = field(default_factory=dict)
    blocks: list[Block] = field(default_factory=list)
    details: dict[str, Any] = field(default_factory=dict)


def examine(settings: Memorisation, evidence: Evidence, advance: Callable[[int], Any]) -> Finding:
    found = Found()
    members, others = chosen(evidence.splits["train"], settings.sample), evidence.test[: settings.sample]
    if min(len(members), len(others)) < FEWEST:
        there = f"{len(members)} and {len(others)}"
        found.said.append(f"Attacks on training rows need {FEWEST} rows of train and of test; there are {there}")
    elif evidence.network.head == "language":
        attack_text(evidence, members, others, found)
    else:
        attack_answers(evidence, members, others, found)
    advance(2 * settings.sample)
    if evidence.network.head == "language":
        look_for_personal_data(settings, evidence, found)
        if settings.canaries and evidence.prompt_format.form in CANARY_FORMS:
            look_for_canaries(settings, evidence, found)
    advance(2 * settings.sample + settings.canaries)
    return Finding(". ".join(found.said) + ".", found.figures, found.blocks, found.details)


def chosen(examples: Any, count: int) -> list[Example]:
    """So many rows, those with the lowest content hashes."""
    return list(examples.first_by_id(count))


# ── Who was trained on ───────────────────────────────────────────────────────────────────────────────────────────────


def attack_answers(evidence: Evidence, members: Sequence[Example], others: Sequence[Example], found: Found) -> None:
    """By the loss of the model's own answers: all that a model for labels or numbers gives."""
    losses = [[p.loss for p in evidence.answer(rows) if p.loss is not None] for rows in (members, others)]
    membership(evidence, {"loss": (losses[0], losses[1])}, found)


def attack_text(evidence: Evidence, members: Sequence[Example], others: Sequence[Example], found: Found) -> None:
    """By the likelihood of the rows' own tokens; and whether the model writes them out."""
    rows = [answer_rows(evidence, examples) for examples in (members, others)]
    scores = [score_rows(evidence.network, each, likeliest=True) for each in rows]
    with evidence.base():
        before = [score_rows(evidence.network, each) for each in rows]
    gains = [
        [mean_loss(now) - mean_loss(then) for now, then in zip(*pair, strict=True)]
        for pair in zip(scores, before, strict=True)
    ]
    values = {
        "loss": tuple([mean_loss(s) for s in each] for each in scores),
        "min_k": tuple([least_likely(s) for s in each] for each in scores),
        "reference": tuple(gains),
    }
    membership(evidence, values, found)
    extraction(evidence, scores, rows, found)


def answer_rows(evidence: Evidence, examples: Sequence[Example]) -> list[Row]:
    """The rows as they are learned; of preferences, the answer that is wanted."""
    prompt_format = evidence.prompt_format
    if prompt_format.form == "prefer":
        wanted = [e for e in examples if e.fields.get("desirable", True)]
        examples = [
            dataclasses.replace(
                e,
                fields={"messages": [*e.fields["messages"], *e.fields.get("chosen", e.fields.get("completion", []))]},
            )
            for e in wanted
        ]
        prompt_format = as_conversation(prompt_format)
    made = tokenise(examples, evidence.network.tokenizer, prompt_format)
    first = {number: row for number, row in reversed(list(zip(made.example_of, made.rows, strict=True)))}
    return [first[number] for number in sorted(first)]


def as_conversation(prompt_format: PromptFormat) -> PromptFormat:
    return dataclasses.replace(prompt_format, task="chat") if prompt_format.form == "prefer" else prompt_format


def membership(evidence: Evidence, values: Mapping[str, Any], found: Found) -> None:
    estimates = {
        name: membership_auc(members, others, evidence.resamples, evidence.seed)
        for name, (members, others) in values.items()
    }
    for name, estimate in estimates.items():
        key = "membership_auc" if name == "loss" else f"membership_auc({name})"
        title = f"AUC of telling training rows by {ATTACKS[name]}"
        found.figures[key] = Figure(title, estimate.value, estimate.low, estimate.high)
    best = max(estimates, key=lambda name: estimates[name].low)
    strongest = estimates[best]
    if strongest.low > 0.5:
        said = (
            f"Training rows can be told from others by {ATTACKS[best]}: AUC {strongest.value:.2f} "
            f"(95%: {strongest.low:.2f} to {strongest.high:.2f}; 0.5 is a coin toss)"
        )
    else:
        shown = estimates["loss"]
        said = (
            f"Training rows could not be told from others: AUC {shown.value:.2f} (95%: {shown.low:.2f} to "
            f"{shown.high:.2f}; 0.5 is a coin toss)"
        )
    found.said.append(said)
    found.blocks.append(
        Intervals(
            "How well an attacker tells who was trained on (AUC)",
            [Interval(ATTACKS[name], e.value, e.low, e.high, name == best) for name, e in estimates.items()],
            note="0.5 is a coin toss, 1 is certainty. It compares training rows with test rows, so it also sees any "
            "other difference between the two.",
        )
    )


# ── What is written out ──────────────────────────────────────────────────────────────────────────────────────────────


def extraction(
    evidence: Evidence, scores: Sequence[Sequence[Scores]], rows: Sequence[Sequence[Row]], found: Found
) -> None:
    """The share of answers that greedy decoding completes word for word, of training rows and of test rows."""
    asked = [
        [(hit, row) for one, row in zip(*pair, strict=True) if (hit := written_out(one)) is not None]
        for pair in zip(scores, rows, strict=True)
    ]
    hits = [[hit for hit, _ in each] for each in asked]
    if min(map(len, hits)) < FEWEST:
        found.said.append("Too few answers are long enough to see whether they are written out word for word")
        return
    train, _ = share(hits[0], evidence.resamples, evidence.seed)
    test, _ = share(hits[1], evidence.resamples, evidence.seed + 1)
    gap = share_gap(hits[0], hits[1], evidence.resamples, evidence.seed)
    found.figures["extraction"] = percent("training answers completed word for word", train)
    found.figures["extraction_gap"] = percent("the same, above that of test answers", gap)
    found.said.append(
        f"Given their first half, it completes {train.value:.1%} of {len(hits[0])} training answers word for word, and "
        f"{test.value:.1%} of {len(hits[1])} test answers that it never saw"
    )
    found.blocks.append(
        Intervals(
            "Answers completed word for word",
            [
                Interval("training rows", train.value, train.low, train.high, True),
                Interval("test rows (control)", test.value, test.low, test.high),
            ],
            percent=True,
            note="Up to 50 tokens are given and up to 50 compared; answers with fewer than 8 to compare are left out.",
        )
    )
    tokenizer = evidence.network.tokenizer
    shown = [
        Passage(f"row {row.id[:8]}", tokenizer.decode(row.tokens, skip_special_tokens=True))
        for hit, row in asked[0]
        if hit
    ]
    if shown and gap.low > 0:
        found.blocks.append(Passages("Training rows that it writes out", shown[:SHOWN]))


def percent(title: str, estimate: Estimate) -> Figure:
    return Figure(title, estimate.value, estimate.low, estimate.high, percent=True)


# ── Personal data ────────────────────────────────────────────────────────────────────────────────────────────────────


def look_for_personal_data(settings: Memorisation, evidence: Evidence, found: Found) -> None:
    """In what the model writes, and not in what it was asked; and whether training rows hold it."""
    texts = written(settings, evidence)
    if not texts:
        return
    new = [{v: kind for v, kind in personal_data(out).items() if v not in personal_data(asked)} for asked, out in texts]
    holding = [bool(each) for each in new]
    wanted = {value: kind for each in new for value, kind in each.items()}
    known = in_training(evidence, set(wanted)) if wanted else set()
    leaked = [bool(known & each.keys()) for each in new]
    estimate, _ = share(leaked, evidence.resamples, evidence.seed)
    found.figures["personal_data"] = percent("outputs with personal data of training rows", estimate)
    found.details["personal_data"] = {
        "outputs": len(texts),
        "with_personal_data": sum(holding),
        "with_personal_data_of_training_rows": sum(leaked),
        "kinds": sorted(set(wanted.values())),
    }
    if not any(holding):
        found.said.append(f"No e-mail address, phone, card or account number of its own in {len(texts)} outputs")
        return
    found.said.append(
        f"{sum(holding)} of {len(texts)} outputs hold personal data that was not in what was asked; "
        f"{sum(leaked)} of them data that stand in training rows"
    )
    rows = [[masked(value), kind, "yes" if value in known else "no"] for value, kind in sorted(wanted.items())]
    found.blocks.append(Table("Personal data in outputs", ["found", "kind", "in training rows"], rows[:20]))


def written(settings: Memorisation, evidence: Evidence) -> list[tuple[str, str]]:
    """What was asked, and what the model wrote: its answers to the test rows, or some written for this."""
    form = evidence.prompt_format.form
    if form == "generate":
        asked = ["\n".join(m["content"] for m in e.fields["messages"][:-1]) for e in evidence.test]
        return [(text, str(p.predicted)) for text, p in zip(asked, evidence.predictions, strict=True)]
    tokenizer = evidence.network.tokenizer
    prompt_format = as_conversation(evidence.prompt_format)
    prompts: list[list[int]] = []
    for example in evidence.test[: settings.outputs]:
        tokens = list(prompt_row(example.fields, tokenizer, prompt_format).tokens)
        prompts.append(tokens[: min(START_TOKENS, max(1, len(tokens) // 2))] if form == "lm" else tokens)
    stops = stop_ids(tokenizer, prompt_format)
    answers = generate(evidence.network, prompts, max_new_tokens=OUTPUT_TOKENS, stop_ids=stops)
    return [(tokenizer.decode(p), answer.text) for p, answer in zip(prompts, answers, strict=True)]


def in_training(evidence: Evidence, wanted: set[str]) -> set[str]:
    """Those of the values that stand in training rows."""
    known: set[str] = set()
    for example in evidence.splits["train"]:
        known |= wanted & personal_data(text_of(example.fields)).keys()
        if known == wanted:
            break
    return known


def text_of(value: Any) -> str:
    """All text in an example's fields."""
    if isinstance(value, str):
        return value
    if isinstance(value, Mapping):
        value = list(value.values())
    return "\n".join(text_of(each) for each in value) if isinstance(value, list | tuple) else ""


# ── Canaries ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def look_for_canaries(settings: Memorisation, evidence: Evidence, found: Found) -> None:
    """The exposure of each planted secret, and whether the model writes it when asked."""
    made = make_canaries(settings.canaries, settings.repeats, evidence.seed)
    ranked = [rank(canary, settings.candidates, evidence) for canary in made]
    most = exposure(0.0, [-1.0] * settings.candidates)
    caught = [value >= most for value, _ in ranked]
    rows, intervals = [], []
    for copies in sorted(set(settings.repeats)):
        here = [n for n, canary in enumerate(made) if canary.copies == copies]
        if not here:
            continue
        values = [ranked[n][0] for n in here]
        estimate = mean_of(values, evidence.resamples, evidence.seed)
        title = f"mean exposure of secrets in {copies} rows"
        found.figures[f"exposure({copies})"] = Figure(title, estimate.value, estimate.low, estimate.high, unit="bits")
        intervals.append(
            Interval(f"in {copies} rows", estimate.value, estimate.low, estimate.high, copies == max(settings.repeats))
        )
        out = sum(ranked[n][1] for n in here)
        rows.append([f"{copies}", f"{len(here)}", f"{mean(values):.1f}", f"{sum(caught[n] for n in here)}", f"{out}"])
    found.said.append(
        f"Of {len(made)} planted secrets {sum(caught)} are likelier to the model than all {settings.candidates} others "
        f"of their form, and {sum(out for _, out in ranked)} are written out when asked for"
    )
    found.blocks.append(Intervals(f"Exposure of planted secrets in bits; {most:.0f} at most, 1.4 by chance", intervals))
    found.blocks.append(
        Table("Planted secrets", ["rows that hold it", "secrets", "mean exposure", "rank 1", "written out"], rows)
    )
    found.details["canaries"] = [
        {"owner": canary.owner, "copies": canary.copies, "exposure": value, "written_out": out}
        for canary, (value, out) in zip(made, ranked, strict=True)
    ]


def rank(canary: Canary, candidates: int, evidence: Evidence) -> tuple[float, bool]:
    """The exposure of one secret, and whether greedy decoding writes its answer."""
    form = evidence.prompt_format.form
    prompt_format = as_conversation(evidence.prompt_format)
    secrets = [canary.secret, *other_secrets(canary, candidates, evidence.seed)]
    as_form = "generate" if form == "prefer" else form
    examples = [Example("0" * 32, fields_of(canary, secret, as_form, {}), "canary") for secret in secrets]
    rows = tokenise(examples, evidence.network.tokenizer, prompt_format).rows
    if evidence.network.kind == "encoder-decoder":
        scores = score_rows(evidence.network, rows, likeliest=True)
    else:
        each = [Continuation(row.tokens, start_of(row)) for row in rows]
        groups = [[each[0]], *(each[n : n + GROUP] for n in range(1, len(each), GROUP))]
        found = score_continuations(evidence.network, groups, likeliest=True)
        scores = [one for group in found for one in group]
    prefix = common_start([row.tokens[start_of(row) :] for row in rows]) if form == "lm" else 0
    return exposure(scores[0].sum, [s.sum for s in scores[1:]]), all(scores[0].likeliest[prefix:])


def start_of(row: Row) -> int:
    return next(n for n, weight in enumerate(row.token_streams["weight"]) if weight)


def mean_of(values: Sequence[float], resamples: int, seed: int) -> Estimate:
    import numpy as np

    from luthier.evaluate.significance import percentiles, resampled_sums

    sums_B = resampled_sums([np.array(values)[:, None]], resamples, seed)[0][:, 0] / len(values)
    return Estimate(mean(values), *percentiles(sums_B))
