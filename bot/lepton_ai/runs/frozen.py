# SPDX-License-Identifier: Apache-2.0
"""What an approval is about, and whether it still holds: the playbook's revision, the arguments, and what would change."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lepton_ai.operations.catalog import Operation
from lepton_ai.runs.model import FieldChange, Result, Run
from lepton_ai.runs.progress import MOST

IGNORED = frozenset({".git", "__pycache__", ".lepton", "changelogs", "docs", "tests"})


def revision(operation: Operation, inventory: Path, collections: Path) -> str:
    """Return a digest of all that may decide what an operation does: the playbooks' folder, the inventory, the collection."""
    digest = hashlib.sha256(operation.name.encode())
    for root in (operation.playbook.parent.parent, inventory, collections / "ansible_collections" / "lepton" / "cloud"):
        for file in sorted(root.rglob("*")) if root.is_dir() else [root]:
            name = file.relative_to(root)
            if file.is_file() and not IGNORED.intersection(name.parts) and file.suffix != ".pyc":
                digest.update(str(name).encode() + b"\0" + hashlib.sha256(file.read_bytes()).digest())
    return digest.hexdigest()[:16]


def difference(plan: Run, arguments: Mapping[str, Any], now_revision: str) -> str:
    """Return what differs between what was approved and what is to be done now, "" when nothing does."""
    if plan.revision != now_revision:
        return f"the playbook has changed since (it was {plan.revision}, and is {now_revision})"
    if dict(plan.arguments) != dict(arguments):
        return "the arguments are not those of the plan"
    return ""


def changed_since(planned: Result, now: Result, *, begun: bool) -> str:
    """Return what would be changed now and was not planned, or the other way round; "" when nothing is.

    Of what has `begun`, a part may be done already.
    """
    before, after = _shown(planned), _shown(now)
    if max(len(planned.changes), len(now.changes)) >= MOST:
        return "it changes more than can be compared"
    gone, new = [] if begun else sorted((before - after).elements()), sorted((after - before).elements())
    parts = ([f"no longer {', '.join(gone)}"] if gone else []) + ([f"but now {', '.join(new)}"] if new else [])
    if not parts and not begun and sorted(planned.changed_hosts) != sorted(now.changed_hosts):
        parts = [f"it would change {', '.join(now.changed_hosts) or 'no host'}, and not {', '.join(planned.changed_hosts) or 'none'}"]
    return " ".join(parts)


def _shown(result: Result) -> Counter[str]:
    return Counter(map(in_words, result.changes))


def in_words(change: FieldChange) -> str:
    """Return a change as it is compared and told."""
    return f"{change.host} {change.field} {json.dumps(change.before)} to {json.dumps(change.after)}"
