# Copyright (c) 2026, Lepton contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A module that its action plugin asks first what it would do. PRIVATE to the collection."""

from __future__ import annotations

from typing import Any

from ansible.plugins.action import ActionBase


def ask(action: ActionBase, args: dict[str, Any], variables: dict[str, Any], *, check: bool) -> dict[str, Any]:
    """Run the module of an action plugin, in check mode or not whatever the task is in, and return what it answers."""
    before = action._task.check_mode
    action._task.check_mode = check
    try:
        answered: dict[str, Any] = action._execute_module(module_args=args, task_vars=variables)
    finally:
        action._task.check_mode = before
    return answered
