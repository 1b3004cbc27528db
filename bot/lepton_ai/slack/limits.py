# SPDX-License-Identifier: Apache-2.0
"""Slack's documented limits, in characters and counts (docs.slack.dev/reference/block-kit), and keeping to them."""

from __future__ import annotations

SECTION_LIMIT = 3000
CONTEXT_LIMIT = 2000
CONTEXT_ELEMENTS = 10
HINT_LIMIT = 2000  # of hints; labels and errors of fields have the same
OPTION_TEXT_LIMIT = 75
SELECT_OPTIONS = 100
TITLE_LIMIT = 24
METADATA_LIMIT = 3000
ACTION_ID_LIMIT = 255
BUTTON_VALUE_LIMIT = 2000
MESSAGE_BLOCKS = 50
VIEW_BLOCKS = 100


def shortened(text: str, limit: int) -> str:
    """Return the text, and where it is too long its beginning with a sign that there is more."""
    return text if len(text) <= limit else text[: limit - 1] + "…"
