"""The page as one HTML file that needs nothing else: no network, no server, no other file.

Charts are drawn by uPlot (MIT, in page/ with its licence), which is written into the page whole.
It takes 51 kB once and about 4 kB of data for a series of 200 runs. matplotlib's SVG was tried: 43
kB for such a chart, 1.7 MB for 40 of them, 0.1 s each, in the colours of one theme and with letters
that shrink on a phone. Of the libraries that can be written into a page, Vega takes 0.8 MB, ECharts
and plotly's basic bundle over 1 MB each. To move to a newer uPlot: `npm pack uplot`, then replace
page/uplot-* by dist/uPlot.iife.min.js, dist/uPlot.min.css and LICENSE, and the names below.

Whatever comes from a result file is escaped: by Jinja in the text, as JSON without <, > and & in
the data. A content policy lets only the scripts and styles written here run, by their SHA-256, and
forbids every request.
"""

import base64
import hashlib
from collections.abc import Iterable
from importlib.resources import files
from typing import Any

from jinja2 import Environment, StrictUndefined

from klppo_compile.exit_codes import BadInputError
from klppo_compile.perf.comparing.accepting import Accepted
from klppo_compile.perf.history.files import Run
from klppo_compile.perf.page.records import Section
from klppo_compile.perf.page.view import STATES, sections
from klppo_compile.perf.page.words import describe

STYLES = ("uplot-1.6.32.min.css", "page.css")
LIBRARY, SCRIPT, TEMPLATE = "uplot-1.6.32.iife.min.js", "page.js", "page.html.jinja"


def page(runs: list[Run], commit_url: str | None = None, decisions: Iterable[Accepted] = ()) -> str:
    """The page of a history as HTML.

    Args:
        runs: oldest first, from `read_history`.
        commit_url: what a commit's hash is appended to for a link; without it commits are text.
        decisions: the exact changes for the worse that were accepted, from `read_accepted`.

    Raises:
        BadInputError: `commit_url` is no web address.
    """
    if commit_url is not None and not commit_url.startswith(("https://", "http://")):
        raise BadInputError(
            f"--commit-url is the start of a web address that a commit's hash completes; got"
            f" {commit_url!r}. Use one like https://example.org/repository/commit/."
        )
    shown = sections(runs, commit_url, decisions)
    style, library, script = "\n".join(map(asset, STYLES)), asset(LIBRARY), asset(SCRIPT)
    policy = (
        f"default-src 'none'; style-src {digest(style)}; script-src {digest(library)}"
        f" {digest(script)}; base-uri 'none'; form-action 'none'"
    )
    environment = Environment(
        autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=StrictUndefined
    )
    environment.policies["json.dumps_kwargs"] = {"separators": (",", ":")}
    return environment.from_string(asset(TEMPLATE)).render(
        sections=shown,
        counts={state: sum(one.counts[state] for one in shown) for state in STATES},
        runs=len(runs),
        compared=any(len(one.runs) > 1 for one in shown),
        data=[data_of(one) for one in shown],
        describe=describe,
        policy=policy,
        style=style,
        library=library,
        script=script,
    )


def data_of(section: Section) -> dict[str, Any]:
    """What the script needs of a section: its runs and its charts."""
    return {
        "runs": [
            {"n": commit.name, "u": commit.url, "d": f"{run.date:%m-%d}", "a": commit.about}
            for run, commit in section.runs
        ],
        "cards": [card.charts for card in section.cards],
    }


def asset(name: str) -> str:
    """The text of a file in page/."""
    return (files("klppo_compile.perf.page") / name).read_text(encoding="utf-8")


def digest(text: str) -> str:
    """A text's SHA-256 as a content policy names it."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"
