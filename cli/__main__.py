"""`python -m cli` and `torchrun -m cli distill ...`: the same as `minitron`."""

from cli.app import main

main()
