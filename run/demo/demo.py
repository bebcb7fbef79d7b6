"""`--mode demo RUN RUN ...`: a local web page to draw samples, fill masks in and score images.

score-diffusion --mode demo --workdir runs/vpsde
score-diffusion --mode demo runs/vpsde runs/vpsde_cfg --config.demo.port=8080
"""

from __future__ import annotations

import socket
import threading
from collections.abc import Sequence
from pathlib import Path

from werkzeug.serving import BaseWSGIServer, WSGIRequestHandler, make_server

from score_diffusion.models import ENCODERS
from score_diffusion.run.build import USES
from score_diffusion.run.config import Overrides, apply_overrides
from score_diffusion.run.console import print_result, silence, warn
from score_diffusion.run.demo.app import App, is_loopback
from score_diffusion.run.distributed import processes
from score_diffusion.run.errors import UserError
from score_diffusion.run.python.run import Run, load_run
from score_diffusion.run.systems.system import is_system, read_system

WAITING_CONNECTIONS = 64
SECONDS = 60.0  # that a connection may be silent


def demo(paths: Sequence[Path], overrides: Overrides, device: str) -> int:
    """Serves the page until it is interrupted; returns the exit code.

    Args:
        paths: Run directories.
        overrides: Keys that the user sets, for all runs.
        device: Where to compute, as `load_run` takes it.

    Raises:
        UserError: If a run cannot be loaded, or the address cannot be used.
    """
    if processes.world_size() > 1:
        raise UserError("--mode demo is one process: start it without torchrun")
    runs = [open_run(path, overrides, device) for path in paths]
    section = runs[0].config.demo
    listening = listen(section.host, section.port)
    with silence():  # guidance is tried
        app = App(runs, section.host, section.max_upload_mib, "data.path" in dict(overrides))
    server = make_page_server(app, section.host, listening)
    if not is_loopback(section.host):
        warn(f"whoever reaches {section.host} can use this page: there is no password")
    address = f"http://{_bracketed(section.host)}:{server.port}/"
    print_result("The page is ready. Ctrl-C ends it.", [("address", address), *_rows(runs)])
    with silence():
        server.serve_forever()
    app.turns.stop_all()
    for thread in threading.enumerate():  # torch may abort if the process ends within a request
        if "process_request" in thread.name:
            thread.join(1.0)
    return 0


def _rows(runs: Sequence[Run]) -> list[tuple[str, object]]:
    return [("run", run.path) for run in runs]


def _bracketed(host: str) -> str:
    return f"[{host}]" if ":" in host else host


def open_run(path: Path, overrides: Overrides, device: str) -> Run:
    """A run with keys that the user sets.

    Raises:
        UserError: If there is none, it is not trained, or it draws no samples.
    """
    if is_system(path):
        read_system(path).refuse_whole("demo")
    run = load_run(path, device)
    if run.config.model.name in ENCODERS:
        raise UserError(
            f"{path} holds a {run.config.model.name}, which draws no samples: name the run that it serves, "
            f"and this one by {USES[run.config.model.name]}={path}"
        )
    run.config = apply_overrides(run.config, overrides, "demo")
    if run.data.decoded is not None:
        raise UserError(f"{path} works on latents, and the page shows models of pixels: use --mode sample")
    return run


def listen(host: str, port: int) -> socket.socket:
    """A socket that listens at an address.

    Raises:
        UserError: If the address cannot be used.
    """
    try:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        listening = socket.socket(family)
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind((host, port))
        listening.listen(WAITING_CONNECTIONS)
    except OSError as error:
        raise UserError(
            f"the page cannot be served at {_bracketed(host)}:{port} ({error.strerror or error}): choose "
            "another port with --config.demo.port=, 0 for any that is free, or another --config.demo.host="
        ) from error
    return listening


class QuietHandler(WSGIRequestHandler):
    """Handles requests without a line in the terminal for each."""

    timeout = SECONDS

    def log(self, type: str, message: str, *args: object) -> None:
        """Says nothing."""


def make_page_server(app: App, host: str, listening: socket.socket) -> BaseWSGIServer:
    """A server of the page, a thread for each connection."""
    port = listening.getsockname()[1]
    server = make_server(host, port, app, threaded=True, request_handler=QuietHandler, fd=listening.fileno())
    listening.close()  # the server has a copy
    return server
