"""Records the noise of our scorer on real, labelled answers, for `bench.gate` to resample.

    python -m bench.score_noise begin_wow_dev.jsonl.gz

reads the development part of BEGIN-WoW (knowledge-grounded replies of several models, each with
people's judgement) and writes `score_noise.json`: the score of each reply, by judgement.
"""

from __future__ import annotations

import gzip
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from optiinfra.agents.application.scoring import groundedness

RECORDED = Path(__file__).with_name("score_noise.json")
SUPPORTED = "Fully attributable"
ABOUT = {
    "source": "BEGIN, part WoW, dev: github.com/google/BEGIN-dataset, commit 6e65f0d5a1ed",
    "licence": "CC-BY-4.0",
    "cite": "N. Dziri, H. Rashkin, T. Linzen, D. Reitter. Evaluating Attribution in Dialogue "
    "Systems: The BEGIN Benchmark. TACL 2022",
}


def record(path: Path) -> dict[str, Any]:
    """The scores of all replies in `path`, to four digits, in the order of the file."""
    with gzip.open(path, "rt", encoding="utf-8") as lines:
        rows = [json.loads(line) for line in lines]
    scores: dict[str, list[float]] = {"supported": [], "unsupported": []}
    scorers = set()
    for row in rows:
        score = groundedness(row["knowledge"], row["response"])
        scorers.add(score.scorer)
        if score.value is not None:
            name = "supported" if row["begin_label"] == SUPPORTED else "unsupported"
            scores[name].append(round(score.value, 4))
    (scorer,) = scorers
    return {**ABOUT, "scorer": scorer, **scores}


def recorded(name: str) -> npt.NDArray[np.float64]:
    """The recorded scores of `supported` or `unsupported` replies."""
    return np.array(json.loads(RECORDED.read_text())[name], dtype=np.float64)


def main() -> int:
    """Write the file beside this module."""
    if len(sys.argv) != 2:
        print("name the file: python -m bench.score_noise begin_wow_dev.jsonl.gz")
        return 2
    RECORDED.write_text(json.dumps(record(Path(sys.argv[1])), indent=None) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
