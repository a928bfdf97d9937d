"""The text of a page of HTML documentation: headings, prose and code, without navigation, tables and marks.

Needs lxml.
"""

import re
import textwrap
from dataclasses import dataclass, field
from typing import Any, Final

from corpus_documents import TERM, Paragraph

DROPPED_TAGS: Final = frozenset(
    {"script", "style", "nav", "footer", "form", "aside", "button", "select", "svg", "math", "noscript", "template"}
    | {"title", "head", "figure", "iframe", "object", "audio", "video", "hr", "img", "input", "label", "textarea"}
)

DROPPED: Final = frozenset(
    # Sphinx and its themes
    {"sphinxsidebar", "related", "headerlink", "linenos", "toctree-wrapper", "rst-footer-buttons", "viewcode-link"}
    | {"mobile-nav", "breadcrumbs", "wy-breadcrumbs", "wy-nav-side", "wy-nav-top", "sphinxsidebarwrapper", "toctree-l1"}
    # DocBook, Publican, Texinfo, AsciiDoc, mdBook
    | {"navheader", "navfooter", "toc", "docnav", "revhistory", "legalnotice", "htmltoc", "footnotes"}
    | {"Contents_element", "contents", "shortcontents", "nav-panel", "menu-bar", "nav-chapters", "menu", "indexterm"}
    | {"index-entry", "summary-letter", "copiable-link", "search-wrapper", "copyright", "remark"}
    | {"figure", "informalfigure", "screenshot", "mediaobject"}
    # Apache, SQLite, LibreOffice, Drupal, and pages of their own
    | {"page-header", "path", "quickview", "bottomlang", "toplang", "langs", "footer", "banner", "nosearch", "up"}
    | {"howtoget", "relatedtopics", "embedded", "book-navigation", "page-links", "prevnext", "nav", "navigation"}
)
"""Classes, ids and roles of elements that say where else to go, or repeat what stands elsewhere."""

DROPPED_DIVISIONS: Final = frozenset({"header"})
"""Classes and ids that name navigation on a division, but a part of the text on another element."""

HEADINGS: Final = {f"h{level}": level for level in range(1, 7)} | {"dt": TERM}
"""Level by tag."""

BLOCKS: Final = frozenset(
    {"p", "div", "section", "article", "main", "body", "html", "ul", "ol", "dl", "li", "dd", "blockquote"}
    | {"details", "summary", "center", "header", "address", "caption", "fieldset", "menu"}
    | {"table", "tbody", "thead", "tr", "td", "th"}
)

FEW: Final = 80
"""Characters in a cell, on average, below which a table is data and not a layout."""

MOST_LINKED: Final = 0.6
"""Share of a paragraph's characters in links above which it is navigation."""


@dataclass
class _Page:
    """What has been read of a page."""

    paragraphs: list[Paragraph] = field(default_factory=list)
    text: list[str] = field(default_factory=list)
    linked: int = 0
    """Characters of `text` that are in links."""

    mark: str = ""
    """What the next paragraph begins with."""

    def add(self, text: str | None, in_link: bool) -> None:
        if text:
            self.text.append(re.sub(r"[ \t\r\n\f]+", " ", text))
            self.linked += len(text.strip()) if in_link else 0

    def end(self, level: int = 0) -> None:
        """Close the paragraph, if one is open."""
        lines = (" ".join(line.split()) for line in "".join(self.text).split("\n"))
        text = "\n".join(line for line in lines if line)
        linked, self.text, self.linked = self.linked, [], 0
        if level:
            text = " ".join(text.split()).rstrip("¶§⚓ ")
        if not text or (not level and linked > MOST_LINKED * len(text)):
            return
        self.paragraphs.append(Paragraph(text, "heading", level) if level else Paragraph(self.mark + text))
        self.mark = ""

    def verbatim(self, text: str) -> None:
        self.end()
        self.mark = ""
        text = textwrap.dedent(text.replace("\r", "").replace("\xa0", " ").expandtabs(8)).strip("\n").rstrip()
        if text.strip():
            self.paragraphs.append(Paragraph("\n".join(line.rstrip() for line in text.split("\n")), "verbatim"))


def html_paragraphs(data: bytes) -> list[Paragraph]:
    """The paragraphs of a page, in UTF-8 or else Windows-1252."""
    from lxml import etree
    from lxml import html as parser

    text = decoded(data)
    if not text.strip():
        return []
    # A string must not declare an encoding.
    text = re.sub(r"^\s*<\?xml[^>]*\?>", "", text)
    try:
        body = parser.document_fromstring(text).find("body")
    except etree.ParserError:  # nothing but comments
        return []
    page = _Page()
    if body is not None:
        _walk(body, page, in_link=False)
        page.end()
    return page.paragraphs


def decoded(data: bytes) -> str:
    """UTF-8, or the encoding that older pages are in where it is not that."""
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError:
        return data.decode("cp1252", errors="replace")


def _walk(element: Any, page: _Page, in_link: bool) -> None:
    """Read an element, without the text that follows it in its parent."""
    tag = element.tag
    if tag in HEADINGS:
        page.end()
        page.mark = ""
        _inside(element, page, in_link)
        page.end(HEADINGS[tag])
    elif tag == "pre":
        page.verbatim("".join(element.itertext()))
    elif tag == "br":
        page.text.append("\n")
    elif tag in BLOCKS:
        page.end()
        if tag == "li":
            page.mark = "- "
        _inside(element, page, in_link)
        page.end()
        if tag == "li":
            page.mark = ""
    else:
        _inside(element, page, in_link or (tag == "a" and element.get("href") is not None))


def _inside(element: Any, page: _Page, in_link: bool) -> None:
    page.add(element.text, in_link)
    for child in element:
        if not _is_dropped(child):
            _walk(child, page, in_link)
        page.add(child.tail, in_link)


def _is_dropped(element: Any) -> bool:
    tag = element.tag
    if not isinstance(tag, str) or tag in DROPPED_TAGS:
        return True  # comments and processing instructions have no name
    names = {*(element.get("class") or "").split(), element.get("id"), element.get("role")}
    if not names.isdisjoint(DROPPED) or (tag == "div" and not names.isdisjoint(DROPPED_DIVISIONS)):
        return True
    return tag == "table" and _is_data(element)


def _is_data(table: Any) -> bool:
    texts = [" ".join("".join(cell.itertext()).split()) for cell in table.iter("td", "th")]
    filled = [len(text) for text in texts if text]
    return not filled or sum(filled) < FEW * len(filled)
