"""Documents out of the files of packages: one function for each format.

A reader takes a file and the name it is known by, and yields its documents.  The books come from
`examples/tiny_hybrid_text.py`, which reads whole archives.
"""

import ast
import gzip
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

from corpus_documents import TERM, Document, Paragraph
from corpus_html import decoded, html_paragraphs

sys.path.append(str(Path(__file__).resolve().parents[1] / "examples"))
import tiny_hybrid_text

Reader = Callable[[Path, str], Iterator[Document]]

LARGEST_CODE: Final = 100_000
"""Bytes of a file of code, beyond which it is mostly a table."""

BATCH: Final = 3000
"""Characters of the dictionary entries that make one document."""


def read_bytes(file: Path) -> bytes:
    """What a file holds, unpacked where its name says that it is packed; dictzip is gzip."""
    data = file.read_bytes()
    return gzip.decompress(data) if file.suffix in {".gz", ".dz"} else data


def read_html(file: Path, name: str) -> Iterator[Document]:
    """A page."""
    yield Document(name, tuple(html_paragraphs(read_bytes(file))))


def read_text(file: Path, name: str) -> Iterator[Document]:
    """Plain text, such as an RFC, one line a paragraph."""
    yield Document(name, tuple(text_paragraphs(without_pages(decoded(read_bytes(file))))))


PAGE_FOOTER: Final = re.compile(r"\[Page\s+[\divxlc]+\]\s*$", re.IGNORECASE)
PAGE_HEADER: Final = re.compile(r"^(?:RFC|IEN|Internet[- ]Draft)\b.*\b(?:19|20)\d\d\s*$")
DOT_LEADER: Final = re.compile(r"(?:\. ?){5,}\s*[\divxlc]*\s*$")
GAP: Final = re.compile(r"\S(?: {3,}|\t)\S")


def without_pages(text: str) -> str:
    """A text without the footer and header of each page: the paragraph that a page break cuts is whole again."""
    kept: list[str] = []
    broken = False
    for line in text.replace("\r", "").split("\n"):
        bare = line.replace("\f", "")
        if "\f" in line or PAGE_FOOTER.search(bare) or (broken and PAGE_HEADER.match(bare.strip())):
            broken = True
            while kept and not kept[-1].strip():
                kept.pop()
            if PAGE_FOOTER.search(bare) or PAGE_HEADER.match(bare.strip()) or not bare.strip():
                continue
        elif broken and not bare.strip():
            continue
        if broken and kept and (kept[-1].rstrip().endswith((".", ":", "?", "!")) or not _goes_on(kept[-1], bare)):
            kept.append("")
        broken = False
        kept.append(bare)
    return "\n".join(kept)


def _goes_on(before: str, after: str) -> bool:
    """Whether a line can be of the same paragraph as the one before it: no deeper or shallower than it."""
    return len(before) - len(before.lstrip()) == len(after) - len(after.lstrip())


def text_paragraphs(text: str) -> Iterator[Paragraph]:
    """Paragraphs of wrapped text, unwrapped; figures, tables and tables of contents are left out."""
    for block in re.split(r"\n[ \t]*\n", text.expandtabs(8)):
        lines = [line.rstrip() for line in block.split("\n") if line.strip()]
        odd = sum(bool(GAP.search(line) or DOT_LEADER.search(line)) for line in lines)
        if lines and 4 * odd <= len(lines):
            yield Paragraph(" ".join(" ".join(lines).split()))


def read_code(file: Path, name: str) -> Iterator[Document]:
    """A file of code as one paragraph; none where it is more table than code, or no code of today's Python."""
    text = decoded(read_bytes(file)).replace("\r", "").expandtabs(8).strip("\n")
    lines = text.split("\n")
    if len(text) > LARGEST_CODE or max(map(len, lines)) > 200:
        return
    try:
        ast.parse(text)
    except (SyntaxError, ValueError):
        return
    yield Document(name, (Paragraph("\n".join(line.rstrip() for line in lines), "verbatim"),), code=True)


