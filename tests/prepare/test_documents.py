"""Documents made for people: what their text is, folders of them, and each way in which one has none."""

from __future__ import annotations

import io
import os
import zipfile
from pathlib import Path
from typing import Any

import pytest

from luthier.errors import UserError
from luthier.prepare.formats import documents
from luthier.prepare.read import Dataset, DataSettings, read_data

docx = pytest.importorskip("docx", reason="needs the extra `documents`")
pypdf = pytest.importorskip("pypdf", reason="needs the extra `documents`")
pytest.importorskip("trafilatura", reason="needs the extra `documents`")

PARAGRAPHS = [
    f"Paragraph {n} tells at some length of «things» & of people who read about them, “quoted”." for n in range(6)
]


def html(encoding: str = "", paragraphs: list[str] = PARAGRAPHS) -> str:
    """A page with what surrounds a text."""
    body = "".join(f"<p>{each.replace('&', '&amp;')}</p>" for each in paragraphs)
    meta = f'<meta charset="{encoding}">' if encoding else ""
    menu = "<nav><ul><li><a href='/'>Home</a></li><li><a href='/shop'>Our shop</a></li></ul></nav>"
    return (
        f"<!DOCTYPE html><html><head>{meta}<title>t</title></head><body>"
        f"{menu}<article>{body}</article><footer>Imprint and cookies</footer></body></html>"
    )


def pdf(pages: list[str]) -> bytes:
    """A PDF with a line of text on each page, none where that is empty."""
    objects = [b"<< /Type /Catalog /Pages 2 0 R >>", b"", b"<< /Type /Font /Subtype /Type1 /BaseFont /Helvetica >>"]
    kids = []
    for text in pages:
        stream = f"BT /F1 12 Tf 72 720 Td ({text}) Tj ET".encode("latin-1") if text else b""
        objects.append(b"<< /Length %d >>\nstream\n%s\nendstream" % (len(stream), stream))
        page = f"<< /Type /Page /Parent 2 0 R /MediaBox [0 0 612 792] /Contents {len(objects)} 0 R "
        objects.append(f"{page}/Resources << /Font << /F1 3 0 R >> >> >>".encode())
        kids.append(f"{len(objects)} 0 R")
    objects[1] = f"<< /Type /Pages /Kids [{' '.join(kids)}] /Count {len(kids)} >>".encode()
    file, places = b"%PDF-1.4\n", []
    for number, each in enumerate(objects, 1):
        places.append(len(file))
        file += b"%d 0 obj\n%s\nendobj\n" % (number, each)
    table = b"".join(b"%010d 00000 n \n" % place for place in places)
    count = len(objects) + 1
    end = b"trailer\n<< /Size %d /Root 1 0 R >>\nstartxref\n%d\n%%%%EOF\n" % (count, len(file))
    return file + b"xref\n0 %d\n0000000000 65535 f \n" % count + table + end


def encrypted(data: bytes, password: str) -> bytes:
    writer = pypdf.PdfWriter(clone_from=io.BytesIO(data))
    writer.encrypt(user_password=password, owner_password="owner", algorithm="RC4-128")
    file = io.BytesIO()
    writer.write(file)
    return file.getvalue()


def word(paragraphs: list[str]) -> bytes:
    document = docx.Document()
    for text in paragraphs:
        document.add_paragraph(text)
    cells = document.add_table(1, 2).rows[0].cells
    cells[0].text, cells[1].text = "left", "right"
    document.sections[0].footer.paragraphs[0].text = "Page footer"
    file = io.BytesIO()
    document.save(file)
    return file.getvalue()


def read(folder: Path, source: str, **chosen: Any) -> Dataset:
    shares = {"test_fraction": 0, "validation_fraction": 0}
    return read_data(DataSettings(source=source, **shares, **chosen), "lm", folder)


def texts(found: Dataset) -> list[str]:
    ordered = sorted(found.splits["train"], key=lambda one: (one.place.rpartition(", ")[0], int(one.place.split()[-1])))
    return [one.fields["text"] for one in ordered]


def test_html_gives_its_main_text(tmp_path: Path) -> None:
    (tmp_path / "a.html").write_text(html())
    assert texts(read(tmp_path, "a.html")) == PARAGRAPHS
    assert texts(read(tmp_path, "a.html", rows="documents")) == ["\n\n".join(PARAGRAPHS)]
    (tmp_path / "b.htm").write_bytes(html("windows-1252").encode("windows-1252"))
    assert texts(read(tmp_path, "b.htm")) == PARAGRAPHS
    (tmp_path / "c.html").write_bytes(html().encode("windows-1252"))
    with pytest.raises(UserError, match="does not say its encoding"):
        read(tmp_path, "c.html")
    assert texts(read(tmp_path, "c.html", encoding="windows-1252")) == PARAGRAPHS


def test_pdf_gives_a_row_for_each_page(tmp_path: Path) -> None:
    (tmp_path / "a.pdf").write_bytes(pdf(["First page.", "", "Third page."]))
    found = read(tmp_path, "a.pdf")
    assert texts(found) == ["First page.", "Third page."] and "a.pdf, page " in found.splits["train"][0].place
    (tmp_path / "b.pdf").write_bytes(encrypted(pdf(["Anybody may read this."]), ""))
    assert texts(read(tmp_path, "b.pdf")) == ["Anybody may read this."]


