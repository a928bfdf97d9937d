"""The types of ggml and the mixtures of them that llama.cpp calls q4_k_m, iq2_xxs and so on.

A type keeps blocks of 32 or 256 numbers of a row.  A mixture gives every matrix a type by what it does in the model and
by its layer; a matrix whose rows are no whole number of blocks takes another type.  Both are llama.cpp's, as its
quantiser has them (src/llama-quant.cpp): `tests/memory/test_ggml.py` holds them against files that it wrote.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final

from minitron.errors import MinitronError
from minitron.model.matrix_layout import Layout


@dataclass(frozen=True)
class GgmlType:
    """One type of ggml."""

    number: int
    """In `enum ggml_type`, as GGUF files store it."""

    block: int
    """Numbers of a block; 1 for plain numbers."""

    block_bytes: int
    bits: int
    """Of one number, without what a block shares."""

    instead: str = ""
    """The type of matrices whose rows are no whole number of blocks."""

    relative_error: float = 0.0
    """The mean squared error of normally distributed numbers in whole blocks, of which all inputs are as large, as a
    share of their mean square: measured with ggml's own quantiser (tests/gguf/test_errors.py)."""

    calibrated: bool = False
    """Whether llama.cpp quantises to it with an importance matrix alone: how large each input is."""

    @property
    def layout(self) -> Layout:
        """The bytes of a matrix whose rows are whole blocks."""
        shared = self.block_bytes - self.block * self.bits // 8
        return Layout(bits=self.bits, group=self.block if shared else 0, group_bytes=shared)


TYPES: Final[dict[str, GgmlType]] = {
    "f32": GgmlType(0, 1, 4, 32),
    "f16": GgmlType(1, 1, 2, 16),
    "bf16": GgmlType(30, 1, 2, 16),
    "q8_0": GgmlType(8, 32, 34, 8, "f16", 2.9e-05),
    "q6_k": GgmlType(14, 256, 210, 6, "q8_0", 3.0e-04),
    "q5_k": GgmlType(13, 256, 176, 5, "q5_1", 1.25e-03),
    "q5_1": GgmlType(7, 32, 24, 5, "f16", 1.14e-03),
    "q5_0": GgmlType(6, 32, 22, 5, "f16", 1.64e-03),
    "q4_k": GgmlType(12, 256, 144, 4, "q5_0", 5.0e-03),
    "q4_1": GgmlType(3, 32, 20, 4, "f16", 4.9e-03),
    "q4_0": GgmlType(2, 32, 18, 4, "f16", 6.7e-03),
    "iq4_nl": GgmlType(20, 32, 18, 4, "f16", 5.6e-03),
    "iq4_xs": GgmlType(23, 256, 136, 4, "iq4_nl", 5.7e-03),
    "q3_k": GgmlType(11, 256, 110, 3, "q4_0", 0.0209),
    "iq3_s": GgmlType(21, 256, 110, 3, "iq4_nl", 0.0188),
    "iq3_xxs": GgmlType(18, 256, 98, 3, "iq4_nl", 0.033, calibrated=True),
    "q2_k": GgmlType(10, 256, 84, 2, "q4_0", 0.072),
    "iq2_s": GgmlType(22, 256, 82, 2, "iq4_nl", 0.062, calibrated=True),
    "iq2_xs": GgmlType(17, 256, 74, 2, "iq4_nl", 0.09, calibrated=True),
    "iq2_xxs": GgmlType(16, 256, 66, 2, "iq4_nl", 0.118, calibrated=True),
    "iq1_m": GgmlType(29, 256, 56, 1, "iq4_nl", 0.204, calibrated=True),
    "iq1_s": GgmlType(19, 256, 50, 1, "iq4_nl", 0.236, calibrated=True),
}
"""name -> type, most bits first."""


def fitted(name: str, columns: int) -> str:
    """The type that a matrix with rows of `columns` numbers takes where `name` is meant for it."""
    while columns % TYPES[name].block:
        name = TYPES[name].instead
    return name


