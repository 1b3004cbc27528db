# SPDX-License-Identifier: Apache-2.0
"""Forms built from an operation's specification, and read back: pure. The field of an option is the block of its name."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from ansible.module_utils.parsing.convert_bool import BOOLEANS_TRUE as ANSIBLES_TRUE
from ansible_collections.lepton.cloud.plugins.module_utils._operation import Problem

from lepton_ai.operations.catalog import Operation
from lepton_ai.slack.checks import checked_view
from lepton_ai.slack.limits import HINT_LIMIT, ID_LIMIT, INPUT_LIMIT, OPTION_TEXT_LIMIT, OPTION_VALUE_LIMIT, SELECT_OPTIONS, TITLE_LIMIT, shortened

FORM, PICK = "operation_form", "operation_pick"
CHOOSE = "choose_"  # and the kind: the action of a select over the live inventory
LIVE_KINDS = frozenset({"node", "host", "image", "service", "container", "container_image", "deployment"})
MODE, REASON = "lepton-mode", "lepton-reason"  # no option can be called so
YES = "yes"
BOOLEANS_TRUE = frozenset(str(value).lower() for value in ANSIBLES_TRUE)
View = dict[str, Any]


class Mode(StrEnum):
    """What shall be done with what was asked for. The words that people type."""

    RUN = "run"
    PLAN = "plan"
    CANARY = "canary"


Block = dict[str, Any]


def form(operation: Operation, values: Mapping[str, Any], where: Mapping[str, Any], *, mode: Mode = Mode.RUN) -> View:
    """Return the view that asks for an operation's arguments. `where` is what the answer needs: channel, thread."""
    spec = operation.spec
    blocks: list[Block] = [_text(f"*{spec.summary}*" + ("\n" + " ".join(spec.description) if spec.description else ""))]
    blocks += [_field(operation, name, option, values.get(name)) for name, option in spec.options.items()]
    if spec.risk != "read" and spec.plan != "none":
        blocks.append(_mode(operation, mode))
    blocks.append(_input(REASON, "Reason", {"type": "plain_text_input", "action_id": REASON, "max_length": 300}, optional=True, hint="For the audit trail."))
    metadata = json.dumps({"operation": operation.name, **where})
    return checked_view(
        {
            "type": "modal",
            "callback_id": FORM,
            "title": _plain(shortened(f"{operation.noun} {operation.verb}", TITLE_LIMIT)),
            "submit": _plain("Go"),
            "close": _plain("Cancel"),
            "private_metadata": metadata,
            "blocks": blocks,
        }
    )


def picker(operations: Sequence[Operation], where: Mapping[str, str]) -> View:
    """Return the view that asks which operation it shall be."""
    groups = []
    for noun in sorted({operation.noun for operation in operations}):
        options = [_option(f"{noun} {operation.verb}: {operation.spec.summary}", operation.name) for operation in operations if operation.noun == noun]
        groups.append({"label": _plain(noun), "options": options[:SELECT_OPTIONS]})
    select = {"type": "static_select", "action_id": PICK, "placeholder": _plain("What shall be done?"), "option_groups": groups[:SELECT_OPTIONS]}
    nothing = _text("You have no role here yet. Ask whoever keeps the settings to grant one.")
    return checked_view(
        {
            "type": "modal",
            "callback_id": PICK,
            "title": _plain("Lepton"),
            "close": _plain("Cancel"),
            "private_metadata": json.dumps(dict(where)),
            "blocks": [{"type": "actions", "block_id": PICK, "elements": [select]}] if groups else [nothing],
        }
    )


@dataclass(frozen=True)
class Filled:
    """A submitted form: the values given, what shall be done with them, and why."""

    values: dict[str, Any]
    mode: Mode
    why: str


def read_form(operation: Operation, state: Mapping[str, Mapping[str, Any]]) -> Filled:
    """Return what a submitted form says."""
    given: dict[str, Any] = {}
    for name, option in operation.spec.options.items():
        value = _value(next(iter(state.get(name, {}).values()), {}))
        if value not in (None, "", []):
            given[name] = [line.strip() for line in value.splitlines() if line.strip()] if option.get("type") == "list" else value
        elif option.get("type") == "bool" and name in state:
            given[name] = False
    mode = _value(next(iter(state.get(MODE, {}).values()), {}))
    reason = _value(next(iter(state.get(REASON, {}).values()), {}))
    return Filled(given, Mode(mode or Mode.RUN), str(reason or ""))


