"""How configs say a size or which layers have what: nulls, lists with an entry a layer, ranges of layers."""

from typing import Any

from family_sizes import FAMILY_SIZES
from huggingface_hub.errors import StrictDataclassClassValidationError, StrictDataclassFieldValidationError
from transformers import CONFIG_MAPPING

from minitron.model.families import FAMILIES
from minitron.model.spec import spec_of


def config(model_type: str, **changed: Any) -> dict[str, Any]:
    return FAMILY_SIZES[model_type][0] | {"model_type": model_type} | changed


def test_layers_with_experts_are_a_range_of_which_a_range_stays() -> None:
    spec = spec_of(config("ernie4_5_moe", num_hidden_layers=7, moe_layer_start_index=2, moe_layer_end_index=-1))
    assert spec.letters == "--EEEEE"
    assert spec.resized({}, (0, 2, 3, 6)).letters == "-EEE"
    assert spec.resized({}, (2, 3)).letters == "EE"
    assert spec.resized({}, (0, 1)).letters == "--"
    ended = spec_of(dict(spec.config) | {"moe_layer_end_index": 4})
    assert ended.letters == "--EEE--" and ended.resized({}, (1, 2, 4, 5)).letters == "-EE-"


def test_ernies_prediction_block_is_none_of_its_tensors() -> None:
    """Names of the released 21B-A3B; transformers passes over all that is called mtp."""
    spec = spec_of(config("ernie4_5_moe"))
    for name in ("mtp_emb_norm.0.weight", "mtp_linear_proj.0.weight", "mtp_block.0.self_attn.q_proj.weight"):
        row = spec.extra(f"model.{name}")
        assert row is not None and not row.carried
    assert spec.extra("model.layers.0.mlp.up_proj.weight") is None


def test_sizes_that_a_config_lists_layer_by_layer() -> None:
    """As Hunyuan-A13B is released; vLLM reads the lists, transformers the number of the experts a token chooses."""
    listed = {"moe_topk": [2] * 4, "moe_intermediate_size": [56] * 4, "num_shared_expert": [1] * 4}
    spec = spec_of(config("hunyuan_v1_moe", **listed))
    assert spec.experts_per_token == 2
    small = spec.resized({"intermediate_size": 40}, (0, 2, 3))
    assert (small.sizes["expert_ffn"], small.sizes["shared_ffn"]) == (40, 40)
    assert small.config["moe_intermediate_size"] == [40] * 3 and small.config["moe_topk"] == [2] * 3
    assert small.config["num_shared_expert"] == [1] * 3
    # The other spelling of the same key counts.
    del (other := dict(spec.config))["moe_topk"]
    assert spec_of(other | {"num_experts_per_tok": 3}).experts_per_token == 3


def test_a_null_key_means_what_the_class_of_the_config_makes_of_it() -> None:
    compared = set()
    for model_type, family in FAMILIES.items():
        for row in family.axes.values():
            for key in row.keys if row.null is not None and not family.blocks else ():
                try:
                    model = CONFIG_MAPPING[model_type](hidden_size=4096, num_attention_heads=16, **{key: None})
                except (StrictDataclassFieldValidationError, StrictDataclassClassValidationError):
                    continue  # transformers refuses a null.
                if (theirs := getattr(model, key)) is not None:
                    null = {"hidden_size": 4096, "num_attention_heads": 16, key: None}
                    assert row.null is not None and row.null(null) == theirs, (model_type, key)
                    compared.add((model_type, key))
    assert compared > {("smollm3", "num_key_value_heads"), ("seed_oss", "head_dim"), ("bamba", "num_key_value_heads")}
    # Through the config of a model: as many KV heads as query heads, hidden_size shared out among them.
    sizes = spec_of(config("seed_oss", num_key_value_heads=None, head_dim=None)).sizes
    assert (sizes["kv_head"], sizes["head_dim"]) == (4, 8)
    absent = {key: value for key, value in config("seed_oss").items() if key != "head_dim"}
    assert spec_of(absent).sizes["head_dim"] == 128