@dataclass(frozen=True)
class Facts:
    """What the choice of types depends on beside the tensor, of the model as a whole."""

    layers: int
    experts: int
    """Routed experts of a layer; 0 for none."""

    query_heads: int
    """Of the first layer, 0 where it has no attention; likewise the next."""

    kv_heads: int
    attention: int
    """Layers with a value projection."""

    tied: bool
    """Whether the embedding is the output layer as well."""

    calibrated: bool = False
    """Whether an importance matrix is given."""

    llama: bool = False
    """Whether llama.cpp takes it for a Llama."""

    @property
    def shared_heads(self) -> int:
        """Query heads for each key and value head in the first layer, as llama.cpp counts: 0 where it has none."""
        return self.query_heads // self.kv_heads if self.kv_heads else 0

    @property
    def is_70b(self) -> bool:
        """Whether llama.cpp takes it for Llama 70B, whose value projections it keeps in more bits."""
        return self.llama and self.layers == 80 and self.query_heads != self.kv_heads


@dataclass(frozen=True)
class Place:
    """Where a matrix stands."""

    role: str
    """output, embedding, attn_q, attn_k, attn_v, attn_output, ffn_up, ffn_gate, ffn_down or other."""

    layer: int = 0
    """In the model."""

    number: int = 0
    """How many of its role stand before it."""

    def at(self, facts: Facts) -> tuple[int, int]:
        """(number of the layer, of how many), as llama.cpp counts the layers of a matrix of this role."""
        if self.role == "attn_v":
            return self.number, facts.attention
        return (self.layer if facts.experts > 1 else self.number), facts.layers


When = Callable[[Place, Facts], bool]


def _always(place: Place, facts: Facts) -> bool:
    return True


def _more_bits(place: Place, facts: Facts) -> bool:
    """The first and the last eighth of the layers, and every third between."""
    layer, count = place.at(facts)
    return layer < count // 8 or layer >= 7 * count // 8 or (layer - count // 8) % 3 == 2


def _first(share: int) -> When:
    """The first so many of the layers: a fourth for 4."""
    return lambda place, facts: place.at(facts)[0] < place.at(facts)[1] // share


def _before(number: int) -> When:
    return lambda place, facts: place.at(facts)[0] < number


def _inner(place: Place, facts: Facts) -> bool:
    layer, count = place.at(facts)
    return count // 8 <= layer < 7 * count // 8


def _shared(place: Place, facts: Facts) -> bool:
    return facts.shared_heads >= 4


def _shared_or_mixture(place: Place, facts: Facts) -> bool:
    return facts.shared_heads >= 4 or facts.experts >= 4


def _eight(place: Place, facts: Facts) -> bool:
    return facts.experts == 8


def _not_eight(place: Place, facts: Facts) -> bool:
    return facts.experts != 8


def _first_of_role(place: Place, facts: Facts) -> bool:
    """The first eighth, counted by the matrices of the role themselves."""
    return place.number < facts.layers // 8


def _plain(when: When) -> When:
    return lambda place, facts: when(place, facts) and not facts.calibrated


def _known(when: When) -> When:
    return lambda place, facts: when(place, facts) and facts.calibrated


def _first_or_eight(place: Place, facts: Facts) -> bool:
    return _first(8)(place, facts) or (facts.experts == 8 and _more_bits(place, facts))


@dataclass(frozen=True)
class Choice:
    """A role whose matrices take another type than most."""

    role: str
    type: str
    when: When = _always


