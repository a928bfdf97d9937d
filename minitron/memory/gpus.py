"""GPUS: the usable memory of each GPU, which is less than its nominal size, and its speed."""

import difflib
import re
from dataclasses import dataclass, replace
from typing import Final

from minitron.errors import MinitronError
from minitron.units import GiB, parse_bytes


@dataclass(frozen=True)
class Gpu:
    """One GPU, or any device of which only the memory is known."""

    name: str

    usable_GiB: float
    """The total that torch.cuda reports, before the CUDA context takes its part."""

    bandwidth: float | None = None
    """Memory bandwidth, GB/s."""

    bf16: float | None = None
    """Dense TFLOP/s in BF16; in FP16 before compute capability 8.0, which has no BF16 tensor cores."""

    fp8: float | None = None
    """Dense TFLOP/s in FP8; None where the tensor cores do not know it."""

    nvfp4: float | None = None
    """Dense TFLOP/s in NVFP4; None where the tensor cores do not know it."""

    capability: tuple[int, int] | None = None
    """CUDA compute capability."""

    unified: bool = False
    """Whether the CPU shares the memory: system and page cache take their part of it too."""

    source: str = ""
    """Where the numbers are from; empty for a device of which somebody said no more than the memory."""

    is_default: bool = False
    """Whether it is the one that is meant where what was typed names several: H100 is the SXM card."""

    note: str = ""
    """What to tell of how it was found: that a name stands for it and which others it could be."""

    def __post_init__(self) -> None:
        if self.usable_GiB <= 0:
            raise MinitronError(f"the GPU {self.name} has no memory; give a size such as 22.06GiB.")

    @property
    def usable(self) -> int:
        """usable_GiB in bytes."""
        return round(self.usable_GiB * GiB)


GPUS: Final[dict[str, Gpu]] = {
    gpu.name: gpu
    for gpu in (
        Gpu(
            "A10G",
            usable_GiB=22.06,
            bandwidth=600,
            bf16=70,
            capability=(8, 6),
            source="torch reads 22.05 to 22.06; ECC on",
        ),
        Gpu("A10", usable_GiB=22.06, bandwidth=600, bf16=125, capability=(8, 6), source="torch reads 22.06"),
        Gpu(
            "L4",
            usable_GiB=22.03,
            bandwidth=300,
            bf16=121,
            fp8=242,
            capability=(8, 9),
            source="torch reads 22.03 to 22.09",
        ),
        Gpu(
            "L40S",
            usable_GiB=44.4,
            bandwidth=864,
            bf16=362.05,
            fp8=733,
            capability=(8, 9),
            source="torch reads 44.34 to 44.52",
        ),
        Gpu("T4", usable_GiB=14.56, bandwidth=320, bf16=65, capability=(7, 5), source="torch reads 14.56 to 14.74"),
        Gpu(
            "V100-16GB",
            usable_GiB=15.77,
            bandwidth=900,
            bf16=125,
            capability=(7, 0),
            is_default=True,
            source="torch reads 15.77",
        ),
        Gpu("V100-32GB", usable_GiB=31.73, bandwidth=900, bf16=125, capability=(7, 0), source="torch reads 31.73"),
        Gpu(
            "A100-40GB-SXM",
            usable_GiB=39.49,
            bandwidth=1555,
            bf16=312,
            capability=(8, 0),
            source="torch reads 39.25 to 39.56",
        ),
        Gpu(
            "A100-80GB-SXM",
            usable_GiB=79.15,
            bandwidth=2039,
            bf16=312,
            capability=(8, 0),
            is_default=True,
            source="torch reads 79.14 to 79.33",
        ),
        Gpu(
            "H100-80GB-SXM",
            usable_GiB=79.18,
            bandwidth=3350,
            bf16=989,
            fp8=1978,
            capability=(9, 0),
            is_default=True,
            source="torch reads 79.1 to 79.33",
        ),
        Gpu(
            "H100-80GB-PCIe",
            usable_GiB=79.18,
            bandwidth=2000,
            bf16=756.5,
            fp8=1513,
            capability=(9, 0),
            source="torch reads 79.1 to 79.33; this memory inferred",
        ),
        Gpu(
            "H200",
            usable_GiB=139.8,
            bandwidth=4800,
            bf16=989,
            fp8=1978,
            capability=(9, 0),
            source="torch reads 139.72 to 139.81",
        ),
        Gpu(
            "GH200-96GB",
            usable_GiB=94.5,
            bandwidth=4000,
            bf16=989,
            fp8=1978,
            capability=(9, 0),
            source="torch reads 94.5; all but the nominal size inferred",
        ),
        Gpu(
            "B200",
            usable_GiB=178.35,
            bandwidth=7700,
            bf16=2250,
            fp8=4500,
            nvfp4=9000,
            capability=(10, 0),
            source="torch reads 178.35 to 178.36",
        ),
        Gpu(
            "B300",
            usable_GiB=268,
            bandwidth=7750,
            bf16=2250,
            fp8=4500,
            nvfp4=14000,
            capability=(10, 3),
            source="memory inferred from nvidia-smi's total",
        ),
        Gpu(
            "GB200",
            usable_GiB=184.3,
            bandwidth=8000,
            bf16=2500,
            fp8=5000,
            nvfp4=10000,
            capability=(10, 0),
            source="memory inferred from nvidia-smi's total",
        ),
        Gpu(
            "GB300",
            usable_GiB=276.62,
            bandwidth=8000,
            bf16=2500,
            fp8=5000,
            nvfp4=15000,
            capability=(10, 3),
            source="torch reads 276.62",
        ),
        Gpu(
            "RTX 3090",
            usable_GiB=23.56,
            bandwidth=936,
            bf16=71,
            capability=(8, 6),
            source="torch reads 23.55 to 23.69; TFLOP/s, with fp32 accumulation, inferred",
        ),
        Gpu(
            "RTX 4090",
            usable_GiB=23.64,
            bandwidth=1008,
            bf16=165.2,
            fp8=330.3,
            capability=(8, 9),
            is_default=True,
            source="torch reads 23.52 to 23.65; bandwidth and TFLOP/s inferred; FP8 with fp32 accumulation",
        ),
        Gpu(
            "RTX 5090",
            usable_GiB=31.36,
            bandwidth=1792,
            bf16=209.5,
            fp8=419,
            nvfp4=1676,
            capability=(12, 0),
            source="torch reads 31.36 to 31.4 on Linux; TFLOP/s inferred",
        ),
        Gpu(
            "RTX 6000 Ada",
            usable_GiB=47.4,
            bandwidth=960,
            bf16=364.2,
            fp8=728.5,
            capability=(8, 9),
            is_default=True,
            source="torch reads 47.37 to 47.54, which may be another 48 GB card's; bandwidth and TFLOP/s inferred",
        ),
        Gpu(
            "RTX PRO 6000 Blackwell",
            usable_GiB=94.97,
            bandwidth=1792,
            bf16=467.8,
            fp8=935.6,
            nvfp4=1871.2,
            capability=(12, 0),
            source="torch reads 94.97",
        ),
        Gpu(
            "DGX Spark GB10",
            usable_GiB=119.63,
            bandwidth=273,
            bf16=125,
            fp8=250,
            nvfp4=500,
            capability=(12, 1),
            unified=True,
            source="torch reads 119.18 to 119.7; TFLOP/s inferred; the 1,000 in FP4 is sparse",
        ),
        Gpu(
            "Jetson AGX Orin 64GB",
            usable_GiB=61.4,
            bandwidth=204.8,
            bf16=43,
            capability=(8, 7),
            unified=True,
            is_default=True,
            source="torch reads 61.4; bandwidth and TFLOP/s inferred",
        ),
        Gpu(
            "Jetson AGX Thor",
            usable_GiB=122.8,
            bandwidth=273,
            bf16=258.5,
            fp8=517,
            nvfp4=1035,
            capability=(11, 0),
            unified=True,
            source="torch reads 122.8; FP8 and NVFP4 inferred; the 2,070 in FP4 is sparse",
        ),
    )
}
"""name -> GPU.  What a source does not speak of is as tests/reference/gpus.json has it, which names no source either.
Where nobody has read a GPU's total off torch, it is nvidia-smi's less 0.35 to 0.85 GiB."""


