"""How many indices of an axis must stay for a model to choose among: experts for each token, from groups of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from minitron.errors import MinitronError
from minitron.model.axes import Axis, whole
from minitron.model.families.layer_lists import size_under


@dataclass(frozen=True)
class Choice:
    """The numbers of one axis; 1 and one group for an axis that nothing chooses from."""

    row: Axis
    needed: int
    """How many are chosen."""

    groups: int
    """In how many groups of one size the indices stand."""

    chosen: int
    """From how many of these groups they may come."""

    @property
    def least(self) -> int:
        """The fewest indices: as many as are chosen, also where they come from some groups only."""
        return int(self.least_for(self.needed))

    def least_for(self, needed: Any) -> Any:
        """The same where `needed` are chosen: a number, or an array with one number a candidate."""
        inside = np.maximum(self.row.least_in_group, -(-needed // self.chosen))
        return np.maximum(np.maximum(self.row.least, needed), self.groups * inside)

    @property
    def least_keys(self) -> tuple[str, ...]:
        """The config keys from which the fewest follow."""
        row = self.row
        return tuple(key for key in (row.least_key, self.least > self.needed and row.chosen_groups_key) if key)

    def check(self, size: int, key: str) -> None:
        """Raise MinitronError where `size` indices, which the config gives under `key`, do not serve."""
        row = self.row
        keys = row.least_key, row.equal_groups_key, row.chosen_groups_key
        for name, number in zip(keys, (self.needed, self.groups, self.chosen), strict=True):
            if name and number < 1:
                raise MinitronError(f"config.json: {name} is {number}; it must be 1 or more, so correct it.")
        if self.needed > size:
            raise MinitronError(
                f"config.json: {row.least_key} = {self.needed} is more than the {size} {row.label} of a layer; correct "
                "one of the two."
            )
        if size % self.groups:
            raise MinitronError(
                f"config.json: {key} = {size} does not divide into the {self.groups} equal groups of "
                f"{row.equal_groups_key}; correct one of the two."
            )
        if self.chosen > self.groups or self.least > size:
            raise MinitronError(
                f"config.json: a token cannot choose {self.needed} {row.label} from {self.chosen} of {self.groups} "
                f"groups of {size // self.groups}; correct {row.least_key}, {row.chosen_groups_key} or "
                f"{row.equal_groups_key}."
            )


def choice_of(row: Axis, value: Callable[[str], Any], family: str) -> Choice:
    """That of an axis in a model of which `value` gives what its config says; raises MinitronError where it is silent
    on what a token needs."""
    needed = 1
    if row.least_key:
        if value(row.least_key) is None:
            raise MinitronError(
                f"config.json has no {row.least_key}; a {family} model with these layers needs it; add it."
            )
        needed = size_under(row.least_key, value(row.least_key))
    groups = whole(row.equal_groups_key, value(row.equal_groups_key) or 1) if row.equal_groups_key else 1
    chosen = value(row.chosen_groups_key) if row.chosen_groups_key else None
    return Choice(row, needed, groups, whole(row.chosen_groups_key, chosen or groups))
