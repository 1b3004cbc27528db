# SPDX-License-Identifier: Apache-2.0
"""The Bolt app: which listener hears what. The same ones in Socket Mode and over HTTP."""

from __future__ import annotations

import re

from slack_bolt.app.async_app import AsyncApp
from slack_sdk.http_retry.builtin_async_handlers import AsyncRateLimitErrorRetryHandler
from slack_sdk.web.async_client import AsyncWebClient

from lepton_ai.slack.alert_views import ACKNOWLEDGE, SILENCE
from lepton_ai.slack.door import Door
from lepton_ai.slack.forms import CHOOSE, FORM, PICK
from lepton_ai.slack.home import START
from lepton_ai.slack.views import AGAIN, AGAIN_FAILED, APPROVE, CANCEL, FILL_IN, REJECT

SHORTCUT, SHORTCUT_HERE = "lepton_do", "lepton_do_here"


def build_app(door: Door, *, client: AsyncWebClient, signing_secret: str | None, command: str) -> AsyncApp:
    """Return the app with its listeners. `client` carries token and base URL."""
    app = AsyncApp(
        client=client,
        signing_secret=signing_secret,
        request_verification_enabled=signing_secret is not None,
        raise_error_for_unhandled_request=False,
    )
    app.command(command)(door.on_command)
    # Taken in middleware, which runs before Bolt acknowledges an event: acknowledged means written.
    app.event("app_mention", middleware=[door.take_words])(door.on_words)
    app.event({"type": "message", "channel_type": "im"}, middleware=[door.take_words])(door.on_words)
    app.event("app_home_opened")(door.on_home)
    app.shortcut(SHORTCUT)(door.on_shortcut)
    app.shortcut(SHORTCUT_HERE)(door.on_shortcut)
    app.options(re.compile(f"^{CHOOSE}"))(door.on_options)
    app.view(FORM)(door.on_submit)
    for action, listener in (
        (CANCEL, door.on_cancel),
        (APPROVE, door.on_approve),
        (REJECT, door.on_reject),
        (AGAIN, door.on_again),
        (AGAIN_FAILED, door.on_again_failed),
        (FILL_IN, door.on_fill_in),
        (PICK, door.on_pick),
        (START, door.on_shortcut),
        (ACKNOWLEDGE, door.on_acknowledge),
        (re.compile(f"^{SILENCE}_"), door.on_silence),
    ):
        app.action(action)(listener)
    app.error(door.on_error)
    return app


def slack_client(token: str, base_url: str, *, patient: bool = True) -> AsyncWebClient:
    """Return a Web API client that waits out 429 by itself; not a `patient` one leaves that to its caller, which has others to serve."""
    client = AsyncWebClient(token=token, base_url=base_url)
    if patient:
        client.retry_handlers.append(AsyncRateLimitErrorRetryHandler(max_retry_count=2))
    return client
