# SPDX-License-Identifier: Apache-2.0
"""The demo, step by step, against the real hypervisor and the real Bolt app: over Socket Mode, and over signed HTTP."""

import io
import shutil
import tempfile
from pathlib import Path

import pytest
from rich.console import Console
from tests.conftest import eventually, write_probes

from lepton_ai.sandbox.hypervisor import stop_hypervisor
from lepton_ai.sandbox.people import Person, text_of
from lepton_ai.sandbox.stand import Stand, stand
from lepton_ai.sandbox.tour import Tour

pytestmark = [pytest.mark.libvirt, pytest.mark.slow]


def test_the_whole_tour(workspace_stand: Stand) -> None:
    said = io.StringIO()
    Tour(workspace_stand, Console(file=said, width=200)).play()
    assert "`vcpus` 1 → *3*" in said.getvalue()


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
            assert len([message for message in ada.answers() if "probe once" in text_of(message)]) == 1
            forged = running.sandbox
            forged._delivery._verifier.signing_secret = "not the secret"  # type: ignore[attr-defined]
            ada.say("/lepton node list")
            eventually(lambda: any("http_error 401" in text_of(message) for message in ada.answers()))
    finally:
        stop_hypervisor(folder)
        shutil.rmtree(folder, ignore_errors=True)
