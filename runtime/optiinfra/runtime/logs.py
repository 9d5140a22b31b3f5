"""Logs: for people on a terminal, one JSON object a line elsewhere; always to stderr."""

from __future__ import annotations

import logging
import sys

import structlog

from optiinfra.runtime.settings import Settings


def configure_logs(settings: Settings) -> None:
    """Sets up structlog and the standard library alike."""
    as_json = settings.log_json if settings.log_json is not None else not sys.stderr.isatty()
    level = logging.getLevelNamesMapping().get(settings.log_level.upper(), logging.INFO)
    shared: list[structlog.typing.Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    last: structlog.typing.Processor = (
        structlog.processors.JSONRenderer() if as_json else structlog.dev.ConsoleRenderer()
    )
    plain: list[structlog.typing.Processor] = list(shared)
    if as_json:
        plain.append(structlog.processors.format_exc_info)
    structlog.configure(
        processors=[*plain, last],
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=structlog.WriteLoggerFactory(sys.stderr),
        cache_logger_on_first_use=True,
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(processor=last, foreign_pre_chain=plain)
    )
    logging.basicConfig(level=max(level, logging.WARNING), handlers=[handler], force=True)
