# SPDX-License-Identifier: Apache-2.0
"""Logs: one line of key=value per event, on stderr. Tracebacks never show local variables, which may be secrets."""

from __future__ import annotations

import logging
import sys

import structlog

from lepton_ai.masking import service_mask


class _MaskingFormatter(logging.Formatter):
    """Writes what libraries log, tracebacks and all, without the service's secrets."""

    def format(self, record: logging.LogRecord) -> str:
        return str(service_mask(super().format(record)))


def configure_logs() -> None:
    """Set this up once; a program that has its own structlog configuration keeps it."""
    if structlog.is_configured():
        return
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_MaskingFormatter("%(levelname)s %(name)s %(message)s"))
    logging.basicConfig(level=logging.WARNING, handlers=[handler])
    structlog.configure(
        processors=[
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso"),
            structlog.processors.format_exc_info,
            lambda _logger, _method, event: service_mask(event),
            structlog.processors.LogfmtRenderer(key_order=["timestamp", "level", "event"]),
        ],
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
    )
