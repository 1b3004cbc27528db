# Copyright (c) 2026, Lepton contributors
# BSD-2-Clause license (see LICENSES/BSD-2-Clause.txt or https://opensource.org/licenses/BSD-2-Clause)
# SPDX-License-Identifier: BSD-2-Clause
"""A service at a load balancer: its configuration file, its servers, and the plan from what is to what is wanted. Pure.

PRIVATE to the collection and to the Lepton bot. One file holds one service: what is wanted of it in the first line, then a frontend, a
backend, and a line for each server. A reload of HAProxy reads it, so it always says what the running HAProxy was told.
"""

from __future__ import annotations

import csv
import json
import re
from dataclasses import dataclass, replace
from typing import Any, Iterable, Mapping

from ._changes import Change, diff_of
from ._command import clean
from ._service import Service, read_service

MARK = "# lepton: "
SERVER_NAME = re.compile(r"[a-z0-9](?:[a-z0-9.-]{0,61}[a-z0-9])?", re.ASCII)
ADDRESS = re.compile(r"[A-Za-z0-9][A-Za-z0-9.-]{0,252}|\[?[0-9a-fA-F:]{2,39}\]?", re.ASCII)
SERVER_LINE = re.compile(r"^  server (?P<name>\S+) (?P<address>\S+):(?P<port>\d+) (?P<rest>.*)$", re.MULTILINE)
# `default-server` does not reach servers that are added at run time (haproxy#1994), so each carries its checks itself.
CHECKS = "check inter 1s fastinter 250ms downinter 1s fall 2 rise 1"
WAKE_SECONDS = 30  # until whoever scales has seen that a request waits, and HAProxy that the replica is up
WAIT_ACTION = "lepton_wait_for_server"  # which the role load_balancer brings
DRAINED = "# drained, of weight "
FULL_WEIGHT = 100  # of HAProxy's 0 to 256, so that a weight is a percentage of a whole replica
# Bits of srv_admin_state, https://docs.haproxy.org/2.6/management.html (show servers state)
MAINT_BITS = 0x01 | 0x02 | 0x20
DRAIN_BITS = 0x08 | 0x10


class BalancerError(ValueError):
    """Something asked of a load balancer that cannot be had; the text says why and what to do."""


@dataclass(frozen=True)
class Server:
    """A server as it is wanted or as HAProxy has it. `state` is HAProxy's word for the administrative state.

    `checked`: HAProxy asks it for its health. It does not where a server of somebody else was taken over.
    """

    name: str
    address: str
    port: int
    weight: int = FULL_WEIGHT
    state: str = "ready"
    checked: bool = True


@dataclass(frozen=True)
class Entry:
    """A service's file: what is wanted, and the servers that the next reload would bring.

    `version` counts the changes of what is wanted: of two load balancers that differ, the higher one is right.
    """

    name: str
    service: Service
    replicas: int
    servers: tuple[Server, ...] = ()
    version: int = 1


def balance_line(service: Service) -> list[str]:
    """Return HAProxy's lines for a balance policy."""
    if service.balance == "hash":
        return ["balance hdr(%s)" % service.hash_header, "hash-type consistent"]
    return ["balance %s" % service.balance]


def server_words(server: Server, service: Service) -> str:
    """Return a server's parameters as both the configuration file and `add server` take them."""
    words = ("%s weight %d" % (CHECKS, server.weight)) if server.checked else "weight %d" % server.weight
    return words + (" maxconn %d" % service.max_concurrent if service.max_concurrent is not None else "")


