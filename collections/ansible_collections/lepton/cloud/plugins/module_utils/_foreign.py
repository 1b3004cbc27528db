# Copyright (c) 2026, Lepton contributors
# BSD-2-Clause license (see LICENSES/BSD-2-Clause.txt or https://opensource.org/licenses/BSD-2-Clause)
# SPDX-License-Identifier: BSD-2-Clause
"""What HAProxy's own configuration, written by somebody else, serves; and how a service takes the place of some of it. Pure.

PRIVATE to the collection. Sections that a service has replaced are kept as comments, so that they can be given back.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field, replace
from typing import Collection, Iterator, Sequence

from ._balancer import FULL_WEIGHT, BalancerError, Server

SECTIONS = (
    "global",
    "defaults",
    "frontend",
    "backend",
    "listen",
    "peers",
    "resolvers",
    "userlist",
    "cache",
    "program",
    "ring",
    "mailers",
    "http-errors",
    "fcgi-app",
)
PROXIES = ("frontend", "backend", "listen")
# What may stand in a section that is replaced: what a service does as well, or what nobody misses. Everything else would be lost.
UNDERSTOOD = frozenset({"bind", "default_backend", "server", "balance", "mode", "http-check", "timeout", "log", "retries", "maxconn", "description"})
OPTIONS_UNDERSTOOD = frozenset({"httpchk", "httplog", "dontlognull", "redispatch", "http-keep-alive", "http-server-close", "idle-close-on-response"})
SERVER_WORDS = frozenset({"check", "inter", "fastinter", "downinter", "rise", "fall", "weight", "maxconn", "on-marked-down", "on-error"})
BALANCES = frozenset({"roundrobin", "leastconn", "static-rr"})


@dataclass
class Proxy:
    """One section: its kind and name, the ports it listens on, the backends it sends to, and its servers."""

    kind: str
    name: str
    ports: list[int] = field(default_factory=list)
    default_backend: str = ""
    other_backends: list[str] = field(default_factory=list)
    servers: list[Server] = field(default_factory=list)
    lost: list[str] = field(default_factory=list)  # what a service in its place would not do


def _sections(text: str) -> Iterator[tuple[str, str, list[int]]]:
    """Yield each section's kind, name and the numbers of its lines."""
    kind, name, lines = "", "", []
    for number, line in enumerate(text.splitlines()):
        words = line.split("#")[0].split()
        if words and words[0] in SECTIONS:
            if kind:
                yield kind, name, lines
            kind, name, lines = words[0], words[1] if len(words) > 1 else "", []
        lines.append(number)
    if kind:
        yield kind, name, lines


def read_proxies(text: str) -> list[Proxy]:
    """Return the proxies of a configuration, as far as they can be understood: what they listen on, and whom they send to."""
    lines, found = text.splitlines(), []
    for kind, name, numbers in _sections(text):
        if kind not in PROXIES or not name:
            continue
        proxy = Proxy(kind, name)
        for number in numbers:
            words = lines[number].split("#")[0].split()
            if not words:
                continue
            proxy.lost += _lost(words)
            if words[0] == "bind" and len(words) > 1:
                proxy.ports += [port for part in words[1].split(",") for port in _ports(part.rpartition(":")[2])]
            elif words[0] == "default_backend" and len(words) > 1:
                proxy.default_backend = words[1]
            elif words[0] == "use_backend" and len(words) > 1:
                proxy.other_backends.append(words[1])
            elif words[0] == "server" and len(words) > 2:
                address, _colon, port = words[2].rpartition(":")
                weight = words[words.index("weight") + 1] if "weight" in words[:-1] else "1"  # HAProxy's own default
                if address and port.isdigit() and weight.isdigit():
                    proxy.servers.append(Server(words[1].lower(), address, int(port), int(weight), checked=False))
                else:
                    proxy.lost.append(" ".join(words[:3]))
        found.append(proxy)
    return found


