# SPDX-License-Identifier: Apache-2.0
"""Whether the people who asked for something are still there. Asked of Slack at the moment it matters."""

from __future__ import annotations

import asyncio

import structlog
from slack_sdk.errors import SlackApiError
from slack_sdk.web.async_client import AsyncWebClient

log = structlog.get_logger()
ANSWER_SECONDS = 5.0


class Accounts:
    """Asks Slack from other threads; before `connect` nobody is known to be gone."""

    def __init__(self) -> None:
        self._client: AsyncWebClient | None = None
        self._loop: asyncio.AbstractEventLoop | None = None

    def connect(self, client: AsyncWebClient) -> None:
        """Ask through this client, on the loop that runs now."""
        self._client, self._loop = client, asyncio.get_running_loop()

    def gone(self, principal: str) -> bool | None:
        """Return whether a Slack account has been deactivated, None where Slack does not say. Blocks; never call it on the loop."""
        kind, _, name = principal.partition(":")
        if kind != "slack" or self._client is None or self._loop is None:
            return False
        asked = asyncio.run_coroutine_threadsafe(self._client.users_info(user=name.partition("/")[2]), self._loop)
        try:
            return bool(asked.result(ANSWER_SECONDS)["user"].get("deleted"))
        except SlackApiError as error:
            if error.response.get("error") == "user_not_found":
                return True
            log.warning("slack did not say whether somebody is still there", who=principal, error=error.response.get("error"))
        except Exception as error:
            asked.cancel()
            log.warning("slack did not say whether somebody is still there", who=principal, error=str(error))
        return None
