# Copyright (c) 2026, Lepton contributors
# BSD-2-Clause license (see LICENSES/BSD-2-Clause.txt or https://opensource.org/licenses/BSD-2-Clause)
# SPDX-License-Identifier: BSD-2-Clause
"""Sizes as people write them. PRIVATE to the collection and to the Lepton bot."""

from __future__ import annotations

import re

KIB = 1024
_POWER = {"": 0, "K": 1, "M": 2, "G": 3, "T": 4}
_SIZE = re.compile(r"(?P<number>\d{1,15}(?:\.\d{1,15})?)\s*(?P<unit>[KMGT]?)(?:I?B)?", re.IGNORECASE | re.ASCII)


def parse_size(text: str) -> int:
    """Return bytes for '8GiB', '512M', '1.5 G', '1048576': units are binary, as libvirt's and Kubernetes' memory is.

    Raises ValueError with what was expected; a size is never negative and never zero.
    """
    match = _SIZE.fullmatch(str(text).strip())
    size = int(float(match["number"]) * KIB ** _POWER[match["unit"].upper()]) if match else 0
    if size < 1:
        raise ValueError("%r is not a size: expected a number with a unit, such as 512MiB or 8GiB" % str(text)[:80])
    return size


def format_size(size: int) -> str:
    """Return the shortest exact form of a number of bytes: 8589934592 is '8GiB', 1537 is '1537B'."""
    for unit in ("T", "G", "M", "K"):
        scale = KIB ** _POWER[unit]
        if size and size % scale == 0:
            return "%d%siB" % (size // scale, unit)
    return "%dB" % size
