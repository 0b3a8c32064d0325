"""New tokens per second of our generation and of transformers', same model, same prompts, one after the other.

python benchmarks/generation.py models/base --new-tokens 64      # in the environment of `make parity`, which has torch

Prints one JSON line: medians over the repetitions, after one that is not counted and that compiles. Greedy, float32, a
batch of 8, no stop token, so that both generate the same number of tokens.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path

BATCH = 8


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--prompt-tokens", type=int, default=32)
    parser.add_argument("--new-tokens", type=int, default=64)
    parser.add_argument("--repetitions", type=int, default=5)
    options = parser.parse_args()
    prompts = [[100 + row + 7 * place for place in range(options.prompt_tokens)] for row in range(BATCH)]
    runs = {"rdro_jax": ours(options, prompts), "transformers": theirs(options, prompts)}
    times = {name: [] for name in runs}
    outputs = {name: run() for name, run in runs.items()}
    for _ in range(options.repetitions):  # in turns, so that a busy machine is busy for both
        for name, run in runs.items():
            start = time.perf_counter()
            run()
            times[name].append(time.perf_counter() - start)
    rates = {name: round(BATCH * options.new_tokens / statistics.median(spent), 1) for name, spent in times.items()}
    line = {"new_tokens": options.new_tokens, "batch": BATCH, "tokens_per_second": rates}
    print(json.dumps(line | {"same_tokens": outputs["rdro_jax"] == outputs["transformers"]}))


def ours(options: argparse.Namespace, prompts: list[list[int]]) -> Callable[[], list[list[int]]]:
    from rdro_jax.generate import generate
    from rdro_jax.models import load_model

    params, config = load_model(options.model)
    return lambda: generate(params, config, prompts, max_new_tokens=options.new_tokens)


def theirs(options: argparse.Namespace, prompts: list[list[int]]) -> Callable[[], list[list[int]]]:
    import torch
    import transformers

    model = transformers.AutoModelForCausalLM.from_pretrained(options.model, dtype=torch.float32).eval()
    tokens = torch.tensor(prompts)
    settings = {"do_sample": False, "eos_token_id": -1, "pad_token_id": 0, "attention_mask": torch.ones_like(tokens)}

    def run() -> list[list[int]]:
        with torch.inference_mode():
            out = model.generate(tokens, max_new_tokens=options.new_tokens, **settings)
        return out[:, tokens.shape[1] :].tolist()

    return run


if __name__ == "__main__":
    main()
