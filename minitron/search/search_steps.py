"""Steps: the sizes of each axis in a search, by default and by options."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from itertools import product
from math import ceil, lcm
from typing import Any

from minitron.errors import MinitronError
from minitron.model.axes import ACTIVE, AXES, HIDDEN, LAYER
from minitron.model.spec import DEPTH, ModelSpec
from minitron.model.steps import Step
from minitron.search.alignment import PIECE, multiple_for_experts
from minitron.search.depth import LayerLimits


@dataclass(frozen=True)
class LatticeOptions:
    """What a person changes about the default lattice.

    Names are axes (`ffn`, `layer`) or config keys (`intermediate_size`, `num_hidden_layers`)."""

    multiples: Mapping[str, int] = field(default_factory=dict)
    """name -> sizes are multiples of this, instead of what the axis's row says; also of the groups that must stay
    whole."""

    most: Mapping[str, float] = field(default_factory=dict)
    """name -> the largest share to prune, from 0 to below 1, instead of what the axis's row says."""

    leave: Collection[str] = ()
    """Names that stay as they are."""

    layers: LayerLimits = field(default_factory=LayerLimits)
    """Which kinds of layers may go, and how many."""

    every_mix: bool = False
    """Try every number of each kind of layer beside every number of the others, not only one mix for each depth."""

    work: bool = False
    """Whether the work for a token is limited, and not memory alone: active experts are searched only then."""

    def __post_init__(self) -> None:
        for name, multiple in self.multiples.items():
            if multiple < 1:
                raise MinitronError(f"{name} cannot be a multiple of {multiple}; give 1 or more.")
        for name, most in self.most.items():
            if not 0 <= most < 1:
                raise MinitronError(
                    f"{name}: a share of {most:g} cannot be pruned; give one from 0 to below 1, such as 0.25."
                )

    def keys(self, spec: ModelSpec) -> frozenset[str]:
        """The config keys to search even if an explicit lattice does not name them."""
        return frozenset(config_key(spec, name) for name in (*self.multiples, *self.most))

    def step(self, spec: ModelSpec, axis: str) -> Step:
        """How an axis is searched; raises MinitronError for names that this model does not have."""
        key = DEPTH if axis == LAYER else spec.key(axis)
        default = AXES[LAYER].step if axis == LAYER else spec.axis(axis).step
        multiple, most = (_of(spec, key, asked) for asked in (self.multiples, self.most))
        free = self.work or axis != ACTIVE
        left = key in {config_key(spec, name, cut=False) for name in self.leave}
        if left and (multiple is not None or most is not None):
            raise MinitronError(f"{key} is both excluded (--leave) and searched; drop one of the two.")
        return Step(
            default.multiple if multiple is None else multiple,
            default.smallest if multiple is None else multiple,
            0.0 if left else most if most is not None else default.most if free else 0.0,
            default.reason,
            default.fewest,
        )


def _of(spec: ModelSpec, key: str, asked: Mapping[str, Any]) -> Any:
    """What was asked for the config key, by whichever of its names; None where nothing was."""
    found = {value for name, value in asked.items() if config_key(spec, name) == key}
    if len(found) > 1:
        raise MinitronError(f"{key} is given twice with different numbers; give it once.")
    return next(iter(found), None)


def config_key(spec: ModelSpec, name: str, *, cut: bool = True) -> str:
    """The config key that `name` means: an axis, a config key in any dialect, or what people call it.

    Raises MinitronError for a name that this model does not have and, unless `cut` is false, for what cannot be cut."""
    if name in (LAYER, *AXES[LAYER].keys, *AXES[LAYER].aliases):
        return DEPTH
    for axis in spec.sizes:
        row = spec.axis(axis)
        if name in (axis, *row.keys, *row.aliases):
            if cut and axis in spec.family.fixed:
                raise MinitronError(
                    f"{name} cannot be cut in a {spec.family.name} model, as {why_fixed(spec, axis)}; leave it out."
                )
            return spec.key(axis)
    free = [axis for axis in spec.sizes if axis not in spec.family.fixed]
    raise MinitronError(f"{name} is not an axis of this model; its axes are layer, {', '.join(free)}.")


@dataclass(frozen=True, order=True)
class Times:
    """A size given as a multiple of hidden_size: `3.5x`."""

    factor: float


Choice = int | Times


