# SPDX-License-Identifier: Apache-2.0
"""What people see in Slack: runs, plans and answers as Block Kit. Pure; everything foreign is escaped and bounded."""

from __future__ import annotations

import json
import re
import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ansible_collections.lepton.cloud.plugins.module_utils._balancer import is_up

from lepton_ai.intake import CONFIRMATION
from lepton_ai.runs.model import HERE, Decision, FieldChange, Result, Run, State, failed_of, result_of
from lepton_ai.runs.progress import Progress
from lepton_ai.runs.standing import Standing, standing
from lepton_ai.slack.checks import checked_message, text_length
from lepton_ai.slack.limits import BUTTON_VALUE_LIMIT, CONTEXT_LIMIT, MESSAGE_LIMIT, SECTION_LIMIT, shortened

CANCEL, APPROVE, REJECT, AGAIN, AGAIN_FAILED, FILL_IN = "run_cancel", "plan_approve", "plan_reject", "run_again", "run_again_failed", "form_open"
FALLBACK_LIMIT = 500  # characters of the notification text
ERROR_LIMIT = 1500  # characters of an error in the message itself
LINE_LIMIT = 600  # characters of one line of a list
COUNT_ROOM = 40
TAIL_ROOM = 4200  # characters for what stands below the result: approvals, who asked, the line to do it by hand
LEAST_ROOM = 300
CODE_FRAME = 20  # characters around code
MOST_LINES = 30
MOST_HOSTS = 10
MOST_CONSOLES = 3
BAR = 10  # characters of a progress bar
ROOM_FIELDS = {"cpus", "cpus_free", "memory", "memory_free"}
DEPLOYMENT_FIELDS = frozenset({"name", "namespace", "ready", "replicas", "state", "image", "revision"})
CONTAINER_FIELDS = {"name", "state", "image", "cpus", "memory", "owned"}
IMAGE_FIELDS = {"name", "size", "model", "version", "framework", "owned"}
SERVICE_FIELDS = {"name", "replicas", "declaration", "servers", "counters"}
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


@dataclass
class Message:
    """A run's message, and the files in its thread that hold whole what has no room in it: (name, content)."""

    text: str = ""
    blocks: list[Block] = field(default_factory=list)
    files: list[tuple[str, str]] = field(default_factory=list)

    def room(self) -> int:
        """Return how many characters one more section may have, with what always follows left free."""
        return max(0, min(SECTION_LIMIT, MESSAGE_LIMIT - TAIL_ROOM - text_length(self.blocks)))

    def say(self, shown: str, whole: str, file: str, limit: int = SECTION_LIMIT) -> None:
        """Add a section; where the text has no room, its beginning, and all of it as a file."""
        limit = min(limit, max(self.room(), LEAST_ROOM))
        if len(shown) > limit:
            shown = shortened(shown, limit - len(_more(file))) + _more(file)
            self.files.append((file, whole))
        self.blocks.append(section(shown))

    def lines(self, lines: Sequence[tuple[str, str]], file: str) -> None:
        """Add lines, each as (shown, whole): as many as have room, and all of them as a file where that is not all."""
        said: list[str] = []
        room = max(self.room(), LEAST_ROOM) - len(_more(file)) - COUNT_ROOM
        for shown, _whole in lines[:MOST_LINES]:
            said.append(shortened(shown, LINE_LIMIT))
            room -= len(said[-1]) + 1
            if room < 0:
                said.pop()
                break
        left = len(lines) - len(said)
        if left:
            said.append(f"… {left} more of {len(lines)}{_more(file)}")
        cut = any(len(shown) > LINE_LIMIT for shown, _whole in lines)
        if cut and not left:
            said.append(_more(file).strip())
        if cut or left:
            self.files.append((file, "\n".join(whole for _shown, whole in lines)))
        self.blocks.append(section("\n".join(said)))

    def code(self, text: str, file: str, *, end: bool = False) -> None:
        """Add text as it is, its beginning or its end where it has no room, and then all of it as a file."""
        escaped = escape(text.replace("```", "'''"))
        room = max(self.room(), LEAST_ROOM) - CODE_FRAME - len(_more(file))
        lines = escaped.splitlines()
        if len(escaped) <= room and len(lines) <= MOST_LINES:
            self.blocks.append(section(f"```\n{escaped}\n```"))
            return
        kept: list[str] = []
        for line in reversed(lines) if end else lines:  # the end of a console says most
            room -= len(line) + 1
            if room < 0 or len(kept) == MOST_LINES:
                break
            kept.append(line)
        self.files.append((file, text))
        self.blocks.append(section("```\n" + "\n".join(reversed(kept) if end else kept) + "\n```" + _more(file)))


