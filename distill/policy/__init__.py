"""On-policy distillation: sequences that the student wrote itself, from the prompts that it is given to who answers."""

from typing import Final

KEY: Final = "MINITRON_STUDENT_KEY"
"""The variable of the environment that may hold the key of an endpoint that serves the student."""
