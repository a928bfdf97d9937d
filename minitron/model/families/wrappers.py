"""The models that hold a language model beside what sees or hears: one row each."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from minitron.model.axes import Config, number_of, whole
from minitron.model.families.factors import factor_of
from minitron.model.families.family import Rule
from minitron.model.families.towers import object_under, tower_of
from minitron.model.families.wrapping import AROUND, Size, Wrapper

VISION: Final = "vision_config"

_AT: Final = "(model.|)"
"""What the names of modules beside the language model begin with, in memory and in older files."""

_PROJECTOR: Final = _AT + "multi_modal_projector."


def _sized(expression: str, default: str) -> Size:
    """A number in the keys of the vision tower's config, which is of the type `default` where it does not say."""

    def size(config: Config) -> int:
        tower, own = tower_of(config, VISION, default)
        return tower.value(expression, own)

    return size


def _tower(default: str, more: str = "") -> dict[str, Size]:
    """The vision tower, and with it what else is carried: `more`, in the tower's keys."""

    def size(config: Config) -> int:
        tower, own = tower_of(config, VISION, default)
        return tower.count(own) + (tower.value(more, own) if more else 0)

    return {"vision_tower": size}


def _writer(name: str, reads: str, bias: str | None = None) -> tuple[Rule, ...]:
    """A linear that writes the residual stream; `bias` as in minitron.model.families.decoders."""
    weight = Rule(f"{name}.weight", f"hidden, {reads}", "projector")
    return (weight,) if bias is None else (weight, Rule(f"{name}.bias", "hidden", "projector", when=bias))


def _two_linears(at: str, reads: str, bias: str) -> tuple[Rule, ...]:
    """Two linears, between them as many channels as the residual stream has."""
    return (
        Rule(f"{at}linear_1.weight", f"projector_ffn, {reads}", "projector"),
        Rule(f"{at}linear_1.bias", "projector_ffn", "projector", when=bias),
        *_writer(f"{at}linear_2", "projector_ffn", bias),
    )


def _vision_features(default: str) -> Size:
    """The channels that a projector reads: those of one layer of the tower, or of several side by side."""
    one = _sized("hidden_size", default)

    def size(config: Config) -> int:
        layers = config.get("vision_feature_layer")
        return one(config) * (len(layers) if isinstance(layers, list) else 1)

    return size


def _merging(config: Config) -> int:
    return number_of(config, "spatial_merge_size", 2, least=1) ** 2


def _mistral3_tower(config: Config) -> int:
    tower, own = tower_of(config, VISION, "pixtral")
    return tower.count(own) + tower.value(f"hidden_size + hidden_size*{_merging(config)}*hidden_size", own)


def _gemma4_tower(config: Config) -> int:
    return _tower("gemma4_vision")["vision_tower"](config) if config.get(VISION) else 0


def _sound(config: Config) -> Config | None:
    """The config of what hears, None in models that do not."""
    found = next((key for key in ("audio_config", "sound_config") if config.get(key) is not None), None)
    # What is absent means other than in the tower's own class.
    return None if found is None else {"attention_bias": False, **object_under(config, found)}


def _sound_size(key: str) -> Size:
    def size(config: Config) -> int:
        sound = _sound(config) or {}
        return whole(f"audio_config.{key}", sound.get(key))

    return size


def _omni_size(key: str, default: int, older: str = "") -> Size:
    """A number at the top of config.json; one under its `older` key counts where that under `key` is the default."""

    def size(config: Config) -> int:
        found = whole(key, config.get(key, default))
        return whole(older, config[older]) if found == default and config.get(older) is not None else found

    return size


_OMNI_VISION: Final = _omni_size("vision_hidden_size", 1280, "vit_hidden_size")
_OMNI_INNER: Final = _omni_size("projector_hidden_size", 4096)


def _omni_sees(config: Config) -> int:
    """RADIO, and the normalised first linear of its projector, which reads several patches side by side."""
    frames = config.get("video_temporal_patch_size", 2)
    tower, own = tower_of(config, VISION, "radio")
    width = _OMNI_VISION(config)
    read = width * int(1 / factor_of(config, "downsample_ratio", 0.5)) ** 2
    predicts = (config.get("text_config") or config.get("llm_config") or {}).get("num_nextn_predict_layers")
    # The tower's last norm stands in models with a multi-token-prediction block alone.
    last = 2 * width if predicts else 0
    return tower.count({**own, "video_temporal_patch_size": frames}) + read * (1 + _OMNI_INNER(config)) + last


