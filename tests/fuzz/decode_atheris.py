"""Feeds the decoder with what a coverage-guided fuzzer finds: `make fuzz` (needs `atheris`).

An input is lines `name: value` of headers with the subject first, an empty line, and the body; the
seeds in `corpus/` are one message of each row of the subject table (written by `--seed`).
"""

from __future__ import annotations

import sys
from importlib import import_module
from pathlib import Path

from optiinfra.events.envelope import Event, decode, encode
from optiinfra.schemas.errors import Rejected
from optiinfra.schemas.ids import derived_id

CORPUS = Path(__file__).parent / "corpus"


def write_seeds() -> None:
    """One file a row of the table."""
    payloads = import_module("tests.payloads")
    factories = import_module("tests.factories")
    CORPUS.mkdir(exist_ok=True)
    for prefix, fact in payloads.PAYLOADS.items():
        said = Event(
            id=derived_id(prefix), source="seed", tenant="acme", time=factories.AT, fact=fact
        )
        subject, headers, body = encode(said)
        lines = [f"subject: {subject}", *(f"{name}: {text}" for name, text in headers.items())]
        (CORPUS / prefix).write_bytes("\n".join(lines).encode() + b"\n\n" + body)


def one_input(data: bytes) -> None:
    """Refused, or an event that says the same when it is said again; anything else is a find."""
    head, _, body = data.partition(b"\n\n")
    pairs = (line.partition(": ") for line in head.decode("utf-8", "replace").split("\n"))
    headers = {name: text for name, _, text in pairs}
    try:
        event = decode(headers.pop("subject", ""), headers, body)
    except Rejected:
        return
    again = decode(*encode(event))
    if again != event or again.body != event.body:
        raise AssertionError(f"{event!r} became {again!r}")


def main(arguments: list[str]) -> None:
    if arguments[1:] == ["--seed"]:
        write_seeds()
        return
    try:
        atheris = import_module("atheris")
    except ImportError:
        sys.exit("atheris is not installed: pip install atheris (Linux and macOS only)")
    atheris.instrument_all()
    atheris.Setup(arguments, one_input)
    atheris.Fuzz()


if __name__ == "__main__":
    main(sys.argv)