def run_message(
    run: Run,
    progress: Progress | None = None,
    *,
    decisions: Sequence[Decision] = (),
    label: str = "",
    link: str = "",
    tasks_below: bool = False,
    per_host: bool = False,
) -> Message:
    """Return the message of a run as it stands; `progress` while this process runs it.

    `label` is the site's, such as prod; `link` leads to the run's page. `tasks_below`: its tasks are shown in its thread.
    `per_host`: it can be done again on some of its hosts only.
    """
    message = Message()
    stands = standing(run, decisions)
    title = f"{'plan ' if run.check else ''}{run.operation.replace('.', ' ')}"
    asked = " ".join(f"{name}={_plain_value(value)}" for name, value in run.arguments.items() if value not in (None, False, []))
    asked += f" (on {', '.join(run.hosts)} only)" if run.hosts else ""
    asked += " (one host first)" if run.canary else ""
    message.text = shortened(escape(f"{title} {asked}: {run.state}"), FALLBACK_LIMIT)
    message.say(f"{_ICONS[run.state]} *{escape(title)}* {escape(asked)}".strip(), f"{title} {asked}", "request.txt")
    status = f"running since {moment(run.started or run.created)} · its tasks stand in the thread" if tasks_below else _status(run, progress)
    message.blocks.append(section(status))
    if run.error and run.state.final and run.state is not State.SUCCEEDED:
        message.say(escape(run.error), run.error, "error.txt", ERROR_LIMIT)
    if run.state.final:
        _add_result(message, run)
    if stands is not Standing.NONE:
        message.blocks += _approval_blocks(run, stands, decisions)
    message.blocks += _buttons(run, stands, per_host=per_host)
    words = [f"*{escape(label)}*"] if label else []
    words += [f"asked for by {who(run.principal)}", f"run <{escape(link)}|{run.id}>" if link else f"run `{run.id}`"]
    words += [f"of the approved plan `{run.approved_plan}`"] if run.approved_plan else []
    message.blocks.append(context(" · ".join(words)))
    if run.command:
        by_hand = f"by hand: `{escape(run.command)}`"
        if len(by_hand) > CONTEXT_LIMIT:
            message.files.append(("command.txt", run.command))
            by_hand = "by hand: in the thread, command.txt"
        message.blocks.append(context(by_hand))
    checked_message(message.text, message.blocks)
    return message


def _more(file: str) -> str:
    return f" _(all of it in the thread: {escape(file)})_" if file else " _(and more)_"


def runs_text(runs: Sequence[Run]) -> str:
    """Return the newest runs, a line each."""
    if not runs:
        return "No run yet."
    return "\n".join(map(run_line, runs))


def run_line(run: Run) -> str:
    """Return a run in one line."""
    words = escape(shortened(" ".join(str(value) for value in run.arguments.values() if isinstance(value, str)), 200))
    what = f"{'plan ' if run.check else ''}{escape(run.operation.replace('.', ' '))} {words}"
    return f"{_ICONS[run.state]} `{run.id}` {what} · {run.state} · {who(run.principal)}"


def _status(run: Run, progress: Progress | None) -> str:
    if run.state is State.QUEUED and run.due > time.time():
        return f":alarm_clock: scheduled for {moment(run.due)}"
    if run.state is State.QUEUED:
        return f"queued{': ' + _people(escape(progress.task)) if progress and progress.task else ''}"
    if run.state is State.RUNNING:
        elapsed = f"{max(0.0, time.time() - (run.started or run.created)):.1f} s"
        if progress is None or not progress.task:
            return f"running · {elapsed}"
        hosts = _hosts({host: state for host, state in dict(progress.hosts).items() if host != HERE})
        said = progress.begun_tasks[-1].said if progress.begun_tasks else ""
        task = f"{progress.task} · {said}" if said and progress.task == progress.begun_tasks[-1].name else progress.task
        return f"running · {elapsed} · {_bar(progress)}{escape(task)}" + (f"\n{hosts}" if hosts else "")
    took = f"{(run.finished or run.created) - (run.started or run.created):.1f} s"
    if run.state is State.SUCCEEDED:
        return f"*{_outcome(run, result_of(run))}* · {took}"
    return f"*{run.state}* · {took}"


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


def _outcome(run: Run, result: Result) -> str:
    if run.risk == "read":
        return "done"
    if not result.changed_hosts:
        return "nothing to change"
    return "would change" if run.check else "changed"


