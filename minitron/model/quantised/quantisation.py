"""What a config says of a checkpoint's quantisation: groups of modules, each with the scheme it is kept in."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Final

from minitron.errors import MinitronError
from minitron.model.dims import Name
from minitron.model.families import Rule
from minitron.model.matrix_layout import Scheme
from minitron.model.quantised.modules import means, modules_of

Section = Mapping[str, Any]
"""What a config says under `quantization_config`."""

CAST: Final = "fp8 without scales"
"""The method of weights that are floats of eight bits and no more, of which no config tells."""

KEYS: Final = ("quantization_config", "compression_config")
"""Where a config says how it is quantised."""

UNDONE: Final = ("compressed-tensors", "fbgemm_fp8", "fp8", "modelopt", "mxfp4", "mxfp8", CAST)
"""The methods whose weights `prune --dequantise` turns into bf16."""

_INSIDE: Final = ("text_config", "llm_config", "language_config")
"""Configs inside a config in which the same keys may stand."""


@dataclass(frozen=True)
class Group:
    """Some modules and how their matrices are kept."""

    modules: tuple[str, ...]
    """Entries as in a config's lists (minitron.model.quantised.modules)."""

    scheme: Scheme | None
    """None for modules that stay as they are."""


@dataclass(frozen=True)
class Quantisation:
    """What is quantised and how."""

    method: str
    """As the config calls it: gptq, compressed-tensors."""

    groups: tuple[Group, ...]
    """The first that means a module decides; what none means stays as it is."""

    doubts: tuple[str, ...] = ()
    """What is not known of the bytes, a sentence each without its full stop; empty where everything is known."""

    kv: str = ""
    """The format for keys and values that it was made for; empty where it says none."""

    kv_bytes: int = 0
    """Of their scales, a layer of attention."""

    silent: bool = False
    """Whether it says which format, but of no module whether it is kept so."""

    @cached_property
    def _found(self) -> dict[tuple[Any, ...], Scheme | None]:
        return {}

    def scheme(self, rule: Rule, index: Mapping[str, int]) -> Scheme | None:
        """How the tensor of `rule` with these indices is kept; None where it stays as it is."""
        key = (rule.name, *index.items())
        if key not in self._found:
            memory = Name(rule.memory or rule.name)
            names = [*rule.pattern.dialects(index), *(memory.dialects(index) if set(memory.axes) <= set(index) else ())]
            self._found[key] = self._scheme(rule, modules_of(names))
        return self._found[key]

    def _scheme(self, rule: Rule, modules: tuple[str, ...]) -> Scheme | None:
        for group in self.groups:
            if any(means(entry, rule, modules) for entry in group.modules):
                # What has no rows and columns has no scheme either.
                return group.scheme if len(rule.matrix) == 2 and rule.norm is None else None
        return None

    @property
    def schemes(self) -> tuple[Scheme, ...]:
        """The schemes, each once."""
        return tuple(dict.fromkeys(group.scheme for group in self.groups if group.scheme is not None))

    @property
    def known(self) -> bool:
        """Whether every layout is that of the files."""
        return not self.doubts and all(scheme.known for scheme in self.schemes)

    @property
    def main(self) -> Scheme | None:
        """The scheme of what no other group names, the last of them; None where nothing is known."""
        return self.schemes[-1] if self.schemes else None

    @property
    def told(self) -> str:
        """Method and schemes in a few words: `gptq, int4 in groups of 128`."""
        told = dict.fromkeys(scheme.told for scheme in self.schemes)
        if self.method == CAST:
            return CAST
        method = [] if any(scheme.name == self.method for scheme in self.schemes) else [self.method]
        return ", ".join([*method, *told])

    @property
    def can_be_undone(self) -> bool:
        """Whether `prune --dequantise` may turn such weights into bf16."""
        return self.method in UNDONE

    @cached_property
    def by_expert(self) -> bool:
        """Whether it names single experts."""
        return any("experts" in entry for group in self.groups for entry in group.modules)


def section_of(config: Mapping[str, Any]) -> Section | None:
    """What a config says of its quantisation; None where it says nothing, null or an empty object.

    Raises MinitronError for what is no object."""
    for inside in ("", *_INSIDE):
        part = config.get(inside) if inside else config
        for key in KEYS:
            found = part.get(key) if isinstance(part, Mapping) else None
            if not found:
                continue
            if not isinstance(found, Mapping):
                raise MinitronError(
                    f"config.json: {key} is {found!r}, not an object; copy config.json from the checkpoint again."
                )
            return found
    return None


def plain_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """The config of the same model in plain numbers."""
    plain = {key: value for key, value in config.items() if key not in KEYS}
    for inside in _INSIDE:
        if isinstance(plain.get(inside), Mapping):
            plain[inside] = {key: value for key, value in plain[inside].items() if key not in KEYS}
    return plain


def text(section: Section, *keys: str) -> str:
    """The first of the keys that says something, in small letters; empty where none does."""
    return next((str(section[key]).lower() for key in keys if section.get(key)), "")


def number(section: Section, *keys: str, default: int | None = None) -> int | None:
    """The first of the keys that says something; raises MinitronError where that is no whole number."""
    for key in keys:
        value = section.get(key)
        if value is None:
            continue
        if isinstance(value, bool) or not isinstance(value, int):
            raise MinitronError(
                f"config.json: quantization_config.{key} is {value!r}; it must be a whole number, so copy config.json "
                "from the checkpoint again."
            )
        return value
    return default


def entries(section: Section, *keys: str) -> tuple[str, ...]:
    """The names in the lists under all of the keys; raises MinitronError where one holds something else."""
    found: list[str] = []
    for key in keys:
        value = section.get(key)
        if value is None:
            continue
        names = [value] if isinstance(value, str) else value
        if not isinstance(names, Iterable) or not all(isinstance(name, str) for name in names):
            raise MinitronError(
                f"config.json: quantization_config.{key} is {value!r}; it must be a list of names of modules."
            )
        found += names
    return tuple(found)


def table(section: Section, *keys: str) -> Section:
    """The first of the keys that holds an object; an empty one where none does."""
    return next((section[key] for key in keys if isinstance(section.get(key), Mapping)), {})
