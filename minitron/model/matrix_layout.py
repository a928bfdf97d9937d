"""Layouts: how many bytes the matrix of a linear takes with all that is stored beside it.

Shape letters: R rows (outputs) and C columns (inputs) of a matrix."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from typing import Any


@dataclass(frozen=True, kw_only=True)
class Layout:
    """The bytes of a matrix, whole numbers or arrays of them."""

    bits: int
    """Of one number."""

    group: int = 0
    """Numbers of a row that share a scale; 0 for none."""

    group_rows: int = 1
    """Rows of a block that share a scale."""

    group_bytes: int = 0
    """Of such a scale."""

    zero_bits: int = 0
    """Of the zero point of a group, packed along the rows."""

    row_bytes: int = 0
    """Of the scale of a row."""

    column_bytes: int = 0
    """Of what is kept for every input: its group, or a scale."""

    matrix_bytes: int = 0
    """Of what is kept once for the whole matrix."""

    word: int = 0
    """Bits of the words that each hold a whole number of numbers; 0 where they are packed without gaps."""

    measured: tuple[int, int] = (0, 0)
    """(bytes, numbers) of such matrices as files hold them, all that is beside them included: what is kept in no known
    layout grows with its numbers.  (0, 0) where the other fields say it."""

    outer: int = 0
    """Groups whose scales share a scale of their own, of four bytes; 0 for none."""

    @property
    def bits_with_scales(self) -> Fraction:
        """Of one number and its part of the scale that a group shares."""
        return self.bits + (Fraction(8 * self.group_bytes, self.group * self.group_rows) if self.group else Fraction(0))

    def matrix(self, rows: Any, columns: Any) -> Any:
        """Bytes of an [R, C] matrix with its scales; whole numbers or arrays of them."""
        return self.rows(rows, columns) + self.matrix_bytes

    def rows(self, rows: Any, columns: Any) -> Any:
        """The same without what is kept once for the whole matrix."""
        if self.measured[1]:
            return rows * columns * self.measured[0] // self.measured[1]
        groups = -(-columns // self.group) if self.group else 0
        scales = -(-rows // self.group_rows) * groups
        zeros = groups * -(-rows * self.zero_bits // 8)
        outer = 4 * -(-scales // self.outer) if self.outer else 0
        numbers = rows * (self._row(columns) + self.row_bytes) + columns * self.column_bytes
        return numbers + scales * self.group_bytes + zeros + outer

    def _row(self, columns: Any) -> Any:
        """Bytes of the numbers of one row."""
        if self.word:
            return -(-columns // (self.word // self.bits)) * (self.word // 8)
        return -(-columns * self.bits // 8)


@dataclass(frozen=True)
class Scheme:
    """One way in which matrices are kept."""

    name: str
    """As reports call it: fp8, int4."""

    layout: Layout

    known: bool = True
    """Whether the layout is that of the files, to the byte; else it is the nearest guess."""

    @property
    def told(self) -> str:
        """The scheme in a few words."""
        layout = self.layout
        if layout.group and layout.group_rows > 1:
            return f"{self.name} in blocks of {layout.group_rows} x {layout.group}"
        return f"{self.name} in groups of {layout.group}" if layout.group else self.name
