"""transformers models and tokenizers from a checkpoint folder, whole or not at all."""

import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase
from transformers.initialization import no_init_weights

from minitron.errors import MinitronError
from minitron.files import read_json, refuse_pointer, require_file
from minitron.foreign import silenced, told
from minitron.model.checkpoint import Checkpoint
from minitron.model.configs import (
    CHOOSE_OTHERS,
    CORRECT_IT,
    refusals,
    require_head,
    spec_if_known,
    transformers_config,
    vocabulary_of,
    whole_model,
)
from minitron.model.dequantised import open_as_plain
from minitron.model.families.nesting import PROJECTOR
from minitron.model.finite import require_finite
from minitron.model.layerwise import LayerwiseModel
from minitron.model.spec import ModelSpec
from minitron.model.tensor_map import held, memory_name, tied_names
from minitron.model.text_growth import require_bounded, require_bounded_file

_TOKENIZERS: Final = ("tokenizer.json", "tokenizer.model", "vocab.json")
"""Files of which a tokenizer has one."""

GENERATION: Final = "generation_config.json"

DTYPES: Final[dict[str, torch.dtype]] = {"bf16": torch.bfloat16, "fp32": torch.float32}


def default_device() -> torch.device:
    """The first CUDA device where there is one, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def find_device(name: str | None) -> torch.device:
    """The device of that name, as torch spells it; the default one for None.

    Raises MinitronError where there is no such device."""
    if name is None:
        return default_device()
    try:
        device = torch.device(name)
    except RuntimeError:
        raise MinitronError(f"{name!r} is no device; write cpu, cuda or cuda:1.") from None
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise MinitronError(f"there is no GPU {name} here; give no device or cpu.")
    return device


def told_of_software(dtype: str, device: torch.device) -> str | None:
    """What to tell a user whose model is to compute in `dtype`, of DTYPES, on a CPU without instructions for that; None
    where there is nothing to tell."""
    if device.type != "cpu" or DTYPES[dtype] != torch.bfloat16:
        return None
    knows: bool = torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
    if not knows or torch.ops.mkldnn._is_mkldnn_bf16_supported():
        return None
    return "This CPU has no instructions for bf16: --dtype fp32 takes twice the memory and a fraction of the time."


def load_model(
    folder: Path, *, dtype: torch.dtype = torch.bfloat16, device: torch.device | None = None
) -> PreTrainedModel:
    """The model in `folder` in eval mode; of a model that also sees or hears the language model alone, and of quantised
    weights what they stand for.

    Raises MinitronError where a key is missing, unexpected or of another shape than the config says: transformers
    would fill such a weight at random and go on.  So it does for a model without an output layer."""
    spec, checkpoint = spec_if_known(folder), Checkpoint(folder)
    if spec is not None:
        spec, checkpoint = open_as_plain(folder, spec)
    generation = _generation_config(folder)
    if spec is not None:
        require_head(spec, folder)
        checkpoint.check(spec)
    if spec is not None and (spec.is_inside or spec.family.blocks):
        model = _language_model(folder, spec, dtype, device or default_device())
        model.generation_config = generation or model.generation_config
        return _running(model, folder)
    config, failures = transformers_config(folder, spec), list[MinitronError]()
    with refusals(CORRECT_IT.format(folder)), _first_of(failures):
        with torch.device("meta"), no_init_weights():
            architecture = type(AutoModelForCausalLM.from_config(config, trust_remote_code=False))
        # Read by us: transformers would map the files, and one that became shorter then would end the process.
        model, info = architecture.from_pretrained(
            None,
            config=config,
            state_dict={
                header.stored or name: _Stored(checkpoint, name, failures)
                for name, header in checkpoint.headers.items()
            },
            dtype=dtype,
            output_loading_info=True,
            trust_remote_code=False,
            use_safetensors=True,
            ignore_mismatched_sizes=True,  # told of below, by name
            key_mapping=None if spec is None else _renamed(spec, checkpoint),
        )
    unexpected = sorted(set(info["unexpected_keys"]) - _left_over(spec, info["unexpected_keys"]))
    bad: dict[str, Any] = {
        "missing": sorted(info["missing_keys"]),
        "unexpected": unexpected,
        "mismatched": sorted(str(key) for key in info["mismatched_keys"]),
    }
    for kind, keys in bad.items():
        if keys:
            raise MinitronError(
                f"{folder}: {len(keys)} {kind} weights, the first {keys[0]}; "
                "the checkpoint does not fit its config.json."
            )
    for name, tensor in model.state_dict().items():
        require_finite(folder, name, tensor)
    model.name_or_path = model.config.name_or_path = str(folder)
    model.generation_config = generation or model.generation_config
    model.requires_grad_(False)
    return _running(model.to(device or default_device()).eval(), folder)


def _running(model: PreTrainedModel, folder: Path) -> PreTrainedModel:
    """The model; raises MinitronError where transformers has built it and cannot run it, which two tokens show before
    hours of work: many a setting is read at the first pass.  In float64, which checks compute in, experts cannot be
    multiplied at once, and no model is tried."""
    if model.dtype == torch.float64:
        return model
    tokens = torch.zeros((1, 2), dtype=torch.long, device=model.device)
    with told(f"transformers cannot run the model of {folder}", "correct its config.json"), torch.no_grad():
        model(input_ids=tokens, use_cache=False)
    return model


def _generation_config(folder: Path) -> GenerationConfig | None:
    """What generation_config.json says, where there is one.  Raises MinitronError where transformers does not read it:
    it would blame config.json for it."""
    file = folder / GENERATION
    if not file.exists() and not file.is_symlink():
        return None
    if not isinstance(read_json(file), dict):
        raise MinitronError(f"{file} holds no JSON object; copy it again or remove it.")
    with told(f"transformers cannot read {file}", "correct or remove it"):
        return GenerationConfig.from_pretrained(folder, local_files_only=True)


class _Stored:
    """A tensor in a file, which transformers reads when it comes to it."""

    def __init__(self, checkpoint: Checkpoint, name: str, failures: list[MinitronError]) -> None:
        """What keeps it from being read is added to `failures`: transformers wraps it in words of its own."""
        self._checkpoint, self._name, self._failures = checkpoint, name, failures

    def __getitem__(self, place: Any) -> Tensor:
        try:
            return self._checkpoint.read(self._name)[place]
        except MinitronError as error:
            self._failures.append(error)
            raise


@contextmanager
def _first_of(failures: list[MinitronError]) -> Iterator[None]:
    """Raise the first of what was added to `failures` while the block ran, in the place of what it raised."""
    try:
        yield
    finally:
        if failures:
            raise failures[0] from None


def _renamed(spec: ModelSpec, checkpoint: Checkpoint) -> dict[str, str]:
    """A regular expression of a stored name -> the name in memory, of tensors outside layers that have one of the
    family's other spellings: transformers knows the current ones alone."""
    found = {}
    for name, header in checkpoint.headers.items():
        if spec.builds(name):
            rule, index = spec.find(name)
            if "layer" not in index and name != memory_name(rule, index):
                found[f"^{re.escape(header.stored or name)}$"] = memory_name(rule, index)
    return found


