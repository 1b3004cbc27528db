# SPDX-License-Identifier: Apache-2.0
"""What Prometheus is told of Lepton itself. The rules and dashboards of the role `monitoring` are about these names."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from lepton_ai.runs.model import Run
from lepton_ai.runs.progress import Progress
from lepton_ai.scaling.decision import Decision


class Metrics:
    """All of it, in one registry."""

    def __init__(self) -> None:
        self.registry = registry = CollectorRegistry()
        self._ended = Counter("lepton_runs", "Runs that have ended", ["operation", "state", "check"], registry=registry)
        self._took = Histogram("lepton_run_duration_seconds", "From start to end of a run", ["operation"], registry=registry)
        self._decisions = Counter("lepton_scaling_decisions", "Decisions on services", ["service", "outcome"], registry=registry)
        self._decided = Gauge("lepton_scaling_last_decision_timestamp_seconds", "When was decided last", ["service"], registry=registry)
        self._replicas = Gauge("lepton_scaling_replicas", "How many replicas were wanted at the last decision", ["service"], registry=registry)
        self._blind = Gauge("lepton_scaling_blind", "Whether a signal was missing at the last decision", ["service"], registry=registry)
        self._alerts = Counter("lepton_alerts", "Alerts received, by what came of them", ["result"], registry=registry)
        self.alerts_waiting = Gauge("lepton_alerts_waiting", "Notifications that are taken and not worked off", registry=registry)
        self.alerts_heard = Gauge("lepton_alerts_last_watchdog_timestamp_seconds", "When the alert was heard that always fires", registry=registry)

    def run_changed(self, run: Run, _progress: Progress) -> None:
        """Count a run that has ended: a listener of runs."""
        if run.state.final:
            self._ended.labels(run.operation, run.state.value, str(run.check).lower()).inc()
            self._took.labels(run.operation).observe((run.finished or run.created) - (run.started or run.created))

    def decided(self, decision: Decision) -> None:
        """Tell of a decision."""
        self._decisions.labels(decision.service, decision.outcome).inc()
        self._decided.labels(decision.service).set(decision.when)
        self._replicas.labels(decision.service).set(decision.final if decision.outcome in ("grow", "cut") else decision.asked)
        self._blind.labels(decision.service).set(any("missing" in shown for shown in decision.inputs.values()))

    def scaled_no_more(self, service: str) -> None:
        """Forget a service without a policy in force, so that nobody misses its decisions."""
        for gauge in (self._decided, self._replicas, self._blind):
            gauge.remove(service)  # nothing, where there is none

    def alert(self, result: str, count: int = 1) -> None:
        """Count alerts."""
        self._alerts.labels(result).inc(count)
