# SPDX-License-Identifier: Apache-2.0
"""Help at every level, as plain text with backticks: Slack and terminals show the same words."""

from __future__ import annotations

from lepton_ai.operations.catalog import Catalog, Operation


def help_text(catalog: Catalog, words: list[str], prefix: str = "/lepton") -> str:
    """Return help for nothing, a noun, or a noun and a verb; raise LeptonError for one that does not exist."""
    if not words:
        return _overview(catalog, prefix)
    if len(words) == 1:
        verbs = catalog.verbs(words[0])
        if not verbs:
            catalog.find(words[0], "")
        return "\n".join([f"*{words[0]}*", *(f"• `{usage(verb, prefix)}` {verb.spec.summary}" for verb in verbs)])
    return _operation(catalog.find(words[0], words[1]), prefix)


def usage(operation: Operation, prefix: str = "/lepton") -> str:
    """Return one line that could be typed: required parameters plain, others in brackets."""
    words = [prefix, operation.noun, operation.verb]
    for name, option in operation.spec.options.items():
        shown = name.upper() if name in operation.spec.positional else f"{name}={name.upper()}"
        words.append(shown if option.get("required") else f"[{shown}]")
    return " ".join(words)


def _overview(catalog: Catalog, prefix: str) -> str:
    lines = ["*What can be asked for*"]
    lines += [f"• `{noun}` " + ", ".join(operation.verb for operation in catalog.verbs(noun)) for noun in catalog.nouns()]
    lines.append(f"`{prefix} help NOUN [VERB]` says more · `{prefix} plan NOUN VERB …` shows what would change · `{prefix} runs` lists runs")
    return "\n".join(lines)


def _operation(operation: Operation, prefix: str) -> str:
    lines = [f"*{operation.noun} {operation.verb}* {operation.spec.summary}", f"`{usage(operation, prefix)}`"]
    for name, option in operation.spec.options.items():
        notes = [str(option.get("type", "str"))]
        if option.get("required"):
            notes.append("required")
        if "default" in option:
            notes.append(f"default {option['default']}")
        if option.get("choices"):
            notes.append("one of " + ", ".join(map(str, option["choices"])))
        lines.append(f"• `{name}` ({', '.join(notes)}) {_sentence(option.get('description', ''))}")
    if operation.spec.risk == "destroy":
        lines.append("Asks for a confirmation with what will be destroyed.")
    return "\n".join(lines)


def _sentence(description: object) -> str:
    return " ".join(description) if isinstance(description, list) else str(description)
