"""Which documents and paragraphs are decent text, which repeat others, and which stand in held-out text.

A filter tells why something is left out, in the words that the report counts it under.
"""

import hashlib
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from typing import Final

from corpus_documents import Document, Paragraph, without_empty_sections, words

LETTERS: Final = 0.75
"""Least share of letters among the characters of a paragraph of prose that are no spaces; of code half is enough."""

LETTERS_OF_CODE: Final = 0.5

FOREIGN: Final = 0.1
"""Share of letters beyond ASCII above which a paragraph is not English."""

WORD_LENGTHS: Final = (2.5, 9.0)
"""Least and greatest mean length of a paragraph's words: shorter are symbols, longer are names of functions."""

LINES: Final = 60
"""Lines of a verbatim paragraph above which it is a listing or a log."""

WIDEST: Final = 160
"""Characters in a line of one."""

SHORT: Final = 8
"""Words below which a paragraph of prose may repeat."""

REPEATS: Final = 20
"""Times that a short paragraph is taken from one source: beyond, it is part of the page's frame."""

SENTENCE: Final = 12
"""Words from which a paragraph counts as running text."""

LEAST_WORDS: Final = 80
"""Words of running text in a document."""

RUNNING: Final = 0.6
"""Least share of a document's words that stand in running text: the rest are lists, indexes, tables of symbols."""

STOP_WORDS: Final = frozenset(
    {"the", "of", "and", "to", "in", "a", "is", "that", "for", "it", "as", "with", "be", "on", "by", "this", "are"}
    | {"or", "not", "from", "at", "an", "was", "which", "you", "if", "can", "have", "has", "will", "he", "his", "i"}
    | {"but", "they", "all", "we", "so", "no", "when", "one", "there", "more", "do", "her", "my", "what", "she", "him"}
    | {"your", "their", "its", "any", "may"}
)
"""The commonest words of English: about half of what is written in it."""

STOPPED: Final = 0.25
"""Least share of a document's running text that are STOP_WORDS."""

VERBATIM: Final = 0.6
"""Share of a page's characters in verbatim paragraphs above which it is a listing."""

LEAST_LINES: Final = 30
"""Lines of a file of code."""

FRAMES: Final = 3
"""Documents of one source that may begin with the same heading: beyond, it is the name of the whole."""

UNSEEN: Final = {ord(character): None for character in "\u00ad\u200b\u200c\u200d\u2060\ufeff"}
"""Places where a word may be broken, and the like."""

MOJIBAKE: Final = re.compile(
    "[\ufffd\ue000-\uf8ff\x00-\x08\x0b\x0e-\x1f\x80-\x9f]|[ÃÂ][\u0080-\u00bf]|\u00e2[\u0080-\u00bf\u20ac\u201a\u201e]"
)
"""Characters that stand for none, and UTF-8 that was read as another encoding."""

MARKUP: Final = re.compile(
    r"</?(?:p|div|span|a|br|li|td|tr|table|img|ul|em|strong)\b[^>\n]*>|&(?:lt|gt|amp|nbsp|quot|#\d+);"
)
"""HTML in prose, where it was not read as HTML."""


def paragraph_flaw(paragraph: Paragraph) -> str:
    """Why a paragraph is no decent text; empty where it is."""
    text = paragraph.text
    if MOJIBAKE.search(text):
        return "mojibake"
    if paragraph.kind == "heading":
        return ""
    letters = sum(character.isalpha() for character in text)
    seen = sum(not character.isspace() for character in text)
    if paragraph.kind == "verbatim":
        lines = text.split("\n")
        if len(lines) > LINES or max(map(len, lines)) > WIDEST:
            return "listing"
        return "few letters" if letters < LETTERS_OF_CODE * seen else ""
    if letters < LETTERS * seen:
        return "few letters"
    if sum(character.isalpha() and not character.isascii() for character in text) > FOREIGN * letters:
        return "not English"
    found = words(text)
    mean = sum(map(len, found)) / len(found)
    if len(found) >= SHORT and not WORD_LENGTHS[0] <= mean <= WORD_LENGTHS[1]:
        return "odd words"
    return "markup" if MARKUP.search(text) else ""


def document_flaw(document: Document) -> str:
    """Why a document is no decent text; empty where it is."""
    if document.code:
        lines = document.text.split("\n")
        if len(lines) < LEAST_LINES:
            return "too short"
        return "few letters" if paragraph_letters(document.text) < LETTERS_OF_CODE else ""
    prose = [words(paragraph.text) for paragraph in document.paragraphs if paragraph.kind == "prose"]
    running = [word for found in prose if len(found) >= SENTENCE for word in found]
    if len(running) < LEAST_WORDS:
        return "too short"
    if len(running) < RUNNING * sum(map(len, prose)):
        return "lists"
    if sum(word in STOP_WORDS for word in running) < STOPPED * len(running):
        return "not English"
    verbatim = sum(len(paragraph.text) for paragraph in document.paragraphs if paragraph.kind == "verbatim")
    return "listing" if verbatim > VERBATIM * len(document.text) else ""


