"""Writes the API's OpenAPI document, from which the pages' types are made."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any, cast

from optiinfra.portal_api.app import create_app


def document() -> str:
    """The document as text; the routes are described without any store."""
    app = create_app(cast(Any, None))
    return json.dumps(app.openapi(), indent=1, ensure_ascii=False) + "\n"


def main(arguments: list[str]) -> int:
    """`python -m optiinfra.portal_api.openapi portal/openapi.json`"""
    if len(arguments) != 1:
        sys.stderr.write("usage: python -m optiinfra.portal_api.openapi FILE\n")
        return 2
    Path(arguments[0]).write_text(document(), encoding="utf-8")
    return 0


if __name__ == "__main__":  # pragma: no cover
    sys.exit(main(sys.argv[1:]))
