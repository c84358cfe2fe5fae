"""Pages made for people: HTML, PDF, Word. In: `Content`. Out: their text in parts, paragraphs or pages.

A document that gives no text is one `Broken` row, not an error: a folder may hold thousands, and some are always bad.
"""

from __future__ import annotations

import logging
import re
import threading
import time
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from luthier.errors import Problem, UserError
from luthier.prepare.columns.labels import SKIP
from luthier.prepare.formats.content import LONGEST, MARKS, Content, refuse_other_encodings
from luthier.prepare.formats.spool import spooled
from luthier.prepare.formats.table import Broken, Parsed, Table, scan
from luthier.prepare.formats.text import paragraphs
from luthier.storage.archives import MOST_TIMES

EXTRA = "pip install 'luthier[documents]'"
LARGEST = 4 * LONGEST
"""Bytes of a document, and of what is inside it where it is packed."""
SLOWEST = 300.0
"""Seconds that one document may take."""
CHARSET = re.compile(rb"""<meta[^>]{0,200}?charset\s*=\s*["']?\s*([\w.:-]{2,40})""", re.IGNORECASE)
OLD_WORD = b"\xd0\xcf\x11\xe0"
LEFT_OUT = f"take it out, or {SKIP.partition(', or ')[2]}"

Parts = Iterator[str | Broken]


@dataclass(frozen=True)
class Document:
    """One kind of document."""

    parts: Callable[[Content], Parts]
    """Its text, part by part. Raises `UserError` where it has none."""
    unit: str
    """What a part is."""


def read_document(content: Content, kind: str, whole: bool) -> Table:
    """One document's table. A document is taken apart once: its text is kept in a temporary file."""
    unit = "document" if whole else DOCUMENTS[kind].unit
    return scan(Table(content.file, kind, unit), spooled(document_rows(content, kind, whole)))


def document_rows(content: Content, kind: str, whole: bool) -> Parsed:
    """The document's rows: its parts, or all of it as one."""
    held: list[str] = []
    try:
        for number, part in enumerate(DOCUMENTS[kind].parts(content), 1):
            if isinstance(part, Broken):
                yield number, part
            elif whole:
                held.append(part)
            else:
                yield number, {"text": part}
    except UserError as error:
        yield 1, Broken("; ".join(each.what for each in error.problems), content.file, error.problems[0].mend or SKIP)
        return
    if held:
        yield 1, {"text": "\n\n".join(held)}


def refused(what: str, mend: str = LEFT_OUT) -> UserError:
    return UserError(Problem(what, "", mend))


def quietly(library: str) -> None:
    """Have a library keep its remarks on bad documents to itself: what counts is told as rows kept aside."""
    logging.getLogger(library).setLevel(logging.CRITICAL + 1)


def text_parts(content: Content) -> Parts:
    """Paragraphs. Where another encoding is set, what is UTF-8 all the same is read as such: folders are mixed."""
    try:
        refuse_other_encodings(plain := replace(content, encoding="utf-8"))
        content = plain
    except UserError:
        refuse_other_encodings(content)
    for _, row in paragraphs(content):
        yield row if isinstance(row, Broken) else row["text"]


# ── HTML ─────────────────────────────────────────────────────────────────────────────────────────────────────────────


def html_parts(content: Content) -> Parts:
    """The main text without menus, footers and advertisements, by trafilatura."""
    try:
        import trafilatura
    except ImportError:
        raise UserError("HTML files need trafilatura", where=content.file, mend=EXTRA) from None
    quietly("trafilatura")
    page = html_text(content.whole(LARGEST), content.encoding)
    try:
        found = trafilatura.extract(page, include_comments=False, include_tables=True, output_format="txt")
    except Exception as error:  # whatever its many layers raise
        raise refused(f"HTML that cannot be read ({type(error).__name__})") from error
    if not found or not found.strip():
        raise refused("an HTML page without a main text")
    yield from (part for part in found.split("\n") if part.strip())


def html_text(data: bytes, encoding: str) -> str:
    """Decoded by the mark at its start, as UTF-8, as the page itself says, or as the setting says, whichever fits."""
    mark = next((name for mark, name in MARKS.items() if data.startswith(mark)), None)
    said = CHARSET.search(data[:4096])
    for name in filter(None, (mark, "utf-8", said and said[1].decode("ascii", "replace"), encoding)):
        try:
            text = data.decode("utf-8-sig" if name == "utf-8" else name)
            return text.replace("\0", "")
        except (UnicodeDecodeError, LookupError):
            continue
    raise refused(
        f"HTML that is not {encoding.upper()} and does not say its encoding", "say `encoding: ...` under data"
    )


