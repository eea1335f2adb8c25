"""Structured logs: one event per line on standard error, as JSON if asked.

People watch `console.py`'s progress instead, so events are silent below warnings unless they were
asked for. No event names a unit.
"""

import logging
import os
import sys
from functools import lru_cache
from typing import Any, TextIO

# Set to `json` to have events as JSON; `--log-json` sets it for this process and its workers.
VARIABLE = "UNLEARN_LOG"


def ask_for_json() -> None:
    """Have this process, and every worker it starts, write events as JSON."""
    os.environ[VARIABLE] = "json"


def wanted() -> dict[str, str]:
    """Return the environment that makes workers log as this process does."""
    return {VARIABLE: os.environ[VARIABLE]} if VARIABLE in os.environ else {}


def log() -> Any:
    """Return the logger; its form is decided at each call, so that it may be asked for late."""
    return _logger(sys.stderr, os.environ.get(VARIABLE) == "json")


@lru_cache(maxsize=1)
def _logger(stream: TextIO, as_json: bool) -> Any:
    # Kept: the driver asks for it at every answer of every worker.
    import structlog  # a tenth of a second that `--help` need not wait

    return structlog.wrap_logger(
        structlog.PrintLogger(stream),
        processors=[
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.JSONRenderer()
            if as_json
            else structlog.processors.LogfmtRenderer(key_order=["timestamp", "level", "event"]),
        ],
        wrapper_class=structlog.make_filtering_bound_logger(
            logging.INFO if as_json else logging.WARNING
        ),
    )