def _add_result(message: Message, run: Run) -> None:
    result = result_of(run)
    if run.check and (steps := result.plan.get("steps")):
        forward = [step for step in steps if not step.get("undo")]
        lines = [("These steps, in this order, and nothing else:", True)]
        lines += [(f"{number}. {step['host']}: {step['title']}", False) for number, step in enumerate(forward, 1)]
        if len(forward) < len(steps):
            lines.append(("And only where one of them does not succeed, to take back what belongs to it:", True))
            lines += [(f"{step['host']}: {step['title']}", False) for step in steps if step.get("undo")]
        message.lines([(f"*{escape(line)}*" if head else escape(line), line) for line, head in lines], "steps.txt")
    if result.changes:
        message.lines([(_change_shown(change), _change_whole(change)) for change in result.changes], "changes.txt")
    if run.risk == "read" and (result.answers or run.state is State.SUCCEEDED):
        _add_answers(message, result.answers)
    # A run that succeeded may have gone past hosts that did not answer.
    silent = [f"{host}: {why}" for host, why in result.failures.items()] if run.state is State.SUCCEEDED else []
    if result.warnings or silent:
        message.lines([(f":warning: {escape(warning)}", warning) for warning in [*result.warnings, *silent]], "warnings.txt")


def _change_shown(change: FieldChange) -> str:
    when = f" ({escape(change.effective)})" if change.effective != "now" else ""
    return f"{escape(change.host)}: `{escape(change.field)}` {_value(change.before)} → *{_value(change.after)}*{when}"


def _change_whole(change: FieldChange) -> str:
    when = f" ({change.effective})" if change.effective != "now" else ""
    return f"{change.host}: {change.field} {_plain_value(change.before)} -> {_plain_value(change.after)}{when}"


def _add_answers(message: Message, answers: Mapping[str, Mapping[str, Any]]) -> None:
    consoles = [(host, answer["console"]) for host, answer in sorted(answers.items()) if "console" in answer]
    consoles += [(host, answer["log"]) for host, answer in sorted(answers.items()) if "log" in answer]
    for host, text in consoles[:MOST_CONSOLES]:
        message.code(text or "(nothing yet)", f"{host}-console.txt", end=True)
    if len(consoles) > MOST_CONSOLES:
        message.files += [(f"{host}-console.txt", text) for host, text in consoles[MOST_CONSOLES:] if text]
        message.blocks.append(section(f"{len(consoles) - MOST_CONSOLES} more consoles stand in the thread"))
    tables = [] if consoles else inventory_tables(answers)
    for number, table in enumerate(tables):
        message.code("\n".join(table), f"answer{number or ''}.txt")
    if not consoles and not tables:
        message.blocks.append(section("There is none."))


def inventory_blocks(answers: Mapping[str, Mapping[str, Any]]) -> list[Block]:
    """Return hosts and nodes as tables, from what the hosts answered; the beginning of what is long."""
    message = Message()
    for table in inventory_tables(answers):
        kept = [*table[:MOST_LINES], *([f"… and {len(table) - MOST_LINES} more: ask for the list"] if len(table) > MOST_LINES else [])]
        message.code("\n".join(kept), "")
    return message.blocks


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
    tables += _fit_tables(answers) + _container_tables(answers) + _image_tables(answers) + _service_tables(answers) + _deployment_tables(answers)
    return tables


def _fit_tables(answers: Mapping[str, Mapping[str, Any]]) -> list[list[str]]:
    """Return how many nodes of a size would fit on each host, and why not one more where that was found out."""
    tables = []
    for found in (answer["fit"] for _host, answer in sorted(answers.items()) if "fit" in answer):
        fitting = {each["host"]: each["nodes"] for each in found["hosts"]}
        lacking = {each["host"]: each["why"] for each in found["lacking"]}
        rows = [["HOST", "WOULD FIT", "NOT ONE MORE, SINCE"]]
        rows += [[host, str(fitting.get(host, 0)), lacking.get(host, "")] for host in sorted({*fitting, *lacking})]
        tables.append(_table([*rows, ["all", str(found["nodes"]), ""]]))
    return tables


