"""Near copies: every one that is given is one, hardly any is missed, and none of them crosses splits."""

from __future__ import annotations

import json
import random
import re
import subprocess
import sys
import unicodedata
from collections import Counter
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from luthier.prepare.copies.near import Pairs, copies_of_others, copies_within
from luthier.prepare.copies.shingles import CHARACTERS_TO, WORDS_FROM, common_shingles
from luthier.prepare.copies.sketches import Bands, Sketches, similarities, sketch
from luthier.prepare.read import Dataset, DataSettings, read_data
from luthier.prepare.steps import PrepareSettings
from luthier.storage.arrays import ArrayWriter

WORDS = [
    f"{first}{last}" for first in ("ka", "lo", "mi", "sen", "tor", "vu") for last in ("ra", "dil", "mon", "pe", "x")
]


def sketched(texts: list[str], similarity: float = 0.8, common: np.ndarray | None = None) -> Sketches:
    return sketch(texts, similarity, ArrayWriter(None), common)


def within(texts: list[str], similarity: float = 0.8) -> Pairs:
    return copies_within(sketched(texts, similarity), np.ones(len(texts), bool), similarity)


def by_definition(one: str, other: str) -> float:
    """The similarity as the docs tell it, by Python's own sets: the larger of the two measures."""
    folded = [
        "".join(re.findall(r"[^\W_]+", fold(text)) and " ".join(re.findall(r"[^\W_]+", fold(text))) + " ")
        for text in (one, other)
    ]
    found = [0.0]
    if all(0 < len(text) <= CHARACTERS_TO for text in folded):
        found.append(jaccard(*(Counter(text[at : at + 5] for at in range(max(1, len(text) - 4))) for text in folded)))
    if all(len(text) > WORDS_FROM for text in folded):
        found.append(jaccard(*(Counter(pairwise(text.split())) or Counter([text]) for text in folded)))
    return max(found)


def fold(text: str) -> str:
    return unicodedata.normalize("NFKC", text).casefold()


def jaccard(one: Counter[Any], other: Counter[Any]) -> float:
    """Of bags: what a text has twice counts twice."""
    return (one & other).total() / (one | other).total()


def sentence(draw: random.Random, words: int) -> str:
    return " ".join(draw.choice(WORDS) for _ in range(words))


def edited(draw: random.Random, text: str, changes: int) -> str:
    words = text.split()
    for _ in range(changes):
        words[draw.randrange(len(words))] = draw.choice(WORDS) + draw.choice(WORDS)
    return " ".join(words)


