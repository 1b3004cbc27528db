# SPDX-License-Identifier: Apache-2.0
"""All or none, first come first served, and what the dead held is free again."""

import subprocess
import time
from dataclasses import replace

import pytest
from tests.conftest import eventually

from lepton_ai.runs import leases
from lepton_ai.runs.leases import Holder, dead_owners, process_holder, release, try_acquire
from lepton_ai.runs.store import Store


def holder(owner: str) -> Holder:
    return process_holder(owner)


def test_a_list_of_locks_is_taken_whole_or_not_at_all(store: Store) -> None:
    assert try_acquire(store, holder("a"), ["node/1", "host/x"]) == []
    assert try_acquire(store, holder("b"), ["host/y", "host/x"]) == ["a"]
    assert try_acquire(store, holder("c"), ["node/2"]) == []
    assert {held.owner for held in leases.holders(store)} == {"a", "c"}


def test_who_waits_is_not_overtaken(store: Store) -> None:
    assert try_acquire(store, holder("a"), ["x"]) == []
    assert try_acquire(store, holder("b"), ["x", "y"]) == ["a"]
    assert try_acquire(store, holder("c"), ["y"]) == ["b"]
    release(store, "a")
    assert try_acquire(store, holder("c"), ["y"]) == ["b"]
    assert try_acquire(store, holder("b"), ["x", "y"]) == []
    release(store, "b")
    assert try_acquire(store, holder("c"), ["y"]) == []


def test_taking_again_what_one_holds_is_no_conflict(store: Store) -> None:
    assert try_acquire(store, holder("a"), ["x"]) == []
    assert try_acquire(store, holder("a"), ["x"]) == []


def test_no_locks_need_no_lease(store: Store) -> None:
    assert try_acquire(store, holder("a"), []) == []
    assert leases.holders(store) == []


def test_the_dead_are_known_at_once_on_this_machine_and_by_expiry_on_another(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    process = subprocess.Popen(["sleep", "60"])
    assert try_acquire(store, process_holder("child", process.pid), ["x"]) == []
    elsewhere = replace(holder("far"), boot_id="another-boot")
    assert try_acquire(store, elsewhere, ["y"]) == []
    assert dead_owners(store) == []
    process.kill()
    process.wait()
    assert eventually(lambda: dead_owners(store)) == ["child"]
    monkeypatch.setattr(time, "time", lambda real=time.time: real() + leases.LEASE_SECONDS + 1)
    assert set(dead_owners(store)) == {"child", "far"}
