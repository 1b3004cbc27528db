# SPDX-License-Identifier: Apache-2.0
"""What Slack would refuse of a message or a view: its documented limits, checked with slack_sdk's own models."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from slack_sdk.errors import SlackObjectFormationError
from slack_sdk.models.blocks import ActionsBlock, Block, ContextBlock, InputBlock, SectionBlock
from slack_sdk.models.views import View

MESSAGE_BLOCKS, VIEW_BLOCKS = 50, 100
TEXT_LIMIT, SECTION_LIMIT, FIELD_LIMIT, CONTEXT_TEXT_LIMIT = 40_000, 3000, 2000, 2000
CONTEXT_ELEMENTS, ACTION_ELEMENTS, BUTTON_TEXT, VALUE_LIMIT, ID_LIMIT = 10, 25, 75, 2000, 255
METADATA_LIMIT = 3000
SELECT_OPTIONS, OPTION_TEXT, OPTION_VALUE = 100, 75, 150


def message_trouble(text: str, blocks: Sequence[dict[str, Any]] | None) -> str | None:
    """Return Slack's error code for a message that it would refuse, with the reason, or None."""
    if not text and not blocks:
        return "no_text"
    if len(text) > TEXT_LIMIT:
        return "msg_too_long"
    return blocks_trouble(blocks or [], MESSAGE_BLOCKS)


def view_trouble(view: dict[str, Any]) -> str | None:
    """Return what Slack would refuse of a view, or None."""
    if len(view.get("private_metadata", "")) > METADATA_LIMIT:
        return f"invalid_arguments: private_metadata is longer than {METADATA_LIMIT}"
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
        if not 0 < len(option["text"]["text"]) <= OPTION_TEXT:
            return f"an option's text has 1 to {OPTION_TEXT} characters"
        if len(option["value"]) > OPTION_VALUE:
            return f"an option's value is longer than {OPTION_VALUE}"
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
    if isinstance(block, ContextBlock):
        if len(raw["elements"]) > CONTEXT_ELEMENTS:
            return f"more than {CONTEXT_ELEMENTS} elements"
        if any(len(element.get("text", "")) > CONTEXT_TEXT_LIMIT for element in raw["elements"]):
            return f"an element is longer than {CONTEXT_TEXT_LIMIT}"
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
        if len(element.get("text", {}).get("text", "")) > BUTTON_TEXT:
            return f"a button's text is longer than {BUTTON_TEXT}"
        if len(element.get("value", "")) > VALUE_LIMIT:
            return f"a button's value is longer than {VALUE_LIMIT}"
        if element.get("style") not in (None, "primary", "danger"):
            return "a button's style is primary or danger"
    return None
