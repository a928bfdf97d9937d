"""Names from configs, files and records in what is shown of them: one function for each medium.

Whatever a model's folder or a text says may hold signs that a medium would obey: escape sequences that move the cursor
or set a terminal's title, marks that turn the direction of what follows, Markdown's and HTML's own.  Everywhere they
are shown, and none is obeyed.

    visible(text)     a terminal; the others begin with it
    markdown(text)    Markdown, also in a table and on one line
    code(text)        Markdown's code, likewise; cell=True in a table
    html(text)        HTML, between tags and in attributes
"""

from __future__ import annotations

import re
from html import escape
from typing import Final

_SPACE: Final = "Zs"


class Markdown(str):
    """Markdown that has been escaped already."""


def visible(text: str, keep: str = "") -> str:
    r"""`text` with every character that is not shown as itself spelled out, as Python does: `\x1b`, `\u202e`.

    These are control characters (C0, C1), marks of direction and other format characters, line separators, halves of
    surrogate pairs and unassigned ones.  Spaces of all widths stay, and the characters in `keep`."""
    if text.isprintable():
        return text
    return "".join(one if one.isprintable() or one in keep or _is_space(one) else _spelled(one) for one in text)


def _is_space(character: str) -> bool:
    import unicodedata

    return unicodedata.category(character) == _SPACE


def _spelled(character: str) -> str:
    return character.encode("unicode_escape").decode()


def one_line(text: str) -> str:
    """`text` in visible characters with every run of white space, line breaks among it, as one space."""
    return visible(" ".join(text.split()))


_SIGNS: Final = re.compile(
    r"[\\`*\[\]<>|~$&@]|(?<![a-z0-9])_|_(?![a-z0-9])|#(?=[#\s]|$)|(?<=[a-z]):(?=//)|(?<=\bwww)\.|^[-+](?=\s)|^\d+[.)](?=\s)",
    re.IGNORECASE,
)
"""What Markdown or GitHub would read: emphasis (not inside a word), code, links, tables, headings, maths, entities,
mentions; what makes a link of an address; and what begins a list."""


def markdown(text: str) -> Markdown:
    """Text that Markdown shows as it is, also in a table and on one line."""
    return text if isinstance(text, Markdown) else Markdown(_SIGNS.sub(_taken_literally, one_line(text)))


def _taken_literally(found: re.Match[str]) -> str:
    return f"{found[0][:-1]}\\{found[0][-1]}"


def code(text: str, *, cell: bool = False) -> Markdown:
    """Text as code: fenced by more backticks than it holds in a row.  In the `cell` of a table a bar would end it even
    inside code."""
    text = one_line(text)
    longest = max(map(len, re.findall("`+", text)), default=0)
    fence, space = "`" * (longest + 1), " " if longest else ""
    return Markdown(f"{fence}{space}{text.replace('|', chr(92) + '|') if cell else text}{space}{fence}")


def html(text: str) -> str:
    """Text that HTML shows as it is, between tags and in attributes."""
    return escape(visible(text, keep="\n"))