@dataclass(frozen=True)
class Mixture:
    """The types of a file's matrices."""

    number: int
    """In `enum llama_ftype`, as GGUF files store it."""

    most: str
    """The type of what no choice names."""

    choices: tuple[Choice, ...] = ()
    """The first that fits counts."""

    def type_of(self, place: Place, facts: Facts, columns: int) -> str:
        """The type of a matrix with rows of `columns` numbers."""
        return fitted(self._wanted(place, facts, columns), columns)

    def _wanted(self, place: Place, facts: Facts, columns: int) -> str:
        if not TYPES[self.most].instead:
            return self.most
        if place.role == "output" or (facts.tied and place.role == "embedding"):
            return self._output(columns)
        fits = (one for one in self.choices if one.role == place.role and one.when(place, facts))
        found = next((one.type for one in fits), self.most)
        return "q5_k" if facts.is_70b and place.role == "attn_v" and found in ("q3_k", "q4_k") else found

    def _output(self, columns: int) -> str:
        if columns % TYPES[self.most].block or self.most == "q8_0":
            return "q8_0"
        return "q5_k" if self in _LOWEST else "q6_k"

    @property
    def is_q2_k_s(self) -> bool:
        """Whether it is the one mixture whose q2_k llama.cpp refuses to write without an importance matrix."""
        return self.number == _Q2_K_S

    @property
    def calibrated(self) -> bool:
        """Whether it needs an importance matrix, where the rows are whole blocks."""
        named = {self.most, *(one.type for one in self.choices if one.role != "embedding")}
        return any(TYPES[name].calibrated for name in named) or self.is_q2_k_s


_Q2_K_S: Final = 21

_EIGHT: Final = (Choice("attn_v", "q8_0", _eight), Choice("attn_k", "q8_0", _eight))
"""Of models with eight experts, whose attention is small beside them."""

_OUTPUT: Final = Choice("attn_output", "q5_k", _eight)


def _mixed(number: int, most: str, *choices: Choice) -> Mixture:
    return Mixture(number, most, (*_EIGHT, *choices))


def _low(number: int, most: str, better: str, values: str, *choices: Choice) -> Mixture:
    """A mixture of about two bits: `better` in the first MLPs, `values` for values where few heads share them."""
    return Mixture(
        number,
        most,
        (
            Choice("attn_v", "q4_k", _shared_or_mixture),
            Choice("attn_v", values),
            Choice("attn_k", "q4_k", _eight),
            Choice("ffn_down", better, _first_of_role),
            _OUTPUT,
            *choices,
        ),
    )


