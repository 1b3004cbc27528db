# SPDX-License-Identifier: Apache-2.0
"""Freezes: what may not be changed for now, whoever asks. Pure."""

from __future__ import annotations

import datetime
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from lepton_ai.access.matching import matches
from lepton_ai.errors import LeptonError
from lepton_ai.hours import UNITS

EVERYTHING = "*"


@dataclass(frozen=True)
class Freeze:
    """Nothing that matches `target` changes until `until` (seconds since the epoch; None: until it is lifted)."""

    target: str
    until: float | None
    principal: str
    why: str

    def __str__(self) -> str:
        end = "" if self.until is None else " until " + datetime.datetime.fromtimestamp(self.until).astimezone().strftime("%Y-%m-%d %H:%M %Z")
        what = "everything" if self.target == EVERYTHING else self.target
        return f"{what} is frozen by {self.principal}{end}" + (f": {self.why}" if self.why else "")


def freeze_on(freezes: Iterable[Freeze], targets: Sequence[str], now: float) -> Freeze | None:
    """Return a freeze that stops a change of these targets, None when there is none. What names no target meets every freeze."""
    for freeze in freezes:
        stops = freeze.target == EVERYTHING or not targets or any(matches([freeze.target], target) for target in targets)
        if stops and (freeze.until is None or now < freeze.until):
            return freeze
    return None


def read_until(word: str, now: datetime.datetime) -> datetime.datetime | None:
    """Return the end that a word says, in the zone of `now`: `30m`, `2h`, `1d`, `18:00` (the next one), `2026-12-24T08:00`; None for another word."""
    if found := re.fullmatch(r"(\d{1,4})([mhd])", word):
        return now + datetime.timedelta(seconds=int(found[1]) * UNITS[found[2]])
    if re.fullmatch(r"\d{1,2}:\d\d", word):
        try:
            end = datetime.datetime.combine(now.date(), datetime.time.fromisoformat(word.zfill(5)), now.tzinfo)
        except ValueError as error:
            raise LeptonError(f"{word} is not a time of day") from error
        return end if end > now else end + datetime.timedelta(days=1)
    if re.fullmatch(r"\d{4}-\d\d-\d\d(T\d\d:\d\d)?", word):
        try:
            end = datetime.datetime.fromisoformat(word).replace(tzinfo=now.tzinfo)
        except ValueError as error:
            raise LeptonError(f"{word} is not a date") from error
        if end <= now:
            raise LeptonError(f"{word} has passed already")
        return end
    return None
