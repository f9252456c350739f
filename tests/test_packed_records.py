"""Packed mappings by group: what is put in comes out, whatever the groups are."""

from __future__ import annotations

import pickle

import pytest
from hypothesis import given
from hypothesis import strategies as st

from raprune.records import GroupRatios, KeptChannels

kept_channels = st.dictionaries(
    st.text(max_size=8), st.sets(st.integers(0, 5000), max_size=40).map(lambda found: tuple(sorted(found))), max_size=6
)
ratios = st.dictionaries(st.text(max_size=8), st.floats(0, 1), max_size=6)


@given(kept_channels)
def test_channels_packed_and_unpacked_are_the_same_in_their_order(kept: dict[str, tuple[int, ...]]) -> None:
    packed = KeptChannels.of(kept)
    assert packed == kept and list(packed.items()) == list(kept.items()) and len(packed) == len(kept)
    assert packed.widths == {group: len(channels) for group, channels in kept.items()}
    again = pickle.loads(pickle.dumps(packed))
    assert again == packed and KeptChannels(tuple(kept), packed.bits) == packed


@given(ratios)
def test_ratios_packed_and_unpacked_are_the_same_in_their_order(given: dict[str, float]) -> None:
    packed = GroupRatios.of(given)
    assert packed == given and list(packed.items()) == list(given.items())
    assert pickle.loads(pickle.dumps(packed)) == packed


def test_channels_of_a_large_network_take_one_bit_each() -> None:
    packed = KeptChannels.of({f"layer{n}": tuple(range(0, 2 * 256, 2)) for n in range(37)})
    assert len(packed.bits) == 37 * (2 + 64)


@pytest.mark.parametrize("name", ["b", "", "aa"])
def test_group_that_is_not_named_is_no_key(name: str) -> None:
    with pytest.raises(KeyError):
        KeptChannels.of({"a": (0,)})[name]
    with pytest.raises(KeyError):
        GroupRatios.of({"a": 0.5})[name]
    assert name not in KeptChannels.of({"a": (0,)}) and GroupRatios.of({"a": 0.5}).get(name, 1.0) == 1.0


def test_indices_that_do_not_ascend_are_refused() -> None:
    with pytest.raises((AssertionError, IndexError)):
        KeptChannels.of({"a": (3, 1)})