def _container_tables(answers: Mapping[str, Mapping[str, Any]]) -> list[list[str]]:
    rooms = [(host, answer["room"]) for host, answer in sorted(answers.items()) if set(answer.get("room", ())) >= ROOM_FIELDS]
    tables = []
    if rooms:
        rows = [["HOST", "CPUS FREE", "MEMORY FREE"]]
        rows += [[host, f"{room['cpus_free']:g} of {room['cpus']:g}", f"{_gib(room['memory_free'])} of {_gib(room['memory'])}"] for host, room in rooms]
        tables.append(_table(rows))
    found = [
        (host, item) for host, answer in sorted(answers.items()) for item in answer.get("containers", ()) if set(item) >= CONTAINER_FIELDS and item["owned"]
    ]
    if found:
        rows = [["CONTAINER", "HOST", "STATE", "IMAGE", "CPUS", "MEMORY"]]
        rows += [[item["name"], host, item["state"], item["image"], f"{item['cpus'] or '-'}", f"{item['memory'] or '-'}"] for host, item in found]
        tables.append(_table(rows))
    return tables


def _image_tables(answers: Mapping[str, Mapping[str, Any]]) -> list[list[str]]:
    """Return a line for each image on each host: those that were asked for, or the one that was built."""
    found = [(host, item) for host, answer in sorted(answers.items()) for item in answer.get("model_images", ()) if set(item) >= IMAGE_FIELDS]
    built = [(host, answer["image"]) for host, answer in sorted(answers.items()) if set(answer.get("image", ())) >= IMAGE_FIELDS]
    if not found and not built:
        return []
    rows = [["IMAGE", "HOST", "SIZE", "MODEL", "VERSION", "FRAMEWORK"]]
    rows += [
        [item["name"], host, f"{item['size'] / 1024**2:.0f}MiB", *(str(item[field] or "-") for field in ("model", "version", "framework"))]
        for host, item in found or built
    ]
    return [_table(rows)]


def _service_tables(answers: Mapping[str, Mapping[str, Any]]) -> list[list[str]]:
    """Return a line for each service at each load balancer, with what clients got there, and one for each of its replicas."""
    services = [(host, item) for host, answer in sorted(answers.items()) for item in answer.get("services", ()) if set(item) >= SERVICE_FIELDS]
    if not services:
        return []
    rows = [["SERVICE", "AT", "REPLICAS", "IMAGE", "PORT", "REQUESTS", "ERRORS"]]
    for host, item in services:
        counted, up = item["counters"], sum(map(is_up, item["servers"]))
        wanted = item["declaration"]
        replicas = f"{up} of {item['replicas']}"
        rows.append([item["name"], host, replicas, wanted["image"], str(wanted["listen_port"]), *_counts(counted)])
    servers = [["REPLICA", "AT", "STATE", "CHECK", "WEIGHT", "SESSIONS", "REQUESTS", "ERRORS", "MS"]]
    for host, item in services:
        for server in item["servers"]:
            words = [server["name"], host, server["state"], server.get("status", "-"), str(server["weight"]), str(server.get("sessions", "-"))]
            servers.append([*words, *_counts(server), str(server.get("response_ms", "-"))])
    return [_table(rows), _table(servers)] if len(servers) > 1 else [_table(rows)]


def _deployment_tables(answers: Mapping[str, Mapping[str, Any]]) -> list[list[str]]:
    """Return a line for each deployment on each cluster; of one that was asked for in full also its revisions and pods."""
    found = [(host, item) for host, answer in sorted(answers.items()) for item in answer.get("deployments", ()) if set(item) >= DEPLOYMENT_FIELDS]
    if not found:
        return []
    rows = [["DEPLOYMENT", "CLUSTER", "NAMESPACE", "READY", "STATE", "IMAGE", "REVISION"]]
    for host, item in found:
        rows.append([item["name"], host, item["namespace"], f"{item['ready']} of {item['replicas']}", item["state"], item["image"], str(item["revision"])])
    tables = [_table(rows)]
    tables += [[f"{item['name']}: {line}" for line in str(item["why"]).splitlines()] for _host, item in found if item.get("why")]
    for _host, item in found:
        if "revisions" in item and "pods" in item:
            revisions = [["REVISION", "IMAGE", "PODS"], *([str(each["revision"]), each["image"], str(each["pods"])] for each in item["revisions"])]
            pods = [["POD", "STATE", "READY", "RESTARTS", "NODE", "REVISION"]]
            for pod in item["pods"]:
                ready = "yes" if pod["ready"] else "no"
                pods.append([pod["name"], pod["state"], ready, str(pod["restarts"]), str(pod["node"] or "-"), str(pod["revision"])])
            tables += [_table(table) for table in (revisions, pods) if len(table) > 1]
    return tables


def _counts(counted: Mapping[str, Any]) -> list[str]:
    errors = sum(counted.get(field, 0) for field in ("http_5xx", "connection_errors", "response_errors"))
    return [str(counted.get("requests", "-")), str(errors)]


