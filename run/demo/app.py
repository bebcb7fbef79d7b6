"""The page's server: a WSGI application that knows which requests it takes, from where, and how large.

    GET  /, /page.css, /page.js       the page, which fetches nothing from elsewhere
    GET  /choices                     what each run offers
    GET  /held_out?run=0&index=5      a held-out image
    POST /upload?run=0                an image file, decoded as those of data sets are
    POST /draw, /fill, /score         a stream of messages, one JSON object a line
    POST /stop                        ends the work of a page

Only pages of this server may ask it for something: a request must name it as its host, which keeps names of
others that lead here out (DNS rebinding), and come from its own page, which other sites cannot (the header
Origin, and a content type that they may not send unasked).
"""

from __future__ import annotations

import functools
import ipaddress
import json
import urllib.parse
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from werkzeug.exceptions import (
    Forbidden,
    HTTPException,
    LengthRequired,
    MethodNotAllowed,
    NotFound,
    RequestEntityTooLarge,
)
from werkzeug.wrappers import Request, Response

from score_diffusion.run.build import data_options
from score_diffusion.run.demo.choices import choices_of
from score_diffusion.run.demo.held_out import HeldOut
from score_diffusion.run.demo.pictures import are_images, sheet, uploaded
from score_diffusion.run.demo.turns import Message, Turn, Turns
from score_diffusion.run.demo.work import DRAW, FILL, SCORE, draw, fill, score
from score_diffusion.run.errors import UserError
from score_diffusion.run.json_files import Fields, parse_json
from score_diffusion.run.key_types import Values
from score_diffusion.run.python.run import Run
from score_diffusion.sde_lib import InputError

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIEnvironment

FILES = Path(__file__).parent / "page"
PAGE_FILES = {
    "/": ("index.html", "text/html"),
    "/page.css": ("page.css", "text/css"),
    "/page.js": ("page.js", "text/javascript"),
}
WORK: dict[str, tuple[Callable[[Run, dict, Turn], Message], Fields]] = {
    "/draw": (draw, DRAW),
    "/fill": (fill, FILL),
    "/score": (score, SCORE),
}
ASKED = {"page": Values(kind=str), "run": Values(kind=int, least=0)}  # fields of all requests for work
JSON, BYTES = "application/json", "application/octet-stream"
LOOPBACK_NAMES = ("localhost", "127.0.0.1", "[::1]")
HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
}


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches an address."""
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


class App:
    """The application.

    Args:
        runs: The runs of the page.
        host: The address that the server is bound to.
        max_upload_mib: The largest body of a request.
        own_data: Whether the user named the data on the command line.
    """

    def __init__(self, runs: Sequence[Run], host: str, max_upload_mib: float, own_data: bool = False) -> None:
        self.runs = runs
        self.choices = [asdict(choices_of(run)) for run in runs]
        self.held_out = [HeldOut(run, own_data) for run in runs]
        self.turns = Turns()
        self.max_bytes = int(max_upload_mib * 2**20)
        self.names = LOOPBACK_NAMES if is_loopback(host) else None

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        request = Request(environ)
        request.max_content_length = self.max_bytes
        try:
            response = self._answer(request)
        except RequestEntityTooLarge:
            limit = f"{self.max_bytes / 2**20:g} MiB"
            response = _refusal(f"at most {limit} can be uploaded: choose a smaller file", 413)
        except HTTPException as error:
            response = _refusal(error.description or error.name, error.code or 500)
        except (UserError, InputError) as error:
            response = _refusal(str(error), 400)
        response.headers.extend(HEADERS)
        return response(environ, start_response)

    def _answer(self, request: Request) -> Response:
        self._check_origin(request)
        path = request.path
        if path in PAGE_FILES:
            name, kind = PAGE_FILES[path]
            return Response((FILES / name).read_bytes(), content_type=f"{kind}; charset=utf-8")
        if path == "/choices":
            return _json({"runs": self.choices, "max_bytes": self.max_bytes})
        if path == "/held_out":
            run = self._run(request.args.get("run", 0, int))
            image, words = self.held_out[self.runs.index(run)](request.args.get("index", 0, int))
            return _json(sheet(image, run.data).message() | {"words": words})
        if path not in ("/upload", "/stop", *WORK):
            raise NotFound("there is no such page here")
        if request.method != "POST":
            raise MethodNotAllowed(description="this address takes POST only")
        if request.content_length is None:  # it could not be refused before it is read
            raise LengthRequired("the length of the content must be stated")
        if path == "/upload":
            return self._upload(request)
        if path == "/stop":
            self.turns.stop(_fields(request, {"page": ASKED["page"]})["page"])
            return _json({})
        return self._work(request)

    def _check_origin(self, request: Request) -> None:
        """Refuses what does not come from a page of this server.

        Raises:
            Forbidden: If it does not.
        """
        host = request.headers.get("Host", "")
        name = host.rpartition(":")[0] if host.rpartition(":")[2].isdigit() else host
        if self.names is not None and name not in self.names:
            raise Forbidden(f"this page is at {' or '.join(self.names)}, not at {name!r}")
        origin = request.headers.get("Origin")
        if origin is not None and urllib.parse.urlsplit(origin).netloc != host:
            raise Forbidden("only the page of this server may ask it for something")
        if request.method == "POST" and request.mimetype not in (JSON, BYTES):
            raise Forbidden(f"the content type must be {JSON} or {BYTES}")

    def _run(self, index: int) -> Run:
        if not 0 <= index < len(self.runs):
            raise UserError(f"there is no run {index}: load the page again")
        return self.runs[index]

    def _upload(self, request: Request) -> Response:
        run = self._run(request.args.get("run", 0, int))
        if not are_images(run.data):
            raise UserError(f"this run has {run.data.kind}, not images")
        image, words = uploaded(request.get_data(), run.data, data_options(run.config.data))
        return _json(sheet(image, run.data).message() | {"words": words})

    def _work(self, request: Request) -> Response:
        work, fields = WORK[request.path]
        asked = _fields(request, ASKED | dict(fields))
        run = self._run(asked["run"])
        if request.path != "/draw" and not are_images(run.data):
            raise UserError(f"this run has {run.data.kind}, not images")
        messages = self.turns.messages(asked["page"], functools.partial(work, run, asked))
        lines = (json.dumps(message) + "\n" for message in messages)
        return Response(lines, mimetype="application/x-ndjson")


def _fields(request: Request, fields: Fields) -> dict[str, Any]:
    try:
        return parse_json(request.get_data(), fields)
    except ValueError as error:
        raise UserError(f"the request cannot be used: {error}") from error


def _json(value: object) -> Response:
    return Response(json.dumps(value), mimetype=JSON)


def _refusal(sentence: str, code: int) -> Response:
    return Response(json.dumps({"sentence": " ".join(sentence.split())}), code, mimetype=JSON)
