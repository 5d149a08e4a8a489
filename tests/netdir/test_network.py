"""The network file: strict reading, and writing what can be read again."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from backrooms.crypto.keys import text_id
from backrooms.errors import ConfigError
from backrooms.netdir.network import Contact, NetworkFile

ids = st.binary(min_size=32, max_size=32)
A = text_id(b"\1" * 32)
GOOD = f'name = "test"\nid = "{A}"\n\n[[contacts]]\nid = "{A}"\naddress = "tls:127.0.0.1:5001"\n'


@given(
    st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}", fullmatch=True),
    ids,
    st.lists(ids, max_size=4, unique=True),
    st.lists(ids, max_size=3),
)
def test_round_trip(name: str, network_id: bytes, contacts: list[bytes], charter: list[bytes]) -> None:
    network = NetworkFile(name, network_id, tuple(Contact(c, "tls:[::1]:5001") for c in contacts), tuple(charter))
    assert NetworkFile.parse(network.to_toml()) == network


def test_text_and_hex() -> None:
    network = NetworkFile.parse(GOOD)
    assert network == NetworkFile("test", b"\1" * 32, (Contact(b"\1" * 32, "tls:127.0.0.1:5001"),))
    assert NetworkFile.parse(GOOD.replace(A, "01" * 32)) == network
    assert network.to_toml() == GOOD


@pytest.mark.parametrize(
    ("old", "new", "reason"),
    [
        ("name", "nmae", "nmae: unknown key"),
        ('name = "test"\n', "", "name: missing"),
        ('"test"', "5", "name: must be a string"),
        ('"test"', '"a b"', "name: 1 to 63"),
        ('"test"', '"test', "not TOML"),
        (f'id = "{A}"\n\n', 'id = "abc"\n\n', "id: an id has 52"),
        (f'id = "{A}"\n\n', "id = 7\n\n", "id: must be a string"),
        ("address", "adress", r"contacts\[0\]\.adress: unknown"),
        ("tls:127.0.0.1:5001", "127.0.0.1:5001", r"contacts\[0\]\.address: an address"),
        ("tls:127.0.0.1:5001", "tls:example:5001", r"contacts\[0\]\.address"),
        (GOOD[GOOD.index("[[") :], "contacts = 5", "contacts: must be a list"),
        (GOOD[GOOD.index("[[") :], 'contacts = ["a"]', r"contacts\[0\]: must be a table"),
        (GOOD[GOOD.index("[[") :], GOOD[GOOD.index("[[") :] * 2, "twice"),
        ("\n\n", '\ncharter = ["x"]\n\n', r"charter\[0\]"),
        ("\n\n", "\ncharter = [1]\n\n", r"charter\[0\]: must be a string"),
    ],
)
def test_errors_name_the_key(old: str, new: str, reason: str) -> None:
    assert old in GOOD
    with pytest.raises(ConfigError, match=f"network file: .*{reason}"):
        NetworkFile.parse(GOOD.replace(old, new, 1))


@given(st.text(max_size=80))
def test_any_text_is_a_network_or_a_config_error(text: str) -> None:
    with pytest.raises(ConfigError):
        NetworkFile.parse(text)
