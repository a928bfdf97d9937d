"""RESULTS.md, to which the benchmarks add their sections."""

import re
from pathlib import Path

from minitron.files import write_text

RESULTS = Path(__file__).with_name("RESULTS.md")


def write_section(path: Path, section: str) -> None:
    """Put `section` into the Markdown file, in the place of the one with the same heading if there is one."""
    text = path.read_text(encoding="utf-8") if path.exists() else "# Results\n"
    heading = section.splitlines()[0]
    parts = re.split(r"(?m)^(?=## )", text)
    kept = [part for part in parts if not part.startswith(heading + "\n")]
    write_text(path, "\n".join(part.strip() + "\n" for part in [*kept, section]))
