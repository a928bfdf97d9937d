"""From a checkpoint folder to the tensors and the header of a GGUF file, by llama.cpp's own converter.

Nothing is read but headers until a tensor is written: the converter's tensors are lazy."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from minitron.errors import MinitronError
from minitron.foreign import told
from minitron.gguf.extra import converter, quiet, writer
from minitron.gguf.tokenizers import adds_end, adds_start, pre_tokenizer
from minitron.model.sources import title
from minitron.model.spec import ModelSpec

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Importance = NDArray[np.float32]

PLAIN: Final = {"f32": "ALL_F32", "f16": "MOSTLY_F16", "bf16": "MOSTLY_BF16"}
"""Types without blocks -> the converter's name of a file of it."""

_PADDED: Final = ("nemotron_h", "mamba", "mamba2", "falcon_mamba", "bamba", "granitemoehybrid")
"""Families for which the converter pads the vocabulary to a multiple of 8 or 16."""

_CONTEXT: Final = "max_position_embeddings"


def converted(staged: Path, model: Path, spec: ModelSpec, mixture: str) -> Any:
    """The converter's writer with the tensors and the header of `model`, read in `staged` (minitron.gguf.staging);
    tensors in a plain type of PLAIN, or else in fp32, to be quantised.

    Raises MinitronError where the converter does not know the model or its tokenizer."""
    import torch

    from minitron.model.loading import load_tokenizer

    conversion, gguf = converter(), writer()
    remedy = "Minitron exports what llama.cpp's converter reads; convert it by hand, or choose another model"
    with told(f"llama.cpp's converter does not take this {spec.family.name} model", remedy), quiet():
        hparams = conversion.ModelBase.load_hparams(staged, False)
        architecture = conversion.get_model_architecture(hparams, conversion.ModelType.TEXT)
        known = _adapted(conversion.get_model_class(architecture), spec)
        with torch.inference_mode():
            made = known(
                staged,
                gguf.LlamaFileType[PLAIN.get(mixture, "ALL_F32")],
                staged / "unwritten.gguf",
                model_name=title(model),
            )
            made.prepare_tensors()
            made.prepare_metadata(vocab_only=False)
        _correct(made, load_tokenizer(model), spec)
    return made.gguf_writer


def _adapted(known: Any, spec: ModelSpec) -> Any:
    """The converter's class for a model, with the pre-tokenizer read where it has none of that hash."""

    def named(self: Any, tokenizer: Any) -> str:
        try:
            found: str = known.get_vocab_base_pre(self, tokenizer)
        except NotImplementedError:
            return pre_tokenizer(self.dir_model)
        return found

    changes: dict[str, Any] = {"model_arch": known.model_arch, "get_vocab_base_pre": named}
    if spec.family.name in _PADDED:
        # Its own pads the vocabulary, not the embedding, and that of Nemotron-H always asks for a start token.
        changes["set_vocab"] = lambda self: self._set_vocab_gpt2()
    if spec.family.name == "nemotron_h":
        changes["modify_tensors"] = lambda self, data, name, layer: known.modify_tensors(
            self, data, _named(name, spec), layer
        )
    return type(known.__name__, (known,), changes)


def _correct(made: Any, tokenizer: Any, spec: ModelSpec) -> None:
    """Put right what the converter takes for granted: whether text begins with a start token, and the context."""
    header = made.gguf_writer
    if any(key.startswith("tokenizer.ggml") for key in header.kv_data[0]):
        header.add_add_bos_token(adds_start(tokenizer))
        header.add_add_eos_token(adds_end(tokenizer))
    context = spec.text.get(_CONTEXT)
    if isinstance(context, int) and context > 0:
        header.add_context_length(context)


def renamed(importance: Mapping[str, Importance], header: Any, spec: ModelSpec) -> dict[str, Importance]:
    """What is known of linears by their names in a checkpoint, by their names in the GGUF file; what the file holds
    under no such name is left out."""
    gguf = writer()
    (architecture,) = (number for number, name in gguf.MODEL_ARCH_NAMES.items() if name == header.arch)
    names = gguf.get_tensor_name_map(architecture, len(spec.layers))
    found = {}
    for name, values in importance.items():
        known = (names.get_name(one, try_suffixes=(".weight",)) for one in _spellings(name, spec))
        own = next((one for one in known if one in header.tensors[0]), None)
        if own is not None:
            found[own] = values
    return found


def _spellings(name: str, spec: ModelSpec) -> tuple[str, ...]:
    """A name as the converter may know it, which puts the experts of a layer together under names of its own."""
    own = _named(name, spec)
    experts = re.search(r"(layers\.\d+)\..*\.experts\.(\w+)\.weight$", own)
    if experts is None:
        return (own,)
    layer, part = experts.groups()
    return own, f"model.{layer}.mlp.experts.{part}.weight", f"{layer}.feed_forward.experts.{part}.weight"


def _named(name: str, spec: ModelSpec) -> str:
    """The converter knows the names of NVIDIA's Nemotron-H, not those that transformers gives in memory."""
    return re.sub(r"^model\.", "backbone.", name) if spec.family.name == "nemotron_h" else name


def set_file_type(header: Any, number: int) -> None:
    """Write into a header which mixture the file holds (`enum llama_ftype`)."""
    gguf = writer()
    if gguf.Keys.General.FILE_TYPE not in header.kv_data[0]:
        raise MinitronError("the converter wrote no file type; install the version that pyproject.toml names.")
    with quiet():
        header.add_file_type(number)