def _language_model(folder: Path, spec: ModelSpec, dtype: torch.dtype, device: torch.device) -> PreTrainedModel:
    """The language model of a larger model, whose class transformers would fill at random from such a folder, or one of
    layers that differ, whose stored names it does not know."""
    source = LayerwiseModel(folder, spec, dtype=dtype, device=device)
    source.load(lambda name: None)
    return source.model


def _left_over(spec: ModelSpec | None, names: Iterable[str]) -> set[str]:
    """Those of the tensors for which transformers builds nothing, as it should: the multi-token-prediction block, and
    what the family's table passes over."""
    if spec is None:
        return set()
    block = {one.name for one in spec.expected() if one.is_mtp}
    return {name for name in names if name in block or spec.extra(name) is not None}


def require_buildable(folder: Path, spec: ModelSpec) -> None:
    """Raise MinitronError where transformers does not build the model of `folder`'s config.json, or builds one whose
    tensors are not those of `spec`.  Nothing is loaded: the model is built on the meta device."""
    config = transformers_config(folder, spec, CHOOSE_OTHERS)
    with refusals(CHOOSE_OTHERS), torch.device("meta"), no_init_weights():
        model = AutoModelForCausalLM.from_config(config, trust_remote_code=False)
        model.tie_weights()
        around = whole_model(folder).state_dict() if spec.is_inside else {}
    state = once(model.state_dict(keep_vars=True))
    wanted = {one.name: one.shape for one in held(spec)}
    built = {name: tuple(tensor.shape) for name, tensor in state.items()}
    beside = {one.name: one.shape for one in spec.expected() if one.kind == PROJECTOR}
    built |= {name: tuple(tensor.shape) for name, tensor in around.items() if name in beside}
    wanted |= beside
    for name in sorted((wanted.keys() | built.keys()) - tied_names(spec).keys()):
        if wanted.get(name) != built.get(name):
            raise MinitronError(
                f"transformers builds {name} with the shape {built.get(name)} from the new config.json, but the pruned "
                f"tensor has {wanted.get(name)}; choose other sizes."
            )


