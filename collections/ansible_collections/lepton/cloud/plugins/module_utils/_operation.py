# Copyright (c) 2026, Lepton contributors
# BSD-2-Clause license (see LICENSES/BSD-2-Clause.txt or https://opensource.org/licenses/BSD-2-Clause)
# SPDX-License-Identifier: BSD-2-Clause
"""An operation's specification, and the one check of arguments that every door uses. Pure; runs on the controller.

PRIVATE to the collection and to the Lepton bot. The specification is ansible-core's playbook argument spec with our own
part under the key C(lepton) inside it.
"""

from __future__ import annotations

import difflib
import re
import unicodedata
from dataclasses import dataclass, field
from typing import Any, Mapping

from ansible.module_utils.common.arg_spec import ArgumentSpecValidator

from ._container import check_image
from ._container import check_name as check_container
from ._manifest import check_name as check_deployment
from ._node import check_name
from ._service import check_name as check_service
from ._units import format_size, parse_size

RISKS = ("read", "change", "destroy")
PLANS = ("check", "planner", "none")
RERUNS = ("safe", "never")
KINDS = (
    "node", "host", "image", "size", "new_node", "service", "new_service", "container", "new_container", "container_image", "model",
    "deployment", "new_deployment", "cluster",
)  # fmt: skip
TYPES = ("str", "int", "float", "bool", "list", "dict", "path")
LEPTON_KEYS = frozenset({"risk", "locks", "targets", "plan", "rerun", "timeout", "kinds", "positional", "per_host", "undo"})
RULES = ("mutually_exclusive", "required_together", "required_one_of", "required_if", "required_by")
LONGEST = 1000  # characters of one value
# Names that mean something to Ansible itself: as an extra variable they would bend the play, not fill a parameter.
RESERVED = frozenset(
    "action any_errors_fatal args async async_val become become_exe become_flags become_method become_user changed_when check_mode "
    "collections connection debugger delay delegate_facts delegate_to diff environment fact_path failed_when force_handlers "
    "gather_facts gather_subset gather_timeout handlers hosts ignore_errors ignore_unreachable import_playbook import_role "
    "import_tasks include_role include_tasks listen local_action loop loop_control loop_with max_fail_percentage module_defaults "
    "name namespace no_log notify omit order poll port post_tasks pre_tasks register remote_user retries roles run_once serial "
    "strategy tags tasks throttle timeout until validate_argspec vars vars_files vars_prompt when with_ group_names groups "
    "hostvars inventory_dir inventory_file inventory_hostname inventory_hostname_short play_hosts playbook_dir role_name".split()
)


class SpecError(ValueError):
    """A specification that cannot be used; the text names the key."""


@dataclass(frozen=True)
class Spec:
    """One operation's specification. `timeout` is seconds; `locks` and `targets` are templates over the arguments.

    `per_host`: it does the same on each host by itself, so it may be done on some of them only. `undo` names the operation that
    takes back what a canceled run has left half done; it gets the arguments that it knows.
    """

    summary: str
    options: Mapping[str, Mapping[str, Any]]
    rules: Mapping[str, Any] = field(default_factory=dict)
    description: tuple[str, ...] = ()
    risk: str = "destroy"
    locks: tuple[str, ...] = ()
    targets: tuple[str, ...] = ()
    plan: str = "none"
    rerun: str = "never"
    timeout: int = 600
    kinds: Mapping[str, str] = field(default_factory=dict)
    positional: tuple[str, ...] = ()
    per_host: bool = False
    undo: str = ""
    granted: bool = False  # whether the author said anything under `lepton`


