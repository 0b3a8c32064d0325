"""The page: what it says, that strangers' words stay words, and that a browser draws it."""

import html
import json
import re
import shutil
import time
import warnings

import pytest
from browser import CHROMIUM, Browser

from rdro_jax.errors import ConfigError, StorageError
from rdro_jax.report import load_runs, write_report
from rdro_jax.report.page import summary, tables
from rdro_jax.report.samples import rows_of

from .conftest import HOSTILE, write_run

bokeh = pytest.importorskip("bokeh", reason="the extra `report` is not installed")


@pytest.fixture(scope="module")
def comparison(run_folders, tmp_path_factory):
    return write_report(run_folders, tmp_path_factory.mktemp("page") / "comparison.html")


@pytest.fixture(scope="module")
def single(run_folders, tmp_path_factory):
    return write_report(run_folders[:1], tmp_path_factory.mktemp("page") / "single.html")


def test_the_page_holds_everything_and_strangers_words_are_escaped(comparison):
    page = comparison.read_text()
    assert len(page.encode()) < 5e6
    assert re.search(
        r"""Content-Security-Policy" content="default-src 'none'; script-src 'sha256-[^"]*base-uri 'none'""", page
    )
    assert HOSTILE not in page
    assert html.escape(HOSTILE, quote=False) in page.replace("&#39;", "'")
    assert "third &lt;b&gt;" in page
    assert "Shaded tokens" in page
    # Elements as a parser sees them: data, Bokeh and the page's own script, and nothing else.
    assert len(re.findall(r"<script", page)) - page.count('"<script') == 3
    assert not re.search(r"<(?:link|img|iframe|script src)", re.sub(r"(?s)<script.*?</script>", "", page))


def test_summary_and_what_differs_in_the_configs(run_folders):
    runs = load_runs(run_folders)
    rows = {key: values for key, values, _ in summary(runs).rows}
    assert rows["floor of the loss"] == ("0.84",) * 3
    assert rows["held-out AUC"] == ("0.833333",) * 3
    assert rows["skipped steps"] == ("1",) * 3
    differing = tables(runs)[0]
    assert [(key, values) for key, values, _ in differing.rows] == [
        ("loss.alpha", ("0.4", "0.3", "0.4")),
        ("optimizer.learning_rate", ("0.001", "0.001", "0.002")),
    ]
    assert [table.title for table in tables(runs[:1])] == ["Data report", "Config", "Loss as trained", "Environment"]


def test_samples_stand_side_by_side_shaded_by_log_ratio(run_folders):
    first, other, second = rows_of(load_runs(run_folders))
    assert [cell.title for cell in first.cells] == ["first: before", "first: after, score +0.250"]
    assert (first.prompt, other.prompt) == (HOSTILE, "p"), "answers to different prompts are no comparison"
    assert [cell.title for cell in other.cells] == ["third <b>xxx: completion"]
    (cell,) = second.cells
    assert cell.title == "first: completion, desirable, log-ratio -3.500"
    assert [piece.shade for piece in cell.pieces] == ["u2", "d4", ""]


def test_answers_to_one_prompt_stand_together_and_name_it_once(tmp_path):
    samples = [{"prompt": "How?", "completion": f"{number}"} for number in range(2)]
    folders = [write_run(tmp_path / name, steps=4, samples=samples) for name in ("one", "two")]
    assert [len(row.cells) for row in rows_of(load_runs(folders))] == [2, 2]
    page = write_report(folders, tmp_path / "page.html").read_text()
    assert page.count('<pre class="prompt">') == 1
    assert "Shaded tokens" not in page


def test_three_runs_of_ten_thousand_steps_take_less_than_three_seconds(tmp_path):
    folders = [tmp_path / name for name in ("one", "two", "three")]
    write_run(folders[0], steps=10_000)
    for folder in folders[1:]:
        shutil.copytree(folders[0], folder)
    write_report(folders[:1], tmp_path / "warm.html")
    begin = time.process_time()  # of this process: other people's work on the machine is not the page's
    out = write_report(folders, tmp_path / "page.html")
    assert time.process_time() - begin < 3
    assert out.stat().st_size < 5e6


def test_faults_of_the_user_are_named(tmp_path, run_folders, monkeypatch):
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="wanted a file that can be written"):
        write_report(run_folders[:1], tmp_path / "file" / "page.html")
    monkeypatch.setattr("rdro_jax.report.page.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"pip install 'rdro_jax\[report\]'"):
        write_report(run_folders[:1], tmp_path / "page.html")


@pytest.mark.skipif(CHROMIUM is None, reason="no chromium on this machine: the page is not opened")
def test_a_browser_draws_every_chart_and_asks_for_nothing(single, comparison):
    with Browser() as browser:
        for page in (single, comparison):
            browser.events.clear()
            browser.call("Page.navigate", url=f"file://{page}")
            browser.run(WAIT)
            painted = json.loads(browser.run(PAINTED))
            titles = len(re.findall("<figure>", page.read_text()))
            assert len(painted) == titles > 12
            assert all(colours > 3 for colours in painted), painted
            assert browser.run("document.documentElement.dataset.broken") is None
            assert browser.said() == []
            assert browser.requests() == []
        assert browser.run(EXPORTED) == "<svg \x89PNG"
        injected = (
            "const s = document.createElement('script'); s.textContent = 'window.ran = 1'; document.body.append(s)"
        )
        browser.run(f"(() => {{ {injected} }})()")
        assert browser.run("window.ran") is None, "the content security policy lets an unnamed script run"


if CHROMIUM is None:
    warnings.warn("no chromium on this machine: the report is not opened in a browser", stacklevel=1)

WAIT = """new Promise((done, fail) => {
  const wait = () => document.documentElement?.dataset.charts ? setTimeout(done, 300) : setTimeout(wait, 50);
  wait(); setTimeout(() => fail(new Error("charts are not drawn")), 100000);
})"""
PAINTED = """(async () => {
  const counts = [];
  for (const manager of await Promise.all(drawn)) {
    const canvas = [...manager][0].export("png", false).canvas;
    const pixels = new Uint32Array(canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height).data.buffer);
    counts.push(new Set(pixels).size);
  }
  return JSON.stringify(counts);
})()"""
"""Different colours in each chart."""
EXPORTED = """(async () => {
  const view = [...(await drawn[0])][0];
  const svg = await (await view.export("svg").to_blob()).text();
  const png = new Uint8Array(await (await view.export("png").to_blob()).arrayBuffer());
  return svg.slice(0, 5) + String.fromCharCode(...png.slice(0, 4));
})()"""
