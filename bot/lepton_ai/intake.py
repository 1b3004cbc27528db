# SPDX-License-Identifier: Apache-2.0
"""What every door does with what it received: read it, check it, decide on it, write it down. In memory until the write."""

from __future__ import annotations

import datetime
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from lepton_ai.access.approvals import ApprovalRule, may_approve, needed_approval
from lepton_ai.access.freezes import Freeze
from lepton_ai.access.matching import Caller
from lepton_ai.access.rules import Verdict, decide
from lepton_ai.errors import LeptonError
from lepton_ai.operations.catalog import Operation
from lepton_ai.operations.parsing import Command, typed_arguments
from lepton_ai.runs import leases
from lepton_ai.runs.model import Request, Result, Run, failed_of, shown_origin
from lepton_ai.runs.service import Runs
from lepton_ai.runs.standing import Standing, standing

CONFIRMATION = "confirmation"
CONFIRM_SECONDS = 60 * 60
AGAIN_SECONDS = 10.0  # asking again for the same within so many is asking once
LEPTON = "lepton"  # who ends a plan that can no longer be done
SCALE = "service.scale"  # who may do this may pin as well
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
    groups_of: Callable[[str], tuple[str, ...] | None] = lambda _principal: None  # today's groups, None where they are not known
    gone: Callable[[str], bool | None] = lambda _principal: False  # whether an account was deactivated, None where that cannot be told; may ask Slack

    def __post_init__(self) -> None:
        self.runs.gate = self.gate
        self.runs.settle = self.settle

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
        try:
            return self.verdict(caller, operation, operation.targets(run.arguments))
        except LeptonError as error:
            return Verdict(False, str(error))

    def judge(self, caller: Caller, command: Command, due: float = 0.0) -> tuple[Verdict, ApprovalRule | None, Freeze | None]:
        """Return all that stands between a caller and a change: the verdict, the approval it needs, the freeze on it.

        A change that is due later needs what is needed now, or what is needed then.
        """
        operation, arguments = command.operation, command.arguments
        targets = operation.targets(arguments)
        verdict = self.verdict(caller, operation, targets, arguments)
        if operation.spec.risk == "read":
            return verdict, None, None
        rule = self._rule(operation, arguments) or (self._rule(operation, arguments, at=due) if due else None)
        return verdict, rule, self.runs.frozen(operation, arguments)

    def must_be_allowed(self, caller: Caller, name: str, values: Mapping[str, Any]) -> None:
        """Raise RefusedError, which is written down too, when this caller may not do this operation with these values."""
        operation = self.runs.catalog.operations[name]
        arguments = typed_arguments(operation, dict(values))
        verdict = self.verdict(caller, operation, operation.targets(arguments), arguments)
        if not verdict.allowed:
            self._refuse(caller, Command(operation, arguments), verdict.rule, None)

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
        hosts: Sequence[str] = (),
        canary: bool = False,
        own_rule: ApprovalRule | None = None,
    ) -> tuple[Run, bool]:
        """Write the request and return (run, whether it is new); raise RefusedError, which is written down too.

        What needs approval becomes a plan that waits for it, at every door; so does, with `confirm`, what needs only
        the caller's own confirmation. `hosts`: only on these; `canary`: on one host first. `own_rule` is an approval that the
        caller itself asks for, where the site's rules ask for none.
        """
        operation = command.operation
        must_be_possible(operation, check=check, hosts=hosts, canary=canary)
        due = float((origin or {}).get("due") or 0.0)
        if not math.isfinite(due):
            raise LeptonError("that is no time")
        verdict, rule, frozen = self.judge(caller, command, due)
        rule = rule or own_rule
        if not verdict.allowed:
            self._refuse(caller, command, verdict.rule, origin)
        if frozen is not None and not check:
            self._refuse(caller, command, str(frozen), origin)
        where = {**(origin or {}), **({"groups": list(caller.groups)} if due else {})}
        if not check and (rule is not None or confirm):
            approval = {**self._approval(caller, operation, rule, confirm=confirm), **({} if own_rule is None else {"own": _asked_of(own_rule)})}
            where = {**(where if rule is None else self._asked_where(where)), "approval": approval}
            check = True
        request = Request(operation.name, command.arguments, caller.principal, key=key, check=check, why=why, origin=where, hosts=hosts, canary=canary)
        return self.runs.submit(request)

    def submit_values(self, caller: Caller, operation: Operation, values: Mapping[str, Any], **how: Any) -> tuple[Run, bool]:
        """Submit arguments that come as values and not as words: from forms, Python and the socket."""
        given = {name: value for name, value in values.items() if value is not None}
        return self.submit(caller, Command(operation, typed_arguments(operation, given)), **how)

    def again(self, caller: Caller, run_id: str, *, failed_hosts: bool = False) -> Run:
        """Ask for the same once more, as this caller; with `failed_hosts` only where it went wrong. Asked twice at once is asked once."""
        run = self.runs.store.run(run_id)
        operation = self.runs.catalog.operations.get(run.operation)
        if operation is None:
            raise LeptonError(f"the operation {run.operation} no longer exists")
        if not run.state.final:
            raise LeptonError(f"run {run.id} has not ended yet")
        hosts = failed_of(run) if failed_hosts else list(run.hosts)
        if failed_hosts and not hosts:
            raise LeptonError(f"run {run.id} failed on no host, or on all of them")
        key = f"again:{run.id}:{'failed' if failed_hosts else 'all'}:{caller.principal}:{int(time.time() // AGAIN_SECONDS)}"
        how: dict[str, Any] = {
            "check": run.check,  # a plan once more is a plan
            "confirm": operation.spec.risk == "destroy" and not run.check,
            "origin": {name: value for name, value in run.origin.items() if name not in ("approval", "due", "groups")},
            "canary": run.canary and not failed_hosts,
        }
        return self.submit(caller, Command(operation, self.runs.arguments(run)), key=key, why=f"again: {run.id}", hosts=hosts, **how)[0]

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
        if stands is not Standing.WAITING:
            raise LeptonError(f"there is nothing to decide: this plan {_said(stands)}")
        reason = self.why_not(caller, plan)
        # Whoever asked may always take it back.
        if reason is not None and (approved or caller.principal != plan.principal):
            self.runs.store.record(plan.id, caller.principal, "refused", {"operation": plan.operation, "rule": reason})
            raise RefusedError(caller, "approve this" if approved else "reject this", reason)
        if approved and (gone := self.gone(plan.principal)) is not False:
            if gone is None:
                raise LeptonError("whether whoever asked for this is still here cannot be told now: Slack does not answer", hint="try again in a moment")
            raise LeptonError("whoever asked for this is no longer here, so it cannot be approved: ask for it yourself")
        stands = self.runs.store.decide(plan.id, caller.principal, approved=approved)
        if stands is Standing.EXPIRED or (stands is Standing.APPROVED and not approved) or (stands is Standing.REJECTED and approved):
            raise LeptonError(f"too late: this plan {_said(stands)}")
        if stands is Standing.WAITING or self.runs.lacks_secrets(plan):
            self.runs.tell(plan.id)
            return None
        return self._tend(plan.id)

    def settle(self, plan: Run, result: Result) -> None:
        """Say what a plan waits for, now that it is known how many hosts it would change, before anybody can decide on it."""
        approval = plan.origin["approval"]
        operation = self.runs.catalog.operations.get(plan.operation)
        if operation is None or approval["rule"] == CONFIRMATION or not approval["plannable"]:
            return
        hosts, due = len(result.changed_hosts), float(plan.origin.get("due") or 0.0)
        # By the times that it was asked and is due at: what needed approval then does not cease to while it is planned.
        rule = self._rule(operation, plan.arguments, at=plan.created, hosts=hosts)
        rule = rule or (self._rule(operation, plan.arguments, at=due, hosts=hosts) if due else None)
        if rule is not None:
            if (rule.name, rule.count) != (approval["rule"], approval["count"]):
                self.runs.store.set_approval(plan.id, {**approval, **_asked_of(rule)})
        elif self._rule_on_hosts(approval["rule"]):
            fallen = approval.get("own") or (_own(plan.principal) if approval["confirm"] else {"count": 0, "approvers": []})
            self.runs.store.set_approval(plan.id, {**approval, **fallen})

    def tend(self) -> list[Run]:
        """Go on with every plan that has been decided on, and return the runs that this releases.

        A crash between a decision and what follows from it is mended here, and so is a plan that nobody decided on in time.
        """
        released = []
        for plan in self.runs.store.open_plans():
            if self.runs.lacks_secrets(plan):
                continue  # the server that has them goes on with it
            try:
                run = self._tend(plan.id)
            except LeptonError:
                continue  # written down, and shown at the plan
            if run is not None:
                released.append(run)
        return released

    def _tend(self, plan_id: str) -> Run | None:
        """Do what follows from how a plan stands, once, and return the run that it releases."""
        store = self.runs.store
        plan = store.run(plan_id)
        stands = standing(plan, store.decisions(plan.id))
        if stands in (Standing.WAITING, Standing.PLANNING):
            return None
        try:
            released = self._apply(plan) if stands is Standing.APPROVED else None
        except LeptonError:
            self._close(plan)
            raise
        # Anything else that goes wrong leaves it open: it is tried again.
        self._close(plan)
        return released

    def _close(self, plan: Run) -> None:
        self.runs.store.close_plan(plan.id)
        self.runs.forget_secrets(plan.id)
        self.runs.tell(plan.id)

    def _apply(self, plan: Run) -> Run:
        """Submit what was planned, as whoever asked for it, whose rights may have changed since. The same run, however often."""
        earlier = self.runs.store.run_of_key(apply_key(plan))
        if earlier is not None:
            return earlier
        operation = self.runs.catalog.operations.get(plan.operation)
        try:
            if operation is None:
                raise LeptonError(f"the operation {plan.operation} no longer exists")
            arguments = self.runs.arguments(plan)
            self._must_still(self._requester(plan), operation, arguments)
        except LeptonError as error:
            earlier = self.runs.store.run_of_key(apply_key(plan))  # somebody else was faster, and has the secrets forgotten
            if earlier is not None:
                return earlier
            self.runs.store.record(plan.id, plan.principal, "refused", {"operation": plan.operation, "rule": str(error)})
            self.runs.store.decide(plan.id, LEPTON, approved=False, always=True)
            raise
        origin = {name: value for name, value in plan.origin.items() if name != "approval"}
        request = Request(operation.name, arguments, plan.principal, key=apply_key(plan), why=plan.why, origin=origin, approved_plan=plan.id)
        return self.runs.submit(replace(request, hosts=plan.hosts, canary=plan.canary))[0]

    def gate(self, run: Run, operation: Operation, arguments: Mapping[str, Any]) -> str | None:
        """Return why a run must not begin after all: frozen meanwhile, or due now for somebody who may no longer."""
        frozen = self.runs.frozen(operation, arguments)
        if frozen is not None:
            return str(frozen)
        if run.due:
            try:
                self._must_still(self._requester(run), operation, arguments)
            except RefusedError as error:
                return str(error)
            gone = self.gone(run.principal)
            if gone is not False:
                return (
                    "whoever asked for this is no longer here" if gone else "whether whoever asked for this is still here cannot be told: Slack does not answer"
                )
        return None

    def _requester(self, run: Run) -> Caller:
        """Return who asked for a run, with the groups of today where they are known, else those of then."""
        approval = run.origin.get("approval") or {}
        today = self.groups_of(run.principal)
        groups = tuple(approval.get("groups") or run.origin.get("groups") or ()) if today is None else today
        asked_in = next((place["channel"] for place in (approval, run.origin.get("asked_in") or {}, run.origin) if "channel" in place), None)
        return Caller(run.principal, groups, asked_in)

    def _must_still(self, requester: Caller, operation: Operation, arguments: Mapping[str, Any]) -> None:
        verdict = self.verdict(requester, operation, operation.targets(arguments), arguments)
        if not verdict.allowed:
            raise RefusedError(requester, f"{operation.name} any more", verdict.rule)

    def _rule(self, operation: Operation, arguments: Mapping[str, Any], *, at: float | None = None, hosts: int | None = None) -> ApprovalRule | None:
        zone = self.runs.settings.zone
        when = datetime.datetime.now(zone) if at is None else datetime.datetime.fromtimestamp(at, zone)
        return needed_approval(self.runs.settings.access.approvals, operation.name, operation.targets(arguments), arguments, when, hosts)

    def _rule_on_hosts(self, name: str) -> bool:
        return any(rule.name == name and rule.hosts_over is not None for rule in self.runs.settings.access.approvals)

    def _approval(self, caller: Caller, operation: Operation, rule: ApprovalRule | None, *, confirm: bool) -> dict[str, Any]:
        common = {"groups": list(caller.groups), "channel": caller.channel, "plannable": operation.spec.plan != "none", "confirm": confirm}
        return {**common, **(_own(caller.principal) if rule is None else _asked_of(rule))}

    def _asked_where(self, origin: dict[str, Any]) -> dict[str, Any]:
        """Return where a plan that waits is shown: in the channel it was asked in, else in the site's channel for approvals."""
        channel = self.runs.settings.slack.approvals_channel
        public = str(origin.get("channel", "")).startswith(("C", "G"))  # direct messages are seen by nobody who could approve
        if public or not channel:
            return origin
        kept: dict[str, Any] = {name: origin[name] for name in ("due", "groups", "group") if name in origin}
        return {"door": "slack", "team": origin.get("team", ""), "channel": channel, "asked_in": {"channel": origin.get("channel")}, **kept}

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

    # -- pins ----------------------------------------------------------------------------------------------------

    def pin(self, caller: Caller, service: str, replicas: int, until: float, why: str) -> None:
        """Hold a service at a number of replicas whatever its policy wants, for whoever may scale it to that."""
        self._may_pin(caller, service, replicas)
        self.runs.store.pin(service, replicas, until, caller.principal, why)

    def unpin(self, caller: Caller, service: str) -> bool:
        """Give a service back to its policy, and return whether it was pinned."""
        self._may_pin(caller, service, 1)
        return self.runs.store.unpin(service, caller.principal)

    def _may_pin(self, caller: Caller, service: str, replicas: int) -> None:
        self.must_be_allowed(caller, SCALE, {"service": service, "replicas": str(replicas)})

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
            "", caller.principal, "refused", {"operation": command.operation.name, "targets": targets, "rule": rule, "origin": shown_origin(origin or {})}
        )
        raise RefusedError(caller, f"{command.operation.name} {' '.join(targets)}".strip(), rule)


