"""The table of option names: what each means, wherever it stands, in which group it is shown, and where it is common.

An option's name has one meaning in all commands, with which its help begins, and what it means has no other name.
Help shows the common ones; `--help-all` shows all (cli/help_text.py).  To add an option, add its row here: tests walk
every command.
"""

from dataclasses import dataclass
from typing import Final

READ: Final = "What is read"
WRITTEN: Final = "What is written"
FIT: Final = "What it must fit"
SERVED: Final = "How it is served"
FORMATS: Final = "Number formats"
CHOICE: Final = "Which architecture"
MEASURED: Final = "How candidates are measured"
SCORED: Final = "How parts are scored"
CUT: Final = "How it is cut"
TRAINED: Final = "How it is trained"
LOSS: Final = "What training minimises"
OWN: Final = "The student's own answers"
WATCHED: Final = "Validation and checkpoints"
QUALITY: Final = "What is measured"
JUDGED: Final = "Answers and judge"
REINFORCED: Final = "Reinforcement learning"
RUN: Final = "How it runs"
GENERAL: Final = "General"

GROUPS: Final = (
    *(READ, WRITTEN, FIT, SERVED, FORMATS, CHOICE, MEASURED, SCORED, CUT, TRAINED, LOSS, OWN, WATCHED),
    *(QUALITY, JUDGED, REINFORCED, RUN, GENERAL),
)
"""The groups, in the order in which help shows them."""

EVERYWHERE: Final = "*"


@dataclass(frozen=True)
class Row:
    """An option's name in all commands."""

    group: str
    """Where help shows it."""

    meaning: str
    """What it means: the words with which its help begins."""

    common: str = ""
    """The commands whose short help shows it, or `*` for all; where it is required it is always shown."""

    def is_common(self, command: str) -> bool:
        """Whether the short help of `command` shows it."""
        return self.common == EVERYWHERE or command in self.common.split()


_PLANS: Final = "plan compare prune compress"

