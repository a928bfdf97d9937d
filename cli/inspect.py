"""`minitron inspect`: what a checkpoint holds, from its config.json and the headers of its safetensors files.

The document of --json, sizes in bytes:

    {"model_type", "family", "layers": "MEM*-", "sizes": {axis: size},
     "parameters": {"total", "active", "mtp", "by_component": {heading: count}}, "weight_bytes"}

`layers` has a letter a layer (M Mamba, * attention, - MLP, E mixture of experts); `total`, `active` and
`by_component` are without the multi-token-prediction block, which `mtp` counts.  `weight_bytes` are those of all
tensors in the folder; of a config.json alone, those of `total` in the config's dtype.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from cli import show
from cli.options import JsonOption, ModelArgument
from minitron.errors import MinitronError
from minitron.units import format_bytes, format_parameters

if TYPE_CHECKING:
    from minitron.model.spec import ModelSpec

_DTYPE_BYTES: Final = {"float32": 4, "bfloat16": 2, "float16": 2}
_MAP_WIDTH: Final = 60


def command(model: ModelArgument, as_json: JsonOption = False) -> None:
    """Say what a checkpoint holds: layers, sizes, parameters, bytes. Reads no weights."""
    from minitron.model.spec import read_spec

    spec = read_spec(model)
    description, origin = describe(model, spec)
    if as_json:
        show.document(description)
    else:
        _print(spec, description, origin)


def describe(model: Path, spec: "ModelSpec") -> tuple[dict[str, Any], str]:
    """The document of --json, and a few words on where `weight_bytes` comes from.

    Raises MinitronError where `model` is a folder whose safetensors headers do not fit its config.json."""
    from minitron.model.checkpoint import Checkpoint

    parameters = spec.parameters()
    mtp = parameters.mtp
    if model.is_dir():
        checkpoint = Checkpoint(model)
        checkpoint.check(spec)
        weight_bytes, origin = checkpoint.weight_bytes, "in the safetensors files"
        # transformers drops the block when it saves a model, and its config.json goes on telling of it.
        mtp = checkpoint.num_parameters - parameters.total
    else:
        dtype = str(spec.config.get("dtype") or spec.config.get("torch_dtype") or "bfloat16")
        if dtype not in _DTYPE_BYTES:
            raise MinitronError(f"{model}: dtype is {dtype!r}; it must be one of {', '.join(_DTYPE_BYTES)}.")
        weight_bytes, origin = parameters.total * _DTYPE_BYTES[dtype], f"every parameter in {dtype}"
    description = {
        "model_type": spec.config["model_type"],
        "family": spec.family.name,
        "layers": spec.letters,
        "sizes": spec.sizes,
        "parameters": {
            "total": parameters.total,
            "active": parameters.active,
            "mtp": mtp,
            "by_component": parameters.by_component,
        },
        "weight_bytes": weight_bytes,
    }
    return description, origin


def _print(spec: "ModelSpec", description: dict[str, Any], origin: str) -> None:
    layers, parameters = description["layers"], description["parameters"]
    kinds = ", ".join(f"{layers.count(letter)} {kind} ({letter})" for letter, kind in _kinds(spec).items())
    show.line(f"{description['model_type']} (family {description['family']})")
    show.line(f"{len(layers)} layers: {kinds}")
    for start in range(0, len(layers), _MAP_WIDTH):
        show.line(f"  {layers[start : start + _MAP_WIDTH]}")
    show.line("")
    show.table("Sizes", ["axis", "in config.json", "size"], [[a, spec.key(a), s] for a, s in spec.sizes.items()])
    rows: list[list[show.Cell]] = [
        [name, count, f"{count / parameters['total']:.1%}"] for name, count in parameters["by_component"].items()
    ]
    rows.append(["total", parameters["total"], format_parameters(parameters["total"])])
    if parameters["active"] != parameters["total"]:
        rows.append(["active for a token", parameters["active"], format_parameters(parameters["active"])])
    if parameters["mtp"]:
        rows.append(["multi-token prediction, beside", parameters["mtp"], format_parameters(parameters["mtp"])])
    show.table("Parameters", ["component", "parameters", "share"], rows)
    weight_bytes = description["weight_bytes"]
    show.line(f"Weights: {format_bytes(weight_bytes)} ({weight_bytes:,} bytes), {origin}")


def _kinds(spec: "ModelSpec") -> dict[str, str]:
    """letter -> kind of layer, those that the model has."""
    return {letter: kind for letter, kind in spec.family.letters.items() if letter in spec.letters}
