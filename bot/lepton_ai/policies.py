# SPDX-License-Identifier: Apache-2.0
"""What people ask about scaling, at a terminal or in Slack: a site's policies, what was decided and why, and what may be set by hand."""

from __future__ import annotations

import datetime
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ansible_collections.lepton.cloud.plugins.module_utils._sizing import usual

from lepton_ai.errors import LeptonError
from lepton_ai.hours import UNITS
from lepton_ai.runs.store import Store
from lepton_ai.scaling.decision import as_decision, explain
from lepton_ai.scaling.policy import Policy, load_policy
from lepton_ai.settings import Settings

UNDO_SECONDS = 3600.0  # for which what was undone is not done again
DONE = ("grow", "cut", "ask")


def policy_of(settings: Settings, service: str) -> tuple[Path, Policy]:
    """Return a service's policy and its file, or raise LeptonError that says which there are."""
    found, wrong = [], []
    for path in sorted((settings.site / settings.scaling.policies).glob("*.yml")):
        try:
            found.append((path, load_policy(path)))
        except LeptonError as error:
            wrong.append(str(error))
    mine = next((each for each in found if each[1].service == service), None)
    if mine is None:
        names = ", ".join(policy.service for _path, policy in found) or "none"
        raise LeptonError(f"{ascii(service[:40])[1:-1]} has no policy: there are {names}" + "".join(f"; {each}" for each in wrong))
    return mine


def must_be_pinnable(policy: Policy, replicas: int) -> None:
    """Refuse what could not be held: outside the policy's bounds, or while it does nothing."""
    if policy.mode != "live":
        raise LeptonError(f"the policy of {policy.service} is in mode {policy.mode}, so it would not hold anything: scale it by hand")
    if not policy.min_replicas <= replicas <= policy.max_replicas:
        raise LeptonError(f"{policy.service} has {policy.min_replicas} to {policy.max_replicas} replicas by its policy, and {replicas} are none of these")


def said(settings: Settings, record: Mapping[str, Any]) -> str:
    """Return a record with its moment, in sentences."""
    moment = datetime.datetime.fromtimestamp(record["when"], settings.zone).strftime("%a %Y-%m-%d %H:%M:%S")
    mode = " (shadow: nothing is done)" if record["mode"] == "shadow" else "" if record["acted"] or record["outcome"] == "hold" else " (not done)"
    stages = record.get("stages") or {}
    took = f" Begun {stages['begun']:.0f} s later, all at the load balancer after {stages['serving']:.0f} s." if stages else ""
    return f"{moment}{mode}: {explain(as_decision(record))}{took}"


def records(store: Store, service: str, until: float, limit: int, outcomes: tuple[str, ...] = ()) -> list[dict[str, Any]]:
    """Return what was decided of a service, the newest first; raise LeptonError where there is nothing."""
    found = store.scaling_records(service, until=until, limit=limit, outcomes=outcomes)
    if not found:
        raise LeptonError(
            f"nothing was decided of {ascii(service[:40])[1:-1]} until then", hint="has it a policy, and is scaling.prometheus set in lepton.yml?"
        )
    return found


def why(settings: Settings, store: Store, service: str, at: str) -> str:
    """Say what was decided of a service last, or at a moment such as 08:30, and why."""
    return said(settings, records(store, service, moment(settings, at), 1)[0])


def history(settings: Settings, store: Store, service: str, limit: int) -> list[str]:
    """Say when a service grew, was cut, or waited for a person's word, the newest last, and how long growth took."""
    found = list(reversed(records(store, service, time.time(), limit, DONE)))
    serving = [record["stages"]["serving"] for record in found if record.get("stages") and record["final"] > record["asked"]]
    measured = [f"95 of 100 of these {len(serving)} times that it grew, all served within {usual(serving):.0f} s."] if serving else []
    return [said(settings, record) for record in found] + measured


def undoing(store: Store, service: str) -> tuple[int, float, str]:
    """Return the number of replicas before what a policy did last, until when that is to hold, and why."""
    lately = records(store, service, time.time(), 50, ("grow", "cut"))
    done = next((record for record in lately if record["acted"]), None)
    if done is None:
        raise LeptonError(f"the policy of {service} has done nothing lately that could be undone")
    if done["final"] == done["asked"]:
        raise LeptonError(f"the policy of {service} changed the size of its replicas last", hint=f"lepton run service resize {service} cpus={done['cpus']:g}")
    return int(done["asked"]), time.time() + UNDO_SECONDS, f"undone: {done['asked']} → {done['final']}"


def moment(settings: Settings, at: str) -> float:
    """Return a moment of the past, such as 08:30 or 2026-11-27T08:30 in the site's zone, as seconds since the epoch; now for none."""
    if not at:
        return time.time()
    now = datetime.datetime.now(settings.zone).astimezone(settings.zone)
    try:
        found = datetime.datetime.fromisoformat(at) if "-" in at else datetime.datetime.combine(now.date(), datetime.time.fromisoformat(at.zfill(5)))
    except ValueError as error:
        raise LeptonError(f"{ascii(at[:40])[1:-1]} is no moment: expected 08:30 or a date such as 2026-11-27T08:30") from error
    return (found if found.tzinfo is not None else found.replace(tzinfo=now.tzinfo)).timestamp()


def seconds(text: str) -> float:
    """Return a length of time such as 7d, 36h or 90m."""
    try:
        return float(text[:-1]) * UNITS[text[-1]]
    except (ValueError, KeyError, IndexError) as error:
        raise LeptonError(f"{text[:40]!a} is not a length of time: expected one such as 7d, 36h or 90m") from error
