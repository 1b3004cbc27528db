# SPDX-License-Identifier: Apache-2.0
"""The sandbox as one ASGI app: Slack's side for the bot, and a page with its own small API for people and tests."""

from __future__ import annotations

import json
import secrets
import time
from collections.abc import AsyncIterator
from importlib.resources import files
from typing import Any, Protocol

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response, StreamingResponse
from starlette.routing import Mount, Route, WebSocketRoute
from starlette.staticfiles import StaticFiles
from starlette.websockets import WebSocket

from lepton_ai.sandbox.delivery import NotAnsweredError, SocketMode
from lepton_ai.sandbox.webapi import WebApi
from lepton_ai.sandbox.workspace import BOT_USER, TEAM, SlackError, Workspace
from lepton_ai.slack.checks import message_trouble, options_trouble

PNG = b"\x89PNG"
RESPONSE_URL_USES, RESPONSE_URL_SECONDS = 5, 30 * 60


class Delivery(Protocol):
    """The way to the app: Socket Mode or signed HTTP."""

    async def deliver(self, kind: str, payload: dict[str, Any], copies: int = 1) -> dict[str, Any]:
        """Bring one request to the app and return its answer; raise NotAnsweredError."""
        ...


class Sandbox:
    """The workspace with its doors. `base_url` ends with a slash; without `delivery` the app comes by Socket Mode."""

    def __init__(self, workspace: Workspace, base_url: str, delivery: Delivery | None = None) -> None:
        self.workspace = workspace
        self.base_url = base_url
        self.socket_mode = SocketMode()
        self.web_api = WebApi(workspace, base_url)
        self._delivery: Delivery = delivery or self.socket_mode
        page = files("lepton_ai.sandbox") / "page"
        self.app = Starlette(
            routes=[
                Route("/api/{method}", self.web_api.call, methods=["POST", "GET"]),
                WebSocketRoute("/link", self._link),
                Route("/respond/{id}", self._respond, methods=["POST"]),
                Route("/upload/{file}", self._upload, methods=["POST"]),
                Route("/files/{file}", self._file),
                Route("/people/state", self._state),
                Route("/people/events", self._events),
                Route("/people/say", self._say, methods=["POST"]),
                Route("/people/press", self._press, methods=["POST"]),
                Route("/people/submit", self._submit, methods=["POST"]),
                Route("/people/suggest", self._suggest, methods=["POST"]),
                Route("/people/choose", self._choose, methods=["POST"]),
                Route("/people/shortcut", self._shortcut, methods=["POST"]),
                Route("/people/home", self._home, methods=["POST"]),
                Route("/people/fault", self._fault, methods=["POST"]),
                Route("/people/limit", self._limit, methods=["POST"]),
                Route("/people/disconnect", self._disconnect, methods=["POST"]),
                Mount("/", StaticFiles(directory=str(page), html=True)),
            ],
            # Only pages of the sandbox itself may speak for its people, whatever else the browser shows.
            middleware=[Middleware(TrustedHostMiddleware, allowed_hosts=["127.0.0.1", "localhost"])],
        )

    async def _link(self, websocket: WebSocket) -> None:
        await self.socket_mode.connection(websocket)

    # -- what people do ------------------------------------------------------------------------------------------

    async def say(self, user: str, channel: str, text: str, copies: int = 1, thread_ts: str | None = None) -> None:
        """Type a line: a slash command goes to the app, and so does a message that mentions it or is for it alone."""
        self.workspace.channel(channel)
        in_thread = {"thread_ts": thread_ts} if thread_ts else {}
        if not text.startswith("/") or thread_ts:  # slash commands do not work in threads
            text = text.replace("@lepton", f"<@{BOT_USER}>")
            message = self.workspace.post(channel, user=user, text=text, blocks=[], **in_thread)
            direct = self.workspace.channels[channel].get("is_im")
            if direct or f"<@{BOT_USER}>" in text:
                kind = {"type": "message", "channel_type": "im"} if direct else {"type": "app_mention"}
                event = {**kind, "user": user, "text": text, "channel": channel, "ts": message["ts"], "event_ts": message["ts"], **in_thread}
                await self._event(event, copies)
            return
        command, _, rest = text.partition(" ")
        payload = {
            "token": "sandbox", "team_id": TEAM, "team_domain": "sandbox", "channel_id": channel,
            "channel_name": self.workspace.channels[channel]["name"], "user_id": user, "user_name": self.workspace.users[user]["name"],
            "command": command, "text": rest.strip(), "api_app_id": "A0LEPTON", "is_enterprise_install": "false",
            "response_url": self._response_url(user, channel), "trigger_id": self.workspace.trigger(user),
        }  # fmt: skip
        self.workspace.post(channel, user=user, text=text, blocks=[], ephemeral_to=user)
        try:
            answer = await self._bring("slash_commands", payload, copies)
        except NotAnsweredError as error:
            answer = {"text": f"{command} failed with the error “{error}”"}
        if answer.get("text") or answer.get("blocks"):
            self._show_answer(answer, user, channel)

    async def press(self, user: str, channel: str, ts: str, action_id: str, copies: int = 1) -> None:
        """Press a button of a message."""
        message = self.workspace.message(channel, ts)
        element, block_id = next(
            (element, block.get("block_id", ""))
            for block in message["blocks"] if block["type"] == "actions"
            for element in block["elements"] if element.get("action_id") == action_id
        )  # fmt: skip
        action = {
            "type": element["type"],
            "action_id": action_id,
            "block_id": block_id,
            "value": element.get("value", ""),
            "action_ts": self.workspace.timestamp(),
        }
        await self._interact(
            user,
            {
                "type": "block_actions", "channel": {"id": channel, "name": self.workspace.channels[channel]["name"]}, "message": message,
                "container": {"type": "message", "message_ts": ts, "channel_id": channel}, "actions": [action],
                "response_url": self._response_url(user, channel), "trigger_id": self.workspace.trigger(user),
            },
            copies,
        )  # fmt: skip

    async def press_home(self, user: str, action_id: str, value: str) -> None:
        """Press a button of the App Home."""
        view = self.workspace.homes[user]
        action = {"type": "button", "action_id": action_id, "block_id": "home", "value": value, "action_ts": self.workspace.timestamp()}
        container = {"type": "view", "view_id": view["id"]}
        payload = {"type": "block_actions", "container": container, "view": view, "actions": [action], "trigger_id": self.workspace.trigger(user)}
        await self._interact(user, payload)

    async def open_home(self, user: str) -> None:
        """Look at the App Home."""
        await self._event({"type": "app_home_opened", "user": user, "channel": f"D{user[1:]}", "tab": "home", "event_ts": self.workspace.timestamp()})

    async def shortcut(self, user: str, callback_id: str, channel: str | None = None, ts: str | None = None) -> None:
        """Use a shortcut: the global one, or with a message the one on messages."""
        payload: dict[str, Any] = {"type": "shortcut", "callback_id": callback_id, "trigger_id": self.workspace.trigger(user)}
        if channel is not None and ts is not None:
            where = {"id": channel, "name": self.workspace.channels[channel]["name"]}
            payload |= {"type": "message_action", "channel": where, "message": self.workspace.message(channel, ts), "message_ts": ts}
            payload["response_url"] = self._response_url(user, channel)
        await self._interact(user, payload)

    async def suggest(self, user: str, view_id: str, block_id: str, action_id: str, value: str) -> list[dict[str, Any]]:
        """Return what the app offers in a select for what was typed so far."""
        view = self.workspace.views[view_id]
        payload = {"type": "block_suggestion", "action_id": action_id, "block_id": block_id, "value": value, "view": view}
        answer = await self._interact(user, {**payload, "container": {"type": "view", "view_id": view_id}})
        offered = list(answer.get("options") or [])
        trouble = options_trouble(offered)
        if trouble:
            raise SlackError("invalid_options", response_metadata={"messages": [f"[ERROR] {trouble}"]})
        return offered

    async def choose(self, user: str, view_id: str, block_id: str, action_id: str, value: str) -> None:
        """Choose in a select of a view that tells the app at once."""
        view = self.workspace.views[view_id]
        option = {"text": {"type": "plain_text", "text": value}, "value": value}
        action = {"type": "static_select", "action_id": action_id, "block_id": block_id, "selected_option": option, "action_ts": self.workspace.timestamp()}
        container = {"type": "view", "view_id": view_id}
        payload = {"type": "block_actions", "container": container, "view": view, "actions": [action], "trigger_id": self.workspace.trigger(user)}
        await self._interact(user, payload)

    async def _bring(self, kind: str, payload: dict[str, Any], copies: int = 1) -> dict[str, Any]:
        answer = await self._delivery.deliver(kind, payload, copies)
        if self.workspace.late_acknowledgements > 0:  # the app took it, and Slack does not know
            self.workspace.late_acknowledgements -= 1
            raise NotAnsweredError("operation_timeout")
        return answer

    async def _event(self, event: dict[str, Any], copies: int = 1) -> None:
        envelope = {
            "token": "sandbox", "team_id": TEAM, "api_app_id": "A0LEPTON", "type": "event_callback", "event": event,
            "event_id": f"Ev{secrets.token_hex(6).upper()}", "event_time": int(time.time()),
            "authorizations": [{"team_id": TEAM, "user_id": BOT_USER, "is_bot": True, "is_enterprise_install": False}],
        }  # fmt: skip
        await self._bring("events_api", envelope, copies)

    async def submit(self, user: str, view_id: str, values: dict[str, Any]) -> dict[str, Any]:
        """Submit a view and return what the app answered; errors leave it open."""
        view = self.workspace.views[view_id]
        view["state"] = {"values": values}
        answer = await self._interact(user, {"type": "view_submission", "view": view, "trigger_id": self.workspace.trigger(user)})
        if answer.get("response_action") == "errors":
            known = {block.get("block_id") for block in view["blocks"] if block["type"] == "input"}
            if not answer.get("errors") or not set(answer["errors"]) <= known:
                raise SlackError("invalid_errors")
        if answer.get("response_action") not in ("errors", "update"):
            self.workspace.views.pop(view_id, None)
        return answer

    async def _interact(self, user: str, payload: dict[str, Any], copies: int = 1) -> dict[str, Any]:
        person = self.workspace.users[user]
        who = {"id": user, "username": person["name"], "name": person["name"], "team_id": person["team_id"]}
        common = {"team": {"id": TEAM, "domain": "sandbox"}, "user": who, "api_app_id": "A0LEPTON", "token": "sandbox", "is_enterprise_install": False}
        return await self._bring("interactive", {**common, **payload}, copies)

    def _response_url(self, user: str, channel: str) -> str:
        key = secrets.token_hex(12)
        self.workspace.response_urls[key] = {"user": user, "channel": channel, "uses": RESPONSE_URL_USES, "expires": time.monotonic() + RESPONSE_URL_SECONDS}
        return f"{self.base_url}respond/{key}"

    def _show_answer(self, answer: dict[str, Any], user: str, channel: str) -> None:
        trouble = message_trouble(answer.get("text") or "", answer.get("blocks"))
        if trouble:
            raise SlackError(trouble)
        seen = {} if answer.get("response_type") == "in_channel" else {"ephemeral_to": user}
        self.workspace.post(channel, user=BOT_USER, text=answer.get("text") or "", blocks=answer.get("blocks") or [], **seen)

    # -- the routes ----------------------------------------------------------------------------------------------

    async def _respond(self, request: Request) -> Response:
        target = self.workspace.response_urls.get(request.path_params["id"])
        if target is None or target["uses"] < 1 or time.monotonic() > target["expires"]:
            return PlainTextResponse("expired_url", 404)
        target["uses"] -= 1
        try:
            self._show_answer(await request.json(), target["user"], target["channel"])
        except SlackError as error:
            return PlainTextResponse(str(error), 400)
        return PlainTextResponse("ok")

    async def _upload(self, request: Request) -> Response:
        file = self.workspace.files.get(request.path_params["file"])
        if file is None:
            return PlainTextResponse("not found", 404)
        file["content"] = await request.body()
        return PlainTextResponse(f"OK - {len(file['content'])}")

    async def _file(self, request: Request) -> Response:
        file = self.workspace.files.get(request.path_params["file"])
        if file is None or file["content"] is None:
            return PlainTextResponse("not found", 404)
        # As a picture or as text, whatever it claims to be: an uploaded page must not run on the sandbox's own origin.
        kind = "image/png" if file["content"].startswith(PNG) else "text/plain"
        return Response(file["content"], media_type=kind, headers={"X-Content-Type-Options": "nosniff"})

    async def _state(self, _request: Request) -> Response:
        workspace = self.workspace
        return JSONResponse({
            "users": workspace.users, "channels": workspace.channels, "messages": workspace.messages, "views": workspace.views,
            "homes": workspace.homes, "calls": workspace.calls[-1000:], "connected": self.socket_mode.connected.is_set(),
        })  # fmt: skip

    async def _events(self, _request: Request) -> Response:
        async def stream() -> AsyncIterator[str]:
            async for change in self.workspace.watch():
                yield f"data: {json.dumps(change)}\n\n"

        return StreamingResponse(stream(), media_type="text/event-stream")

    async def _say(self, request: Request) -> Response:
        body = await _from_page(request)
        return await self._done(self.say(body["user"], body["channel"], body["text"], int(body.get("copies", 1)), body.get("thread_ts")))

    async def _press(self, request: Request) -> Response:
        body = await _from_page(request)
        if not body.get("ts"):
            return await self._done(self.press_home(body["user"], body["action_id"], body["value"]))
        return await self._done(self.press(body["user"], body["channel"], body["ts"], body["action_id"], int(body.get("copies", 1))))

    async def _submit(self, request: Request) -> Response:
        body = await _from_page(request)
        return await self._done(self.submit(body["user"], body["view_id"], body["values"]))

    async def _suggest(self, request: Request) -> Response:
        body = await _from_page(request)
        return await self._done(self.suggest(body["user"], body["view_id"], body["block_id"], body["action_id"], body["value"]))

    async def _choose(self, request: Request) -> Response:
        body = await _from_page(request)
        return await self._done(self.choose(body["user"], body["view_id"], body["block_id"], body["action_id"], body["value"]))

    async def _shortcut(self, request: Request) -> Response:
        body = await _from_page(request)
        return await self._done(self.shortcut(body["user"], body["callback_id"], body.get("channel"), body.get("ts")))

    async def _home(self, request: Request) -> Response:
        body = await _from_page(request)
        return await self._done(self.open_home(body["user"]))

    async def _fault(self, request: Request) -> Response:
        """Make the next calls of a method fail, trigger ids or acknowledgements be late, streams be there or not, or the app leave a channel."""
        body = await request.json()
        if "method" in body:
            self.web_api.fail(body["method"], int(body["times"]), int(body.get("status", 500)))
        self.workspace.late_triggers += int(body.get("expired_triggers", 0))
        self.workspace.late_acknowledgements += int(body.get("late_acknowledgements", 0))
        if "remove_from" in body or "invite_to" in body:
            self.workspace.channel(body.get("remove_from") or body["invite_to"])["is_member"] = "invite_to" in body
        self.workspace.has_streams = bool(body.get("has_streams", self.workspace.has_streams))
        return JSONResponse({"ok": True})

    async def _done(self, action: Any) -> Response:
        try:
            return JSONResponse({"ok": True, "answer": await action})
        except (SlackError, NotAnsweredError) as error:
            return JSONResponse({"ok": False, "error": str(error)})
        except (KeyError, StopIteration, RuntimeError) as error:
            return JSONResponse({"ok": False, "error": f"there is no such thing: {error}"}, 400)

    async def _limit(self, request: Request) -> Response:
        body = await request.json()
        self.web_api.limit(body["method"], int(body["times"]), int(body["retry_after"]))
        return JSONResponse({"ok": True})

    async def _disconnect(self, request: Request) -> Response:
        body = await request.body()
        await self.socket_mode.disconnect(announced=not (body and json.loads(body).get("drop")))
        return JSONResponse({"ok": True})


async def _from_page(request: Request) -> dict[str, Any]:
    # A foreign page cannot send this type without asking first (CORS), and is never allowed.
    if request.headers.get("content-type") != "application/json":
        raise HTTPException(415, "expected application/json")
    return dict(await request.json())