# ── PDF ──────────────────────────────────────────────────────────────────────────────────────────────────────────────


def pdf_parts(content: Content) -> Parts:
    """The text of each page."""
    try:
        import pypdf
    except ImportError:
        raise UserError("PDF files need pypdf", where=content.file, mend=EXTRA) from None
    quietly("pypdf")
    started = time.monotonic()
    with content.seekable() as stream:
        try:
            reader = pypdf.PdfReader(stream)
            if reader.is_encrypted and not reader.decrypt(""):
                raise refused("an encrypted PDF", f"save a copy without a password; or {LEFT_OUT}")
            count = len(reader.pages)
        except UserError:
            raise
        except pypdf.errors.DependencyError:
            raise refused("an encrypted PDF", f"save a copy without a password; or {LEFT_OUT}") from None
        except Exception as error:  # a broken file may raise anything
            raise refused(f"a broken PDF ({reason(error)})") from None
        empty = 0
        for number in range(count):
            part = within(SLOWEST - (time.monotonic() - started), partial(page_text, reader, number))
            if part is None:
                raise refused(f"a PDF that takes longer than {SLOWEST:g} s: stopped at page {number + 1}")
            empty += part == ""
            if part:
                yield part
    if empty == count:
        what = f"a PDF with no text on its {count} pages: they are images, which need OCR (text recognition)"
        raise refused(what, f"run OCR on it first, for example `ocrmypdf {content.file} new.pdf`; or {LEFT_OUT}")


def page_text(reader: Any, number: int) -> str | Broken:
    try:
        return reader.pages[number].extract_text().replace("\0", "").strip()
    except Exception as error:
        return Broken(f"page {number + 1} of a PDF cannot be read ({reason(error)})", None, LEFT_OUT)


def within(seconds: float, work: Callable[[], str | Broken]) -> str | Broken | None:
    """What the work gives, or None where it takes longer. Then it is left to itself: its file is closed under it, and a
    thread that goes on for ever ends with the process."""
    if seconds <= 0:
        return None
    found: list[str | Broken] = []
    thread = threading.Thread(target=lambda: found.append(work()), daemon=True)
    thread.start()
    thread.join(seconds)
    return found[0] if found else None


def reason(error: Exception) -> str:
    return (str(error).strip().split("\n")[0] or type(error).__name__)[:100]


# ── Word ─────────────────────────────────────────────────────────────────────────────────────────────────────────────


def word_parts(content: Content) -> Parts:
    """Paragraphs and the rows of tables, in their order; headers and footers are left out."""
    try:
        import docx
        from docx.table import Table as WordTable
    except ImportError:
        raise UserError("Word files need python-docx", where=content.file, mend=EXTRA) from None
    with content.seekable() as stream:
        refuse_false_zip(stream)
        try:
            document = docx.Document(stream)
        except Exception as error:  # zip, XML and python-docx each have their own
            raise refused(f"a broken Word document ({reason(error)})") from None
        found = False
        for block in document.iter_inner_content():
            if isinstance(block, WordTable):
                texts = ["\t".join(cell.text.strip() for cell in row.cells) for row in block.rows]
            else:
                texts = [block.text]
            for text in filter(str.strip, texts):
                found = True
                yield text.strip()
    if not found:
        raise refused("a Word document without text")


def refuse_false_zip(stream: Any) -> None:
    start = stream.read(4)
    if start == OLD_WORD:
        raise refused("an old Word document (.doc) or an encrypted one", f"save it as .docx, unlocked; or {LEFT_OUT}")
    try:
        with zipfile.ZipFile(stream) as pack:
            inside = sum(entry.file_size for entry in pack.infolist())
            packed = sum(entry.compress_size for entry in pack.infolist())
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError):
        raise refused("not a Word document (a .docx file is a zip archive)") from None
    if inside > LARGEST or inside > max(LONGEST, MOST_TIMES * packed):
        raise refused(f"a Word document that would unpack to {inside / 2**20:,.0f} MiB, far more than it weighs")
    stream.seek(0)


DOCUMENTS: dict[str, Document] = {
    "text": Document(text_parts, "paragraph"),
    "html": Document(html_parts, "paragraph"),
    "pdf": Document(pdf_parts, "page"),
    "docx": Document(word_parts, "paragraph"),
}