def render(entry: Entry, listen_address: str) -> str:
    """Return the file of a service."""
    service = entry.service
    wanted = json.dumps({"replicas": entry.replicas, "service": service.to_fields(), "version": entry.version}, sort_keys=True, separators=(",", ":"))
    lines = [
        MARK + wanted,
        "# Written by lepton.cloud; what is changed here by hand is lost.",
        "frontend %s" % entry.name,
        "  bind %s:%d" % (listen_address, service.listen_port),
        # At a reload, an idle connection on which a request is just under way would be reset.
        "  option idle-close-on-response",
        "  default_backend %s" % entry.name,
        "",
        "backend %s" % entry.name,
        *("  " + line for line in balance_line(service)),
        "  option httpchk",
        "  http-check send meth GET uri %s" % service.health_path,
        # A request that no server has answered yet is given to another one: inference has no side effects.
        "  option redispatch 1",
        "  retries 3",
        "  retry-on conn-failure empty-response",
    ]
    if service.min_replicas == 0:
        # Requests that find no replica wait for the first one, and wake whoever scales the service: HAProxy counts them as its sessions.
        lines.append("  http-request lua.%s %d" % (WAIT_ACTION, service.start_seconds + WAKE_SECONDS))
    if service.max_concurrent is not None:
        # Not only on the servers' own lines: another limit is for all of them, and that needs a reload.
        lines.append("  # each server takes %d requests at once" % service.max_concurrent)
    for server in entry.servers:
        # HAProxy's configuration has no word for a drained server; no weight is the same to new sessions.
        written = replace(_written(server), checked=server.checked)
        down = " disabled" if server.state == "maint" else " %s%d" % (DRAINED, server.weight) if server.state == "drain" else ""
        lines.append("  server %s %s:%d %s%s" % (server.name, server.address, server.port, server_words(written, service), down))
    return "\n".join(lines) + "\n"


def read_entry(name: str, text: str) -> Entry | None:
    """Return what a service's file says, None for a file without our mark."""
    first = text.partition("\n")[0]
    if not first.startswith(MARK):
        return None
    try:
        wanted = json.loads(first[len(MARK) :])
        service = read_service(name, wanted["service"])
        replicas, version = int(wanted["replicas"]), int(wanted["version"])
    except (ValueError, KeyError, TypeError) as error:
        raise BalancerError("the file of service %s at the load balancer cannot be read: %s" % (name, error)) from error
    servers = []
    for line in SERVER_LINE.finditer(text):
        drained = line["rest"].partition(DRAINED)[2]
        weight = drained or re.search(r"\bweight (\d+)", line["rest"]).group(1)  # type: ignore[union-attr]
        state = "drain" if drained else "maint" if line["rest"].endswith(" disabled") else "ready"
        servers.append(Server(line["name"], line["address"], int(line["port"]), int(weight), state, line["rest"].startswith("check ")))
    return Entry(name, service, replicas, tuple(servers), version)


def read_servers(table: str) -> dict[str, dict[str, Server]]:
    """Return the servers by backend and name, from HAProxy's `show servers state`."""
    lines = [line for line in table.splitlines() if line.strip()]
    header = next((line[2:].split() for line in lines if line.startswith("# ")), None)
    if header is None:
        raise BalancerError("HAProxy answered something else than its servers: %s" % ascii(clean(table)[:200]))
    found: dict[str, dict[str, Server]] = {}
    for line in lines:
        words = line.split()
        if line.startswith("#") or len(words) < len(header):
            continue
        row = dict(zip(header, words))  # noqa: B905 -- Python 3.9 has no strict
        bits = int(row["srv_admin_state"])
        weight = int(row["srv_uweight"])
        state = "maint" if bits & MAINT_BITS else "drain" if bits & DRAIN_BITS or weight == 0 else "ready"
        server = Server(row["srv_name"], row["srv_addr"], int(row["srv_port"]), weight, state)
        found.setdefault(row["be_name"], {})[server.name] = server
    return found


def read_statistics(table: str) -> dict[str, list[dict[str, Any]]]:
    """Return what HAProxy counts, by proxy: one row for the frontend, one a server, one for the backend.

    Times are milliseconds, averages over the last 1024 requests; rates are of the last second.
    """
    found: dict[str, list[dict[str, Any]]] = {}
    for row in csv.DictReader(table.lstrip("# ").splitlines()):
        if not row.get("pxname"):
            continue

        def number(field: str, row: Mapping[str, str] = row) -> int:
            return int(row.get(field) or 0)

        found.setdefault(row["pxname"], []).append(
            {
                "name": row["svname"],
                "status": row["status"],
                "sessions": number("scur"),
                "queued": number("qcur"),
                "rate": number("req_rate") if row["svname"] == "FRONTEND" else number("rate"),
                # HAProxy counts requests of proxies, and of servers what they have answered.
                "requests": number("req_tot") or sum(number("hrsp_" + kind) for kind in ("1xx", "2xx", "3xx", "4xx", "5xx", "other")),
                "connection_errors": number("econ"),
                "response_errors": number("eresp"),
                "retries": number("wretr"),
                "http_2xx": number("hrsp_2xx"),
                "http_4xx": number("hrsp_4xx"),
                "http_5xx": number("hrsp_5xx"),
                "aborted_by_server": number("srv_abrt"),
                "queue_ms": number("qtime"),
                "connect_ms": number("ctime"),
                "response_ms": number("rtime"),
                "total_ms": number("ttime"),
                "check": clean(row.get("check_status") or ""),
                "last_check": clean(row.get("last_chk") or "")[:200],
            }
        )
    return found


