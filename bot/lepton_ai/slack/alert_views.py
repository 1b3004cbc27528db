# SPDX-License-Identifier: Apache-2.0
"""A group of alerts as one message, as it stands. Pure; what an alert says is data, escaped and bounded."""

from __future__ import annotations

import re
import time
from collections.abc import Mapping
from urllib.parse import parse_qs, urlsplit

from lepton_ai.alerts.groups import Episode, Group
from lepton_ai.runs.model import Run
from lepton_ai.slack.checks import checked_message
from lepton_ai.slack.home import START
from lepton_ai.slack.limits import shortened
from lepton_ai.slack.views import FALLBACK_LIMIT, Message, actions, button, context, escape, moment, run_line, section, who

ACKNOWLEDGE, SILENCE = "alert_acknowledge", "alert_silence"
SILENCES = {"1 h": 3600, "8 h": 8 * 3600, "3 d": 3 * 86400}
MOST_SHOWN = 10
LINE, NAME = 600, 60  # characters of one alert, and of a receiver's name
# A comparison at the end of an expression, which leaves a series only while it is true: prometheus.io/docs/prometheus/latest/querying/operators
COMPARISON = re.compile(r"^(?P<expr>.+?)\s*(?:[<>]=?|[!=]=)\s*(?:bool\s+)?(?P<limit>-?(?:\d+(?:\.\d*)?|\.\d+)(?:e[-+]?\d+)?)\s*$", re.IGNORECASE | re.DOTALL)
SET_OPERATOR = re.compile(r"\b(?:and|or|unless)\b", re.IGNORECASE)


def alert_message(group: Group, runs: Mapping[str, Run], *, label: str = "", silenceable: bool = True) -> Message:
    """Return a group's message. `runs` are those that it caused; `silenceable`: there is an Alertmanager to ask."""
    message = Message()
    firing = group.firing
    name = escape(next(iter(group.episodes.values())).alert.name) if group.episodes else "alerts"
    acting = any(not runs[episode.run].state.final for episode in group.episodes.values() if episode.run in runs)
    icon, state = (
        (":white_check_mark:", "resolved") if not firing
        else (":gear:", "firing, and something is done about it") if acting
        else (":eyes:", "firing, and somebody sees to it") if group.acknowledged
        else (":fire:", "firing")
    )  # fmt: skip
    receiver = shortened(group.receiver, NAME)
    about = escape(" ".join(f"{key}={value}" for key, value in sorted(group.labels.items()) if key != "alertname"))
    message.text = shortened(f"{name} {about}: {state}", FALLBACK_LIMIT)
    message.blocks.append(section(f"{icon} *{name}* {shortened(about, LINE)} · {state}"))
    lines = [(shortened(_line(episode), LINE), _line(episode)) for episode in sorted(group.episodes.values(), key=lambda each: (each.ends, -each.starts))]
    if lines:
        message.lines(lines, "")  # the whole of it is at Alertmanager
    if group.truncated:
        message.blocks.append(context(f":warning: {group.truncated} more alerts of this group were left out"))
    caused = list(dict.fromkeys(episode.run for episode in group.episodes.values() if episode.run in runs))
    if caused:
        more = f"\n… and {len(caused) - MOST_SHOWN} more" if len(caused) > MOST_SHOWN else ""
        message.blocks.append(section("\n".join(run_line(runs[run]) for run in caused[:MOST_SHOWN]) + more))
    if firing:
        elements = [] if group.acknowledged else [button("Acknowledge", ACKNOWLEDGE, group.key, "primary")]
        if silenceable:
            elements += [button(f"Silence {said}", f"{SILENCE}_{seconds}", group.key) for said, seconds in SILENCES.items()]
        message.blocks.append(actions([*elements, button("Run…", START, group.key)]))
    words = [f"*{escape(label)}*"] if label else []
    words += [f"since {moment(group.opened)}", f"receiver {escape(receiver)}"]
    words += [f"seen to by {who(group.acknowledged)}"] if group.acknowledged else []
    if group.silence is not None and firing and group.silence.until > time.time():
        words.append(f"silenced until {moment(group.silence.until)} by {who(group.silence.by)}")
    message.blocks.append(context(" · ".join(words)))
    checked_message(message.text, message.blocks)
    return message


def _line(episode: Episode) -> str:
    """Return one alert: what it says, since when, and what came of it."""
    alert = episode.alert
    summary = alert.annotations.get("summary") or " ".join(f"{name}={value}" for name, value in sorted(alert.labels.items()) if name != "alertname")
    severity = f" [{escape(alert.labels['severity'])}]" if alert.labels.get("severity") else ""
    over = f" · over {moment(episode.ends)}" if episode.ends else ""
    description = alert.annotations.get("description", "")
    came = f" · _{escape(episode.result)}_" if episode.result else ""
    return f"• {escape(summary)}{severity} · since {moment(episode.starts)}{over}{came}" + (f"\n   {escape(description)}" if description else "")


def metric_of(generator: str) -> tuple[str, float | None]:
    """Return (expression, limit) of what an alert is about, from Prometheus' own link to it; ("", None) where it does not say.

    The comparison at its end is left out where it is one with a number, so that what it was before can be seen too.
    """
    expr = parse_qs(urlsplit(generator).query).get("g0.expr", [""])[0].strip()
    found = COMPARISON.match(expr)
    if found is None or SET_OPERATOR.search(expr):
        return expr, None
    return found["expr"], float(found["limit"])
