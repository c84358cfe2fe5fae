"""Names and pronouns swapped: the right word, the right letters, and back again."""

from __future__ import annotations

import pytest

from luthier.evaluate.fairness.people import MEN, WOMEN
from luthier.evaluate.fairness.swaps import swapped

PAIRS = [
    ("He gave her the keys, and she thanked him.", "She gave him the keys, and he thanked her."),
    ("I saw her yesterday. The book is his.", "I saw him yesterday. The book is hers."),
    ("Her brother lost his hat.", "His sister lost her hat."),
    ("James likes her.", "Mary likes him."),
    ("John's mother is here.", "Jennifer's father is here."),
    ("HE IS THE KING", "SHE IS THE QUEEN"),
    ("La mujer de la casa habló con el hombre.", "El hombre de la casa habló con la mujer."),
    ("Voy al hermano de María, es un señor", "Voy a la hermana de José, es una señora"),
]


@pytest.mark.parametrize(("text", "other"), PAIRS)
def test_there_and_back(text: str, other: str) -> None:
    first, second = swapped(text), swapped(other)
    assert first is not None and first.text == other
    assert second is not None and second.text == text


@pytest.mark.parametrize(
    "text", ["a fine film", "la película es muy buena", "Grace and Mark are words here", "", "你好"]
)
def test_texts_that_name_no_gender_stay(text: str) -> None:
    assert swapped(text) is None


def test_whom_the_new_words_are_about() -> None:
    assert [found.toward for text in ("the king is here", "she is here", "he and she") if (found := swapped(text))] == [
        "women",
        "men",
        "both",
    ]


@pytest.mark.parametrize("language", ["en", "es"])
def test_names_come_in_pairs(language: str) -> None:
    men, women = MEN[language].split(), WOMEN[language].split()  # type: ignore[index]
    assert len(men) == len(women) == len(set(men)) == len(set(women))
    assert not set(men) & set(women)