def must_be_possible(operation: Operation, *, check: bool, hosts: Sequence[str], canary: bool) -> None:
    """Refuse to plan what cannot be planned, and to do only a part of what cannot be done in parts."""
    if check and operation.spec.plan == "none" and operation.spec.risk != "read":
        raise LeptonError(f"{operation.name} cannot be planned: its author did not say that its check mode tells the truth")
    if (hosts or canary) and not operation.spec.per_host:
        raise LeptonError(f"{operation.name} is one thing for all hosts", hint="its specification does not say per_host: true")
    if canary and (operation.spec.risk == "read" or operation.spec.plan != "check"):
        raise LeptonError(f"{operation.name} cannot begin with one host: which hosts it would change cannot be seen beforehand")


def _own(principal: str) -> dict[str, Any]:
    return {"rule": CONFIRMATION, "approvers": [principal], "count": 1, "self": True, "expires": time.time() + CONFIRM_SECONDS}


def _asked_of(rule: ApprovalRule) -> dict[str, Any]:
    asked = {"rule": rule.name, "approvers": rule.approvers, "count": rule.count, "self": rule.self_approval}
    return {**asked, "expires": time.time() + rule.expires_minutes * 60}


def apply_key(plan: Run) -> str:
    """Return the key of the run that a plan releases when it is approved."""
    return f"apply:{plan.id}"


def _said(stands: Standing) -> str:
    return stands.value if stands in (Standing.PLANNING, Standing.NOTHING) else f"is {stands}"
