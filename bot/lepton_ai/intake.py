# SPDX-License-Identifier: Apache-2.0
"""What every door does with what it received: read it, check it, decide on it, write it down. In memory until the write."""

from __future__ import annotations

import datetime
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from lepton_ai.access.approvals import ApprovalRule, may_approve, needed_approval
from lepton_ai.access.freezes import Freeze
from lepton_ai.access.matching import Caller
from lepton_ai.access.rules import Verdict, decide
from lepton_ai.errors import LeptonError
from lepton_ai.operations.catalog import Operation
from lepton_ai.operations.parsing import Command, typed_arguments
from lepton_ai.runs import leases
from lepton_ai.runs.model import Request, Run
from lepton_ai.runs.service import Runs
from lepton_ai.runs.standing import Standing, standing

CONFIRMATION = "confirmation"
CONFIRM_SECONDS = 60 * 60
FREEZE = "freeze"  # what a role must name so that its holders may freeze and unfreeze


class RefusedError(LeptonError):
    """The caller may not do this; the rule that says so is in the text."""

    def __init__(self, caller: Caller, what: str, rule: str) -> None:
        super().__init__(f"{caller.principal} may not {what}: {rule}")
        self.rule = rule


@dataclass(frozen=True)
class Intake:
    """The way in. `owner` is the principal of the account that runs the service, which may do everything."""

    runs: Runs
    owner: str

    def verdict(self, caller: Caller, operation: Operation, targets: tuple[str, ...] | None, arguments: Mapping[str, Any] | None = None) -> Verdict:
        """Return whether this caller may do this; without targets, whether on any target."""
        if caller.principal == self.owner:
            return Verdict(True, "the account that runs the service")
        spec = operation.spec
        return decide(self.runs.settings.access, caller, operation.name, targets, arguments, by_wildcard=spec.granted, reads=spec.risk == "read")

    def may(self, caller: Caller, operation: Operation) -> bool:
        """Return whether there is any target on which this caller may do this: what `help` shows."""
        return self.verdict(caller, operation, None).allowed

    def may_see(self, caller: Caller, run: Run) -> Verdict:
        """Return whether this caller may see and cancel a run: its own, or one that it may ask for."""
        if caller.principal in (run.principal, self.owner):
            return Verdict(True, "its own run")
        operation = self.runs.catalog.operations.get(run.operation)
        if operation is None:
            return Verdict(False, f"the operation {run.operation} no longer exists, so only who asked may see this")
        return self.verdict(caller, operation, operation.targets(run.arguments))

    def judge(self, caller: Caller, command: Command) -> tuple[Verdict, ApprovalRule | None, Freeze | None]:
        """Return all that stands between a caller and a change: the verdict, the approval it needs, the freeze on it."""
        operation, arguments = command.operation, command.arguments
        targets = operation.targets(arguments)
        verdict = self.verdict(caller, operation, targets, arguments)
        if operation.spec.risk == "read":
            return verdict, None, None
        rule = needed_approval(self.runs.settings.access.approvals, operation.name, targets, arguments, self._now())
        return verdict, rule, self.runs.frozen(operation, arguments)

    def submit(
        self,
        caller: Caller,
        command: Command,
        *,
        key: str,
        check: bool = False,
        confirm: bool = False,
        why: str = "",
        origin: Mapping[str, Any] | None = None,
    ) -> tuple[Run, bool]:
        """Write the request and return (run, whether it is new); raise RefusedError, which is written down too.

        What needs approval becomes a plan that waits for it, at every door; so does, with `confirm`, what needs only
        the caller's own confirmation.
        """
        operation = command.operation
        verdict, rule, frozen = self.judge(caller, command)
        if not verdict.allowed:
            self._refuse(caller, command, verdict.rule, origin)
        if frozen is not None and not check:
            self._refuse(caller, command, str(frozen), origin)
        if check and operation.spec.plan == "none" and operation.spec.risk != "read":
            raise LeptonError(f"{operation.name} cannot be planned: its author did not say that its check mode tells the truth")
        where = dict(origin or {})
        if not check and (rule is not None or confirm):
            where = {**(where if rule is None else self._asked_where(where)), "approval": self._approval(caller, operation, rule)}
            check = True
        return self.runs.submit(Request(operation.name, command.arguments, caller.principal, key=key, check=check, why=why, origin=where))

    def submit_values(self, caller: Caller, operation: Operation, values: Mapping[str, Any], **how: Any) -> tuple[Run, bool]:
        """Submit arguments that come as values and not as words: from forms, Python and the socket."""
        given = {name: value for name, value in values.items() if value is not None}
        return self.submit(caller, Command(operation, typed_arguments(operation, given)), **how)

    # -- approvals -----------------------------------------------------------------------------------------------

    def why_not(self, caller: Caller, plan: Run) -> str | None:
        """Return why this caller may not decide on a plan, None when it may."""
        approval = plan.origin["approval"]
        return may_approve(approval["approvers"], self_approval=approval["self"], requester=plan.principal, caller=caller)

    def answer(self, caller: Caller, plan_id: str, *, approved: bool) -> Run | None:
        """Take a decision on a plan, and return the run that it releases, if it was the last one needed.

        Two who press at once, or one who presses twice, release one run. Raises LeptonError when there is nothing to decide.
        """
        plan = self.runs.store.run(plan_id)
        stands = standing(plan, self.runs.store.decisions(plan.id))
        if stands is Standing.NONE:
            raise LeptonError(f"run {plan.id} is no plan that could be approved")
        operation = self.runs.catalog.operations.get(plan.operation)
        if operation is None:
            raise LeptonError(f"the operation {plan.operation} no longer exists")
        if stands is Standing.APPROVED and approved and not self.runs.store.has_key(_apply_key(plan)):
            return self._apply(plan, operation)  # a crash came between the decision and its run
        if stands is not Standing.WAITING:
            raise LeptonError(f"there is nothing to decide: this plan {'' if stands in (Standing.PLANNING, Standing.NOTHING) else 'is '}{stands}")
        reason = self.why_not(caller, plan)
        # Whoever asked may always take it back.
        if reason is not None and (approved or caller.principal != plan.principal):
            self.runs.store.record(plan.id, caller.principal, "refused", {"operation": plan.operation, "rule": reason})
            raise RefusedError(caller, "approve this" if approved else "reject this", reason)
        stands = standing(plan, self.runs.store.decide(plan.id, caller.principal, approved=approved))
        released = self._apply(plan, operation) if stands is Standing.APPROVED else None
        if stands is not Standing.WAITING:
            self.runs.forget_secrets(plan.id)
        return released

    def planned(self, plan: Run) -> Run | None:
        """Return the run of a plan that has turned out to need nobody's approval, None when it waits for one."""
        approval = plan.origin.get("approval") or {}
        if approval.get("hosts_over") is None or standing(plan, self.runs.store.decisions(plan.id)) is not Standing.WAITING:
            return None
        operation = self.runs.catalog.operations[plan.operation]
        hosts, targets = len(plan.result.get("changed_hosts", ())), operation.targets(plan.arguments)
        if needed_approval(self.runs.settings.access.approvals, operation.name, targets, plan.arguments, self._now(), hosts) is not None:
            return None
        return self._apply(plan, operation)

    def _apply(self, plan: Run, operation: Operation) -> Run:
        """Submit what was planned, as whoever asked for it, whose rights may have changed since."""
        origin = {name: value for name, value in plan.origin.items() if name != "approval"}
        requester = Caller(plan.principal, tuple(plan.origin["approval"]["groups"]), plan.origin["approval"]["channel"])
        arguments = self.runs.arguments(plan)
        verdict = self.verdict(requester, operation, operation.targets(arguments), arguments)
        if not verdict.allowed:
            raise RefusedError(requester, f"{operation.name} any more", verdict.rule)
        request = Request(operation.name, arguments, plan.principal, key=_apply_key(plan), why=plan.why, origin=origin, approved_plan=plan.id)
        return self.runs.submit(request)[0]

    def _approval(self, caller: Caller, operation: Operation, rule: ApprovalRule | None) -> dict[str, Any]:
        common = {"groups": list(caller.groups), "channel": caller.channel, "plannable": operation.spec.plan != "none"}
        if rule is None:
            own = {"rule": CONFIRMATION, "approvers": [caller.principal], "count": 1, "self": True, "hosts_over": None}
            return {**common, **own, "expires": time.time() + CONFIRM_SECONDS}
        asked = {"rule": rule.name, "approvers": rule.approvers, "count": rule.count, "self": rule.self_approval, "hosts_over": rule.hosts_over}
        return {**common, **asked, "expires": time.time() + rule.expires_minutes * 60}

    def _asked_where(self, origin: dict[str, Any]) -> dict[str, Any]:
        """Return where a plan that waits is shown: in the channel it was asked in, else in the site's channel for approvals."""
        channel = self.runs.settings.slack.approvals_channel
        public = str(origin.get("channel", "")).startswith(("C", "G"))  # direct messages are seen by nobody who could approve
        return origin if public or not channel else {"door": "slack", "team": origin.get("team", ""), "channel": channel}

    # -- freezes -------------------------------------------------------------------------------------------------

    def freeze(self, caller: Caller, target: str, until: float | None, why: str) -> Freeze:
        """Stop all changes of a target, whoever asks for them."""
        self._may_freeze(caller, target)
        frozen = Freeze(target, until, caller.principal, why)
        self.runs.store.freeze(frozen)
        return frozen

    def unfreeze(self, caller: Caller, target: str) -> bool:
        """Lift a freeze, and return whether there was one."""
        self._may_freeze(caller, target)
        return self.runs.store.unfreeze(target, caller.principal)

    def _may_freeze(self, caller: Caller, target: str) -> None:
        if caller.principal == self.owner:
            return
        verdict = decide(self.runs.settings.access, caller, FREEZE, (target,), by_wildcard=True, reads=False)
        if not verdict.allowed:
            self.runs.store.record("", caller.principal, "refused", {"operation": FREEZE, "rule": verdict.rule, "targets": [target]})
            raise RefusedError(caller, f"freeze {target}", verdict.rule)

    # -- locks ---------------------------------------------------------------------------------------------------

    def steal(self, caller: Caller, lock: str, why: str) -> str:
        """Take a lock from its holder and return who that was: a run is canceled, a playbook run by hand loses its lease.

        For whoever may freeze what the lock is about. Nobody gets it; the next in the queue does.
        """
        self._may_freeze(caller, lock)
        owner = dict(leases.locks(self.runs.store)).get(lock)
        if owner is None or lock.startswith("run/"):
            raise LeptonError(f"nobody holds the lock {lock}", hint="see: lepton locks")
        self.runs.store.record(owner.partition("/")[0], caller.principal, "lock stolen", {"lock": lock, "holder": owner, "why": why})
        if owner.startswith(leases.PLAIN):
            leases.release(self.runs.store, owner)
        else:
            self.runs.cancel(owner.partition("/")[0], caller.principal)
        return owner.partition("/")[0]

    # -- helpers -------------------------------------------------------------------------------------------------

    def _refuse(self, caller: Caller, command: Command, rule: str, origin: Mapping[str, Any] | None) -> None:
        targets = list(command.operation.targets(command.arguments))
        self.runs.store.record(
            "", caller.principal, "refused", {"operation": command.operation.name, "targets": targets, "rule": rule, "origin": dict(origin or {})}
        )
        raise RefusedError(caller, f"{command.operation.name} {' '.join(targets)}".strip(), rule)

    def _now(self) -> datetime.datetime:
        return datetime.datetime.now(self.runs.settings.zone)


def _apply_key(plan: Run) -> str:
    return f"apply:{plan.id}"
