"""GPUS: what software can really use of a GPU, which is less than the box says."""

import difflib
import re
from dataclasses import dataclass
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

    def __post_init__(self) -> None:
        if self.usable_GiB <= 0:
            raise MinitronError(f"the GPU {self.name} has no memory; give a size such as 22.06GiB.")

    @property
    def usable(self) -> int:
        """usable_GiB in bytes."""
        return round(self.usable_GiB * GiB)


# Where nobody has read a GPU's total off torch, it is nvidia-smi's less 0.35 to 0.85 GiB (B300, GB200).
GPUS: Final[dict[str, Gpu]] = {
    gpu.name: gpu
    for gpu in (
        Gpu("A10G", 22.06, 600, 70, None, None, (8, 6)),
        Gpu("A10", 22.06, 600, 125, None, None, (8, 6)),
        Gpu("L4", 22.03, 300, 121, 242, None, (8, 9)),
        Gpu("L40S", 44.4, 864, 362.05, 733, None, (8, 9)),
        Gpu("T4", 14.56, 320, 65, None, None, (7, 5)),
        Gpu("V100-16GB", 15.77, 900, 125, None, None, (7, 0)),
        Gpu("V100-32GB", 31.73, 900, 125, None, None, (7, 0)),
        Gpu("A100-40GB-SXM", 39.49, 1555, 312, None, None, (8, 0)),
        Gpu("A100-80GB-SXM", 79.15, 2039, 312, None, None, (8, 0)),
        Gpu("H100-80GB-SXM", 79.18, 3350, 989, 1978, None, (9, 0)),
        Gpu("H100-80GB-PCIe", 79.18, 2000, 756.5, 1513, None, (9, 0)),
        Gpu("H200", 139.8, 4800, 989, 1978, None, (9, 0)),
        Gpu("GH200-96GB", 94.5, 4000, 989, 1978, None, (9, 0)),
        Gpu("B200", 178.35, 7700, 2250, 4500, 9000, (10, 0)),
        Gpu("B300", 268.0, 7750, 2250, 4500, 14000, (10, 3)),
        Gpu("GB200", 184.3, 8000, 2500, 5000, 10000, (10, 0)),
        Gpu("GB300", 276.62, 8000, 2500, 5000, 15000, (10, 3)),
        Gpu("RTX 3090", 23.56, 936, 71, None, None, (8, 6)),
        Gpu("RTX 4090", 23.64, 1008, 165.2, 330.3, None, (8, 9)),
        Gpu("RTX 5090", 31.36, 1792, 209.5, 419, 1676, (12, 0)),
        Gpu("RTX 6000 Ada", 47.4, 960, 364.2, 728.5, None, (8, 9)),
        Gpu("RTX PRO 6000 Blackwell", 94.97, 1792, 467.8, 935.6, 1871.2, (12, 0)),
        Gpu("DGX Spark GB10", 119.63, 273, 125, 250, 500, (12, 1), unified=True),
        Gpu("Jetson AGX Orin 64GB", 61.4, 204.8, 43, None, None, (8, 7), unified=True),
        Gpu("Jetson AGX Thor", 122.8, 273, 258.5, 517, 1035, (11, 0), unified=True),
    )
}
"""name -> GPU."""


def find_gpu(text: str) -> Gpu:
    """The GPU of that name, or one of which only the usable memory is known: `A10G`, `rtx 4090`, `22.06GiB`.

    Capitals, spaces and hyphens do not matter, and a part of a name is enough where it is one GPU's alone.  Raises
    MinitronError for any other name, with the nearest."""
    names = {_plain(name): name for name in GPUS}
    wanted = _plain(text)
    if wanted in names:
        return GPUS[names[wanted]]
    # A size needs its unit: 4090 is a name.
    if re.fullmatch(r"[\d.,]+[kmgt]i?b", wanted):
        return Gpu(text.strip(), parse_bytes(text) / GiB)
    meant = [name for plain, name in names.items() if wanted and wanted in plain]
    if len(meant) == 1:
        return GPUS[meant[0]]
    if not meant:
        # H1000 means H100-80GB-SXM: what stands before the hyphen is what people type.
        spelled = {**{_plain(name.partition("-")[0]): name for name in GPUS}, **names}
        meant = [spelled[plain] for plain in difflib.get_close_matches(wanted, spelled, n=1, cutoff=0.0)]
    raise MinitronError(
        f"no GPU is called {text!r}; did you mean {' or '.join(meant)}, or a GPU's usable memory, such as 22.06GiB?"
    )


def _plain(text: str) -> str:
    return re.sub(r"[\s_-]", "", text).casefold()