_BESIDE: Final = ("nvidia", "tesla", "geforce", "hbm2", "hbm2e", "hbm3", "hbm3e")
"""Words that drivers write beside a GPU's name and that tell no two of them apart."""


def find_gpu(text: str) -> Gpu:
    """The GPU of that name, or one of which only the usable memory is known: `A10G`, `rtx 4090`, `22.06GiB`.

    Capitals, spaces and hyphens do not matter, and whole words of a name are enough.  Where they are those of several
    GPUs the default among them is meant, and its note says so.  Raises MinitronError for any other name, with the
    nearest."""
    names = {_plain(name): name for name in GPUS}
    wanted = _plain(text)
    if wanted in names:
        return GPUS[names[wanted]]
    # A size needs its unit: 4090 is a name.
    if re.fullmatch(r"[\d.,]+[kmgt]i?b", wanted):
        return Gpu(text.strip(), parse_bytes(text) / GiB)
    meant = _named(text)
    if len(meant) == 1:
        return GPUS[meant[0]]
    for name in meant:
        if GPUS[name].is_default:
            others = ", ".join(other for other in meant if other != name)
            note = f"{text.strip()} means {name} here; for another card give its whole name: {others}."
            return replace(GPUS[name], note=note)
    if not meant:
        # H1000 means H100-80GB-SXM: what stands before the hyphen is what people type.
        spelled = {**{_plain(name.partition("-")[0]): name for name in GPUS}, **names}
        meant = [spelled[plain] for plain in difflib.get_close_matches(wanted, spelled, n=1, cutoff=0.0)]
    raise MinitronError(
        f"no GPU is called {text!r}; did you mean {' or '.join(meant)}, or a GPU's usable memory, such as 22.06GiB?"
    )


def _named(text: str) -> list[str]:
    """The GPUs in whose names the words of `text` stand: side by side, else anywhere.

    Only whole words count: H20 and L40 are GPUs of their own, and not H200 and L40S."""
    words = [word for word in _words(text) if word not in _BESIDE]
    wanted = "".join(words)
    if not wanted:
        return []
    beside = [name for name in GPUS if wanted in _runs(_words(name))]
    return beside or [name for name in GPUS if set(words) <= set(_words(name))]


def _runs(words: list[str]) -> set[str]:
    return {"".join(words[i:j]) for i in range(len(words)) for j in range(i + 1, len(words) + 1)}


def _words(text: str) -> list[str]:
    """The words of a name: 80GB is 80, SXM5 is SXM."""
    words = (re.sub(r"^sxm\d$", "sxm", word) for word in re.split(r"[\s_-]+", text.casefold()) if word)
    return [re.sub(r"^(\d+)gb$", r"\1", word) for word in words]


def _plain(text: str) -> str:
    return re.sub(r"[\s_-]", "", text).casefold()
