# SPDX-License-Identifier: Apache-2.0
"""Slack's Web API as the sandbox speaks it: the methods that Lepton uses, with Slack's own refusals and error codes."""

from __future__ import annotations

import json
import secrets
from collections.abc import Callable
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from lepton_ai.sandbox.workspace import APP_TOKEN, BOT_TOKEN, BOT_USER, TEAM, SlackError, Workspace
from lepton_ai.slack.checks import message_trouble, view_trouble

Method = Callable[[dict[str, Any]], dict[str, Any]]
JSON_FIELDS = ("blocks", "view", "files", "attachments", "metadata", "chunks")
TASK_STATES = {"pending": "○", "in_progress": "◐", "complete": "✔", "error": "✘"}


class WebApi:
    """Answers `POST /api/METHOD`. `limit` makes the next calls of a method answer 429, as a busy workspace does."""

    def __init__(self, workspace: Workspace, base_url: str) -> None:
        self._workspace = workspace
        self._base_url = base_url
        self._limited: dict[str, tuple[int, int]] = {}
        self._failing: dict[str, tuple[int, int]] = {}
        self._methods: dict[str, Method] = {
            "auth.test": self._auth_test,
            "apps.connections.open": self._connections_open,
            "chat.postMessage": self._post_message,
            "chat.postEphemeral": self._post_ephemeral,
            "chat.update": self._update,
            "chat.delete": self._delete,
            "chat.startStream": self._start_stream,
            "chat.appendStream": self._append_stream,
            "chat.stopStream": self._stop_stream,
            "conversations.info": lambda a: {"channel": self._workspace.channel(a["channel"])},
            "conversations.list": lambda _: {"channels": list(self._workspace.channels.values())},
            "conversations.history": self._history,
            "conversations.replies": self._replies,
            "conversations.open": lambda a: {"channel": {"id": self._workspace.direct(a["users"])}},
            "users.info": self._users_info,
            "users.list": lambda _: {"members": list(self._workspace.users.values())},
            "usergroups.list": lambda _: {"usergroups": list(self._workspace.groups.values())},
            "usergroups.users.list": lambda a: {"users": self._workspace.groups[a["usergroup"]]["users"]},
            "views.open": self._views_open,
            "views.push": self._views_open,
            "views.update": self._views_update,
            "views.publish": self._views_publish,
            "files.getUploadURLExternal": self._upload_url,
            "files.completeUploadExternal": self._upload_complete,
        }

    def limit(self, method: str, times: int, retry_after: int) -> None:
        """Answer the next `times` calls of a method with 429 and this Retry-After."""
        self._limited[method] = (times, retry_after)

    def fail(self, method: str, times: int, status: int) -> None:
        """Answer the next `times` calls of a method with this HTTP status."""
        self._failing[method] = (times, status)

    async def call(self, request: Request) -> Response:
        """Answer one call."""
        name = request.path_params["method"]
        arguments = await _arguments(request)
        token = request.headers.get("authorization", "").removeprefix("Bearer ") or arguments.pop("token", "")
        times, retry_after = self._limited.get(name, (0, 0))
        self._workspace.calls.append({"method": name, "limited": bool(times)})
        if times:
            self._limited[name] = (times - 1, retry_after)
            return JSONResponse({"ok": False, "error": "ratelimited"}, 429, headers={"Retry-After": str(retry_after)})
        fails, status = self._failing.get(name, (0, 0))
        if fails:
            self._failing[name] = (fails - 1, status)
            return JSONResponse({"ok": False, "error": "internal_error"}, status)
        try:
            if token != (APP_TOKEN if name == "apps.connections.open" else BOT_TOKEN):
                raise SlackError("invalid_auth" if token else "not_authed")
            method = self._methods.get(name)
            if method is None:
                raise SlackError("unknown_method", req_method=name)
            return JSONResponse({"ok": True, **method(arguments)})
        except SlackError as error:
            return JSONResponse(error.answer)
        except (KeyError, TypeError) as error:
            return JSONResponse({"ok": False, "error": "invalid_arguments", "response_metadata": {"messages": [f"[ERROR] missing required field: {error}"]}})

    def _auth_test(self, _arguments: dict[str, Any]) -> dict[str, Any]:
        return {
            "url": self._base_url,
            "team": "Sandbox",
            "team_id": TEAM,
            "user": "lepton",
            "user_id": BOT_USER,
            "bot_id": "B0LEPTON",
            "is_enterprise_install": False,
        }

    def _connections_open(self, _arguments: dict[str, Any]) -> dict[str, Any]:
        address = self._base_url.replace("http://", "ws://", 1)
        return {"url": f"{address}link?ticket={secrets.token_hex(8)}"}

    def _post_message(self, arguments: dict[str, Any]) -> dict[str, Any]:
        content = _content(arguments)
        channel = self._workspace.channel(self._workspace.direct(arguments["channel"]))
        if not channel["is_member"]:
            raise SlackError("not_in_channel")
        if arguments.get("thread_ts"):
            self._workspace.message(channel["id"], arguments["thread_ts"])
            content["thread_ts"] = arguments["thread_ts"]
        message = self._workspace.post(channel["id"], user=BOT_USER, **content)
        return {"channel": channel["id"], "ts": message["ts"], "message": message}

    def _post_ephemeral(self, arguments: dict[str, Any]) -> dict[str, Any]:
        if arguments["user"] not in self._workspace.users:
            raise SlackError("user_not_in_channel")
        thread = {"thread_ts": arguments["thread_ts"]} if arguments.get("thread_ts") else {}
        channel = self._workspace.channel(arguments["channel"])
        if not channel["is_member"]:
            raise SlackError("not_in_channel")
        message = self._workspace.post(channel["id"], user=BOT_USER, ephemeral_to=arguments["user"], **thread, **_content(arguments))
        return {"message_ts": message["ts"]}

    def _update(self, arguments: dict[str, Any]) -> dict[str, Any]:
        message = self._workspace.message(arguments["channel"], arguments["ts"])
        if not self._workspace.channel(arguments["channel"])["is_member"]:
            raise SlackError("channel_not_found")  # which is what an app hears of a channel that it was removed from
        if message.get("user") != BOT_USER or message.get("ephemeral_to"):
            raise SlackError("cant_update_message")
        message.update(_content(arguments), edited={"user": BOT_USER, "ts": self._workspace.timestamp()})
        self._workspace.tell({"type": "message", "message": message})
        return {"channel": arguments["channel"], "ts": arguments["ts"], "text": message["text"], "message": message}

    def _delete(self, arguments: dict[str, Any]) -> dict[str, Any]:
        message = self._workspace.message(arguments["channel"], arguments["ts"])
        if message.get("user") != BOT_USER:
            raise SlackError("cant_delete_message")
        self._workspace.messages[arguments["channel"]].remove(message)
        self._workspace.tell({"type": "deleted", "channel": arguments["channel"], "ts": arguments["ts"]})
        return {"channel": arguments["channel"], "ts": arguments["ts"]}

    def _start_stream(self, arguments: dict[str, Any]) -> dict[str, Any]:
        if not self._workspace.has_streams:
            raise SlackError("unknown_method", req_method="chat.startStream")
        channel = self._workspace.channel(arguments["channel"])
        if not channel.get("is_im") and not (arguments.get("recipient_user_id") and arguments.get("recipient_team_id")):
            raise SlackError("missing_recipient_user_id")
        self._workspace.message(channel["id"], arguments["thread_ts"])
        message = self._workspace.post(channel["id"], user=BOT_USER, text="", blocks=[], thread_ts=arguments["thread_ts"], stream={"title": "", "tasks": []})
        return self._streamed(message, arguments)

    def _append_stream(self, arguments: dict[str, Any]) -> dict[str, Any]:
        if not arguments.get("chunks") and not arguments.get("markdown_text"):
            raise SlackError("no_text")
        return self._streamed(self._open_stream(arguments), arguments)

    def _stop_stream(self, arguments: dict[str, Any]) -> dict[str, Any]:
        message = self._open_stream(arguments)
        answer = self._streamed(message, arguments)
        message["stream_ended"] = True
        return answer

    def _open_stream(self, arguments: dict[str, Any]) -> dict[str, Any]:
        message = self._workspace.message(arguments["channel"], arguments["ts"])
        if "stream" not in message or message.get("stream_ended"):
            raise SlackError("message_not_in_streaming_state")
        return message

    def _streamed(self, message: dict[str, Any], arguments: dict[str, Any]) -> dict[str, Any]:
        stream = message["stream"]
        for chunk in arguments.get("chunks") or ():
            if chunk.get("type") == "plan_update":
                stream["title"] = chunk["title"]
            elif chunk.get("type") == "task_update" and chunk.get("status") in TASK_STATES:
                task = {"id": chunk["id"], "title": chunk["title"], "status": chunk["status"], "details": chunk.get("details", "")}
                known = [index for index, earlier in enumerate(stream["tasks"]) if earlier["id"] == task["id"]]
                if known:
                    task["details"] = stream["tasks"][known[0]]["details"] + task["details"]  # Slack adds them
                    stream["tasks"][known[0]] = task
                else:
                    stream["tasks"].append(task)
            else:
                raise SlackError("invalid_chunks", response_metadata={"messages": [f"[ERROR] {chunk}"]})
        lines = [f"{TASK_STATES[task['status']]} {task['title']}" + (f": {task['details']}" if task["details"] else "") for task in stream["tasks"]]
        message["text"] = "\n".join([stream["title"], *lines])
        self._workspace.tell({"type": "message", "message": message})
        return {"channel": message["channel"], "ts": message["ts"]}

    def _history(self, arguments: dict[str, Any]) -> dict[str, Any]:
        self._workspace.channel(arguments["channel"])
        shown = [message for message in self._workspace.messages[arguments["channel"]] if not message.get("ephemeral_to")]
        return {"messages": list(reversed(shown))[: int(arguments.get("limit", 100))], "has_more": False}

    def _replies(self, arguments: dict[str, Any]) -> dict[str, Any]:
        ts = arguments["ts"]
        return {"messages": [item for item in self._workspace.messages[arguments["channel"]] if ts in (item["ts"], item.get("thread_ts"))], "has_more": False}

    def _users_info(self, arguments: dict[str, Any]) -> dict[str, Any]:
        if arguments["user"] not in self._workspace.users:
            raise SlackError("user_not_found")
        return {"user": self._workspace.users[arguments["user"]]}

    def _views_open(self, arguments: dict[str, Any]) -> dict[str, Any]:
        user = self._workspace.use_trigger(arguments["trigger_id"])
        view = self._view(arguments["view"])
        view |= {"id": f"V{secrets.token_hex(5).upper()}", "hash": self._workspace.timestamp(), "team_id": TEAM, "state": {"values": {}}, "opened_by": user}
        self._workspace.views[view["id"]] = view
        self._workspace.tell({"type": "view", "view": view, "user": user})
        return {"view": view}

    def _views_update(self, arguments: dict[str, Any]) -> dict[str, Any]:
        current = self._workspace.views.get(arguments.get("view_id", ""))
        if current is None:
            raise SlackError("not_found")
        if arguments.get("hash") and arguments["hash"] != current["hash"]:
            raise SlackError("hash_conflict")
        current.update(self._view(arguments["view"]), hash=self._workspace.timestamp())
        self._workspace.tell({"type": "view", "view": current, "user": current["opened_by"]})
        return {"view": current}

    def _views_publish(self, arguments: dict[str, Any]) -> dict[str, Any]:
        view = {**self._view(arguments["view"]), "id": f"V{secrets.token_hex(5).upper()}", "hash": self._workspace.timestamp()}
        self._workspace.homes[arguments["user_id"]] = view
        self._workspace.tell({"type": "home", "view": view, "user": arguments["user_id"]})
        return {"view": view}

    def _view(self, view: dict[str, Any]) -> dict[str, Any]:
        trouble = view_trouble(view)
        if trouble:
            raise SlackError(trouble.partition(":")[0], response_metadata={"messages": [f"[ERROR] {trouble}"]})
        return dict(view)

    def _upload_url(self, arguments: dict[str, Any]) -> dict[str, Any]:
        if int(arguments["length"]) < 1:
            raise SlackError("invalid_arguments")
        file_id = f"F{secrets.token_hex(5).upper()}"
        asked = {"name": arguments["filename"], "length": int(arguments["length"]), "alt_txt": arguments.get("alt_txt", "")}
        self._workspace.files[file_id] = {"id": file_id, **asked, "content": None}
        return {"upload_url": f"{self._base_url}upload/{file_id}", "file_id": file_id}

    def _upload_complete(self, arguments: dict[str, Any]) -> dict[str, Any]:
        shared = []
        for item in arguments["files"]:
            file = self._workspace.files.get(item["id"])
            if file is None or file["content"] is None:
                raise SlackError("file_not_found")
            file["title"] = item.get("title", file["name"])
            where = f"{self._base_url}files/{file['id']}"
            said = {name: file[name] for name in ("id", "name", "title", "alt_txt")}
            shared.append({**said, "size": file["length"], "url_private": where})
        if arguments.get("channel_id"):
            if not self._workspace.channel(arguments["channel_id"])["is_member"]:
                raise SlackError("not_in_channel")
            if arguments.get("thread_ts"):
                self._workspace.message(arguments["channel_id"], arguments["thread_ts"])
            extra = {"thread_ts": arguments["thread_ts"]} if arguments.get("thread_ts") else {}
            self._workspace.post(arguments["channel_id"], user=BOT_USER, text=arguments.get("initial_comment", ""), files=shared, **extra)
        return {"files": shared}


def _content(arguments: dict[str, Any]) -> dict[str, Any]:
    text, blocks = arguments.get("text") or "", arguments.get("blocks")
    trouble = message_trouble(text, blocks)
    if trouble:
        raise SlackError(trouble.partition(":")[0], response_metadata={"messages": [f"[ERROR] {trouble}"]})
    return {"text": text, "blocks": blocks or []}


async def _arguments(request: Request) -> dict[str, Any]:
    if request.headers.get("content-type", "").startswith("application/json"):
        return dict(json.loads(await request.body() or b"{}"))
    arguments: dict[str, Any] = {**request.query_params, **{key: value for key, value in (await request.form()).items() if isinstance(value, str)}}
    for field in JSON_FIELDS:
        if field in arguments:
            try:
                arguments[field] = json.loads(arguments[field])
            except ValueError:
                arguments[field] = None
    return arguments
