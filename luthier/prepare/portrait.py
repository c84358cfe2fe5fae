"""What the rows of each split look like: labels, lengths, languages, slices. In: splits. Out: a finding to be shown.

Of long splits a sample is looked at: the rows of the lowest ids, which are hashes of their content.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from typing import Any

import numpy as np

from luthier.finding import Bar, Bars, Block, Curves, Figure, Finding, Series, Table
from luthier.prepare.examples import Examples
from luthier.prepare.sources.source import SPLITS
from luthier.prepare.texts import whole_text
from luthier.records import Example
from luthier.tasks import Form
from luthier.texts.languages import detector

MOST_ROWS = 5000
MOST_FOR_LANGUAGE = 500
MOST_LABELS = 30
QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)


def portrait(form: Form, splits: Mapping[str, Examples], facts: Mapping[str, Any]) -> Finding:
    """What there is to know of the splits before anything is learned from them."""
    samples = {name: rows.first_by_id(MOST_ROWS) for name, rows in splits.items() if len(rows)}
    words = {name: [len(whole_text(form, each.fields).split()) for each in rows] for name, rows in samples.items()}
    blocks: list[Block] = [*labels_of(facts), *lengths_of(words), *slices_of(samples)]
    languages, told = languages_of(form, samples)
    counts = {name: len(rows) for name, rows in splits.items() if len(rows)}
    whole = [number for several in words.values() for number in several]
    sentence = f"Half of the rows have between {np.quantile(whole, 0.25):.0f} and {np.quantile(whole, 0.75):.0f} words."
    if any(len(samples[name]) < count for name, count in counts.items()):
        sentence += f" Lengths are those of {MOST_ROWS:,} rows of each split, drawn by their content."
    figures = {"median_words": Figure("Median words", float(np.median(whole)))}
    return Finding(f"{sentence} {told}".strip(), figures, [*blocks, *languages])


def labels_of(facts: Mapping[str, Any]) -> list[Block]:
    """Rows of each label, and its share of each split."""
    found = {name: facts["splits"].get(name) for name in SPLITS}
    splits = {name: split for name, split in found.items() if split and split["rows"] and split["labels"]}
    if "train" not in splits:
        return []
    counts = sorted(splits["train"]["labels"].items(), key=lambda item: (-item[1], item[0]))
    shown = counts[:MOST_LABELS]
    bars = [Bar(label, count, f"{count:,} ({count / splits['train']['rows']:.1%})") for label, count in shown]
    note = f"The {MOST_LABELS} most frequent of {len(counts):,}." if len(counts) > MOST_LABELS else ""
    rows = []
    for label, _ in shown:
        shares = (split["labels"].get(label, 0) / split["rows"] for split in splits.values())
        rows.append([label, *(f"{share:.1%}" for share in shares)])
    return [
        Bars("Rows of train by label.", bars, note),
        Table("Share of each label in each split.", ["Label", *splits], rows, note),
    ]


def lengths_of(words: Mapping[str, Sequence[int]]) -> list[Block]:
    rows = [
        [name, *(f"{np.quantile(several, at):,.0f}" for at in QUANTILES), f"{max(several):,}"]
        for name, several in words.items()
    ]
    columns = ["Split", *(f"{at:.0%}" for at in QUANTILES), "Longest"]
    blocks: list[Block] = [Table("Words of a row: so many have at most ...", columns, rows)]
    top = float(np.quantile([number for several in words.values() for number in several], 0.99))
    if top > 1:
        edges = np.unique(np.linspace(0, top, 21).round())
        curves = []
        for name, several in words.items():
            shares = np.histogram(np.minimum(several, top), edges)[0] / len(several)
            middles = (edges[:-1] + edges[1:]) / 2
            curves.append(Series(name, [(float(x), float(y)) for x, y in zip(middles, shares, strict=True)]))
        note = "Longer ones count as the longest shown."
        blocks.append(Curves("Lengths", "words", "share of rows", curves, percent_up=True, note=note))
    return blocks


def slices_of(samples: Mapping[str, Sequence[Example]]) -> list[Block]:
    """Rows of each slice, for the columns that the recipe names."""
    blocks: list[Block] = []
    columns = sorted({column for rows in samples.values() for each in rows[:1] for column in each.slices})
    for column in columns:
        counts = {name: Counter(each.slices[column] for each in rows) for name, rows in samples.items()}
        values = [value for value, _ in sum(counts.values(), Counter()).most_common(MOST_LABELS)]
        table = [[value, *(f"{count[value] / count.total():.1%}" for count in counts.values())] for value in values]
        blocks.append(Table(f"Rows by {column}.", [column, *counts], table))
    return blocks


def languages_of(form: Form, samples: Mapping[str, Sequence[Example]]) -> tuple[list[Block], str]:
    if find_spec("py3langid") is None:
        return [], "Languages are not told apart (pip install 'luthier[clean]')."
    detect, _ = detector()
    texts = {
        name: (whole_text(form, each.fields) for each in rows[:MOST_FOR_LANGUAGE]) for name, rows in samples.items()
    }
    counts = {name: Counter(map(detect, several)) for name, several in texts.items()}
    names = [name for name, _ in sum(counts.values(), Counter()).most_common(8)]
    rows = [[name, *(f"{count[name] / count.total():.1%}" for count in counts.values())] for name in names]
    note = f"As py3langid tells them, of {MOST_FOR_LANGUAGE} rows of each split; short texts are hard to tell."
    return [Table("Languages.", ["Language", *counts], rows, note)], ""
