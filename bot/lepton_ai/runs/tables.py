# SPDX-License-Identifier: Apache-2.0
"""The tables of the one database."""

from __future__ import annotations

import sqlalchemy as sa

metadata = sa.MetaData()
RUNS = sa.Table(
    "lepton_runs",
    metadata,
    sa.Column("id", sa.String, primary_key=True),
    sa.Column("key", sa.String, nullable=False, unique=True),
    sa.Column("operation", sa.String, nullable=False),
    sa.Column("arguments", sa.JSON, nullable=False),
    sa.Column("principal", sa.String, nullable=False),
    sa.Column("check_mode", sa.Boolean, nullable=False),
    sa.Column("state", sa.String, nullable=False, index=True),
    sa.Column("risk", sa.String, nullable=False),
    sa.Column("why", sa.String, nullable=False),
    sa.Column("origin", sa.JSON, nullable=False),
    sa.Column("created", sa.Float, nullable=False, index=True),
    sa.Column("started", sa.Float),
    sa.Column("finished", sa.Float),
    sa.Column("result", sa.JSON, nullable=False),
    sa.Column("error", sa.String, nullable=False),
    sa.Column("command", sa.String, nullable=False),
    sa.Column("message", sa.JSON, nullable=False),
    sa.Column("delivered", sa.Boolean, nullable=False),
    sa.Column("cancel_asked", sa.Boolean, nullable=False, server_default=sa.false()),
    sa.Column("revision", sa.String, nullable=False, server_default=""),
    sa.Column("approved_plan", sa.String, nullable=False, server_default=""),
    sa.Column("hosts", sa.JSON, nullable=False),
    sa.Column("canary", sa.Boolean, nullable=False),
    sa.Column("closed", sa.Boolean, nullable=False, server_default=sa.false()),
)
ATTEMPTS = sa.Table(
    "lepton_attempts",
    metadata,
    sa.Column("token", sa.String, primary_key=True),
    sa.Column("run", sa.String, nullable=False, index=True),
    sa.Column("owner", sa.String, nullable=False, index=True),
    sa.Column("boot_id", sa.String, nullable=False),
    sa.Column("started", sa.Float, nullable=False),
    sa.Column("ended", sa.Float),
    sa.Column("outcome", sa.String, nullable=False),
)
LEASES = sa.Table(
    "lepton_leases",
    metadata,
    sa.Column("lock", sa.String, primary_key=True),
    sa.Column("owner", sa.String, nullable=False, index=True),
    sa.Column("boot_id", sa.String, nullable=False),
    sa.Column("pid", sa.Integer, nullable=False),
    sa.Column("pid_started", sa.BigInteger, nullable=False),
    sa.Column("expires", sa.Float, nullable=False),
)
WAITING = sa.Table(
    "lepton_waiting",
    metadata,
    sa.Column("owner", sa.String, primary_key=True),
    sa.Column("locks", sa.JSON, nullable=False),
    sa.Column("since", sa.Float, nullable=False),
    sa.Column("expires", sa.Float, nullable=False),
)
AUDIT = sa.Table(
    "lepton_audit",
    metadata,
    sa.Column("seq", sa.Integer, primary_key=True, autoincrement=True),
    sa.Column("at", sa.Float, nullable=False),
    sa.Column("run", sa.String, nullable=False, index=True),
    sa.Column("principal", sa.String, nullable=False),
    sa.Column("what", sa.String, nullable=False),
    sa.Column("data", sa.JSON, nullable=False),
    sa.Column("previous", sa.String, nullable=False),
    sa.Column("hash", sa.String, nullable=False),
)
DECISIONS = sa.Table(
    "lepton_decisions",
    metadata,
    sa.Column("plan", sa.String, primary_key=True),
    sa.Column("principal", sa.String, primary_key=True),
    sa.Column("approved", sa.Boolean, nullable=False),
    sa.Column("at", sa.Float, nullable=False),
)
FREEZES = sa.Table(
    "lepton_freezes",
    metadata,
    sa.Column("target", sa.String, primary_key=True),
    sa.Column("until", sa.Float),
    sa.Column("principal", sa.String, nullable=False),
    sa.Column("why", sa.String, nullable=False),
)
SCALING = sa.Table(
    "lepton_scaling",
    metadata,
    sa.Column("service", sa.String, primary_key=True),
    sa.Column("at", sa.Float, primary_key=True),
    sa.Column("outcome", sa.String, nullable=False),
    sa.Column("record", sa.JSON, nullable=False),
)
NOTIFICATIONS = sa.Table(
    "lepton_notifications",
    metadata,
    sa.Column("number", sa.Integer, primary_key=True, autoincrement=True),
    sa.Column("sender", sa.String, nullable=False),
    sa.Column("at", sa.Float, nullable=False),
    sa.Column("body", sa.JSON, nullable=False),
)
ALERT_GROUPS = sa.Table(
    "lepton_alert_groups",
    metadata,
    sa.Column("key", sa.String, primary_key=True),
    sa.Column("document", sa.JSON, nullable=False),
    sa.Column("changed", sa.Float, nullable=False, index=True),
    sa.Column("shown", sa.Boolean, nullable=False, index=True),
    sa.Column("pending", sa.Boolean, nullable=False, index=True),
    sa.Column("firing", sa.Boolean, nullable=False),
    sa.Column("message", sa.JSON, nullable=False),
)
ALERT_ACTIONS = sa.Table(
    "lepton_alert_actions",
    metadata,
    sa.Column("rule", sa.String, primary_key=True),
    sa.Column("digest", sa.String, primary_key=True),
    sa.Column("at", sa.Float, nullable=False),
)
PINS = sa.Table(
    "lepton_pins",
    metadata,
    sa.Column("service", sa.String, primary_key=True),
    sa.Column("replicas", sa.Integer, nullable=False),
    sa.Column("until", sa.Float, nullable=False),
    sa.Column("principal", sa.String, nullable=False),
    sa.Column("why", sa.String, nullable=False),
)
