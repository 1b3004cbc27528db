# SPDX-License-Identifier: Apache-2.0
"""Services are mended with nobody awake: not too early, not for ever in vain, and only where that was granted."""

from __future__ import annotations

import itertools
from types import SimpleNamespace
from typing import Any

import pytest

from lepton_ai.errors import LeptonError
from lepton_ai.reconcile import MOST_PATIENT, PRINCIPAL, Reconciler, amiss
from lepton_ai.runs import leases
from lepton_ai.runs.model import HERE, Result
from lepton_ai.runs.store import Store


def service(*servers: tuple[str, str, str], replicas: int = 2, version: int = 1) -> dict[str, Any]:
    shown = [{"name": name, "state": state, "status": status} for name, state, status in servers]
    return {"services": [{"name": "chat", "replicas": replicas, "version": version, "servers": shown}]}


WELL = service(("chat-1", "ready", "UP"), ("chat-2", "ready", "UP"))
DOWN = service(("chat-1", "ready", "UP"), ("chat-2", "ready", "DOWN"))


@pytest.mark.parametrize(
    ("answers", "found"),
    [
        ({"lb": WELL}, {}),
        ({"lb": service(("chat-1", "ready", "UP"), ("chat-2", "drain", "DRAIN"))}, {"chat": "1 of 2 replicas serve at lb; not: chat-2"}),
        ({"lb": DOWN}, {"chat": "1 of 2 replicas serve at lb; not: chat-2"}),
        ({"lb": service(("chat-1", "ready", "UP"))}, {"chat": "1 of 2 replicas serve at lb"}),
        ({"lb": service(("chat-1", "ready", "UP 1/2"), replicas=1)}, {}),
        ({"lb1": WELL, "lb2": {"services": [{**WELL["services"][0], "version": 2}]}}, {"chat": "the load balancers do not agree on what is wanted"}),
        ({"lb": {}}, {}),
    ],
)
def test_what_is_amiss(answers: dict[str, Any], found: dict[str, str]) -> None:
    assert amiss(answers) == found


class Site:
    """A site whose load balancers answer what a test wants, and which counts what is asked of it."""

    def __init__(self, store: Store, refuses: bool = False) -> None:
        self.answer: dict[str, Any] = WELL
        self.asked: list[tuple[str, dict[str, Any], str]] = []
        self.begun: list[str] = []
        self.runs = SimpleNamespace(catalog=SimpleNamespace(operations={"service.list": None, "service.reconcile": None}), look=self.look, store=store)
        self.refuses = refuses

    def look(self, _name: str) -> Result:
        return Result(answers={"lb": self.answer})

    def submit_values(self, caller: Any, _operation: Any, values: dict[str, Any], *, key: str, why: str) -> tuple[Any, bool]:
        if self.refuses:
            raise LeptonError("no grant names schedule:reconcile")
        self.asked.append((caller.principal, values, why))
        return SimpleNamespace(id=key), True

    def reconciler(self) -> Reconciler:
        return Reconciler(self, self.begun.append, 30)  # type: ignore[arg-type]


def test_only_what_stays_amiss_is_mended(store: Store) -> None:
    site = Site(store)
    reconciler = site.reconciler()
    for answer in (DOWN, WELL, DOWN):
        site.answer = answer
        assert reconciler.tick()
    assert site.asked == []
    reconciler.tick()
    assert site.asked == [(PRINCIPAL, {"service": "chat"}, "1 of 2 replicas serve at lb; not: chat-2")]
    assert len(site.begun) == 1


def test_what_does_not_get_well_is_tried_less_and_less_often(store: Store) -> None:
    site = Site(store)
    reconciler = site.reconciler()
    site.answer = DOWN
    tried = []
    for tick in range(120):
        before = len(site.asked)
        reconciler.tick()
        if len(site.asked) > before:
            tried.append(tick)
    assert [later - earlier for earlier, later in itertools.pairwise(tried)][:5] == [3, 5, 9, 17, MOST_PATIENT + 1]
    site.answer = WELL
    reconciler.tick()
    site.answer = DOWN
    reconciler.tick()
    reconciler.tick()
    assert len(site.asked) == len(tried) + 1  # what was well in between is tried at once again


def test_without_a_grant_or_a_load_balancer_nothing_is_done(store: Store) -> None:
    refused = Site(store, refuses=True)
    reconciler = refused.reconciler()
    refused.answer = DOWN
    assert reconciler.tick()
    assert reconciler.tick()
    assert refused.begun == []
    without = Site(store)
    without.runs.look = lambda _name: Result(failures={HERE: "the inventory has no host in the group load_balancers"})
    assert not without.reconciler().tick()


def test_a_service_that_somebody_is_changing_is_left_alone(store: Store) -> None:
    site = Site(store)
    reconciler = site.reconciler()
    site.answer = DOWN
    holder = leases.process_holder("somebody")
    assert not leases.try_acquire(store, holder, ["service/chat"])
    for _ in range(3):
        reconciler.tick()
    assert site.asked == []
    leases.release(store, holder.owner)
    reconciler.tick()
    reconciler.tick()
    assert len(site.asked) == 1
