# SPDX-License-Identifier: Apache-2.0
"""How far load may grow: learned from its own past, without a parameter that would have to be tuned for it. Pure.

Two questions are asked at each tick. How high may load be before a replica that is asked for now can serve (`lead`)? And how many replicas
will that ask for within the time in which a cut would be regretted (`hold`)? Each answer is a level, times a growth that is expected from
the last minutes' trend and from what came at this time yesterday and a week ago (least squares), times a margin: the quantile of what was
missed before, in proportion to how restless load is now. So a calm night has little headroom, a restless noon more, and both are told in
one number each.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]
TICK_SECONDS = 15.0
DAY = int(86400 / TICK_SECONDS)
LEVEL, SHORT, MIDDLE, LONG = 4, 20, 80, 240  # ticks: one minute, five, twenty and an hour
WINDOW = 7 * DAY  # of the past that is learned from
RELEARN = LONG * 4  # ticks from one time to the next
QUIET = 60  # ticks for which a load of 0 is not believed where there was none before
EVERY = 4  # of the ticks is learned from: neighbours are alike
CALM = 0.2  # quantile below which restlessness is not taken for less
HOLD_RISK = 0.04  # in which share of cuts more is wanted again within the time of hold
BEYOND = 1.15  # times the highest of what was learned from: nothing is expected above that
UNKNOWN = 1.4  # times the level, for as long as there is not a day to learn from
LARGEST = 50.0  # as a logarithm: what is above is above all bounds
TINY = 1e-9
NOTHING = 0.001  # of the highest: growth from less is not growth, but a beginning


class Outlook(NamedTuple):
    """Load now (its mean of a minute), how high it may get within the lead, and what may be wanted within the time of hold.

    `quiet_seconds` is for how long there was none at all.
    """

    level: float
    peak: float
    keep: float
    days: float  # that were learned from
    quiet_seconds: float = 0.0


@dataclass(frozen=True)
class _Model:
    """Growth as a logarithm: `trend` on the features, and `margin` times what `restless` makes of them, at least `calm`."""

    trend: Array
    restless: Array
    calm: float
    margin: float

    def growth(self, features: Array, unrest: Array) -> Array:
        found: Array = features @ self.trend + np.maximum(unrest @ self.restless, self.calm) * self.margin
        return np.maximum(0.0, found)


class LoadHistory:
    """The load of a service, tick by tick, and what was learned from it. The same code live and in a back-test."""

    def __init__(self, *, lead_seconds: float, hold_seconds: float, risk: float) -> None:
        self._lead = int(lead_seconds / TICK_SECONDS) + 1
        self._hold = max(1, int(hold_seconds / TICK_SECONDS))
        self._risk = risk
        self._loads: list[float] = []
        self._sums: list[float] = [0.0]
        self._noise: list[float] = [0.0]
        self._waves: list[float] = [0.0]
        self._peak: _Model | None = None
        self._keep: _Model | None = None
        self._season: tuple[int, Array, Array] = (0, np.zeros((0, 2)), np.zeros(0))  # from this tick on: growth, and its size
        self._learned = 0
        self._highest = 0.0
        self._zeros = 0  # one after the other, until now
        self._had_zeros = False  # within the quarter of an hour before those
        self._since_zero = 0
        self._gap = 0  # ticks without a sample, until now
        self._floor = TINY  # what is less counts as this much, in what is learned

    def add(self, sample: float | None) -> str:
        """Take one more tick, and return why it says nothing, "" when it does. One that says nothing is the last one again."""
        trouble = "" if sample is not None else "no sample"
        self._gap = 0 if sample is not None else self._gap + 1
        if self._gap > LEVEL:  # what was not seen for so long was no quiet time
            self._zeros = 0
        if sample == 0:
            self._zeros += 1
            if not self._had_zeros and len(self._loads) >= QUIET and self._zeros <= QUIET:
                trouble = "it is 0 at once, and was not in the quarter of an hour before"
        elif sample is not None:
            # A service that hardly anybody calls is at 0 now and then, and then that says something.
            self._had_zeros = self._zeros > 0 or (self._had_zeros and self._since_zero < QUIET)
            self._since_zero = 0 if self._zeros else self._since_zero + 1
            self._zeros = 0
        self._take(self._loads[-1] if trouble and self._loads else sample or 0.0)
        return trouble

    def _take(self, load: float) -> None:
        self._loads.append(load)
        self._highest = max(self._highest, load)
        self._sums.append(self._sums[-1] + load)
        short, middle = self._mean(SHORT), self._mean(MIDDLE)
        self._noise.append(self._noise[-1] + abs(load / short - 1))
        self._waves.append(self._waves[-1] + abs(math.log(max(short, self._floor) / max(middle, self._floor))))
        if len(self._loads) % RELEARN == 0:
            self._learn()

    def outlook(self) -> Outlook:
        """Return what is expected now. At least one tick must have been added."""
        level, quiet = self._mean(LEVEL), self._zeros * TICK_SECONDS
        if self._peak is None or self._keep is None:
            return Outlook(level, level * UNKNOWN, level * UNKNOWN, 0.0, quiet)
        features, unrest = self._now()
        most = BEYOND * self._highest
        peak = min(most, max(level, self._floor) * math.exp(min(LARGEST, float(self._peak.growth(features, unrest)))))
        keep = min(most, peak * math.exp(min(LARGEST, float(self._keep.growth(features, unrest)))))
        return Outlook(level, peak, keep, self._learned / DAY, quiet)

    def _mean(self, ticks: int, sums: list[float] | None = None) -> float:
        sums = self._sums if sums is None else sums
        count = min(ticks, len(sums) - 1)
        return max(TINY, (sums[-1] - sums[-1 - count]) / count)

    def _now(self) -> tuple[Array, Array]:
        """Return the features of this tick, as `_features` has them for all."""
        level, short, middle, long = (math.log(max(self._mean(ticks), self._floor)) for ticks in (LEVEL, SHORT, MIDDLE, LONG))
        begin, growth, size = self._season
        at = len(self._loads) - 1 - begin
        day, week, yesterday = (growth[at, 0], growth[at, 1], size[at]) if 0 <= at < len(size) else (0.0, 0.0, 0.0)
        features = np.array((1.0, level - short, short - middle, middle - long, day, week))
        noise, waves = self._mean(LONG, self._noise), self._mean(LONG, self._waves)
        return features, np.array((0.01, noise, waves, abs(level - short), abs(short - middle), yesterday))

    def _learn(self) -> None:
        """Fit both models to the last week, with the week before it for what came at the same time."""
        loads = np.array(self._loads[-2 * WINDOW :])
        self._floor = max(TINY, NOTHING * float(loads.max()))
        loads = np.maximum(loads, self._floor)
        count = len(loads)
        begin = max(0, count - WINDOW)
        if count - begin - self._lead - self._hold < DAY:
            return
        features, unrest, season = _features(loads, self._lead)
        level = np.log(_trailing(loads, LEVEL))
        end = count - self._lead
        growth = np.log(_coming(loads, self._lead)) - level
        self._peak = _fit(features[begin:end], unrest[begin:end], growth[begin:end], 1 - self._risk)
        wanted = level + self._peak.growth(features, unrest)
        end = count - self._hold
        more = np.log(_coming(np.exp(np.minimum(wanted, LARGEST)), self._hold)) - wanted
        self._keep = _fit(features[begin:end], unrest[begin:end], more[begin:end], 1 - HOLD_RISK)
        # What came a day and a week before each of the ticks until the next time.
        self._season = (len(self._loads), *season)
        self._learned = end - begin
        self._highest = float(loads[begin:].max())


def _features(loads: Array, lead: int) -> tuple[Array, Array, tuple[Array, Array]]:
    """Return for each tick what growth, and restlessness, are learned from; and the same of the ticks to come, of what is periodic in it."""
    count = len(loads)
    short_mean = _trailing(loads, SHORT)
    level, short, middle, long = (np.log(_trailing(loads, ticks)) for ticks in (LEVEL, SHORT, MIDDLE, LONG))
    noise = _trailing(np.abs(loads / short_mean - 1), LONG)
    waves = _trailing(np.abs(short - middle), LONG)
    came = np.log(_coming(short_mean, lead)) - short
    came[max(0, count - lead) :] = 0.0  # which is not known yet
    periodic = np.zeros((count + RELEARN, 2))
    for column, ticks in enumerate((DAY, WINDOW)):
        known = came[: max(0, count + RELEARN - ticks)]
        periodic[ticks : ticks + len(known), column] = known
    size = np.abs(periodic[:, 0])
    features = np.stack((np.ones(count), level - short, short - middle, middle - long, periodic[:count, 0], periodic[:count, 1]), axis=1)
    unrest = np.stack((np.full(count, 0.01), noise, waves, np.abs(level - short), np.abs(short - middle), size[:count]), axis=1)
    return features, unrest, (periodic[count:], size[count:])


def _fit(features: Array, unrest: Array, growth: Array, quantile: float) -> _Model:
    trend = np.linalg.lstsq(features[::EVERY], growth[::EVERY], rcond=None)[0]
    missed = growth - features @ trend
    restless = np.linalg.lstsq(unrest[::EVERY], np.abs(missed[::EVERY]), rcond=None)[0]
    calm = max(TINY, float(np.quantile(np.abs(missed), CALM)))
    margin = float(np.quantile(missed / np.maximum(unrest @ restless, calm), quantile))
    return _Model(trend, restless, calm, margin)


def _trailing(values: Array, ticks: int) -> Array:
    """Return the mean of each value and those before it, of so many as there are."""
    sums = np.concatenate(([0.0], np.cumsum(values)))
    at = np.arange(1, len(values) + 1)
    low = np.maximum(0, at - ticks)
    return np.maximum((sums[at] - sums[low]) / (at - low), TINY)


def _coming(values: Array, ticks: int) -> Array:
    """Return the highest of the `ticks` values after each one, at the end of those that there are."""
    highest = np.concatenate((values[1:], values[-1:]))
    width = 1
    while width < ticks:
        shift = min(width, ticks - width)
        moved = np.concatenate((highest[shift:], np.full(min(shift, len(highest)), highest[-1])))
        highest = np.maximum(highest, moved)
        width += shift
    return highest
