# SPDX-License-Identifier: Apache-2.0
"""The demo, step by step, against the real hypervisor and the real Bolt app: over Socket Mode, and over signed HTTP."""

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path

import httpx
import pytest
from slack_sdk.signature import SignatureVerifier
from tests.conftest import eventually, write_probes

from lepton_ai.runs import processes
from lepton_ai.sandbox.people import Person, text_of
from lepton_ai.sandbox.stand import stand, stop_stand
from lepton_ai.sandbox.workspace import SIGNING_SECRET

pytestmark = [pytest.mark.libvirt, pytest.mark.slow]


def test_the_demo_plays_by_itself_and_leaves_nothing() -> None:
    """`make demo SCRIPT=1` and `make demo-clean`, but for the set-up that runs this test."""
    folder = Path(tempfile.mkdtemp(prefix="lep"))
    lepton = [sys.executable, "-m", "lepton_ai", "sandbox", "--folder", str(folder)]
    played = subprocess.Popen([*lepton, "--script"], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd="/", process_group=0)
    try:
        said = played.communicate(timeout=560)[0]
        assert played.returncode == 0, said
        assert "`vcpus` 1 → *3*" in said
        assert said.rstrip().endswith("Every step was as it should be.")
        daemon = int((folder / "libvirtd.pid").read_text())
        assert processes.start_time(daemon) is not None
    finally:  # a bot or a guest that is left behind would slow down all tests after this one
        with suppress(ProcessLookupError):
            os.killpg(played.pid, signal.SIGKILL)
        subprocess.run([*lepton, "--clean"], check=True, timeout=60, cwd="/")
    assert not folder.exists()
    assert processes.start_time(daemon) is None


def test_over_http_with_signatures_and_retries() -> None:
    folder = Path(tempfile.mkdtemp(prefix="lep"))
    try:
        with stand(folder, mode="http", start_bot=False) as running:
            write_probes(running.site / "playbooks", folder / "trace")
            running.start_bot()
            ada = Person(running.base_url)
            ada.say("/lepton node list", copies=3)
            ada.wait(lambda text: "There is none" in text)
            ada.say("/lepton host show")
            assert "VCPUS FREE" in text_of(ada.wait(lambda text: "*done*" in text))
            (folder / "trace.go").touch()
            ada.say("/lepton probe once", copies=3)
            ada.wait(lambda text: "*changed*" in text)
            assert (folder / "trace").read_text().split() == ["begin", "end"]
            answers = [message for message in ada.answers() if "probe once" in text_of(message)]
            assert len([message for message in answers if "stream" not in message]) == 1  # of a slow run there is a list of tasks too
            ada.mention("host show")
            ada.wait(lambda text: "VCPUS FREE" in text)
            ada.say("/lepton node show")
            form = ada.view()
            assert "is not a node name" in ada.fill_in(form, node="web 1")["node"]
            assert ada.fill_in(form, node="nothing") == {}
            ada.wait(lambda text: "node show" in text and "*failed*" in text)
            ada.home(lambda text: "Under way" in text and "VCPUS FREE" in text)
            # What is signed rightly, but ten minutes ago, is a replay or comes from a wrong clock.
            old, body = str(int(time.time()) - 600), "command=%2Flepton&text=help"
            signature = str(SignatureVerifier(SIGNING_SECRET).generate_signature(timestamp=old, body=body))
            headers = {"X-Slack-Request-Timestamp": old, "X-Slack-Signature": signature, "Content-Type": "application/x-www-form-urlencoded"}
            assert httpx.post(f"http://127.0.0.1:{running.bot.port}/slack/events", content=body, headers=headers).status_code == 401
            forged = running.sandbox
            forged._delivery._verifier.signing_secret = "not the secret"  # type: ignore[attr-defined]
            ada.say("/lepton node list")
            eventually(lambda: any("http_error 401" in text_of(message) for message in ada.answers()))
    finally:
        stop_stand(folder)
        shutil.rmtree(folder, ignore_errors=True)
