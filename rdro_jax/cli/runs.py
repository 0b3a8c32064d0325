"""The commands over runs and models: `rdro train`, `eval`, `export`, `import-gguf`, `study`, `quickstart`."""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from rdro_jax.cli.parser import add_command, add_config, positive, share
from rdro_jax.errors import ConfigError, StorageError


def add_train(commands: Any) -> None:
    """Add `rdro train`."""
    parser = add_command(
        commands,
        "train",
        _train,
        "train the run a config describes, or go on with it if it was stopped",
        "rdro train configs/rdro.yaml model.path=models/base data.train=train.jsonl output_dir=runs/first",
        "\nThe run folder is output_dir; the same command again resumes from its last checkpoint.",
    )
    add_config(parser)
    parser.add_argument("--json", action="store_true", help="metrics as JSON lines on stdout: json among report_to")
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--print-config", action="store_true", help="print the resolved config as YAML and exit")
    what.add_argument(
        "--smoke", action="store_true", help="three steps in small instead: a tiny random model, made-up rows, no files"
    )


def _train(arguments: argparse.Namespace) -> None:
    from rdro_jax.config import load_config

    config = load_config(arguments.config, arguments.overrides)
    if arguments.json:
        config = config.model_copy(update={"report_to": (*config.report_to, "json")})
    if arguments.print_config:
        print(config.to_yaml(), end="")
        return
    if arguments.smoke:
        from rdro_jax.smoke import smoke

        smoke(config)
        return
    from rdro_jax.parallel import initialize

    initialize()
    from rdro_jax.cli.doctor import ask_first

    ask_first(config)
    from rdro_jax.train import train

    train(config)


def add_eval(commands: Any) -> None:
    """Add `rdro eval`."""
    parser = add_command(
        commands,
        "eval",
        _eval,
        "measure a policy against its reference on labelled rows",
        "rdro eval runs/first --data held_out.jsonl",
        "\nOf a run, or a checkpoint of one, loss, alpha, precision, columns and reference are as trained; of any other"
        "\nmodel it is RDRO in float32. The loss and its floor, AUC, calibration, divergences, means by class,"
        "\nalpha_hat, with 95 % bootstrap intervals by prompt: a table on a terminal, elsewhere JSON with histogram and"
        "\nreliability curve. docs/evaluation.md says what each figure is.",
    )
    parser.add_argument("model", metavar="MODEL_OR_RUN", help="Hugging Face folder, RUN, or RUN/checkpoint-N")
    parser.add_argument("--reference", metavar="DIR", help="Hugging Face folder of the reference (default: the run's)")
    parser.add_argument("--data", metavar="FILE", help="JSONL rows of prompt, completion, label (default: the run's)")
    parser.add_argument("--max-length", metavar="N", type=positive, help="tokens per row (default: the run's, or 1024)")
    parser.add_argument("--step", metavar="N", type=int, help="checkpoint of the run (default: its end, or the newest)")
    parser.add_argument(
        "--samples",
        metavar="FILE",
        type=Path,
        help="write 50 rows by token; as RUN/samples.jsonl `rdro report` shows them",
    )
    parser.add_argument(
        "--alpha", metavar="A", type=share, help="share of desirable rows (default: the run's, or FILE's)"
    )
    parser.add_argument(
        "--completions", metavar="N", type=positive, default=0, help="KL both ways, on N completions per prompt by each"
    )
    parser.add_argument("--max-new-tokens", metavar="N", type=positive, default=256, help="of these (default 256)")


def _eval(arguments: argparse.Namespace) -> None:
    from rdro_jax.parallel import initialize, is_first

    initialize()
    from rdro_jax.evaluate import evaluate

    if arguments.samples is not None and None in (arguments.reference, arguments.data):
        raise ConfigError("--samples: wanted with --reference and --data")
    names = ("reference", "data", "max_length", "alpha", "step", "completions", "max_new_tokens")
    metrics = evaluate(arguments.model, **{name: getattr(arguments, name) for name in names})
    if is_first():
        _print_figures(metrics)
    if arguments.samples is not None:
        from rdro_jax.evaluate.outputs import write_rows
        from rdro_jax.evaluate.samples import token_rows

        of = {"reference": arguments.reference, "data": arguments.data, "max_length": arguments.max_length or 1024}
        write_rows(arguments.samples, token_rows(arguments.model, **of))