# Perl's plain old documentation -----------------------------------------------------------------------------------

POD_ESCAPES: Final = {"lt": "<", "gt": ">", "verbar": "|", "sol": "/"}


def read_pod(file: Path, name: str) -> Iterator[Document]:
    """A page of Perl's documentation."""
    yield Document(name, tuple(pod_paragraphs(decoded(read_bytes(file)))))


def pod_paragraphs(text: str) -> Iterator[Paragraph]:
    """The paragraphs of a POD page: perlpodspec(1)."""
    skipped = False
    mark = ""
    verbatim: list[str] = []
    for block in re.split(r"\n[ \t]*\n+", text.replace("\r", "").expandtabs(8)):
        if verbatim and not (block.startswith(" ") and block.strip()):
            yield Paragraph("\n\n".join(verbatim), "verbatim")
            verbatim = []
        command = (
            re.match(r"=([a-z]+)(\d?)\s*(.*)", block.strip(), re.DOTALL) if block.lstrip("\n")[:1] == "=" else None
        )
        if command is not None:
            skipped = command[1] == "begin" or (skipped and command[1] != "end")
            body = "" if skipped else pod_text(command[3])
            mark = ""
            if command[1] == "head" and body:
                yield Paragraph(body, "heading", int(command[2] or 1))
            elif command[1] == "item":
                mark = "- " if body in {"*", ""} or re.fullmatch(r"\d+\.?", body) else ""
                if not mark:
                    bullet = re.match(r"(?:\*|\d+\.)\s+(.*)", body, re.DOTALL)
                    yield Paragraph(f"- {bullet[1]}") if bullet else Paragraph(body, "heading", TERM)
        elif skipped or not block.strip():
            continue
        elif block.startswith(" "):
            verbatim.append("\n".join(line.rstrip() for line in block.rstrip().split("\n")))
        elif body := pod_text(block):
            yield Paragraph(mark + body)
            mark = ""
    if verbatim:
        yield Paragraph("\n\n".join(verbatim), "verbatim")


def pod_text(text: str) -> str:
    """A paragraph of POD without its formatting codes, on one line."""
    simple = re.compile(r"([A-Z])<([^<>]*)>")
    doubled = re.compile(r"([A-Z])(<{2,})\s+(.*?)\s+>{2,}", re.DOTALL)
    # What is inside of doubled brackets may hold single ones that mean nothing.
    text = doubled.sub(lambda code: code[3].replace("<", "\0").replace(">", "\1"), text)
    while (changed := simple.sub(_pod_code, text)) != text:
        text = changed
    return " ".join(text.replace("\0", "<").replace("\1", ">").split())


def _pod_code(code: re.Match[str]) -> str:
    letter, inner = code[1], code[2]
    if letter in "XZ":
        return ""
    if letter == "E":
        return POD_ESCAPES.get(inner, "").replace("<", "\0").replace(">", "\1")
    if letter == "L":
        shown, bar, _ = inner.partition("|")
        return shown if bar else shown.strip("/").replace("/", ", ").replace('"', "")
    return inner


# Dictionaries of dictd --------------------------------------------------------------------------------------------

DIGITS: Final = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/"
"""The digits of the numbers in an index: base 64, but written as numbers are and not as bytes (dictfmt(1))."""


def read_dictionary(file: Path, name: str) -> Iterator[Document]:
    """A dictd dictionary (`NAME.dict.dz` beside `NAME.index`), some neighbouring entries a document."""
    data = read_bytes(file)
    dictionary = file.name.split(".")[0]
    index = file.with_name(f"{dictionary}.index")
    marks = (*MARKS_OF_GCIDE, *MARKS) if dictionary == "gcide" else MARKS
    batch: list[Paragraph] = []
    number = 0
    for start, length in index_entries(decoded(index.read_bytes())):
        batch += entry_paragraphs(decoded(data[start : start + length]), marks)
        if sum(len(paragraph.text) for paragraph in batch) > BATCH:
            number += 1
            yield Document(f"{name} {number}", tuple(batch))
            batch = []
    yield Document(f"{name} {number + 1}", tuple(batch))


