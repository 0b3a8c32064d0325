"""A policy judged against its reference on labelled rows: python examples/evaluate_policy.py POLICY REFERENCE ROWS

POLICY and REFERENCE are Hugging Face folders or run folders, ROWS is JSONL of prompt, completion, label.
"""

import sys

from rdro_jax.evaluate import evaluate


def main(policy: str, reference: str, rows: str) -> dict:
    """The held-out figures; docs/evaluation.md says what each is."""
    figures = evaluate(policy, reference=reference, data=rows, max_length=512)
    for name in ("loss", "rewards/auc", "ratio/over_bound"):
        low, high = figures["intervals"].get(name, (None, None))
        print(f"{name}: {figures[name]}, 95 % interval [{low}, {high}]")
    return figures


if __name__ == "__main__":
    main(*sys.argv[1:])
