"""The playground: one page without anything from elsewhere. In: its template. Out: the page, and what it may do."""

from __future__ import annotations

from pathlib import Path

from luthier.page.render import render

CONTENT_POLICY = (
    "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; connect-src 'self'; "
    "img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
TEMPLATE = Path(__file__).parent / "playground.html.jinja"


def page() -> str:
    return render(TEMPLATE, {})
