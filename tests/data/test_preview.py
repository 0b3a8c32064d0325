"""What a person is shown is what is trained: read back from the brackets and the page."""

import html
import io
import re

import pytest
from rich.console import Console

from rdro_jax.data import DataConfig, Source
from rdro_jax.data.preview import preview_rows, print_rows, write_page
from rdro_jax.errors import StorageError

ROWS = [
    {"prompt": "Say <hi>.", "completion": "hé [bold]llo[/] 😀", "label": True},
    {"prompt": "Say hello.", "completion": "no", "label": 0, "weight": 2.5},
    {"prompt": "Say hello.", "completion": "no", "label": 3},
    {"prompt": "x" * 300, "completion": "\x1b[2J</pre><script>alert(1)</script>", "label": True},
    {"prompt": "not shown", "completion": "x", "label": True},
]


@pytest.fixture
def rows(write_rows, chatml):
    return preview_rows(DataConfig(train=write_rows(ROWS), max_length=128), chatml, count=4)


def printed(rows, terminal=False):
    out = io.StringIO()
    colours = "standard" if terminal else None
    print_rows(rows, Console(file=out, force_terminal=terminal, width=500, color_system=colours))
    return out.getvalue()


def test_trained_text_stands_in_brackets(rows):
    text = printed(rows)
    assert re.findall(r"\[\[(.*?)\]\]", text)[:2] == ["hé [bold]llo[/] 😀<|im_end|>", "no<|im_end|>"]
    assert "<|im_start|>user\nSay <hi>.<|im_end|>\n<|im_start|>assistant\n[[" in text
    assert "not shown" not in text


def test_titles_say_label_lengths_cuts_and_faults(rows):
    titles = [row.title.partition(".jsonl:")[2] for row in rows]
    assert re.fullmatch(r"1: desirable, prompt \d+ \+ completion \d+ tokens", titles[0])
    assert re.fullmatch(r"2: undesirable, weight 2.5, prompt \d+ \+ completion 3 tokens", titles[1])
    assert titles[2] == '3: bad row: label: must be a boolean, 0/1, 1/-1 or "true"/"false", got 3'
    # 300 letters stand beside the system message and the headers; the window is 128 and the completion stays whole.
    kept, completion, cut = map(
        int, re.search(r"prompt (\d+) \+ completion (\d+) tokens, cut: (\d+) of", titles[3]).groups()
    )
    assert kept + completion == 128
    assert titles[3].endswith(f"tokens, cut: {cut} of the prompt's and 0 of the completion's")
    assert kept + cut == 300 + int(re.search(r"prompt (\d+)", titles[0])[1]) - len("Say <hi>.")


def test_a_terminal_has_colours_and_gets_no_orders(rows):
    text = printed(rows, terminal=True)
    assert "[[" not in text
    assert "\x1b[1;32mhé [bold]llo[/] 😀<|im_end|>\x1b[0m" in text
    assert "\x1b[2J" not in text
    assert "\\x1b[2J" in text


def test_the_page_is_escaped_and_has_no_scripts(rows, tmp_path):
    write_page(rows, tmp_path / "page.html")
    page = (tmp_path / "page.html").read_text()
    assert (
        "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'\">"
        in page
    )
    assert "<script" not in page
    assert "http" not in page.replace("http-equiv", "")
    trained = [html.unescape(part) for part in re.findall(r"<b>(.*?)</b>", page, re.S)][1:]
    assert trained[0] == "hé [bold]llo[/] 😀<|im_end|>"
    assert trained[2].startswith("\x1b[2J</pre><script>alert(1)</script>")
    with pytest.raises(StorageError):
        write_page(rows, tmp_path)


def test_every_source_and_both_sides_of_a_pair(write_rows, chatml):
    pair = {"prompt": "Say hello.", "chosen": "hello", "rejected": "no"}
    sources = (Source(write_rows([pair] * 9, "a.jsonl")), Source(write_rows([pair] * 9, "b.jsonl")))
    rows = preview_rows(DataConfig(train=sources), chatml, count=1, layout="paired")
    sides = [re.search(r"(\w).jsonl:1: (\w+), ", row.title).groups() for row in rows]
    assert sides == [("a", "chosen"), ("a", "rejected"), ("b", "chosen"), ("b", "rejected")]
