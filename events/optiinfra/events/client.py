"""The broker's client with a faster reading of headers, which is half of the cost of a message."""

from __future__ import annotations

import re

from nats.aio.client import Client

_NAME = re.compile(r"[!-9;-~]+")
"""Printable ASCII without blanks and without the colon."""


class FastClient(Client):
    """Replaces the client's check of every character of every header's name by one pattern.

    The result is the same (a test compares them); a version of the client that no longer calls
    the method that is replaced here is only slower.
    """

    @staticmethod
    def _parse_header_lines(raw: bytes) -> dict[str, str]:
        found: dict[str, str] = {}
        for line in raw.decode("utf-8", "replace").split("\r\n"):
            name, colon, value = line.partition(":")
            if colon:
                name = name.strip()
                if _NAME.fullmatch(name):
                    found[name] = value.strip()
        return found
