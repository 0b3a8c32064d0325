"""The loader against what a person would say the files mean; every refusal is one line with place and key."""

import inspect
import json
import math
import re
from dataclasses import FrozenInstanceError, dataclass, fields, is_dataclass
from pathlib import Path
from typing import get_args

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import BaseModel, ConfigDict, ValidationError

from rdro_jax.config import Config, load_config
from rdro_jax.config.explain import explain
from rdro_jax.errors import ConfigError
from rdro_jax.losses import RDRO, SFT, Loss

MINIMAL = """\
output_dir: runs/x
model: {path: base}
data: {train: rows.jsonl}
loss: {name: rdro}
"""


@pytest.fixture
def load(tmp_path, monkeypatch):
    """Writes the text as c.yaml and loads it from there."""
    monkeypatch.chdir(tmp_path)

    def write_and_load(text: str, *overrides: str) -> Config:
        Path("c.yaml").write_text(text, encoding="utf-8")
        return load_config("c.yaml", overrides)

    return write_and_load


@pytest.fixture
def refusal(load):
    """The one line with which a text is refused."""

    def message(text: str, *overrides: str) -> str:
        with pytest.raises(ConfigError) as caught:
            load(text, *overrides)
        assert "\n" not in str(caught.value)
        return str(caught.value)

    return message


def test_defaults_are_the_documented_ones(load):
    config = load(MINIMAL)
    assert (config.seed, config.num_train_epochs, config.max_steps) == (42, 1, None)
    assert (config.global_batch_size, config.num_microbatches) == (8, 1)
    assert (config.logging_steps, config.eval_steps) == (1, None)
    assert config.model.dtype == config.model.compute_dtype == "float32"
    assert config.reference.path is None
    assert config.reference.store is None
    assert config.loss == RDRO()


def test_numbers_are_read_as_people_write_them(load):
    config = load(MINIMAL + "optimizer: {learning_rate: 5e-7, weight_decay: 1}\n", "loss.alpha=3e-1")
    assert config.optimizer.learning_rate == 0.0000005
    assert config.optimizer.weight_decay == 1.0
    assert config.loss.alpha == 0.3


def test_a_bare_on_is_a_key_and_no_truth_value(load):
    assert load(MINIMAL.replace("{name: rdro}", "{name: sft, on: desirable}")).loss == SFT(on="desirable")


def test_later_layers_win(load, tmp_path):
    (tmp_path / "base").mkdir()
    (tmp_path / "base" / "deep.yaml").write_text(
        "seed: 1\nmax_steps: 1\nlogging_steps: 1\noptimizer: {adam_beta1: 0.5}"
    )
    (tmp_path / "base" / "a.yaml").write_text("defaults: [deep.yaml]\nseed: 2\nmax_steps: 2\nlogging_steps: 2")
    (tmp_path / "base" / "b.yaml").write_text("seed: 3\nmax_steps: 3\noptimizer: {adam_beta2: 0.6}")
    config = load("defaults: [base/a.yaml, base/b.yaml]\n" + MINIMAL + "seed: 4\n", "eval_steps=null")
    assert (config.seed, config.max_steps, config.logging_steps) == (4, 3, 2)
    assert (config.optimizer.adam_beta1, config.optimizer.adam_beta2) == (0.5, 0.6)
    assert load("defaults: [base/a.yaml]\n" + MINIMAL + "seed: 4\n", "seed=5", "seed=6").seed == 6


def test_another_name_starts_the_section_afresh(load):
    text = MINIMAL.replace("{name: rdro}", "{name: rdro, alpha: 0.3}")
    assert load(text, "loss.name=sft").loss == SFT()
    assert load(text, "loss.generator=kl").loss == RDRO(alpha=0.3, generator="kl")


def test_references_to_other_keys_are_replaced(load):
    config = load(MINIMAL + "reference: {store: '${output_dir}/store'}\n", "output_dir=runs/y")
    assert config.reference.store == "runs/y/store"


def test_config_is_frozen_and_hashable(load):
    config = load(MINIMAL, "data.chat_template_kwargs={enable_thinking: true}")
    same = load(MINIMAL, "data.chat_template_kwargs.enable_thinking=true")
    assert hash(config) == hash(same)
    assert config == same
    assert config != load(MINIMAL)
    with pytest.raises(ValidationError):
        config.seed = 3
    with pytest.raises(FrozenInstanceError):
        config.model.path = "other"


TEXT = st.text(st.characters(codec="utf-8", exclude_characters="$\0"), min_size=1, max_size=30)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(text=TEXT, number=st.floats(allow_nan=False, allow_infinity=False), truth=st.booleans())
def test_loading_a_dump_gives_an_equal_config(tmp_path, text, number, truth):
    loss = {"name": "rdro", "alpha": 0.3} if truth else {"name": "sft", "on": "desirable"}
    data = {"train": text, "chat_template_kwargs": {"b": text, "a": truth, "c": number}}
    values = {"output_dir": text + "x", "model": {"path": text}, "data": data, "loss": loss}
    config = Config.model_validate_json(json.dumps(values))
    dump = tmp_path / "dump.yaml"
    dump.write_text(config.to_yaml(), encoding="utf-8", newline="")
    assert load_config(dump) == config


