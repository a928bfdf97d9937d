"""What `corpus.py` builds: documents of paragraphs."""

import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import groupby
from typing import Final, Literal

Kind = Literal["prose", "heading", "verbatim"]

LONGEST: Final = 50_000
"""Characters from which a document is split: a manual on one page would be held out, or not, as a whole."""

TERM: Final = 7
"""Level of the term or signature that a definition stands under; several may share one."""


@dataclass(frozen=True)
class Paragraph:
    """A piece of text between two empty lines."""

    text: str

    kind: Kind = "prose"
    """Verbatim is code, and what else keeps its spaces and line breaks."""

    level: int = 0
    """Of a heading: 1 is the highest, TERM the lowest."""


@dataclass(frozen=True)
class Document:
    """A page, a chapter, a scene, some entries of a dictionary, or a file of code."""

    name: str
    """The package and the path in it, or what the text is called."""

    paragraphs: tuple[Paragraph, ...]

    group: str = ""
    """What is held out together, such as the translations of one chapter; empty where that is the document itself."""

    code: bool = False

    @property
    def text(self) -> str:
        """The paragraphs with an empty line between them."""
        return "\n\n".join(paragraph.text for paragraph in self.paragraphs)

    @property
    def held_with(self) -> str:
        """`group`, or the name where there is none."""
        return self.group or self.name


def words(text: str) -> list[str]:
    """The words of a text in small letters, without punctuation: what texts are compared by."""
    return re.findall(r"\w+", text.lower())


def pieces(document: Document, longest: int = LONGEST) -> Iterator[Document]:
    """A document in parts of at most `longest` characters, or one paragraph; a part does not end with a heading."""
    if len(document.text) <= longest:
        yield document
        return
    parts: list[list[Paragraph]] = [[]]
    size = 0
    for is_heading, run in groupby(document.paragraphs, key=lambda paragraph: paragraph.kind == "heading"):
        for number, paragraph in enumerate(run):
            # The first heading of a run may begin a part; what follows a heading stays with it.
            may_break = number == 0 if is_heading else not parts[-1] or parts[-1][-1].kind != "heading"
            if parts[-1] and may_break and size + len(paragraph.text) > longest:
                parts.append([])
                size = 0
            parts[-1].append(paragraph)
            size += len(paragraph.text) + 2
    for number, part in enumerate(parts, 1):
        yield replace(document, name=f"{document.name} ({number})", paragraphs=tuple(part))


def without_empty_sections(paragraphs: list[Paragraph]) -> list[Paragraph]:
    """The paragraphs without headings that nothing stands under."""
    kept: list[Paragraph] = []
    for paragraph in reversed(paragraphs):
        follows = kept[-1] if kept else Paragraph("", "heading")
        above = follows.level < TERM if paragraph.level == TERM else follows.level <= paragraph.level
        if paragraph.kind != "heading" or follows.kind != "heading" or not above:
            kept.append(paragraph)
    return kept[::-1]