def paragraph_letters(text: str) -> float:
    """The share of letters among the characters that are no spaces."""
    seen = [character for character in text if not character.isspace()]
    return sum(map(str.isalpha, seen)) / max(1, len(seen))


@dataclass
class Repeats:
    """What has been taken, so that nothing is taken twice.

    Paragraphs are compared by a hash of their words.  Documents are compared by shingles, runs of `shingle` words, of
    which those stay whose hash is a multiple of `sampled` (A. Z. Broder, On the resemblance and containment of
    documents, 1997): a document repeats an earlier one if that holds `contained` of its shingles."""

    shingle: int = 5
    sampled: int = 8
    contained: float = 0.6
    _paragraphs: set[bytes] = field(default_factory=set)
    _short: Counter[tuple[str, str]] = field(default_factory=Counter)
    _beginnings: Counter[tuple[str, str]] = field(default_factory=Counter)
    _shingles: dict[bytes, list[int]] = field(default_factory=lambda: defaultdict(list))
    _documents: int = 0

    def is_frame(self, beginning: Paragraph, source: str) -> bool:
        """Whether the first paragraph of a document is a heading that has begun FRAMES of its source already."""
        self._beginnings[source, beginning.text] += 1
        return beginning.kind == "heading" and self._beginnings[source, beginning.text] > FRAMES

    def is_new(self, paragraph: Paragraph, source: str) -> bool:
        """Whether a paragraph has not been taken before; it is taken then.  Headings may repeat."""
        found = words(paragraph.text)
        if paragraph.kind == "heading":
            return True
        if len(found) < SHORT:
            self._short[source, " ".join(found)] += 1
            return self._short[source, " ".join(found)] <= REPEATS
        key = _digest(" ".join(found))
        if key in self._paragraphs:
            return False
        self._paragraphs.add(key)
        return True

    def take(self, document: Document) -> bool:
        """Whether no earlier document holds most of this one; it is one of them then."""
        own = self._sample(document)
        shared = Counter(number for key in own for number in self._shingles.get(key, ()))
        if own and max(shared.values(), default=0) >= self.contained * len(own):
            return False
        for key in own:
            self._shingles[key].append(self._documents)
        self._documents += 1
        return True

    def _sample(self, document: Document) -> set[bytes]:
        found = words(document.text)
        runs = (" ".join(found[at : at + self.shingle]) for at in range(len(found) - self.shingle + 1))
        return {key for run in runs if (key := _digest(run))[0] % self.sampled == 0}


def _digest(text: str) -> bytes:
    return hashlib.blake2b(text.encode(), digest_size=8).digest()


RUN: Final = 13
"""Words in a row that held-out text and training text must not share (T. B. Brown et al., Language Models are Few-Shot
Learners, 2020, appendix C)."""


def runs_of_words(texts: Iterable[str], run: int = RUN) -> set[str]:
    """All runs of `run` words of some texts."""
    return {found for text in texts for found in _runs(words(text), run)}


def _runs(found: list[str], run: int) -> Iterator[str]:
    return (" ".join(found[at : at + run]) for at in range(len(found) - run + 1))


def without_runs(document: Document, held_out: set[str], run: int = RUN) -> tuple[Document, int]:
    """The document without the paragraphs that hold one of the runs, and how many those were."""
    kept = [each for each in document.paragraphs if held_out.isdisjoint(_runs(words(each.text), run))]
    return replace(document, paragraphs=tuple(kept)), len(document.paragraphs) - len(kept)


def cleaned(
    document: Document, source: str, repeats: Repeats, held_out: set[str], counts: Counter[str]
) -> Document | None:
    """The decent and new paragraphs of a document, or None where too little of it is; counts what is left out, and
    why."""
    kept = []
    for number, paragraph in enumerate(document.paragraphs):
        paragraph = replace(paragraph, text=paragraph.text.translate(UNSEEN))
        flaw = "" if document.code else paragraph_flaw(paragraph)
        if number == 0 and repeats.is_frame(paragraph, source):
            flaw = "repeated"
        if not flaw and not repeats.is_new(paragraph, source):
            flaw = "repeated"
        if flaw:
            counts[f"paragraphs: {flaw}"] += 1
        else:
            kept.append(paragraph)
    document, found = without_runs(replace(document, paragraphs=tuple(kept)), held_out)
    counts["paragraphs: held out"] += found
    document = replace(document, paragraphs=tuple(without_empty_sections(list(document.paragraphs))))
    flaw = document_flaw(document)
    if not flaw and not repeats.take(document):
        flaw = "near duplicate"
    if flaw:
        counts[f"documents: {flaw}"] += 1
        return None
    return document