@pytest.mark.parametrize(
    "value", ["5e-7", "1_000", "true", "on", "null", "~", "2026-01-01", "0x1f", "1:30", "- a", "#"]
)
def test_text_that_looks_like_something_else_survives_a_dump(load, tmp_path, value):
    config = load(MINIMAL.replace("runs/x", f"'{value}'"))
    assert config.output_dir == value
    assert load(config.to_yaml()) == config


UNKNOWN = {
    "sede: 1": "c.yaml:5: sede: unknown key; did you mean 'seed'?",
    "optimizer: {learning_rte: 1}": "c.yaml:5: optimizer.learning_rte: unknown key; did you mean 'learning_rate'?",
    "optimizer:\n  learning_rte: 1": "c.yaml:6: optimizer.learning_rte: unknown key; did you mean 'learning_rate'?",
    "learning_rate: 1": "c.yaml:5: learning_rate: unknown key; did you mean 'optimizer.learning_rate'?",
    "reference: {pth: 1}": "c.yaml:5: reference.pth: unknown key; did you mean 'path'?",
    "mesh: {zzzz: 1}": "c.yaml:5: mesh.zzzz: unknown key; mesh knows data, fsdp, tensor, context, dcn_data, dcn_fsdp",
}


@pytest.mark.parametrize("extra", UNKNOWN)
def test_unknown_keys_name_the_nearest(refusal, extra):
    assert refusal(MINIMAL + extra + "\n") == UNKNOWN[extra]


def test_the_nearest_key_is_of_the_selected_kind(refusal):
    place = "command line: loss.alphb: unknown key; "
    assert refusal(MINIMAL, "loss.alphb=1") == place + "did you mean 'alpha'?"
    assert refusal(MINIMAL, "loss.name=sft", "loss.alphb=1") == place + "loss knows name, on"


def test_a_misspelt_required_key_is_unknown_rather_than_missing(refusal):
    assert refusal(MINIMAL.replace("output_dir", "output_dri")) == (
        "c.yaml:1: output_dri: unknown key; did you mean 'output_dir'? (and 1 more)"
    )


LOSS_NAMES = " or ".join(f"'{loss.name}'" for loss in get_args(Loss))
WRONG = {
    "max_steps=a": 'command line: max_steps: got "a"; wanted a valid integer',
    "max_steps=0": "command line: max_steps: got 0; wanted a number greater than 0",
    "num_train_epochs=true": "command line: num_train_epochs: got true; wanted a valid integer",
    "num_train_epochs=1.0": "command line: num_train_epochs: got 1.0; wanted a valid integer",
    "seed=-1": "command line: seed: got -1; wanted a number greater than or equal to 0",
    "output_dir=": "command line: output_dir: got null; wanted a valid string",
    "optimizer.learning_rate=.nan": "command line: optimizer.learning_rate: got NaN; wanted a finite number",
    "optimizer.learning_rate='1'": 'command line: optimizer.learning_rate: got "1"; wanted a valid number',
    "model.dtype=float16": "command line: model.dtype: got \"float16\"; wanted 'float32' or 'bfloat16'",
    "loss.alpha=dat": "command line: loss.alpha: got \"dat\"; wanted a valid number or 'data', 'prompt' or 'estimate'",
    "loss.name=rdr": f"command line: loss.name: got 'rdr'; wanted {LOSS_NAMES}",
    "loss=3": "command line: loss: got 3; wanted a section of keys",
    "model=base": 'command line: model: got "base"; wanted a section of keys',
    "loss.alpha": "command line: got 'loss.alpha'; wanted key=value, for example loss.alpha=0.3",
    "=3": "command line: got '=3'; wanted key=value, for example loss.alpha=0.3",
    "seed=*a": "command line: seed: not YAML: found undefined alias 'a'",
    "output_dir=''": 'command line: output_dir: got ""; wanted text to have at least 1 character',
    "num_microbatches=3": "c.yaml: global_batch_size: got 8, wanted a multiple of num_microbatches=3",
    "eval_steps=5": (
        "command line: eval_steps: got 5, but data.eval names no held-out file; set it or drop eval_steps"
    ),
    "output_dir=base": (
        "command line: output_dir: got the folder of model.path, 'base', which the run would overwrite; "
        "name another folder"
    ),
}


@pytest.mark.parametrize("override", WRONG)
def test_wrong_values_say_what_was_got_and_wanted(refusal, override):
    assert refusal(MINIMAL, override) == WRONG[override]


def test_an_override_cannot_smuggle_in_a_second_key(refusal):
    assert "output_dir" in refusal(MINIMAL, "output_dir=a\nseed: 3")
    assert "output_dir" in refusal(MINIMAL, "output_dir={a: 1}, seed: 3")


