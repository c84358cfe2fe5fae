"""What a tokenizer makes of the words in this data, and which tokens would be worth adding.

In: texts, a tokenizer, general prose. Out: tokens a word in each, the words that are cut into most pieces for how often
they come, and tokens to add, ready for `selection: {tokens: {add: [...]}}`.

A word is a run of letters. What it costs is counted behind another word, as it stands in a text. Whether it pays that a
token takes in the blank before it (" word") depends on the tokenizer, so both forms are tried on a sample of the texts;
without the blank a token matches whole words only, so that form is taken unless the other saves clearly more. A row for
a new token starts as the mean of its pieces' rows (`luthier/selection/tokens.py`).
"""

from __future__ import annotations

import copy
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from luthier.finding import Block, Figure, Finding, Table
from luthier.models.load import add_tokens

WORD = re.compile(r"[^\W\d_]+")
BEHIND = "the"
"""What stands before a word whose pieces are counted."""
AT_ONCE = 1000
MOST_WORDS = 1_000_000
"""Different words that are counted at once: when there are more, those seen once so far are let go."""
SAMPLE = 1000
"""Texts that the tokens are tried on."""
CLEARLY = 1.1
LEAST_PIECES = 3
LEAST_COUNT = 5


class WordCost(NamedTuple):
    """A word and what it costs."""

    word: str
    times: int
    pieces: Sequence[str]
    """As the tokenizer cuts it, behind another word."""

    @property
    def saved(self) -> int:
        """Tokens that would be saved, were it a single one."""
        return self.times * (len(self.pieces) - 1)


@dataclass(frozen=True)
class Vocabulary:
    """What the tokenizer makes of the data."""

    texts: int
    words: int
    tokens: int
    characters: int
    general: float
    """Tokens a word in general prose."""
    shattered: Sequence[WordCost]
    """Words of `LEAST_PIECES` pieces or more seen `LEAST_COUNT` times or more, those that cost most first."""
    add: Sequence[str]
    """Tokens worth adding, as `selection.tokens.add` takes them."""
    shorter: float
    """Share of the tokens that adding them saves, measured on the first `SAMPLE` texts."""

    @property
    def tokens_per_word(self) -> float:
        return self.tokens / max(self.words, 1)

    @property
    def characters_per_token(self) -> float:
        return self.characters / max(self.tokens, 1)


def look_at_vocabulary(texts: Iterable[str], tokenizer: Any, general: Iterable[str], most: int = 50) -> Vocabulary:
    """What the tokenizer makes of the texts.

    Args:
        texts: Gone through once, some at a time.
        tokenizer: A transformers tokenizer; it is not changed.
        general: Prose to compare with; English, as far as Luthier brings it along.
        most: How many tokens to suggest.
    """
    counts: Counter[str] = Counter()
    sample: list[str] = []
    seen = words = tokens = characters = 0
    for part in parts(texts):
        sample += part[: SAMPLE - len(sample)]
        found = [word for text in part for word in WORD.findall(text)]
        counts.update(found)
        words += len(found)
        tokens += count_tokens(tokenizer, part)
        characters += sum(map(len, part))
        seen += len(part)
        if len(counts) > MOST_WORDS:
            counts = Counter({word: count for word, count in counts.items() if count > 1})
    prose = list(general)
    prose_words = sum(len(WORD.findall(text)) for text in prose)
    shattered = costly_words(counts, tokenizer)
    add, shorter = worth_adding([each.word for each in shattered[:most]], tokenizer, sample)
    return Vocabulary(
        seen, words, tokens, characters, count_tokens(tokenizer, prose) / max(prose_words, 1), shattered, add, shorter
    )


def parts(texts: Iterable[str]) -> Iterator[list[str]]:
    part: list[str] = []
    for text in texts:
        part.append(text)
        if len(part) == AT_ONCE:
            yield part
            part = []
    if part:
        yield part


def ids_of(tokenizer: Any, texts: Sequence[str]) -> list[list[int]]:
    """The tokens of each text, without those that mark its beginning and end."""
    ids: list[list[int]] = tokenizer(list(texts), add_special_tokens=False)["input_ids"] if texts else []
    return ids


def count_tokens(tokenizer: Any, texts: Sequence[str]) -> int:
    return sum(map(len, ids_of(tokenizer, texts)))


def costly_words(counts: Counter[str], tokenizer: Any) -> list[WordCost]:
    """Frequent words of several pieces, those that would save most tokens first."""
    frequent = sorted(word for word, count in counts.items() if count >= LEAST_COUNT)
    (before,) = ids_of(tokenizer, [BEHIND])
    found = []
    for part in parts(frequent):
        for word, ids in zip(part, ids_of(tokenizer, [f"{BEHIND} {word}" for word in part]), strict=True):
            pieces = ids[len(before) :]
            if len(pieces) >= LEAST_PIECES and ids[: len(before)] == before:
                found.append(WordCost(word, counts[word], [tokenizer.decode([piece]) for piece in pieces]))
    return sorted(found, key=lambda each: (-each.saved, each.word))


def worth_adding(words: Sequence[str], tokenizer: Any, sample: Sequence[str]) -> tuple[list[str], float]:
    """The words as tokens, with the blank before them or without; and what share of the sample's tokens they save.
    Nothing where neither saves any."""
    tokens = count_tokens(tokenizer, sample)
    if not words or not tokens:
        return [], 0.0
    saved = {}
    for form in ("{}", " {}"):
        larger = copy.deepcopy(tokenizer)
        add_tokens(larger, [form.format(word) for word in words])
        saved[form] = 1 - count_tokens(larger, sample) / tokens
    form = " {}" if saved[" {}"] > CLEARLY * saved["{}"] else "{}"
    return ([form.format(word) for word in words], saved[form]) if saved[form] > 0 else ([], 0.0)


def vocabulary_finding(vocabulary: Vocabulary, shown: int = 30) -> Finding:
    """What a page or the terminal shows of it."""
    if not vocabulary.words:
        return Finding("No word was found in these texts.")
    ratio = vocabulary.tokens_per_word / vocabulary.general if vocabulary.general else 1.0
    sentence = (
        f"{vocabulary.tokens_per_word:.2f} tokens a word, against {vocabulary.general:.2f} in plain English prose"
    )
    sentence += f" ({ratio:.2f} times)."
    if vocabulary.add:
        sentence += f" {len(vocabulary.add)} added tokens would make texts {vocabulary.shorter:.1%} shorter."
    else:
        sentence += " No frequent word is cut into so many pieces that adding it would pay."
    figures = {
        "tokens_per_word": Figure("Tokens a word", vocabulary.tokens_per_word),
        "tokens_per_word_general": Figure("Tokens a word, plain prose", vocabulary.general),
        "characters_per_token": Figure("Characters a token", vocabulary.characters_per_token, higher_is_better=True),
        "shorter_by_tokens": Figure("Shorter by added tokens", vocabulary.shorter, higher_is_better=True, percent=True),
    }
    rows = [
        [each.word, f"{each.times:,}", f"{len(each.pieces)}", "|".join(each.pieces), f"{each.saved:,}"]
        for each in vocabulary.shattered[:shown]
    ]
    columns = ["Word", "Times", "Pieces", "As it is cut", "Tokens saved as one"]
    blocks: list[Block] = [Table("The most shattered words.", columns, rows)]
    return Finding(sentence, figures, blocks if rows else [], {"add": list(vocabulary.add), "texts": vocabulary.texts})