def _omni_hears(config: Config) -> int:
    sound = _sound(config)
    if sound is None:
        return 0
    tower, own = tower_of({"audio_config": sound}, "audio_config", "parakeet_encoder")
    inner = _sound_size("projection_hidden_size")(config)
    return tower.count(own) + tower.value(f"hidden_size*{inner + 1}", own) + bool(sound.get("projection_bias")) * inner


_QWEN_MERGER: Final = _writer("(model.visual|visual).merger.mlp.2", "merged", "")
_QWEN3_MERGER: Final = _writer("(model.visual|visual).merger.linear_fc2", "merged", "")
_QWEN3_DEEPSTACK: Final = _writer("(model.visual|visual).deepstack_merger_list.{deepstack}.linear_fc2", "merged", "")
_SOUND_WRITER: Final = "(embed_audio.linear_2|sound_projection.linear2)"
_QWEN2_TEXTS: Final = {"qwen2_vl_text": "qwen2", "qwen2_5_vl_text": "qwen2"}

_SHARED_WIDTH: Final[dict[str, Any]] = {
    "axes": {"head_dim": {"keys": ()}},
    "equal": (("query_head*head_dim", "hidden"),),
    "ignored": ("head_dim",),
}
"""Of classes whose heads share the width of the residual stream out, whatever head_dim says."""

