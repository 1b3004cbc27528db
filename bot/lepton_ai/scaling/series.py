# SPDX-License-Identifier: Apache-2.0
"""Load of the past, from Prometheus or a CSV file, as one value a tick. What is not there is None."""

from __future__ import annotations

import csv
import datetime
import math
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import httpx

from lepton_ai.errors import LeptonError
from lepton_ai.scaling.outlook import TICK_SECONDS

MOST_POINTS = 10000  # of one answer; Prometheus gives no more than 11,000 a series
ASK_SECONDS = 30.0
NOW_SECONDS = 5.0  # for a question that a decision waits for
WIDEST_GAP = 4  # times the usual distance of two rows, from which on a row is missing


def from_csv(path: Path) -> list[float | None]:
    """Read a CSV of time (seconds, or ISO 8601) and load, with one line of headings; between its rows load is taken to change evenly."""
    rows: list[tuple[float, float]] = []
    try:
        with path.open(newline="", encoding="utf-8") as file:
            for number, row in enumerate(csv.reader(file), 1):
                if number > 1 and row:
                    rows.append(_row(path, number, row))
    except (OSError, UnicodeDecodeError) as error:
        raise LeptonError(f"{path}: {error}") from error
    if len(rows) < 2:
        raise LeptonError(f"{path} has fewer than two rows of time and load")
    if any(late <= early for (early, _), (late, _) in pairwise(rows)):
        raise LeptonError(f"{path}: its times must go up from row to row")
    usual = sorted(late - early for (early, _), (late, _) in pairwise(rows))[len(rows) // 2 - 1]
    loads: list[float | None] = []
    at = 0
    for tick in range(int((rows[-1][0] - rows[0][0]) / TICK_SECONDS)):
        now = rows[0][0] + tick * TICK_SECONDS
        while rows[at + 1][0] <= now:
            at += 1
        (early, low), (late, high) = rows[at], rows[at + 1]
        gone = late - early > WIDEST_GAP * usual and now - early > usual
        loads.append(None if gone else low + (high - low) * (now - early) / (late - early))
    return loads


def _row(path: Path, number: int, row: list[str]) -> tuple[float, float]:
    try:
        moment, load = row[0].strip(), float(row[1])
        when = float(moment) if moment.replace(".", "", 1).isdigit() else datetime.datetime.fromisoformat(moment).replace(tzinfo=datetime.UTC).timestamp()
    except (IndexError, ValueError) as error:
        raise LeptonError(f"{path}, row {number}: expected a time and a load such as 2026-11-27T08:00:00,12.5") from error
    if not math.isfinite(load) or load < 0:
        raise LeptonError(f"{path}, row {number}: {row[1]} is no load")
    return when, load


def from_prometheus(url: str, promql: str, begin: float, end: float) -> list[float | None]:
    """Ask Prometheus for a range, and add up its series. Raises LeptonError with Prometheus' own words."""
    ticks = int((end - begin) / TICK_SECONDS)
    found: list[float | None] = [None] * ticks
    with httpx.Client(base_url=url, timeout=ASK_SECONDS) as client:
        for first in range(0, ticks, MOST_POINTS):
            last = min(ticks, first + MOST_POINTS) - 1
            span = {"start": begin + first * TICK_SECONDS, "end": begin + last * TICK_SECONDS, "step": TICK_SECONDS}
            for series in _answer(client, url, "query_range", {"query": promql, **span}):
                for when, text in series["values"]:
                    value, tick = float(text), round((when - begin) / TICK_SECONDS)
                    if math.isfinite(value) and 0 <= tick < ticks:
                        found[tick] = (found[tick] or 0.0) + value
    if all(value is None for value in found):
        raise LeptonError(f"Prometheus has nothing for {promql} in that time", hint="try it in Prometheus' own page; the end may lie before its data begins")
    return found


def lines_from_prometheus(url: str, promql: str, begin: float, end: float, points: int) -> list[tuple[dict[str, str], list[float], list[float]]]:
    """Return a range's series as they are: (labels, times, values)."""
    with httpx.Client(base_url=url, timeout=NOW_SECONDS) as client:
        span = {"start": begin, "end": end, "step": max(1.0, (end - begin) / points)}
        found = _answer(client, url, "query_range", {"query": promql, **span})
    return [(series["metric"], [float(when) for when, _ in series["values"]], [float(text) for _, text in series["values"]]) for series in found]


class Reading(NamedTuple):
    """What a question's series are now, and how old the oldest of them is, in seconds; or why there is nothing."""

    values: list[float]
    age: float = 0.0
    trouble: str = ""


def now_from_prometheus(url: str, promql: str) -> Reading:
    """Ask Prometheus for what is now.

    How old samples are is only known of plain series: functions over a time, such as rate(), have no value where there was none in that time.
    """
    try:
        with httpx.Client(base_url=url, timeout=NOW_SECONDS) as client:
            found, times = (_answer(client, url, "query", {"query": query}) for query in (promql, f"timestamp({promql})"))
        values = [float(series["value"][1]) for series in found]
        age = max((float(series["value"][0]) - float(series["value"][1]) for series in times), default=0.0)
    except LeptonError as error:
        return Reading([], trouble=str(error))
    except (KeyError, TypeError, ValueError):
        return Reading([], trouble=f"the answer to {promql} is no number")
    return Reading(values, age, "" if values else f"Prometheus has no sample for {promql}")


def _answer(client: httpx.Client, url: str, what: str, query: dict[str, str | float]) -> list[dict[str, Any]]:
    try:
        answered = client.post(f"/api/v1/{what}", data=query)
        told = answered.json()
    except httpx.HTTPError as error:
        raise LeptonError(f"Prometheus at {url} does not answer: {error or type(error).__name__}") from error
    except ValueError as error:
        raise LeptonError(f"what answers at {url} is not Prometheus") from error
    if told.get("status") != "success":
        raise LeptonError(f"Prometheus refuses {query['query']}: {told.get('error', answered.status_code)}")
    result: list[dict[str, Any]] = told["data"]["result"]
    return result
