"""The tests that are marked `gpu`, in a process of their own.  Part `tests` of gpu.py."""

from __future__ import annotations

import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator
from pathlib import Path

from gpu_setting import Row, Setting

ROOT = Path(__file__).parent.parent


def tests(setting: Setting) -> Iterator[Row]:
    """How many passed, failed and were skipped; raises RuntimeError where one failed, or pytest did not run them."""
    report = setting.work / "tests.xml"
    command = [sys.executable, "-m", "pytest", "-m", "gpu", "-p", "no:cacheprovider", f"--junitxml={report}"]
    command += ["-c", str(ROOT / "pyproject.toml"), "--rootdir", str(ROOT), str(setting.tests)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    print(done.stdout, done.stderr, flush=True)
    if not report.is_file() or done.returncode not in (0, 1):
        told = (done.stderr.strip() or done.stdout.strip()).splitlines()
        raise RuntimeError(f"pytest ended with {done.returncode}: {told[-1] if told else 'it said nothing'}")
    cases = list(ElementTree.parse(report).getroot().iter("testcase"))
    failed = [_name(case) for case in cases if case.find("failure") is not None or case.find("error") is not None]
    skipped = [case for case in cases if case.find("skipped") is not None]
    reasons = sorted({(case.find("skipped").get("message") or "") for case in skipped})  # type: ignore[union-attr]
    yield Row("passed", len(cases) - len(failed) - len(skipped), "tests")
    yield Row("failed", len(failed), "tests", ", ".join(failed))
    yield Row("skipped", len(skipped), "tests", "; ".join(reasons))
    if failed:
        raise RuntimeError(f"{len(failed)} of {len(cases)} tests failed: {', '.join(failed)}")


def _name(case: ElementTree.Element) -> str:
    return f"{case.get('classname', '').rpartition('.')[2]}::{case.get('name')}"