MIXTURES: Final[dict[str, Mixture]] = {
    "f32": Mixture(0, "f32"),
    "bf16": Mixture(32, "bf16"),
    "f16": Mixture(1, "f16"),
    "q8_0": _mixed(7, "q8_0"),
    "q6_k": _mixed(18, "q6_k"),
    "q5_k_m": _mixed(17, "q5_k", Choice("attn_v", "q6_k", _more_bits), Choice("ffn_down", "q6_k", _more_bits)),
    "q5_k_s": _mixed(16, "q5_k"),
    "q5_1": _mixed(9, "q5_1"),
    "q5_0": _mixed(8, "q5_0", Choice("ffn_down", "q5_1", _known(_first(8)))),
    "q4_k_m": _mixed(15, "q4_k", Choice("attn_v", "q6_k", _more_bits), Choice("ffn_down", "q6_k", _more_bits), _OUTPUT),
    "q4_k_s": _mixed(14, "q4_k", Choice("attn_v", "q5_k", _before(4)), Choice("ffn_down", "q5_k", _first(8)), _OUTPUT),
    "q4_1": _mixed(3, "q4_1"),
    "q4_0": _mixed(2, "q4_0", Choice("ffn_down", "q4_1", _known(_first(8)))),
    "iq4_nl": _mixed(
        25, "iq4_nl", Choice("attn_v", "q5_k", _shared), Choice("ffn_down", "q5_k", _plain(_first(8))), _OUTPUT
    ),
    "iq4_xs": _mixed(
        30, "iq4_xs", Choice("attn_v", "q5_k", _shared), Choice("ffn_down", "q5_k", _plain(_first(8))), _OUTPUT
    ),
    "q3_k_l": _mixed(
        13, "q3_k", Choice("attn_v", "q5_k"), Choice("ffn_down", "q5_k"), Choice("attn_output", "q5_k", _not_eight)
    ),
    "q3_k_m": _mixed(
        12,
        "q3_k",
        Choice("attn_v", "q5_k", _before(2)),
        Choice("attn_v", "q4_k"),
        Choice("ffn_down", "q5_k", _first(16)),
        Choice("ffn_down", "q4_k"),
        _OUTPUT,
        Choice("attn_output", "q4_k"),
    ),
    "q3_k_s": _mixed(11, "q3_k", _OUTPUT),
    "iq3_m": _mixed(
        27,
        "iq3_s",
        Choice("attn_v", "q4_k"),
        Choice("ffn_down", "q4_k", _first_or_eight),
        _OUTPUT,
        Choice("attn_output", "q4_k"),
    ),
    "iq3_s": _mixed(26, "iq3_s", Choice("attn_v", "q4_k", _shared), _OUTPUT),
    "iq3_xs": _mixed(
        22,
        "iq3_s",
        Choice("attn_v", "q4_k", _shared),
        Choice("attn_k", "iq3_xxs"),
        Choice("attn_q", "iq3_xxs"),
        Choice("ffn_gate", "iq3_xxs", _inner),
        Choice("ffn_up", "iq3_xxs", _inner),
        _OUTPUT,
    ),
    "iq3_xxs": _mixed(
        23,
        "iq3_xxs",
        Choice("embedding", "iq3_s"),
        Choice("attn_v", "q4_k", _shared),
        Choice("attn_v", "iq3_s", _plain(_always)),
        Choice("attn_k", "iq2_s"),
        Choice("attn_q", "iq2_s"),
        Choice("ffn_down", "q4_k", _plain(_first(8))),
        Choice("ffn_down", "q3_k", _plain(_always)),
        _OUTPUT,
        Choice("attn_output", "iq3_s"),
    ),
    "q2_k": _mixed(
        10,
        "q2_k",
        Choice("attn_v", "q4_k", _shared),
        Choice("attn_v", "q3_k"),
        Choice("ffn_down", "q3_k"),
        _OUTPUT,
        Choice("attn_output", "q3_k"),
    ),
    "q2_k_s": _mixed(_Q2_K_S, "q2_k", Choice("attn_v", "q4_k", _shared), Choice("ffn_down", "q4_k", _first(8))),
    "iq2_m": _low(29, "iq2_s", "iq3_s", "iq3_s", Choice("attn_output", "iq3_s"), Choice("embedding", "iq3_s")),
    "iq2_s": _low(28, "iq2_xs", "iq3_s", "iq3_s", Choice("attn_output", "iq3_s"), Choice("embedding", "iq3_s")),
    "iq2_xs": _low(20, "iq2_xs", "q2_k", "q2_k", Choice("embedding", "q2_k")),
    "iq2_xxs": _low(19, "iq2_xxs", "q2_k", "q2_k", Choice("embedding", "q2_k")),
    "iq1_m": _low(31, "iq1_m", "q2_k", "q2_k", Choice("attn_output", "iq2_xxs"), Choice("embedding", "q2_k")),
    "iq1_s": _low(24, "iq1_s", "q2_k", "q2_k", Choice("attn_output", "iq2_xxs"), Choice("embedding", "q2_k")),
}
"""name -> mixture, as llama.cpp's quantiser calls them, in lower case; most bits first."""

_LOWEST: Final = tuple(MIXTURES[name] for name in ("iq3_xxs", "iq2_m", "iq2_s", "iq2_xs", "iq2_xxs", "iq1_m", "iq1_s"))


def mixture_of(name: str) -> Mixture:
    """The mixture of a name; raises MinitronError where there is none."""
    if name not in MIXTURES:
        raise MinitronError(f"llama.cpp has no type {name!r}; choose {', '.join(MIXTURES)}.")
    return MIXTURES[name]


ROLES: Final[Mapping[str, str]] = {
    "attn_qkv.weight": "attn_v",
    "attn_kv_b.weight": "attn_v",
    "attn_v.weight": "attn_v",
    "attn_k.weight": "attn_k",
    "attn_q.weight": "attn_q",
    "attn_output.weight": "attn_output",
    "ffn_up": "ffn_up",
    "ffn_gate": "ffn_gate",
    "ffn_down": "ffn_down",
}
"""What the name of a tensor in a GGUF file holds -> its role; the first that fits counts."""


def role_of(name: str) -> str:
    """The role of a tensor in a GGUF file."""
    whole = {"output.weight": "output", "token_embd.weight": "embedding", "per_layer_token_embd.weight": "embedding"}
    return whole.get(name) or next((role for part, role in ROLES.items() if part in name), "other")