def test_word_gives_paragraphs_and_tables(tmp_path: Path) -> None:
    (tmp_path / "a.docx").write_bytes(word(["One.", "Two – “quoted”."]))
    assert texts(read(tmp_path, "a.docx")) == ["One.", "Two – “quoted”.", "left\tright"]


def packed_word(size: int) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as pack:
        pack.writestr("word/document.xml", bytes(size))
    return file.getvalue()


BAD = {
    "empty.pdf": (pdf(["", ""]), "a PDF with no text on its 2 pages: they are images, which need OCR"),
    "broken.pdf": (b"%PDF-1.4 nonsense", "a broken PDF"),
    "cut.pdf": (pdf(["First page."])[:200], "PDF"),
    "secret.pdf": (encrypted(pdf(["Not for you."]), "geheim"), "an encrypted PDF"),
    "none.html": (b"<!DOCTYPE html><html><body></body></html>", "an HTML page without a main text"),
    "binary.html": (bytes(range(256)) * 9, "HTML"),
    "not.docx": (b"no zip at all", "not a Word document"),
    "old.docx": (b"\xd0\xcf\x11\xe0" + bytes(999), "an old Word document (.doc) or an encrypted one"),
    "other.docx": (packed_word(10), "a broken Word document"),
    "bomb.docx": (packed_word(2**27), "a Word document that would unpack to 128 MiB"),
    "latin.txt": ("un café\n".encode("latin-1"), "not UTF-8 (byte 0xe9)"),
    "nul.md": (b"a\0b", "a NUL byte"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_document_is_told_or_kept_aside(name: str, tmp_path: Path) -> None:
    data, expected = BAD[name]
    folder = tmp_path / "corpus"
    folder.mkdir()
    (folder / "good.txt").write_text("one\n\ntwo\n\nthree\n")
    (folder / name).write_bytes(data)
    with pytest.raises(UserError) as told:
        read(tmp_path, "corpus")
    assert f"corpus/{name}, " in str(told.value) and expected in str(told.value)
    found = read(tmp_path, "corpus", on_bad_row="skip")
    assert texts(found) == ["one", "two", "three"]
    (aside,) = found.kept_aside
    assert aside["file"] == f"corpus/{name}" and expected in aside["reason"]


def test_a_document_that_takes_too_long_is_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(documents, "SLOWEST", -1.0)
    (tmp_path / "a.pdf").write_bytes(pdf(["First page."]))
    with pytest.raises(UserError, match="takes longer than"):
        read(tmp_path, "a.pdf")


def test_a_page_that_hangs_is_left_to_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A page of millions of words takes pypdf some ten times the limit set here, and any machine more than it."""
    monkeypatch.setattr(documents, "SLOWEST", 0.5)
    (tmp_path / "a.pdf").write_bytes(pdf(["First page.", "word " * 3_000_000]))
    with pytest.raises(UserError, match="stopped at page 2"):
        read(tmp_path, "a.pdf")


def test_a_folder_of_documents_is_one_table(tmp_path: Path) -> None:
    folder = tmp_path / "corpus"
    (folder / "deep/er").mkdir(parents=True)
    (folder / "a.md").write_text("# Title\n\nA text.")
    (folder / "deep/b.html").write_text(html())
    (folder / "deep/er/c.pdf").write_bytes(pdf(["A page."]))
    (folder / "deep/d.docx").write_bytes(word(["A paragraph."]))
    (folder / "deep/picture.png").write_bytes(b"png")
    (folder / ".hidden.txt").write_text("hidden")
    os.symlink(folder, folder / "deep/er/again")
    found = read(tmp_path, "corpus")
    assert len(found.splits["train"]) == 2 + 6 + 1 + 2
    assert found.facts["files"]["corpus"]["format"] == "documents: 1 docx, 1 html, 1 pdf, 1 text"
    assert any("passed over: 1 .png" in warning for warning in found.facts["warnings"])
    assert {one.place for one in found.splits["train"]} >= {"corpus/deep/er/c.pdf, page 1", "corpus/a.md, paragraph 2"}
    assert len(read(tmp_path, "corpus", rows="documents").splits["train"]) == 4
    assert len(read(tmp_path, "corpus", format="html").splits["train"]) == 6
    before = found.key
    assert read(tmp_path, "corpus").key == before
    (folder / "a.md").write_text("# Title\n\nAnother text.")
    assert read(tmp_path, "corpus").key != before


def test_folders_for_each_split_and_mixed_folders(tmp_path: Path) -> None:
    for split in ("train", "val", "test"):
        (tmp_path / "corpus" / split).mkdir(parents=True)
        for number in range(3):
            (tmp_path / "corpus" / split / f"{number}.txt").write_text(f"text {number} of {split}")
    found = read_data(DataSettings(source="corpus"), "lm", tmp_path)
    assert {name: len(rows) for name, rows in found.splits.items()} == {"train": 3, "validation": 3, "test": 3}
    mixed = tmp_path / "mixed"
    mixed.mkdir()
    for name in ("a.csv", "b.jsonl", "c.txt"):
        (mixed / name).write_text("text\na\n")
    with pytest.raises(UserError, match=r"no train file\n.*it holds a.csv, b.jsonl"):
        read(tmp_path, "mixed")