@dataclass(frozen=True)
class Plan:
    """Commands to the running HAProxy in order, the server lines that its file has afterwards, and the fields that change.

    `file_first`: for what goes away. A reload between the two must not bring back a server that is about to end.
    """

    steps: tuple[str, ...] = ()
    changes: tuple[Change, ...] = ()
    servers: tuple[Server, ...] | None = None
    file_first: bool = False

    @property
    def changed(self) -> bool:
        return bool(self.changes)

    def diff(self) -> dict[str, dict[str, object]]:
        return diff_of(self.changes)


def is_up(server: Mapping[str, Any]) -> bool:
    """Return whether HAProxy sends requests to a server as its table shows it; on the way up or down (UP 1/2) it still does."""
    return str(server.get("status", "")).startswith("UP")


def is_down(server: Mapping[str, Any]) -> bool:
    """Return whether a server's checks have failed, as its table shows it."""
    return str(server.get("status", "")).startswith("DOWN")


def check_server(name: str, address: str | None, port: int | None, weight: int | None) -> None:
    """Raise BalancerError for what HAProxy would read as something else than one word."""
    if not SERVER_NAME.fullmatch(name):
        raise BalancerError("%s is not a server name: expected lower-case letters, digits, '-' or '.'" % ascii(name[:60]))
    if address is not None and not ADDRESS.fullmatch(address):
        raise BalancerError("%s is not an address: expected an IP address or a host name" % ascii(address[:60]))
    if port is not None and not 0 < port < 65536:
        raise BalancerError("%d is not a port" % port)
    if weight is not None and not 0 < weight <= 256:
        raise BalancerError("weight %d: HAProxy takes 1 to 256; use state=drain to keep new sessions away" % weight)


def plan_server(entry: Entry, running: Mapping[str, Server], name: str, *, state: str, address: str | None, port: int | None, weight: int | None) -> Plan:
    """Return what must be done to get one server of a service to what is wanted; None means as it is."""
    check_server(name, address, port, weight)
    now = running.get(name)
    written = next((server for server in entry.servers if server.name == name), None)
    others = tuple(server for server in entry.servers if server.name != name)
    if state == "absent":
        changes = [] if now is None else [Change("state", now.state, "absent"), Change("address", "%s:%d" % (now.address, now.port), None)]
        if now is None and written is not None:
            changes = [Change("file", "has it", "does not have it")]
        steps = () if now is None else ("drain", "wait", "maint", "delete") if now.state != "maint" else ("delete",)
        return Plan(steps, tuple(changes), others, file_first=True)
    if now is None:
        if address is None or port is None:
            raise BalancerError("%s has no server %s, and to add it an address and a port are needed" % (entry.name, name))
        wanted = Server(name, address, port, FULL_WEIGHT if weight is None else weight, state)
        added = [Change("state", "absent", state), Change("address", None, "%s:%d" % (address, port)), Change("weight", None, wanted.weight)]
        return Plan(("add", state), tuple(added), _sorted((*others, wanted)))
    # A drained server that a reload has brought back has no weight of its own any more, but the file knows it.
    own_weight = now.weight or (written.weight if written is not None else 0) or FULL_WEIGHT
    wanted = Server(name, address or now.address, port or now.port, own_weight if weight is None else weight, state)
    changes, steps = [], []
    if (wanted.address, wanted.port) != (now.address, now.port):
        changes.append(Change("address", "%s:%d" % (now.address, now.port), "%s:%d" % (wanted.address, wanted.port)))
        steps.append("address")
    if wanted.weight != now.weight and not (now.weight == 0 and state == "drain" and weight is None):
        changes.append(Change("weight", now.weight, wanted.weight))
        steps.append("weight")
    if wanted.state != now.state:
        changes.append(Change("state", now.state, wanted.state))
        steps.append(state)
    if state == "drain":
        steps.append("wait")
    servers = _sorted((*others, wanted))
    if not changes and (written is None or _written(written) != _written(wanted)):
        changes.append(Change("file", "does not have it" if written is None else "differs", "as it runs"))
    return Plan(tuple(steps), tuple(changes), servers)


