"""The families of models: one table each."""

from difflib import get_close_matches
from typing import Final

from minitron.errors import MinitronError
from minitron.model.axes import Config
from minitron.model.families.afmoe import AFMOE
from minitron.model.families.apertus import APERTUS
from minitron.model.families.bailing import BAILING_HYBRID
from minitron.model.families.bamba import BAMBA
from minitron.model.families.cohere import COHERE, COHERE2
from minitron.model.families.deepseek import DEEPSEEK_V2, DEEPSEEK_V3
from minitron.model.families.dots import DOTS1
from minitron.model.families.ernie import ERNIE, ERNIE_MOE
from minitron.model.families.exaone import EXAONE4, EXAONE_MOE
from minitron.model.families.falcon_h1 import FALCON_H1
from minitron.model.families.family import Cache, Extra, Family, Norm, Rule
from minitron.model.families.gemma import GEMMA2, GEMMA3
from minitron.model.families.gemma4 import GEMMA4
from minitron.model.families.glm import GLM, GLM4
from minitron.model.families.glm_moe import GLM4_MOE, GLM4_MOE_LITE, SOLAR_OPEN
from minitron.model.families.gpt_oss import GPT_OSS
from minitron.model.families.granite import GRANITE, GRANITE_HYBRID, GRANITE_MOE, GRANITE_MOE_SHARED
from minitron.model.families.hunyuan import HUNYUAN_DENSE, HUNYUAN_MOE, HY3
from minitron.model.families.jamba import JAMBA
from minitron.model.families.kimi import KIMI_LINEAR
from minitron.model.families.lfm import LFM2, LFM2_MOE, LFM3
from minitron.model.families.llama import ARCEE, LLAMA, MISTRAL
from minitron.model.families.llama4 import LLAMA4
from minitron.model.families.logits import LogitMap, Logits
from minitron.model.families.minimax import MINIMAX
from minitron.model.families.ministral import MINISTRAL, MINISTRAL3
from minitron.model.families.mixtral import MINIMAX_M2, MIXTRAL, PHI_MOE
from minitron.model.families.nemotron import NEMOTRON
from minitron.model.families.nemotron_h import NEMOTRON_H
from minitron.model.families.nemotron_h_puzzle import NEMOTRON_H_PUZZLE
from minitron.model.families.nesting import PROJECTOR
from minitron.model.families.olmo import OLMO2, OLMO3
from minitron.model.families.olmo_hybrid import OLMO_HYBRID
from minitron.model.families.olmoe import FLEX_OLMO, OLMOE
from minitron.model.families.phi import PHI3
from minitron.model.families.qwen import QWEN2, QWEN3
from minitron.model.families.qwen_moe import QWEN2_MOE, QWEN3_MOE
from minitron.model.families.qwen_next import QWEN3_5, QWEN3_5_MOE, QWEN3_NEXT
from minitron.model.families.seed import SEED_OSS
from minitron.model.families.smollm import SMOLLM3
from minitron.model.families.sparse_attention import DEEPSEEK_V32, GLM_DSA
from minitron.model.families.state_space import FALCON_MAMBA, MAMBA, MAMBA2
from minitron.model.families.unsupported import UNSUPPORTED
from minitron.model.families.wrappers import ABSENT, WRAPPERS
from minitron.model.families.wrapping import family_inside
from minitron.model.families.zamba2 import ZAMBA2

_FAMILIES: Final = (
    *(NEMOTRON_H, NEMOTRON_H_PUZZLE, BAMBA, QWEN3_NEXT, QWEN3_5, QWEN3_5_MOE),
    *(FALCON_H1, ZAMBA2, JAMBA, MAMBA2, MAMBA, FALCON_MAMBA),
    *(LFM2, LFM2_MOE, LFM3, KIMI_LINEAR, BAILING_HYBRID),
    *(LLAMA, MISTRAL, QWEN2, QWEN3, GEMMA3, PHI3, OLMO2, NEMOTRON),
    *(MINISTRAL, MINISTRAL3, SMOLLM3, SEED_OSS, HUNYUAN_DENSE, OLMO3, EXAONE4, GLM4),
    *(QWEN2_MOE, QWEN3_MOE, OLMOE, FLEX_OLMO, MIXTRAL, PHI_MOE, MINIMAX_M2, GPT_OSS),
    *(DEEPSEEK_V2, DEEPSEEK_V3, GLM4_MOE, GLM4_MOE_LITE, SOLAR_OPEN, LLAMA4),
    *(APERTUS, ERNIE, ERNIE_MOE, HUNYUAN_MOE, GLM, ARCEE, DOTS1, EXAONE_MOE, HY3),
    *(GRANITE, GRANITE_MOE, GRANITE_MOE_SHARED, GRANITE_HYBRID, COHERE, COHERE2, GEMMA2, GEMMA4),
    *(DEEPSEEK_V32, GLM_DSA, OLMO_HYBRID, MINIMAX, AFMOE),
)

FAMILIES: Final[dict[str, Family]] = {model_type: family for family in _FAMILIES for model_type in family.model_types}
"""model_type -> family."""

_ALSO: Final = [(model_type, key, family) for family in _FAMILIES for model_type, key in family.also.items()]
"""(model_type, config key, family that reads configs of that type which set the key)."""


def family_of(config: Config) -> Family | None:
    """The family that reads a config.json document, None where there is none.

    Raises MinitronError for a larger model whose language model no family reads."""
    model_type = str(config.get("model_type"))
    if model_type in WRAPPERS:
        return family_inside(WRAPPERS[model_type], config, FAMILIES, ABSENT)
    also = (family for other, key, family in _ALSO if other == model_type and config.get(key))
    return next(also, FAMILIES.get(model_type))


def find_family(config: Config) -> Family:
    """The family that reads a config.json document; raises MinitronError where none does."""
    if (family := family_of(config)) is not None:
        return family
    name = str(config.get("model_type"))
    if name in UNSUPPORTED:
        raise MinitronError(
            f"config.json: Minitron does not support {name} models ({UNSUPPORTED[name]}); `minitron inspect --list` "
            "prints the types that it does."
        )
    # A type that comes with code of its own is no slip of the pen.
    near = [] if config.get("auto_map") else get_close_matches(name, [*FAMILIES, *WRAPPERS], 1)
    meant = f", is {near[0]} meant" if near else ""
    raise MinitronError(
        f"config.json: model_type is {config.get('model_type')!r}, which Minitron does not support{meant}; `minitron "
        "inspect --list` prints the types that it does."
    )


def summaries() -> dict[str, str]:
    """model_type -> what layers a model of it has, and in brackets which models are of it."""
    inside = {wrapper.model_type: f"a language model inside ({wrapper.summary})" for wrapper in WRAPPERS.values()}
    return dict(sorted({**{name: family.summary for name, family in FAMILIES.items()}, **inside}.items()))


__all__ = [
    "FAMILIES",
    "PROJECTOR",
    "UNSUPPORTED",
    "WRAPPERS",
    "Cache",
    "Extra",
    "Family",
    "LogitMap",
    "Logits",
    "Norm",
    "Rule",
    "family_of",
    "find_family",
    "summaries",
]
