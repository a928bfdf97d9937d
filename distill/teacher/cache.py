"""The teacher's probabilities for a sparse loss, cached on disk: later runs need no teacher in memory.

    about.json                  teacher, text, loss and seed: a cache is used for nothing else
    heldout.safetensors         the teacher's hidden states of the held-out text, and its output layer
    part-0-000000.safetensors   a run of sequences of a source: ids, weights and log p, checksum in the metadata; of
                                the residual stream, where it is compared, some directions in units of its size

Shape letters: S sequences of a shard, T tokens, K tokens kept of the vocabulary, H hidden, V vocabulary, L layers, D
directions of the stream.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from distill.losses.divergences import Loss, Sparse
from distill.losses.slopes import chunks, rows_at_once
from distill.teacher.streamed import StreamedTeacher
from distill.teacher.streams import Found, WatchedTeacher
from distill.text.data import Text
from minitron.errors import MinitronError
from minitron.files import is_leftover, new_file, read_json, write_json, write_tensors
from minitron.measure import quality
from minitron.model.families.logits import LogitMap
from minitron.model.headers import Header, read_headers
from minitron.model.output_layer import OutputLayer, widened
from minitron.model.slabs import read_rows
from minitron.progress import Progress, silent
from minitron.run_folder import without_stamps

ABOUT: Final = "about.json"
HELDOUT: Final = "heldout.safetensors"

_TOLD: Final = "minitron"
"""The key, in a file's metadata, of what it says of itself."""

SHARD_TOKENS: Final = 2**18
"""Tokens of a shard: with twelve kept of each it takes 24 MiB."""

_STREAMS: Final = "streams"

DTYPES: Final = {"ids": torch.int32, "weights": torch.float16, "log_p": torch.float16}


