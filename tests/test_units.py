"""Sizes as people type and read them."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from minitron.errors import MinitronError
from minitron.units import format_bytes, format_parameters, parse_bytes, parse_count


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("1.3GiB", 1_395_864_371),  # 1.3 * 2^30 = 1395864371.2
        ("22.06 GiB", 23_686_744_637),  # 22.06 * 2^30 = 23686744637.44
        ("22GB", 22_000_000_000),
        ("800MiB", 838_860_800),
        ("0.5tib", 549_755_813_888),
        (" 1,024 B ", 1024),
        ("1,000.5 KiB", 1_024_512),
        ("1_000_000", 1_000_000),
        ("0", 0),
        (".5kb", 500),
    ],
)
def test_bytes(text: str, count: int) -> None:
    assert parse_bytes(text) == count


@pytest.mark.parametrize(
    ("text", "count"), [("128k", 131_072), ("1M", 1_048_576), ("4096", 4096), ("1.5K", 1536), ("131,072", 131_072)]
)
def test_counts(text: str, count: int) -> None:
    assert parse_count(text) == count


@pytest.mark.parametrize(
    "text", ["", "GiB", "-1GiB", "1,3GiB", "1..3GiB", "1.3 G i B", "1e9", "22G", "inf", "nan", "12 parsecs", "٣GiB"]
)
def test_no_size(text: str) -> None:
    with pytest.raises(MinitronError, match=r"1\.3GiB") as raised:
        parse_bytes(text)
    assert repr(text) in str(raised.value)


@pytest.mark.parametrize("text", ["0", "0.4", "128kb", "-4", "many", "1,28k"])
def test_no_count(text: str) -> None:
    with pytest.raises(MinitronError, match="128k"):
        parse_count(text)


@pytest.mark.parametrize("text", ["1025TiB", str(2**50 + 1), "1" + 40 * "0"])
def test_no_machine_has_so_much(text: str) -> None:
    with pytest.raises(MinitronError, match="more than any machine has"):
        parse_bytes(text)
    assert parse_bytes("1024TiB") == 2**50


@given(st.integers(0, 2**20), st.sampled_from([("", 1), ("KiB", 2**10), ("MB", 10**6), ("GiB", 2**30)]))
def test_whole_sizes_are_exact(number: int, unit: tuple[str, int]) -> None:
    assert parse_bytes(f"{number}{unit[0]}") == number * unit[1]
    assert parse_bytes(f"{number:,} {unit[0].lower()}") == number * unit[1]


@given(st.integers(0, 2**50))
def test_what_is_shown_can_be_typed(count: int) -> None:
    # Three decimals are shown: off by at most half a thousandth of the unit, and by half a byte for whole bytes.
    assert abs(parse_bytes(format_bytes(count)) - count) <= count / 2000 + 0.5


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0 B"),
        (1023, "1,023 B"),
        (1024, "1.000 KiB"),
        (2**20, "1.000 MiB"),
        (2**30, "1.000 GiB"),
        (-(2**30), "-1.000 GiB"),
        (8_888_227_328 * 2, "16.556 GiB"),  # what vLLM reports for Nemotron-Nano-9B-v2
    ],
)
def test_format_bytes(count: int, text: str) -> None:
    assert format_bytes(count) == text


@pytest.mark.parametrize(
    ("count", "text"), [(8_888_227_328, "8.888 B"), (134_515_008, "134.515 M"), (6144, "6,144"), (0, "0")]
)
def test_format_parameters(count: int, text: str) -> None:
    assert format_parameters(count) == text
