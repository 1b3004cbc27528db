# SPDX-License-Identifier: Apache-2.0
"""What Slack would refuse of a message or a view: its documented limits, checked with slack_sdk's own models.

Everything that is built here passes these checks where it is built; the sandbox refuses by the same ones.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from slack_sdk.errors import SlackObjectFormationError
from slack_sdk.models.blocks import ActionsBlock, Block, ContextBlock, HeaderBlock, InputBlock, SectionBlock
from slack_sdk.models.views import View

from lepton_ai.slack.limits import (
    ACTION_ELEMENTS,
    BUTTON_TEXT_LIMIT,
    BUTTON_VALUE_LIMIT,
    CONTEXT_ELEMENTS,
    CONTEXT_LIMIT,
    FIELD_LIMIT,
    HEADER_LIMIT,
    ID_LIMIT,
    MESSAGE_BLOCKS,
    MESSAGE_LIMIT,
    METADATA_LIMIT,
    OPTION_TEXT_LIMIT,
    OPTION_VALUE_LIMIT,
    SECTION_LIMIT,
    SELECT_OPTIONS,
    TEXT_LIMIT,
    TITLE_LIMIT,
    VIEW_BLOCKS,
)


class BlockError(ValueError):
    """Something that Slack would refuse; the text says why."""


def checked_message(text: str, blocks: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the blocks, or raise BlockError with what Slack would refuse of them."""
    trouble = message_trouble(text, blocks)
    if trouble:
        raise BlockError(trouble)
    return blocks


def checked_view(view: dict[str, Any]) -> dict[str, Any]:
    """Return the view, or raise BlockError with what Slack would refuse of it."""
    trouble = view_trouble(view)
    if trouble:
        raise BlockError(trouble)
    return view


def message_trouble(text: str, blocks: Sequence[dict[str, Any]] | None) -> str | None:
    """Return Slack's error code for a message that it would refuse, with the reason, or None."""
    if not text and not blocks:
        return "no_text"
    if len(text) > TEXT_LIMIT:
        return "msg_too_long"
    if text_length(blocks or []) > MESSAGE_LIMIT:
        return f"msg_blocks_too_long: more than {MESSAGE_LIMIT} characters in all"
    return blocks_trouble(blocks or [], MESSAGE_BLOCKS)


def text_length(blocks: Sequence[Any]) -> int:
    """Return how many characters all sections and contexts of a message have."""
    texts = [part for block in blocks if isinstance(block, dict) for part in (block.get("text"), *(block.get("elements") or ()))]
    return sum(len(str(part.get("text", ""))) for part in texts if isinstance(part, dict) and isinstance(part.get("text"), str))


def view_trouble(view: dict[str, Any]) -> str | None:
    """Return what Slack would refuse of a view, or None."""
    if len(view.get("private_metadata", "")) > METADATA_LIMIT:
        return f"invalid_arguments: private_metadata is longer than {METADATA_LIMIT}"
    for part in ("title", "submit", "close"):
        if len((view.get(part) or {}).get("text", "")) > TITLE_LIMIT:
            return f"invalid_arguments: {part} is longer than {TITLE_LIMIT}"
    try:
        View(**view).validate_json()
    except (SlackObjectFormationError, TypeError, ValueError) as error:
        return f"invalid_arguments: {error}"
    return blocks_trouble(view.get("blocks", []), VIEW_BLOCKS)


def options_trouble(options: Sequence[dict[str, Any]]) -> str | None:
    """Return what Slack would refuse of a select's options, or None."""
    if len(options) > SELECT_OPTIONS:
        return f"{len(options)} options, at most {SELECT_OPTIONS}"
    for option in options:
        if not 0 < len(option["text"]["text"]) <= OPTION_TEXT_LIMIT:
            return f"an option's text has 1 to {OPTION_TEXT_LIMIT} characters"
        if len(option["value"]) > OPTION_VALUE_LIMIT:
            return f"an option's value is longer than {OPTION_VALUE_LIMIT}"
    values = [option["value"] for option in options]
    return "an option's value stands twice" if len(values) != len(set(values)) else None


def blocks_trouble(blocks: Sequence[dict[str, Any]], most: int) -> str | None:
    """Return the first thing wrong with a list of blocks, or None."""
    if len(blocks) > most:
        return f"invalid_blocks: {len(blocks)} blocks, at most {most}"
    ids = [block["block_id"] for block in blocks if isinstance(block, dict) and "block_id" in block]
    if len(ids) != len(set(ids)):
        return "invalid_blocks: a block_id stands twice"
    for position, raw in enumerate(blocks):
        trouble = _block_trouble(raw)
        if trouble:
            return f"invalid_blocks: block {position}: {trouble}"
    return None


def _block_trouble(raw: Any) -> str | None:
    block = Block.parse(raw) if isinstance(raw, dict) else None
    if block is None:
        return "not a block that Slack knows"
    if len(raw.get("block_id", "")) > ID_LIMIT:
        return f"block_id is longer than {ID_LIMIT}"
    try:
        block.validate_json()
    except SlackObjectFormationError as error:
        return str(error)
    if isinstance(block, SectionBlock):
        if len((raw.get("text") or {}).get("text", "")) > SECTION_LIMIT:
            return f"text is longer than {SECTION_LIMIT}"
        if any(len(field.get("text", "")) > FIELD_LIMIT for field in raw.get("fields") or ()):
            return f"a field is longer than {FIELD_LIMIT}"
        if "text" in raw and not raw["text"].get("text"):
            return "text is empty"
    if isinstance(block, HeaderBlock) and not 0 < len(raw["text"]["text"]) <= HEADER_LIMIT:
        return f"a header has 1 to {HEADER_LIMIT} characters"
    if isinstance(block, ContextBlock):
        if len(raw["elements"]) > CONTEXT_ELEMENTS:
            return f"more than {CONTEXT_ELEMENTS} elements"
        if any(len(element.get("text", "")) > CONTEXT_LIMIT for element in raw["elements"]):
            return f"an element is longer than {CONTEXT_LIMIT}"
    if isinstance(block, ActionsBlock):
        if not 0 < len(raw["elements"]) <= ACTION_ELEMENTS:
            return f"1 to {ACTION_ELEMENTS} elements"
        return next((trouble for element in raw["elements"] if (trouble := _element_trouble(element))), None)
    if isinstance(block, InputBlock):
        return _element_trouble(raw.get("element") or {})
    return None


def _element_trouble(element: dict[str, Any]) -> str | None:
    if len(element.get("action_id", "")) > ID_LIMIT:
        return f"action_id is longer than {ID_LIMIT}"
    groups = element.get("option_groups") or [{"options": element.get("options") or []}]
    if len(groups) > SELECT_OPTIONS:
        return f"more than {SELECT_OPTIONS} groups of options"
    for group in groups:
        if trouble := options_trouble(group["options"]):
            return trouble
    if element.get("type") == "button":
        if len(element.get("text", {}).get("text", "")) > BUTTON_TEXT_LIMIT:
            return f"a button's text is longer than {BUTTON_TEXT_LIMIT}"
        if len(element.get("value", "")) > BUTTON_VALUE_LIMIT:
            return f"a button's value is longer than {BUTTON_VALUE_LIMIT}"
        if element.get("style") not in (None, "primary", "danger"):
            return "a button's style is primary or danger"
    return None