def read_spec(meta: Any, name: str) -> Spec:
    """Return the specification called `name` of a meta file's content, or raise SpecError."""
    specs = meta.get("argument_specs") if isinstance(meta, Mapping) else None
    if not isinstance(specs, Mapping):
        raise SpecError("the key argument_specs is missing")
    if name not in specs:
        raise SpecError("argument_specs has no entry %r, only %s" % (name, ", ".join(map(repr, specs)) or "none"))
    spec = specs[name]
    if not isinstance(spec, Mapping):
        raise SpecError("argument_specs.%s is not a mapping" % name)
    options = spec.get("options") or {}
    _check_options(options)
    own = spec.get("lepton")
    if own is not None and not isinstance(own, Mapping):
        raise SpecError("lepton is not a mapping")
    _check_own(own or {}, options)
    own = own or {}
    description = spec.get("description") or ()
    return Spec(
        summary=str(spec.get("short_description", "")),
        description=(description,) if isinstance(description, str) else tuple(description),
        options=options,
        rules={rule: spec[rule] for rule in RULES if rule in spec},
        risk=own.get("risk", "destroy"),
        locks=tuple(own.get("locks", ())),
        targets=tuple(own.get("targets", own.get("locks", ()))),
        plan=own.get("plan", "none"),
        rerun=own.get("rerun", "never"),
        timeout=own.get("timeout", 600),
        kinds=own.get("kinds", {}),
        positional=tuple(own.get("positional", ())),
        per_host=own.get("per_host", False),
        undo=own.get("undo", ""),
        granted="lepton" in spec,
    )


def _check_options(options: Any) -> None:
    if not isinstance(options, Mapping):
        raise SpecError("options is not a mapping")
    for name, option in options.items():
        if name in RESERVED or str(name).startswith(("ansible_", "lepton_")):
            raise SpecError("options.%s: this name is Ansible's own; call the parameter otherwise" % name)
        if not re.fullmatch(r"[a-z][a-z0-9_]*", str(name)):
            raise SpecError("options.%s: expected lower-case letters, digits and '_'" % name)
        if not isinstance(option, Mapping):
            raise SpecError("options.%s is not a mapping" % name)
        if option.get("type", "str") not in TYPES:
            raise SpecError("options.%s.type: expected one of %s, not %r" % (name, ", ".join(TYPES), option.get("type")))
        if any(isinstance(inner, Mapping) and inner.get("no_log") for inner in (option.get("options") or {}).values()):
            raise SpecError("options.%s.options: no_log inside an option is not seen by the audit trail; mark the whole option no_log" % name)


def _check_own(own: Mapping[str, Any], options: Mapping[str, Any]) -> None:
    unknown = sorted(set(own) - LEPTON_KEYS)
    if unknown:
        raise SpecError("lepton.%s: unknown key; expected one of %s" % (unknown[0], ", ".join(sorted(LEPTON_KEYS))))
    for key, allowed in (("risk", RISKS), ("plan", PLANS), ("rerun", RERUNS)):
        if key in own and own[key] not in allowed:
            raise SpecError("lepton.%s: expected one of %s, not %r" % (key, ", ".join(allowed), own[key]))
    for key in ("locks", "targets", "positional"):
        if not isinstance(own.get(key, []), (list, tuple)) or not all(isinstance(item, str) for item in own.get(key, ())):
            raise SpecError("lepton.%s: expected a list of strings" % key)
    if not isinstance(own.get("timeout", 1), int) or own.get("timeout", 1) < 1:
        raise SpecError("lepton.timeout: expected a positive number of seconds, not %r" % own["timeout"])
    if not isinstance(own.get("per_host", False), bool):
        raise SpecError("lepton.per_host: expected true or false")
    if not re.fullmatch(r"|[a-z][a-z0-9_-]*\.[a-z][a-z0-9_-]*", str(own.get("undo", ""))):
        raise SpecError("lepton.undo: expected an operation such as node.abandon, not %r" % own["undo"])
    if own.get("plan") == "planner":
        if own.get("rerun") == "safe":
            raise SpecError("lepton.rerun: a list of steps that was begun cannot be begun again; expected never")
        for name, option in options.items():
            if option.get("no_log"):
                raise SpecError("options.%s.no_log: the steps of a plan are shown, so nothing secret may go into them" % name)
    for name in own.get("positional", ()):
        if name not in options:
            raise SpecError("lepton.positional: there is no option %r" % name)
    if not isinstance(own.get("kinds", {}), Mapping):
        raise SpecError("lepton.kinds: expected a mapping of option to kind")
    for name, kind in own.get("kinds", {}).items():
        if name not in options:
            raise SpecError("lepton.kinds: there is no option %r" % name)
        if kind not in KINDS:
            raise SpecError("lepton.kinds.%s: expected one of %s, not %r" % (name, ", ".join(KINDS), kind))


