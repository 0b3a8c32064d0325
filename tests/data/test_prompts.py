"""Rates per prompt, counted by hand."""

import numpy as np
import pytest

from rdro_jax.data import DataConfig, load_examples, prompt_rates


def rows(*labels_of_prompts, **columns):
    return [
        {"prompt": prompt, "completion": f"answer {i}", "label": bool(label)} | columns
        for prompt, labels in labels_of_prompts
        for i, label in enumerate(labels)
    ]


@pytest.fixture
def rates(write_rows, chatml):
    def of(lines, **settings):
        path = write_rows(lines)
        return prompt_rates(load_examples(path, chatml, DataConfig(train=path, **settings)))

    return of


def test_rate_of_the_other_rows_of_the_prompt(rates):
    # a: 3 of 4 desirable, so the others of a desirable row hold 2/3, of the other row 3/3. b: nothing among 1 other.
    # c stands alone: the rate of all, 4 of 7.
    lines = rows(("a", [1, 1, 0, 1]), ("b", [1, 0]), ("c", [0]))
    np.testing.assert_allclose(rates(lines), [2 / 3, 2 / 3, 1, 2 / 3, 0.05, 1, 4 / 7], rtol=1e-6)


def test_text_and_its_message_are_one_prompt(rates):
    lines = rows(("a", [1]), ([{"role": "user", "content": "a"}], [0]))
    np.testing.assert_allclose(rates(lines), [0.05, 1])


def test_prompts_that_are_cut_differently_are_still_one(rates):
    lines = rows(("x" * 80, [1, 0, 1]))
    lines[0]["completion"] = "long" * 9
    np.testing.assert_allclose(rates(lines, max_length=100), [0.5, 1, 0.5])


def test_column_wins_where_there_is_one(rates):
    lines = rows(("a", [1, 0]), alpha=0.3) + rows(("b", [1, 1]), alpha=0.001) + rows(("c", [1, 0]))
    np.testing.assert_allclose(rates(lines), [0.3, 0.3, 0.05, 0.05, 0.05, 1])