def field_errors(operation: Operation, problems: Sequence[Problem]) -> dict[str, str]:
    """Return the errors as Slack shows them, beside their fields; what concerns several stands at the last one."""
    errors: dict[str, str] = {}
    for problem in problems:
        field = problem.parameter if problem.parameter in operation.spec.options else REASON
        errors[field] = shortened("; ".join([*([errors[field]] if field in errors else []), problem.message]), HINT_LIMIT)
    return errors


def options(names: Sequence[str]) -> list[dict[str, Any]]:
    """Return select options for names of things; what is too long for one can still be typed."""
    return [_option(name, name) for name in names if len(name) <= OPTION_VALUE_LIMIT][:SELECT_OPTIONS]


def _field(operation: Operation, name: str, option: Mapping[str, Any], value: Any) -> Block:
    kind = operation.spec.kinds.get(name)
    initial = option.get("default") if value is None or not _fits(option, value, live=kind in LIVE_KINDS or bool(option.get("choices"))) else value
    description = option.get("description", "")
    hint = " ".join(description) if isinstance(description, list) else str(description)
    if option.get("no_log"):
        hint += " Kept out of messages, logs and the audit trail."
    element: dict[str, Any] = {"action_id": shortened(name, ID_LIMIT)}
    kind_of = option.get("type", "str")
    if option.get("choices"):
        choices = [_option(str(choice), str(choice)) for choice in option["choices"]][:SELECT_OPTIONS]
        element |= {"type": "static_select", "options": choices}
        chosen = [choice for choice in choices if initial is not None and choice["value"] == str(initial)]
        element |= {"initial_option": chosen[0]} if chosen else {}
    elif kind_of == "bool":
        yes = _option("Yes", YES)
        element |= {"type": "checkboxes", "options": [yes], **({"initial_options": [yes]} if str(initial).lower() in BOOLEANS_TRUE else {})}
    elif kind in LIVE_KINDS and kind_of == "str" and not option.get("no_log"):
        element |= {"type": "external_select", "action_id": CHOOSE + kind, "min_query_length": 0, "placeholder": _plain(f"Name of a {kind.replace('_', ' ')}")}
        element |= {"initial_option": _option(str(initial), str(initial))} if initial else {}
    elif kind_of in ("int", "float"):
        element |= {"type": "number_input", "is_decimal_allowed": kind_of == "float", **({"initial_value": str(initial)} if initial is not None else {})}
    else:
        many = kind_of == "list"
        text = "\n".join(map(str, initial)) if isinstance(initial, list) else "" if initial is None else str(initial)
        element |= {"type": "plain_text_input", "multiline": many, **({"initial_value": text} if text else {})}
        hint += " One on each line." if many else ""
    return _input(name, name, element, optional=not option.get("required"), hint=hint)


def _fits(option: Mapping[str, Any], value: Any, *, live: bool) -> bool:
    """Return whether what was typed can stand in its field from the beginning; Slack refuses a whole form over one that cannot."""
    if option.get("type") in ("int", "float"):
        return re.fullmatch(r"-?\d{1,15}(\.\d{1,9})?" if option["type"] == "float" else r"-?\d{1,15}", str(value)) is not None
    return 0 < len(str(value)) <= (INPUT_LIMIT if option.get("type", "str") in ("str", "list", "dict") and not live else OPTION_TEXT_LIMIT)


def _mode(operation: Operation, mode: Mode) -> Block:
    choices = {Mode.RUN: _option("Do it", Mode.RUN), Mode.PLAN: _option("Only show what would change", Mode.PLAN)}
    if operation.spec.per_host and operation.spec.plan == "check":
        choices[Mode.CANARY] = _option("Do it on one host first, then on the others", Mode.CANARY)
    element = {"type": "radio_buttons", "action_id": MODE, "options": list(choices.values()), "initial_option": choices.get(mode, choices[Mode.RUN])}
    return _input(MODE, "Run or plan", element, optional=False)


def _value(state: Mapping[str, Any]) -> Any:
    if "selected_option" in state:
        return (state["selected_option"] or {}).get("value")
    if "selected_options" in state:
        return bool(state["selected_options"])
    return state.get("value")


def _input(block_id: str, label: str, element: dict[str, Any], *, optional: bool, hint: str = "") -> Block:
    block: Block = {"type": "input", "block_id": block_id, "label": _plain(label), "element": element, "optional": optional}
    return {**block, "hint": _plain(shortened(hint, HINT_LIMIT))} if hint.strip() else block


def _option(text: str, value: str) -> dict[str, Any]:
    return {"text": _plain(shortened(text, OPTION_TEXT_LIMIT)), "value": value}


def _plain(text: str) -> dict[str, Any]:
    return {"type": "plain_text", "text": text}


def _text(text: str) -> Block:
    return {"type": "section", "text": {"type": "mrkdwn", "text": shortened(text, HINT_LIMIT)}}