def default_sizes(spec: ModelSpec, axis: str, options: LatticeOptions | None = None) -> tuple[int, ...]:
    """The sizes of an axis that the axes' rows and the options allow, the model's own first, then descending."""
    options = options or LatticeOptions()
    size, step = spec.sizes[axis], options.step(spec, axis)
    if step.most == 0 or axis in spec.family.fixed:
        return (size,)
    least = max(_least(size, step.most), spec.least(axis))
    found: set[int] = set()
    for whole in _wholes(spec, axis, options):
        multiple = step.multiple
        while multiple > step.smallest and size // lcm(multiple, whole) < step.fewest:
            multiple //= 2
        multiple = lcm(multiple, whole)
        found.update(n for n in range(size // multiple * multiple, 0, -multiple) if least <= n < size)
    return size, *sorted(found, reverse=True)


def _wholes(spec: ModelSpec, axis: str, options: LatticeOptions) -> set[int]:
    """The numbers of which the axis must keep a multiple: one for every size of its groups and of its unit."""
    group, unit = spec.family.grouped.get(axis), spec.family.multiples.get(axis)
    aligned = multiple_for_experts(spec, spec.key(axis))
    groups = _tried(spec, group, options) if group else (spec.equal_groups(axis),)
    units = _tried(spec, unit, options) if unit else (1,)
    return {lcm(*pair, aligned) for pair in product(groups, units)}


def _tried(spec: ModelSpec, axis: str, options: LatticeOptions) -> tuple[int, ...]:
    """The sizes that an axis will have, those that follow from its groups' among them."""
    sizes, group = default_sizes(spec, axis, options), spec.family.grouped.get(axis)
    if len(sizes) > 1 or group is None:
        return sizes
    inside = spec.sizes[axis] // spec.sizes[group]
    return tuple(inside * groups for groups in _tried(spec, group, options))


def _least(size: int, most: float) -> int:
    """The smallest size when at most the share `most` goes; a hair above a whole number is that number."""
    return max(1, ceil(size * (1 - most) - 1e-9))


def share_left(name: str, most: float, whole: ModelSpec, now: ModelSpec) -> float:
    """The largest share of `name` to prune of the model as it is `now`, where `most` is that of the `whole` one."""
    key = config_key(whole, name)
    before, left = (len(one.layers) if key == DEPTH else one.named_sizes[key] for one in (whole, now))
    return max(0.0, 1 - _least(before, most) / left)


def fewest_layers(spec: ModelSpec, options: LatticeOptions | None = None) -> int:
    """The least depth that the axes' rows and the options allow."""
    return _least(len(spec.layers), (options or LatticeOptions()).step(spec, "layer").most)


def default_widths(spec: ModelSpec, options: LatticeOptions | None = None) -> dict[str, tuple[Choice, ...]]:
    """config key -> sizes to try, for every width that the axes' rows and the options let shrink."""
    found = {spec.key(axis): default_sizes(spec, axis, options) for axis in spec.sizes}
    return {key: sizes for key, sizes in found.items() if len(sizes) > 1}


def parse_widths(spec: ModelSpec, texts: Mapping[str, str]) -> dict[str, tuple[Choice, ...]]:
    """`{"hidden_size": "4480,4800", "intermediate_size": "3x,3.5x"}` as sizes to try, descending without repetition.

    Raises MinitronError for a key that is no size of this model or may not be cut, and for what is no size."""
    return {key: _parse_choices(spec, key, text) for key, text in texts.items()}


def _parse_choices(spec: ModelSpec, key: str, text: str) -> tuple[Choice, ...]:
    if key not in spec.keys:
        raise MinitronError(f"{key} is not a width of this model; its widths are {', '.join(sorted(spec.keys))}.")
    if fixed := [axis for axis in spec.keys[key] if axis in spec.family.fixed]:
        raise MinitronError(
            f"{key} cannot be cut in a {spec.family.name} model, as {why_fixed(spec, fixed[0])}; "
            "leave it out of the lattice."
        )
    choices: set[Choice] = set()
    for word in text.split(","):
        times = re.fullmatch(r"(\d+(?:\.\d+)?)x", word.strip())
        if times and key != spec.key(HIDDEN):
            choices.add(Times(float(times[1])))
        elif word.strip().isdigit():
            choices.add(_checked(spec, key, int(word)))
        else:
            raise MinitronError(
                f"{key}: {word.strip()!r} is not a size; write whole numbers such as 4480, or 3.5x for "
                "3.5 times hidden_size."
            )
    return tuple(sorted(choices, key=lambda choice: (isinstance(choice, Times), choice), reverse=True))


def _checked(spec: ModelSpec, key: str, size: int) -> int:
    """`size`, which a person gave; raises MinitronError where no cut leads to it."""
    parent = spec.named_sizes[key]
    if not 1 <= size <= parent:
        raise MinitronError(f"{key} = {size} cannot be reached by pruning from {parent}; choose 1 to {parent}.")
    if size % (multiple := multiple_for_experts(spec, key)):
        below, above = size // multiple * multiple, -(-size // multiple) * multiple
        raise MinitronError(
            f"{key} = {size} is no multiple of {multiple}, and transformers multiplies the experts of a layer in "
            f"pieces of {PIECE} bytes; choose {f'{below} or {above}' if below else above}."
        )
    for axis in spec.keys[key]:
        if size < spec.least(axis):
            raise MinitronError(
                f"{key} = {size} is less than the {spec.least(axis)} {spec.axis(axis).label} of "
                f"{' and '.join(spec.choice(axis).least_keys)}; keep more."
            )
        if size % spec.equal_groups(axis):
            raise MinitronError(
                f"{key} = {size} is not a multiple of the router's {spec.equal_groups(axis)} groups; choose one."
            )
    return size


def why_fixed(spec: ModelSpec, axis: str) -> str:
    """Why a plan may not cut an axis by its own, as a clause."""
    row = spec.axis(axis)
    return row.fixed or f"it is always the same multiple of {spec.key(row.follows)}"