@dataclass(frozen=True)
class Problem:
    """What is wrong with one argument, or with several together (`parameter` is then empty)."""

    parameter: str
    message: str

    def __str__(self) -> str:
        return "%s: %s" % (self.parameter, self.message) if self.parameter else self.message


def check_arguments(spec: Spec, given: Mapping[str, Any]) -> tuple[dict[str, Any], list[Problem]]:
    """Return the typed arguments with defaults, and everything that is wrong with those given (then use none of them)."""
    problems = [Problem(_shown(name), unknown_word(name, spec.options, "parameter")) for name in given if name not in spec.options]
    known = {name: value for name, value in given.items() if name in spec.options}
    for name, value in known.items():
        problems.extend(Problem(name, trouble) for trouble in _unclean(value))
    if problems:
        return {}, problems
    options = {name: _validator_option(option) for name, option in spec.options.items()}
    result = ArgumentSpecValidator(options, **spec.rules).validate(known)
    if result.error_messages:
        return {}, [_problem(message, spec) for message in result.error_messages]
    arguments = dict(result.validated_parameters)
    for name, kind in spec.kinds.items():
        if arguments.get(name) is not None:
            try:
                arguments[name] = _of_kind(kind, arguments[name])
            except ValueError as error:
                problems.append(Problem(name, str(error)))
    return ({}, problems) if problems else (arguments, [])


def secret_names(spec: Spec) -> frozenset[str]:
    """Return the parameters whose values are shown nowhere."""
    return frozenset(name for name, option in spec.options.items() if option.get("no_log"))


def unknown_word(word: str, known: Any, what: str) -> str:
    """Return the answer to a word that is not known: the nearest known one, and the others."""
    if not known:
        return "unknown %s; expected none" % what
    near = difflib.get_close_matches(str(word), list(known), n=1)
    hint = "did you mean %s? " % near[0] if near else ""
    return "unknown %s; %sexpected one of %s" % (what, hint, ", ".join(sorted(known)))


def _shown(text: object) -> str:
    return ascii(str(text)[:40])[1:-1]


def _validator_option(option: Mapping[str, Any]) -> dict[str, Any]:
    kept = ("type", "required", "default", "choices", "elements", "no_log", "options", "aliases", *RULES)
    return {key: option[key] for key in kept if key in option}


def _problem(message: str, spec: Spec) -> Problem:
    """Return ansible's message with the parameter it speaks of, so that a form can show it beside its field."""
    for pattern in (r"^argument '(\w+)'", r"^value of (\w+) must", r"^Elements value for option '(\w+)'", r"^missing required arguments: (\w+)$"):
        found = re.match(pattern, message)
        if found and found.group(1) in spec.options:
            text = "is required" if message.startswith("missing") else message
            return Problem(found.group(1), text)
    return Problem("", message)


def _unclean(value: Any) -> list[str]:
    if isinstance(value, Mapping):
        return [trouble for item in value.items() for part in item for trouble in _unclean(part)]
    if isinstance(value, (list, tuple)):
        return [trouble for item in value for trouble in _unclean(item)]
    if not isinstance(value, str):
        return []
    if len(value) > LONGEST:
        return ["%d characters are too many: at most %d" % (len(value), LONGEST)]
    for character in value:
        # Cc and Cf hold control, zero-width and direction-changing characters: what is shown would not be what is run.
        if unicodedata.category(character) in ("Cc", "Cf", "Cs") and character not in "\n\t":
            return ["the invisible character U+%04X is not allowed" % ord(character)]
    return []


def _of_kind(kind: str, value: str) -> str:
    if kind == "size":
        return format_size(parse_size(value))
    if kind in ("node", "new_node"):
        return check_name(value)
    if kind in ("service", "new_service"):
        return check_service(value)
    if kind in ("container", "new_container"):
        return check_container(value)
    if kind in ("deployment", "new_deployment"):
        return check_deployment(value)
    if kind == "container_image":
        return check_image(value)
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,252}", value):
        raise ValueError("%s is not the name of %s %s" % (ascii(value[:40]), "an" if kind == "image" else "a", kind))
    return value
