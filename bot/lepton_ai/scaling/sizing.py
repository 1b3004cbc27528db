# SPDX-License-Identifier: Apache-2.0
"""What is enough in nearly all moments, and how many vCPUs a node so needs by what it has used. Pure."""

from __future__ import annotations

import math
from collections.abc import Sequence

USUAL = 0.95  # the share of all moments in which something must be enough
BUSY = 0.7  # of its vCPUs, above which a node begins to wait for itself
LEAST_SAMPLES = 40  # ten minutes; of less nothing is said


def usual(values: Sequence[float]) -> float:
    """Return what 95 of 100 values are at most."""
    return sorted(values)[min(len(values) - 1, math.ceil(USUAL * len(values)) - 1)]


def vcpus_for(used: Sequence[float | None], most: int) -> tuple[int | None, str]:
    """Return (vCPUs, why) for a node that has used so many at each tick, at most `most`; None where too little is known."""
    known = [value for value in used if value is not None and math.isfinite(value) and value >= 0]
    if len(known) < LEAST_SAMPLES:
        return None, f"only {len(known)} samples are known of what it uses, and {LEAST_SAMPLES} are needed"
    most_used = usual(known)
    wanted = max(1, math.ceil(most_used / BUSY - 1e-9))
    why = f"in 95 of 100 moments it used at most {most_used:.2f} vCPUs, which are {BUSY:.0%} of {wanted}"
    return (wanted, why) if wanted <= most else (most, f"{why}, and it can have {most}")
