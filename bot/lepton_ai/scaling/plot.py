# SPDX-License-Identifier: Apache-2.0
"""A back-test at a glance: what was needed, and what each rule would have had."""

from __future__ import annotations

from pathlib import Path
from typing import BinaryIO

import numpy as np
from matplotlib.figure import Figure

from lepton_ai.scaling.backtest import needed
from lepton_ai.scaling.outlook import TICK_SECONDS
from lepton_ai.scaling.trial import Trial

MOST_POINTS = 3000  # a picture shows no more


SHOWN = 3  # replays


def draw(into: Path | BinaryIO, trial: Trial) -> None:
    """Write a PNG or SVG: replicas over days, the policy's own bold, and in red where it had too few."""
    loads, capacity, max_utilisation, replays = trial.loads, trial.signal.capacity, trial.policy.max_utilisation, trial.replays[:SHOWN]
    every = max(1, len(loads) // MOST_POINTS)
    days = np.arange(len(loads))[::every] * TICK_SECONDS / 86400
    figure = Figure(figsize=(11, 4.5))
    panel = figure.subplots()
    panel.fill_between(days, needed(loads, capacity, max_utilisation)[::every], color="0.85", step="post", label="needed")
    for number, replay in enumerate(replays):
        panel.step(days, replay.ready[::every], where="post", linewidth=1.0 if number else 2.0, alpha=0.7 if number else 1.0, label=replay.name)
    short = loads > max_utilisation * capacity * replays[0].ready
    panel.plot(np.flatnonzero(short) * TICK_SECONDS / 86400, replays[0].ready[short], ".", color="red", markersize=5, label=f"{replays[0].name}: too few")
    panel.set_title(f"{trial.policy.service}, lead {trial.lead_seconds:.0f} s")
    panel.set_xlabel("days")
    panel.set_ylabel("replicas that serve")
    panel.set_ylim(bottom=0)
    panel.legend(loc="upper left", fontsize=8)
    figure.tight_layout()
    figure.savefig(into, dpi=110)
