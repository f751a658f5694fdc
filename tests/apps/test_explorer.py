"""The server's side of the explorer."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from pathlib import Path

import pytest
from streamlit.web.server.app_discovery import discover_asgi_app

from apps.explorer import HINTED, SCRIPTS, PageHeaders

CHECKOUT = Path(__file__).parents[2]


def headers_of(scope: dict, kind: bytes) -> list[tuple[bytes, bytes]]:
    """Of an answer of this kind that went through `PageHeaders`."""
    sent = []

    async def answer(scope, receive, send):
        await send({"type": "http.response.start", "status": 200, "headers": [(b"Content-Type", kind)]})
        await send({"type": "http.response.body", "body": b"x"})

    async def send(message):
        sent.append(message)

    asyncio.run(PageHeaders(answer)(scope, None, send))
    assert sent[1] == {"type": "http.response.body", "body": b"x"}
    return sent[0]["headers"]


def test_streamlit_finds_the_app_and_its_script():
    assert discover_asgi_app(CHECKOUT / "apps" / "explorer.py").import_string == "explorer:app"


def test_pages_name_the_scripts_that_will_be_needed_and_are_not_shown_within_other_sites():
    found = headers_of({"type": "http"}, b"text/html; charset=utf-8")
    links = [value.decode() for name, value in found if name == b"link"]
    named = [link.removesuffix(">; rel=modulepreload").removeprefix("</static/js/") for link in links]
    assert len(named) == len(HINTED) and all((SCRIPTS / name).is_file() for name in named)
    assert (b"content-security-policy", b"frame-ancestors 'self'") in found


@pytest.mark.parametrize(
    ("scope", "kind"), [({"type": "http"}, b"application/javascript"), ({"type": "websocket"}, b"text/html")]
)
def test_what_is_no_page_stays_as_it_is(scope, kind):
    assert headers_of(scope, kind) == [(b"Content-Type", kind)]


def test_warm_up_loads_what_the_first_page_needs_and_no_torch():
    code = (
        "import sys\nfrom apps import warm_up\nwarm_up.wait()\nassert 'pandas' not in sys.modules\n"
        "warm_up.start()\nwarm_up.wait()\nwarm_up.wait()\n"
        "assert {'pandas', 'pyarrow', 'apps.views.runs', 'plotly.graph_objs'} <= set(sys.modules)\n"
        "assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=CHECKOUT)
