# SPDX-License-Identifier: Apache-2.0
"""The App Home: what runs, what waits for this person, how the hosts are, what has changed. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from lepton_ai.access.freezes import Freeze
from lepton_ai.runs.model import Run
from lepton_ai.slack.checks import checked_view
from lepton_ai.slack.choices import Inventory
from lepton_ai.slack.views import APPROVE, REJECT, button, context, escape, inventory_blocks, run_line, section

MOST_RUNS = 8
START = "home_start"


def home(
    *, label: str, freezes: Sequence[Freeze], running: Sequence[Run], waiting: Sequence[Run], recent: Sequence[Run], inventory: Inventory | None
) -> dict[str, Any]:
    """Return the view. Only what this person may see is handed in; `waiting` are plans that this person may decide on."""
    blocks: list[dict[str, Any]] = [{"type": "header", "text": {"type": "plain_text", "text": f"Lepton{' · ' + label if label else ''}"}}]
    blocks.append({"type": "actions", "block_id": "home", "elements": [button("Do something…", START, "home", "primary")]})
    blocks += [section(f":snowflake: *{escape(freeze)}*") for freeze in freezes[:5]]
    if waiting:
        blocks.append(_title("Waits for you"))
        for plan in waiting[:MOST_RUNS]:
            blocks.append(section(run_line(plan)))
            elements = [button("Approve", APPROVE, plan.id, "primary"), button("Reject", REJECT, plan.id)]
            blocks.append({"type": "actions", "block_id": f"run-{plan.id}", "elements": elements})
    blocks.append(_title("Under way"))
    blocks += [section(run_line(run)) for run in running[:MOST_RUNS]] or [section("Nothing.")]
    if inventory is not None:
        blocks.append(_title("What there is"))
        blocks += inventory_blocks(inventory.hosts) if inventory.hosts else [section("No host has answered yet.")]
        blocks += [section(f":warning: {escape(host)}: {escape(why)}") for host, why in list(inventory.silent.items())[:5]]
    blocks.append(_title("Changed lately"))
    blocks += [section("\n".join(run_line(run) for run in recent[:MOST_RUNS]) or "Nothing.")]
    blocks.append(context("`/lepton help` says what can be asked for; in threads, mention me instead."))
    return checked_view({"type": "home", "blocks": blocks})


def _title(text: str) -> dict[str, Any]:
    return {"type": "header", "text": {"type": "plain_text", "text": text}}
