# Copyright (c) 2026, Lepton contributors
# BSD-2-Clause license (see LICENSES/BSD-2-Clause.txt or https://opensource.org/licenses/BSD-2-Clause)
# SPDX-License-Identifier: BSD-2-Clause
"""Which of the hosts that could have it is best for what is to run: the policies. Pure. PRIVATE to the collection and to the Lepton bot.

A policy says how much a host is the worse for a request: the lowest score is best. `usable`, the default, keeps what is left usable for
what usually comes: GPUs that nothing typical fits on any more are lost (fragmentation, as in "Beware of Fragmentation", ATC'23), and so are
those whose host has no CPUs left for them; GPUs that others ask for by name are dear; and what makes no difference to that is packed.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import Counter
from typing import Callable, Iterable, Mapping, NamedTuple, Sequence

from ._fleet import WHOLE, Free, Host, Request, Score

TYPICAL = 0.95  # the share of all that runs whose shapes are typical
# By how much a thousandth of a GPU counts that is without CPUs, or that others ask for by name, where one that is fragmented counts 1.
STRANDED, SCARCE = 0.3, 0.3
PACKED = 30.0  # thousandths of a GPU, for as much CPU, memory or GPU left as the largest host has


class _Shape(NamedTuple):
    cpus: int
    gpus: int
    gpu_share: int
    models: tuple[str, ...]


class Mix:
    """What usually runs: its typical shapes with their shares, how many CPUs come with a GPU, and which models are asked for by name."""

    def __init__(self, requests: Sequence[Request], hosts: Iterable[Host]) -> None:
        frees = [host.free for host in hosts]
        counted = Counter(_Shape(item.cpus, item.gpus, item.gpu_share, item.models) for item in requests)
        typical: dict[_Shape, int] = {}
        for shape, count in counted.most_common():
            typical[shape] = count
            if sum(typical.values()) >= TYPICAL * len(requests):
                break
        whole = sum(typical.values()) or 1
        self._typical = [(shape, count / whole) for shape, count in typical.items()]
        self._needs = sorted({(shape.gpus, shape.gpu_share) for shape in typical if shape.gpus})
        wanted = sum(item.gpu for item in requests)
        self.cpus_per_gpu = sum(item.cpus for item in requests if item.gpus) / max(wanted, 1)
        self._prices = _prices(requests, frees, wanted)
        self.largest = Free(max((free.all_cpus for free in frees), default=1) or 1, max((free.all_memory for free in frees), default=1) or 1)
        self.most_gpus = max((len(free.gpus) for free in frees), default=0) * WHOLE or 1
        self._usable: dict[tuple[int, ...], list[int]] = {}
        self._shares: dict[tuple[str, int], list[float]] = {}
        self._lost: dict[tuple[str, int, tuple[int, ...]], float] = {}
        self._steps = {model: self._thresholds(model) for model in {free.model for free in frees}}

    def _thresholds(self, model: str) -> list[int]:
        return sorted({shape.cpus for shape, _share in self._typical if not shape.models or model in shape.models})

    def price(self, model: str) -> float:
        """Return how much of a model's GPUs is asked for by name, by how much there is of it: 1 where that is as much as there is."""
        return self._prices.get(model, 0.0)

    def fragmented(self, free: Free) -> float:
        """Return how much idle GPU of a host is of no use, on average, to what usually comes."""
        steps = self._steps.get(free.model, [])
        key = (free.model, bisect_right(steps, free.cpus), free.gpus)  # CPUs matter only where another shape fits
        lost = self._lost.get(key)
        if lost is None:
            shares = self._fitting(free.model, free.cpus, key[1])
            lost = sum(free.gpus) - sum(share * usable for share, usable in zip(shares, self._of_use(free.gpus)))  # noqa: B905 -- Python 3.9 has no strict
            self._lost[key] = lost
        return lost

    def stranded(self, free: Free) -> float:
        """Return how much idle GPU of a host has no CPUs to be used with, at the usual number of them."""
        return max(0.0, sum(free.gpus) - free.cpus / self.cpus_per_gpu) if self.cpus_per_gpu else 0.0

    def _of_use(self, gpus: tuple[int, ...]) -> list[int]:
        """Return how much of idle GPUs each need could be served from."""
        found = self._usable.get(gpus)
        if found is None:
            whole = gpus.count(WHOLE)
            found = [sum(some for some in gpus if some >= share) if count == 1 else (whole * WHOLE if whole >= count else 0) for count, share in self._needs]
            self._usable[gpus] = found
        return found

    def _fitting(self, model: str, cpus: int, step: int) -> list[float]:
        """Return of each need the share of what usually comes that has it, and fits on so many CPUs of such a host."""
        found = self._shares.get((model, step))
        if found is None:
            found = [0.0] * len(self._needs)
            for shape, share in self._typical:
                if shape.gpus and shape.cpus <= cpus and (not shape.models or model in shape.models):
                    found[self._needs.index((shape.gpus, shape.gpu_share))] += share
            self._shares[model, step] = found
        return found


def _prices(requests: Sequence[Request], frees: Sequence[Free], wanted: int) -> dict[str, float]:
    there: Counter[str] = Counter()
    for free in frees:
        there[free.model] += len(free.gpus)
    named: Counter[str] = Counter()
    for item in requests:
        known = [model for model in item.models if there[model]]
        for model in known if item.gpus else ():
            named[model] += item.gpu * there[model] / sum(there[other] for other in known)
    return {model: (named[model] / max(wanted, 1)) / (count / max(sum(there.values()), 1)) for model, count in there.items() if count}


def usable(mix: Mix) -> Score:
    """Keep what is left usable for what usually comes."""
    packed = best_fit(mix)

    def score(before: Free, after: Free, request: Request) -> float:
        lost = mix.fragmented(after) - mix.fragmented(before) + STRANDED * (mix.stranded(after) - mix.stranded(before))
        return lost + SCARCE * mix.price(after.model) * request.gpu + PACKED * packed(before, after, request)

    return score


def fragmentation(mix: Mix) -> Score:
    """Have fragmentation grow least: the FGD of "Beware of Fragmentation"."""
    return lambda before, after, _request: mix.fragmented(after) - mix.fragmented(before)


def best_fit(mix: Mix) -> Score:
    """Leave least."""
    largest, gpus = mix.largest, mix.most_gpus
    return lambda _before, after, _request: after.cpus / largest.cpus + after.memory / largest.memory + sum(after.gpus) / gpus


def spread(_mix: Mix) -> Score:
    """Leave most, in proportion to the host: Kubernetes' LeastAllocated."""
    return lambda _before, after, _request: -_idle(after)


def pack(_mix: Mix) -> Score:
    """Leave least, in proportion to the host: Kubernetes' MostAllocated."""
    return lambda _before, after, _request: _idle(after)


def _idle(free: Free) -> float:
    shares = [free.cpus / max(free.all_cpus, 1), free.memory / max(free.all_memory, 1)]
    return sum([*shares, sum(free.gpus) / (len(free.gpus) * WHOLE)] if free.gpus else shares) / (3 if free.gpus else 2)


POLICIES: Mapping[str, Callable[[Mix], Score]] = {"usable": usable, "fragmentation": fragmentation, "best_fit": best_fit, "pack": pack, "spread": spread}
