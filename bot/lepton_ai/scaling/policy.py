# SPDX-License-Identifier: Apache-2.0
"""How a service may be scaled: one file a service, checked when it is read."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from lepton_ai.errors import LeptonError
from lepton_ai.hours import DAYS, Clock, Day
from lepton_ai.yaml_lines import line_of

FIRST_LEAD = 60.0  # seconds that a replica takes to serve, until that was measured


class Part(BaseModel):
    """What all parts of a policy have in common: unknown keys are errors."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Signal(Part):
    """What Prometheus is asked, and what its answer means."""

    name: str = Field(description="What people call it.")
    promql: str = Field(default="", description="The question. One series in the answer; several are added up.")
    kind: Literal["load", "utilisation", "queue", "latency"] = Field(
        default="load",
        description="load: of all replicas together, such as requests per second. utilisation: the mean share from 0 to 1 that replicas are in use. "
        "queue: what waits, of all replicas together. latency: seconds. The first two are learned from and foreseen; the others only ever add replicas.",
    )
    capacity: float = Field(default=1.0, gt=0, description="load: what one replica serves. queue: what may wait per replica. latency: the objective.")
    max_age_seconds: float = Field(default=60, gt=0, description="A sample that is older counts as missing.")
    min_coverage: float = Field(default=0.7, ge=0, le=1, description="The share of replicas that must have a sample.")


class Floor(Part):
    """A time of the week at which there are at least so many replicas."""

    days: list[Day] = Field(default_factory=lambda: [*DAYS], min_length=1)
    begin: Clock
    end: Clock
    replicas: int = Field(ge=1)


class Budget(Part):
    """What a day may cost."""

    replica_hours_per_day: float = Field(gt=0)
    beyond: Literal["warn", "ask", "freeze"] = Field(default="ask", description="What becomes of growth beyond it.")


class FlapBudget(Part):
    """How often the direction may change: a cut that would be one change too many does not happen, growth always does."""

    reversals: int = Field(default=2, ge=0)
    within_seconds: float = Field(default=3600, gt=0)


class Vertical(Part):
    """How far replicas are made bigger before there are more of them, by `service resize`, and smaller when there cannot be fewer."""

    cpus: float = Field(gt=0, description="What a replica has at least. The capacities of the signals are those of such a replica.")
    max_cpus: float = Field(gt=0)
    step: float = Field(default=1.0, gt=0, description="In which steps; whole ones for nodes.")


class Approval(Part):
    """What is done without asking anybody."""

    grow_alone: int | None = Field(default=None, ge=0, description="More replicas in one step than these are asked for. No limit where not given.")
    cut_alone: float = Field(default=1.0, ge=0, le=1, description="A cut of a greater share of the replicas is asked for.")
    approvers: list[str] = Field(default_factory=list, description="Who is asked: principals such as slack:T01/U02 or slack-group:T01/S03.")


class Policy(Part):
    """How one service is scaled."""

    service: str
    mode: Literal["live", "shadow", "paused"] = Field(default="shadow", description="shadow: decide and keep records, and do nothing. paused: nothing.")
    min_replicas: int = Field(ge=0, description="0: none, when nobody has called for hold_seconds; whoever calls then waits for the first one.")
    max_replicas: int = Field(ge=1)
    signals: list[Signal] = Field(min_length=1)
    max_utilisation: float = Field(default=0.9, gt=0, le=1, description="The share of its capacity at which a replica is too busy.")
    lead_seconds: float | Literal["auto"] = Field(
        default="auto", description="From asking for a replica until it serves. auto: what that took in 95 of 100 of our own runs."
    )
    risk: float = Field(default=0.002, gt=0, lt=0.5, description="In which share of all moments load may outgrow what is there before more can be.")
    hold_seconds: float = Field(default=1800, ge=0, description="No cut so soon after growth, nor of what is likely to be needed again within that time.")
    vertical: Vertical | None = None
    max_step_up: int | None = Field(default=None, ge=1)
    max_step_down: int | None = Field(default=None, ge=1)
    dead_band: int = Field(default=0, ge=0, description="Cuts of so few replicas are not worth it.")
    survive_host_loss: bool = Field(default=False, description="As many more, on at least two hosts, that those on one host can be lost.")
    floors: list[Floor] = Field(default_factory=list)
    flap_budget: FlapBudget = FlapBudget()
    budget: Budget | None = None
    approval: Approval = Approval()
    evidence: int = Field(default=1, ge=1, description="How many signals must agree that fewer replicas are enough, where there are several.")

    @model_validator(mode="after")
    def _agrees_with_itself(self) -> Policy:
        if self.min_replicas > self.max_replicas:
            raise ValueError(f"min_replicas {self.min_replicas} is above max_replicas {self.max_replicas}")
        if self.max_step_down is not None and self.dead_band >= self.max_step_down:
            raise ValueError(f"dead_band {self.dead_band} leaves out every cut that max_step_down {self.max_step_down} allows")
        if self.vertical is not None and self.vertical.max_cpus <= self.vertical.cpus:
            raise ValueError(f"vertical: max_cpus {self.vertical.max_cpus:g} is no more than cpus {self.vertical.cpus:g}")
        high = next((floor for floor in self.floors if floor.replicas > self.max_replicas), None)
        if high is not None:
            raise ValueError(f"a floor of {high.replicas} replicas is above max_replicas {self.max_replicas}")
        if all(signal.kind in ("queue", "latency") for signal in self.signals):
            raise ValueError("signals: a queue and a latency only ever add replicas, so one of kind load or utilisation is needed")
        if self.evidence > len(self.signals):
            raise ValueError(f"evidence of {self.evidence} signals cannot be had of {len(self.signals)}")
        asks = self.approval.grow_alone is not None or self.approval.cut_alone < 1 or (self.budget is not None and self.budget.beyond == "ask")
        if asks and not self.approval.approvers:
            raise ValueError("approval: approvers names nobody, and there is something to be asked for")
        names = [signal.name for signal in self.signals]
        if len(set(names)) < len(names):
            raise ValueError("signals: two of them have the same name")
        return self


def read_policy(text: str, where: str = "the policy") -> Policy:
    """Return the policy that a YAML text says, or raise LeptonError that names the line and what is wrong there."""
    try:
        node = yaml.compose(text, Loader=yaml.SafeLoader)
        raw: Any = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise LeptonError(f"{where} is not YAML: {error}") from error
    try:
        return Policy.model_validate(raw)
    except ValidationError as error:
        problems, root = [], 1 if node is None else node.start_mark.line + 1
        for found in error.errors():
            path = found["loc"]
            said = found["msg"].removeprefix("Value error, ")
            problems.append(f"line {line_of(node, path, root)}: {'.'.join(map(str, path)) + ': ' if path else ''}{said}")
        raise LeptonError(f"{where}: {'; '.join(problems)}") from error


def load_policy(path: Path) -> Policy:
    """Read a policy's file."""
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise LeptonError(f"{path}: {error.strerror}") from error
    return read_policy(text, str(path))


def differences(before: Policy, after: Policy) -> list[str]:
    """Return what changes from one policy to another, a line for each key."""
    old, new = before.model_dump(mode="json"), after.model_dump(mode="json")
    return [f"{name}: {_shown(old[name])} → {_shown(new[name])}" for name in new if old[name] != new[name]]


def _shown(value: Any) -> str:
    return "nothing" if value in (None, [], {}) else str(value)
