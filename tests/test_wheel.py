"""The wheel: it holds every file of the packages, and what is installed from it runs without the checkout."""

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGES = ("minitron", "importance", "distill", "judge", "pipeline", "cli")

DEMO = """
import sys
from dataclasses import replace
from pathlib import Path

import minitron
from cli import demo
from minitron import builtin

assert Path(minitron.__file__).is_relative_to(sys.argv[1]), minitron.__file__
builtin.DISTILL = builtin.CALIBRATION
demo.SEQUENCE_LENGTH, demo.BATCH_TOKENS = 64, 256
demo.SCORING = replace(demo.SCORING, samples=2, sequence_length=64, layers="fast", refit=False)
demo.SEARCHING = replace(demo.SEARCHING, evaluate=0, finalists=0)
demo.EVALUATION = replace(demo.EVALUATION, samples=2, sequence_length=64, batch_size=2, speed=False)
demo.command(Path("run"), tokens=256)
"""
"""`minitron demo` with less text, fewer steps and no measurements: all its steps and all files that it needs."""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built as `pip wheel .` builds it, by the setuptools that is here."""
    pytest.importorskip("setuptools", minversion="77", reason="pyproject.toml needs setuptools 77")
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    source.mkdir()
    # Of a copy, as setuptools leaves build/ and *.egg-info in its source.
    for name in (*PACKAGES, "pyproject.toml", "README.md", "LICENSE"):
        (source / name).symlink_to(ROOT / name)
    build = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "--no-index", "-q"]
    subprocess.run([*build, "-w", str(folder), str(source)], check=True, timeout=300)
    (built,) = folder.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What it installs, without what it depends on: that is heavy, and here already."""
    target = tmp_path_factory.mktemp("installed")
    install = [sys.executable, "-m", "pip", "install", "--no-deps", "--no-index", "-q", "--target", str(target)]
    subprocess.run([*install, str(wheel)], check=True, timeout=300)
    return target


def test_every_file_of_the_packages_is_in_the_wheel(wheel: Path) -> None:
    there = {
        str(file.relative_to(ROOT))
        for package in PACKAGES
        for file in (ROOT / package).rglob("*")
        if file.is_file() and "__pycache__" not in file.parts
    }
    with zipfile.ZipFile(wheel) as packed:
        names = {name for name in packed.namelist() if ".dist-info/" not in name}
    assert names == there
    assert {name.rpartition(".")[2] for name in names} >= {
        "py",
        "toml",
        "json",
        "css",
        "js",
        "safetensors",
        "txt",
        "md",
    }


def call(installed: Path, cwd: Path, *arguments: str) -> str:
    """What Python prints with the installed packages first, in a folder where no checkout is."""
    environment = os.environ | {"PYTHONPATH": str(installed), "OMP_NUM_THREADS": "1"}
    ran = subprocess.run(
        [sys.executable, *arguments], cwd=cwd, env=environment, capture_output=True, text=True, timeout=600
    )
    assert ran.returncode == 0, ran.stderr
    return ran.stdout


def test_the_command_runs_from_the_wheel(installed: Path, tmp_path: Path) -> None:
    script = str(installed / "bin" / "minitron")
    assert call(installed, tmp_path, script, "--version").startswith("minitron ")
    model = str(installed / "minitron" / "builtin" / "model")
    told = call(installed, tmp_path, script, "plan", model, "--budget", "9MiB", "--context", "2048", "-o", "report")
    assert "It does not fit" in told
    assert (tmp_path / "report/report.html").exists()


@pytest.mark.slow
def test_the_demo_runs_from_the_wheel(installed: Path, tmp_path: Path) -> None:
    told = call(installed, tmp_path, "-c", DEMO, str(installed))
    assert "The compressed model: run/distilled" in told
    assert (tmp_path / "run/distilled/model.safetensors").exists()
