"""UIV-G: against the slow second implementation, and against all that can be done to a cell on the way."""

from __future__ import annotations

import json
import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from backrooms.crypto.onion import HOP_KEY_BYTES, LAYER_KEY_BYTES, REKEY_CELLS, UIV_G, Layer, split_hop_keys
from backrooms.errors import LocalProtocolError
from backrooms.wire.cell import BODY_SIZE, TAG_SIZE
from tests.crypto.make_vectors import CELLS, HOPS, links_digest, seeded, uivg_plan
from tests.crypto.reference import BODY, Circuit, UivG, ctr

RELAY, RELAY_EARLY = 1, 2
VECTORS = Path(__file__).parent.parent / "vectors"

Cell = tuple[bytes, bytes]


class Onion:
    """Both ends of a circuit's layers, joined the way client and relays join them."""

    def __init__(self, hop_keys: list[bytes]) -> None:
        split = [split_hop_keys(keys) for keys in hop_keys]
        self.client_forward = [Layer(forward, False) for forward, _, _ in split]
        self.client_backward = [Layer(backward, False) for _, backward, _ in split]
        self.relay_forward = [Layer(forward, True) for forward, _, _ in split]
        self.relay_backward = [Layer(backward, True) for _, backward, _ in split]

    def wrap(self, hop: int, command: int, body: bytes) -> Cell:
        """A cell for `hop` (from 0) as the client sends it."""
        left, right = self.client_forward[hop].client_originate(command, body)
        for layer in reversed(self.client_forward[:hop]):
            left, right = layer.client_wrap(command, left, right)
        return left, right

    def travel(self, command: int, cell: Cell, start: int = 0) -> tuple[int | None, Cell, list[Cell]]:
        """Through the relays from `start` on: which one recognised it, what it read, the links."""
        links = [cell]
        for number in range(start, len(self.relay_forward)):
            mine, *cell_parts = self.relay_forward[number].relay_forward(command, *links[-1])
            cell = cell_parts[0], cell_parts[1]
            if mine:
                return number, cell, links
            links.append(cell)
        return None, cell, links

    def answer(self, hop: int, command: int, body: bytes) -> list[Cell]:
        """A cell that `hop` makes, on each link, the client's first."""
        links = [self.relay_backward[hop].relay_originate(command, body)]
        for layer in reversed(self.relay_backward[:hop]):
            links.append(layer.relay_backward(command, *links[-1]))
        return links[::-1]

    def read(self, command: int, cell: Cell) -> tuple[int | None, Cell]:
        """The client takes layers off: which hop made it, and what it says."""
        for number, layer in enumerate(self.client_backward):
            mine, *cell_parts = layer.client_receive(command, *cell)
            cell = cell_parts[0], cell_parts[1]
            if mine:
                return number, cell
        return None, cell


def onion(seed: int, hops: int) -> Onion:
    rng = random.Random(seed)
    return Onion([rng.randbytes(HOP_KEY_BYTES) for _ in range(hops)])


