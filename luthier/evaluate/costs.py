"""What a system's answers take and cost: tokens, and money at prices that the user states.

In: prompts and answers; prices. Out: tokens read and written; the cost of a thousand requests, in the unit of the
prices.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from luthier.evaluate.alternatives import Price, Prices
from luthier.prompts import PromptFormat, prompt_row, tokenise
from luthier.records import Example, Prediction

NO_PRICES = "No prices are stated (evaluate.prices), so costs are left blank."


@dataclass(frozen=True)
class Usage:
    """Tokens of all rows together."""

    read: int
    written: int = 0


def usage_of(
    tokenizer: Any, prompt_format: PromptFormat, examples: Sequence[Example], predictions: Sequence[Prediction]
) -> Usage:
    """Tokens that a model reads and writes to answer so. An answer counts the token that ends it; only `generate` is
    written token by token."""
    if prompt_format.form != "generate":
        return Usage(sum(len(row.tokens) for row in tokenise(examples, tokenizer, prompt_format).rows))
    read = sum(len(prompt_row(example.fields, tokenizer, prompt_format).tokens) for example in examples)
    texts = [str(prediction.predicted) for prediction in predictions]
    answers = tokenizer(texts, add_special_tokens=False)["input_ids"] if texts else []
    return Usage(read, sum(len(answer) + 1 for answer in answers))


def cost_of_thousand(
    prices: Prices | None, system: str, remote: bool, usage: Usage | None, seconds: float | None, rows: int
) -> float | None:
    """What 1,000 requests like these rows cost; None where prices or measurements do not say.

    A system on this machine costs the machine's time if that has a price, else its tokens; one elsewhere its tokens.
    """
    if prices is None:
        return None
    price: Price = prices.by_system.get(system, prices)
    timed = price.machine_per_hour is not None and (not remote or system in prices.by_system)
    if timed:
        assert price.machine_per_hour is not None
        return None if seconds is None else 1000 * price.machine_per_hour * seconds / 3600 / rows
    if usage is None or price.input_per_million is None or (usage.written and price.output_per_million is None):
        return None
    total = usage.read * price.input_per_million + usage.written * (price.output_per_million or 0.0)
    return total / 1e6 * 1000 / rows
