"""Reads chosen text columns of a Parquet file, and nothing else.

Other columns (images and audio as paths or URLs, extension types) are never decoded. In the chosen columns, only text,
numbers, and lists and structures of these are decoded.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pyarrow as pa

UNREAD = False
"""Replaces a value that is not decoded because of its type."""
_ROWS = 1000


class Unreadable(ValueError):
    """Why a source cannot be read, in perfit's own words; a library's error is its cause."""


def read_columns(path: Path, columns: Collection[str]) -> Iterator[dict[str, Any]]:
    """Yield the rows of a Parquet file, each with those of the given columns that the file has.

    Args:
        path: The file. It is opened here, so that no library treats it as a URL or a pattern.
        columns: Names of columns.

    Raises:
        Unreadable: The file cannot be read, or has none of the columns, though it has rows.
        OSError: The file cannot be opened.
    """
    with open(path, "rb") as file:
        if file.read(4) != b"PAR1":
            raise Unreadable("is not a Parquet file")
        import pyarrow as pa

        try:
            yield from _rows(file, columns)
        except Unreadable:
            raise
        except (pa.ArrowException, OSError, ValueError, TypeError, RecursionError) as error:
            raise Unreadable("is a damaged Parquet file, or of a type that cannot be read") from error


def _rows(file: Any, columns: Collection[str]) -> Iterator[dict[str, Any]]:
    from pyarrow import parquet

    source = parquet.ParquetFile(file, arrow_extensions_enabled=False)
    in_file = source.schema_arrow.names
    names = [name for name in dict.fromkeys(in_file) if name in columns]
    if any(in_file.count(name) > 1 for name in names):
        raise Unreadable("has two columns of the same name")
    if source.metadata.num_rows and not names:
        raise Unreadable("has none of the columns that records have")
    for batch in source.iter_batches(_ROWS, columns=names):
        values = [_plain(batch.column(name)) for name in names]
        yield from (dict(zip(names, row, strict=True)) for row in zip(*values, strict=True))


def _plain(array: pa.Array) -> list[Any]:
    """Return an array's values as Python objects, with `UNREAD` in place of those that are not decoded."""
    from pyarrow import BaseExtensionType, types

    kind = array.type
    if isinstance(kind, BaseExtensionType):
        return _plain(array.storage)
    if types.is_null(kind) or types.is_boolean(kind) or types.is_integer(kind) or types.is_floating(kind):
        return array.to_pylist()
    if types.is_string(kind) or types.is_large_string(kind) or types.is_string_view(kind):
        return _texts(array)
    if types.is_dictionary(kind):
        return _plain(array.dictionary_decode())
    valid = array.is_valid().to_pylist()
    if types.is_list(kind) or types.is_large_list(kind):
        values, ends = _plain(array.values), pairwise(array.offsets.to_pylist())
        return [values[start:end] if present else None for present, (start, end) in zip(valid, ends, strict=True)]
    if types.is_struct(kind) and kind.num_fields:
        names, rows = [field.name for field in kind], zip(*map(_plain, array.flatten()), strict=True)
        return [
            dict(zip(names, row, strict=True)) if present else None for present, row in zip(valid, rows, strict=True)
        ]
    return [UNREAD if present else None for present in valid]


def _texts(array: pa.Array) -> list[Any]:
    """Return texts, `UNREAD` for those that are not UTF-8, which the format does not guarantee."""
    try:
        return array.to_pylist()
    except UnicodeDecodeError:
        return [_text(value) for value in array.cast("binary").to_pylist()]


def _text(value: bytes | None) -> Any:
    try:
        return None if value is None else value.decode()
    except UnicodeDecodeError:
        return UNREAD
