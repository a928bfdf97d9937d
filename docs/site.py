"""A hook of MkDocs (mkdocs.yml): pages that stand outside docs/, pages made from the code, and links among them.

Documents link to one another as files of the repository, so that they can be read there too.  For the site a link to
another page becomes the link to that page, and one to a file that is no page, such as an example, becomes its name.
"""

import posixpath
import re
from pathlib import Path
from typing import Any, Final

from commands import commands_page
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files

ROOT: Final = Path(__file__).parent.parent

PAGES: Final = {
    "index.md": "README.md",
    "project/results.md": "benchmarks/RESULTS.md",
    "project/changelog.md": "CHANGELOG.md",
    "project/contributing.md": "CONTRIBUTING.md",
    "project/security.md": "SECURITY.md",
    "project/provenance.md": "minitron/builtin/PROVENANCE.md",
}
"""A page of the site -> the document outside docs/ that it is."""

_LINK: Final = re.compile(r"(!?\[)((?:[^][]|\[[^][]*\])*)\]\((?!\w+:|#)([^)#\s]+)(#[^)\s]*)?\)")
"""Text, target and anchor of a link to a file."""


def on_files(files: Files, config: Any) -> Files:
    """Add the pages that do not stand in docs/."""
    for page, document in PAGES.items():
        files.append(File.generated(config, page, content=(ROOT / document).read_text(encoding="utf-8")))
    files.append(File.generated(config, "reference/commands.md", content=commands_page()))
    return files


def on_page_markdown(markdown: str, page: Any, files: Files, **_: Any) -> str:
    """Turn links to files of the repository into links to pages."""
    return _LINK.sub(lambda found: _link(found, page.file.src_uri, files), markdown)


def _link(found: re.Match[str], page: str, files: Files) -> str:
    opening, text, target, anchor = found.groups(default="")
    document = PAGES.get(page, f"docs/{page}")
    path = posixpath.normpath(posixpath.join(posixpath.dirname(document), target))
    here = {document: name for name, document in PAGES.items()}.get(path, path.removeprefix("docs/"))
    if files.get_file_from_path(here) is not None and (path.startswith("docs/") or here in PAGES):
        return f"{opening}{text}]({posixpath.relpath(here, posixpath.dirname(page) or '.')}{anchor})"
    if (ROOT / path).exists():
        return text if text.startswith("`") else f"`{text}`"
    raise PluginError(f"{document}: the link to {target} leads nowhere")
