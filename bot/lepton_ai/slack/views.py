# SPDX-License-Identifier: Apache-2.0
"""What people see in Slack: runs, plans and answers as Block Kit. Pure; everything foreign is escaped and bounded."""

from __future__ import annotations

import json
import re
import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from lepton_ai.intake import CONFIRMATION
from lepton_ai.runs.model import Decision, Result, Run, State
from lepton_ai.runs.progress import Progress
from lepton_ai.runs.service import result_of
from lepton_ai.runs.standing import Standing, standing
from lepton_ai.slack.limits import BUTTON_VALUE_LIMIT, CONTEXT_LIMIT, SECTION_LIMIT, shortened

CANCEL, APPROVE, REJECT, AGAIN, FILL_IN = "run_cancel", "plan_approve", "plan_reject", "run_again", "form_open"
FALLBACK_LIMIT = 500  # characters of the notification text
ERROR_LIMIT = 1500  # characters of an error in the message itself
CODE_FRAME = 20  # characters around code
MOST_LINES = 30
MOST_HOSTS = 10
BAR = 10  # characters of a progress bar
NODE_FIELDS = {"name", "state", "vcpus", "max_vcpus", "memory", "max_memory"}
_ICONS = {
    State.QUEUED: ":hourglass_flowing_sand:",
    State.RUNNING: ":arrows_counterclockwise:",
    State.SUCCEEDED: ":white_check_mark:",
    State.FAILED: ":x:",
    State.CANCELED: ":black_square_for_stop:",
    State.TIMED_OUT: ":alarm_clock:",
    State.INTERRUPTED: ":zap:",
}
ID = re.compile(r"[A-Z0-9]{2,30}")  # of a user or a user group; anything else in a principal is only text
Block = dict[str, Any]


def escape(text: object) -> str:
    """Return text as data in mrkdwn: no mentions, no links (docs.slack.dev/messaging/formatting-message-text)."""
    return str(text).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def run_message(run: Run, progress: Progress | None = None, *, decisions: Sequence[Decision] = (), label: str = "", link: str = "") -> tuple[str, list[Block]]:
    """Return the (notification text, blocks) of a run as it stands; `progress` while this process runs it.

    `label` is the site's, such as prod; `link` leads to the run's page.
    """
    stands = standing(run, decisions)
    title = f"{'plan ' if run.check else ''}{run.operation.replace('.', ' ')}"
    asked = " ".join(f"{name}={_value(value)}" for name, value in run.arguments.items() if value not in (None, False, []))
    head = f"{_ICONS[run.state]} *{escape(title)}* {escape(asked)}".strip()
    blocks = [section(head), section(_status(run, progress))]
    if run.state.final:
        blocks += _result_blocks(run)
    if stands is not Standing.NONE:
        blocks += _approval_blocks(run, stands, decisions)
    blocks += _buttons(run, stands)
    who = [f"*{escape(label)}*"] if label else []
    who += [f"asked for by {_who(run.principal)}", f"run <{escape(link)}|{run.id}>" if link else f"run `{run.id}`"]
    who += [f"of the approved plan `{run.approved_plan}`"] if run.approved_plan else []
    blocks.append(context(" · ".join(who)))
    if run.command:
        blocks.append(context(f"by hand: `{escape(run.command)}`"))
    return f"{title} {asked}: {run.state}"[:FALLBACK_LIMIT], blocks


def runs_text(runs: Sequence[Run]) -> str:
    """Return the newest runs, a line each."""
    if not runs:
        return "No run yet."
    return "\n".join(map(run_line, runs))


def run_line(run: Run) -> str:
    """Return a run in one line."""
    words = escape(shortened(" ".join(str(value) for value in run.arguments.values() if isinstance(value, str)), 200))
    what = f"{'plan ' if run.check else ''}{escape(run.operation.replace('.', ' '))} {words}"
    return f"{_ICONS[run.state]} `{run.id}` {what} · {run.state} · {_who(run.principal)}"