def flip(data: bytes, bit: int) -> bytes:
    changed = bytearray(data)
    changed[bit // 8] ^= 1 << bit % 8
    return bytes(changed)


def flip_cell(cell: Cell, bit: int) -> Cell:
    whole = flip(cell[0] + cell[1], bit)
    return whole[:TAG_SIZE], whole[TAG_SIZE:]


def flat(links: list[Cell]) -> list[bytes]:
    return [left + right for left, right in links]


# --- against the second implementation ------------------------------------------------------------------


@pytest.mark.parametrize("direction", ["forward", "backward"])
def test_frozen_vectors(direction: str) -> None:
    """300 cells each way through 4 hops, the first hop changing keys 4 times and the last at least once."""
    vectors = json.loads((VECTORS / "backrooms_uivg.json").read_text())
    made = Onion([seeded(f"hop {i}", HOP_KEY_BYTES) for i in range(HOPS)])
    passed = [0] * HOPS
    assert len(vectors[direction]) == CELLS >= 256
    for index, (hop, command, digest) in enumerate(vectors[direction]):
        assert (hop, command) == uivg_plan(direction, index)[:2]
        body = uivg_plan(direction, index)[2]
        if direction == "forward":
            reached, (_, read), links = made.travel(command, made.wrap(hop, command, body))
        else:
            links = made.answer(hop, command, body)
            reached, (_, read) = made.read(command, links[0])
        assert (reached, read) == (hop, body)
        assert links_digest(flat(links)) == digest
        if index == 0:
            assert flat(links)[0].hex() == vectors[f"first {direction} cell"]
        for number in range(hop + 1):
            passed[number] += 1
    assert min(passed) > REKEY_CELLS
    assert passed[0] > 4 * REKEY_CELLS


@pytest.mark.parametrize("hops", [1, 2, 3, 4])
def test_random_cells_against_the_reference(hops: int) -> None:
    """Fresh keys and bodies, so that nothing fits the frozen ones alone; one hop changes keys."""
    rng = random.SystemRandom()
    hop_keys = [rng.randbytes(HOP_KEY_BYTES) for _ in range(hops)]
    slow, fast = Circuit(hop_keys), Onion(hop_keys)
    for _ in range(REKEY_CELLS + 2 if hops == 1 else 5):
        hop, command, body = rng.randrange(hops), rng.choice((RELAY, RELAY_EARLY)), rng.randbytes(BODY_SIZE)
        reached, cell, links = fast.travel(command, fast.wrap(hop, command, body))
        assert flat(links) == slow.forward(hop, command, body)
        assert (reached, cell[1]) == (hop, body)
        answers = fast.answer(hop, command, body)
        assert flat(answers) == slow.backward(hop, command, body)
        assert fast.read(command, answers[0])[0] == hop


@pytest.mark.parametrize("mine_at", [set(), {REKEY_CELLS - 1}, {REKEY_CELLS - 2}, {0, REKEY_CELLS}])
@pytest.mark.parametrize("encrypting", [True, False])
def test_keys_change_at_each_64th_cell_recognised_or_not(mine_at: set[int], encrypting: bool) -> None:
    keys = seeded("rekey", LAYER_KEY_BYTES)
    slow, fast = UivG(keys), Layer(keys, encrypting)
    probe = seeded("probe", TAG_SIZE + BODY_SIZE)
    for index in range(2 * REKEY_CELLS + 1):
        tag = seeded(f"tag {index}", TAG_SIZE)
        before = slow.kh + slow.kb + slow.kp + slow.ks
        slow.step(tag, index in mine_at)
        fast.step(tag, index in mine_at)
        after = slow.kh + slow.kb + slow.kp + slow.ks
        assert (before != after) == ((index + 1) % REKEY_CELLS == 0)
        assert fast.expected == slow.n
        if index % REKEY_CELLS in (0, 1, REKEY_CELLS - 2, REKEY_CELLS - 1):
            crypt, slowly = (fast.encrypt, slow.enc) if encrypting else (fast.decrypt, slow.dec)
            assert b"".join(crypt(RELAY, probe[:TAG_SIZE], probe[TAG_SIZE:])) == slowly(RELAY, probe)


_UPDATE = UIV_G.update_offset


@pytest.mark.parametrize("below", [1, 100, _UPDATE - 1, _UPDATE, _UPDATE + 1, _UPDATE + 8])
def test_the_block_counter_wraps(below: int) -> None:
    """Counter blocks are counted mod 2^128, in the body, before the update and inside of it."""
    first = 2**128 - below
    suite = replace(UIV_G, counter_start=lambda key: lambda tag: first.to_bytes(16, "big"))
    keys, tag = seeded("wrap", LAYER_KEY_BYTES), seeded("wrap tag", TAG_SIZE)
    stream_key = keys[96:128]
    layer = Layer(keys, False, suite)
    assert layer.decrypt(RELAY, tag, bytes(BODY_SIZE))[1] == ctr(stream_key, first, BODY_SIZE)
    layer.step(tag, True)
    assert layer.expected == ctr(stream_key, first + _UPDATE, 144)[128:]


def test_a_new_tag_for_every_cell_of_a_hop() -> None:
    """A repeated N would be a two-time pad."""
    made = onion(1, 1)
    forward, backward = set(), set()
    for index in range(3 * REKEY_CELLS):
        forward.add(made.client_forward[0].expected)
        backward.add(made.relay_backward[0].expected)
        made.travel(RELAY, made.wrap(0, RELAY, bytes(BODY_SIZE)))
        made.read(RELAY, made.answer(0, RELAY, bytes(BODY_SIZE))[0])
        assert made.client_forward[0].expected == made.relay_forward[0].expected, index
        assert made.client_backward[0].expected == made.relay_backward[0].expected, index
    assert len(forward | backward) == 6 * REKEY_CELLS


def test_equal_bodies_never_look_equal() -> None:
    made = onion(2, 3)
    seen = [made.wrap(2, RELAY, bytes(BODY_SIZE)) for _ in range(200)]
    assert len({left for left, _ in seen}) == len({right for _, right in seen}) == 200


@settings(max_examples=25)
@given(st.lists(st.tuples(st.booleans(), st.integers(0, 3), st.integers(1, 2)), max_size=90), st.data())
def test_any_mixture_of_cells_arrives(plan: list[tuple[bool, int, int]], data: Any) -> None:
    """Cells to and from any hop in any order, both directions mixed."""
    hops = data.draw(st.integers(1, 4))
    made = onion(data.draw(st.integers(0, 2**32)), hops)
    for number, (forward, hop, command) in enumerate(plan):
        hop %= hops
        body = number.to_bytes(4, "big") * (BODY_SIZE // 4)
        if forward:
            reached, (_, read), _ = made.travel(command, made.wrap(hop, command, body))
        else:
            reached, (_, read) = made.read(command, made.answer(hop, command, body)[0])
        assert (reached, read) == (hop, body)


def test_both_ends_name_the_same_tag_in_a_sendme() -> None:
    """The tag outside the hop's layer: forward XL as the hop receives it, backward YL as the hop sends it."""
    made = onion(3, 3)
    for _ in range(70):
        sent, right = made.client_forward[2].client_originate(RELAY, bytes(BODY_SIZE))
        cell = sent, right
        for layer in reversed(made.client_forward[:2]):
            cell = layer.client_wrap(RELAY, *cell)
        reached, _, links = made.travel(RELAY, cell)
        assert reached == 2
        assert links[-1][0] == sent

        links = made.answer(2, RELAY, bytes(BODY_SIZE))
        cell = links[0]
        for layer in made.client_backward[:2]:
            mine, *parts = layer.client_receive(RELAY, *cell)
            cell = parts[0], parts[1]
            assert not mine
        assert cell[0] == links[-1][0]
        assert made.client_backward[2].client_receive(RELAY, *cell)[0]


# --- hostile --------------------------------------------------------------------------------------------


def test_every_flipped_bit_is_refused_at_one_hop() -> None:
    """All 16,320 positions, through the relay's and the client's own entry points."""
    keys = seeded("flip", LAYER_KEY_BYTES)
    body = seeded("flip body", BODY_SIZE)
    cell = Layer(keys, False).client_originate(RELAY, body)
    answer = Layer(keys, True).relay_originate(RELAY, body)
    assert Layer(keys, True).relay_forward(RELAY, *cell)[0]
    assert Layer(keys, False).client_receive(RELAY, *answer)[0]
    for bit in range(8 * (TAG_SIZE + BODY_SIZE)):
        mine, _, read = Layer(keys, True).relay_forward(RELAY, *flip_cell(cell, bit))
        assert not mine, bit
        if bit >= 8 * TAG_SIZE:
            assert read[:64] != body[:64], bit  # the flip spread over the whole cell: no tagging
        assert not Layer(keys, False).client_receive(RELAY, *flip_cell(answer, bit))[0], bit


def sample_bits() -> list[int]:
    """Positions in the tag, at the borders of blocks, and spread over the body."""
    edges = [0, 7, 127, 128, 129, 255, 256, 8 * (TAG_SIZE + BODY_SIZE) - 1]
    return edges + list(range(200, 8 * (TAG_SIZE + BODY_SIZE), 997))


@pytest.mark.parametrize("link", [0, 1, 2, 3])
def test_a_flip_on_any_forward_link_kills_this_and_all_later_cells(link: int) -> None:
    for bit in sample_bits():
        made = onion(10, 4)
        made.travel(RELAY, made.wrap(3, RELAY, bytes(BODY_SIZE)))
        cell = made.wrap(3, RELAY, bytes(BODY_SIZE))
        for layer in made.relay_forward[:link]:
            _, *parts = layer.relay_forward(RELAY, *cell)
            cell = parts[0], parts[1]
        reached, garbled, _ = made.travel(RELAY, flip_cell(cell, bit), start=link)
        assert reached is None
        assert garbled[1].count(0) < 60  # of 2,024 zero bytes nothing is left: about 8 by chance
        for hop in range(link, 4):
            reached, garbled, _ = made.travel(RELAY, made.wrap(hop, RELAY, bytes(BODY_SIZE)))
            assert reached is None
            assert garbled[1].count(0) < 60


@pytest.mark.parametrize("link", [0, 1, 2, 3])
def test_a_flip_on_any_backward_link_is_recognised_by_no_layer(link: int) -> None:
    """At the client the body stays malleable: the check of the tag is all there is."""
    for bit in sample_bits():
        made = onion(11, 4)
        assert made.read(RELAY, made.answer(3, RELAY, bytes(BODY_SIZE))[0])[0] == 3
        cell = made.relay_backward[3].relay_originate(RELAY, bytes(BODY_SIZE))
        for number in (2, 1, 0, -1):
            if number == link - 1:
                cell = flip_cell(cell, bit)
            if number >= 0:
                cell = made.relay_backward[number].relay_backward(RELAY, *cell)
        assert made.read(RELAY, cell)[0] is None
        # the two ends have parted: what that hop says later is not read either
        assert all(made.read(RELAY, made.answer(3, RELAY, bytes(BODY_SIZE))[0])[0] is None for _ in range(3))


@pytest.mark.parametrize("hop", [0, 1, 2])
def test_replayed_cells_are_refused(hop: int) -> None:
    made = onion(12, 3)
    cell = made.wrap(hop, RELAY, bytes(BODY_SIZE))
    assert made.travel(RELAY, cell)[0] == hop
    assert made.travel(RELAY, cell)[0] is None
    made = onion(12, 3)
    answer = made.answer(hop, RELAY, bytes(BODY_SIZE))[0]
    assert made.read(RELAY, answer)[0] == hop
    assert made.read(RELAY, answer)[0] is None


def test_reordered_and_dropped_cells_are_refused() -> None:
    made = onion(13, 3)
    first, second = (made.wrap(2, RELAY, bytes(BODY_SIZE)) for _ in range(2))
    assert made.travel(RELAY, second)[0] is None
    assert made.travel(RELAY, first)[0] is None
    made = onion(13, 3)
    first, second = (made.answer(2, RELAY, bytes(BODY_SIZE))[0] for _ in range(2))
    assert made.read(RELAY, second)[0] is None
    assert made.read(RELAY, first)[0] is None


def test_an_injected_cell_ends_the_circuit_for_good() -> None:
    made = onion(14, 3)
    assert made.travel(RELAY, (bytes(TAG_SIZE), bytes(BODY_SIZE)))[0] is None
    assert all(made.travel(RELAY, made.wrap(2, RELAY, bytes(BODY_SIZE)))[0] is None for _ in range(130))


def test_a_changed_command_is_refused() -> None:
    """RELAY_EARLY cannot be made of RELAY on the way, nor the other way round."""
    for sent, seen in ((RELAY, RELAY_EARLY), (RELAY_EARLY, RELAY)):
        made = onion(15, 2)
        assert made.travel(seen, made.wrap(1, sent, bytes(BODY_SIZE)))[0] is None
        assert made.read(seen, made.answer(1, sent, bytes(BODY_SIZE))[0])[0] is None


@pytest.mark.parametrize("cut", [1, 15, 16, 17, BODY_SIZE])
def test_a_truncated_body_is_refused(cut: int) -> None:
    """Cells have one size; should a shorter body ever get here, it is not recognised."""
    made = onion(16, 1)
    left, right = made.wrap(0, RELAY, bytes(BODY_SIZE))
    assert made.travel(RELAY, (left, right[:-cut]))[0] is None
    left, right = made.answer(0, RELAY, bytes(BODY_SIZE))[0]
    assert made.read(RELAY, (left, right[:-cut]))[0] is None


def test_each_part_of_the_keys_matters() -> None:
    """One wrong bit in any of Kh, Kb, Kp, Ks, N on either side: not recognised, or not readable."""
    keys = seeded("parts", LAYER_KEY_BYTES)
    body = seeded("parts body", BODY_SIZE)
    cell = Layer(keys, False).client_originate(RELAY, body)
    for position in range(LAYER_KEY_BYTES):
        wrong = Layer(flip(keys, 8 * position), True)
        mine, _, read = wrong.relay_forward(RELAY, *cell)
        assert not (mine and read == body), position
        if position < 64 or position >= 128:  # Kh, Kb, N decide about the tag, Kp and Ks about the body
            assert not mine
        else:
            assert read != body


def test_directions_and_hops_do_not_share_keys() -> None:
    made = onion(17, 2)
    cell = made.wrap(0, RELAY, bytes(BODY_SIZE))
    assert made.read(RELAY, cell)[0] is None
    made = onion(17, 2)
    cell = made.wrap(0, RELAY, bytes(BODY_SIZE))
    assert made.travel(RELAY, cell, start=1)[0] is None


# --- the rest -------------------------------------------------------------------------------------------


def test_split_hop_keys() -> None:
    keys = bytes(i % 251 for i in range(HOP_KEY_BYTES))
    forward, backward, binding = split_hop_keys(keys)
    assert (len(forward), len(backward), len(binding)) == (144, 144, 32)
    assert forward + backward + binding == keys
    for wrong in (keys[:-1], keys + b"\0", b""):
        with pytest.raises(LocalProtocolError, match="hop keys"):
            split_hop_keys(wrong)


def test_layer_refuses_keys_of_a_wrong_size() -> None:
    for size in (0, 16, 143, 145, 160):
        with pytest.raises(LocalProtocolError, match="layer keys"):
            Layer(bytes(size), True)


def test_repr_shows_no_secret() -> None:
    layer = Layer(seeded("repr", LAYER_KEY_BYTES), True)
    layer.step(bytes(TAG_SIZE), False)
    assert repr(layer) == "<Layer after 1 cells>"


def test_sizes_agree_with_the_reference() -> None:
    assert BODY_SIZE == BODY
