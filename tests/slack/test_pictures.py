# SPDX-License-Identifier: Apache-2.0
"""Pictures are pictures, for one host and for many, and say in words what they show."""

from __future__ import annotations

import struct

import pytest

from lepton_ai.slack.pictures import capacity_map


def host(used: int) -> dict[str, dict[str, int]]:
    memory = {"memory": 100 << 30, "memory_used": used << 30, "memory_free": (100 - used) << 30}
    return {"capacity": {**memory, "vcpus": 8, "vcpus_used": 2, "vcpus_free": 6}}


@pytest.mark.parametrize("count", [1, 12, 300])
def test_a_capacity_map(count: int) -> None:
    drawn = capacity_map({f"host{number}": host(number % 100) for number in range(count)})
    assert drawn is not None
    picture, words = drawn
    assert picture.startswith(b"\x89PNG")
    width, height = struct.unpack(">II", picture[16:24])
    assert 0 < width < 2000
    assert 0 < height < 4000
    assert "% of memory and 25% of vCPUs given" in words
    assert len(words) < 1000


def test_without_a_host_there_is_no_picture() -> None:
    assert capacity_map({}) is None
    assert capacity_map({"h": {"nodes": []}}) is None
