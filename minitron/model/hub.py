"""Models on the hub: their config alone, the headers of their weights, or all the files that are needed of them.

huggingface_hub fetches them: HF_ENDPOINT, HF_TOKEN, HF_HUB_OFFLINE and the cache are its own.  It is imported when a
name on the hub is given, and not before.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path, PurePosixPath
from typing import Any, Final

from minitron.errors import MinitronError
from minitron.model.headers import Header, header_length, parse_header
from minitron.model.weight_files import ADAPTER, INDEX, SUFFIXES, first_file, is_complete, shards, what_files_are
from minitron.progress import Advance, Progress, silent

_FIRST_BYTES: Final = 100_000
"""How much of a file is asked for at first: most headers are shorter."""

_AT_ONCE: Final = 8
"""Headers that are fetched at the same time."""

_BESIDE: Final = (".json", ".txt", ".model", ".jinja", ".md", ".tiktoken", "")
"""How the names of files end that are fetched with the weights: tokenizer, configs, licence."""

_FETCHED: Final = ("config.json", INDEX)
"""Files that are fetched before it is known what else is."""

_NAME: Final = re.compile(r"(?P<repo>[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*)(@(?P<revision>[^@\s]+))?")
_ALONE: Final = re.compile(r"(?P<repo>[A-Za-z0-9][\w.-]*)(@(?P<revision>[^@\s]+))?")
_PREFIX: Final = "hf:"


@dataclass(frozen=True)
class HubName:
    """A model on the hub."""

    repo: str
    """`nvidia/NVIDIA-Nemotron-Nano-12B-v2`."""

    revision: str | None = None
    """A branch, tag or commit; None for the main branch."""

    def __str__(self) -> str:
        return self.repo if self.revision is None else f"{self.repo}@{self.revision}"

    @property
    def command(self) -> str:
        """The command that fetches it where there is network."""
        return f"hf download {self.repo}" + (f" --revision {self.revision}" if self.revision else "")


def parse_name(text: str) -> HubName | None:
    """The name in `org/model`, `org/model@revision` or either after `hf:`; None for what is no such name."""
    bare = text.removeprefix(_PREFIX)
    found = _NAME.fullmatch(bare) or (_ALONE.fullmatch(bare) if bare != text else None)
    if found is None or found["repo"].endswith((".json", *SUFFIXES)):
        return None
    if ".." in text or (found["revision"] or "").startswith("/"):  # it becomes a path in the hub's cache
        return None
    return HubName(found["repo"], found["revision"])


@cache
def fetch_config(name: HubName) -> Path:
    """The config.json of a model, fetched alone; raises MinitronError where there is none or no way to it."""
    from huggingface_hub import get_hf_file_metadata, hf_hub_download, hf_hub_url, try_to_load_from_cache
    from huggingface_hub.errors import RemoteEntryNotFoundError

    try:
        # Once, where hf_hub_download would try again for half a minute.
        with _asking(name):
            try:
                get_hf_file_metadata(hf_hub_url(name.repo, "config.json", revision=name.revision))
                return Path(hf_hub_download(name.repo, "config.json", revision=name.revision))
            except RemoteEntryNotFoundError:
                raise _no_model(name, "config.json", _listing(name)[1]) from None
    except _Unreachable:
        cached = try_to_load_from_cache(name.repo, "config.json", revision=name.revision)
        if not isinstance(cached, str):
            raise
        return Path(cached)


def fetch_headers(name: HubName) -> dict[str, Header]:
    """tensor -> header, by requests for the first bytes of its safetensors files; nothing else is fetched."""
    commit, sizes = _listing(name)
    files = _weights(name, commit, sizes)
    with _asking(name), ThreadPoolExecutor(_AT_ONCE) as pool:
        found = list(pool.map(lambda file: _header(name, commit, file), files))
    return {tensor: header for headers in found for tensor, header in headers.items()}


def fetch_model(name: HubName, progress: Progress = silent) -> Path:
    """The folder in the cache with the weights that transformers reads and what stands beside them.

    Files that are there are not fetched again.  Raises MinitronError where it holds no safetensors, and without network
    where not all of it is in the cache."""
    from huggingface_hub import hf_hub_download

    folder = fetch_config(name).parent
    try:
        commit, sizes = _listing(name)
    except _Unreachable as error:
        if is_complete(folder):
            return folder
        raise MinitronError(f"of {name} only a part is in the cache; {error}") from None
    wanted = _weights(name, commit, sizes)
    wanted += [file for file in sizes if "/" not in file and file not in _FETCHED and _is_beside(file)]
    missing = [file for file in wanted if not _is_cached(name, file, commit)]
    with (
        progress(f"fetching {name}", sum(sizes[file] for file in missing), "B") if missing else silent("", 0, "") as bar
    ):
        for file in missing:
            with _asking(name):
                folder = Path(hf_hub_download(name.repo, file, revision=commit, tqdm_class=_bar(bar))).parent
    return folder


def _is_cached(name: HubName, file: str, commit: str) -> bool:
    from huggingface_hub import try_to_load_from_cache

    return isinstance(try_to_load_from_cache(name.repo, file, revision=commit), str)


def _is_beside(file: str) -> bool:
    suffix = PurePosixPath(file).suffix
    return suffix in _BESIDE and not file.startswith(".")


@cache
def _listing(name: HubName) -> tuple[str, dict[str, int]]:
    """(commit, file -> bytes) of a model."""
    from huggingface_hub import HfApi

    with _asking(name):
        found = HfApi().model_info(name.repo, revision=name.revision, files_metadata=True)
    return found.sha or "main", {file.rfilename: file.size or 0 for file in found.siblings or ()}


def _weights(name: HubName, commit: str, sizes: dict[str, int]) -> list[str]:
    """The safetensors files that transformers reads."""
    from huggingface_hub import hf_hub_download

    first = first_file(sizes)
    if first is None or (ADAPTER in sizes and "config.json" not in sizes):
        raise _no_model(name, "model.safetensors", sizes)
    if not first.endswith(".json"):
        return [first]
    with _asking(name):
        index = Path(hf_hub_download(name.repo, first, revision=commit))
    return shards(json.loads(index.read_text(encoding="utf-8")), f"{name}/{first}")


def _no_model(name: HubName, missing: str, sizes: dict[str, int]) -> MinitronError:
    if ADAPTER in sizes:
        what = ": it is an adapter; merge it into its base model (merge_and_unload of peft) and give the result"
    else:
        what = what_files_are(sizes)
    return MinitronError(f"{name} on the hub holds no {missing}{what}.")


def _header(name: HubName, commit: str, file: str) -> dict[str, Header]:
    """tensor -> header of one file; a server that ignores ranges is read no further than its header."""
    from huggingface_hub import hf_hub_url

    url, place = hf_hub_url(name.repo, file, revision=commit), Path(str(name)) / file
    start = _first_bytes(url, _FIRST_BYTES)
    length = header_length(start, place)
    if len(start) < 8 + length:
        start = _first_bytes(url, 8 + length)
    if len(start) < 8 + length:
        raise MinitronError(f"{place} is truncated on the hub: its header is cut off; choose another revision.")
    return parse_header(start[8 : 8 + length], place)


def _first_bytes(url: str, count: int) -> bytes:
    from huggingface_hub.utils import (  # type: ignore[attr-defined]
        build_hf_headers,
        get_session,
        hf_raise_for_status,
    )

    headers = {**build_hf_headers(), "Range": f"bytes=0-{count - 1}"}
    found = bytearray()
    with get_session().stream("GET", url, headers=headers, timeout=30) as response:
        hf_raise_for_status(response)
        for part in response.iter_bytes():
            found += part
            if len(found) >= count:
                break
    return bytes(found[:count])


class _Unreachable(MinitronError):
    """There is no way to the hub."""


@contextmanager
def _asking(name: HubName) -> Iterator[None]:
    """What goes wrong on the way, in one sentence each."""
    from huggingface_hub import errors

    transport: Any = getattr(errors, "HTTPError", errors.HfHubHTTPError)
    try:
        yield
    except errors.GatedRepoError:
        raise MinitronError(
            f"{name} is gated: ask for access on its page, then give a token in HF_TOKEN or by `hf auth login`."
        ) from None
    except errors.RepositoryNotFoundError:
        raise MinitronError(
            f"{name} is neither a folder here nor a model on the hub, unless it is private; check the name, or give a "
            "token in HF_TOKEN or by `hf auth login`."
        ) from None
    except errors.RevisionNotFoundError:
        raise MinitronError(f"{name.repo} has no revision {name.revision}; give one of its branches or tags.") from None
    except errors.HFValidationError:
        raise MinitronError(f"{name} is no folder and cannot be a name on the hub; check it.") from None
    except errors.RemoteEntryNotFoundError as error:
        raise MinitronError(f"a file of {name} is missing on the hub ({_first_line(error)}); choose another.") from None
    except (errors.LocalEntryNotFoundError, errors.OfflineModeIsEnabled, transport, ConnectionError) as error:
        raise _Unreachable(
            f"{name} is no folder here, and the hub cannot be asked for it ({_reason(error)}); run `{name.command}` "
            "where there is network, or check the name."
        ) from None
    except (errors.FileMetadataError, ValueError) as error:
        raise MinitronError(
            f"the answer to a request for {name} is not that of a hub ({_first_line(error)}); check HF_ENDPOINT and "
            "what stands between."
        ) from None


def _reason(error: BaseException) -> str:
    """Why there is no way, in a few words."""
    from huggingface_hub import constants, errors

    if constants.HF_HUB_OFFLINE:
        return "HF_HUB_OFFLINE is set, and it is not in the cache"
    cause: BaseException = error
    while isinstance(cause, errors.LocalEntryNotFoundError) and cause.__cause__ is not None:
        cause = cause.__cause__
    response = getattr(cause, "response", None)
    return f"it answers {response.status_code}" if response is not None else _first_line(cause)


def _first_line(error: BaseException) -> str:
    line = next(iter(str(error).strip().splitlines()), type(error).__name__)
    return line if len(line) <= 80 else f"{line[:77]}..."


def _bar(advance: Advance) -> Any:
    """What huggingface_hub takes for a progress bar, whose steps are told to `advance`."""

    class Bar:
        def __init__(self, *_: Any, initial: int = 0, **more: Any) -> None:
            if initial:
                advance(initial)

        def __enter__(self) -> Bar:
            return self

        def __exit__(self, *_: object) -> None:
            return

        def update(self, amount: float | None = 1) -> None:
            advance(amount or 0)

        def __getattr__(self, name: str) -> Any:
            # What else is said of a bar, such as its rate.
            return lambda *_, **more: None

    return Bar