def _status(run: Run, progress: Progress | None) -> str:
    if run.state is State.QUEUED and run.due > time.time():
        return f":alarm_clock: scheduled for {_moment(run.due)}"
    if run.state is State.QUEUED:
        return f"queued{': ' + _people(escape(progress.task)) if progress and progress.task else ''}"
    if run.state is State.RUNNING:
        elapsed = f"{max(0.0, time.time() - (run.started or run.created)):.1f} s"
        if progress is None or not progress.task:
            return f"running · {elapsed}"
        hosts = _hosts({host: state for host, state in progress.hosts.items() if host != "localhost"})
        return f"running · {elapsed} · {_bar(progress)}{escape(progress.task)}" + (f"\n{hosts}" if hosts else "")
    took = f"{(run.finished or run.created) - (run.started or run.created):.1f} s"
    if run.state is State.SUCCEEDED:
        return f"*{_outcome(run, result_of(run))}* · {took}"
    return f"*{run.state}* · {took}" + (f"\n{escape(shortened(run.error, ERROR_LIMIT))}" if run.error else "")


def _bar(progress: Progress) -> str:
    """Return how far a run is, in task it has begun of those it has."""
    if not 0 < progress.tasks_begun <= progress.tasks:
        return ""
    full = round(BAR * (progress.tasks_begun - 1) / progress.tasks)
    return f"`{'█' * full}{'░' * (BAR - full)}` {progress.tasks_begun}/{progress.tasks} "


def _hosts(hosts: Mapping[str, str]) -> str:
    """Return hosts with their states; of many, how many are in which state, and the first that went wrong by name."""
    if len(hosts) <= MOST_HOSTS:
        return ", ".join(f"{escape(host)} {state}" for host, state in sorted(hosts.items()))
    counts = ", ".join(f"{count} {state}" for state, count in sorted(Counter(hosts.values()).items()))
    wrong = [host for host, state in sorted(hosts.items()) if state in ("failed", "unreachable")]
    more = f" and {len(wrong) - MOST_HOSTS} more" if len(wrong) > MOST_HOSTS else ""
    return f"{len(hosts)} hosts: {counts}" + (f"\nnot well: {escape(', '.join(wrong[:MOST_HOSTS]))}{more}" if wrong else "")


def _people(text: str) -> str:
    return re.sub(r"slack:[A-Z0-9]+/([A-Z0-9]{2,30})", r"<@\1>", text)


def details(run: Run) -> list[tuple[str, str]]:
    """Return (file name, content) of what an ended run has to say beyond the room of its message: all of it."""
    result = result_of(run)
    files = []
    if len(result.changes) > MOST_LINES:
        files.append(
            ("changes.txt", "\n".join(f"{change.host}: {change.field} {_value(change.before)} -> {_value(change.after)}" for change in result.changes))
        )
    if len(run.error) > ERROR_LIMIT:
        files.append(("error.txt", run.error))
    if len(result.warnings) > MOST_LINES:
        files.append(("warnings.txt", "\n".join(result.warnings)))
    for host, answer in sorted(result.answers.items()):
        console = answer.get("console", "")
        if len(escape(console)) > SECTION_LIMIT - CODE_FRAME:
            files.append((f"{host}-console.txt", console))
    tables = ["\n".join(rows) for rows in inventory_tables(result.answers)] if run.risk == "read" else []
    if any(len(table) > SECTION_LIMIT - CODE_FRAME or table.count("\n") >= MOST_LINES for table in tables):
        files.append(("answer.txt", "\n\n".join(tables)))
    return files


def _outcome(run: Run, result: Result) -> str:
    if run.risk == "read":
        return "done"
    if not result.changed_hosts:
        return "nothing to change"
    return "would change" if run.check else "changed"


