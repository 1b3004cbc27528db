# SPDX-License-Identifier: Apache-2.0
"""What an approval is about, and whether it still holds: the playbook's revision, the arguments, and what would change."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lepton_ai.operations.catalog import Operation
from lepton_ai.runs.model import FieldChange, Result, Run

CODE = (".py", ".yml")


def revision(operation: Operation, collections: Path) -> str:
    """Return a digest of all that an operation does: its playbook and meta file, the tasks beside it, the collection."""
    folders = [operation.playbook.parent / "tasks", collections / "ansible_collections" / "lepton" / "cloud" / "plugins"]
    files = [operation.playbook, operation.playbook.with_suffix(".meta.yml")]
    files += [file for folder in folders for file in sorted(folder.rglob("*")) if file.suffix in CODE]
    digest = hashlib.sha256()
    for file in files:
        digest.update(file.name.encode() + b"\0" + hashlib.sha256(file.read_bytes()).digest())
    return digest.hexdigest()[:16]


def difference(plan: Run, planned: Result, arguments: Mapping[str, Any], now_revision: str, now: Result) -> str:
    """Return what differs between an approved plan and the world as it is now, "" when nothing does."""
    if plan.revision != now_revision:
        return f"the playbook has changed since (it was {plan.revision}, and is {now_revision})"
    if dict(plan.arguments) != dict(arguments):
        return "the arguments are not those of the plan"
    before, after = _shown(planned), _shown(now)
    gone = [before[key] for key in before if after.get(key) != before[key]]
    new = [after[key] for key in after if before.get(key) != after[key]]
    parts = ([f"no longer {', '.join(gone)}"] if gone else []) + ([f"but now {', '.join(new)}"] if new else [])
    if not parts and sorted(planned.changed_hosts) != sorted(now.changed_hosts):
        parts = [f"it would change {', '.join(now.changed_hosts) or 'no host'}, and not {', '.join(planned.changed_hosts) or 'none'}"]
    return " ".join(parts)


def _shown(result: Result) -> dict[tuple[str, str], str]:
    return {(change.host, change.field): _text(change) for change in result.changes}


def _text(change: FieldChange) -> str:
    return f"{change.host} {change.field} {json.dumps(change.before)} to {json.dumps(change.after)}"
