"""The explorer's server: `streamlit run apps/explorer.py [-- --root DIR]`, or `python -m apps`."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import streamlit
from starlette.middleware import Middleware
from starlette.responses import RedirectResponse
from starlette.routing import Route
from streamlit.starlette import App

from apps import warm_up

if TYPE_CHECKING:
    from starlette.requests import Request
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

SCRIPTS = Path(streamlit.__file__).parent / "static" / "static" / "js"
HINTED = ("PlotlyChart", "DataFrame")
"""Streamlit's scripts for charts and tables, which a browser asks for only when the first of them is to be drawn."""


class PageHeaders:
    """Name these scripts in the header of each page, so that they load while Python works on its content.

    And forbid other sites to show the page within theirs, where a visitor might click what they don't see.
    """

    def __init__(self, app: ASGIApp):
        self._app = app
        scripts = [path.name for name in HINTED for path in SCRIPTS.glob(f"{name}.*.js")]
        self._headers = [(b"content-security-policy", b"frame-ancestors 'self'")]
        self._headers += [(b"link", f"</static/js/{name}>; rel=modulepreload".encode()) for name in scripts]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""

        async def hint(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = message["headers"] = list(message["headers"])
                if any(key.lower() == b"content-type" and value.startswith(b"text/html") for key, value in headers):
                    headers += self._headers
            await send(message)

        await self._app(scope, receive, hint if scope["type"] == "http" else send)


@asynccontextmanager
async def _lifespan(_: App) -> AsyncIterator[None]:
    warm_up.start()
    yield


async def _first_page(request: Request) -> RedirectResponse:
    """The first page has no name in addresses; whoever gives it one gets there too."""
    return RedirectResponse(f"/?{request.url.query}")


app = App(
    Path(__file__).with_name("router.py"),
    lifespan=_lifespan,
    middleware=[Middleware(PageHeaders)],
    routes=[Route("/runs", _first_page)],
)
