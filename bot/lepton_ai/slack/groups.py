# SPDX-License-Identifier: Apache-2.0
"""Who is in which Slack user group: read in the background, so that a request never waits for it."""

from __future__ import annotations

import asyncio
from typing import Any

import structlog
from slack_sdk.web.async_client import AsyncWebClient

log = structlog.get_logger()
REFRESH_SECONDS = 60.0


class Groups:
    """User groups by user. Empty until the first answer: then only grants to users themselves count."""

    def __init__(self) -> None:
        self._by_user: dict[str, tuple[str, ...]] = {}
        self._known = False

    def of(self, user: str) -> tuple[str, ...]:
        return self._by_user.get(user, ())

    def of_principal(self, principal: str) -> tuple[str, ...] | None:
        """Return the groups of a Slack principal as grants name them, None where they are not known yet or not Slack's."""
        kind, _, name = principal.partition(":")
        team, _, user = name.partition("/")
        return tuple(f"slack-group:{team}/{group}" for group in self.of(user)) if kind == "slack" and self._known else None

    async def refresh(self, client: AsyncWebClient) -> None:
        """Read all groups with their members once."""
        answer = await client.usergroups_list(include_users=True)
        found: dict[str, tuple[str, ...]] = {}
        groups: list[dict[str, Any]] = answer.get("usergroups", [])
        for group in groups:
            for user in group.get("users", []):
                found[user] = (*found.get(user, ()), group["id"])
        self._by_user = found
        self._known = True

    async def work(self, client: AsyncWebClient) -> None:
        """Keep the groups fresh for ever; while Slack does not answer, what was known last stays."""
        while True:
            try:
                await self.refresh(client)
            except Exception as error:
                log.warning("user groups could not be read; grants to groups do not count until they can", error=str(error))
            await asyncio.sleep(REFRESH_SECONDS)