def _print_figures(metrics: dict[str, Any]) -> None:
    """A table for a person, JSON for a program."""
    if not sys.stdout.isatty():
        print(json.dumps(metrics, indent=2))
        return
    from rich.console import Console
    from rich.table import Table

    table, intervals = Table("figure", "value", "95 % interval"), metrics["intervals"]
    spell = lambda value: "-" if value is None else f"{value:.4g}"  # noqa: E731
    for name, value in sorted(metrics.items()):
        if value is None or isinstance(value, float):  # no picture
            low, high = map(spell, intervals.get(name, (None, None)))
            table.add_row(name, spell(value), f"{low} to {high}" if name in intervals else "")
    Console().print(table)


def add_export(commands: Any) -> None:
    """Add `rdro export`."""
    parser = add_command(
        commands,
        "export",
        _export,
        "write the policy of a run as a Hugging Face folder",
        "rdro export runs/first models/first-aligned",
        "\nTakes the last checkpoint unless --step names another.",
    )
    parser.add_argument("run_dir", metavar="RUN", type=Path, help="the run's output_dir")
    parser.add_argument("out", metavar="OUT", type=Path, help="folder to write; must not exist")
    parser.add_argument("--step", metavar="N", type=int, help="optimizer step of the checkpoint to take")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), help="type of the weights (default: the run's)")
    parser.add_argument("--adapter", action="store_true", help="adapters alone, in the form of PEFT (model.lora runs)")


def _export(arguments: argparse.Namespace) -> None:
    from rdro_jax.parallel import from_first, initialize, is_first

    initialize()
    from rdro_jax.export import export

    if from_first(arguments.out.exists):
        raise StorageError(f"{arguments.out}: already exists; name a new folder or remove this one")
    export(arguments.run_dir, arguments.out, step=arguments.step, dtype=arguments.dtype, adapter=arguments.adapter)
    if is_first():
        print(arguments.out)


def add_import_gguf(commands: Any) -> None:
    """Add `rdro import-gguf`."""
    parser = add_command(
        commands,
        "import-gguf",
        _import_gguf,
        "turn a GGUF file into a Hugging Face folder",
        "rdro import-gguf smollm2.gguf models/smollm2",
        "\nNeeds the package `gguf`: pip install 'rdro_jax[gguf]'. Quantised weights are dequantised, not restored.",
    )
    parser.add_argument("file", metavar="FILE", type=Path, help="GGUF file of a Llama or Qwen model")
    parser.add_argument("out", metavar="OUT", type=Path, help="folder to write")


def _import_gguf(arguments: argparse.Namespace) -> None:
    from rdro_jax.models.gguf import import_gguf

    print(import_gguf(arguments.file, arguments.out))


def add_study(commands: Any) -> None:
    """Add `rdro study`."""
    parser = add_command(
        commands,
        "study",
        _study,
        "measure losses where the truth is known, each figure beside the wanted one",
        "rdro study consistency --losses rdro,ddro,sft,dpo,kto",
        "\nNAME: consistency, sft_gap, stability, cyclic, alpha, batch, tree, numerics, alpha_hat, prompt_alpha,"
        "\nbatch_mean, or all of them in a few minutes. Each prints a table and writes NAME.json and NAME.png."
        "\nExit code 1: a figure was missed.",
    )
    parser.add_argument("name", metavar="NAME", help="the study, or all")
    parser.add_argument("--losses", metavar="A,B", type=_names, default=(), help="those to compare in consistency")
    parser.add_argument("--seeds", metavar="N", type=positive, default=5, help="repetitions (default %(default)s)")
    parser.add_argument("--out", metavar="DIR", type=Path, default=Path("runs/studies"), help="default: %(default)s")
    parser.add_argument("--fast", action="store_true", help="leave out what takes long; the figures stay the same")


def _names(text: str) -> tuple[str, ...]:
    return tuple(name.strip() for name in text.split(",") if name.strip())


def _study(arguments: argparse.Namespace) -> None:
    from rdro_jax.study import Options, run

    run(arguments.name, arguments.out, Options(arguments.seeds, arguments.fast, arguments.losses))


def add_quickstart(commands: Any) -> None:
    """Add `rdro quickstart`."""
    parser = add_command(
        commands,
        "quickstart",
        _quickstart,
        "align a small pretrained model on rated movie reviews, start to finish",
        "rdro quickstart --out runs/quickstart",
        "\nDownloads about 100 MB once. Prints held-out figures and completions before and after.",
    )
    parser.add_argument("--out", metavar="DIR", type=Path, default=Path("runs/quickstart"), help="default: %(default)s")


def _quickstart(arguments: argparse.Namespace) -> None:
    from rdro_jax.quickstart import run

    run(arguments.out)
