"""Rows as the model will see them: every token, and whether it is learned from. In: `Prepared`. Out: rows to print."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.text import Text

    from luthier.planning.prepared import Prepared
    from luthier.records import Row

LEARNED, SEEN, TURN = "bold green", "dim", "bold"


@dataclass(frozen=True)
class ShownRow:
    """One row of tokens."""

    place: str
    pieces: Sequence[str]
    """Each token as text."""
    weights: Sequence[float] | None
    """What predicting each token counts in the loss; None where a label, a number or tags of the row are learned."""
    about: dict[str, Any]
    """The label and the like, by its name."""
    parts: Sequence[int]

    def as_json(self) -> dict[str, Any]:
        return {
            "place": self.place,
            "tokens": list(self.pieces),
            "weights": None if self.weights is None else list(self.weights),
            **self.about,
        }

    def text(self) -> Text:
        """What is learned in green and between ⟦ and ⟧, the rest dim; `▏` begins a further sequence of the row."""
        from rich.text import Text

        learned = sum(weight > 0 for weight in self.weights or ())
        told = f"{learned} learned" if self.weights is not None else "read for what follows"
        about = "".join(f", {name} {value!r}" for name, value in self.about.items())
        text = Text(f"{self.place}: {len(self.pieces)} tokens, {told}{about}\n", style=TURN)
        starts: set[int] = set()
        for length in self.parts[:-1]:
            starts.add(length + max(starts, default=0))
        inside = False
        for place, piece in enumerate(self.pieces):
            now = self.weights is not None and self.weights[place] > 0
            if place in starts:
                text.append("⟧" * inside + "\n▏", style=TURN)
                inside = False
            if now != inside:
                text.append("⟦" if now else "⟧", style=TURN)
                inside = now
            text.append(piece, style=LEARNED if now else SEEN)
        text.append("⟧\n" if inside else "\n", style=TURN)
        return text


def shown_rows(prepared: Prepared, split: str, count: int) -> Iterator[ShownRow]:
    """The first rows of a split."""
    rows = prepared.tokenised[split].rows
    places = {example.id: example.place for example in prepared.data.splits[split][:count]}
    for row in rows[:count]:
        yield shown(row, prepared, places.get(row.id, row.id))


def pieces_of(tokenizer: Any, tokens: Sequence[int]) -> list[str]:
    """Each token as it reads after the one before: whether a blank stands between two words only both together tell."""

    def read(some: Sequence[int]) -> str:
        return str(tokenizer.decode(some, clean_up_tokenization_spaces=False))

    pieces = []
    for place, token in enumerate(tokens):
        before = read(tokens[place - 1 : place]) if place else ""
        both = read(tokens[max(0, place - 1) : place + 1])
        pieces.append(both.removeprefix(before) if both.startswith(before) else read([token]))
    return pieces


def shown(row: Row, prepared: Prepared, place: str) -> ShownRow:
    labels = prepared.data.labels
    about = {}
    for name, value in row.example_streams.items():
        if name != "weight":
            named = name == "label" and isinstance(value, int) and value < len(labels)
            about[name] = labels[value] if named else value
    weights = row.token_streams.get("weight")
    return ShownRow(place, pieces_of(prepared.tokenizer, row.tokens), weights, about, row.parts)
