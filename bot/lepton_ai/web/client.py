# SPDX-License-Identifier: Apache-2.0
"""The other end of the service's unix socket."""

from __future__ import annotations

import json
import socket as stdlib_socket
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import httpx

from lepton_ai.errors import LeptonError

ANSWER_SECONDS = 30


class ServiceClient:
    """Speaks to a running `lepton serve`. Everything it refuses becomes a LeptonError with its words."""

    def __init__(self, socket: Path) -> None:
        self._http = httpx.Client(transport=httpx.HTTPTransport(uds=str(socket)), base_url="http://lepton", timeout=ANSWER_SECONDS)

    def close(self) -> None:
        self._http.close()

    def submit(self, operation: str, arguments: Mapping[str, Any], *, key: str, **how: Any) -> dict[str, Any]:
        """Ask for a run and return it as it was written. `how`: check, why, canary, due (seconds since the epoch)."""
        written: dict[str, Any] = self._asked("POST", "/v1/runs", {"operation": operation, "arguments": dict(arguments), "key": key, **how})
        return written

    def again(self, run_id: str, *, failed_hosts: bool) -> dict[str, Any]:
        """Ask for the same once more, and return the new run."""
        written: dict[str, Any] = self._asked("POST", f"/v1/runs/{run_id}/again", {"failed_hosts": failed_hosts})
        return written

    def run(self, run_id: str) -> dict[str, Any]:
        """Return a run with its audit trail."""
        found: dict[str, Any] = self._asked("GET", f"/v1/runs/{run_id}")
        return found

    def runs(self, limit: int) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = self._asked("GET", f"/v1/runs?limit={limit}")
        return found

    def cancel(self, run_id: str) -> bool:
        return bool(self._asked("POST", f"/v1/runs/{run_id}/cancel")["canceled"])

    def decide(self, plan_id: str, *, approved: bool) -> dict[str, Any] | None:
        """Approve or reject a plan, and return the run that this released, None when none."""
        released: dict[str, Any] | None = self._asked("POST", f"/v1/runs/{plan_id}/{'approve' if approved else 'reject'}")
        return released

    def freezes(self) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = self._asked("GET", "/v1/freezes")
        return found

    def freeze(self, target: str, until: float | None, why: str) -> dict[str, Any]:
        written: dict[str, Any] = self._asked("POST", "/v1/freezes", {"target": target, "until": until, "why": why})
        return written

    def unfreeze(self, target: str) -> bool:
        return bool(self._asked("POST", "/v1/freezes", {"target": target, "lift": True})["lifted"])

    def pin(self, service: str, replicas: int, until: float, why: str) -> None:
        self._asked("POST", "/v1/pins", {"service": service, "replicas": replicas, "until": until, "why": why})

    def unpin(self, service: str) -> bool:
        return bool(self._asked("POST", "/v1/pins", {"service": service, "lift": True})["lifted"])

    def locks(self) -> list[list[str]]:
        """Return [lock, owner] of every lease."""
        found: list[list[str]] = self._asked("GET", "/v1/locks")
        return found

    def steal(self, lock: str, why: str) -> str:
        return str(self._asked("POST", "/v1/locks", {"lock": lock, "why": why})["holder"])

    def follow(self, run_id: str) -> Iterator[dict[str, Any]]:
        """Yield the run as it is at every event, until it has ended. A service that restarts meanwhile raises LeptonError."""
        try:
            with self._http.stream("GET", f"/v1/runs/{run_id}/events", timeout=httpx.Timeout(ANSWER_SECONDS, read=None)) as response:
                for line in response.iter_lines():
                    yield json.loads(line)
        except httpx.HTTPError as error:
            raise LeptonError("the service went away; the run goes on when it is back", hint=f"see: lepton runs show {run_id}") from error

    def _asked(self, method: str, path: str, body: Mapping[str, Any] | None = None) -> Any:
        try:
            response = self._http.request(method, path, json=body)
        except httpx.HTTPError as error:
            raise LeptonError(f"the service does not answer: {error}") from error
        try:
            answer = response.json()
        except ValueError:
            answer = {"error": f"the service answered {response.status_code} and nothing that can be read"}
        if response.is_error:
            raise LeptonError(answer.get("error", "the service refused"), hint=answer.get("hint", ""))
        return answer


def service(socket: Path) -> ServiceClient | None:
    """Return a client when a service listens at this socket, None when none does; raise LeptonError when it is out of reach."""
    with stdlib_socket.socket(stdlib_socket.AF_UNIX) as probe:
        try:
            probe.connect(str(socket))
        except (FileNotFoundError, ConnectionRefusedError):
            return None
        except OSError as error:
            raise LeptonError(f"the service's socket {socket} cannot be reached: {error.strerror}") from error
    return ServiceClient(socket)
