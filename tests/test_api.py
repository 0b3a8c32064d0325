"""Public names: docstrings that say what comes out, of which shape, and what is raised; examples that are doctests."""

import ast
import inspect
import re
import sys
import textwrap
from itertools import chain
from typing import get_args, get_type_hints

import jax
import numpy as np
import pytest
from jaxtyping import Float
from public import public_names

import rdro_jax
from rdro_jax import losses
from rdro_jax.losses import LossBase

PUBLIC = {f"rdro_jax.{name}": getattr(rdro_jax, name) for name in rdro_jax.__all__}
LOSSES = {f"rdro_jax.losses.{name}": getattr(losses, name) for name in losses.__all__}
LOSSES = {name: value for name, value in LOSSES.items() if inspect.isfunction(value)}
CALLED = {
    name: value for name, value in (PUBLIC | LOSSES).items() if inspect.isroutine(value) or inspect.isclass(value)
}


# A random key's shape is JAX's own affair, and those of the arguments that a callable gets are told by who calls it.
SHAPELESS = {
    *(f"rdro_jax.models.{at}.key" for at in ("lora.adapt", "lora.init_adapters", "decoder.init_params")),
    *(f"rdro_jax.generate.sample.{at}.key" for at in ("generate", "sample")),
    *(f"rdro_jax.models.decoder.forward.{word}" for word in ("constrain", "attend", "lookup")),
    "rdro_jax.parallel.multihost.array_from_first.make",
    "rdro_jax.parallel.sharding.make_constrain.return",
    *(f"rdro_jax.parallel.spread.spread_attention.{word}" for word in ("attend", "return")),
    "rdro_jax.optim.make_schedule.return",
}


def has_bare_array(kind) -> bool:
    """Whether an annotation is an array without a shape, or has one among its arguments."""
    arguments = chain.from_iterable(part if isinstance(part, list) else [part] for part in get_args(kind))
    return kind is jax.Array or kind is np.ndarray or any(map(has_bare_array, arguments))


def test_the_names_are_found():
    assert {"rdro_jax.train", "rdro_jax.Batch", "rdro_jax.losses.rdro"} <= CALLED.keys()


@pytest.mark.parametrize("name", CALLED)
def test_public_name_has_an_example(name):
    # Its own docstring: a class without one would show that of its base.
    assert ">>> " in (CALLED[name].__doc__ or "")


def test_every_public_name_has_a_docstring_of_its_own():
    generated = lambda value: value.__doc__.startswith(f"{value.__name__}(")  # noqa: E731
    assert [name for name, value in public_names().items() if not value.__doc__ or generated(value)] == []


def test_every_public_method_has_a_docstring():
    classes = [value for value in public_names().values() if inspect.isclass(value)]
    bare = [
        f"{kind.__qualname__}.{name}"
        for kind in classes
        for name, value in vars(kind).items()
        if not name.startswith("_") and (inspect.isfunction(value) or isinstance(value, property)) and not value.__doc__
    ]
    assert bare == []


def test_arrays_in_public_signatures_have_shapes():
    """Of functions and of the fields of classes; `SHAPELESS` says which have none and why."""
    bare = {
        f"{name}.{word}"
        for name, value in public_names().items()
        for word, kind in get_type_hints(value).items()
        if has_bare_array(kind)
    }
    assert bare == SHAPELESS


def test_a_bare_array_is_seen():
    assert all(map(has_bare_array, [jax.Array, np.ndarray, jax.Array | None, tuple[int, dict[str, jax.Array]]]))
    assert not any(map(has_bare_array, [Float[jax.Array, "rows"], Float[jax.Array, "rows"] | None, int]))


def fields_without_docstring(kind: type) -> list[str]:
    """Fields of a class body that no docstring follows; `name` tells the kinds of loss apart and says all by itself."""
    body = ast.parse(textwrap.dedent(inspect.getsource(kind))).body[0].body
    pairs = zip(body, [*body[1:], ast.Pass()], strict=True)
    bare = [
        line.target.id for line, after in pairs if isinstance(line, ast.AnnAssign) and not isinstance(after, ast.Expr)
    ]
    return [f"{kind.__name__}.{name}" for name in bare if name not in ("name", *vars(LossBase))]


def test_every_config_field_has_a_docstring():
    sections = [
        value
        for name, value in public_names().items()
        if name.endswith("Config") or ("losses" in name and inspect.isclass(value) and issubclass(value, LossBase))
    ]
    assert len(sections) > 15
    assert [field for kind in sections for field in fields_without_docstring(kind)] == []


LOSS_FUNCTIONS = {sys.modules[kind.__module__].__dict__[kind().name] for kind in get_args(losses.Loss)}
NO_FORMULA_OF_OTHERS = {"mean", "class_means", "class_quantiles", "normalisation", "alpha_hat", "loss_floor"}
"""Diagnostics that are plain arithmetic, or follow from RDRO's own objective in a line or two."""
SOURCE = re.compile(r"Source[\w ]*:[^>]+? (1[89]|20)\d\d,")
UNITS = ("in the unit", "[Ww]ithout (a )?unit", "nats", "seconds", "bytes", "[Ss]hare", "probabilit(y|ies)", "steps?")
UNIT = re.compile(rf"\b({'|'.join(UNITS)})\b")
NO_UNIT = {f"rdro_jax.models.decoder.{name}" for name in ("forward", "forward_cached", "output_embedding")}
"""What returns hidden states or weights, of which no one asks the unit."""


def test_losses_name_their_paper():
    assert len(LOSS_FUNCTIONS) == len(get_args(losses.Loss))
    silent = [
        loss.__name__ for loss in LOSS_FUNCTIONS if not SOURCE.search(loss.__doc__) or "arXiv:" not in loss.__doc__
    ]
    assert silent == []


def test_diagnostics_name_their_source():
    published = [name for name, value in public_names().items() if "diagnostics" in name and inspect.isfunction(value)]
    published = {name.rpartition(".")[2] for name in published} - NO_FORMULA_OF_OTHERS
    assert len(published) > 10
    assert [name for name in published if not SOURCE.search(getattr(losses.diagnostics, name).__doc__)] == []


def test_figures_have_units():
    told = {
        name: bool(UNIT.search(value.__doc__))
        for name, value in public_names().items()
        if inspect.isfunction(value) and re.search("float", str(value.__annotations__.get("return")), re.I)
    }
    assert len(told) > 30
    assert {name for name, unit in told.items() if not unit} == NO_UNIT


def raised_by(function) -> set[str]:
    """Names of our own errors that a function raises in its own lines, those of functions inside it included."""
    tree = ast.parse(textwrap.dedent(inspect.getsource(function)))
    calls = [node.exc.func for node in ast.walk(tree) if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call)]
    return {call.id for call in calls if isinstance(call, ast.Name) and call.id.endswith("Error")}


def test_what_is_raised_is_said():
    silent = {}
    for name, value in public_names().items():
        if inspect.isfunction(value) and value.__module__ != "rdro_jax.errors":
            unsaid = {error for error in raised_by(value) if error not in value.__doc__}
            if unsaid:
                silent[name] = unsaid
    assert silent == {}
