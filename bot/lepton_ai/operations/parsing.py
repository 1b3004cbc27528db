# SPDX-License-Identifier: Apache-2.0
"""From the words that people type to an operation and its arguments: `node resize web-1 vcpus=3 memory=8GiB`."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ansible_collections.lepton.cloud.plugins.module_utils._operation import Problem, check_arguments

from lepton_ai.errors import LeptonError
from lepton_ai.operations.catalog import Catalog, Operation

LONGEST_TEXT = 4000
_QUOTES = str.maketrans({"“": '"', "”": '"', "„": '"', "‘": "'", "’": "'"})  # what phones make of quotes


class ArgumentError(LeptonError):
    """Arguments that the operation cannot take; `problems` says which and what was expected."""

    def __init__(self, operation: Operation, problems: Sequence[Problem]) -> None:
        self.problems = tuple(problems)
        super().__init__(f"{operation.name}: " + "; ".join(map(str, problems)))


@dataclass(frozen=True)
class Command:
    """An operation with its typed arguments."""

    operation: Operation
    arguments: dict[str, Any]


def split_words(text: str) -> list[str]:
    """Return the words of a line, quotes honoured; raise LeptonError for a line that has no end or no bounds."""
    if len(text) > LONGEST_TEXT:
        raise LeptonError(f"{len(text)} characters are too many for a command: at most {LONGEST_TEXT}")
    try:
        return shlex.split(text.translate(_QUOTES))
    except ValueError as error:
        raise LeptonError(f"the command cannot be read: {error}", hint="close the quote, or leave it out") from error


def parse_command(catalog: Catalog, words: Sequence[str]) -> Command:
    """Return the command that these words are; raise LeptonError beside the word that was wrong."""
    if len(words) < 2:
        raise LeptonError("a command is a noun and a verb, such as: node list", hint="see: help")
    operation = catalog.find(words[0], words[1])
    return Command(operation, typed_arguments(operation, read_arguments(operation, words[2:])))


def read_arguments(operation: Operation, words: Sequence[str]) -> dict[str, str]:
    """Return the arguments as typed, positional ones by their names."""
    given: dict[str, str] = {}
    positional = list(operation.spec.positional)
    for word in words:
        name, equals, value = word.partition("=")
        if not equals or not name.isidentifier():
            if not positional:
                raise LeptonError(f"{operation.name}: {ascii(word[:40])[1:-1]}: expected name=value")
            name, value = positional.pop(0), word
        if name in given:
            raise LeptonError(f"{operation.name}: {name} is given twice")
        given[name] = value
    return given


def typed_arguments(operation: Operation, given: dict[str, Any]) -> dict[str, Any]:
    """Return the checked arguments with defaults; raise ArgumentError with everything that is wrong."""
    arguments, problems = check_arguments(operation.spec, given)
    if problems:
        raise ArgumentError(operation, problems)
    return arguments
