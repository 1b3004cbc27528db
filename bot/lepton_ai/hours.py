# SPDX-License-Identifier: Apache-2.0
"""Hours of a day and days of a week, as rules and policies write them."""

from __future__ import annotations

import datetime
from typing import Annotated, Literal

from pydantic import AfterValidator

Day = Literal["mon", "tue", "wed", "thu", "fri", "sat", "sun"]
DAYS: tuple[Day, ...] = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")
UNITS = {"m": 60, "h": 3600, "d": 86400}
SPAN = r"^([01]\d|2[0-3]):[0-5]\d-([01]\d|2[0-3]):[0-5]\d$"  # such as 18:00-08:00


def _clock(text: str) -> str:
    try:
        datetime.time.fromisoformat(text)
    except ValueError as error:
        raise ValueError(f"{text!r} is not a time of day such as 08:30") from error
    return text


Clock = Annotated[str, AfterValidator(_clock)]


def within(hours: str, now: datetime.time) -> bool:
    """Return whether a time of day is in a span, which may go over midnight."""
    start, end = (datetime.time.fromisoformat(text) for text in hours.split("-"))
    return start <= now < end if start <= end else now >= start or now < end
