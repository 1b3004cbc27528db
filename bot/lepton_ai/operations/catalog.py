# SPDX-License-Identifier: Apache-2.0
"""The operations there are: read from playbooks, with what is wrong with those that cannot be used."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from ansible_collections.lepton.cloud.plugins.module_utils._operation import Spec, SpecError, read_spec, unknown_word
from jinja2 import StrictUndefined, TemplateError
from jinja2.sandbox import ImmutableSandboxedEnvironment

from lepton_ai.errors import LeptonError
from lepton_ai.yaml_lines import line_of

# Words of the bot itself; a noun of the same name could never be reached.
RESERVED_NOUNS = frozenset(
    [
        "help",
        "at",
        "canary",
        "why",
        "runs",
        "run",
        "plan",
        "cancel",
        "freeze",
        "login",
        "unfreeze",
        "access",
        "audit",
        "scaling",
        "simulate",
        "doctor",
        "serve",
        "sandbox",
        "init",
        "operations",
        "approve",
        "reject",
    ]
)
GUARD = "lepton.cloud.operation"
WORD = re.compile(r"[a-z][a-z0-9_-]*", re.ASCII)
_TEMPLATES = ImmutableSandboxedEnvironment(undefined=StrictUndefined, autoescape=False)  # targets are names, not HTML


@dataclass(frozen=True)
class Operation:
    """One playbook that can be asked for. `guarded`: its first task checks and locks plain runs as well.

    `tasks` is how many tasks it has, as far as can be seen without running it.
    """

    noun: str
    verb: str
    spec: Spec
    playbook: Path
    origin: str
    guarded: bool
    tasks: int = 0

    @property
    def name(self) -> str:
        return f"{self.noun}.{self.verb}"

    def targets(self, arguments: Mapping[str, Any]) -> tuple[str, ...]:
        """Return what the operation is about, such as `node/web-1`, for these arguments."""
        return _rendered(self.spec.targets, arguments)

    def locks(self, arguments: Mapping[str, Any]) -> tuple[str, ...]:
        """Return the locks it needs, sorted, for these arguments. Reads need none."""
        return () if self.spec.risk == "read" else tuple(sorted(set(_rendered(self.spec.locks, arguments))))


@dataclass(frozen=True)
class CatalogProblem:
    """A file that could not be used."""

    path: Path
    line: int
    reason: str

    def __str__(self) -> str:
        return f"{self.path}:{self.line}: {self.reason}"


@dataclass(frozen=True)
class Catalog:
    """All operations by name, the files that could not be used, and what overrides what."""

    operations: Mapping[str, Operation]
    problems: tuple[CatalogProblem, ...] = ()
    overrides: tuple[str, ...] = field(default=())

    def __iter__(self) -> Iterator[Operation]:
        return iter(self.operations.values())

    def nouns(self) -> list[str]:
        return sorted({operation.noun for operation in self})

    def verbs(self, noun: str) -> list[Operation]:
        return [operation for operation in self if operation.noun == noun]

    def find(self, noun: str, verb: str) -> Operation:
        """Return the operation, or raise LeptonError with the nearest one."""
        if noun not in self.nouns():
            raise LeptonError(f"{_short(noun)}: {unknown_word(noun, self.nouns(), 'noun')}")
        found = self.operations.get(f"{noun}.{verb}")
        if found is None:
            verbs = [operation.verb for operation in self.verbs(noun)]
            raise LeptonError(f"{noun} {_short(verb)}: {unknown_word(verb, verbs, 'verb')}")
        return found


def load_catalog(folders: Mapping[str, Path]) -> Catalog:
    """Read every operation below `folders` (origin to folder, the first one wins).

    A pair that cannot be used becomes a problem with file, line and reason; the others work.
    """
    operations: dict[str, Operation] = {}
    problems: list[CatalogProblem] = []
    overrides: list[str] = []
    for origin, folder in folders.items():
        for meta in sorted(folder.glob("*/*.meta.yml")):
            try:
                operation = _read(meta, origin)
            except _UnusableError as error:
                problems.append(CatalogProblem(meta, error.line, error.reason))
                continue
            earlier = operations.get(operation.name)
            if earlier is None:
                operations[operation.name] = operation
            else:
                overrides.append(f"{operation.name}: {earlier.playbook} ({earlier.origin}) is used instead of {operation.playbook}")
    for name, operation in list(operations.items()):
        trouble = _undo_trouble(operation, operations.get(operation.spec.undo)) if operation.spec.undo else ""
        if trouble:
            problems.append(CatalogProblem(operation.playbook.with_suffix(".meta.yml"), 1, f"lepton.undo: {trouble}"))
            del operations[name]
    return Catalog(dict(sorted(operations.items())), tuple(problems), tuple(overrides))


def _undo_trouble(operation: Operation, undo: Operation | None) -> str:
    """Return why an operation cannot take back what another has left half done; it runs under the other's locks, on the other's hosts."""
    if undo is None:
        return f"there is no operation {operation.spec.undo}"
    if undo.name == operation.name:
        return "an operation cannot take itself back"
    if not set(undo.spec.locks) <= set(operation.spec.locks):
        return f"{undo.name} needs locks that {operation.name} does not hold"
    if operation.spec.per_host and not undo.spec.per_host:
        return f"{undo.name} is one thing for all hosts, and {operation.name} is not"
    return ""


class _UnusableError(Exception):
    def __init__(self, reason: str, line: int = 1) -> None:
        super().__init__(reason)
        self.reason = reason
        self.line = line


def _read(meta: Path, origin: str) -> Operation:
    noun, verb = meta.parent.name, meta.name.removesuffix(".meta.yml")
    for word in (noun, verb):
        if not WORD.fullmatch(word):
            raise _UnusableError(f"{word!r} cannot be typed as a command: expected lower-case letters, digits, '-' or '_'")
    if noun in RESERVED_NOUNS:
        raise _UnusableError(f"the noun {noun!r} is a word of Lepton itself")
    playbook = meta.with_name(f"{verb}.yml")
    if not playbook.is_file():
        raise _UnusableError(f"its playbook {playbook.name} is missing")
    plays = _load(playbook)
    if not isinstance(plays, list) or not plays:
        raise _UnusableError(f"{playbook.name} has no play")
    text = meta.read_text(encoding="utf-8")
    try:
        spec = read_spec(_load(meta), verb)
    except SpecError as error:
        raise _UnusableError(str(error), _line_of(text, verb, str(error))) from error
    for template in (*spec.locks, *spec.targets):
        try:
            _TEMPLATES.from_string(template).render(dict.fromkeys(spec.options, "x"))
        except TemplateError as error:
            raise _UnusableError(f"lepton.locks: {template!r}: {error}", _line_of(text, verb, "lepton.locks")) from error
    first: Any = next(iter(plays[0].get("tasks") or [{}]), {}) if isinstance(plays[0], dict) else {}
    tasks = _count_plays(plays, playbook.parent)
    return Operation(noun, verb, spec, playbook, origin, guarded=GUARD in first, tasks=tasks)


def _count_plays(plays: Any, folder: Path) -> int:
    count = 0
    for play in plays if isinstance(plays, list) else []:
        imported = folder / str(play.get("ansible.builtin.import_playbook")) if isinstance(play, dict) and "ansible.builtin.import_playbook" in play else None
        if imported is not None and imported.is_file():
            count += _count_plays(_load(imported), imported.parent)
        elif isinstance(play, dict):
            count += sum(_count_tasks(play.get(part), folder) for part in ("pre_tasks", "tasks", "post_tasks"))
    return count


def _count_tasks(tasks: Any, folder: Path) -> int:
    count = 0
    for task in tasks if isinstance(tasks, list) else []:
        imported = task.get("ansible.builtin.import_tasks") if isinstance(task, dict) else None
        block = task.get("block") if isinstance(task, dict) else None
        if isinstance(imported, str) and (folder / imported).is_file():
            count += _count_tasks(_load(folder / imported), folder)
        else:
            count += _count_tasks(block, folder) if block else 1
    return count


def _load(path: Path) -> Any:
    try:
        return yaml.load(path.read_text(encoding="utf-8"), Loader=_PlaybookLoader)  # noqa: S506 - derived from SafeLoader
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        raise _UnusableError(f"{path.name} is not YAML: {error.problem}", mark.line + 1 if mark else 1) from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise _UnusableError(f"{path.name} is not YAML: {error}") from error


class _PlaybookLoader(yaml.CSafeLoader):
    """libyaml's SafeLoader, five times as quick, that reads past Ansible's own tags (`!unsafe`, `!vault`); their values are not needed here."""


_PlaybookLoader.add_multi_constructor("!", lambda _loader, _suffix, _node: None)


def _line_of(text: str, verb: str, reason: str) -> int:
    """Return the line of the key that a reason starts with ('options.vcpus.type: …'), or of its nearest parent."""
    node: yaml.Node | None = yaml.compose(text, Loader=_PlaybookLoader)
    return line_of(node, ("argument_specs", verb, *reason.partition(":")[0].split(".")))


def _rendered(templates: tuple[str, ...], arguments: Mapping[str, Any]) -> tuple[str, ...]:
    # The templates are the author's; the arguments are a stranger's and are only ever values in them.
    try:
        return tuple(_TEMPLATES.from_string(template).render(arguments) for template in templates)
    except TemplateError as error:
        raise LeptonError(f"what this is about cannot be said: {error}", hint="its arguments are of another version of the operation") from error


def _short(word: str) -> str:
    return ascii(word[:40])[1:-1]