def _result_blocks(run: Run) -> list[Block]:
    result = result_of(run)
    blocks: list[Block] = []
    lines = [
        f"{escape(change.host)}: `{escape(change.field)}` {_value(change.before)} → *{_value(change.after)}*"
        + (f" ({escape(change.effective)})" if change.effective != "now" else "")
        for change in result.changes
    ]
    if lines:
        blocks.append(section("\n".join(_bounded(lines))))
    if run.risk == "read" and (result.answers or run.state is State.SUCCEEDED):
        blocks += _answer_blocks(result.answers)
    # A run that succeeded may have gone past hosts that did not answer.
    silent = [f"{host}: {why}" for host, why in result.failures.items()] if run.state is State.SUCCEEDED else []
    if result.warnings or silent:
        blocks.append(section("\n".join(f":warning: {escape(warning)}" for warning in _bounded([*result.warnings, *silent]))))
    return blocks


def _answer_blocks(answers: Mapping[str, Mapping[str, Any]]) -> list[Block]:
    consoles = [answer["console"] for answer in answers.values() if "console" in answer]
    if consoles:
        return [_code(text or "(nothing yet)") for text in consoles]
    return inventory_blocks(answers) or [section("There is none.")]


def inventory_blocks(answers: Mapping[str, Mapping[str, Any]]) -> list[Block]:
    """Return hosts and nodes as tables, from what the hosts answered."""
    return [_code("\n".join(_bounded(lines))) for lines in inventory_tables(answers)]


def inventory_tables(answers: Mapping[str, Mapping[str, Any]]) -> list[list[str]]:
    """Return hosts and nodes as the lines of tables, all of them."""
    tables = []
    capacity = [(host, answer["capacity"]) for host, answer in sorted(answers.items()) if "capacity" in answer]
    if capacity:
        rows = [["HOST", "VCPUS FREE", "MEMORY FREE"]]
        rows += [[host, f"{room['vcpus_free']} of {room['vcpus']}", f"{_gib(room['memory_free'])} of {_gib(room['memory'])}"] for host, room in capacity]
        tables.append(_table(rows))
    nodes = [(host, node) for host, answer in sorted(answers.items()) for node in answer.get("nodes", ()) if set(node) >= NODE_FIELDS]
    if nodes:
        rows = [["NODE", "HOST", "STATE", "VCPUS", "MEMORY"]]
        rows += [
            [node["name"], host, node["state"], f"{node['vcpus']} of {node['max_vcpus']}", f"{node['memory']} of {node['max_memory']}"] for host, node in nodes
        ]
        tables.append(_table(rows))
    return tables


def _approval_blocks(plan: Run, stands: Standing, decisions: Sequence[Decision]) -> list[Block]:
    """Return how a plan stands: what it is about, who may approve it and until when, who has decided what."""
    approval = plan.origin["approval"]
    if approval["count"] == 0:
        return [section(f"so few hosts need nobody's approval (rule {escape(approval['rule'])})")] if stands is Standing.APPROVED else []
    said = [f"{'approved' if decision.approved else 'rejected'} by {_who(decision.principal)} {_moment(decision.at)}" for decision in decisions]
    if stands is not Standing.WAITING:
        return [section(" · ".join([f"*{stands}*", *said]))] if stands is not Standing.PLANNING else []
    result = result_of(plan)
    hosts = len(result.changed_hosts)
    about = f"changes {hosts} host{'' if hosts == 1 else 's'} in {len(result.changes)} field{'' if len(result.changes) == 1 else 's'}"
    if approval["rule"] == CONFIRMATION:
        return [section(f":warning: this destroys; it {about}. Only you can confirm it, until {_moment(approval['expires'])}")]
    approvers = ", ".join(map(_who, approval["approvers"]))
    needed = f"{approval['count']} of them" if approval["count"] > 1 else "one of them"
    own = "" if approval["self"] else ", not whoever asked"
    lines = [f":lock: *waits for approval* (rule {escape(approval['rule'])}): it {about}"]
    lines.append(f"{approvers} may approve: {needed}{own}, until {_moment(approval['expires'])}")
    return [section("\n".join([*lines, *said]))]


def _moment(at: float) -> str:
    """Return a time that Slack shows in each reader's own zone (docs.slack.dev/messaging/formatting-message-text#date-formatting)."""
    fallback = time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(at))
    return f"<!date^{int(at)}^{{date_short_pretty}} {{time}}|{fallback}>"


