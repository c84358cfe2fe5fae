"""Parquet, Arrow and Feather, read by record batch. In: `Content`. Out: a `Table`, class numbers as their names."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import IO, TYPE_CHECKING, Any

from luthier.errors import UserError
from luthier.prepare.formats.content import Content
from luthier.prepare.formats.table import PIECE_ROWS, Parsed, ReadAgain, Table

if TYPE_CHECKING:
    import pyarrow

Batches = Callable[[], Iterable["pyarrow.RecordBatch | pyarrow.Table"]]


def read_parquet(content: Content) -> Table:
    return read_batches(content, "parquet", "a Parquet file", parquet_batches)


def read_arrow(content: Content) -> Table:
    """An Arrow file or stream, of which Feather (version 2) is another name."""
    return read_batches(content, "arrow", "an Arrow file", arrow_batches)


def parquet_batches(stream: IO[bytes]) -> tuple[pyarrow.Schema, Iterator[pyarrow.RecordBatch]]:
    import pyarrow.parquet

    file = pyarrow.parquet.ParquetFile(stream)
    return file.schema_arrow, file.iter_batches(PIECE_ROWS)


def arrow_batches(stream: IO[bytes]) -> tuple[pyarrow.Schema, Iterator[pyarrow.RecordBatch]]:
    import pyarrow

    start = stream.read(6)
    stream.seek(0)
    if start.startswith(b"FEA1"):
        raise pyarrow.ArrowInvalid("Feather version 1, which pyarrow writes no more: write it again as Feather")
    if start == b"ARROW1":
        file = pyarrow.ipc.open_file(stream)
        return file.schema, (file.get_batch(index) for index in range(file.num_record_batches))
    reader = pyarrow.ipc.open_stream(stream)
    return reader.schema, iter(reader)


def read_batches(content: Content, format: str, what: str, opened: Callable[[IO[bytes]], Any]) -> Table:
    try:
        import pyarrow
    except ImportError:
        raise UserError(
            f"{format.capitalize()} files need pyarrow", where=content.file, mend="pip install 'luthier[data]'"
        ) from None

    def batches() -> Iterator[pyarrow.RecordBatch]:
        return (
            batch.slice(start, PIECE_ROWS)
            for batch in opened(content.seekable())[1]
            for start in range(0, batch.num_rows, PIECE_ROWS)
        )

    try:
        schema = opened(content.seekable())[0]
        count = sum(batch.num_rows for batch in batches())
    except (pyarrow.ArrowException, OSError) as error:
        raise UserError(f"not {what} ({error})", where=content.file, mend="write or fetch it again") from None
    metadata = json.loads((schema.metadata or {}).get(b"huggingface", b"{}"))
    classes = class_names(metadata.get("info", {}).get("features") or {})
    return arrow_table(batches, count, schema.names, content.file, format, classes)


def class_names(features: Mapping[str, Any]) -> dict[str, list[str]]:
    """Names behind the integers of each class column, from the features that `datasets` writes beside the data."""
    found = {}
    for column, feature in features.items():
        inner = feature.get("feature") if isinstance(feature, dict) else None
        for part in (feature, inner):
            if isinstance(part, dict) and part.get("_type") == "ClassLabel" and part.get("names"):
                found[column] = part["names"]
    return found


def arrow_table(
    batches: Batches,
    count: int,
    columns: Sequence[str],
    file: str,
    format: str,
    classes: Mapping[str, list[str]],
) -> Table:
    """Rows of Arrow batches; class numbers become names, and -1, the sign of a hidden label, becomes missing."""
    repeated = sorted({name for name in columns if list(columns).count(name) > 1})
    if repeated:
        raise UserError(f"two columns are named {repeated[0]!r}", where=file, mend="give each column its own name")
    return Table(file, format, "row", ReadAgain(partial(arrow_rows, batches, classes), count), [], list(columns))


def arrow_rows(batches: Batches, classes: Mapping[str, list[str]]) -> Parsed:
    rows = (row for batch in batches() for row in batch.to_pylist())
    for number, row in enumerate(rows, 1):
        for column, names in classes.items():
            row[column] = class_name(row.get(column), names)
        yield number, row


def class_name(value: Any, names: Sequence[str]) -> Any:
    if isinstance(value, list):
        return [class_name(part, names) for part in value]
    return names[value] if isinstance(value, int) and 0 <= value < len(names) else None
