# SPDX-License-Identifier: Apache-2.0
"""History from a real Prometheus, which promtool filled."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.prometheus import running_prometheus
from tests.scaling.test_backtest import days

from lepton_ai.errors import LeptonError
from lepton_ai.scaling.series import from_prometheus, lines_from_prometheus, now_from_prometheus

pytestmark = pytest.mark.prometheus
DAYS = 2.2
STEP = 15


def write_history(folder: Path) -> int:
    """Write two days of two series, with a gap in one of them, as Prometheus' own blocks in `folder`/data, and return when they end."""
    loads = days(DAYS)
    end = int(time.time()) // STEP * STEP - 60
    begin = end - len(loads) * STEP
    lines = ["# TYPE requests gauge"]
    for replica in ("one", "two"):
        lines += [f'requests{{replica="{replica}"}} {load / 2:.4f} {begin + tick * STEP}' for tick, load in enumerate(loads) if not 5000 < tick < 5200]
    lines += ["# TYPE odd gauge", f"odd NaN {end - 60}", f"odd +Inf {end - 45}", f"odd 3 {end - 30}", "# EOF", ""]
    (folder / "history.txt").write_text("\n".join(lines))
    subprocess.run(["promtool", "tsdb", "create-blocks-from", "openmetrics", folder / "history.txt", folder / "data"], check=True, capture_output=True)
    return end


@pytest.fixture(scope="module")
def prometheus(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, float]]:
    """A Prometheus with a history, and when that ends."""
    folder = tmp_path_factory.mktemp("prometheus")
    end = write_history(folder)
    with running_prometheus(folder, {}, "--storage.tsdb.retention.time=90d") as running:
        yield running.url, float(end)


def test_a_range_is_all_series_together_and_a_gap_is_one(prometheus: tuple[str, float]) -> None:
    url, end = prometheus
    loads = days(DAYS)
    found = from_prometheus(url, "requests", end - len(loads) * STEP, end)
    assert len(found) == len(loads) > 10000  # in more than one answer
    assert found[100] == pytest.approx(loads[100], abs=0.01)
    # Prometheus goes on for five minutes with what it had last.
    assert sum(load is None for load in found) == pytest.approx(199 - 20, abs=2)


def test_what_is_no_number_is_missing(prometheus: tuple[str, float]) -> None:
    url, end = prometheus
    found = from_prometheus(url, "odd", end - 60, end)
    assert found == [None, None, 3, 3]


@pytest.mark.parametrize(("promql", "said"), [("requests[", "Prometheus refuses"), ("absent_one", "Prometheus has nothing for absent_one"), ('"a"', "refuses")])
def test_questions_without_a_good_answer(prometheus: tuple[str, float], promql: str, said: str) -> None:
    url, end = prometheus
    with pytest.raises(LeptonError, match=said):
        from_prometheus(url, promql, end - 3600, end)


def test_what_it_says_now(prometheus: tuple[str, float]) -> None:
    url, _end = prometheus
    both = now_from_prometheus(url, "requests")
    assert len(both.values) == 2
    assert sum(both.values) == pytest.approx(days(DAYS)[-1], abs=0.01)
    assert 50 < both.age < 300
    assert both.trouble == ""
    assert now_from_prometheus(url, "nothing") == ([], 0.0, "Prometheus has no sample for nothing")
    assert "Prometheus refuses" in now_from_prometheus(url, '"a"').trouble
    assert now_from_prometheus(url, "sum(requests)").values == [pytest.approx(sum(both.values))]
    assert "Prometheus refuses" in now_from_prometheus(url, "requests[").trouble
    assert "does not answer" in now_from_prometheus("http://127.0.0.1:1", "up").trouble


def test_what_an_alert_is_about_is_shown_as_it_is(prometheus: tuple[str, float]) -> None:
    url, end = prometheus
    lines = lines_from_prometheus(url, "requests", end - 3600, end, 60)
    assert sorted(labels["replica"] for labels, _times, _values in lines) == ["one", "two"]
    assert all(len(times) == len(values) == 61 for _labels, times, values in lines)
