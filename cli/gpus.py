"""`minitron gpus`: the GPUs that --gpu knows.

The document of --json: {"gpus": [{"name", "usable_GiB", "bandwidth_GB_per_s", "bf16_TFLOP_per_s", "fp8_TFLOP_per_s",
"nvfp4_TFLOP_per_s", "compute_capability", "unified_memory", "source"}, ...]}; what is not known is null.
"""

from cli import show
from cli.options import JsonOption


def command(as_json: JsonOption = False) -> None:
    """List the GPUs that --gpu knows: usable memory, bandwidth, speed."""
    from minitron.memory.gpus import GPUS

    if as_json:
        show.document(
            {
                "gpus": [
                    {
                        "name": gpu.name,
                        "usable_GiB": gpu.usable_GiB,
                        "bandwidth_GB_per_s": gpu.bandwidth,
                        "bf16_TFLOP_per_s": gpu.bf16,
                        "fp8_TFLOP_per_s": gpu.fp8,
                        "nvfp4_TFLOP_per_s": gpu.nvfp4,
                        "compute_capability": None if gpu.capability is None else ".".join(map(str, gpu.capability)),
                        "unified_memory": gpu.unified,
                        "source": gpu.source,
                    }
                    for gpu in GPUS.values()
                ]
            }
        )
        return
    columns = ["GPU", "usable GiB", "GB/s", "BF16 TFLOP/s", "FP8", "NVFP4", "capability"]
    rows: list[list[show.Cell]] = [
        [
            gpu.name,
            f"{gpu.usable_GiB:.2f}",
            gpu.bandwidth,
            gpu.bf16,
            gpu.fp8,
            gpu.nvfp4,
            None if gpu.capability is None else ".".join(map(str, gpu.capability)),
        ]
        for gpu in GPUS.values()
    ]
    show.table("GPUs for --gpu; any other one by its usable memory: --gpu 22.06GiB", columns, rows)
