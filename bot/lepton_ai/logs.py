# SPDX-License-Identifier: Apache-2.0
"""Logs: one line of key=value per event, on stderr. Tracebacks never show local variables, which may be secrets."""

from __future__ import annotations

import logging
import sys

import structlog


def configure_logs() -> None:
    """Set this up once; a program that has its own structlog configuration keeps it."""
    if structlog.is_configured():
        return
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(name)s %(message)s")
    structlog.configure(
        processors=[
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso"),
            structlog.processors.format_exc_info,
            structlog.processors.LogfmtRenderer(key_order=["timestamp", "level", "event"]),
        ],
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
    )
