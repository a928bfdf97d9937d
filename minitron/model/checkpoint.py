"""Checkpoints: folders of safetensors, read a tensor or a part of one at a time."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import replace
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING

from minitron.errors import MinitronError
from minitron.model.families import Extra, Rule
from minitron.model.finite import require_finite
from minitron.model.headers import Header, stored_headers
from minitron.model.slabs import Slab, read_rows, row_runs
from minitron.model.spec import ModelSpec, read_spec

if TYPE_CHECKING:
    from torch import Tensor


class Checkpoint:
    """The weights of a folder; headers at once, tensors when asked."""

    def __init__(self, folder: Path, headers: Mapping[str, Header] | None = None) -> None:
        """Read all headers.  Raises MinitronError for files missing, truncated or named outside the folder.

        Names are those of the family's rules, where its config.json is there and transformers would find the tensor
        under such a name: see ModelSpec.known_as.  `headers` stand in for those of the folder where the weights are
        elsewhere: no tensor can be read then."""
        self.folder = folder
        self.headers = stored_headers(folder) if headers is None else dict(headers)
        if headers is None:
            try:
                self.name_by(read_spec(folder))
            except MinitronError:
                return  # no model of a family, such as the weights alone

    def name_by(self, spec: ModelSpec) -> None:
        """Give the tensors the names of `spec`'s rules where they are stored under others."""
        for stored, name in spec.known_as(self.headers).items():
            self.headers[name] = replace(self.headers.pop(stored), stored=stored)

    @property
    def num_parameters(self) -> int:
        """How many numbers all tensors hold."""
        return sum(header.numel for header in self.headers.values())

    @property
    def weight_bytes(self) -> int:
        """The bytes of all tensors, file headers left out."""
        return sum(header.num_bytes for header in self.headers.values())

    @property
    def stored_bytes(self) -> int:
        """The same as they are stored: another number where tensors are decoded as they are read."""
        return self.weight_bytes

    @cached_property
    def fingerprint(self) -> str:
        """A hash of every tensor's name, dtype and shape."""
        lines = sorted(f"{name} {header.dtype} {header.shape}" for name, header in self.headers.items())
        return hashlib.sha256("\n".join(lines).encode()).hexdigest()

    def check(self, spec: ModelSpec) -> None:
        """Raise MinitronError unless every tensor is named by a rule, has its shape, and none is missing.

        A multi-token-prediction block may be absent as a whole: transformers drops it when it saves."""
        expected = {tensor.name: tensor for tensor in spec.expected()}
        for name, rule, index in self.named_tensors(spec):
            header = self.headers[name]
            wanted = expected.pop(rule.pattern.format(index), None)
            if wanted is None:
                raise MinitronError(f"{self.folder}: {name} is stored twice under two names; remove one.")
            if header.shape != wanted.shape:
                raise MinitronError(
                    f"{self.folder}: {name} has the shape {list(header.shape)}, but config.json gives "
                    f"{list(wanted.shape)}; config.json and weights belong to different models; copy both from one."
                )
        missing = list(expected.values())
        if sum(tensor.is_mtp for tensor in missing) == sum(tensor.is_mtp for tensor in spec.expected()):
            missing = [tensor for tensor in missing if not tensor.is_mtp]
        if missing:
            raise MinitronError(
                f"{self.folder}: {len(missing)} tensors are missing, the first {missing[0].name}; "
                "copy the checkpoint again."
            )

    def stored_names(self, spec: ModelSpec) -> dict[str, str]:
        """A tensor's name in the family's first dialect -> its name here."""
        return {rule.pattern.format(index): name for name, rule, index in self.named_tensors(spec)}

    def named_tensors(self, spec: ModelSpec) -> Iterator[tuple[str, Rule, dict[str, int]]]:
        """(name, rule, indices in the name) of every tensor but those beside the model's own (`extras`).

        Raises MinitronError for a tensor that no rule names."""
        for name in self.headers:
            if spec.extra(name) is None:
                yield name, *spec.find(name)

    def extras(self, spec: ModelSpec) -> dict[str, Extra]:
        """name -> what it is, of the tensors that stand beside those that the rules of `spec` name."""
        found = {name: spec.extra(name) for name in self.headers}
        return {name: row for name, row in found.items() if row is not None}

    def in_order(self) -> list[str]:
        """The names in the order in which tensors are best read: file by file."""
        names: dict[Path, list[str]] = {}
        for name, header in self.headers.items():
            names.setdefault(header.file, []).append(name)
        return [name for inside in names.values() for name in inside]

    def tensors(self) -> Iterator[tuple[str, Tensor]]:
        """Every tensor, one at a time, file by file."""
        for name in self.in_order():
            yield name, self.tensor(name)

    def tensor(self, name: str) -> Tensor:
        """One tensor, in memory of its own.  Raises MinitronError where its file has become shorter, or a number of it
        is not finite."""
        return self._rows(name)

    def read(self, name: str) -> Tensor:
        """One tensor, whose numbers nobody has looked at: some checks are made of what is loaded."""
        return read_rows(self.headers[name])

    def _rows(self, name: str, start: int = 0, stop: int | None = None) -> Tensor:
        header = self.headers[name]
        return require_finite(header.file, name, read_rows(header, start, stop))

    def slabs(self, name: str, *, whole: bool = False) -> Iterator[Slab]:
        """What a tensor is read in: runs of its rows of some megabytes, or `whole`."""
        header = self.headers[name]
        runs = row_runs(header.shape, header.num_bytes)
        if whole or len(runs) == 1:
            yield Slab(name, 0, header.num_bytes, partial(self.tensor, name))
            return
        for start, stop in runs:
            num_bytes = header.num_bytes // header.shape[0] * (stop - start)
            yield Slab(name, start, num_bytes, partial(self._rows, name, start, stop))