OPTIONS: Final[dict[str, Row]] = {
    # What is read
    "--data": Row(READ, "Text", "*"),
    "--text": Row(READ, "Held-out text", "*"),
    "--teacher": Row(READ, "Teacher", "*"),
    "--recipe": Row(READ, "Training stages instead of the training options", "distill"),
    "--calibration": Row(READ, "Calibration text for scoring"),
    "--scores": Row(READ, "Scores written by `minitron score`", "plan prune compress"),
    "--plan": Row(READ, "Plan written by `minitron plan`", "prune"),
    "--prompts": Row(READ, "Prompts", "judge"),
    "--pairs": Row(READ, "Preference pairs", "*"),
    "--held-out": Row(READ, "Held-out pairs, on which the judge is tried", "*"),
    "--held-out-samples": Row(READ, "Held-out pairs to read at most"),
    "--benchmark": Row(READ, "Judge the judge instead", "judge"),
    "--answers-student": Row(READ, "Answers of the student"),
    "--answers-teacher": Row(READ, "Answers of the teacher"),
    "--dequantise": Row(READ, "Turn a quantised checkpoint into bf16"),
    "--list": Row(READ, "List the model types that Minitron supports", "*"),
    # What is written
    "--output": Row(WRITTEN, "Where to write the result", "*"),
    "--overwrite": Row(WRITTEN, "Replace the output if it exists", "*"),
    "--html": Row(WRITTEN, "Write the report as one HTML file", "*"),
    "--page": Row(WRITTEN, "Write a planner", "plan"),
    "--markdown": Row(WRITTEN, "Write the report as one Markdown file"),
    "--report": Row(WRITTEN, "Report folder to add the outcome to"),
    "--judge-output": Row(WRITTEN, "Folder for what --judge leaves"),
    "--cache": Row(WRITTEN, "File that keeps all replies"),
    "--cache-teacher": Row(WRITTEN, "Folder that caches the teacher's probabilities for a sparse loss"),
    "--work": Row(WRITTEN, "Folder for training checkpoints"),
    # What it must fit
    "--gpu": Row(FIT, "GPU name", "*"),
    "--gpu-memory": Row(FIT, "Usable memory of the GPU"),
    "--budget": Row(FIT, "Total memory", "*"),
    "--share": Row(FIT, "Share of the original memory to keep", "*"),
    "--params": Row(FIT, "Most parameters", "*"),
    "--active-params": Row(FIT, "Most parameters that a token uses"),
    "--max-latency": Row(FIT, "Most time until all sequences of --concurrency are read and answered"),
    "--min-throughput": Row(FIT, "Fewest output tokens per second of all sequences of --concurrency"),
    "--utilization": Row(FIT, "Share of the GPU's memory to use"),
    "--reserve": Row(FIT, "Memory to keep free for other uses", "plan compare"),
    "--solve": Row(FIT, "Solve for the longest context", "*"),
    # How it is served
    "--context": Row(SERVED, "Tokens per sequence that is served", "*"),
    "--concurrency": Row(SERVED, "Number of sequences at the same time", _PLANS),
    "--prompt-tokens": Row(SERVED, "Prompt tokens in the context"),
    "--engine": Row(SERVED, "Whose memory is counted", _PLANS),
    "--tp": Row(SERVED, "Tensor parallelism", "plan compare"),
    "--vision": Row(SERVED, "Memory of a vision encoder"),
    "--workspace": Row(SERVED, "Memory for activations and buffers"),
    "--mtp": Row(SERVED, "Tokens that the multi-token-prediction block drafts per step"),
    "--lora-rank": Row(SERVED, "Rank of the LoRA adapters served with the model"),
    "--loras": Row(SERVED, "Number of LoRA adapters loaded at once"),
    "--max-num-seqs": Row(SERVED, "vllm: maximum number of concurrent sequences"),
    "--max-num-batched-tokens": Row(SERVED, "vllm, llama.cpp: maximum tokens per step"),
    "--prefix-caching": Row(SERVED, "vllm: cache the states of finished prefixes"),
    "--cuda-graphs": Row(SERVED, "vllm: capture decoding in full CUDA graphs"),
    "--block-size": Row(SERVED, "vllm: tokens of the smallest block"),
    # Number formats
    "--weights": Row(FORMATS, "Number format of the weights to plan for", "plan compare"),
    "--format": Row(FORMATS, "Number format of the weights to write", "*"),
    "--keep": Row(FORMATS, "Number format of one part of the model", "quantize export"),
    "--kv": Row(FORMATS, "Number format of keys and values", "plan compare quantize"),
    "--ssm-state": Row(FORMATS, "Number format of recurrent states"),
    "--conv-state": Row(FORMATS, "Number format of Mamba convolution states"),
    "--formats": Row(FORMATS, "Let the search choose a format for each part of the model"),
    "--search-kv": Row(FORMATS, "Let the search choose the format of keys and values too"),
    "--round": Row(FORMATS, "How weights are rounded", "quantize"),
    "--scales": Row(FORMATS, "Whether the scales of a student in a format are trained"),
    "--state-rounding": Row(FORMATS, "How states are rounded"),
    "--teacher-precision": Row(FORMATS, "Number format of the teacher's linear weights"),
    "--fp8-keep": Row(FORMATS, "Parts of an FP8 teacher to keep in bf16"),
    # Which architecture
    "--set": Row(CHOICE, "Cut to this size", "*"),
    "--layers": Row(CHOICE, "Keep exactly this many layers", "*"),
    "--pattern": Row(CHOICE, "Keep exactly this layer pattern"),
    "--lattice": Row(CHOICE, "Sizes to try", "plan"),
    "--keep-attention": Row(CHOICE, "Keep at least this many attention layers"),
    "--multiple": Row(CHOICE, "Search an axis in multiples of N"),
    "--most": Row(CHOICE, "Prune at most this share of an axis"),
    "--leave": Row(CHOICE, "Do not prune this axis"),
    "--may-go": Row(CHOICE, "Drop layers of this kind only"),
    "--at-least": Row(CHOICE, "Keep at least this many layers of a kind"),
    "--at-most": Row(CHOICE, "Keep at most this many layers of a kind"),
    "--every-mix": Row(CHOICE, "Try every number of each kind of layer"),
    "--sort": Row(CHOICE, "What comes first among what fits"),
    "--top": Row(CHOICE, "Number of candidates to list", "plan"),
    "--sizes": Row(CHOICE, "One size for all layers of a kind"),
    "--stages": Row(CHOICE, "Cut layers and widths together"),
    "--steps-of": Row(CHOICE, "Share of the parameters that one cut takes, at most"),
    # How candidates are measured
    "--evaluate": Row(MEASURED, "Number of the damage model's best candidates to cut and measure", "compress"),
    "--combinations": Row(MEASURED, "Number of random architectures to measure"),
    "--objective": Row(MEASURED, "Objective to measure candidates by"),
    "--trial-text": Row(MEASURED, "Text to measure candidates on"),
    "--trial-samples": Row(MEASURED, "Samples of it to read"),
    "--finalists": Row(MEASURED, "Number of candidates with nearly equal loss to distil briefly"),
    "--finalist-tokens": Row(MEASURED, "Tokens to distil each finalist on"),
    # How parts are scored
    "--estimator": Row(SCORED, "How a channel is scored", "score"),
    "--layer-scores": Row(SCORED, "How layers are scored", "score prune compress"),
    "--layer-samples": Row(SCORED, "Samples for the iterative removal of layers"),
    "--max-dropped": Row(SCORED, "Number of layers to remove iteratively"),
    "--refit": Row(SCORED, "Collect second moments of the inputs of linear layers"),
    "--offload": Row(SCORED, "Score layer by layer", "score"),
    "--offload-folder": Row(SCORED, "Folder on disk for the hidden states of --offload"),
    # How it is cut
    "--rotate": Row(CUT, "Rotate the residual stream and keep its strongest directions"),
    "--project": Row(CUT, "Project attention heads and latent channels onto their strongest directions"),
    "--fit": Row(CUT, "Refit linear layers that lose inputs"),
    # How it is trained
    "--tokens": Row(TRAINED, "Tokens to train on", "*"),
    "--steps": Row(TRAINED, "Optimiser steps", "distill judge-train"),
    "--learning-rate": Row(TRAINED, "Peak learning rate", "*"),
    "--batch-tokens": Row(TRAINED, "Tokens per optimiser step", "distill compress"),
    "--distill-sequence-length": Row(TRAINED, "Tokens per sequence that is trained on"),
    "--minimum-learning-rate": Row(TRAINED, "Final learning rate"),
    "--warmup-steps": Row(TRAINED, "Steps of linear warm-up"),
    "--weight-decay": Row(TRAINED, "Weight decay of matrices"),
    "--gradient-clip": Row(TRAINED, "Maximum norm of the gradient"),
    "--train": Row(TRAINED, "Parameters to train"),
    "--assistant-only": Row(TRAINED, "Train on the assistant's messages only"),
    "--most-broken": Row(TRAINED, "Maximum number of broken records per source"),
    "--most-skipped": Row(TRAINED, "Maximum number of steps in a row to skip"),
    "--activation-checkpointing": Row(TRAINED, "Recompute activations in the backward pass"),
    "--compile": Row(TRAINED, "Compile layers and loss with torch.compile"),
    "--vocab-chunk": Row(TRAINED, "Vocabulary columns of the logits in memory at a time"),
    "--offload-teacher": Row(TRAINED, "Read the teacher's layers from disk"),
    "--teacher-device": Row(TRAINED, "Device of the teacher"),
    # What training minimises
    "--loss": Row(LOSS, "Divergence to minimise", "distill"),
    "--loss-kernel": Row(LOSS, "Who computes the loss"),
    "--temperature": Row(LOSS, "Softmax temperature of the loss"),
    "--lm-weight": Row(LOSS, "Weight of the next-token cross entropy"),
    "--mtp-weight": Row(LOSS, "Weight of the loss of the multi-token-prediction block"),
    "--mtp-lm-weight": Row(
        LOSS, "Weight within the loss of that block of the cross entropy of the token after the next"
    ),
    "--cosine-weight": Row(LOSS, "Weight of 1 - cosine similarity of the last hidden states"),
    "--stream-weight": Row(LOSS, "Weight of the error of the residual stream after every layer"),
    "--stream-directions": Row(LOSS, "Random directions of the residual stream to compare"),
    "--stream-norm": Row(LOSS, "What errors of the residual stream are divided by"),
    # The student's own answers
    "--on-policy": Row(OWN, "Share of sequences that the student writes itself"),
    "--on-policy-loss": Row(OWN, "Divergence on the student's own answers"),
    "--on-policy-temperature": Row(OWN, "Sampling temperature of the student's own answers"),
    "--on-policy-answer": Row(OWN, "Tokens of one of the student's own answers at most"),
    "--on-policy-endpoint": Row(OWN, "OpenAI-compatible server of the student"),
    "--on-policy-model": Row(OWN, "Name of the student at the endpoint"),
    # Validation and checkpoints
    "--validate-every": Row(WATCHED, "Steps between validations"),
    "--validation-sequences": Row(WATCHED, "Sequences of held-out text to validate on"),
    "--patience": Row(WATCHED, "Stop after this many validations in a row without a lower KL"),
    "--select": Row(WATCHED, "Weights to write to OUTPUT"),
    "--checkpoint-every": Row(WATCHED, "Steps between checkpoints"),
    "--keep-checkpoints": Row(WATCHED, "Number of newest checkpoints to keep on disk"),
    "--async-checkpoints": Row(WATCHED, "Write checkpoints in the background"),
    "--track": Row(WATCHED, "Send metrics to a tracker while training"),
    # What is measured
    "--tasks": Row(QUALITY, "lm-eval tasks", "eval"),
    "--task-limit": Row(QUALITY, "Items per task at most"),
    "--speed": Row(QUALITY, "Measure tokens per second and peak memory", "eval compress"),
    # Answers and judge
    "--judge": Row(JUDGED, "Judge", "eval judge"),
    "--turns": Row(JUDGED, "How often the judge reads", "judge-train"),
    "--instructions": Row(JUDGED, "What the judge is told"),
    "--answer-tokens": Row(JUDGED, "Tokens of an answer at most", "judge"),
    "--answer-thinking-tokens": Row(JUDGED, "Tokens that a reasoning model may think before it answers", "judge"),
    "--answer-temperature": Row(JUDGED, "Sampling temperature of the answers"),
    "--answer-top-p": Row(JUDGED, "Probability from which answers are drawn"),
    "--answer-seed": Row(JUDGED, "Seed of the answers"),
    "--judge-tokens": Row(JUDGED, "Tokens of a turn of the judge at most"),
    "--judge-thinking-tokens": Row(JUDGED, "Tokens that the judge may think before it writes a turn"),
    "--judge-temperature": Row(JUDGED, "Sampling temperature of the judge"),
    "--judge-top-p": Row(JUDGED, "Probability from which the judge's words are drawn"),
    "--judge-seed": Row(JUDGED, "Seed of the judge"),
    "--retries": Row(JUDGED, "How often a request to an endpoint is tried again"),
    "--timeout": Row(JUDGED, "Time in which an endpoint must reply"),
    # Reinforcement learning
    "--pairs-per-step": Row(REINFORCED, "Pairs per step", "*"),
    "--group-size": Row(REINFORCED, "Rollouts of one pair", "*"),
    "--updates": Row(REINFORCED, "Updates of the weights per step"),
    "--kl-weight": Row(REINFORCED, "Weight of the KL divergence from the judge before training"),
    "--clip-low": Row(REINFORCED, "How far below 1 a ratio of probabilities counts"),
    "--clip-high": Row(REINFORCED, "How far above 1 a ratio of probabilities counts"),
    "--reward-right": Row(REINFORCED, "Reward of a ruling for the better answer"),
    "--reward-wrong": Row(REINFORCED, "Reward of a ruling for the worse answer"),
    "--reward-broken": Row(REINFORCED, "Reward where a turn is not in the format"),
    "--generation-batch-size": Row(REINFORCED, "Rollouts generated together at most"),
    "--time": Row(REINFORCED, "Time after which training stops"),
    # How it runs
    "--samples": Row(RUN, "Samples to read at most", "*"),
    "--sequence-length": Row(RUN, "Tokens per sequence that is read", "score eval distill"),
    "--batch-size": Row(RUN, "Sequences per forward pass", "eval"),
    "--dtype": Row(RUN, "Number format that models compute in", "score eval distill compress"),
    "--device": Row(RUN, "Device", "*"),
    "--seed": Row(RUN, "Seed of all random choices"),
    # General
    "--json": Row(GENERAL, "Print one JSON document and nothing else", "*"),
    "--config": Row(GENERAL, "Settings from a TOML file", "*"),
    "--save-config": Row(GENERAL, "Write the settings of this command line to a TOML file", "*"),
    "--dry-run": Row(GENERAL, "Say what would be read, written and needed", "*"),
    "--progress": Row(GENERAL, "How progress is told on stderr"),
    "--debug": Row(GENERAL, "Show the traceback of any error"),
    "--help": Row(GENERAL, "Show the common options and exit", "*"),
    "--help-all": Row(GENERAL, "Show all options and exit", "*"),
}
"""Name -> what it means in every command that has it."""
