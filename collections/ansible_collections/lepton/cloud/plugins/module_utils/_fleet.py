# Copyright (c) 2026, Lepton contributors
# BSD-2-Clause license (see LICENSES/BSD-2-Clause.txt or https://opensource.org/licenses/BSD-2-Clause)
# SPDX-License-Identifier: BSD-2-Clause
"""Which of many hosts gets what is to run: what each has left, what is asked for, and why a host cannot have it. Pure.

PRIVATE to the collection and to the Lepton bot. Which of the hosts that could have it is best is said by a policy of `_packing`.
Hosts that are alike are looked at once, so a decision among a thousand costs as much as one among the few kinds of them.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Callable, Iterable, Mapping, NamedTuple, Sequence

from ._units import format_size

MIB = 1024 * 1024
WHOLE = 1000  # thousandths: a GPU, or a CPU


class Free(NamedTuple):
    """What a host has left, and how large it is. CPUs and GPUs in thousandths, memory in bytes; of each GPU, the fullest first."""

    cpus: int
    memory: int
    gpus: tuple[int, ...] = ()
    model: str = ""  # of its GPUs
    all_cpus: int = 0
    all_memory: int = 0
    cells: tuple[tuple[int, int, int], ...] = ()  # of each NUMA node, the fullest first: CPUs, memory, whole GPUs; () of a host that has but one


@dataclass(frozen=True)
class Request:
    """What is to run: of one GPU a share (`gpu_share` below 1000), or as many whole ones.

    `labels` a host must have and `preferred` ones it better had, `near` and `apart` name groups of what runs that must be on it or must
    not, and `spread` is the label of hosts over whose values those of `group` are shared out evenly, C(host) where each host counts.
    """

    cpus: int = 0
    memory: int = 0
    gpus: int = 0
    gpu_share: int = WHOLE
    models: tuple[str, ...] = ()
    labels: tuple[tuple[str, str], ...] = ()
    preferred: tuple[tuple[str, str], ...] = ()
    group: str = ""
    near: tuple[str, ...] = ()
    apart: tuple[str, ...] = ()
    spread: str = ""
    numa: bool = False  # whether all of it must be of one NUMA node
    huge: bool = False  # whether its memory is of huge pages: then the memory that hosts have left is that of these

    @property
    def gpu(self) -> int:
        """Return how much GPU it needs in all, in thousandths."""
        return self.gpus * (self.gpu_share if self.gpus == 1 else WHOLE)


@dataclass(frozen=True)
class Host:
    """A host: what it has left, its labels, how many of each group run there, and why nothing new may."""

    name: str
    free: Free
    labels: Mapping[str, str] = field(default_factory=dict)
    carries: Mapping[str, int] = field(default_factory=dict)
    closed: str = ""


class Choice(NamedTuple):
    """A host for a request, what it has left then, and what the policy said: the lowest score is best."""

    host: str
    left: Free
    score: float


Score = Callable[[Free, Free, Request], float]  # what a host has before and after


def remaining(free: Free, request: Request) -> list[Free]:
    """Return what a host would have left, once for each of its GPUs that makes a difference; [] where it has not enough."""
    if free.cpus < request.cpus or free.memory < request.memory or (request.gpus and request.models and free.model not in request.models):
        return []
    left = free._replace(cpus=free.cpus - request.cpus, memory=free.memory - request.memory)
    gpus = free.gpus
    if request.numa and free.cells:
        return [each._replace(cells=cells) for cells in _cells_left(free.cells, request) for each in remaining(free._replace(cells=()), request)]
    if not request.gpus:
        return [left]
    if request.gpus == 1:
        share = request.gpu_share
        firsts = [place for place, some in enumerate(gpus) if some >= share and (not place or gpus[place - 1] != some)]
        return [left._replace(gpus=tuple(sorted((*gpus[:place], *gpus[place + 1 :], gpus[place] - share)))) for place in firsts]
    whole = gpus.count(WHOLE)
    if whole < request.gpus:
        return []
    return [left._replace(gpus=(0,) * request.gpus + gpus[: len(gpus) - request.gpus])]


def _cells_left(cells: tuple[tuple[int, int, int], ...], request: Request) -> list[tuple[tuple[int, int, int], ...]]:
    """Return what NUMA nodes would have left, once for each on which all of a request could be, and that makes a difference."""
    found = {}
    for place, cell in enumerate(cells):
        left = cell[0] - request.cpus, cell[1] - request.memory, cell[2] - request.gpus
        if min(left) >= 0:
            found[tuple(sorted((*cells[:place], *cells[place + 1 :], left)))] = None
    return list(found)


def barred(host: Host, request: Request) -> str:
    """Return why a host could not have it however much it had free, "" where it could."""
    if host.closed:
        return host.closed
    wrong = next(((label, value) for label, value in request.labels if host.labels.get(label) != value), None)
    if wrong is not None:
        return "its label %s is %s, and not %s" % (wrong[0], host.labels.get(wrong[0], "not there"), wrong[1])
    missing = next((group for group in request.near if not host.carries.get(group)), None)
    if missing is not None:
        return "no %s runs there" % missing
    there = next((group for group in request.apart if host.carries.get(group)), None)
    if there is not None:
        return "%s runs there, and is to be apart" % there
    if request.gpus and request.models and host.free.model not in request.models:
        return "its GPUs are %s, and not %s" % (host.free.model or "none", " or ".join(request.models))
    return ""


def lacking(host: Host, request: Request) -> str:
    """Return why a host cannot have it, "" where it can."""
    why, free = barred(host, request), host.free
    if why:
        return why
    if free.cpus < request.cpus:
        return "it has %g CPUs free of %g" % (max(0, free.cpus) / WHOLE, request.cpus / WHOLE)
    if free.memory < request.memory:
        kind = " as huge pages" if request.huge else ""
        return "it has %s free%s of %s" % (format_size(max(0, free.memory) // MIB * MIB), kind, format_size(request.memory))
    if request.numa and free.cells and not _cells_left(free.cells, request):
        each = ", ".join("%g CPUs, %s and %d GPUs" % (cpus / WHOLE, format_size(memory // MIB * MIB), gpus) for cpus, memory, gpus in free.cells)
        return "none of its NUMA nodes has all of it, only %s" % each
    if not remaining(free, request):
        share = "%g of a GPU" % (request.gpu_share / WHOLE) if request.gpu_share < WHOLE and request.gpus == 1 else "%d whole GPUs" % request.gpus
        return "it has no %s free, only %s" % (share, ", ".join("%g" % (some / WHOLE) for some in free.gpus) or "none")
    return ""


def nearest_miss(hosts: Iterable[Host], request: Request) -> list[tuple[str, str]]:
    """Return each host with what it lacks: those that lack least of what counts first, which are those with most of it left."""
    told = [(host, lacking(host, request)) for host in hosts]
    order = sorted(told, key=lambda pair: (bool(pair[0].closed), -sum(pair[0].free.gpus), -pair[0].free.cpus, -pair[0].free.memory, pair[0].name))
    return [(host.name, why) for host, why in order if why]


class Fleet:
    """Hosts by their state: what is alike is looked at once. Ties go to the first name, or to one that `pick` chooses of them."""

    def __init__(self, hosts: Iterable[Host], score: Score, pick: Callable[[Sequence[str]], str] = min) -> None:
        self.score = score
        self._pick = pick
        self._hosts: dict[str, Host] = {}
        self._alike: dict[Any, dict[str, None]] = {}  # names in order, so that the same seed picks the same
        self._state: dict[str, Any] = {}
        self._scored: dict[Request, dict[Free, tuple[float, Free] | None]] = {}
        for host in hosts:
            self._put(host)

    def _put(self, host: Host) -> None:
        labels, carries = (frozenset(of.items()) if of else None for of in (host.labels, host.carries))
        state = (host.free, labels, carries, host.closed)
        self._hosts[host.name] = host
        self._state[host.name] = state
        self._alike.setdefault(state, {})[host.name] = None

    def hosts(self) -> list[Host]:
        """Return the hosts as they are now."""
        return list(self._hosts.values())

    def host(self, name: str) -> Host:
        """Return a host as it is now."""
        return self._hosts[name]

    def change(self, host: Host) -> None:
        """Take in what has become of a host."""
        state = self._state[host.name]
        del self._alike[state][host.name]
        if not self._alike[state]:
            del self._alike[state]
        self._put(host)

    def take(self, choice: Choice, request: Request) -> None:
        """Give a request the host that was chosen for it."""
        host = self._hosts[choice.host]
        carries = {**host.carries, request.group: host.carries.get(request.group, 0) + 1} if request.group else host.carries
        self.change(Host(host.name, choice.left, host.labels, carries, host.closed))

    def choose(self, request: Request, *, but: str = "") -> Choice | None:
        """Return the best host for a request, other than `but`; None where none can have it."""
        scored = self._scored.setdefault(request, {})
        plain = not (request.labels or request.near or request.apart)
        spread = self._spread(request)
        best: tuple[int, int, float] | None = None
        found: list[tuple[Iterable[str], Free]] = []
        for state, names in self._alike.items():
            free = state[0]
            if free not in scored:
                lefts = remaining(free, request)
                scored[free] = min(((self.score(free, left, request), left) for left in lefts), key=lambda pair: pair[0]) if lefts else None
            scores = scored[free]
            if scores is None or state[3] or (but in names and len(names) == 1) or not (plain or not lacking(self._hosts[next(iter(names))], request)):
                continue
            away = sum(dict(state[1] or ()).get(label) != value for label, value in request.preferred)
            rank = (0 if spread is None else min(spread(name) for name in names if name != but), away, scores[0])
            if best is None or rank < best:
                best, found = rank, [(names, scores[1])]
            elif rank == best:
                found.append((names, scores[1]))
        if best is None:
            return None
        fewest = best[0]
        lefts_of = {name: left for names, left in found for name in names if name != but and (spread is None or spread(name) == fewest)}
        name = self._pick(list(lefts_of))
        return Choice(name, lefts_of[name], best[2])

    def _spread(self, request: Request) -> Callable[[str], int] | None:
        """Return what tells how many of a request's group there are where a host is, None where that does not matter."""
        if not request.spread:
            return None
        counts: dict[str, int] = {}
        for host in self._hosts.values():
            value = _domain(host, request.spread)
            counts[value] = counts.get(value, 0) + host.carries.get(request.group, 0)
        return lambda name: counts[_domain(self._hosts[name], request.spread)]


def _domain(host: Host, label: str) -> str:
    return host.name if label == "host" else str(host.labels.get(label, ""))
