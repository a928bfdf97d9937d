"""Communication between the processes of one run: the only module that uses torch.distributed.

With one process everything here is the identity.  Under torchrun `joined` makes the process group.
"""

import os
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Final

import torch
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor

from minitron.errors import MinitronError

_PATIENCE: Final = timedelta(hours=4)
"""How long one waits for the others: they may have more of a teacher's cache to write, or a drift to measure."""

_LOST: Final = re.compile(r"closed by peer|reset by peer|Broken pipe|gloo/transport")
"""What gloo says, in a plain RuntimeError, of a process that is gone."""


@dataclass(frozen=True)
class Processes:
    """This process among its equals."""

    rank: int = 0
    """Its number; process 0 writes files and shows progress."""

    world_size: int = 1
    """How many there are."""

    @property
    def is_first(self) -> bool:
        """Whether this one writes files."""
        return self.rank == 0

    def require_share(self, sequences: int) -> None:
        """Raise MinitronError unless `sequences` can be dealt out evenly."""
        if sequences % self.world_size:
            raise MinitronError(
                f"{sequences} sequences per step cannot be split evenly over {self.world_size} "
                "processes; change --batch-tokens."
            )

    def share(self, sequences: int) -> slice:
        """Which of `sequences` this process works on."""
        return slice(self.rank, sequences, self.world_size)

    def sum(self, value: Tensor) -> Tensor:
        """The sum of everyone's `value`, the same on every process."""
        if self.world_size > 1:
            torch.distributed.all_reduce(value)
        return value

    def shard(self, root: nn.Module, layers: Iterable[nn.Module]) -> None:
        """Deal the parameters of `root` out to all processes (FSDP2): a layer's are whole while it runs, the others of
        `root` while `root` does.  Gradients are averaged over processes."""
        if self.world_size > 1:
            for module in [*layers, root]:
                fully_shard(module)

    def collect(self, root: nn.Module) -> None:
        """Deal out again what a pass without a way back has left whole."""
        if isinstance(root, FSDPModule):
            root.reshard()

    def gather(self, tensor: Tensor) -> Tensor:
        """The whole of a tensor of which each process has a part; all of them must ask."""
        return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor

    def wait(self) -> None:
        """Go on when all processes have come here."""
        if self.world_size > 1:
            torch.distributed.barrier()


def own_part(tensor: Tensor) -> Tensor:
    """What this process holds of a tensor, in the same memory."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


@contextmanager
def joined(device: str | None = None) -> Iterator[tuple[Processes, str | None]]:
    """(this process among those that torchrun started, its device); where it was not started so, one process alone.

    Each process takes the GPU of its number on its machine and talks by NCCL, or by gloo on CPUs.  The group ends with
    the block.  Raises MinitronError where all of them are to use one GPU, and in those that lose another one."""
    if not torch.distributed.is_torchelastic_launched():
        yield Processes(), device
        return
    if device not in (None, "cpu", "cuda"):
        raise MinitronError(
            f"under torchrun every process needs its own device, not {device}; give --device cuda or cpu."
        )
    on_gpu = device != "cpu" and torch.cuda.is_available()
    if on_gpu:
        device = f"cuda:{os.environ['LOCAL_RANK']}"
        torch.cuda.set_device(device)
    torch.distributed.init_process_group("nccl" if on_gpu else "gloo", timeout=_PATIENCE)
    processes = Processes(torch.distributed.get_rank(), torch.distributed.get_world_size())
    try:
        yield processes, device
    except RuntimeError as error:
        if not isinstance(error, torch.distributed.DistError) and not _LOST.search(str(error)):
            raise
        raise MinitronError(
            f"process {processes.rank} of {processes.world_size} lost another, which had ended or could not be "
            "reached; read what that one says and start all of them again."
        ) from error
    finally:
        torch.distributed.destroy_process_group()
