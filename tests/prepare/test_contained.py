"""Documents that hold a test row word for word."""

from __future__ import annotations

from luthier.prepare.copies.contained import holding

ROWS = [
    ("How many legs has a spider?", "Eight."),
    ("Who was here?", "Ann"),
    ("Where is the town of Melk, on which river?", "Danube"),
]


def test_only_documents_with_question_and_answer_hold_a_row() -> None:
    documents = [
        "A spider has eight legs. Melk lies on the Danube.",
        "FAQ: how many   LEGS has a spider -- eight",
        "How many legs has a spider? We do not know.",
        "Q: Who was here? A: Ann",
        "Where is the town of Melk, on which river? ... The Danube.\n\nHow many legs has a spider? Eight",
    ]
    assert list(holding(documents, ROWS)) == [(1, 0), (4, 0)]


def test_an_answer_inside_the_question_is_none() -> None:
    row = ("Is it true that the answer is yes", "yes")
    assert not list(holding(["Is it true that the answer is yes?"], [row]))
    assert list(holding(["Is it true that the answer is yes? Yes."], [row])) == [(0, 0)]
