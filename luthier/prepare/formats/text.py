"""Plain text and Markdown. In: `Content`. Out: a `Table` with a column `text`: paragraphs, or the whole of it."""

from __future__ import annotations

from functools import partial

from luthier.prepare.formats.content import LONGEST, Content
from luthier.prepare.formats.table import Broken, Parsed, Table, scan


def read_text(content: Content, whole: bool) -> Table:
    if whole:
        return scan(Table(content.file, "text", "document"), partial(whole_text, content))
    return scan(Table(content.file, "text", "line"), partial(paragraphs, content))


def whole_text(content: Content) -> Parsed:
    with content.text() as stream:
        text = stream.read(LONGEST + 1)
    if len(text) > LONGEST:
        yield 1, too_long("document", text)
    else:
        yield 1, {"text": text}


def paragraphs(content: Content) -> Parsed:
    """What stands between blank lines, each a row with its first line's number."""
    first = length = 0
    lines: list[str] = []
    for number, line in enumerate(content.lines(), 1):
        if isinstance(line, Broken):
            yield number, line
        elif line.strip():
            first, length = first or number, length + len(line)
            if length <= LONGEST:
                lines.append(line.removesuffix("\r"))
        elif first:
            yield first, paragraph(lines, length)
            first, length, lines = 0, 0, []
    if first:
        yield first, paragraph(lines, length)


def paragraph(lines: list[str], length: int) -> dict[str, str] | Broken:
    return {"text": "\n".join(lines)} if length <= LONGEST else too_long("paragraph", lines[0])


def too_long(what: str, text: str) -> Broken:
    mend = "put blank lines between paragraphs, or for one row a line give the file as CSV with `header: [text]`"
    return Broken(f"a {what} longer than {LONGEST // 2**20} Mi characters", text[:200], mend)