def _written(server: Server) -> Server:
    server = replace(server, checked=True)  # which a running HAProxy does not tell
    return replace(server, weight=0) if server.state == "drain" else server


def _sorted(servers: Iterable[Server]) -> tuple[Server, ...]:
    return tuple(sorted(servers, key=lambda server: [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", server.name)]))


def agreement(entry: Entry, running: Mapping[str, Server]) -> list[str]:
    """Return where a service's file and the running HAProxy differ, in words; then a reload would change something."""
    written = {server.name: _written(server) for server in entry.servers}
    found = {name: _written(server) for name, server in running.items()}
    trouble = []
    for name in sorted({*written, *found}):
        if name not in found:
            trouble.append("%s is in the file and not in the running HAProxy" % name)
        elif name not in written:
            trouble.append("%s is in the running HAProxy and not in the file" % name)
        elif written[name] != found[name]:
            trouble.append("%s is %s in the file and %s in the running HAProxy" % (name, _in_words(written[name]), _in_words(found[name])))
    return trouble


def _in_words(server: Server) -> str:
    return "%s:%d weight %d %s" % (server.address, server.port, server.weight, server.state)


def plan_entry(entry: Entry | None, name: str, *, service: Service | None, replicas: int | None, version: int | None) -> tuple[Entry, list[Change]]:
    """Return the entry that is wanted and the fields that change; None means as it is. Every change is a new version."""
    if entry is None:
        if service is None:
            raise BalancerError("there is no service %s at this load balancer, and to create it its declaration is needed" % name)
        entry, before = Entry(name, service, replicas or 0, (), 0), {}
        changes = [Change("service", "absent", "present")]
    else:
        before, changes = dict(entry.service.to_fields(), replicas=entry.replicas), []
    wanted = replace(entry, service=service or entry.service, replicas=entry.replicas if replicas is None else replicas)
    after = dict(wanted.service.to_fields(), replicas=wanted.replicas)
    changes += [Change(field, before.get(field), after.get(field)) for field in sorted({**before, **after}) if before.get(field) != after.get(field)]
    if version is not None and version != entry.version and not changes:
        changes.append(Change("version", entry.version, version))
    if changes:
        wanted = replace(wanted, version=entry.version + 1 if version is None else version)
    return wanted, changes


def failing(name: str, before: Iterable[Mapping[str, Any]], after: Iterable[Mapping[str, Any]], allowed: float) -> str:
    """Return what is wrong with a server by its answers between two counts of its backend's rows, "" when nothing.

    Its share of errors may be `allowed` above that of the other servers meanwhile: what hits all of them is not its fault.
    """
    earlier = {row["name"]: row for row in before}
    counts = {"own": [0, 0], "others": [0, 0]}
    for row in after:
        if row["name"] in ("FRONTEND", "BACKEND"):
            continue
        first = earlier.get(row["name"], {})
        if row["requests"] < first.get("requests", 0):
            first = {}  # a reload began to count anew
        sums = counts["own" if row["name"] == name else "others"]
        sums[0] += row["requests"] - first.get("requests", 0)
        sums[1] += sum(row[field] - first.get(field, 0) for field in ("http_5xx", "response_errors"))
    (requests, errors), (other_requests, other_errors) = counts["own"], counts["others"]
    rate = min(1.0, errors / requests) if requests else float(errors > 0)
    others = min(1.0, other_errors / other_requests) if other_requests else 0.0
    if rate <= others + allowed:
        return ""
    return "%d of its %d answers were errors (%.0f %%, allowed are %.0f %%)" % (errors, requests, 100 * rate, 100 * (others + allowed))