_ROWS: Final = (
    Wrapper(
        "gemma3",
        "gemma3_text",
        carried=("vision_tower", "multi_modal_projector"),
        projector=(Rule(_PROJECTOR + "mm_input_projection_weight", "vision, hidden", "projector", transposed=True),),
        sizes={"vision": _sized("hidden_size", "siglip_vision_model")},
        towers=_tower("siglip_vision_model", "hidden_size"),
        summary="Gemma 3 with vision",
    ),
    Wrapper(
        "mistral3",
        "mistral",
        carried=("vision_tower", "multi_modal_projector"),
        projector=_two_linears(_PROJECTOR, "vision", "multimodal_projector_bias"),
        sizes={"vision": _vision_features("pixtral")},
        towers={"vision_tower": _mistral3_tower},
        summary="Mistral Small 3.1 and later, Ministral 3 with vision",
    ),
    Wrapper(
        "llava",
        "llama",
        carried=("vision_tower", "multi_modal_projector"),
        projector=_two_linears(_PROJECTOR, "vision", "multimodal_projector_bias"),
        sizes={"vision": _vision_features("clip_vision_model")},
        towers=_tower("clip_vision_model"),
        defaults={"multimodal_projector_bias": True},
        ties="either",
        summary="LLaVA 1.5, Pixtral",
    ),
    Wrapper(
        "llava_next",
        "llama",
        carried=("vision_tower", "multi_modal_projector", "image_newline"),
        projector=(
            *_two_linears(_PROJECTOR, "vision", "multimodal_projector_bias"),
            Rule(_AT + "image_newline", "hidden", "projector"),
        ),
        sizes={"vision": _vision_features("clip_vision_model")},
        towers=_tower("clip_vision_model"),
        defaults={"multimodal_projector_bias": True},
        summary="LLaVA-NeXT",
    ),
    Wrapper(
        "qwen2_vl",
        "qwen2_vl_text",
        carried=("visual",),
        projector=_QWEN_MERGER,
        sizes={"merged": _sized("merged", "qwen2_vl_vision")},
        towers=_tower("qwen2_vl_vision"),
        families=_QWEN2_TEXTS,
        **_SHARED_WIDTH,
        flat=True,
        ties="either",
        copies=("vision_config.hidden_size",),
        summary="Qwen2-VL",
    ),
    Wrapper(
        "qwen2_5_vl",
        "qwen2_5_vl_text",
        carried=("visual",),
        projector=_QWEN_MERGER,
        sizes={"merged": _sized("merged", "qwen2_5_vl_vision")},
        towers=_tower("qwen2_5_vl_vision"),
        families=_QWEN2_TEXTS,
        **_SHARED_WIDTH,
        flat=True,
        ties="either",
        copies=("vision_config.out_hidden_size",),
        summary="Qwen2.5-VL",
    ),
    Wrapper(
        "qwen3_vl",
        "qwen3_vl_text",
        carried=("visual",),
        projector=(*_QWEN3_MERGER, *_QWEN3_DEEPSTACK),
        sizes={
            "merged": _sized("merged", "qwen3_vl_vision"),
            "deepstack": _sized("deepstack", "qwen3_vl_vision"),
        },
        towers=_tower("qwen3_vl_vision"),
        families={"qwen3_vl_text": "qwen3"},
        ignored=("use_sliding_window", "sliding_window", "max_window_layers", "layer_types"),
        copies=("vision_config.out_hidden_size",),
        summary="Qwen3-VL",
    ),
    Wrapper(
        "llama4",
        "llama4_text",
        carried=("vision_model", "multi_modal_projector"),
        projector=_writer("(|model.)multi_modal_projector.linear_1", "vision"),
        sizes={"vision": _sized("vision_output_dim", "llama4_vision_model")},
        towers=_tower("llama4_vision_model"),
        held=AROUND,
        ties="inside",
        summary="Llama 4 with vision",
    ),
    Wrapper(
        "gemma4",
        "gemma4_text",
        carried=("vision_tower", "embed_vision"),
        projector=(
            Rule(
                _AT + "embed_vision.embedding_projection.weight",
                "hidden, vision",
                "projector",
                when=VISION,
            ),
        ),
        sizes={"vision": _sized("hidden_size", "gemma4_vision")},
        towers={"vision_tower": _gemma4_tower},
        refused={"audio_config": "a tower that hears"},
        summary="Gemma 4 with vision",
    ),
    Wrapper(
        "nemotron_h_omni",
        "nemotron_h",
        carried=(
            *("vision_model", "multi_modal_projector", "mlp1", "vision_final_layernorm"),
            *("audio_tower", "embed_audio", "sound_encoder", "sound_projection"),
        ),
        projector=(
            *_writer("(multi_modal_projector.linear_2|mlp1.3)", "projector_inner"),
            Rule(f"{_SOUND_WRITER}.weight", "hidden, sound_inner", "projector", when="hears"),
            Rule(f"{_SOUND_WRITER}.bias", "hidden", "projector", when="hears_biased"),
        ),
        sizes={
            "projector_inner": _OMNI_INNER,
            "sound_inner": _sound_size("projection_hidden_size"),
            "hears": lambda config: int(_sound(config) is not None),
            "hears_biased": lambda config: int(bool((_sound(config) or {}).get("projection_bias"))),
        },
        towers={"vision_tower": _omni_sees, "audio_tower": _omni_hears},
        held=AROUND,
        keys=("text_config", "llm_config"),
        ties="inside",
        summary="Nemotron 3 Nano Omni",
    ),
    *(
        Wrapper(
            model_type,
            text,
            carried=("visual",),
            projector=_QWEN3_MERGER,
            sizes={"merged": _sized("merged", "qwen3_5_vision")},
            towers=_tower("qwen3_5_vision"),
            copies=("vision_config.out_hidden_size",),
            summary=summary,
        )
        for model_type, text, summary in (
            ("qwen3_5", "qwen3_5_text", "Qwen3.5"),
            ("qwen3_5_moe", "qwen3_5_moe_text", "Qwen3.5-MoE"),
        )
    ),
)

WRAPPERS: Final[dict[str, Wrapper]] = {row.model_type: row for row in _ROWS}
"""model_type of config.json -> its row."""

ABSENT: Final[Mapping[str, Mapping[str, Any]]] = {
    "gemma3_text": {
        "vocab_size": 262_208,
        "hidden_size": 2304,
        "intermediate_size": 9216,
        "num_hidden_layers": 26,
        "num_attention_heads": 8,
    },
    "llama": {
        "vocab_size": 32_000,
        "hidden_size": 4096,
        "intermediate_size": 11_008,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
    },
    "mistral": {
        "vocab_size": 32_000,
        "hidden_size": 4096,
        "intermediate_size": 14_336,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
    },
    "qwen2_vl_text": {"num_key_value_heads": 8, "max_window_layers": 80},
    "qwen2_5_vl_text": {"num_key_value_heads": 8, "max_window_layers": 80},
}
"""type of a language model -> what absent sizes of a config inside another mean: such configs leave out what is the
default of transformers' class."""
