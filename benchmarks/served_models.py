"""The checkpoints of `make serve`, each made with minitron's own commands in the ordinary environment."""

import re
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from smollm2 import convert, find_gguf, minitron
from transformers import GraniteMoeHybridConfig, PretrainedConfig, Qwen3Config

from minitron import builtin
from minitron.cut.magnitude import weight_magnitude
from minitron.cut.plan import make_plan
from minitron.cut.prune import prune
from minitron.cut.scores import Scores
from minitron.files import new_folder, read_json, scratch, write_json
from minitron.model.checkpoint import Checkpoint
from minitron.model.loading import load_tokenizer
from minitron.model.spec import read_spec

PUZZLE_CONFIG = Path(__file__).with_name("puzzle_config.py")
CODE = "configuration_nemotron_h_puzzle.py"
CONTEXT = 512
SCORING = ("--samples", 8, "--sequence-length", 128, "--layer-scores", "none")
ROUNDING = ("--samples", 16, "--sequence-length", 256)
TOKENS = 4096
TRAINING = ("--tokens", TOKENS, "--batch-tokens", 1024, "--sequence-length", 256, "--learning-rate", 1e-4)
SMOLLM2 = "SmolLM2-135M"
PRUNED = f"{SMOLLM2}, pruned by 20 %"
DISTILLED = f"{PRUNED}, distilled"
HYBRID = "dense hybrid, cut from the built-in model"


@dataclass(frozen=True)
class Served:
    """A checkpoint, most of them a row of the table."""

    make: Callable[[Path, Path], None]
    """Makes it: of the work folder, as the folder to write."""

    after: str = ""
    """Whose checkpoint must be there first."""

    row: bool = True
    """Whether it is served."""

    refused: str = ""
    """Of what vLLM refuses, a part of what it says."""

    flags: tuple[str, ...] = ()
    """What vLLM is told beside the line that `minitron plan` prints."""


def _smollm2(work: Path, output: Path) -> None:
    convert(find_gguf(work), output)


def pruned(source: str | Path, *options: object) -> Callable[[Path, Path], None]:
    """With what is left refitted, as prune does by itself."""

    def make(work: Path, output: Path) -> None:
        folder = work / folder_of(source) if isinstance(source, str) else source
        scores = output.with_suffix(".safetensors")
        if not scores.exists():
            minitron("score", folder, "--data", builtin.CALIBRATION, *SCORING, "-o", scores)
        minitron("prune", folder, "--scores", scores, *options, "-o", output)

    return make


def _distilled(student: str, teacher: str) -> Callable[[Path, Path], None]:
    def make(work: Path, output: Path) -> None:
        held_out = ("--validation-sequences", 2, "--validate-every", TOKENS)
        data = ("--data", builtin.DISTILL, *TRAINING, *held_out)
        minitron("distill", work / folder_of(student), "--teacher", work / folder_of(teacher), *data, "-o", output)

    return make


def _quantised(source: str, form: str, *options: object) -> Callable[[Path, Path], None]:
    """Rounded with feedback, on calibration text."""

    def make(work: Path, output: Path) -> None:
        data = ("--data", builtin.CALIBRATION, *ROUNDING)
        minitron("quantize", work / folder_of(source), "--format", form, *data, *options, "-o", output)

    return make


def by_layer(source: str | Path, sizes: dict[str, dict[int, int]]) -> Callable[[Path, Path], None]:
    """Cut by its weights' magnitudes, with the config class that vLLM asks for (benchmarks/puzzle_config.py)."""

    def make(work: Path, output: Path) -> None:
        folder = work / folder_of(source) if isinstance(source, str) else source
        spec = read_spec(folder)
        none, every = Scores({}, {}, spec.fingerprint, ""), tuple(range(len(spec.layers)))
        plan = make_plan(spec, {}, every, none, by_layer=sizes, fallback=weight_magnitude(Checkpoint(folder), spec))
        with scratch(output) as partial:
            prune(folder, plan, partial / "cut")
            shutil.copyfile(PUZZLE_CONFIG, partial / "cut" / CODE)
            config = read_json(partial / "cut" / "config.json")
            config["auto_map"] = {"AutoConfig": f"{Path(CODE).stem}.NemotronHPuzzleConfig"}
            write_json(partial / "cut" / "config.json", config)
            (partial / "cut").rename(output)

    return make


