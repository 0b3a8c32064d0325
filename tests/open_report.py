"""Opens pages of `rdro report` in a headless Chromium and asserts what a reader relies on.

`python tests/open_report.py PAGE...` does so with pages of real runs; a PNG of each is left beside it.
"""

import json
import re
import sys
from pathlib import Path

from browser import ABSENT, Browser

MOST_BYTES = 5e6
FEWEST_PIXELS = 30
"""Of a chart in the colours of its curves: a row of dots has some more."""


def check(browser: Browser, page: Path) -> None:
    """Assert that the page is small, says and fetches nothing, and that every chart shows curves."""
    assert page.stat().st_size < MOST_BYTES, f"{page}: {page.stat().st_size} bytes"
    browser.open(page)
    browser.run(WAIT)
    charts = json.loads(browser.run(CHARTS))
    assert len(charts) == len(re.findall("<figure>", page.read_text(encoding="utf-8"))) > 0
    for chart in charts:
        assert chart["glyphs"], f"{page}: {chart['title']}: nothing is drawn"
        assert all(points > 0 for points in chart["glyphs"]), f"{page}: a curve without points or hidden: {chart}"
        assert chart["pixels"] >= FEWEST_PIXELS, f"{page}: no curve is seen: {chart}"
    assert browser.run("document.documentElement.dataset.broken") is None, f"{page}: a stranger's script ran"
    assert browser.said() == [], page
    assert browser.requests() == [], page


WAIT = """new Promise((done, fail) => {
  const wait = () => document.documentElement?.dataset.charts ? setTimeout(done, 300) : setTimeout(wait, 50);
  wait(); setTimeout(() => fail(new Error("charts are not drawn")), 100000);
})"""
CHARTS = """(async () => {
  const told = [];
  for (const manager of await Promise.all(drawn)) {
    const [view] = [...manager];
    // A mark of size 0 widens the axes and is not seen.
    const shown = view.model.renderers.filter((renderer) => renderer.glyph.size?.value !== 0);
    const glyphs = shown.map((renderer) => {
      if (!renderer.visible) return 0;
      const columns = Object.values(renderer.data_source.data).map((column) => Array.from(column));
      return columns[0].filter((_, row) => columns.every((column) => Number.isFinite(column[row]))).length;
    });
    const colours = shown.flatMap((renderer) => [renderer.glyph.line_color?.value, renderer.glyph.fill_color?.value])
      .filter(Boolean).map((colour) => [1, 3, 5].map((at) => parseInt(colour.slice(at, at + 2), 16)))
      .filter((rgb) => Math.max(...rgb) > Math.min(...rgb));  // axes are grey too
    // Curves, without the legend and the levels, which are painted over them on a canvas of their own.
    const canvas = view.canvas_view.primary.canvas, {left, top, width, height} = view.frame.bbox;
    const inside = [left + 1, top + 1, width - 2, height - 2].map((length) => length * view.canvas_view.pixel_ratio);
    const data = canvas.getContext("2d").getImageData(...inside).data;
    let pixels = 0;
    for (let at = 0; at < data.length; at += 4) {
      const rgb = [...data.slice(at, at + 3)], coloured = Math.max(...rgb) - Math.min(...rgb) > 60;
      // A thin line between two rows of pixels covers neither whole.
      pixels += coloured && colours.some((colour) => colour.every((value, part) => Math.abs(value - rgb[part]) < 90));
    }
    told.push({title: view.model.title.text, glyphs, pixels});
  }
  return JSON.stringify(told);
})()"""
"""Of each chart the finite points of every curve, and the pixels in the colour of one."""


def main(pages: list[str]) -> None:
    """Check the pages; where there is no browser, say so."""
    if ABSENT:
        print("no chromium on this machine: the reports are not opened (make browser)")
        return
    with Browser() as browser:
        for page in map(Path, pages):
            check(browser, page)
            height = browser.run("document.documentElement.scrollHeight")
            print(f"{page}: sound, {browser.screenshot(page.with_suffix('.png'), height=height)}")


if __name__ == "__main__":
    main(sys.argv[1:])
