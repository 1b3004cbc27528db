# SPDX-License-Identifier: Apache-2.0
"""Slack's documented limits, in characters and counts (docs.slack.dev/reference/block-kit), and keeping to them."""

from __future__ import annotations

import re

TEXT_LIMIT = 40_000
SECTION_LIMIT = 3000
FIELD_LIMIT = 2000
MESSAGE_LIMIT = 10_000  # of all texts of a message; Slack documents none, and refuses from about 11,000 (slackapi/bolt-js#2509, #2867)
INPUT_LIMIT = 3000
HEADER_LIMIT = 150
CONTEXT_LIMIT = 2000
CONTEXT_ELEMENTS = 10
ACTION_ELEMENTS = 25
HINT_LIMIT = 2000  # of hints; labels and errors of fields have the same
OPTION_TEXT_LIMIT = 75
OPTION_VALUE_LIMIT = 150
SELECT_OPTIONS = 100
TITLE_LIMIT = 24
METADATA_LIMIT = 3000
ID_LIMIT = 255
BUTTON_TEXT_LIMIT = 75
BUTTON_VALUE_LIMIT = 2000
MESSAGE_BLOCKS = 50
VIEW_BLOCKS = 100
ALT_LIMIT = 1000  # of a picture's words
TASK_LIMIT = 250  # of titles and details in a task list; Slack documents none, and they are one line
_TORN = re.compile(r"(?:&[a-z]{0,3}|<[^<>]*)$")  # an entity, a link or a date that was cut through


def shortened(text: str, limit: int) -> str:
    """Return the text, and where it is too long its beginning with a sign that there is more."""
    return text if len(text) <= limit else _TORN.sub("", text[: limit - 1]) + "…"