def _approval_blocks(plan: Run, stands: Standing, decisions: Sequence[Decision]) -> list[Block]:
    """Return how a plan stands: what it is about, who may approve it and until when, who has decided what."""
    approval = plan.origin["approval"]
    if approval["count"] == 0:
        return [section(f"so few hosts need nobody's approval (rule {escape(approval['rule'])})")] if stands is Standing.APPROVED else []
    said = [f"{'approved' if decision.approved else 'rejected'} by {who(decision.principal)} {moment(decision.at)}" for decision in decisions]
    if stands is not Standing.WAITING:
        return [section(" · ".join([f"*{stands}*", *said]))] if stands is not Standing.PLANNING else []
    result = result_of(plan)
    hosts = len(result.changed_hosts)
    about = f"changes {hosts} host{'' if hosts == 1 else 's'} in {len(result.changes)} field{'' if len(result.changes) == 1 else 's'}"
    if approval["rule"] == CONFIRMATION:
        return [section(f":warning: this destroys; it {about}. Only you can confirm it, until {moment(approval['expires'])}")]
    approvers = ", ".join(map(who, approval["approvers"]))
    needed = f"{approval['count']} of them" if approval["count"] > 1 else "one of them"
    own = "" if approval["self"] else ", not whoever asked"
    lines = [f":lock: *waits for approval* (rule {escape(approval['rule'])}): it {about}"]
    lines.append(f"{approvers} may approve: {needed}{own}, until {moment(approval['expires'])}")
    return [section("\n".join([*lines, *said]))]


def moment(at: float) -> str:
    """Return a time that Slack shows in each reader's own zone (docs.slack.dev/messaging/formatting-message-text#date-formatting)."""
    fallback = time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(at))
    return f"<!date^{int(at)}^{{date_short_pretty}} {{time}}|{fallback}>"


def _buttons(run: Run, stands: Standing, *, per_host: bool) -> list[Block]:
    if not run.state.final:
        elements = [button("Cancel", CANCEL, run.id, "danger")]
    elif stands is Standing.WAITING:
        own = run.origin["approval"]["rule"] == CONFIRMATION
        elements = [
            button("Do it" if own else "Approve", APPROVE, run.id, "danger" if run.risk == "destroy" else "primary"),
            button("Leave it" if own else "Reject", REJECT, run.id),
        ]
    elif not run.check and (run.state is not State.SUCCEEDED or failed_of(run)):
        elements = [button("Run again", AGAIN, run.id)]
        if per_host and (failed := failed_of(run)):
            elements.append(button(f"Only on the {len(failed)} that failed" if len(failed) > 1 else "Only where it failed", AGAIN_FAILED, run.id))
    else:
        return []
    return [actions(elements, f"run-{run.id}")]


def actions(elements: list[Block], block_id: str = "") -> Block:
    return {"type": "actions", **({"block_id": block_id} if block_id else {}), "elements": elements}


def fill_in(operation: str, values: Mapping[str, Any], *, mode: str, due: float) -> list[Block]:
    """Return a button that opens an operation's form with these values."""
    value = json.dumps({"operation": operation, "values": dict(values), "mode": mode, "due": due})
    if len(value) > BUTTON_VALUE_LIMIT:
        value = json.dumps({"operation": operation, "values": {}, "mode": mode, "due": due})
    name = operation.replace(".", " ")
    return [section(f"*{escape(name)}* needs more than that."), actions([button("Fill in", FILL_IN, value, "primary")])]


def button(text: str, action_id: str, value: str, style: str | None = None) -> Block:
    button: Block = {"type": "button", "text": {"type": "plain_text", "text": text}, "action_id": action_id, "value": value}
    return {**button, "style": style} if style else button


def who(principal: str) -> str:
    """Return a principal as a mention where it is a person or a group of Slack's, else as text."""
    kind, _, name = principal.partition(":")
    person = name.partition("/")[2]
    if kind == "slack" and ID.fullmatch(person):
        return f"<@{person}>"
    return f"<!subteam^{person}>" if kind == "slack-group" and ID.fullmatch(person) else escape(principal)


def _value(value: Any) -> str:
    return escape(_plain_value(value))


def _plain_value(value: Any) -> str:
    if value is None:
        return "none"
    return value if isinstance(value, str) else json.dumps(value)


def _gib(size: float) -> str:
    return f"{size / 1024**3:.1f}GiB"


def _table(rows: Sequence[Sequence[object]]) -> list[str]:
    widths = [max(len(str(row[column])) for row in rows) for column in range(len(rows[0]))]
    return ["  ".join(str(cell).ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]


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
