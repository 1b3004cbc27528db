# Copyright (c) 2026, Lepton contributors
# BSD-2-Clause license (see LICENSES/BSD-2-Clause.txt or https://opensource.org/licenses/BSD-2-Clause)
# SPDX-License-Identifier: BSD-2-Clause
"""What would have to move so that something has room that has none. Pure. PRIVATE to the collection and to the Lepton bot."""

from __future__ import annotations

from collections import Counter
from typing import Iterator, NamedTuple

from ._fleet import WHOLE, Choice, Fleet, Free, Host, Request, barred, remaining


class Placed(NamedTuple):
    """Something that runs and may be moved: what it asked for, and which GPUs of its host it has."""

    name: str
    request: Request
    gpus: tuple[int, ...] = ()


class Move(NamedTuple):
    """What is moved from where to where, maybe to another GPU of the same host, and what something else has there then."""

    placed: Placed
    from_host: str
    to: Choice
    room: Choice


class Occupancy:
    """What runs on which host of a fleet, and on which of its GPUs."""

    def __init__(self, fleet: Fleet) -> None:
        self.fleet = fleet
        self._placed: dict[str, dict[str, Placed]] = {host.name: {} for host in fleet.hosts()}
        self._hopeless: set[Request] = set()  # what no move makes room for, as long as nothing changes
        self._gpus = {host.name: list(host.free.gpus) for host in fleet.hosts()}

    def note(self, host: str, placed: Placed) -> None:
        """Take in what runs on a host already, with what the host has left being known without it."""
        self._placed[host][placed.name] = placed
        self._hopeless.clear()

    def take(self, name: str, choice: Choice, request: Request) -> None:
        """Give something the host that was chosen for it."""
        gpus, taken = self._gpus[choice.host], []
        for free in (Counter(gpus) - Counter(choice.left.gpus)).elements():
            taken.append(next(place for place, some in enumerate(gpus) if some == free and place not in taken))
        for place in taken:
            gpus[place] -= _of_each(request)
        self.note(choice.host, Placed(name, request, tuple(taken)))
        self.fleet.take(choice, request)

    def make_room(self, move: Move, name: str, request: Request) -> None:
        """Move what is to be moved, and give something else the room."""
        placed, host = move.placed, self.fleet.host(move.from_host)
        del self._placed[host.name][placed.name]
        carries = Counter(host.carries)
        carries[placed.request.group] -= 1
        self.fleet.change(Host(host.name, self._without(host, placed), host.labels, +carries, host.closed))
        for place in placed.gpus:
            self._gpus[host.name][place] += _of_each(placed.request)
        self.take(name, move.room, request)
        self.take(placed.name, move.to, placed.request)

    def find_move(self, request: Request) -> Move | None:
        """Return the best single move after which something has room that has none now; None where no one move would do."""
        if request in self._hopeless:
            return None
        best: tuple[float, Move] | None = None
        score, seen = self.fleet.score, set()
        for host, placed, elsewhere in self._movable(request):
            free = self._without(host, placed)
            key = (host.free, free, placed.request)
            lefts = [] if key in seen else remaining(free, request)  # not once more the same thing on a host in the same state
            seen.add(key)
            if not lefts:
                continue
            cost, left = min(((score(host.free, left, request), left) for left in lefts), key=lambda pair: pair[0])
            if elsewhere is not None and elsewhere.host == host.name:
                elsewhere = self.fleet.choose(placed.request, but=host.name)
            here = [Choice(host.name, after, score(left, after, placed.request)) for after in remaining(left, placed.request)]
            to = min([*here, *([elsewhere] if elsewhere else [])], key=lambda choice: choice.score, default=None)
            if to is not None and (best is None or cost + to.score < best[0]):
                best = (cost + to.score, Move(placed, host.name, to, Choice(host.name, left, cost)))
        if best is None:
            self._hopeless.add(request)
            return None
        return best[1]

    def _movable(self, request: Request) -> Iterator[tuple[Host, Placed, Choice | None]]:
        """Yield what might make room, where it is, and which host it could go to; None where only another GPU of its own could do."""
        elsewhere: dict[Request, Choice | None] = {}
        for host in self.fleet.hosts():
            free, run = host.free, self._placed[host.name].values()
            if not run or barred(host, request):
                continue
            gpu, largest = sum(free.gpus), max(free.gpus, default=0)
            for placed in run:
                of = placed.request
                if free.cpus + of.cpus < request.cpus or free.memory + of.memory < request.memory or gpu + of.gpu < request.gpu:
                    continue
                if of not in elsewhere:
                    elsewhere[of] = self.fleet.choose(of)
                if elsewhere[of] is not None or (placed.gpus and _of_each(of) <= largest):
                    yield host, placed, elsewhere[of]

    def _without(self, host: Host, placed: Placed) -> Free:
        free, gpus = host.free, host.free.gpus
        if placed.gpus:
            each = list(self._gpus[host.name])
            for place in placed.gpus:
                each[place] += _of_each(placed.request)
            gpus = tuple(sorted(each))
        return free._replace(cpus=free.cpus + placed.request.cpus, memory=free.memory + placed.request.memory, gpus=gpus)


def _of_each(request: Request) -> int:
    return request.gpu_share if request.gpus == 1 else WHOLE
