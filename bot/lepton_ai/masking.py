# SPDX-License-Identifier: Apache-2.0
"""The one filter for everything that leaves: it knows the values of secrets, and what well-known tokens look like.

By value, because a declared `no_log` says nothing of the same password in a diff, a traceback or another program's output.
"""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Iterable, Mapping
from typing import Any
from urllib.parse import quote

MASK = "********"
SHORTEST = 4  # characters; masking a letter or two would make every other text unreadable, and hide nothing
SHORTEST_LINE = 8  # of a line of a secret that has several
# Sources: docs.slack.dev/authentication/tokens, github.blog (token formats), AWS IAM identifiers, RFC 7519, RFC 7468, RFC 3986.
SHAPES = re.compile(
    r"xox[a-z]-[\w-]{10,}|xapp-[\w-]{10,}"
    r"|gh[pousr]_[A-Za-z0-9]{30,}|github_pat_\w{30,}|glpat-[\w-]{20,}"
    r"|\b(?:AKIA|ASIA)[A-Z0-9]{16}\b"
    r"|(?<![\w-])eyJ[\w-]{10,2000}\.eyJ[\w-]{10,4000}\.[\w-]{10,2000}"
    r"|-----BEGIN [A-Z ]*PRIVATE KEY-----.*?(?:-----END [A-Z ]*PRIVATE KEY-----|\Z)"
    r"|(?<=hooks\.slack\.com/)[\w/-]{20,}"
    r"|(?<=://)[^/\s:@]+:[^/\s@]+(?=@)",
    re.DOTALL,
)


class Mask:
    """Replaces what it knows in any value, whatever stands around it. `also` is a mask whose secrets it knows too."""

    def __init__(self, secrets: Iterable[Any] = (), also: Mask | None = None) -> None:
        self._also = also
        self._known: set[str] = set()
        self._pattern: re.Pattern[str] | None = None
        self.learn(secrets)

    def learn(self, secrets: Iterable[Any]) -> None:
        """Know these values too, in every way they may be written."""
        new = {text for secret in secrets for text in _texts(secret)} - self._known
        if new:
            self._known |= new
            # The longest first, or its beginning would be masked and its end shown.
            self._pattern = re.compile("|".join(re.escape(text) for text in sorted(self._known, key=len, reverse=True)))

    def __call__(self, value: Any) -> Any:
        """Return the value with every secret replaced, wherever in a text it stands."""
        if isinstance(value, str):
            if self._pattern is not None:
                value = self._pattern.sub(MASK, value)
            return self._also(value) if self._also is not None else SHAPES.sub(MASK, value)
        if isinstance(value, Mapping):
            # What reads like a name of a field stays, or a secret that is a common word would take the structure apart.
            return {key if isinstance(key, str) and key.isidentifier() else self(key): self(item) for key, item in value.items()}
        if isinstance(value, list | tuple):
            return [self(item) for item in value]
        if isinstance(value, int | float) and not isinstance(value, bool) and self.knows(str(value)):
            return MASK
        return value

    def knows(self, text: str) -> bool:
        """Return whether a text is a secret."""
        return text in self._known or (self._also is not None and self._also.knows(text))


def _texts(value: Any) -> list[str]:
    if isinstance(value, Mapping):
        return [text for item in value.values() for text in _texts(item)]
    if isinstance(value, list | tuple):
        return [text for item in value for text in _texts(item)]
    if value is None or isinstance(value, bool):
        return []
    text = str(value)
    lines = [line.strip() for line in text.splitlines() if len(line.strip()) >= SHORTEST_LINE] if "\n" in text else []
    written = [text, text.strip(), json.dumps(text)[1:-1], json.dumps(text, ensure_ascii=False)[1:-1], quote(text, safe=""), *lines]
    if len(text) >= SHORTEST_LINE:
        written.append(base64.b64encode(text.encode("utf-8", "surrogateescape")).decode())
    return [form for form in written if len(form) >= SHORTEST]


service_mask = Mask()  # of this process: its own credentials
