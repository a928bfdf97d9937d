"""`minitron inspect`: layers, sizes and parameters of a checkpoint, from config.json and the safetensors headers.

The document of --json, sizes in bytes:

    {"model_type", "family", "layers": "MEM*-", "sizes": {axis: size},
     "differing": [{"layers": [1, 3], "kind": "moe", "config": {key: value}}],
     "parameters": {"total", "active", "mtp", "by_component": {heading: count}}, "extras": {what: count},
     "weight_bytes", "quantisation": "fp8 in blocks of 128 x 128" or null}

`layers` has one letter per layer (M Mamba, * attention, - MLP, E mixture of experts); `differing` has the layers that
differ in size from others of their kind, and what config.json says of them; of such sizes `sizes` has the largest.
`total`, `active` and `by_component` are without the multi-token-prediction block, which `mtp` counts, and without the
tensors beside the model's own, which `extras` names: a copy of a tied embedding, a vision tower.  `weight_bytes` are
those of all tensors in the folder; of a config.json alone, those of `total` in the config's dtype, or in the formats
that it names where it is that of a quantised checkpoint.  With --list it is
{"types": {model_type: summary}, "unsupported": {model_type: why}}.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from cli import show
from cli.options import MODEL_HELP, JsonOption
from minitron.units import format_bytes, format_parameters
from pipeline.inspection import Inspection
from pipeline.inspection import inspect as inspected

if TYPE_CHECKING:
    from minitron.model.spec import ModelSpec

_MAP_WIDTH: Final = 60
_MOST_NAMED: Final = 4

OptionalModelArgument = Annotated[Path | None, typer.Argument(help=MODEL_HELP, metavar="MODEL", show_default=False)]
ListOption = Annotated[bool, typer.Option("--list", help="List the model types that Minitron supports.")]


def command(model: OptionalModelArgument = None, list_types: ListOption = False, as_json: JsonOption = False) -> None:
    """Describe a checkpoint: layers, sizes, parameters, bytes. Reads no weights. With --list: the model types."""
    if list_types and model is not None:
        raise typer.BadParameter("--list prints all model types; leave MODEL out", param_hint="--list")
    if list_types:
        _print_types(as_json=as_json)
        return
    if model is None:
        raise typer.BadParameter("give one, or --list for the model types", param_hint="MODEL")
    found = inspected(model, note=show.note)
    if as_json:
        show.document(found.to_json())
    else:
        _print(found)


def _print_types(*, as_json: bool) -> None:
    from minitron.model.families import UNSUPPORTED, summaries

    if as_json:
        show.document({"types": summaries(), "unsupported": UNSUPPORTED})
    else:
        show.table("Model types", ["model_type", "layers (models)"], [list(row) for row in summaries().items()])


def _print(found: Inspection) -> None:
    spec, description, origin = found.spec, found.to_json(), found.origin
    layers, parameters = description["layers"], description["parameters"]
    kinds = ", ".join(f"{layers.count(letter)} {kind} ({letter})" for letter, kind in _kinds(spec).items())
    show.line(f"{description['model_type']} (family {description['family']})")
    show.line(f"{len(layers)} layers: {kinds}")
    for start in range(0, len(layers), _MAP_WIDTH):
        show.line(f"  {layers[start : start + _MAP_WIDTH]}")
    show.line("")
    rows: list[list[show.Cell]] = [[axis, spec.key(axis), _size(spec, axis)] for axis in spec.sizes]
    show.table("Sizes", ["axis", "in config.json", "size"], rows)
    _print_differing(description["differing"])
    rows = [[name, count, f"{count / parameters['total']:.1%}"] for name, count in parameters["by_component"].items()]
    rows.append(["total", parameters["total"], format_parameters(parameters["total"])])
    if parameters["active"] != parameters["total"]:
        rows.append(["active per token", parameters["active"], format_parameters(parameters["active"])])
    if parameters["mtp"]:
        rows.append(["multi-token prediction, not in total", parameters["mtp"], format_parameters(parameters["mtp"])])
    for what, count in description["extras"].items():
        rows.append([f"{what}, not in total", count, format_parameters(count)])
    show.table("Parameters", ["component", "parameters", "share"], rows)
    weight_bytes = description["weight_bytes"]
    if found.quantisation:
        show.line(f"Quantised: {found.quantisation}")
    show.paragraph(f"Weights: {format_bytes(weight_bytes)} ({weight_bytes:,} bytes), {origin}")


def _size(spec: "ModelSpec", axis: str) -> int | str:
    """A size, or from what to what it goes where layers differ in it."""
    sizes = [own[axis] for own in spec.own_sizes.values() if axis in own]
    return f"{min(sizes):,} to {max(sizes):,}" if sizes else spec.sizes[axis]


def _print_differing(differing: list[dict[str, Any]]) -> None:
    """The layers of one kind that differ from each other."""
    keys = list(dict.fromkeys(key for one in differing for key in one["config"]))
    rows = [
        [one["kind"], _numbers(one["layers"]), *(one["config"].get(key) for key in keys)]
        for one in sorted(differing, key=lambda one: str(one["kind"]))
    ]
    if rows:
        show.table("Layers that differ", ["kind", "layers", *keys], rows)


def _numbers(layers: list[int]) -> str:
    if len(layers) <= _MOST_NAMED:
        return ", ".join(map(str, layers))
    return f"{layers[0]}, {layers[1]} .. {layers[-1]} ({len(layers)} layers)"


def _kinds(spec: "ModelSpec") -> dict[str, str]:
    """letter -> kind of layer, for the kinds in the model."""
    return {letter: kind for letter, kind in spec.family.letters.items() if letter in spec.letters}
