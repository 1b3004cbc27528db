# Copyright (c) 2026, Lepton contributors
# BSD-2-Clause license (see LICENSES/BSD-2-Clause.txt or https://opensource.org/licenses/BSD-2-Clause)
# SPDX-License-Identifier: BSD-2-Clause
"""What a plan changes, field by field: one source of `changed` and `diff`. Pure. PRIVATE to the collection and to the Lepton bot."""

from __future__ import annotations

from typing import Iterable, NamedTuple


class Change(NamedTuple):
    """One field that differs; `effective` is 'now', or says when else."""

    field: str
    before: object
    after: object
    effective: str = "now"


def diff_of(changes: Iterable[Change]) -> dict[str, dict[str, object]]:
    """Return changes as Ansible shows a difference."""
    told = list(changes)
    return {"before": {change.field: change.before for change in told}, "after": {change.field: change.after for change in told}}