def _buttons(run: Run, stands: Standing) -> list[Block]:
    if not run.state.final:
        elements = [button("Cancel", CANCEL, run.id, "danger")]
    elif stands is Standing.WAITING:
        own = run.origin["approval"]["rule"] == CONFIRMATION
        elements = [
            button("Do it" if own else "Approve", APPROVE, run.id, "danger" if run.risk == "destroy" else "primary"),
            button("Leave it" if own else "Reject", REJECT, run.id),
        ]
    elif run.state is not State.SUCCEEDED and not run.check:
        elements = [button("Run again", AGAIN, run.id)]
    else:
        return []
    return [{"type": "actions", "block_id": f"run-{run.id}", "elements": elements}]


def fill_in(operation: str, values: Mapping[str, Any], *, check: bool, due: float) -> list[Block]:
    """Return a button that opens an operation's form with these values."""
    value = json.dumps({"operation": operation, "values": dict(values), "check": check, "due": due})
    if len(value) > BUTTON_VALUE_LIMIT:
        value = json.dumps({"operation": operation, "values": {}, "check": check, "due": due})
    name = operation.replace(".", " ")
    return [section(f"*{escape(name)}* needs more than that."), {"type": "actions", "elements": [button("Fill in", FILL_IN, value, "primary")]}]


def button(text: str, action_id: str, value: str, style: str | None = None) -> Block:
    button: Block = {"type": "button", "text": {"type": "plain_text", "text": text}, "action_id": action_id, "value": value}
    return {**button, "style": style} if style else button


def _who(principal: str) -> str:
    kind, _, name = principal.partition(":")
    person = name.partition("/")[2]
    if kind == "slack" and ID.fullmatch(person):
        return f"<@{person}>"
    return f"<!subteam^{person}>" if kind == "slack-group" and ID.fullmatch(person) else escape(principal)


def _value(value: Any) -> str:
    if value is None:
        return "none"
    return escape(value if isinstance(value, str) else json.dumps(value))


def _gib(size: float) -> str:
    return f"{size / 1024**3:.1f}GiB"


def _table(rows: Sequence[Sequence[object]]) -> list[str]:
    widths = [max(len(str(row[column])) for row in rows) for column in range(len(rows[0]))]
    return ["  ".join(str(cell).ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]


def _bounded(lines: Sequence[str]) -> list[str]:
    kept = list(lines[:MOST_LINES])
    return [*kept, f"… and {len(lines) - MOST_LINES} more, in the thread"] if len(lines) > MOST_LINES else kept


def _code(text: str) -> Block:
    room = SECTION_LIMIT - CODE_FRAME
    escaped = escape(text.replace("```", "'''"))
    if len(escaped) > room:
        # The end of a console says most; an entity cut in half would show as garbage.
        escaped = "…" + escaped[-room:].partition("\n")[2]
    return section(f"```\n{escaped}\n```")


def section(text: str) -> Block:
    return {"type": "section", "text": _mrkdwn(text)}


def context(text: str) -> Block:
    return {"type": "context", "elements": [_mrkdwn(text, CONTEXT_LIMIT)]}


def _mrkdwn(text: str, limit: int = SECTION_LIMIT) -> Block:
    return {"type": "mrkdwn", "text": shortened(text, limit)}


def _unescape(text: str) -> str:
    text = re.sub(r"<https?:[^|>]*\|([^>]*)>", r"\1", text)
    text = re.sub(r"<!date\^[^|>]*\|([^>]*)>", r"\1", text)
    return text.replace("&lt;", "<").replace("&gt;", ">").replace("&amp;", "&")


def plain_text(blocks: Iterable[Block]) -> str:
    """Return the blocks as a person reads them, for transcripts."""
    lines = []
    for block in blocks:
        if block["type"] == "header":
            lines.append(block["text"]["text"])
        elif block["type"] == "section":
            lines.append(_unescape(block["text"]["text"]))
        elif block["type"] == "context":
            lines.extend(_unescape(element["text"]) for element in block["elements"])
        elif block["type"] == "actions":
            lines.append(" ".join(f"[{element['text']['text']}]" for element in block["elements"]))
    return "\n".join(lines)