def pairs_of_texts(draw: random.Random, count: int) -> list[tuple[str, str]]:
    originals = [sentence(draw, draw.choice([6, 12, 20, 30, 34, 38, 60, 300])) for _ in range(count)]
    return [(text, edited(draw, text, draw.randrange(1 + len(text.split()) // 5))) for text in originals]


def test_similarity_is_jaccard_of_the_sets_that_the_docs_name() -> None:
    pairs = pairs_of_texts(random.Random(0), 400)
    measured = similarities(*map(list, zip(*pairs, strict=True)))
    assert measured == pytest.approx([by_definition(*pair) for pair in pairs], abs=1e-6)
    assert 0 < np.mean(measured < 0.8) < 1


def test_nearly_every_planted_copy_is_found_and_nothing_else() -> None:
    draw = random.Random(1)
    pairs = pairs_of_texts(draw, 3000)
    texts = [text for pair in pairs for text in pair]
    draw.shuffle(places := list(range(len(texts))))
    where = {old: new for new, old in enumerate(places)}
    found = within([texts[old] for old in places])
    couples = {frozenset((int(one), int(other))) for one, other in zip(found.texts, found.of, strict=True)}
    near = {
        frozenset((where[2 * number], where[2 * number + 1]))
        for number, pair in enumerate(pairs)
        if by_definition(*pair) >= 0.8
    }
    assert len(near) > 1000
    assert len(near & couples) >= 0.995 * len(near)
    shuffled = [texts[old] for old in places]
    assert all(by_definition(*(shuffled[each] for each in couple)) >= 0.8 - 1e-6 for couple in couples)


@pytest.mark.parametrize("similarity", [0.5, 0.7, 0.8, 0.9, 1.0])
def test_bands_find_nearly_all_at_the_threshold(similarity: float) -> None:
    bands = Bands.for_similarity(similarity)
    assert bands.found(similarity) >= 0.999
    assert bands.found(similarity / 4) < 0.4


@given(st.lists(st.text(max_size=40), min_size=1, max_size=20))
def test_equal_texts_are_always_found(texts: list[str]) -> None:
    """But for texts without a letter or digit, which have no shingles."""
    found = set(within(texts + texts).texts.tolist())
    for row, text in enumerate(texts, len(texts)):
        assert (row in found) == any(unicodedata.category(letter)[0] in "LNM" for letter in fold(text)) or row in found


@given(st.lists(st.text("abcd é.,", max_size=60), min_size=2, max_size=12), st.sampled_from([0.5, 0.8, 1.0]))
def test_no_pair_is_below_the_similarity(texts: list[str], similarity: float) -> None:
    found = within(texts, similarity)
    kept = set(range(len(texts))) - set(found.texts.tolist())
    for one, other, measured in zip(found.texts, found.of, found.similarity, strict=True):
        assert other < one and other in kept, "a copy names an earlier row, and one that stays"
        assert measured >= similarity
        assert by_definition(texts[one], texts[other]) == pytest.approx(measured, abs=1e-6)


@settings(max_examples=30)
@given(st.randoms(use_true_random=False))
def test_which_are_near_is_symmetric_and_does_not_depend_on_the_order(draw: random.Random) -> None:
    texts = [text for pair in pairs_of_texts(draw, 12) for text in pair]
    half = np.arange(len(texts)) % 2 == 0
    sketches = sketched(texts)
    there, back = copies_of_others(sketches, half, ~half, 0.8), copies_of_others(sketches, ~half, half, 0.8)
    assert {int(each) for each in there.of} <= {int(each) for each in back.texts}
    assert {int(each) for each in back.of} <= {int(each) for each in there.texts}
    draw.shuffle(order := list(range(len(texts))))
    again = copies_of_others(sketched([texts[each] for each in order]), half[order], ~half[order], 0.8)
    assert sorted(order[each] for each in again.texts) == there.texts.tolist()


def test_folding() -> None:
    same = ["Thank you, John!", "thank  you john", "ＴＨＡＮＫ you\tJohn…", "THANK YOU — JOHN"]
    assert within(same).texts.tolist() == [1, 2, 3]
    assert within(["straße eins zwei", "STRASSE EINS ZWEI", "cafe\u0301", "CAFÉ"]).texts.tolist() == [1, 3]
    assert len(within(["no no no no no no", "no no", "no no no"])) == 0
    assert len(within(["!!!", "!!!", "", "", "👍"])) == 0


def test_writing_without_blanks() -> None:
    text = "".join(chr(0x4E00 + 37 * each % 3000) for each in range(400))
    assert within([text, text[:200] + "新" + text[200:], text[::-1]]).texts.tolist() == [1]


def test_a_chain_is_no_copy() -> None:
    """Each is near the next, the first and the last have little in common: the last stays, whatever the order."""
    draw = random.Random(5)
    chain = [sentence(draw, 24)]
    while by_definition(chain[0], chain[-1]) >= 0.8:
        chain.append(edited(draw, chain[-1], 1))
    for texts in (chain, chain[::-1]):
        found = within(texts)
        assert 0 < len(found) < len(texts) - 1
        kept = [text for row, text in enumerate(texts) if row not in found.texts]
        assert all(by_definition(one, other) < 0.8 for one in kept for other in kept if one != other)


def test_what_most_rows_share_does_not_count() -> None:
    draw = random.Random(6)
    asked = "Say in one word whether the writer of the following message is happy or not, and nothing else, "
    asked += "not even a full stop, for your word is read by a program that knows the three of them and no other: "
    own = [sentence(draw, 6) for _ in range(60)]
    texts = [asked + text for text in [*own, own[0]]]
    assert len(within(texts)) > 40
    sketches = sketched(texts, common=common_shingles(texts))
    assert copies_within(sketches, np.ones(61, bool), 0.8).texts.tolist() == [60]


@pytest.mark.parametrize("similarity", [0.7, 0.8])
def test_the_same_pairs_are_found_when_keys_are_sorted_in_many_pieces(
    monkeypatch: pytest.MonkeyPatch, similarity: float
) -> None:
    """Texts of one kind of shingles, some of them many times, some with another answer."""
    draw = random.Random(13)
    originals = [sentence(draw, draw.choice([6, 9, 14])) for _ in range(300)]
    texts = [edited(draw, draw.choice(originals), draw.randrange(3)) for _ in range(900)] + [originals[0]] * 100
    draw.shuffle(texts)
    own = np.arange(len(texts)) % 7
    half = np.arange(len(texts)) % 2 == 0
    sketches = sketched(texts, similarity)

    def found() -> list[Any]:
        searches = [
            copies_within(sketches, np.ones(len(texts), bool), similarity),
            copies_within(sketches, half, similarity, lambda ones, others: own[ones] == own[others]),
            copies_of_others(sketches, half, ~half, similarity),
            copies_of_others(sketches, ~half, half, similarity, lambda ones, others: own[ones] == own[others]),
        ]
        assert all(len(pairs) > 20 for pairs in searches)
        return [
            (pairs.texts.tolist(), pairs.of.tolist(), pairs.similarity.tolist(), pairs.uncompared) for pairs in searches
        ]

    whole = found()
    monkeypatch.setattr("luthier.prepare.copies.near.AT_ONCE", 200)
    monkeypatch.setattr("luthier.storage.arrays.AT_ONCE", 5000)
    assert found() == whole


def made_up(rows: int) -> str:
    """A program that looks for copies among so many rows' sketches, and says what it held at most for that."""
    return f"""
import tempfile
from pathlib import Path
import numpy as np
from luthier.storage.arrays import ArrayWriter
from luthier.prepare.copies.near import copies_within
from luthier.prepare.copies.sketches import Sketches
def held(what):
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith(what))
draw = np.random.default_rng(0)
with tempfile.TemporaryDirectory() as folder, ArrayWriter(Path(folder)) as writer:
    for start in range(0, {rows}, 20000):
        ids = np.arange(start, start + 20000)
        ids[::100] //= 2  # a copy now and then
        shingles = (ids[:, None] * 8 + np.arange(8)).astype(np.uint32)
        writer.add("texts", np.arange(start, start + 20000, dtype=np.uint32))
        writer.add("ends", np.arange(start * 8 + 8, start * 8 + 160008, 8))
        writer.add("shingles", shingles.ravel())
        writer.add("maps", np.left_shift(np.uint64(1), (ids[:, None] % np.arange(50, 54)).astype(np.uint64)).ravel())
        for band in range(3):
            writer.add(f"keys {{band}}", (ids * (2654435761 + 2 * band) % 2**32).astype(np.uint32))
    arrays = {{name: writer.array(name) for name in writer.sinks}}
    keys = tuple(arrays[f"keys {{band}}"] for band in range(3))
    maps = arrays["maps"].reshape(-1, 4)
    sketches = Sketches(arrays["texts"], arrays["ends"], arrays["shingles"], maps, keys, {rows})
    Path("/proc/self/clear_refs").write_text("5")
    before = held("VmRSS")
    pairs = copies_within(sketches, np.ones({rows}, bool), 0.8)
    assert len(pairs) > {rows} / 300, len(pairs)
    print((held("VmHWM") - before) * 1024)
"""


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="memory is read from /proc")
def test_memory_hardly_grows_with_the_number_of_rows() -> None:
    """Pages of files included. Marks and pairs take some bytes a row; 90 bytes of each row's sketch lie on the disk."""
    peaks = [
        int(subprocess.run([sys.executable, "-c", made_up(rows)], capture_output=True, check=True).stdout)
        for rows in (400_000, 1_200_000)
    ]
    assert peaks[1] - peaks[0] < 10 * 800_000, peaks


def test_many_alike_take_linear_time_and_what_is_not_compared_is_counted() -> None:
    draw = random.Random(7)
    rest = sentence(draw, 20)
    alike = [f"{rest} {draw.random()} {draw.random()}" for _ in range(2000)]
    assert within(alike).uncompared > 0
    same = within([rest] * 20000)
    assert len(same) == 19999 and set(same.of.tolist()) == {0} and not same.uncompared


def test_another_process_finds_the_same() -> None:
    """Whatever Python's own hash does there."""
    code = (
        "from luthier.prepare.copies.sketches import *; from luthier.storage.arrays import ArrayWriter\n"
        "found = sketch(['one two three four', 'Ünï ' * 80], 0.8, ArrayWriter(None))\n"
        "print([int(keys.sum()) for keys in found.keys], int(found.shingles.sum()))"
    )
    runs = [
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env={"PYTHONHASHSEED": seed})
        for seed in ("1", "2")
    ]
    found = sketched(["one two three four", "Ünï " * 80])
    assert runs[0].stdout == runs[1].stdout == f"{[int(keys.sum()) for keys in found.keys]} {found.shingles.sum()}\n"


# ── The step ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def prepared(data: Any, task: str = "classify", **step: Any) -> Dataset:
    return read_data(data, task, prepare=PrepareSettings.model_validate({"deduplicate": step}))


def labelled(texts: list[str], labels: str = "ab") -> list[dict[str, str]]:
    return [{"text": text, "label": labels[row % len(labels)]} for row, text in enumerate(texts)]


def three_splits() -> dict[str, list[dict[str, str]]]:
    draw = random.Random(8)
    texts = [sentence(draw, 14) for _ in range(40)]
    test, validation = labelled(texts[20:26]), labelled(texts[26:32])
    train = [*labelled(texts[:20]), {"text": f"{test[0]['text']} !!", "label": "b"}]
    train += [{"text": f"{validation[1]['text']}.", "label": "b"}, {"text": f"well {test[2]['text']}", "label": "a"}]
    return {"train": train, "validation": [*validation, {"text": f"oh {test[3]['text']}", "label": "b"}], "test": test}


def test_leaks_are_dropped_from_the_weaker_split_and_kept_aside() -> None:
    data = prepared(three_splits())
    assert {name: len(each) for name, each in data.splits.items()} == {"train": 20, "validation": 6, "test": 6}
    aside = [each for each in data.kept_aside if each["step"] == "deduplicate"]
    assert [(each["file"], each["line"]) for each in aside] == [
        ("train", 21),
        ("train", 22),
        ("train", 23),
        ("validation", 7),
    ]
    assert aside[0]["reason"] == "train row near a row of test: 1.00 like test, row 1"
    assert re.fullmatch(r"train row near a row of test: 0\.9\d like test, row 3", aside[2]["reason"])
    (step,) = [each for each in data.facts["steps"] if each["step"] == "deduplicate"]
    assert step["rows_in"] - step["rows_out"] == 4
    assert step["finding"]["figures"]["near_leaks"]["value"] == 4
    assert "3 of train" in step["finding"]["sentence"] and "1 of validation" in step["finding"]["sentence"]
    assert len(data.files["near_copies.jsonl"]) == 4


@pytest.mark.parametrize(
    ("across", "within_split", "rows"), [("report", "report", 23), ("keep", "keep", 23), ("drop", "drop", 20)]
)
def test_what_is_to_be_done_with_them(across: str, within_split: str, rows: int) -> None:
    data = prepared(three_splits(), across=across, within=within_split)
    assert len(data.splits["train"]) == rows


def test_copies_within_a_split() -> None:
    draw = random.Random(9)
    texts = [sentence(draw, 14) for _ in range(80)]
    data = labelled(texts) + [{"text": f"{text}!", "label": "ab"[row % 2]} for row, text in enumerate(texts[:10])]
    none_cut = {"validation": labelled([sentence(draw, 9)] * 2), "test": labelled([sentence(draw, 9)] * 2)}
    told, dropped = (prepared({"train": data, **none_cut}, within=deal) for deal in ("report", "drop"))
    assert len(told.splits["train"]) - len(dropped.splits["train"]) == 10
    assert told.facts["steps"][-1]["finding"]["figures"]["near_copies"]["value"] == 10
    assert dropped.kept_aside[-1]["reason"] == "near an earlier row of train: 1.00 like train, row 10"


def test_another_label_or_answer_makes_it_another_row() -> None:
    draw = random.Random(10)
    texts = [sentence(draw, 20) for _ in range(30)]
    test = labelled(texts[:6])
    other = [{"text": f"no {each['text']}", "label": "b" if each["label"] == "a" else "a"} for each in test]
    assert len(prepared({"train": labelled(texts[6:]) + other, "test": test}).splits["train"]) > 24
    turns = [{"prompt": text, "completion": f"answer {row * 7919}"} for row, text in enumerate(texts)]
    again = [
        {"prompt": f"so {texts[0]}", "completion": "answer 0"},
        {"prompt": f"so {texts[1]}", "completion": "no idea"},
    ]
    data = prepared({"train": turns[6:] + again, "test": turns[:3], "validation": turns[3:6]}, "generate")
    assert [each["line"] for each in data.kept_aside] == [25]


def test_a_label_keeps_its_last_row() -> None:
    draw = random.Random(11)
    texts = [sentence(draw, 14) for _ in range(30)]
    test = [{"text": texts[0], "label": "rare"}, *labelled(texts[1:4])]
    train = [{"text": f"{texts[0]}!", "label": "rare"}, *labelled(texts[4:])]
    data = prepared({"train": train, "test": test, "validation": labelled(texts[1:4])[:0] or labelled(["x y z"] * 2)})
    assert "rare" in data.labels
    assert "1 of them stay" in data.facts["steps"][-1]["finding"]["sentence"]


def test_rows_of_every_form_are_compared(tmp_path: Path) -> None:
    draw = random.Random(12)
    texts = [sentence(draw, 14) for _ in range(30)]
    forms: dict[str, Any] = {
        "lm": lambda text: {"text": text},
        "regress": lambda text: {"text": text, "score": len(text.partition(" ")[0])},
        "tag": lambda text: {"tokens": text.split(), "tags": ["O"] * (len(text.split()) - 1) + ["B-X"]},
        "prefer": lambda text: {"prompt": text, "chosen": f"yes {text}", "rejected": "no"},
    }
    for task, made in forms.items():
        data = {
            "train": [made(text) for text in [*texts[4:], f"{texts[0]} ka"]],
            "test": [made(texts[0]), made(texts[1])],
        }
        data["validation"] = [made(texts[2]), made(texts[3])]
        assert len(prepared(data, task).splits["train"]) == 26, task


def test_near_texts_of_other_scores_are_no_copies() -> None:
    """What a number follows from may be a single letter."""
    draw = random.Random(0)
    texts = [" ".join("".join(draw.choices("abcdefghij", k=5)) for _ in range(20)) for _ in range(20)]
    train = [{"text": text, "score": float(n)} for n, text in enumerate(texts)]
    test = [{"text": f"{texts[5]}s", "score": 5.0}, {"text": f"{texts[6]}s", "score": 6.5}]
    data = read_data({"train": train, "test": test}, "regress", settings=DataSettings(validation_fraction=0))
    gone = [json.loads(row["row"])["score"] for row in data.kept_aside if row["step"] == "deduplicate"]
    assert gone == [5.0]
