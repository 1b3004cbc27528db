# SPDX-License-Identifier: Apache-2.0
"""What asks for operations at their times. Each is asked for once, whatever restarts and however many bots there are: its moment is its key."""

from __future__ import annotations

import asyncio
import datetime
from collections.abc import Callable
from dataclasses import dataclass, field
from fnmatch import fnmatchcase

import structlog

from lepton_ai.access.matching import Caller
from lepton_ai.errors import LeptonError
from lepton_ai.intake import Intake
from lepton_ai.timetable import Schedule, due

log = structlog.get_logger()
SECONDS = 20.0  # between two looks at the clock
AGAIN_SECONDS = 300.0  # until hosts are asked again that did not answer
# What tells which things of a kind there are: an operation, and the field of its answers.
NAMES = {"node": ("node.list", "nodes"), "service": ("service.list", "services")}


@dataclass
class Scheduler:
    """Looks at the clock again and again."""

    intake: Intake
    start: Callable[[str], None]  # what begins a run that was written
    _done: set[tuple[str, datetime.datetime]] = field(default_factory=set)
    _again: dict[str, datetime.datetime] = field(default_factory=dict)  # when to ask hosts again that did not answer, by schedule

    async def work(self) -> None:
        """Ask for ever for what is due; a site without schedules has nothing to do."""
        while self.intake.runs.settings.schedules:
            try:
                await asyncio.to_thread(self.tick, datetime.datetime.now(self.intake.runs.settings.zone).astimezone(self.intake.runs.settings.zone))
            except Exception:
                log.exception("schedules could not be looked at")
            await asyncio.sleep(SECONDS)

    def tick(self, now: datetime.datetime) -> None:
        """Ask once for all that is due."""
        for schedule in self.intake.runs.settings.schedules:
            moment = due(schedule, now)
            if moment is None or (schedule.name, moment) in self._done or now < self._again.get(schedule.name, now):
                continue
            try:
                whole = self._ask(schedule, moment)
            except LeptonError as error:  # a refusal, which is in the audit trail
                whole = True
                log.error("what is scheduled was refused", schedule=schedule.name, why=str(error))
            if whole:
                self._done.add((schedule.name, moment))
            else:
                self._again[schedule.name] = now + datetime.timedelta(seconds=AGAIN_SECONDS)

    def _ask(self, schedule: Schedule, moment: datetime.datetime) -> bool:
        """Ask for a schedule's runs, and return whether that was all of them: a host that does not answer may have more of what it is about."""
        operation = self.intake.runs.catalog.operations.get(schedule.operation)
        if operation is None:
            raise LeptonError(f"there is no operation {ascii(schedule.operation[:40])[1:-1]}")
        wild = next((name for name, value in schedule.arguments.items() if operation.spec.kinds.get(name) in NAMES and "*" in str(value)), None)
        names, whole = ([""], True) if wild is None else self._names(operation.spec.kinds[wild], str(schedule.arguments[wild]))
        for name in names:
            values = dict(schedule.arguments) if wild is None else {**schedule.arguments, wild: name}
            key = f"schedule:{schedule.name}:{moment.isoformat(timespec='minutes')}:{name}"
            run, new = self.intake.submit_values(Caller(f"schedule:{schedule.name}"), operation, values, key=key, why=f"scheduled at {schedule.at}")
            if new:
                log.info("what is scheduled is asked for", schedule=schedule.name, run=run.id, values=values)
                self.start(run.id)
        return whole

    def _names(self, kind: str, pattern: str) -> tuple[list[str], bool]:
        look, field_of = NAMES[kind]
        told = self.intake.runs.look(look)
        there = {str(item["name"]) for answer in told.answers.values() for item in answer.get(field_of) or ()}
        if told.failures:
            log.warning("not all that is scheduled is known", why="; ".join(f"{host}: {why}" for host, why in told.failures.items()))
        return sorted(name for name in there if fnmatchcase(name, pattern)), not told.failures
