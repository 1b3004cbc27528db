# SPDX-License-Identifier: Apache-2.0
"""What one execution does with a run once it has the claim, the locks and a place among those that work."""

from __future__ import annotations

import uuid
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa
from ansible_collections.lepton.cloud.plugins.module_utils._operation import check_arguments

from lepton_ai.operations.catalog import Operation
from lepton_ai.runs import processes
from lepton_ai.runs.executor import Cancel, Job, command_line, execute
from lepton_ai.runs.frozen import changed_since, difference, in_words
from lepton_ai.runs.model import HERE, FieldChange, Run, RunEvent, State, result_of
from lepton_ai.runs.progress import Progress
from lepton_ai.runs.store import LOOKING

if TYPE_CHECKING:
    from lepton_ai.runs.service import Runs

PLAN = "lepton_plan"  # the extra variable in which a playbook takes the plan that was approved
Outcome = tuple[State, str]


@dataclass(frozen=True)
class _Done:
    """How it ended, and on which hosts it was under way then: all of the operation's where there are none."""

    state: State
    error: str
    hosts: Sequence[str]


@dataclass(frozen=True)
class Attempt:
    """A run being done. `owner` is the claim; `cancel` ends it; `progress` is what people are shown."""

    runs: Runs
    run: Run
    operation: Operation
    arguments: Mapping[str, Any]
    owner: str
    cancel: Cancel
    progress: Progress

    def do(self) -> Outcome:
        """Plan it, or do it: as it was approved, on one host first where that was asked for, with the truth about what was half done."""
        if self.run.check:
            self.progress.tasks = self.operation.tasks
            return self._play(self.progress, check=True, hosts=self.run.hosts)
        begun = self.runs.store.was_attempted(self.run.id)  # by a process that is gone
        approved = self.runs.store.run(self.run.approved_plan) if self.run.approved_plan else None
        plan = approved.result.get("plan", {}) if approved is not None else {}
        done = _Done(State.CANCELED, "canceled", self.run.hosts) if begun and self.cancel.is_set() else self._do(approved, plan, begun=begun)
        if done.state is State.SUCCEEDED or self.runs.is_cut_short(self.run.id) or not self.runs.store.was_attempted(self.run.id):
            return done.state, done.error
        plan = plan or self.progress.result.plan
        if done.state in (State.CANCELED, State.TIMED_OUT):
            return done.state, f"{done.error}; {self._undo(done.hosts) or self._left(plan, done.hosts)}"
        if begun or (plan and self.progress.result.changes):
            return done.state, f"{done.error}; {self._left(plan, done.hosts)}"
        return done.state, done.error

    def _do(self, approved: Run | None, plan: Mapping[str, Any], *, begun: bool) -> _Done:
        to_change: Sequence[str] | None = None
        if approved is not None:
            outcome, to_change = self._compare(approved, begun=begun)
            if outcome is not None:
                return _Done(*outcome, self.run.hosts)
        if self.run.canary and to_change is None:
            outcome, to_change = self._look()
            if outcome is not None:
                return _Done(*outcome, self.run.hosts)
        # Asked at the last moment: what has waited for its lock, its time or its approval may be stopped meanwhile.
        if (reason := self.runs.gate(self.run, self.operation, self.arguments)) is not None:
            return _Done(State.FAILED, reason, self.run.hosts)
        self.progress.tasks = self.operation.tasks
        one_by_one = sorted(set(to_change or ()) - {HERE}) if self.run.canary else []
        if len(one_by_one) > 1:
            return self._one_first(one_by_one)
        return _Done(*self._play(self.progress, check=False, hosts=self.run.hosts, plan=plan), self.run.hosts)

    def _compare(self, approved: Run, *, begun: bool) -> tuple[Outcome | None, Sequence[str] | None]:
        """Plan again what was approved, under the run's locks, and return (why it must not be done, the hosts it would change).

        A composite operation is not planned again here: its playbook does the very list that was approved, step by step.
        """
        changed = difference(approved, self.run.arguments, self.runs.revision(self.operation))
        if self.operation.spec.plan == "planner" and not approved.result.get("plan", {}).get("steps"):
            changed = "the plan has no steps"
        to_change: Sequence[str] | None = None
        if not changed and self.operation.spec.plan == "check":
            again = Progress()
            self.progress.play = "planning again, to see that what was approved is what runs"
            state, error = self._play(again, check=True, hosts=self.run.hosts)
            if state is not State.SUCCEEDED:
                return (state, error), None
            changed, to_change = changed_since(result_of(approved), again.result, begun=begun), again.result.changed_hosts
        nothing = "nothing more" if begun else "nothing"
        refused = f"{nothing} was done, since this is not what was approved: {changed}. Ask again for a new plan"
        return ((State.FAILED, refused) if changed else None), to_change

    def _look(self) -> tuple[Outcome | None, Sequence[str] | None]:
        """Return (why that could not be seen, the hosts that would be changed)."""
        seen = Progress()
        self.progress.play = "looking which hosts it would change"
        state, error = self._play(seen, check=True, hosts=self.run.hosts)
        return (None, seen.result.changed_hosts) if state is State.SUCCEEDED else ((state, error), None)

    def _one_first(self, hosts: Sequence[str]) -> _Done:
        """Do it on the first of these hosts, and on the others only when that went well and nothing has stopped it meanwhile."""
        first, others = hosts[0], hosts[1:]
        self.progress.tasks *= 2
        state, error = self._play(self.progress, check=False, hosts=[first])
        if state is State.SUCCEEDED:
            reason = self.runs.gate(self.run, self.operation, self.arguments)
            if reason is None and not self.cancel.is_set():
                return _Done(*self._play(self.progress, check=False, hosts=others), others)
            state, error = (State.FAILED, reason) if reason is not None else (State.CANCELED, "canceled")
        left = f"{len(others)} other host{'' if len(others) == 1 else 's'} left as {'it was' if len(others) == 1 else 'they were'}"
        return _Done(state, f"{error}; {first} was to go first, and {left}", [first])

    def _undo(self, hosts: Sequence[str]) -> str:
        """Take back what was left half done, where the operation says how, and return what that changed, "" when nothing."""
        operation = self.runs.catalog.operations.get(self.operation.spec.undo)
        if operation is None:
            return ""
        given = {name: value for name, value in self.arguments.items() if name in operation.spec.options and value is not None}
        arguments, problems = check_arguments(operation.spec, given)
        if problems:
            return f"{operation.name} could not take it back: {'; '.join(map(str, problems))}"
        if (reason := self.runs.gate(self.run, self.operation, self.arguments)) is not None:
            return f"{operation.name} would take back what was half done, and was not done: {reason}"
        self._say("taking back what was half done")
        done = Progress()
        state, trouble = self._play(done, check=False, hosts=hosts, operation=operation, arguments=arguments, cancel=Cancel())
        if state is not State.SUCCEEDED:
            partly = f" but for {_in_words(done.result.changes)}" if done.result.changes else ""
            return f"{operation.name} could not take it back{partly} ({trouble}): look at it"
        return f"taken back by {operation.name}: {_in_words(done.result.changes)}" if done.result.changes else ""

    def _left(self, plan: Mapping[str, Any], hosts: Sequence[str]) -> str:
        """Look, under the run's locks, at what an attempt that was cut short has left to do, and return it in words."""
        if self.operation.spec.risk == "read":
            return "it only reads"
        if self.operation.spec.plan == "none":
            return "what it had done cannot be seen by itself: look at it"
        if self.operation.spec.plan == "planner" and not plan:
            return "none of its steps had begun"
        self._say("looking at what was done")
        seen = Progress()
        state, trouble = self._play(seen, check=True, hosts=hosts, plan=plan, cancel=Cancel())
        if state is not State.SUCCEEDED:
            return f"what it had done could not be seen ({trouble}): look at it"
        return f"seen afterwards, not done: {_in_words(seen.result.changes)}" if seen.result.changes else "seen afterwards, all of it had been done"

    def _say(self, what: str) -> None:
        self.progress.play, self.progress.task = "", what
        self.runs.tell(self.run.id)

    def _play(
        self,
        progress: Progress,
        *,
        check: bool,
        hosts: Sequence[str] = (),
        plan: Mapping[str, Any] | None = None,
        operation: Operation | None = None,
        arguments: Mapping[str, Any] | None = None,
        cancel: Cancel | None = None,
    ) -> Outcome:
        """Run a playbook to its end and fold what it tells into `progress`: the run's own, unless another operation is given."""
        run, store = self.run, self.runs.store
        operation, arguments, cancel = operation or self.operation, self.arguments if arguments is None else arguments, cancel or self.cancel
        token = (LOOKING if check else "") + uuid.uuid4().hex
        shown = command_line(self.operation.playbook, self.runs.settings.inventory, run.arguments, check=run.check, hosts=run.hosts)
        if cancel.is_set():
            return State.CANCELED, "canceled before it began"
        if not store.set_running(run.id, shown, self.owner):
            return store.run(run.id).state, ""
        store.add_attempt(token, run.id, self.owner, processes.boot_id())
        self.runs.tell(run.id)
        job: Job = self.runs.job(operation, {**arguments, **({PLAN: plan} if plan else {})}, run_id=run.id, token=token, check=check)
        job = replace(job, hosts=hosts)
        if (check and not run.check) or operation is not self.operation:  # the output that is kept is that of what was asked for
            job = replace(job, output=self.runs.output_path(f"{run.id}-look"))

        def on_event(event: RunEvent) -> None:
            progress.add(event)
            self.runs.tell(run.id)

        state, error = execute(job, on_event, cancel)
        with suppress(sa.exc.OperationalError):  # it stays open, which costs a look at the next recovery
            store.end_attempt(token, state.value)
        if state is State.FAILED and progress.result.failures:
            error = "; ".join(f"{host}: {why}" for host, why in progress.result.failures.items())
        seen = {host for _seconds, host, _task, _outcome in progress.result.timeline} | set(progress.hosts)
        if state is State.SUCCEEDED and (absent := sorted(set(hosts) - seen)):
            state, error = State.FAILED, f"{', '.join(absent)} took no part: the inventory has no such host for this any more"
        if check and not plan:
            progress.take_plan()
        return state, error


def _in_words(changes: Sequence[FieldChange]) -> str:
    return ", ".join(map(in_words, changes))
