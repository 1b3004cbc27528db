# Copyright (c) 2026, Lepton contributors
# BSD-2-Clause license (see LICENSES/BSD-2-Clause.txt or https://opensource.org/licenses/BSD-2-Clause)
# SPDX-License-Identifier: BSD-2-Clause
"""What is enough in nearly all moments, and how large a node so must be by what it has used. Pure. PRIVATE to the collection and to the Lepton bot."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Optional, Sequence

from ._node import NodeError, Size
from ._units import format_size

USUAL = 0.95  # the share of all moments in which something must be enough
BUSY = 0.7  # of its vCPUs, above which a node begins to wait for itself
IDLE = 0.5  # of its vCPUs, below which it gives some back; between the two it stays as it is, so that it does not go to and fro
LEAST_SAMPLES = 40  # ten minutes of a monitor's; of less nothing is said
MEMORY_HEADROOM = 0.25  # of the most that a guest used
MEMORY_GIVES_BACK = 0.8  # of its memory: what it needs must be less before it gives any back
MEMORY_STEP = 64 << 20  # bytes
LEAST_MEMORY = 128 << 20


@dataclass(frozen=True)
class Bounds:
    """Between what a node may be chosen; memory in bytes."""

    min_vcpus: int
    max_vcpus: int
    min_memory: int
    max_memory: int


@dataclass(frozen=True)
class Choice:
    """A size, and the sentences that say why."""

    vcpus: int
    memory: int
    reasons: tuple[str, ...]


def usual(values: Sequence[float]) -> float:
    """Return what 95 of 100 values are at most."""
    return sorted(values)[min(len(values) - 1, math.ceil(USUAL * len(values)) - 1)]


def known(used: Sequence[Optional[float]]) -> list[float]:
    """Return those of what was measured that can be true."""
    return [value for value in used if value is not None and math.isfinite(value) and value >= 0]


def vcpus_for(used: Sequence[Optional[float]], most: int) -> tuple[Optional[int], str]:
    """Return (vCPUs, why) for a node that has used so many at each tick, at most `most`; None where too little is known."""
    values = known(used)
    if len(values) < LEAST_SAMPLES:
        return None, "only %d samples are known of what it uses, and %d are needed" % (len(values), LEAST_SAMPLES)
    most_used = usual(values)
    wanted = max(1, math.ceil(most_used / BUSY - 1e-9))
    why = "in 95 of 100 moments it used at most %.2f vCPUs, which are %.0f%% of %d" % (most_used, BUSY * 100, wanted)
    return (wanted, why) if wanted <= most else (most, "%s, and it can have %d" % (why, most))


def choose_size(size: Size, vcpus_used: Sequence[Optional[float]], memory_used: Sequence[Optional[float]], bounds: Bounds) -> Choice:
    """Return the size that fits what a node of `size` has used; raise NodeError where too little is known of its CPUs, or the bounds are none."""
    if not 1 <= bounds.min_vcpus <= bounds.max_vcpus or bounds.min_memory > bounds.max_memory:
        raise NodeError("no size is within these bounds: %s" % _bounds(bounds))
    wanted, why = vcpus_for(vcpus_used, bounds.max_vcpus)
    if wanted is None:
        raise NodeError("its size cannot be chosen: %s" % why)
    if wanted < size.vcpus and usual(known(vcpus_used)) > IDLE * size.vcpus:
        wanted, why = size.vcpus, "%s: it keeps its %d, since fewer would soon be too few" % (why, size.vcpus)
    vcpus = max(bounds.min_vcpus, min(bounds.max_vcpus, wanted))
    reasons = [why if vcpus == wanted else "%s; its bounds allow %s" % (why, _bounds(bounds))]
    values = known(memory_used)
    if not values:
        return Choice(vcpus, size.memory, (*reasons, "its guest does not say how much memory it uses, so that stays %s" % format_size(size.memory)))
    most_used = int(max(values))
    needed = max(LEAST_MEMORY, -(-int(most_used * (1 + MEMORY_HEADROOM)) // MEMORY_STEP) * MEMORY_STEP)
    told = "in %d looks just now its guest used at most %s of memory, and %d%% more are %s" % (
        len(values), _shown(most_used), MEMORY_HEADROOM * 100, format_size(needed)
    )  # fmt: skip
    if needed < size.memory and len(values) < LEAST_SAMPLES:
        needed, told = size.memory, "%s: it keeps its %s, since %d looks are too few to take any" % (told, format_size(size.memory), len(values))
    elif size.memory * MEMORY_GIVES_BACK < needed < size.memory:
        needed, told = size.memory, "%s: it keeps its %s, since that is nearly what it has" % (told, format_size(size.memory))
    memory = max(bounds.min_memory, min(bounds.max_memory, needed))
    return Choice(vcpus, memory, (*reasons, told if memory == needed else "%s; its bounds allow %s" % (told, _bounds(bounds))))


def _shown(size: int) -> str:
    return format_size(size // (1 << 20) * (1 << 20))


def _bounds(bounds: Bounds) -> str:
    least, most = format_size(bounds.min_memory), format_size(bounds.max_memory)
    return "%d to %d vCPUs and %s to %s" % (bounds.min_vcpus, bounds.max_vcpus, least, most)