def index_entries(index: str) -> list[tuple[int, int]]:
    """(offset, length) of every entry, in the dictionary's order, without those that describe the dictionary."""
    rows = [line.split("\t") for line in index.splitlines() if not line.startswith(("00database", "00-database"))]
    return sorted({(dictd_number(row[1]), dictd_number(row[2])) for row in rows if len(row) >= 3})


def dictd_number(digits: str) -> int:
    """The number that dictd's digits stand for."""
    found = 0
    for digit in digits:
        found = 64 * found + DIGITS.index(digit)
    return found


MARKS: Final = (
    (r"\(?(?:19|20)\d\d-\d\d-\d\d\)?", ""),  # when an entry of FOLDOC changed
    (r"\[\{Jargon File\}\]", ""),
    (r"(?m)^([ \t]*)<[^<>\n]{1,60}>[ \t]", r"\1"),  # the subject of an entry of FOLDOC
    (r"[{}]", ""),  # references
)
"""What is not text in an entry, and what stands for it."""

MARKS_OF_GCIDE: Final = (
    (r"\\[^\\\n]+\\", ""),  # how a word is pronounced
    (r"\((?=[^()]*[?`\"])[^()]{1,60}\)(?=[,;])", ""),
    (r"\[[=^`']?(ae|oe|[a-z])[=^`']?\]", r"\1"),  # a letter with a mark
    (r"\[[^\[\]]*\]", ""),  # where a word is from, how it is used, and who told so
    (r"\[[^\[\]]*\]", ""),  # with another inside
)
"""The same in the Collaborative International Dictionary of English, beside the others."""


def entry_paragraphs(entry: str, marks: tuple[tuple[str, str], ...] = MARKS) -> Iterator[Paragraph]:
    """The paragraphs of an entry, unwrapped; the word stands alone or begins the first."""
    for pattern, instead in marks:
        entry = re.sub(pattern, instead, entry)
    for block in re.split(r"\n[ \t]*\n", entry):
        if text := re.sub(r" +([,.;])", r"\1", " ".join(block.split())):
            yield Paragraph(text)


# Books of whole archives -------------------------------------------------------------------------------------------

BOOKS: Final[dict[str, Callable[[Path], Iterator[tiny_hybrid_text.Document]]]] = {
    "austen": tiny_hybrid_text.austen,
    "shakespeare": tiny_hybrid_text.shakespeare,
    "web": lambda archives: tiny_hybrid_text.bible(archives, "web"),
    "bbe": lambda archives: tiny_hybrid_text.bible(archives, "bbe"),
}


def read_book(archives: Path, name: str) -> Iterator[Document]:
    """The documents of one of BOOKS, whose archive lies in the folder `archives`."""
    for found in BOOKS[name](archives):
        # Psalms in Basic English carry the verse numbers of another numbering.
        text = re.sub(r"\\+\d+:\d+\\*", "", found.text)
        paragraphs = (Paragraph(part) for block in text.split("\n\n") for part in sentences(block) if part)
        yield Document(f"{name} {found.passage}", tuple(paragraphs), group=found.passage)


def sentences(text: str, longest: int = 2000, least: int = 800) -> list[str]:
    """A paragraph in parts of `least` characters or a little more, where it is longer than `longest`.

    A chapter of the Bible is one paragraph, of which a quotation would otherwise cost all."""
    if len(text) <= longest:
        return [text.strip()]
    return [part.strip() for part in re.findall(rf"(?s).{{{least},}}?[.?!][\"')]*(?:\s|$)|.+", text)]


READERS: Final[dict[str, Reader]] = {
    "html": read_html,
    "text": read_text,
    "code": read_code,
    "pod": read_pod,
    "dictionary": read_dictionary,
    "book": read_book,
}
"""By the name that a row of SOURCES gives."""
