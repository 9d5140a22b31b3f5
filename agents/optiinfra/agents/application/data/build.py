"""Builds the golden set that ships, from HaluEval's question-answering samples.

python -m optiinfra.agents.application.data.build halueval_qa.jsonl.gz golden.jsonl.gz
"""

from __future__ import annotations

import gzip
import hashlib
import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from optiinfra.agents.application.golden import GoldenItem
from optiinfra.agents.application.scoring import similarity

LEAST_CONTEXT_CHARS = 80


def stratum_of(answer: str) -> str:
    """The kind of answer that is asked for: yes_no, number (it has a digit) or name."""
    if answer.strip(" .").casefold() in {"yes", "no"}:
        return "yes_no"
    return "number" if any(char.isdigit() for char in answer) else "name"


def items(source: Path) -> Iterator[GoldenItem]:
    """One item per distinct question whose right answer can be found in its context."""
    seen: set[str] = set()
    with gzip.open(source, "rt", encoding="utf-8") as lines:
        for row in map(json.loads, lines):
            question, context = row["question"].strip(), row["knowledge"].strip()
            answer = row["right_answer"].strip()
            stratum = stratum_of(answer)
            findable = stratum == "yes_no" or similarity(answer, context).value == 1.0
            if question in seen or not findable or len(context) < LEAST_CONTEXT_CHARS:
                continue
            seen.add(question)
            yield GoldenItem(
                id=hashlib.sha256(question.encode()).hexdigest()[:12],
                stratum=stratum,
                prompt=f"Context: {context}\nQuestion: {question}\nAnswer:",
                context=context,
                answer=answer,
            )


def main(arguments: Sequence[str]) -> None:
    """Reads the first path, writes the second; the same input gives the same bytes."""
    source, target = map(Path, arguments)
    text = "".join(f"{item.model_dump_json()}\n" for item in items(source))
    target.write_bytes(gzip.compress(text.encode(), mtime=0))


if __name__ == "__main__":
    main(sys.argv[1:])
