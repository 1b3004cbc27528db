# SPDX-License-Identifier: Apache-2.0
"""What a scaling decision is made from, as it is now: how a service stands, what its signals say, what its hosts have room for."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from statistics import fmean
from typing import Any, NamedTuple

import structlog
from ansible_collections.lepton.cloud.plugins.module_utils._backends import room_of
from ansible_collections.lepton.cloud.plugins.module_utils._balancer import is_up
from ansible_collections.lepton.cloud.plugins.module_utils._placement import room_for
from ansible_collections.lepton.cloud.plugins.module_utils._service import read_service
from ansible_collections.lepton.cloud.plugins.module_utils._units import parse_size

from lepton_ai.runs.model import Result
from lepton_ai.scaling.decision import Sample
from lepton_ai.scaling.policy import Signal
from lepton_ai.scaling.series import Reading

log = structlog.get_logger()
HOSTS = {"container": "container.list", "node": "host.show"}  # what says how much room hosts have, by what replicas are
# Of the last minute, by HAProxy's own metrics; nothing where there was no request or nobody scrapes them.
ERRORS = (
    'sum(rate(haproxy_backend_http_responses_total{{proxy="{service}",code="5xx"}}[1m]))'
    ' / sum(rate(haproxy_backend_http_requests_total{{proxy="{service}"}}[1m]))'
)


class Stands(NamedTuple):
    """A service at its load balancers: how many replicas are wanted, how many serve where fewest do, which share of those there are does not.

    `sessions` are those that all load balancers have now; where no replica is, they wait.

    `per_host` is how many serve on each host; pods have addresses of their own, which say nothing of that.
    """

    asked: int
    ready: int
    vanished: float
    per_host: tuple[int, ...]
    declaration: Mapping[str, Any]
    sessions: int


def stands(service: str, answers: Mapping[str, Mapping[str, Any]]) -> Stands | None:
    """Return how a service stands, None where there is no such service."""
    entries = [entry for answer in answers.values() for entry in answer.get("services", ()) if entry["name"] == service]
    if not entries:
        return None
    newest = max(entries, key=lambda entry: int(entry["version"]))
    counted = [([server for server in entry["servers"] if server["state"] == "ready"]) for entry in entries]
    serving = [sum(map(is_up, servers)) for servers in counted]
    declaration = newest.get("declaration") or {}
    hosts = Counter(server.get("address") for server in counted[serving.index(min(serving))] if is_up(server))
    per_host = () if declaration.get("backend") == "deployment" else tuple(sorted(hosts.values(), reverse=True))
    vanished = max((1 - up / len(servers) for up, servers in zip(serving, counted, strict=True) if servers), default=0.0)
    sessions = sum(int(entry.get("counters", {}).get("sessions", 0)) for entry in entries)
    return Stands(int(newest["replicas"]), min(serving), vanished, per_host, declaration, sessions)


def sample_of(signal: Signal, reading: Reading, ready: int) -> Sample:
    """Return what a signal says: loads and queues are added up, of utilisations the mean counts and of latencies the worst.

    Utilisations of several series are of one replica each, so there should be as many as serve.
    """
    values = reading.values
    if reading.trouble or not values:
        return Sample(None, trouble=reading.trouble or "no sample")
    if signal.kind == "utilisation":
        covered = min(1.0, len(values) / ready) if len(values) > 1 and ready else 1.0
        return Sample(fmean(values), reading.age, covered)
    return Sample(max(values) if signal.kind == "latency" else sum(values), reading.age)


def errors_of(service: str, ask: Callable[[str], Reading]) -> float:
    """Return which share of a service's answers are errors, 0 where nobody knows."""
    reading = ask(ERRORS.format(service=service))
    return sum(reading.values) if reading.values and not reading.trouble else 0.0


def room_of_hosts(name: str, declaration: Mapping[str, Any], more: int, look: Callable[[str], Result]) -> tuple[str, ...] | None:
    """Return the hosts that so many more replicas would go to, one name for each that has room; None where that cannot be told."""
    service = read_service(name, declaration)
    read = HOSTS.get(service.backend)
    if read is None:
        return None  # a cluster places its pods itself
    told = look(read)
    rooms = {host: room_of(answer) for host, answer in told.answers.items() if "ports_free" in answer}
    if not rooms:
        log.warning("hosts do not say what they have room for", why="; ".join(f"{host}: {why}" for host, why in told.failures.items()))
        return None
    return tuple(room_for(rooms, cpus=service.cpus or 0, memory=parse_size(service.memory) if service.memory else 0, most=more))
