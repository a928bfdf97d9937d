"""The exception for errors that a user can fix, and the checks that every request makes of its numbers and names."""

from collections.abc import Collection, Mapping


class MinitronError(Exception):
    """One sentence: what is wrong, where, and what to do.  The command line prints it and exits with 2."""


class NotFinite(MinitronError):
    """A model's logits, or its loss, are not finite."""


class NothingFits(MinitronError):
    """No architecture in the search fits the budget."""


def require_least(owner: object, least: Mapping[str, int]) -> None:
    """Raise MinitronError where a field of `owner`, unless it is None, is below what `least` says of its name."""
    for name, limit in least.items():
        value = getattr(owner, name)
        if value is not None and value < limit:
            raise MinitronError(f"{name.replace('_', ' ')} is {value}; give {limit} or more.")


def require_known(owner: object, known: Mapping[str, Collection[str]]) -> None:
    """Raise MinitronError where a field of `owner` is none of the names that `known` has for it."""
    for name, names in known.items():
        value = getattr(owner, name)
        if value not in names:
            raise MinitronError(f"there is no {name.replace('_', ' ')} {value!r}; choose one of {', '.join(names)}.")
