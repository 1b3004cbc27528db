# SPDX-License-Identifier: Apache-2.0
"""What people type about scaling: who may hear and do what, and what is wrong with a line."""

from __future__ import annotations

import datetime
import time
from collections.abc import Callable

import pytest
from tests.scaling.test_decision import decided
from tests.scaling.test_policy import POLICY

from lepton_ai.access.matching import Caller
from lepton_ai.access.rules import Rules
from lepton_ai.errors import LeptonError
from lepton_ai.intake import Intake
from lepton_ai.runs.service import Runs
from lepton_ai.settings import Settings
from lepton_ai.slack.words import Told, read

OPERATOR, VIEWER, STRANGER = Caller("slack:T/OP"), Caller("slack:T/VIEW"), Caller("slack:T/NONE")
ACCESS = {
    "roles": {"operator": {"operations": ["service.*"], "limits": {"replicas": {"max": 5}}}, "viewer": {"operations": ["service.show"]}},
    "grants": [{"role": "operator", "principals": [OPERATOR.principal]}, {"role": "viewer", "principals": [VIEWER.principal]}],
}


@pytest.fixture
def say(site: Settings, make_runs: Callable[[], Runs]) -> Callable[..., str]:
    """Return a function by which somebody says a line and hears the answer; two decisions were made of chat."""
    runs = make_runs()
    runs.settings = site.model_copy(update={"access": Rules.model_validate(ACCESS)})
    (site.site / "policies").mkdir()
    (site.site / "policies/chat.yml").write_text(POLICY + "mode: live\n")
    grown = decided(load=35, peak=60)
    for seconds, acted in ((120, True), (60, False)):
        runs.store.keep_decision({**grown.record(), "when": time.time() - seconds, "mode": "live", "acted": acted, "run": ""}, 3600)
    intake = Intake(runs, "os:0@here")

    def said(caller: Caller, line: str) -> str:
        answer = read(intake, caller, line.split(), "/lepton", key=line, origin={"channel": "C1"}, zone=datetime.UTC)
        assert isinstance(answer, Told)
        return answer.text

    return said


def test_whoever_may_see_a_service_hears_why_it_is_as_it_is(say: Callable[..., str]) -> None:
    assert "chat 4 → 7 (+3)." in say(VIEWER, "why chat")
    assert say(VIEWER, "scaling why chat") == say(VIEWER, "why chat")
    assert "(not done)" in say(VIEWER, "why chat")
    assert "nothing was decided of chat until then" in _refusal(say, VIEWER, "why chat at 2020-01-01T00:00")
    assert len(say(VIEWER, "scaling history chat").splitlines()) == 2
    assert "may not service.show service/chat" in _refusal(say, STRANGER, "why chat")


def test_whoever_may_scale_it_may_pin_it_to_as_many(say: Callable[..., str]) -> None:
    assert "*chat is pinned to 3*" in say(OPERATOR, "scaling pin chat 3 2h because of a launch")
    assert "its policy's again" in say(OPERATOR, "scaling unpin chat")
    assert "not pinned" in say(OPERATOR, "scaling unpin chat")
    assert "*chat is pinned to 4*" in say(OPERATOR, "scaling undo chat")
    assert "replicas" in _refusal(say, OPERATOR, "scaling pin chat 6 2h")
    assert "may not service.scale" in _refusal(say, VIEWER, "scaling pin chat 3 2h")


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("scaling", "scaling is asked about a service"),
        ("scaling chat", "scaling is asked about a service"),
        ("scaling dance chat", "scaling is asked about a service"),
        ("scaling pin chat", "say how many replicas, and until when"),
        ("scaling pin chat many 2h", "say how many replicas, and until when"),
        ("scaling pin chat 3 soon", "say how many replicas, and until when"),
        ("scaling pin chat 9 2h", "chat has 1 to 8 replicas by its policy, and 9 are none of these"),
        ("scaling pin other 3 2h", "other has no policy: there are chat"),
        ("scaling backtest chat 7x", "is not a length of time"),
        ("scaling backtest chat 7d", "nobody knows which Prometheus to ask"),
        ("why chat at noon", "noon is no moment"),
    ],
)
def test_what_is_wrong_is_said(say: Callable[..., str], line: str, said: str) -> None:
    assert said in _refusal(say, OPERATOR, line)


def _refusal(say: Callable[..., str], caller: Caller, line: str) -> str:
    with pytest.raises(LeptonError) as caught:
        say(caller, line)
    return str(caught.value)