def test_missing_keys_are_named(refusal):
    assert refusal(MINIMAL.replace("model: {path: base}\n", "")) == "c.yaml: model: missing; it has no default"
    assert refusal(MINIMAL.replace("path: base", "")) == "c.yaml:2: model.path: missing; it has no default"
    assert refusal(MINIMAL.replace("name: rdro", "")) == f"c.yaml:4: loss.name: missing; wanted {LOSS_NAMES}"


def test_inherited_keys_name_their_own_file(refusal, tmp_path):
    (tmp_path / "base.yaml").write_text("# first\nmesh: {fdsp: 2}\n")
    assert refusal("defaults: [base.yaml]\n" + MINIMAL) == "base.yaml:2: mesh.fdsp: unknown key; did you mean 'fsdp'?"


def test_defaults_that_go_in_a_circle(refusal, tmp_path):
    (tmp_path / "other.yaml").write_text("defaults: [c.yaml]\n")
    assert refusal("defaults: [other.yaml]\n" + MINIMAL) == (
        "c.yaml: defaults go in a circle: c.yaml -> other.yaml -> c.yaml"
    )


def test_defaults_must_be_a_list(refusal):
    assert refusal("defaults: other.yaml\n") == "c.yaml:1: defaults: got 'other.yaml'; wanted a list of files"


def test_missing_file_suggests_its_neighbour(tmp_path):
    (tmp_path / "rdro.yaml").write_text(MINIMAL)
    with pytest.raises(ConfigError, match=r"rdor\.yaml: cannot be read: .*; did you mean '.*rdro\.yaml'\?"):
        load_config(tmp_path / "rdor.yaml")
    with pytest.raises(ConfigError, match="cannot be read: Is a directory"):
        load_config(tmp_path)


def dotted_leaves(section, prefix=""):
    """Every key of a config, sections left out."""
    for field in fields(section) if is_dataclass(section) else section.__class__.model_fields.values():
        name = (
            field.name
            if is_dataclass(section)
            else next(key for key, value in section.__class__.model_fields.items() if value is field)
        )
        value = getattr(section, name)
        if is_dataclass(value):
            yield from dotted_leaves(value, f"{prefix}{name}.")
        else:
            yield prefix + name


@pytest.mark.parametrize("spoil", [lambda k: k[:-1] + "x", lambda k: k[1:], lambda k: k + "z", lambda k: "q" + k[1:]])
def test_one_wrong_letter_in_any_key_finds_the_right_one(load, refusal, spoil):
    """At least 95 % of the leaves; place and dotted key for all of them."""
    keys = list(dotted_leaves(load(MINIMAL)))
    assert len(keys) > 30
    hits = 0
    for key in keys:
        section, _, name = key.rpartition(".")
        wrong = f"{section}.{spoil(name)}".strip(".")
        message = refusal(MINIMAL, f"{wrong}=1")
        assert message.startswith(f"command line: {wrong}: unknown key; ")
        hits += f"did you mean '{name}'?" in message
    assert hits >= math.ceil(0.95 * len(keys))


@dataclass(frozen=True)
class Half:
    """A section that checks itself, as sections of packages without pydantic do."""

    share: float = 0.5

    def __post_init__(self):
        if not 0 < self.share < 1:
            raise ValueError(f"share: got {self.share}, wanted a number between 0 and 1")


class Outer(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)
    half: Half = Half()


def test_a_sections_own_check_becomes_one_line():
    with pytest.raises(ValidationError) as caught:
        Outer.model_validate_json('{"half": {"share": 2}}')
    line = explain(caught.value, Outer, {"half": {"share": 2}}, {"half": "c.yaml:3"}, "c.yaml")
    assert line == "c.yaml:3: half: share: got 2.0, wanted a number between 0 and 1"


def test_every_field_has_a_docstring_of_its_own(load):
    """A config field is followed by one line that says what it means."""
    for section in (Config, *(type(value) for value in dict(load(MINIMAL)).values() if is_dataclass(value))):
        body = "".join(inspect.getsource(base) for base in section.__mro__ if is_dataclass(base) or base is Config)
        names = list(section.model_fields) if section is Config else [field.name for field in fields(section)]
        for name in names:
            assert re.search(rf"^    {name}: .*\n    \"\"\"", body, re.M) or name in EXEMPT, (
                f"{section.__name__}.{name}"
            )


EXEMPT = {"name", "adam_beta1", "adam_beta2", "adam_epsilon", "dtype"}
"""Fields whose name is their meaning."""


def test_an_estimate_wants_held_out_rows_of_either_kind_and_another_reference(load, refusal):
    trained = ("loss.alpha=estimate", "reference.path=before")
    assert "name them in data.eval, or set data.heldout_fraction" in refusal(MINIMAL, *trained)
    for rows in ("data.eval=held_out.jsonl", "data.heldout_fraction=0.1"):
        assert load(MINIMAL, *trained, rows).loss.alpha == "estimate"
        assert "name a trained one in model.path" in refusal(MINIMAL, "loss.alpha=estimate", rows)
