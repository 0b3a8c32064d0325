"""Sampled answers become labelled rows: python examples/label_samples.py SAMPLES ROWS MODULE:FUNCTION

SAMPLES is what `rdro generate --prompts FILE --n 4` prints. The function is a judge as `rdro eval judge` takes it:
score(prompt, completion), a number. Desirable are the answers that score above the median of all.
"""

import json
import statistics
import sys
from pathlib import Path

from rdro_jax.evaluate.judges import load_judge


def main(samples: str, rows: str, judge: str) -> float:
    """Write the rows; returns the median score."""
    score = load_judge(judge)
    with open(samples, encoding="utf-8") as lines:
        answers = [json.loads(line) for line in lines]
    scores = [score(answer["prompt"], answer["completion"]) for answer in answers]
    middle = statistics.median(scores)
    labelled = (answer | {"label": mark > middle} for answer, mark in zip(answers, scores, strict=True))
    Path(rows).write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in labelled), encoding="utf-8")
    return middle


if __name__ == "__main__":
    main(*sys.argv[1:])
