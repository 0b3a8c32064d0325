"""Points that follow from the sweep file alone: all of a grid, a random or a quasi-random sweep, tpe's first ones."""

import shlex
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from rdro_jax.sweep.runs import runs_of
from rdro_jax.sweep.space import Point, Space
from rdro_jax.sweep.spec import LoadedSweep, load_sweep


def dry_run(file: str | Path) -> Iterator[str]:
    """One line per trial that is certain to be tried: the command of each of its runs."""
    loaded = load_sweep(file)
    points = list(known_points(loaded))
    for number, point in enumerate(points):
        loaded.config(point)
        for each in runs_of(loaded, number, point):
            yield f"rdro {shlex.join(each.words)}"
    if len(points) < loaded.planned:
        yield f"# {loaded.planned - len(points)} more, chosen in the light of these"


def known_points(loaded: LoadedSweep) -> Iterator[Point]:
    """The points that will be tried whatever comes out: all, or tpe's first ones."""
    count, sampler = loaded.planned, loaded.sweep.sampler
    seen: list[Point] = []
    for number in range(min(count, sampler.startup) if sampler.name == "tpe" else count):
        point = next_point(loaded, number, seen)
        if point is None:
            return
        seen.append(point)
        yield point


def next_point(loaded: LoadedSweep, number: int, seen: list[Point]) -> Point | None:
    """Point `number` where it follows from the sweep file alone; None where there is none left."""
    sampler, space = loaded.sweep.sampler, loaded.space
    if sampler.name == "grid":
        return space.grid()[number]
    return draw(space, sampler.name, sampler.seed, number, seen)


def draw(space: Space, sampler: str, seed: int, number: int, seen: list[Point]) -> Point | None:
    """Point `number` of a random or quasi-random sweep, a function of (seed, number) but for what is in `seen`.

    Where a hundred draws gave nothing new, it is a point of those that are left; None where none is.
    """
    for attempt in range(100):
        if sampler == "qmc":
            from scipy.stats import qmc  # half a second, which no other sampler should wait

            sobol = qmc.Sobol(space.dimensions, scramble=True, rng=seed)
            places = sobol.fast_forward(number + attempt).random(1)[0] if number + attempt else sobol.random(1)[0]
        else:
            places = np.random.default_rng((seed, number, attempt)).random(space.dimensions)
        point = space.at(places)
        if point not in seen:
            return point
    if space.size is None:
        return None
    left = [point for point in space.grid() if point not in seen]
    return left[np.random.default_rng((seed, number)).integers(len(left))] if left else None
