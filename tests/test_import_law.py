"""Arrows go downwards only, and the distribution carries every package."""

import subprocess
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
TOP = ("minitron", "importance", "distill", "judge", "pipeline", "cli")
CONTRACTS = {contract["name"]: contract for contract in PROJECT["tool"]["importlinter"]["contracts"]}


def test_the_contracts_are_kept() -> None:
    command = Path(sys.executable).with_name("lint-imports")
    done = subprocess.run([command, "--no-cache"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout
    for name in CONTRACTS:
        assert f"{name} KEPT" in done.stdout


def test_the_contracts_name_every_package_and_every_room() -> None:
    assert set(PROJECT["tool"]["importlinter"]["root_packages"]) == set(TOP)
    assert CONTRACTS["the house: arrows only downwards"]["layers"] == [
        "cli",
        "pipeline",
        "importance | distill | judge",
        "minitron",
    ]
    # What has rooms has a contract for them, which leaves none of them out; circles are looked for everywhere.
    for name in TOP:
        if any(file.parent.name != name for file in (ROOT / name).rglob("__init__.py")):
            assert CONTRACTS[f"the rooms of {name}: arrows only downwards"]["exhaustive"]
    assert set(CONTRACTS["no circles"]["ancestors"]) == set(TOP)


def test_every_package_is_distributed() -> None:
    found = {
        ".".join(file.parent.relative_to(ROOT).parts) for name in TOP for file in (ROOT / name).rglob("__init__.py")
    }
    packages = PROJECT["tool"]["setuptools"]["packages"]
    assert found <= set(packages) and len(packages) == len(set(packages))
    # Others are folders of data, whose files setuptools takes for those of a package.
    assert all(name in PROJECT["tool"]["setuptools"]["package-data"] for name in set(packages) - found)


def test_every_file_in_a_package_is_distributed() -> None:
    data = PROJECT["tool"]["setuptools"]["package-data"]
    for name in PROJECT["tool"]["setuptools"]["packages"]:
        folder = ROOT.joinpath(*name.split("."))
        carried = {file for pattern in data.get(name, []) for file in folder.glob(pattern)}
        present = {file for file in folder.rglob("*") if file.is_file() and "__pycache__" not in file.parts}
        inner = {file for file in present if any(is_named(parent) for parent in below(file, folder))}
        left = {file for file in present - inner - carried if file.suffix != ".py"}
        assert not left, f"no pattern of package-data carries {left}"


def is_named(folder: Path) -> bool:
    """Whether a folder stands among the packages itself."""
    return ".".join(folder.relative_to(ROOT).parts) in PROJECT["tool"]["setuptools"]["packages"]


def below(file: Path, folder: Path) -> list[Path]:
    """The folders between `file` and `folder`, which is left out."""
    return [parent for parent in file.parents if parent != folder and parent.is_relative_to(folder)]


def test_every_module_stands_in_a_package() -> None:
    for name in TOP:
        for file in (ROOT / name).rglob("*.py"):
            assert (file.parent / "__init__.py").is_file(), f"{file.parent} has no __init__.py"


def test_only_show_prints() -> None:
    printing = [
        str(file.relative_to(ROOT))
        for name in TOP
        for file in (ROOT / name).rglob("*.py")
        if " print(" in file.read_text(encoding="utf-8")
    ]
    # app.py tells of errors, before and after everything else.
    assert set(printing) <= {"cli/app.py", "cli/show.py"}