def once(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of a state_dict whose variables are kept, each under the first of its names: blocks that layers share
    are there several times."""
    seen: dict[int, str] = {}
    return {name: tensor for name, tensor in state.items() if seen.setdefault(id(tensor), name) == name}


def build_model(folder: Path, *, dtype: torch.dtype = torch.float32) -> PreTrainedModel:
    """A model of the architecture of `folder`'s config.json with fresh random weights."""
    config = transformers_config(folder, spec_if_known(folder))
    return AutoModelForCausalLM.from_config(config, dtype=dtype, trust_remote_code=False)


def load_tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    """The tokenizer in `folder`; raises MinitronError where there is none, or none that transformers reads."""
    if not any((folder / name).is_file() for name in _TOKENIZERS):
        raise MinitronError(f"{folder} holds no tokenizer; copy the tokenizer files of the original model into it.")
    for file in folder.iterdir():
        if file.name in _TOKENIZERS or file.name.startswith(("tokenizer", "special_tokens_map", "added_tokens")):
            require_file(file)
            refuse_pointer(file)
    require_bounded_file(folder)
    spec = spec_if_known(folder) if (folder / "config.json").is_file() else None
    config = None if spec is None else transformers_config(folder, spec)
    remedy = "copy the tokenizer files of the original model into it"
    with told(f"the tokenizer in {folder} cannot be read", remedy), silenced():
        try:
            tokenizer = AutoTokenizer.from_pretrained(
                folder, config=config, local_files_only=True, trust_remote_code=False
            )
        except (ValueError, OSError) as error:
            if "trust_remote_code" not in str(error):
                raise
            raise MinitronError(
                f"the tokenizer in {folder} is Python code of the model's own (auto_map), which Minitron never runs; "
                "choose a model whose tokenizer transformers has itself."
            ) from None
    require_bounded(tokenizer, folder)
    with told(f"the tokenizer in {folder} does not work", remedy):
        _try_out(tokenizer)
    return tokenizer


def _try_out(tokenizer: PreTrainedTokenizerBase) -> None:
    """Do once what commands do after long work: a tokenizer may be read well and fail then."""
    ids = tokenizer("A word, and 1 more.", add_special_tokens=False)["input_ids"]
    tokenizer.decode(ids)
    known = tokenizer.get_vocab()
    ends = [] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id]
    if not known or not all(isinstance(one, int) for one in [*ids, *ends, *known.values()]):
        raise ValueError("its tokens are not numbered")


def require_same_tokenizer(student: Path, teacher: Path) -> None:
    """Raise MinitronError unless both folders' tokenizers map the same text to the same ids."""
    one, other = load_tokenizer(student), load_tokenizer(teacher)
    if one.get_vocab() != other.get_vocab():
        raise MinitronError(
            f"{student} and {teacher} have different tokenizers ({len(one)} and {len(other)} tokens); "
            "distillation and KL compare logits, so both must share one vocabulary."
        )


def require_embeddings(folder: Path, *ids: NDArray[Any]) -> None:
    """Raise MinitronError where one of these token ids lies beyond the embeddings of the model in `folder`: a
    tokenizer may have more tokens, as long as no text has them."""
    size = vocabulary_of(folder)
    highest = max((int(one.max()) for one in ids if one.size), default=-1)
    if isinstance(size, int) and highest >= size:
        raise MinitronError(
            f"the tokenizer gives the token id {highest} and the model in {folder} has {size} embeddings; "
            "use the tokenizer that the model was trained with."
        )
