# Copyright (c) 2026, Lepton contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What every host of a group answered to an earlier task. PRIVATE to the collection."""

from __future__ import annotations

from typing import Any, Mapping


def answers_of(variables: Mapping[str, Any], group: str, registered: str) -> dict[str, Any]:
    """Return each host's answer, empty for a host that did not answer. A group that the inventory does not have has no hosts."""
    return {host: variables["hostvars"][host].get(registered) or {} for host in variables["groups"].get(group, ())}
