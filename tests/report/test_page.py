"""The page: what it says, that strangers' words stay words, and that a browser draws it."""

import html
import re
import resource
import subprocess
import sys
import time
import warnings

import pytest
from browser import ABSENT, Browser
from open_report import MOST_BYTES, WAIT, check

from rdro_jax.errors import ConfigError, StorageError
from rdro_jax.report import load_runs, write_report
from rdro_jax.report.charts import PANELS, draw
from rdro_jax.report.page import summary, tables
from rdro_jax.report.samples import rows_of

from .conftest import HOSTILE, stretch, write_run

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


def cpu_seconds(*command):
    """What `rdro` takes of the processor, in a process of its own."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([sys.executable, "-m", "rdro_jax.cli", *command], check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def test_ten_thousand_steps_and_a_hundred_evaluations_take_less_than_three_seconds(real_run, tmp_path):
    folder = stretch(real_run, tmp_path / "long", steps=10_000, evaluations=100)
    out = tmp_path / "page.html"
    # Of the command, its imports too; other people's work on the machine is not the page's, and slows it at times.
    assert any(cpu_seconds("report", folder, "--out", out) < 3 for _ in range(3))
    assert out.stat().st_size < MOST_BYTES


def test_faults_of_the_user_are_named(tmp_path, run_folders, monkeypatch):
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="wanted a file that can be written"):
        write_report(run_folders[:1], tmp_path / "file" / "page.html")
    monkeypatch.setattr("rdro_jax.report.page.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"pip install 'rdro_jax\[report\]'"):
        write_report(run_folders[:1], tmp_path / "page.html")


@pytest.fixture
def browser():
    if ABSENT:
        pytest.skip("no chromium on this machine: the page is not opened")
    with Browser() as browser:
        yield browser


def test_a_browser_draws_every_chart_of_one_run_and_of_three_and_asks_for_nothing(
    browser, real_run, run_folders, single, tmp_path
):
    whole = stretch(real_run, tmp_path / "whole", steps=40, evaluations=4)
    assert len(draw(load_runs([whole]))) == len(PANELS) + 3, "a metric of a real run that no panel finds"
    check(browser, single)
    check(browser, write_report([whole], tmp_path / "whole.html"))
    check(browser, write_report([whole, *run_folders[::2]], tmp_path / "comparison.html"))


def test_the_export_buttons_save_charts_and_no_unnamed_script_runs(browser, single, tmp_path):
    browser.open(single)
    browser.run(WAIT)
    browser.call("Browser.setDownloadBehavior", behavior="allow", downloadPath=str(tmp_path))
    for form, start in (("png", b"\x89PNG"), ("svg", b"<svg ")):
        browser.run(f"document.querySelectorAll('button[data-form={form}]')[1].click()")
        file, deadline = tmp_path / f"chart-1.{form}", time.monotonic() + 60
        while not file.exists() and time.monotonic() < deadline:
            time.sleep(0.05)
        assert file.read_bytes().startswith(start)
        assert file.stat().st_size > 4000
    injected = "const s = document.createElement('script'); s.textContent = 'window.ran = 1'; document.body.append(s)"
    browser.run(f"(() => {{ {injected} }})()")
    assert browser.run("window.ran") is None, "the content security policy lets an unnamed script run"


@pytest.mark.parametrize(
    "fault",
    [
        "<img src='http://127.0.0.1:9/a.png'>",
        "<iframe src='http://127.0.0.1:9/'></iframe>",
        "<meta http-equiv=refresh content='0; url=http://127.0.0.1:9/'>",
    ],
)
def test_the_browser_hears_whatever_a_page_asks_for(browser, tmp_path, fault):
    (tmp_path / "page.html").write_text(f"<!doctype html>{fault}")
    browser.open(tmp_path / "page.html")
    deadline = time.monotonic() + 60
    while not browser.requests() and time.monotonic() < deadline:
        browser.call("Target.getTargets")
        time.sleep(0.05)
    assert browser.requests()[0].startswith("http://127.0.0.1:9/")


if ABSENT:
    warnings.warn("no chromium on this machine: the report is not opened in a browser", stacklevel=1)
