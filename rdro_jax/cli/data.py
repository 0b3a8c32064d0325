"""The commands that look at data: `rdro prepare` and `rdro preview`."""

import argparse
import os
from pathlib import Path
from typing import Any

from rdro_jax.cli.parser import add_command, add_config, positive


def add_prepare(commands: Any) -> None:
    """Add `rdro prepare`."""
    parser = add_command(
        commands,
        "prepare",
        _prepare,
        "tokenise the data of a config ahead of its run, on all CPU cores",
        "rdro prepare configs/rdro.yaml model.path=models/base data.train=train.jsonl output_dir=runs/first",
        "\nNeeds no accelerator, and of model.path only the tokenizer. The run finds it ready. Run twice it does"
        "\nnothing; stopped it goes on. OUTPUT_DIR/data_report.json says what became of every row. With --reference"
        "\nthe reference of the config scores the examples too, on the devices and mesh of the run.",
    )
    add_config(parser)
    parser.add_argument("--reference", action="store_true", help="fill reference.store too; needs the model")


def _prepare(arguments: argparse.Namespace) -> None:
    from rdro_jax.config import check_data, check_inputs, load_config, pin_models

    config = load_config(arguments.config, arguments.overrides)
    if arguments.reference:
        from rdro_jax.parallel import initialize

        initialize()
        config = pin_models(config)
        check_inputs(config)
    else:
        check_data(config)
        os.environ.setdefault("JAX_PLATFORMS", "cpu")  # leave the accelerators to those who train
    from rdro_jax.train.compiling import keep_programs
    from rdro_jax.train.dataset import fill_reference_store
    from rdro_jax.train.policy import make_run_policy
    from rdro_jax.train.run import check_vocabulary, make_folder, read_data

    folder = make_folder(config)
    parts = read_data(config, folder)
    for name, examples in zip(("train", "eval"), parts, strict=True):
        if examples is not None:
            print(f"{name}: {examples.report.summary()}")
    print(f"report: {folder / 'data_report.json'}")
    if arguments.reference:
        check_vocabulary(config, *parts)
        keep_programs(config.compilation_cache)
        print(f"reference: {fill_reference_store(config, make_run_policy(config), *parts)}")


def add_preview(commands: Any) -> None:
    """Add `rdro preview`."""
    parser = add_command(
        commands,
        "preview",
        _preview,
        "show rows as the model will see them, trained tokens in colour",
        "rdro preview configs/rdro.yaml model.path=models/base data.train=train.jsonl --rows 3",
        "\nTrained tokens stand in [[brackets]] where there is no terminal. Rows that cannot be used are shown with the"
        "\nreason.",
    )
    add_config(parser)
    parser.add_argument("--rows", metavar="N", type=positive, default=5, help="rows of each source (default 5)")
    parser.add_argument("--html", metavar="FILE", type=Path, help="write a page instead")


def _preview(arguments: argparse.Namespace) -> None:
    from rdro_jax.config import check_data, load_config

    config = load_config(arguments.config, arguments.overrides)
    check_data(config)
    from rdro_jax.data import load_tokenizer
    from rdro_jax.data.preview import preview_rows, print_rows, write_page

    rows = preview_rows(
        config.data,
        load_tokenizer(config.model.path),
        count=arguments.rows,
        require_label=config.loss.needs_labels,
        layout=config.loss.layout,
    )
    if arguments.html is None:
        print_rows(rows)
    else:
        write_page(rows, arguments.html)
        print(arguments.html)
