"""Rows of Parquet files, as many in memory at one time as fit: some kilobytes of one may stand for gigabytes, as a long
text that all rows share is stored once."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from minitron.errors import MinitronError
from minitron.measure.unpacked import ALLOWED, RATIO
from minitron.units import format_bytes

if TYPE_CHECKING:
    import pyarrow

SIGN: Final = b"PAR1"
"""How such a file begins."""

_ROWS: Final = 256
"""Rows that are decoded at one time, texts that are alike once."""

_AT_ONCE: Final = 2**26
"""Bytes of rows that are made Python's at one time."""


def parquet_rows(file: Path) -> Iterator[Any]:
    """The rows of a Parquet file, in order.

    Raises MinitronError where it is none, or says more than a text of its size can."""
    import pyarrow
    from pyarrow import parquet

    most, said = max(ALLOWED, RATIO * file.stat().st_size), 0
    try:
        with parquet.ParquetFile(file) as whole:
            columns = [whole.schema.column(number) for number in range(len(whole.schema))]
            # What a page grows to is said in front of it; a page is unpacked whole.
            pages = sum(
                whole.metadata.row_group(group).column(number).total_uncompressed_size
                for group in range(whole.metadata.num_row_groups)
                for number in range(len(columns))
            )
            _require(file, pages, most)
            texts = [column.path for column in columns if column.physical_type == "BYTE_ARRAY"]
        with parquet.ParquetFile(file, read_dictionary=texts) as whole:
            for batch in whole.iter_batches(batch_size=_ROWS):
                size = sum(_bytes(column) for column in batch.columns) + batch.num_rows
                said += size
                _require(file, said, most)
                step = batch.num_rows if size <= _AT_ONCE else 1
                for start in range(0, batch.num_rows, step):
                    yield from batch.slice(start, step).to_pylist()
    except (pyarrow.ArrowException, OSError, ValueError) as error:
        if getattr(error, "errno", None) is not None:
            raise
        raise MinitronError(f"{file} is not a readable Parquet file ({error}); write it again.") from None


def _require(file: Path, size: int, most: int) -> None:
    if size > most:
        raise MinitronError(
            f"{file} has {format_bytes(file.stat().st_size)} and stands for more than {format_bytes(most)}, as no text"
            " does; write it as .jsonl if it is one."
        )


def _bytes(column: pyarrow.Array) -> int:
    """The bytes of all values of a column, those that are alike counted as often as they are there."""
    import pyarrow
    from pyarrow import compute

    kind = column.type
    if pyarrow.types.is_dictionary(kind):
        lengths = compute.binary_length(column.dictionary)
        return int(compute.sum(lengths.take(column.indices)).as_py() or 0) + 4 * len(column)
    if pyarrow.types.is_struct(kind):
        return sum(_bytes(column.field(number)) for number in range(kind.num_fields)) + len(column)
    if pyarrow.types.is_list(kind) or pyarrow.types.is_large_list(kind) or pyarrow.types.is_map(kind):
        inside = column.flatten() if not pyarrow.types.is_map(kind) else column.items
        return _bytes(inside) + 4 * len(column)
    return int(column.nbytes) + len(column)
