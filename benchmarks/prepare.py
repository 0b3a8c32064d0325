"""Rows a second and peak memory of `rdro prepare`, tokens a second of the loader; TRL's KTO preprocessing beside them.

.parity/bin/python benchmarks/prepare.py --rows 100000 --tokenizer ~/.cache/rdro_jax/tokenizers/qwen2_5

The rows are stretches of the documentation of Python's standard library, so that words are as frequent and as rare as
where people write (some 340,000 words, 37,000 different ones), of lognormal length (mean 300 tokens with the template,
sigma 0.7). TRL does what `KTOTrainer` does before its first step, with its default of one process; ours uses all cores.
`rows_per_cpu_s` compares them where other work shares the machine.
"""

import argparse
import ast
import json
import re
import resource
import subprocess
import sys
import sysconfig
import tempfile
import time
from pathlib import Path

import numpy as np

from rdro_jax.data import DataConfig, Examples, make_loader, prepare

WORDS_A_ROW = 177
"""On average: with the template, 300 tokens of Qwen 2.5."""


def read_words() -> list[str]:
    """Words of the standard library's documentation as they stand there, blanks included, paragraphs shuffled."""
    from pydoc_data.topics import topics

    texts = list(topics.values())
    for file in sorted(Path(sysconfig.get_paths()["stdlib"]).rglob("*.py")):
        if not {"site-packages", "test", "tests"} & {*file.parts}:
            texts += docstrings(file)
    paragraphs = [part for text in texts for part in re.split(r"\n\s*\n", text) if part.strip()]
    shuffled = np.random.default_rng(0).permutation(np.array(paragraphs, object))
    return re.findall(r"\S+\s*", "\n\n".join(shuffled))


def docstrings(file: Path) -> list[str]:
    """Docstrings of a module."""
    try:
        tree = ast.parse(file.read_bytes())
    except (SyntaxError, ValueError):
        return []
    documented = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    return [ast.get_docstring(node) or "" for node in ast.walk(tree) if isinstance(node, documented)]


def write_rows(path: Path, count: int) -> None:
    """Unpaired conversational rows, desirable at a rate of 0.39, a third of each the prompt."""
    random, words = np.random.default_rng(0), read_words()
    with path.open("w") as file:
        for number in range(count):
            length = max(6, int(random.lognormal(np.log(WORDS_A_ROW) - 0.7**2 / 2, 0.7)))
            begin = int(random.integers(len(words) - length))
            text, cut = words[begin : begin + length], length // 3
            row = {
                "prompt": [{"role": "user", "content": "".join(text[:cut]).strip()}],
                "completion": [{"role": "assistant", "content": f"{number}: " + "".join(text[cut:]).strip()}],
                "label": bool(random.random() < 0.39),
            }
            file.write(json.dumps(row) + "\n")


def measure_ours(rows: str, tokenizer: str) -> dict[str, float]:
    """Seconds, rates, and the peak memory of the process that reads and of the largest that tokenises."""
    with tempfile.TemporaryDirectory() as folder:
        start, start_cpu = time.monotonic(), cpu_seconds()
        examples = prepare(rows, tokenizer, DataConfig(train=rows, max_length=2048), folder)
        seconds, spent = time.monotonic() - start, cpu_seconds() - start_cpu
        peak = {who: resource.getrusage(flag).ru_maxrss / 1024 for who, flag in PROCESSES.items()}
        loaded = loader_rate(examples)
    report = examples.report
    assert report.packing is not None
    return {
        "seconds": seconds,
        "rows_per_s": report.rows / seconds,
        "rows_per_cpu_s": report.rows / spent,
        "loader_tokens_per_cpu_s": loaded,
        "tokens_per_s": report.tokens / seconds,
        "mean_tokens": report.tokens / report.kept,
        "utilisation": report.packing.utilisation,
        "padded_utilisation": report.packing.padded_utilisation,
        **{f"peak_mib_{who}": mib for who, mib in peak.items()},
    }


def loader_rate(examples: Examples) -> float:
    """Tokens of batches that one core packs in a second."""
    loader = make_loader(examples, global_batch_size=32, max_length=2048, slots=16)
    start = time.process_time()
    tokens = sum(int((loader[step][0].segment_ids > 0).sum()) for step in range(loader.num_batches))
    return tokens / (time.process_time() - start)


def cpu_seconds() -> float:
    """Processor time of this process and of those it has waited for."""
    return sum(sum(resource.getrusage(who)[:2]) for who in PROCESSES.values())


PROCESSES = {"reader": resource.RUSAGE_SELF, "largest_worker": resource.RUSAGE_CHILDREN}


def measure_theirs(rows: str, tokenizer: str) -> dict[str, float]:
    """Seconds and rate of TRL's `KTOTrainer._prepare_dataset`, the model being next to nothing."""
    import datasets
    from transformers import AutoTokenizer, Qwen2Config, Qwen2ForCausalLM
    from trl import KTOConfig, KTOTrainer

    datasets.disable_caching()
    spent: list[tuple[float, float]] = []
    inner = KTOTrainer._prepare_dataset

    def timed(*args, **kwargs):
        start, start_cpu = time.monotonic(), cpu_seconds()
        made = inner(*args, **kwargs)
        spent.append((time.monotonic() - start, cpu_seconds() - start_cpu))
        return made

    KTOTrainer._prepare_dataset = timed
    with tempfile.TemporaryDirectory() as folder:
        sizes = {"hidden_size": 8, "intermediate_size": 8, "num_attention_heads": 1, "num_key_value_heads": 1}
        words = AutoTokenizer.from_pretrained(tokenizer)
        shape = Qwen2Config(vocab_size=len(words), num_hidden_layers=1, tie_word_embeddings=True, **sizes)
        Qwen2ForCausalLM(shape).save_pretrained(folder)
        words.save_pretrained(folder)
        model = Qwen2ForCausalLM.from_pretrained(folder)
        config = KTOConfig(output_dir=folder, use_cpu=True, report_to=[], max_length=2048)
        table = datasets.Dataset.from_list([json.loads(line) for line in Path(rows).read_text().splitlines()])
        KTOTrainer(model=model, args=config, train_dataset=table, processing_class=words)
    seconds, processor = map(sum, zip(*spent, strict=True))
    return {"seconds": seconds, "rows_per_s": len(table) / seconds, "rows_per_cpu_s": len(table) / processor}


def main() -> None:
    """Print both measurements as JSON, each taken in a process of its own."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--tokenizer", required=True)
    parser.add_argument("--only", choices=["ours", "theirs"], help=argparse.SUPPRESS)
    parser.add_argument("--file", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    tokenizer = str(Path(arguments.tokenizer).expanduser())
    if arguments.only:
        measure = {"ours": measure_ours, "theirs": measure_theirs}[arguments.only]
        print(json.dumps(measure(arguments.file, tokenizer)))
        return
    with tempfile.TemporaryDirectory() as folder:
        rows = Path(folder) / "rows.jsonl"
        write_rows(rows, arguments.rows)
        found = {}
        for which in ("ours", "theirs"):
            command = [sys.executable, __file__, "--only", which, "--file", str(rows), "--tokenizer", tokenizer]
            out = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout
            found[which] = json.loads(out.splitlines()[-1])
    for rate in ("rows_per_s", "rows_per_cpu_s"):
        found[f"ratio_{rate}"] = found["ours"][rate] / found["theirs"][rate]
    print(json.dumps({"rows": arguments.rows, **found}, indent=2))


if __name__ == "__main__":
    main()
