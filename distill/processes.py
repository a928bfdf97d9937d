"""What the processes of one run do together: the only place that talks to torch.distributed.

With one process everything here is the identity.  Whoever starts several (torchrun) has initialised the process group.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from minitron.errors import MinitronError


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
                f"{sequences} sequences a step cannot be shared evenly by {self.world_size} processes; "
                "change --batch-tokens."
            )

    def share(self, sequences: int) -> slice:
        """Which of `sequences` this process works on."""
        return slice(self.rank, sequences, self.world_size)

    def sum(self, value: Tensor) -> Tensor:
        """The sum of everyone's `value`, the same on every process."""
        if self.world_size > 1:
            torch.distributed.all_reduce(value)
        return value

    def sum_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        """Give every process the sum of all gradients."""
        if self.world_size > 1:
            for parameter in parameters:
                if parameter.grad is None:
                    parameter.grad = torch.zeros_like(parameter)
                torch.distributed.all_reduce(parameter.grad)

    def wait(self) -> None:
        """Go on when all processes have come here."""
        if self.world_size > 1:
            torch.distributed.barrier()
