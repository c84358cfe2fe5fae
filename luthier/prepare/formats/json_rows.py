"""JSON in files: an object a line, or one list of objects. In: `Content`. Out: a `Table`; neither is held whole."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from functools import partial
from typing import Any, TextIO

from luthier.errors import UserError
from luthier.prepare.columns.labels import kind
from luthier.prepare.formats.content import LONGEST, PIECE, Content
from luthier.prepare.formats.table import Broken, Parsed, Table, as_object, scan

NEAR_END = 16
"""Characters before the end of what was read where a mistake may be that more text would mend."""
FILLED = re.compile(r"[^ \t\n\r]")
LIST = object()
"""Stands for a list that was not read yet."""


def read_json_lines(content: Content) -> Table:
    return scan(Table(content.file, "jsonl", "line"), partial(json_lines, content))


def read_json(content: Content) -> Table:
    """One JSON value, unless that turns out to be one value a line, as hubs often name such files."""
    if is_one_value_a_line(content):
        return read_json_lines(content)
    try:
        name = where_rows_are(content)
        return scan(Table(content.file, "json"), partial(listed_rows, content, name))
    except json.JSONDecodeError as error:
        first = next(content.filled_lines(), "").strip()
        if first.startswith("{") and first.endswith("}"):
            return read_json_lines(content)
        at = f"{error.msg} near character {error.pos:,}"
        mend = "a list of objects, or one object a line"
        raise UserError(f"not valid JSON ({at})", where=content.file, mend=mend) from None


def is_one_value_a_line(content: Content) -> bool:
    """Whether the first line that holds something is an object by itself, and more follows."""
    try:
        with content.text() as stream:
            reader = Reader(stream)
            for _, value in reader.members():
                reader.pass_over(value)
            if not reader.next():
                return False
        return isinstance(json.loads(next(content.filled_lines(), "")), dict)
    except (ValueError, RecursionError):
        return False


def json_lines(content: Content) -> Parsed:
    for number, line in enumerate(content.lines(), 1):
        if isinstance(line, Broken):
            yield number, line
        elif line and not line.isspace():
            try:
                yield number, as_object(json.loads(line))
            except (ValueError, RecursionError) as error:
                at = f"{error.msg} at column {error.colno}" if isinstance(error, json.JSONDecodeError) else str(error)
                yield number, Broken(f"not valid JSON ({at})", line)


# ── One list ─────────────────────────────────────────────────────────────────────────────────────────────────────────


class Reader:
    """Reads JSON from the start of a stream on, holding no more than one value of it."""

    def __init__(self, stream: TextIO) -> None:
        self.stream, self.text, self.place, self.before = stream, "", 0, 0
        """What was read and not dropped, where in it we are, how many characters were dropped."""
        self.decoder = json.JSONDecoder()

    def more(self) -> bool:
        """Read on, at least as much again as is held, so that a long value is not parsed many times."""
        self.before += self.place
        held = self.text[self.place :]
        added = self.stream.read(max(PIECE, len(held)))
        self.text, self.place = held + added, 0
        return bool(added)

    def next(self) -> str:
        """The next character that is not white space, left where it is; empty at the end."""
        while True:
            found = FILLED.search(self.text, self.place)
            self.place = found.start() if found else len(self.text)
            if self.place < len(self.text) or not self.more():
                return self.text[self.place : self.place + 1]

    def take(self, *expected: str) -> str:
        found = self.next()
        if found not in expected or not found:
            self.wrong(f"Expecting {' or '.join(map(repr, expected))}")
        self.place += 1
        return found

    def wrong(self, what: str, place: int | None = None) -> None:
        error = json.JSONDecodeError(what, "", 0)
        error.pos = self.before + (self.place if place is None else place)
        raise error

    def value(self) -> Any:
        """The value that begins here."""
        self.next()
        while True:
            try:
                found, end = self.decoder.raw_decode(self.text, self.place)
                start = self.place
                if end < len(self.text) or not self.more():  # a number may go on
                    self.place += end - start
                    return found
            except RecursionError:
                self.wrong("nested too deeply")
            except json.JSONDecodeError as error:
                unfinished = error.msg.startswith("Unterminated") or error.pos >= len(self.text) - NEAR_END
                if len(self.text) - self.place > LONGEST:
                    self.wrong(f"a value longer than {LONGEST // 2**20} Mi characters")
                if not unfinished or not self.more():
                    self.wrong(error.msg, error.pos)

    def items(self) -> Iterator[Any]:
        """The members of the list that begins here."""
        self.take("[")
        if self.next() == "]":
            self.place += 1
            return
        while True:
            yield self.value()
            if self.take(",", "]") == "]":
                return

    def members(self) -> Iterator[tuple[str, Any]]:
        """The object's keys, each with its value; `LIST` for a list that whoever asks has to read or pass over."""
        self.take("{")
        if self.next() == "}":
            self.place += 1
            return
        while True:
            if self.next() != '"':
                self.wrong("Expecting a key in double quotes")
            key = self.value()
            self.take(":")
            yield key, LIST if self.next() == "[" else self.value()
            if self.take(",", "}") == "}":
                return

    def pass_over(self, value: Any) -> None:
        """Go past a value that `members` gave."""
        if value is LIST:
            for _ in self.items():
                pass

    def end(self) -> None:
        if self.next():
            self.wrong("Extra data")


def where_rows_are(content: Content) -> str | None:
    """The key of the list of objects; None where the file is that list. Raises `UserError` where there is none."""
    with content.text() as stream:
        reader = Reader(stream)
        start = reader.next()
        if start == "[":
            return None
        if start != "{":
            raise no_list(content, reader.value())
        found = []
        for key, value in reader.members():
            if value is LIST:
                first = next(members := reader.items(), None)
                if isinstance(first, dict):
                    found.append(key)
                for _ in members:
                    pass
        reader.end()
    if len(found) != 1:
        raise no_list(content, {})
    return found[0]


def no_list(content: Content, value: Any) -> UserError:
    what = f"holds {kind(value)} where a list of objects is expected"
    return UserError(what, where=content.file, mend="write [{...}, {...}]")


def listed_rows(content: Content, name: str | None) -> Parsed:
    with content.text() as stream:
        reader = Reader(stream)
        if name is not None:
            go_to(reader, name)
        for number, value in enumerate(reader.items(), 1):
            yield number, as_object(value)
        if name is None:
            reader.end()


def go_to(reader: Reader, name: str) -> None:
    """To the list under this key of the object that begins here."""
    for key, value in reader.members():
        if key == name and value is LIST:
            return
        reader.pass_over(value)
