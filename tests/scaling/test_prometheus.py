# SPDX-License-Identifier: Apache-2.0
"""History from a real Prometheus, which promtool filled."""

from __future__ import annotations

import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from tests.conftest import ROOT, eventually
from tests.scaling.test_backtest import days
from tests.scaling.test_policy import POLICY

from lepton_ai.errors import LeptonError
from lepton_ai.scaling.series import from_prometheus, now_from_prometheus

pytestmark = pytest.mark.prometheus
DAYS = 2.2
STEP = 15


@pytest.fixture(scope="module")
def prometheus(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, float]]:
    """A Prometheus with two days of two series, a gap in one of them, and when they end."""
    folder = tmp_path_factory.mktemp("prometheus")
    loads = days(DAYS)
    end = int(time.time()) // STEP * STEP - 60
    begin = end - len(loads) * STEP
    lines = ["# TYPE requests gauge"]
    for replica in ("one", "two"):
        lines += [f'requests{{replica="{replica}"}} {load / 2:.4f} {begin + tick * STEP}' for tick, load in enumerate(loads) if not 5000 < tick < 5200]
    lines += ["# TYPE odd gauge", f"odd NaN {end - 60}", f"odd +Inf {end - 45}", f"odd 3 {end - 30}", "# EOF", ""]
    (folder / "history.txt").write_text("\n".join(lines))
    subprocess.run(["promtool", "tsdb", "create-blocks-from", "openmetrics", folder / "history.txt", folder / "data"], check=True, capture_output=True)
    (folder / "prometheus.yml").write_text("global: {scrape_interval: 15s}\n")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{probe.getsockname()[1]}"
    program = ["prometheus", f"--config.file={folder}/prometheus.yml", f"--storage.tsdb.path={folder}/data", f"--web.listen-address={address}"]
    with (folder / "log").open("w") as log:
        process = subprocess.Popen([*program, "--storage.tsdb.retention.time=90d"], stdout=log, stderr=log)

    def ready() -> bool:
        try:
            return httpx.get(f"http://{address}/-/ready").status_code == httpx.codes.OK
        except httpx.HTTPError:
            return False

    eventually(ready)
    yield f"http://{address}", float(end)
    process.terminate()
    process.wait(30)


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
    value, trouble = now_from_prometheus(url, "requests", 300)
    assert value == pytest.approx(days(DAYS)[-1], abs=0.01)
    assert trouble == ""
    old, why = now_from_prometheus(url, "requests", 15)
    assert old is None
    assert why.startswith("the newest sample of requests is ")
    assert now_from_prometheus(url, "nothing", 15) == (None, "Prometheus has no sample for nothing")
    assert "Prometheus refuses" in now_from_prometheus(url, '"a"', 60)[1]
    assert now_from_prometheus(url, "sum(requests)", 60)[0] == value
    assert "Prometheus refuses" in now_from_prometheus(url, "requests[", 60)[1]
    assert "does not answer" in now_from_prometheus("http://127.0.0.1:1", "up", 60)[1]


def test_a_prometheus_that_is_none() -> None:
    with pytest.raises(LeptonError, match="does not answer"):
        from_prometheus("http://127.0.0.1:1", "up", 0, 3600)


def test_the_command_line_replays_it(prometheus: tuple[str, float], tmp_path: Path) -> None:
    url, _end = prometheus
    (tmp_path / "chat.yml").write_text(POLICY.replace("max_replicas: 8", "max_replicas: 20").replace('sum(rate(haproxy_backend_http_requests_total{proxy="chat"}[1m]))', "requests"))  # fmt: skip  # noqa: E501
    command = [ROOT / ".venv/bin/lepton", "scaling", "backtest", tmp_path / "chat.yml", "2d", "--prometheus", url]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr
    assert "chat: 2.0 days" in done.stdout
    assert "this policy" in done.stdout
