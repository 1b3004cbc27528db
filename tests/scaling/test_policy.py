# SPDX-License-Identifier: Apache-2.0
"""Policies: what cannot be meant is refused, with its line."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest
from tests.conftest import ROOT

from lepton_ai.errors import LeptonError
from lepton_ai.scaling.policy import read_policy

POLICY = """\
service: chat
min_replicas: 1
max_replicas: 8
signals:
  - name: requests
    promql: sum(rate(haproxy_backend_http_requests_total{proxy="chat"}[1m]))
    capacity: 10
"""


def test_defaults_do() -> None:
    policy = read_policy(POLICY)
    assert (policy.mode, policy.lead_seconds, policy.max_utilisation) == ("shadow", "auto", 0.9)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (("max_replicas: 8", "max_replicas: 0"), "line 3: max_replicas: Input should be greater than or equal to 1"),
        (("min_replicas: 1", "min_replicas: 9"), "line 1: min_replicas 9 is above max_replicas 8"),
        (("capacity: 10", "capacity: -1"), "line 7: signals.0.capacity"),
        (("capacity: 10", "colour: red"), "line 7: signals.0.colour: Extra inputs are not permitted"),
        (("capacity: 10", "kind: queue"), "a queue and a latency only ever add replicas"),
        (("service: chat", "service: chat\nfloors: [{begin: '8:75', end: '20:00', replicas: 2}]"), "line 2: floors.0.begin: '8:75' is not a time of day"),
        (("service: chat", "service: chat\nfloors: [{begin: '08:00', end: '20:00', replicas: 20}]"), "a floor of 20 replicas is above max_replicas 8"),
        (("service: chat", "service: chat\ndead_band: 2\nmax_step_down: 1"), "dead_band 2 leaves out every cut that max_step_down 1 allows"),
        (("service: chat", "service: chat\nevidence: 2"), "evidence of 2 signals cannot be had of 1"),
        (("signals:", "signals: ["), "is not YAML"),
    ],
)
def test_what_contradicts_itself_is_refused_with_its_line(change: tuple[str, str], said: str) -> None:
    with pytest.raises(LeptonError) as error:
        read_policy(POLICY.replace(*change))
    assert said in str(error.value)


def lepton(*words: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([ROOT / ".venv/bin/lepton", "scaling", *map(str, words)], capture_output=True, text=True, check=False, timeout=120)


def test_the_command_line_checks_and_describes(tmp_path: Path) -> None:
    path = tmp_path / "chat.yml"
    path.write_text(POLICY)
    assert "chat has 1 to 8 replicas, by requests" in lepton("check", path).stdout
    path.write_text(POLICY.replace("min_replicas: 1", "min_replicas: many"))
    refused = lepton("check", path)
    assert refused.returncode != 0
    assert f"{path}: line 2: min_replicas" in refused.stderr
    assert "Traceback" not in refused.stderr
    assert json.loads(lepton("schema").stdout)["properties"]["service"]["type"] == "string"
