"""A candidate rounded in memory holds what its GGUF file holds, to the last bit."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_models import save_hybrid, save_llama

from minitron.errors import MinitronError
from minitron.gguf.export import export
from minitron.memory.ggml import TYPES
from minitron.model.checkpoint import Checkpoint
from minitron.model.loading import load_model
from minitron.model.spec import read_spec

CPU = torch.device("cpu")
BLOCKS = np.random.default_rng(5).integers(3, 250, (4, 64))


def read(file: Path) -> dict[str, Any]:
    """Name -> what is read back of every tensor of a file."""
    gguf = pytest.importorskip("gguf", reason="needs the extra gguf")
    named = {kind.number: name for name, kind in TYPES.items()}
    found = {}
    for tensor in gguf.GGUFReader(file).tensors:
        shape = [int(size) for size in reversed(tensor.shape)]
        found[tensor.name] = (
            named[int(tensor.tensor_type)],
            gguf.quants.dequantize(tensor.data, tensor.tensor_type).reshape(shape),
        )
    return found


def both(model: Path, out: Path, mixture: str, own: dict[str, str]) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    """What the file holds, and the state of the model rounded in memory."""
    pytest.importorskip("conversion", reason="needs the extra gguf")
    pytest.importorskip("xllamacpp", reason="needs the extra gguf")
    from importance.rounding.in_types import round_in_types
    from importance.rounding.squares import input_squares

    def importance(spec: Any, checkpoint: Checkpoint) -> Any:
        return input_squares(model, spec, checkpoint, BLOCKS, CPU)

    export(model, out, mixture, importance=importance, own_types=own)
    loaded = load_model(model, dtype=torch.float32, device=CPU)
    before = {name: tensor.clone() for name, tensor in loaded.state_dict().items()}
    shared = {name: parameter.data for name, parameter in loaded.named_parameters()}
    round_in_types(loaded, read_spec(model), mixture, own, BLOCKS, batch_size=4)
    # What a cut shares with its parent is not written into.
    assert all(torch.equal(before[name], shared[name]) for name in shared)
    return read(out), loaded.state_dict()


def test_a_hybrid_in_memory_is_what_its_file_holds(tmp_path: Path) -> None:
    model = save_hybrid(
        tmp_path / "model",
        pattern="MEM*E",
        hidden_size=256,
        moe_intermediate_size=256,
        moe_shared_expert_intermediate_size=256,
    )
    own = {"ssm": "q4_k", "moe_routed": "iq2_xxs", "moe_shared": "iq3_xxs", "attention": "q6_k"}
    held, state = both(model, tmp_path / "out.gguf", "iq2_xxs", own)
    pairs = {
        "token_embd.weight": "model.embeddings.weight",
        "output.weight": "lm_head.weight",
        "blk.0.ssm_in.weight": "model.layers.0.mixer.in_proj.weight",
        "blk.0.ssm_out.weight": "model.layers.0.mixer.out_proj.weight",
        "blk.1.ffn_up_exps.weight": "model.layers.1.mixer.experts.up_proj",
        "blk.1.ffn_down_exps.weight": "model.layers.1.mixer.experts.down_proj",
        "blk.1.ffn_up_shexp.weight": "model.layers.1.mixer.shared_experts.up_proj.weight",
        "blk.3.attn_v.weight": "model.layers.3.mixer.v_proj.weight",
        "blk.3.attn_output.weight": "model.layers.3.mixer.o_proj.weight",
        "blk.1.ffn_gate_inp.weight": "model.layers.1.mixer.gate.weight",
    }
    types = {}
    for name, own_name in pairs.items():
        types[name], expected = held[name]
        np.testing.assert_allclose(state[own_name].float().numpy(), expected, rtol=0, atol=2e-6, err_msg=name)
    # The file has the rows of queries in another order.
    queries = state["model.layers.3.mixer.q_proj.weight"].numpy(), held["blk.3.attn_q.weight"][1]
    np.testing.assert_allclose(*(np.sort(rows, axis=0) for rows in queries), rtol=0, atol=2e-6)
    assert types["blk.1.ffn_up_exps.weight"] == "iq2_xxs" and types["blk.0.ssm_in.weight"] == "q4_k"
    assert types["token_embd.weight"] == "q2_k"


@pytest.mark.parametrize("tied", [True, False])
def test_a_dense_model_in_memory_is_what_its_file_holds(tmp_path: Path, tied: bool) -> None:
    model = save_llama(tmp_path / "model", hidden_size=256, intermediate_size=512, tie_word_embeddings=tied)
    own = {"attention": "q5_k", "mlp": "iq2_s", "embedding": "iq2_xxs", **({} if tied else {"lm_head": "iq3_xxs"})}
    held, state = both(model, tmp_path / "out.gguf", "iq2_m", own)
    for name, own_name in {
        "token_embd.weight": "model.embed_tokens.weight",
        "blk.1.ffn_up.weight": "model.layers.1.mlp.up_proj.weight",
        "blk.1.ffn_down.weight": "model.layers.1.mlp.down_proj.weight",
        "blk.1.attn_v.weight": "model.layers.1.self_attn.v_proj.weight",
        **({} if tied else {"output.weight": "lm_head.weight"}),
    }.items():
        np.testing.assert_allclose(state[own_name].float().numpy(), held[name][1], rtol=0, atol=2e-6, err_msg=name)
    assert torch.equal(state["lm_head.weight"], state["model.embed_tokens.weight"]) == tied
    assert held["token_embd.weight"][0] == "iq2_xxs"


def test_llama_cpp_looks_embeddings_up_in_few_bits(tmp_path: Path) -> None:
    """As transformers does in the same numbers; of an output layer in few bits it would round the inputs too."""
    from gguf_runs import agrees

    model = save_llama(tmp_path / "model", hidden_size=256, intermediate_size=512)
    _, state = both(model, tmp_path / "out.gguf", "f32", {"embedding": "iq2_xxs"})
    numbers = load_file(model / "model.safetensors")
    numbers["model.embed_tokens.weight"] = state["model.embed_tokens.weight"].contiguous()
    save_file(numbers, model / "model.safetensors", {"format": "pt"})
    agrees(model, tmp_path / "out.gguf", 6)


def test_an_output_layer_needs_an_importance_and_an_embedding_does_not(tmp_path: Path) -> None:
    pytest.importorskip("conversion", reason="needs the extra gguf")
    pytest.importorskip("xllamacpp", reason="needs the extra gguf")
    for tied, part in ((False, "lm_head"), (True, "embedding")):
        model = save_llama(tmp_path / f"model-{tied}", hidden_size=256, intermediate_size=512, tied=tied)
        with pytest.raises(MinitronError, match="give text with --data"):
            export(model, tmp_path / "out.gguf", "q8_0", own_types={part: "iq2_xxs"})
    export(tmp_path / "model-False", tmp_path / "out.gguf", "q8_0", own_types={"embedding": "iq2_xxs"})
