"""What a tokenizer makes of words, and the tokens that are suggested: counted as the tokenizer itself counts them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from luthier.models.load import add_tokens, load_tokenizer
from luthier.prepare.vocabulary import BEHIND, look_at_vocabulary, vocabulary_finding
from luthier.selection.tokens import Tokens

PROSE = ["the cat sat on the mat", "a good day"]


@pytest.fixture(params=["llama", "bert"])
def tokenizer(request: pytest.FixtureRequest, tiny: Callable[..., Path]) -> Any:
    return load_tokenizer(tiny(request.param))


def test_words_and_tokens_are_counted(tokenizer: Any) -> None:
    texts = ["the cat sat, 2 times", "Straße"]
    found = look_at_vocabulary(iter(texts), tokenizer, PROSE)
    ids = tokenizer(texts, add_special_tokens=False)["input_ids"]
    assert (found.texts, found.words) == (2, 5)
    assert found.tokens == sum(map(len, ids))
    assert found.tokens_per_word == found.tokens / 5 and found.characters_per_token == 26 / found.tokens
    prose = tokenizer(PROSE, add_special_tokens=False)["input_ids"]
    assert found.general == sum(map(len, prose)) / 9


def test_frequent_shattered_words_come_first_and_make_texts_shorter(tokenizer: Any) -> None:
    texts = ["qzxwvk is a qzxwvk of jjzzqq"] * 10 + ["seldomqqq came qqzzjj"] * 4
    before = len(tokenizer)
    found = look_at_vocabulary(texts, tokenizer, PROSE)
    assert len(tokenizer) == before, "the tokenizer is not changed"
    assert [each.word for each in found.shattered][:2] == ["qzxwvk", "jjzzqq"]
    first = found.shattered[0]
    behind = (len(tokenizer(text, add_special_tokens=False)["input_ids"]) for text in (f"{BEHIND} qzxwvk", BEHIND))
    assert (
        first.times == 20
        and len(first.pieces) == next(behind) - next(behind)
        and first.saved == 20 * (len(first.pieces) - 1)
    )
    assert "seldomqqq" not in [each.word for each in found.shattered], "seen four times"
    Tokens(add=list(found.add))
    ids = tokenizer(texts, add_special_tokens=False)["input_ids"]
    add_tokens(tokenizer, found.add)
    left = tokenizer(texts, add_special_tokens=False)["input_ids"]
    assert 0 < found.shorter == pytest.approx(1 - sum(map(len, left)) / sum(map(len, ids)))


def test_the_order_of_texts_decides_nothing(tokenizer: Any) -> None:
    texts = [f"word{letter * 3} qzx{letter}" for letter in "abcdefgh"] * 6
    assert look_at_vocabulary(texts, tokenizer, PROSE) == look_at_vocabulary(texts[::-1], tokenizer, PROSE)


def test_no_text_and_no_word(tokenizer: Any) -> None:
    for texts in ([], ["12 34", "..."]):
        found = look_at_vocabulary(texts, tokenizer, PROSE)
        assert found.words == 0 and not found.add
        assert "No word" in vocabulary_finding(found).sentence
    assert look_at_vocabulary(["a"], tokenizer, []).general == 0
    assert vocabulary_finding(look_at_vocabulary(["a"], tokenizer, [])).sentence


def test_the_finding_shows_words_and_tokens(tokenizer: Any) -> None:
    finding = vocabulary_finding(look_at_vocabulary(["qzxwvk jjzzqq"] * 9, tokenizer, PROSE))
    assert finding.details["add"] and finding.figures["tokens_per_word"].value
    (table,) = finding.as_json("Vocabulary")["blocks"]
    assert table["rows"][0][0] in ("qzxwvk", "jjzzqq") and table["rows"][0][1] == "9"