class TeacherCache:
    """A folder that answers for a teacher."""

    def __init__(self, folder: Path, text: Text, about: Mapping[str, Any]) -> None:
        """Begins the cache where there is none yet.  Raises MinitronError where the folder is another's."""
        self.folder, self.text = folder, text
        wanted = json.loads(json.dumps(dict(about)))
        path = folder / ABOUT
        if path.is_file():
            found, asked = without_stamps(read_json(path)), without_stamps(wanted)
            apart = sorted(key for key in asked.keys() | found.keys() if asked.get(key) != found.get(key))
            if apart:
                raise MinitronError(
                    f"{folder} caches a teacher with another {', '.join(apart)}; give this run another folder."
                )
        elif folder.exists() and not all(is_leftover(each.name) for each in folder.iterdir()):
            raise MinitronError(f"{folder} exists and is not a teacher cache; give another folder.")
        else:
            folder.mkdir(parents=True, exist_ok=True)
            write_json(path, wanted)
        self.vocab = int(wanted["vocab_size"])
        """Tokens of the vocabulary that were looked at; the others are padding."""
        self._open: dict[Path, dict[str, Header]] = {}

    @property
    def is_complete(self) -> bool:
        """Whether every training sequence and the held-out ones are there."""
        return (self.folder / HELDOUT).is_file() and not self.missing

    def write(
        self,
        teacher: quality.Answers,
        loss: Loss,
        start: Mapping[str, Any],
        *,
        missing: Sequence[tuple[int, int, int]] | None = None,
        held_out: bool = True,
        vocab: int,
        seed: int = 0,
        batch_size: int = 1,
        progress: Progress = silent,
    ) -> None:
        """Ask the teacher for all that is missing, of the first `vocab` tokens of its vocabulary; `start` is kept with
        it (see `start`).  What is there already, shard by shard, is not asked for again.  One of many processes writes
        the shards `missing` alone, and what is `held_out` if it is told so."""
        missing = self.missing if missing is None else missing
        length = self.text.parts[0].sequence_length
        total = sum(stop - first for _, first, stop in missing) * length
        with torch.inference_mode(), progress("caching the teacher", float(total), "tokens") as advance:
            for part, first, stop in missing:
                found, streams = [], list[Tensor]()
                if isinstance(teacher, StreamedTeacher):
                    whole = np.stack([self.text.parts[part].sequence(number)[0] for number in range(first, stop)])
                    teacher.ask(whole, batch_size, advance)
                for place in range(first, stop, batch_size):
                    numbers = range(place, min(place + batch_size, stop))
                    ids = np.stack([self.text.parts[part].sequence(number)[0] for number in numbers])
                    seeds = [_seed(seed, part, number) for number in numbers]
                    found += _picked(teacher, torch.from_numpy(ids), loss, vocab, seeds)
                    if isinstance(teacher, StreamedTeacher | WatchedTeacher) and start["stream_squares"]:
                        streams.append(_in_units(teacher.streams(torch.from_numpy(ids)), start["stream_squares"]))
                    if not isinstance(teacher, StreamedTeacher):
                        advance(ids.size)
                tensors = {
                    name: torch.stack([_narrow(getattr(one, name), dtype) for one in found])
                    for name, dtype in DTYPES.items()
                }
                if streams:
                    tensors[_STREAMS] = torch.cat(streams)
                self._save(self._shard(part, first), tensors)
            if held_out and not (self.folder / HELDOUT).is_file():
                self._save_heldout(teacher, start, batch_size)

    def targets(self, places: Sequence[tuple[int, int]]) -> Sparse:
        """What was kept of the sequences (part, number), for all of their tokens in a row: [S * T, K] each."""
        found: dict[str, list[Tensor]] = {name: [] for name in DTYPES}
        for part, number in places:
            shard, row = self._shard(part, number - number % self._run), number % self._run
            for name, rows in found.items():
                rows.append(read_rows(self._headers(shard)[name], row, row + 1)[0])
        whole = {name: torch.cat(rows) for name, rows in found.items()}
        weights = whole["weights"].float()
        # Rounded to sixteen bits they no longer add up to one.
        weights /= weights.sum(-1, keepdim=True)
        return Sparse(whole["ids"].long(), weights, whole["log_p"].float())

    def streams(self, places: Sequence[tuple[int, int]], squares: Sequence[float]) -> Found:
        """The streams of the sequences (part, number), [S, T, D] each, whose mean squares are `squares`."""
        rows = []
        for part, number in places:
            shard, row = self._shard(part, number - number % self._run), number % self._run
            rows.append(read_rows(self._headers(shard)[_STREAMS], row, row + 1)[0])
        whole = torch.stack(rows).float()
        return {layer: whole[:, :, layer] * square**0.5 for layer, square in enumerate(squares)}

    def answers(self, device: torch.device) -> Answers:
        """The teacher's answers to the held-out text."""
        path = self.folder / HELDOUT
        tensors = {name: read_rows(header) for name, header in self._headers(path).items()}
        mapped = LogitMap(**_told(path)["logits"])
        return Answers(self.text.validation, tensors["states"], tensors["head"].to(device), mapped)

    @property
    def start(self) -> dict[str, Any]:
        """What was measured of the teacher when it was there."""
        self._headers(self.folder / HELDOUT)
        return dict(_told(self.folder / HELDOUT)["start"])

    @property
    def _run(self) -> int:
        return max(1, SHARD_TOKENS // self.text.parts[0].sequence_length)

    def _shard(self, part: int, first: int) -> Path:
        return self.folder / f"part-{part}-{first // self._run:06d}.safetensors"

    @property
    def missing(self) -> list[tuple[int, int, int]]:
        """(part, first sequence, the one after the last) of every shard that is not there."""
        return [
            (number, first, min(first + self._run, part.sequences))
            for number, part in enumerate(self.text.parts)
            for first in range(0, part.sequences, self._run)
            if not self._shard(number, first).is_file()
        ]

    def _save(self, path: Path, tensors: dict[str, Tensor], **told: Any) -> None:
        # Under one key: safetensors writes several in any order, and the same cache would have other bytes.
        about = json.dumps(told | {"sha256": _checksum(tensors, told)})
        with new_file(path) as partial:
            write_tensors(partial, tensors, {_TOLD: about})

    def _save_heldout(self, teacher: quality.Answers, start: Mapping[str, Any], batch_size: int) -> None:
        blocks = self.text.validation
        states = [
            teacher.hidden_states(torch.from_numpy(blocks[place : place + batch_size])).cpu()
            for place in range(0, len(blocks), batch_size)
        ]
        tensors = {"states": torch.cat(states).contiguous()}
        tensors["head"] = teacher.head.matrix.detach().cpu().contiguous()
        self._save(self.folder / HELDOUT, tensors, start=dict(start), logits=asdict(teacher.head.map))

    def _headers(self, path: Path) -> dict[str, Header]:
        """A file's tensors, where they lie in it; the first time their checksum is taken.  They are read when they are
        needed, and not mapped: a file that becomes shorter would end the process."""
        if path not in self._open:
            told, headers = _told(path), read_headers(path)
            wanted = told.pop("sha256", None)
            if _checksum({name: read_rows(header) for name, header in headers.items()}, told) != wanted:
                raise MinitronError(f"{path} is damaged (its checksum differs); remove it and cache it again.")
            self._open[path] = headers
        return self._open[path]


class Answers:
    """The held-out part of a cache, in the place of a teacher (minitron.measure.quality.Answers)."""

    def __init__(self, blocks: NDArray[np.int64], states: Tensor, head: Tensor, logits: LogitMap) -> None:
        """`states` [S, T, H] of the sequences `blocks` [S, T]; the matrix of the `head`, [V, H] or [V, H + 1], and what
        is done to its products."""
        states = widened(states, head)
        self._states = {block.tobytes(): one for block, one in zip(blocks, states, strict=True)}
        linear = nn.Linear(head.shape[1], head.shape[0], bias=False, device="meta")
        linear.weight = nn.Parameter(head, requires_grad=False)
        self.head = OutputLayer(linear, logits)

    def hidden_states(self, ids: Tensor) -> Tensor:
        """[B, T, H] of held-out sequences [B, T]; raises KeyError for others."""
        return torch.stack([self._states[row.tobytes()] for row in ids.cpu().numpy()]).to(self.head.weight.device)


def _picked(teacher: quality.Answers, ids: Tensor, loss: Loss, vocab: int, seeds: list[int]) -> list[Sparse]:
    """What is kept of each of the sequences [S, T]."""
    pick = loss.divergence.pick
    assert pick is not None
    head, logits = teacher.head.matrix[:vocab], teacher.head.map
    found = []
    for states, seed in zip(teacher.hidden_states(ids), seeds, strict=True):
        chance = torch.Generator(states.device).manual_seed(seed)
        states = widened(states, head)
        parts = [
            pick(
                torch.log_softmax(logits((states[part].to(head.dtype) @ head.T).float()), -1),
                round(loss.parameter),
                chance,
            )
            for part in chunks(len(states), rows_at_once(len(head), states.device))
        ]
        found.append(Sparse(*(torch.cat([getattr(part, name) for part in parts]) for name in DTYPES)))
    return found


def _in_units(streams: Found, squares: Sequence[float]) -> Tensor:
    """[S, T, L, D] in sixteen bits: each layer's stream in units of its size; first tokens, which may be too large for
    sixteen bits, are not compared."""
    most = torch.finfo(torch.float16).max
    parts = [(streams[layer].float() / square**0.5).clamp(-most, most) for layer, square in enumerate(squares)]
    return torch.stack(parts, 2).to("cpu", torch.float16)


def _narrow(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """On the CPU in `dtype`; what is lower than it knows becomes its lowest."""
    limit = torch.finfo(dtype).min if dtype.is_floating_point else 0
    return tensor.clamp_min(limit).to("cpu", dtype)


def _seed(*numbers: int) -> int:
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0] >> np.uint64(1))


def _told(path: Path) -> dict[str, Any]:
    """What a file says of itself beside its tensors."""
    try:
        with safe_open(path, "pt", backend="pread") as file:
            found = json.loads((file.metadata() or {}).get(_TOLD, "{}"))
            return found if isinstance(found, dict) else {}
    except (SafetensorError, OSError, ValueError) as error:
        raise MinitronError(f"{path} cannot be read ({error}); remove it and cache it again.") from None


def _checksum(tensors: Mapping[str, Tensor], told: Mapping[str, Any]) -> str:
    digest = hashlib.sha256(json.dumps(told, sort_keys=True).encode())
    for name in sorted(tensors):
        digest.update(name.encode())
        digest.update(tensors[name].contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
