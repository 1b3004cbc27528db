# SPDX-License-Identifier: Apache-2.0
"""What is to be done at which time of the week: a site's schedules, and whether one of them is due. Pure."""

from __future__ import annotations

import datetime
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from lepton_ai.hours import DAYS, Clock, Day

LATE_SECONDS = 6 * 3600.0  # for which what was missed, since the bot did not run, is still done


class Schedule(BaseModel):
    """An operation at a time of the week. A name of nodes or services with `*` in it stands for all that are called so then."""

    model_config = ConfigDict(extra="forbid")

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9-]{0,40}$", description="What it is called: its principal is schedule:NAME, which needs a grant.")
    operation: str = Field(description="Such as node.backup.")
    arguments: dict[str, Any] = Field(default_factory=dict)
    at: Clock = Field(description="The time of day, such as 02:15.")
    days: list[Day] = Field(default_factory=lambda: [*DAYS], min_length=1)


def due(schedule: Schedule, now: datetime.datetime) -> datetime.datetime | None:
    """Return the moment for which a schedule is to be done now, None where there is none: the last one, if it is not too long ago."""
    clock = datetime.time.fromisoformat(schedule.at)
    for days_ago in (0, 1):
        day = now.date() - datetime.timedelta(days=days_ago)
        moment = datetime.datetime.combine(day, clock, now.tzinfo)
        late = (now - moment).total_seconds()
        if 0 <= late < LATE_SECONDS and DAYS[day.weekday()] in schedule.days:
            return moment
    return None