def _copied(source: Path) -> Callable[[Path, Path], None]:
    def make(work: Path, output: Path) -> None:
        output.symlink_to(source, target_is_directory=True)

    return make


def random(config: PretrainedConfig) -> Callable[[Path, Path], None]:
    """A model of random weights, with the built-in model's tokenizer."""

    def make(work: Path, output: Path) -> None:
        from transformers import AutoModelForCausalLM

        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(config, trust_remote_code=False).to(torch.bfloat16)
        with new_folder(output) as folder:
            model.save_pretrained(folder)
            load_tokenizer(builtin.MODEL).save_pretrained(folder)

    return make


TINY: dict[str, Any] = {
    "vocab_size": 2048,
    "hidden_size": 256,
    "num_hidden_layers": 4,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
    "max_position_embeddings": 2048,
    "initializer_range": 0.06,
    "tie_word_embeddings": True,
}
QWEN3 = Qwen3Config(**TINY, intermediate_size=768, head_dim=32)
GRANITE = GraniteMoeHybridConfig(
    **TINY,
    layer_types=["mamba", "attention", "mamba", "mamba"],
    intermediate_size=128,
    shared_intermediate_size=256,
    num_local_experts=8,
    num_experts_per_tok=2,
    mamba_n_heads=16,
    mamba_d_head=32,
    mamba_n_groups=1,
    mamba_d_state=32,
    mamba_expand=2,
    mamba_chunk_size=64,
    position_embedding_type="nope",
)

MODELS: dict[str, Served] = {
    SMOLLM2: Served(_smollm2),
    PRUNED: Served(pruned(SMOLLM2, "--set", "intermediate_size=1024"), SMOLLM2),
    DISTILLED: Served(_distilled(PRUNED, SMOLLM2), PRUNED),
    f"{SMOLLM2}, int8": Served(_quantised(SMOLLM2, "int8"), SMOLLM2),
    f"{SMOLLM2}, int4": Served(_quantised(SMOLLM2, "int4"), SMOLLM2),
    f"{PRUNED}, int4": Served(_quantised(PRUNED, "int4"), PRUNED),
    HYBRID: Served(pruned(builtin.MODEL, "--pattern", "MM*-MM*-M", "--budget", "64MiB", "--context", CONTEXT)),
    f"{HYBRID}, int8": Served(_quantised(HYBRID, "int8"), HYBRID),
    # vLLM's CPU kernel for int4 takes rows in multiples of 32, which those of this in_proj are not.
    f"{HYBRID}, int4 but for Mamba": Served(_quantised(HYBRID, "int4", "--keep", "ssm=bf16"), HYBRID),
    f"{HYBRID}, MLPs of 320 and 512": Served(
        by_layer(HYBRID, {"intermediate_size": {3: 320, 7: 512}}), HYBRID, flags=("--trust-remote-code",)
    ),
    "qwen3, random": Served(random(QWEN3), row=False),
    "qwen3, random, pruned": Served(pruned("qwen3, random", "--set", "intermediate_size=512"), "qwen3, random"),
    "granitemoehybrid, random": Served(random(GRANITE), row=False),
    "granitemoehybrid, random, pruned": Served(
        pruned("granitemoehybrid, random", "--set", "num_local_experts=6"), "granitemoehybrid, random"
    ),
    "built-in model, hybrid with relu2 experts": Served(_copied(builtin.MODEL), refused="is_act_and_mul"),
}
"""Row -> how its checkpoint is made.  A row more is a line here."""


def folder_of(name: str) -> str:
    """The folder's name in the work folder."""
    return re.sub(r"[^a-z0-9.]+", "-", name.lower()).strip("-")


def checkpoint(work: Path, name: str) -> Path:
    """The row's checkpoint, made where it is not there."""
    row, folder = MODELS[name], work / folder_of(name)
    if row.after:
        checkpoint(work, row.after)
    if not folder.exists():
        row.make(work, folder)
    return folder
