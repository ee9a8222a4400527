"""The page and the JSON behind it, over HTTP."""

from __future__ import annotations

import hmac
import io
from collections.abc import Awaitable, Callable
from pathlib import Path

import PIL.Image
from fastapi import FastAPI, Request, Response
from fastapi.responses import JSONResponse
from fastapi.staticfiles import StaticFiles
from starlette.middleware.trustedhost import TrustedHostMiddleware

from flagscale_vla.config.view import LOOPBACK, ViewRun
from flagscale_vla.data.faults import BadSampleError
from flagscale_vla.data.shards import PNG_MAGIC
from flagscale_vla.view.library import Library

PAGE = Path(__file__).parent / "page"
COOKIE = "view_token"
POLICY = "default-src 'self'; frame-ancestors 'none'"
"""The page loads nothing from elsewhere, and no other page may hold it in a frame."""

Next = Callable[[Request], Awaitable[Response]]


def make_app(library: Library, run: ViewRun) -> FastAPI:
    """The application: reads only, and answers only to visitors that may look."""
    app = FastAPI(title="view_data", docs_url=None, redoc_url=None, openapi_url=None)
    add_routes(app, library)
    add_errors(app)
    app.mount("/", StaticFiles(directory=PAGE, html=True))
    if run.token:
        add_token(app, run.token)
    if run.host in LOOPBACK:
        # A page elsewhere could otherwise point a name of its own at this address and read what is answered.
        app.add_middleware(TrustedHostMiddleware, allowed_hosts=[name for name in LOOPBACK if ":" not in name])
    add_headers(app)
    return app


def add_routes(app: FastAPI, library: Library) -> None:
    """What the page asks for."""

    @app.get("/api/overview")
    def overview() -> list[dict[str, object]]:
        return library.overview()

    @app.get("/api/mixture")
    def mixture(packs: int) -> list[dict[str, object]]:
        return library.mixture(packs)

    @app.get("/api/packs/{number}")
    def pack(number: int) -> dict[str, object]:
        return library.pack(number)

    @app.get("/api/sources/{source}/shards/{shard}")
    def episodes(source: str, shard: str) -> list[dict[str, object]]:
        return library.shelf(source).episodes(shard)

    @app.get("/api/sources/{source}/shards/{shard}/episode")
    def episode(source: str, shard: str, name: str) -> dict[str, object]:
        return library.shelf(source).episode(shard, name)

    @app.get("/api/sources/{source}/samples/{number}")
    def sample(source: str, number: int, epoch: int = 0) -> dict[str, object]:
        return library.shelf(source).described(number, epoch)

    @app.get("/api/sources/{source}/samples/{number}/stored/{place}")
    def stored(source: str, number: int, place: int) -> Response:
        encoded = library.shelf(source).stored_picture(number, place)
        kind = "image/png" if encoded.startswith(PNG_MAGIC) else "image/jpeg"
        return Response(encoded, media_type=kind)

    @app.get("/api/sources/{source}/samples/{number}/seen/{place}")
    def seen(source: str, number: int, place: int, epoch: int = 0) -> Response:
        buffer = io.BytesIO()
        PIL.Image.fromarray(library.shelf(source).seen_picture(number, epoch, place)).save(buffer, "PNG")
        return Response(buffer.getvalue(), media_type="image/png")


def add_errors(app: FastAPI) -> None:
    """What is not there and what cannot be used are told in one line."""

    @app.exception_handler(LookupError)
    def missing(request: Request, error: LookupError) -> JSONResponse:
        return JSONResponse({"error": str(error)}, 404)

    @app.exception_handler(BadSampleError)
    def unusable(request: Request, error: BadSampleError) -> JSONResponse:
        return JSONResponse({"error": str(error)}, 422)


def add_token(app: FastAPI, token: str) -> None:
    """Turn away who does not show the token: as `Authorization: Bearer`, or once as `?token=`, kept as a cookie."""

    @app.middleware("http")
    async def check(request: Request, answer: Next) -> Response:
        asked = request.query_params.get("token", "")
        shown = [
            request.headers.get("authorization", "").removeprefix("Bearer "),
            request.cookies.get(COOKIE, ""),
            asked,
        ]
        if not any(hmac.compare_digest(one.encode(), token.encode()) for one in shown):
            return JSONResponse({"error": "the token is missing or wrong: open the address with ?token=..."}, 401)
        response = await answer(request)
        if asked:
            response.set_cookie(COOKIE, token, httponly=True, samesite="strict")
        return response


def add_headers(app: FastAPI) -> None:
    """Tell browsers to be strict with the page."""

    @app.middleware("http")
    async def guard(request: Request, answer: Next) -> Response:
        response = await answer(request)
        response.headers["Content-Security-Policy"] = POLICY
        response.headers["X-Content-Type-Options"] = "nosniff"
        response.headers["Cache-Control"] = "no-store"
        return response
