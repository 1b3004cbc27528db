# SPDX-License-Identifier: Apache-2.0
"""What every door does with what it received: read it, check it, decide on it, write it down. In memory until the write."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from lepton_ai.access.rules import Caller, Verdict, decide
from lepton_ai.errors import LeptonError
from lepton_ai.operations.catalog import Operation
from lepton_ai.operations.parsing import Command, typed_arguments
from lepton_ai.runs.model import Request, Run
from lepton_ai.runs.service import Runs


class RefusedError(LeptonError):
    """The caller may not do this; the rule that says so is in the text."""

    def __init__(self, caller: Caller, what: str, verdict: Verdict) -> None:
        super().__init__(f"{caller.principal} may not {what}: {verdict.rule}")
        self.verdict = verdict


@dataclass(frozen=True)
class Intake:
    """The way in. `owner` is the principal of the account that runs the service, which may do everything."""

    runs: Runs
    owner: str

    def verdict(self, caller: Caller, operation: Operation, targets: tuple[str, ...] | None) -> Verdict:
        """Return whether this caller may do this; without targets, whether on any target."""
        if caller.principal == self.owner:
            return Verdict(True, "the account that runs the service")
        return decide(self.runs.settings.access, caller, operation.name, targets, by_wildcard=operation.spec.granted, reads=operation.spec.risk == "read")

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

    def submit(
        self,
        caller: Caller,
        command: Command,
        *,
        key: str,
        check: bool = False,
        why: str = "",
        origin: Mapping[str, Any] | None = None,
    ) -> tuple[Run, bool]:
        """Write the request and return (run, whether it is new); raise RefusedError, which is written down too."""
        operation = command.operation
        verdict = self.verdict(caller, operation, operation.targets(command.arguments))
        if not verdict.allowed:
            what = f"{operation.name} {' '.join(operation.targets(command.arguments))}".strip()
            self.runs.store.record("", caller.principal, "refused", {"operation": operation.name, "rule": verdict.rule, "origin": dict(origin or {})})
            raise RefusedError(caller, what, verdict)
        asks_first = bool((origin or {}).get("confirm"))
        if check and not asks_first and operation.spec.plan != "check" and operation.spec.risk != "read":
            raise LeptonError(f"{operation.name} cannot be planned: its author did not say that its check mode tells the truth")
        return self.runs.submit(Request(operation.name, command.arguments, caller.principal, key=key, check=check, why=why, origin=dict(origin or {})))

    def submit_values(self, caller: Caller, operation: Operation, values: Mapping[str, Any], **how: Any) -> tuple[Run, bool]:
        """Submit arguments that come as values and not as words: from forms, Python and the socket."""
        given = {name: value for name, value in values.items() if value is not None}
        return self.submit(caller, Command(operation, typed_arguments(operation, given)), **how)
