"""The page of a run in a real browser: no error, every figure loads, wide and narrow, sortable."""

import json
import re
import shutil
import subprocess
from html import unescape

import pytest

from server import simulate, write_report

BROWSERS = ("chromium", "chromium-browser", "google-chrome")
WIDTHS = (1280, 400)
BROWSER = next((found for name in BROWSERS if (found := shutil.which(name))), None)
pytestmark = pytest.mark.skipif(BROWSER is None, reason=f"none of {', '.join(BROWSERS)} is here")

# Runs in the page itself, as a frame's inside is closed to the page around it.
PROBE = """
<script>
addEventListener("load", async function () {
  const images = Array.from(document.images);
  await Promise.all(images.map((image) => image.decode().catch(() => null)));
  const table = document.querySelector("table"), heads = table.tHead.rows[0].cells;
  const column = (k) => Array.from(table.tBodies[0].rows).map((r) => r.cells[k].textContent);
  const before = column(2);
  heads[2].querySelector("button").focus();
  const focused = document.activeElement === heads[2].querySelector("button");
  heads[2].querySelector("button").click();
  const up = [heads[2].getAttribute("aria-sort"), column(2)];
  heads[2].querySelector("button").click();
  const down = [heads[2].getAttribute("aria-sort"), column(2)];
  heads[0].querySelector("button").click();
  const words = [heads[2].getAttribute("aria-sort"), column(0)];
  parent.postMessage({
    width: innerWidth, body: document.documentElement.scrollWidth,
    images: images.map((image) => image.naturalWidth),
    shown: images.map((image) => image.getBoundingClientRect().width),
    before, focused, up, down, words,
  }, "*");
});
</script>
</body>"""
# Frames, because a headless window has a least width.
AROUND = """<!DOCTYPE html><pre id="found"></pre>
<script>
const found = [];
addEventListener("message", function (event) {
  found.push(event.data);
  document.getElementById("found").textContent = JSON.stringify(found);
});
</script>
"""


def visit(page, folder):
    """What the page tells of itself at each width, and the lines of the browser's console."""
    text = page.read_text(encoding="utf-8")
    (folder / "probed.html").write_text(text.replace("</body>", PROBE), encoding="utf-8")
    frames = [f'<iframe src="probed.html" width="{w}" height="900"></iframe>' for w in WIDTHS]
    (folder / "around.html").write_text(AROUND + "\n".join(frames), encoding="utf-8")
    done = subprocess.run(
        [
            BROWSER, "--headless", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr",
            f"--user-data-dir={folder / 'profile'}", "--virtual-time-budget=20000", "--dump-dom",
            (folder / "around.html").as_uri(),
        ],
        capture_output=True, text=True, timeout=120, check=True,
    )  # fmt: skip
    found = re.search(r'<pre id="found">(.*?)</pre>', done.stdout, re.DOTALL)
    assert found, done.stdout[:500]
    console = [line for line in done.stderr.splitlines() if "CONSOLE" in line]
    return {one["width"]: one for one in json.loads(unescape(found[1]))}, console


@pytest.fixture(scope="module")
def seen(make_recipe, hospitals, tmp_path_factory):
    folder = tmp_path_factory.mktemp("browser")
    recipe = make_recipe(name="trial", objective={"name": "supervised"})
    page = write_report(simulate(recipe, **hospitals, output=folder).path)
    return visit(page, folder)


def test_the_console_has_no_error_and_every_figure_loads(seen):
    by_width, console = seen
    assert console == []
    assert set(by_width) == set(WIDTHS)
    for found in by_width.values():
        assert len(found["images"]) >= 7
        assert min(found["images"]) > 0
        assert min(found["shown"]) > 200


def test_nothing_is_wider_than_the_screen(seen):
    by_width, _ = seen
    for width, found in by_width.items():
        assert found["body"] <= width


def test_tables_sort_by_numbers_and_by_words(seen):
    found = seen[0][1280]
    assert found["focused"]

    def key(text):
        return float("inf") if text == "–" else float(text)

    known = sorted((text for text in found["before"] if text != "–"), key=key)
    dashes = ["–"] * found["before"].count("–")
    assert found["up"] == ["ascending", known + dashes]
    assert found["down"][0] == "descending"
    assert [key(t) for t in found["down"][1]] == [key(t) for t in known[::-1] + dashes]
    assert found["words"][0] is None
    assert found["words"][1][0] == "accuracy"
