# SPDX-License-Identifier: Apache-2.0
"""The one exception type whose text is meant for people."""

from __future__ import annotations


class LeptonError(Exception):
    """Something a person can act on: what was wrong, and what to do about it.

    `str(error)` is shown as it is, at every door; it never carries a secret or a traceback.
    """

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message}\n{self.hint}" if self.hint else self.message
