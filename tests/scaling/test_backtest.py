# SPDX-License-Identifier: Apache-2.0
"""Replays: a simulation that counts right, the same decisions each time, and no cut on what is missing."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

import numpy as np
import pytest
from tests.conftest import ROOT
from tests.scaling.test_policy import POLICY

from lepton_ai.errors import LeptonError
from lepton_ai.scaling.backtest import bound, by_policy, by_rule, judge, needed, replay
from lepton_ai.scaling.decision import Decision
from lepton_ai.scaling.outlook import DAY, LoadHistory, _features
from lepton_ai.scaling.peers import alert_step, fixed, hpa, keda, kpa, target_tracking
from lepton_ai.scaling.policy import read_policy
from lepton_ai.scaling.series import from_csv

POLICY_READ = read_policy(POLICY)
WIDE = POLICY_READ.model_copy(update={"max_replicas": 1000})


def days(count: float, *, noise: float = 0.03) -> np.ndarray:
    """A load that rises and falls once a day, between 20 and 100, with noise."""
    ticks = np.arange(int(count * DAY))
    wave = 60 - 40 * np.cos(2 * np.pi * ticks / DAY)
    return wave * (1 + noise * np.random.default_rng(2).standard_normal(len(ticks)))


def test_a_replica_is_useful_after_its_lead_and_paid_for_from_the_start() -> None:
    loads = np.array([5.0] * 4 + [15.0] * 12)
    done = replay("x", loads.tolist(), lambda now, *_: 2 if now >= 60 else 1, lead_seconds=60, begin=1)
    assert done.asked.tolist() == [1] * 5 + [2] * 11
    assert done.ready.tolist() == [1] * 8 + [2] * 8
    report = judge(done, loads, 10, 0.9)
    assert report.violations == 4 / 16
    assert report.unmet == pytest.approx(4 * 5 / loads.sum())
    assert report.cost == pytest.approx(27 / (4 + 24))
    assert report.actions_per_day == pytest.approx(1 / (16 * 15 / 86400))


def test_what_is_taken_away_goes_first_where_it_does_not_serve_yet() -> None:
    wanted = iter([3, 3, 2, 2, 2, 2])
    done = replay("x", [1.0] * 6, lambda *_: next(wanted), lead_seconds=30, begin=1)
    assert done.asked.tolist() == [1, 3, 3, 2, 2, 2]
    assert done.ready.tolist() == [1, 1, 3, 2, 2, 2]


def test_an_oracle_pays_for_its_lead() -> None:
    loads = np.array([5.0] * 10 + [15.0] * 10)
    assert needed(loads, 10, 0.9).tolist() == [1] * 10 + [2] * 10
    assert bound(loads, 10, 0.9, 0) == 1
    assert bound(loads, 10, 0.9, 60) == pytest.approx(34 / 30)


def test_what_is_learned_tick_by_tick_is_what_is_learned_from_all_at_once() -> None:
    loads = days(1.6)
    history = LoadHistory(lead_seconds=180, hold_seconds=1800, risk=0.002)
    for load in loads:
        history.add(float(load))
    features, unrest = history._now()
    all_features, all_unrest, _season = _features(loads, 13)
    assert features[:4] == pytest.approx(all_features[-1][:4], rel=1e-6)
    assert unrest[:5] == pytest.approx(all_unrest[-1][:5], rel=1e-3)


def test_the_same_history_gives_the_same_decisions_and_few_changes_of_mind() -> None:
    loads = days(4)
    first, again = [], []
    kept: list[list[Decision]] = [first, again]
    reports = []
    for records in kept:
        done = replay("ours", loads.tolist(), by_policy(WIDE, 10, 180, records), lead_seconds=180, begin=3)
        reports.append(judge(done, loads, 10, 0.9, after_seconds=2 * 86400))
    assert first == again
    assert reports[0].violations < 0.002
    assert reports[0].reversals_per_day < 3
    assert 1 < reports[0].cost < 1.6
    assert {decision.outcome for decision in first} == {"grow", "cut", "hold"}


def test_nothing_is_cut_in_gaps_or_on_zeros_that_come_at_once() -> None:
    loads = days(3)
    rng = np.random.default_rng(3)
    whole: list[float | None] = loads.tolist()
    for tick in rng.choice(len(whole), len(whole) // 5, replace=False):
        whole[tick] = None
    for tick in range(2 * DAY + 3000, 2 * DAY + 3040):  # ten minutes
        whole[tick] = None
    whole[DAY + 2000 : DAY + 2040] = [0.0] * 40
    records: list[Decision] = []
    replay("ours", whole, by_policy(WIDE, 10, 180, records), lead_seconds=180, begin=3)
    gaps = [decision for decision, load in zip(records, whole, strict=True) if load is None]
    assert len(gaps) > DAY // 2
    assert not [decision for decision in gaps if decision.outcome != "hold"]
    assert not [decision for decision in records[DAY + 2000 : DAY + 2040] if decision.outcome == "cut"]
    assert "it is 0 at once" in records[DAY + 2005].reason


def test_zeros_that_are_usual_or_last_are_believed() -> None:
    def told(loads: list[float]) -> list[bool]:
        history = LoadHistory(lead_seconds=60, hold_seconds=1800, risk=0.002)
        return [bool(history.add(load)) for load in loads]

    assert told([1.0] * 100 + [0.0] * 70) == [False] * 100 + [True] * 60 + [False] * 10
    assert not any(told([1.0, 0.0, 0.0, 2.0] * 50))
    assert told([1.0] * 10 + [0.0] * 5) == [False] * 15


@pytest.mark.parametrize("rule", [hpa(0.7), keda(0.7), kpa(0.7), target_tracking(0.7), alert_step()])
def test_peers_follow_load_up_and_down(rule) -> None:
    loads = np.concatenate([np.full(200, 30.0), np.full(400, 90.0), np.full(800, 30.0)])
    done = replay("peer", loads.tolist(), by_rule(rule, 10), lead_seconds=60, begin=5)
    assert done.asked[590] >= 10
    assert done.asked[-1] < done.asked[590]


def test_a_fixed_size_never_changes() -> None:
    done = replay("fixed", [1.0, 100.0, 1.0], by_rule(fixed(7), 10), lead_seconds=60, begin=7)
    assert not done.actions


def write_csv(path: Path, count: float) -> Path:
    rows = [f"{tick * 15},{load:.3f}" for tick, load in enumerate(days(count)) if tick % 4 == 0 and not DAY < tick < DAY + 200]
    path.write_text("time,load\n" + "\n".join(rows) + "\n")
    return path


def test_a_csv_is_read_with_its_gaps(tmp_path: Path) -> None:
    loads = from_csv(write_csv(tmp_path / "load.csv", 1.2))
    assert loads[100] == pytest.approx(days(1.2)[100], rel=0.2)
    assert sum(load is None for load in loads) == pytest.approx(200, abs=8)


@pytest.mark.parametrize(
    ("text", "said"),
    [("time,load\n0,1\n", "fewer than two rows"), ("time,load\n0,1\nx,2\n", "row 3"), ("time,load\n0,1\n15,nan\n", "nan is no load"),
     ("time,load\n0,1\n0,2\n", "must go up")],
)  # fmt: skip
def test_a_csv_that_is_none_is_refused(tmp_path: Path, text: str, said: str) -> None:
    (tmp_path / "load.csv").write_text(text)
    with pytest.raises(LeptonError, match=said):
        from_csv(tmp_path / "load.csv")


def test_the_guide_s_commands_and_a_picture(tmp_path: Path) -> None:
    guide = (ROOT / "docs/scaling.md").read_text()
    policy, commands = (re.search(rf"```{kind}\n(.*?)```", guide, re.DOTALL) for kind in ("yaml", "sh"))
    assert policy is not None
    assert commands is not None
    (tmp_path / "policies").mkdir()
    (tmp_path / "policies/chat.yml").write_text(policy[1])
    write_csv(tmp_path / "load.csv", 3)
    told = ""
    for line in [*commands[1].splitlines(), "lepton scaling backtest policies/chat.yml --csv load.csv --against policies/chat.yml --plot chat.png"]:
        environment = {**os.environ, "PATH": f"{ROOT / '.venv/bin'}:{os.environ['PATH']}"}
        done = subprocess.run(line.split(), cwd=tmp_path, env=environment, capture_output=True, text=True, check=False, timeout=200)
        assert done.returncode == 0, f"{line}\n{done.stdout}{done.stderr}"
        told = done.stdout
    assert "this policy" in told
    assert "chat (against)" in told
    assert "HPA 70%" in told
    assert "replica hours a day" in told
    assert (tmp_path / "chat.png").read_bytes().startswith(b"\x89PNG")
