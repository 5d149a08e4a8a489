"""Extension fields: one encoding per set of fields, and the rule for types that are not known."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from backrooms.errors import LocalProtocolError, WireError
from backrooms.wire.extensions import (
    ClientExtensions,
    ExtensionType,
    decode_extensions,
    encode_extensions,
)

FIELDS = st.dictionaries(st.integers(0, 255), st.binary(max_size=40), max_size=8)


def test_vector() -> None:
    assert ClientExtensions(30_000_000).encode() == bytes.fromhex("01 0004 01c9c380")
    assert encode_extensions({0x90: b"\xff", 2: b"", 1: b"ab"}) == bytes.fromhex("01 0002 6162 02 0000 90 0001 ff")
    assert encode_extensions({}) == b""


@given(FIELDS)
def test_round_trip(fields: dict[int, bytes]) -> None:
    assert decode_extensions(encode_extensions(fields), range(256)) == fields


@given(st.integers(0, 2**32 - 1))
def test_timestamp_round_trip(minute: int) -> None:
    assert ClientExtensions.decode(ClientExtensions(minute).encode()) == ClientExtensions(minute)


@given(st.binary(max_size=60), st.frozensets(st.integers(0, 255)))
def test_any_bytes_give_fields_or_a_wire_error(data: bytes, known: frozenset[int]) -> None:
    try:
        fields = decode_extensions(data, known)
    except WireError:
        return
    assert fields.keys() <= known
    if known.issuperset(range(256)):
        assert encode_extensions(fields) == data


@given(st.binary(max_size=60))
def test_any_bytes_give_a_client_message_or_a_wire_error(data: bytes) -> None:
    try:
        ClientExtensions.decode(data)
    except WireError:
        return
    assert data.startswith(b"\x01\x00\x04")


@given(FIELDS)
def test_one_encoding_only(fields: dict[int, bytes]) -> None:
    """A cut between fields leaves fewer of them; any other cut is an error."""
    data = encode_extensions(fields)
    whole = {0}
    for kind in sorted(fields):
        whole.add(max(whole) + 3 + len(fields[kind]))
    for cut in range(len(data)):
        if cut in whole:
            assert len(decode_extensions(data[:cut], range(256))) < len(fields)
        else:
            with pytest.raises(WireError, match="short read"):
                decode_extensions(data[:cut], range(256))


@pytest.mark.parametrize("kind", [0, 2, 0x7F])
def test_unknown_type_below_0x80_is_an_error(kind: int) -> None:
    fields = {ExtensionType.TIMESTAMP: bytes(4), kind: b"x"}
    with pytest.raises(WireError, match=f"unknown extension {kind}"):
        ClientExtensions.decode(encode_extensions(fields))


@pytest.mark.parametrize("kind", [0x80, 0x81, 0xFF])
def test_unknown_type_from_0x80_on_is_skipped(kind: int) -> None:
    fields = {ExtensionType.TIMESTAMP: b"\0\0\0\x07", kind: b"x" * 300}
    assert ClientExtensions.decode(encode_extensions(fields)) == ClientExtensions(7)


@pytest.mark.parametrize("kinds", [(1, 1), (0x90, 0x90), (2, 1), (0x90, 1), (0x91, 0x90)])
def test_repeated_and_falling_types_are_errors_even_where_they_would_be_skipped(
    kinds: tuple[int, int],
) -> None:
    data = b"".join(encode_extensions({kind: bytes(4)}) for kind in kinds)
    with pytest.raises(WireError, match="after extension"):
        decode_extensions(data, (1, 2))


@pytest.mark.parametrize("value", [b"", bytes(3), bytes(5)])
def test_timestamp_of_a_wrong_size(value: bytes) -> None:
    with pytest.raises(WireError):
        ClientExtensions.decode(encode_extensions({ExtensionType.TIMESTAMP: value}))


@pytest.mark.parametrize("data", [b"", encode_extensions({0x80: bytes(4)})])
def test_timestamp_is_required(data: bytes) -> None:
    with pytest.raises(WireError, match="timestamp"):
        ClientExtensions.decode(data)


def test_what_does_not_fit_is_our_own_mistake() -> None:
    for fields in ({256: b""}, {1: bytes(65_536)}):
        with pytest.raises(LocalProtocolError):
            encode_extensions(fields)
    with pytest.raises(LocalProtocolError):
        ClientExtensions(2**32).encode()
