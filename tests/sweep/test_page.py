"""report.html of a sweep: one file, no network, every string as text; in a real browser where there is one."""

import json
import re

import pytest
from browser import ABSENT, Browser

from rdro_jax.sweep.page import group_key, page_data, write_page
from rdro_jax.sweep.spec import load_sweep

EVIL = "</script><img src=x onerror=document.title='caught'>"
needs_browser = pytest.mark.skipif(ABSENT, reason="no browser here: make browser")
SPACE = {
    "optimizer": {"learning_rate": {"log": [1.0e-7, 1.0e-5]}},
    "loss": {"rdro": {"alpha": {"choice": [0.3, 0.5]}}, "dpo": {}},
}


def row(number, loss, value, **more):
    point = {"loss.name": loss, "optimizer.learning_rate": 10.0 ** -(number % 3 + 5)}
    point |= {"loss.alpha": 0.3, "optimizer.max_grad_norm": 1.0 if number else None} if loss == "rdro" else {}
    told = {"trial": number, "state": "complete", "point": point, "value": value, "ci95": 0.1, "values": [value, value]}
    return told | {"seconds": 1.5, "why": None, "runs": []} | more


@pytest.fixture
def page(sweep_file):
    """The page of six trials, one of which failed for a reason that is markup."""
    loaded = load_sweep(sweep_file(space=SPACE, sampler={"name": "tpe"}, seeds=[0, 1]))
    rows = [row(n, ("rdro", "dpo")[n % 2], 1.0 - n / 10) for n in range(5)]
    rows.append(row(5, "rdro", None, state="fail", why=EVIL, ci95=None))
    for each in rows[:3]:
        for seed in (0, 1):
            folder = loaded.folder / "trials" / f"{each['trial']:04d}" / f"seed-{seed}"
            folder.mkdir(parents=True)
            lines = [{"step": step, "loss": 1 / step + seed} for step in range(1, 301)]
            (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return loaded, rows, write_page(loaded, rows, {"optimizer.learning_rate": 0.8, "loss.name": 0.2})


def test_it_is_one_file_that_asks_nobody(page):
    _, _, path = page
    text = path.read_text()
    assert len(text) < 500_000
    assert set(re.findall(r"https?://[^\"' ]+", text)) == {"http://www.w3.org/2000/svg"}  # a name, not an address
    policy = r"default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-[\w+/=]+'; img-src data:"
    assert re.search(rf'http-equiv="Content-Security-Policy"\s+content="{policy}"', text)
    assert "</script><img" not in text
    assert text.count("</script>") == 2


def test_its_data_are_the_trials(page):
    loaded, rows, path = page
    shown = json.loads(re.search(r'id="data">(.*?)</script>', path.read_text(), re.S).group(1))
    assert shown == json.loads(json.dumps(page_data(loaded, rows, {"optimizer.learning_rate": 0.8, "loss.name": 0.2})))
    assert shown["trials"][5]["why"] == EVIL
    assert (shown["best"], shown["group"]) == (4, "loss.name")
    curve = shown["curves"][0]["loss"][1]
    assert len(curve) <= 200
    assert curve[-1] == [300, 1 / 300 + 1]


def test_trials_are_grouped_by_a_key_of_few_values():
    rows = [{"point": {"optimizer.learning_rate": n / 7, "max_steps": n % 2}} for n in range(10)]
    assert group_key(rows) == "max_steps"
    assert group_key([{"point": {"seed": n}} for n in range(10)]) is None


@needs_browser
def test_in_a_browser_it_sorts_filters_and_says_nothing(page):
    _, _, path = page
    with Browser() as tab:
        tab.call("Page.navigate", url=path.as_uri())
        rows = "document.querySelector('tbody tr')"
        ready = f"new Promise(done => {{ const f = () => {rows} ? done(1) : setTimeout(f, 20); f() }})"
        tab.run(ready)
        column = "[...document.querySelectorAll('tbody tr')].map(r => r.cells[0].textContent).join()"
        sort = "[...document.querySelectorAll('th button')].find(b => b.textContent === 'eval_loss').click()"
        assert tab.run(column) == "0,1,2,3,4,5"
        tab.run(sort)
        assert tab.run(column) == "4,3,2,1,0,5"  # the one without a value stays last, both ways
        tab.run(sort)
        assert tab.run(column) == "0,1,2,3,4,5"
        box = "document.getElementById('filter').value = 'DPO'"
        tab.run(f"{box}; document.getElementById('filter').dispatchEvent(new Event('input')); 1")
        assert tab.run(column) == "1,3"
        assert tab.run("document.querySelectorAll('#parallel path').length") == 2
        assert tab.run("document.querySelectorAll('#groups circle').length") == 5 + 2
        assert tab.run("document.querySelectorAll('#curves path.trial').length") == 3
        # Of each group with curves: rdro's trials 0 and 2, dpo's trial 1, two seeds each.
        count = "document.querySelectorAll('#curves path.{}').length"
        assert [tab.run(count.format(kind)) for kind in ("mean", "band")] == [2, 2]
        axes = "[...document.querySelectorAll('#parallel text')].map(t => t.textContent)"
        assert {"1", "null"} <= {*tab.run(axes)}  # null is a value like another
        assert tab.run("scale(Array(500000).fill(1), 0, 1).ticks.length") == 1
        assert tab.run("document.title") != "caught"
        assert tab.run("document.querySelectorAll('img').length") == 0
        assert tab.said() == []
        assert tab.requests() == []


@needs_browser
def test_four_losses_stand_beside_each_other_with_their_intervals(sweep_file):
    names = ("ddro", "dpo", "kto", "rdro")
    space = {"loss": {name: {} for name in names}}
    loaded = load_sweep(sweep_file(space=space, sampler={"name": "grid"}, seeds=[0, 1]))
    loaded.folder.mkdir()
    rows = [row(n, loss, 0.5 + n / 10) | {"point": {"loss.name": loss}} for n, loss in enumerate(names)]
    with Browser() as tab:
        tab.call("Page.navigate", url=write_page(loaded, rows, {}).as_uri())
        tab.run(
            "new Promise(done => { const f = () => document.querySelector('tbody tr') ? done(1) : "
            "setTimeout(f, 20); f() })"
        )
        texts = tab.run("[...document.querySelectorAll('#groups text')].map(t => t.textContent)")
        assert [text for text in texts if text in names] == [*names]
        assert [text for text in texts if "±" in text] == [f"{0.5 + n / 10:.1f} ± 0.1" for n in range(4)]
        bars = tab.run("[...document.querySelectorAll('#groups path')].map(p => p.getBBox().width)")
        assert len(bars) == 4
        assert bars == pytest.approx([bars[0]] * 4, rel=1e-3)  # as wide as their intervals, which are alike
        assert bars[0] > 100
        assert tab.said() == []