def _ports(text: str) -> list[int]:
    """Return the ports that a bind's last part names: one, or a range."""
    first, _dash, last = text.partition("-")
    return list(range(int(first), int(last or first) + 1)) if first.isdigit() and (last or first).isdigit() and len(text) < 12 else []


def _lost(words: Sequence[str]) -> list[str]:
    """Return what of a line a service in its place would not do; a line that begins a section is none."""
    first = words[0]
    if first in PROXIES or first == "use_backend":  # which has its own words below
        return []
    if first == "option":
        return [] if len(words) > 1 and words[1] in OPTIONS_UNDERSTOOD else [" ".join(words[:2])]
    if first not in UNDERSTOOD:
        return [" ".join(words[:2])]
    if first == "bind":
        return ["bind " + word for word in words[2:]]
    if first == "mode":
        return [] if words[1:] == ["http"] else ["mode " + " ".join(words[1:])]
    if first == "balance":
        return [] if len(words) > 1 and words[1] in BALANCES else ["balance " + " ".join(words[1:2])]
    if first == "server":
        unknown = [word for word in words[3:] if word not in SERVER_WORDS and not word[:1].isdigit()]
        return ["%s of server %s" % (word, words[1]) for word in unknown if word not in ("mark-down", "shutdown-sessions", "fastinter", "sudden-death")]
    return []


def replaced_by(proxies: Sequence[Proxy], listen_port: int) -> list[str]:
    """Return the names of the proxies that a service on a port would take the place of: who listens there, and whom that sends to.

    Raises BalancerError where that would take away more than one service's worth.
    """
    names = []
    for proxy in proxies:
        if listen_port not in proxy.ports:
            continue
        if len(set(proxy.ports)) > 1:
            raise BalancerError("%s listens on other ports as well, and their clients would find nobody: split it first" % proxy.name)
        if proxy.other_backends:
            told = ", ".join(sorted(set(proxy.other_backends)))
            raise BalancerError("%s chooses between backends (%s), which one service cannot take the place of: split it first" % (proxy.name, told))
        names += [proxy.name] + ([proxy.default_backend] if proxy.default_backend and proxy.default_backend != proxy.name else [])
    for proxy in proxies:
        if proxy.name in names and proxy.lost:
            told = (proxy.kind, proxy.name, ", ".join(proxy.lost[:5]))
            raise BalancerError("%s %s has what a service would not do: %s. Move that to another proxy before it, or leave this one as it is" % told)
        if proxy.name not in names and proxy.kind != "backend" and set(names) & {proxy.default_backend, *proxy.other_backends}:
            raise BalancerError("%s sends to a backend of it as well: split it first" % proxy.name)
    return names


def carried(proxies: Sequence[Proxy], names: Collection[str]) -> tuple[Server, ...]:
    """Return the servers of the proxies that are replaced. They are not checked: what they answer on is not known."""
    found = [server for proxy in proxies if proxy.name in names for server in proxy.servers]
    heaviest = max((server.weight for server in found), default=1) or 1
    return tuple(replace(server, weight=max(1, round(server.weight * FULL_WEIGHT / heaviest))) for server in found)


def without(text: str, service: str, names: Collection[str]) -> str:
    """Return a configuration in which the proxies of these names are comments."""
    lines = text.splitlines()
    for kind, name, numbers in _sections(text):
        if kind in PROXIES and name in names:
            for number in numbers:
                lines[number] = _mark(service) + lines[number]
    return "\n".join(lines) + "\n"


def given_back(text: str, service: str) -> str:
    """Return a configuration with what a service has replaced as it was."""
    mark = _mark(service)
    return "\n".join(line[len(mark) :] if line.startswith(mark) else line for line in text.splitlines()) + "\n"


def _mark(service: str) -> str:
    return "# replaced by the service %s of Lepton: " % re.sub(r"[^a-z0-9-]", "", service)
