"""The page in a real browser: what it draws, filters and refuses."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from klppo_compile.perf.history.files import read_history
from klppo_compile.perf.page.file import page
from tests.perf_history_cases import write_history
from tests.perf_page_cases import URL, Elements

CHROMIUM = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)
pytestmark = pytest.mark.skipif(
    CHROMIUM is None, reason="left out: no Chromium is installed (apt-get install chromium)"
)


def in_browser(file: Path, fragment: str, profile: Path) -> tuple[Elements, list[str]]:
    """The page after its script ran, and what its console said."""
    command = [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run"]
    command += ["--disable-background-networking", "--disable-component-update", "--disable-sync"]
    command += ["--enable-logging=stderr", "--v=0", "--virtual-time-budget=5000"]
    command += ["--window-size=390,844", f"--user-data-dir={profile}", "--dump-dom"]
    done = subprocess.run(
        [*command, f"{file.as_uri()}#{fragment}"],
        check=True,
        capture_output=True,
        text=True,
        timeout=300,
    )
    console = [line for line in done.stderr.splitlines() if ":CONSOLE" in line]
    return Elements(done.stdout), console


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    """30 runs of 40 series; from run 19 on one contender is worse."""
    folder = tmp_path_factory.mktemp("history")
    path = tmp_path_factory.mktemp("page") / "page.html"
    path.write_text(page(read_history(write_history(folder, 30, step_at=19)), URL), "utf-8")
    return path


def shown(elements, name):
    return [attrs for attrs in elements.of_class(name) if "hidden" not in attrs]


def test_it_loads_from_disk_and_draws_every_trend(file, tmp_path):
    elements, console = in_browser(file, "", tmp_path)
    assert console == []
    assert len(shown(elements, "card")) == 8
    assert sum(tag == "canvas" for tag, _ in elements.found) == 8
    pressed = [attrs.get("aria-pressed") for tag, attrs in elements.found if tag == "button"]
    assert pressed.count("true") == 8


def test_the_address_filters_and_sets_the_theme(file, tmp_path):
    elements, console = in_browser(file, "q=heads/256+OURS&state=worse&theme=dark", tmp_path)
    assert console == []
    assert [card["data-state"] for card in shown(elements, "card")] == ["worse"]
    assert sum(tag == "canvas" for tag, _ in elements.found) == 1
    assert dict(elements.found)["html"]["data-theme"] == "dark"
    rows = [a for tag, a in elements.found if tag == "tr" and a.get("data-state")]
    assert {row["data-state"] for row in rows if "hidden" not in row} == {"worse"}


def test_a_commit_tells_its_machine_on_hover(file, tmp_path):
    elements, _ = in_browser(file, "", tmp_path)
    commits = [attrs for _, attrs in elements.found if "data-run" in attrs]
    assert len(commits) > 30
    assert all("cpu AMD EPYC, cores 2" in attrs["title"] for attrs in commits)
    assert [a["title"][:10] for a in commits if a["data-run"] == "19"] == ["2026-01-20"] * 4


# Filters all cards but one out, changes the theme, lets them back in: the colours of the lines.
TOGGLE = """<script>
form.q.value = "normal/heads/256"; form.oninput(); theme.onclick();
form.q.value = ""; form.oninput();
const lines = find(".card").map((card) => drawn.get(card).plot.series[4].stroke());
document.body.dataset.lines = [...new Set(lines)].join(" and ");
</script></body>"""


@pytest.mark.parametrize(("before", "after"), [("light", "111, 177, 255"), ("dark", "31, 95, 174")])
def test_a_card_that_was_hidden_takes_the_new_theme(file, tmp_path, before, after):
    text = file.read_text(encoding="utf-8").replace("</body>", TOGGLE)
    touched = tmp_path / "touched.html"
    touched.write_text(re.sub(r"<meta http-equiv=[^>]*>", "", text), encoding="utf-8")
    elements, console = in_browser(touched, f"theme={before}", tmp_path / "profile")
    assert console == []
    assert dict(elements.found)["body"]["data-lines"] == f"rgb({after})"


def test_a_request_would_be_refused_and_said(file, tmp_path):
    asking = tmp_path / "asking.html"
    picture = '<img src="https://example.org/x.png"></body>'
    asking.write_text(file.read_text(encoding="utf-8").replace("</body>", picture))
    _, console = in_browser(asking, "", tmp_path / "profile")
    assert any("https://example.org/x.png" in line for line in console)
