"""The page's server: what it serves, and what it refuses, from whom and of which size."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from werkzeug.test import Client, TestResponse

from score_diffusion import load_run
from score_diffusion.run.data.toys import load_digits
from score_diffusion.run.demo.app import App
from score_diffusion.run.python.run import Run
from tests.run.demo.test_work import DRAW

HERE = "http://localhost:7860"
PAGE = {"page": "a", "run": 0}


@pytest.fixture(scope="module")
def app(finished_run: Path) -> App:
    return App([load_run(finished_run)], "127.0.0.1", max_upload_mib=0.25)


@pytest.fixture
def client(app: App) -> Client:
    return Client(app)


def post(client: Client, path: str, value: object, **more: object) -> TestResponse:
    return client.post(path, json=value, base_url=HERE, **more)


def messages(response: TestResponse) -> list[dict]:
    assert response.status_code == 200, response.text
    return [json.loads(line) for line in response.text.splitlines()]


def png(pixels: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def test_the_page_fetches_nothing_from_elsewhere(client: Client):
    for path, kind in (("/", "text/html"), ("/page.css", "text/css"), ("/page.js", "text/javascript")):
        response = client.get(path, base_url=HERE)
        assert response.status_code == 200 and response.mimetype == kind
        assert "http:" not in response.text and "https:" not in response.text and "//cdn" not in response.text
        policy = response.headers["Content-Security-Policy"]
        assert policy.startswith("default-src 'none'; script-src 'self';") and "unsafe" not in policy


def test_the_choices_are_those_of_the_runs(client: Client, app: App):
    found = client.get("/choices", base_url=HERE).json
    assert [run["name"] for run in found["runs"]] == [str(app.runs[0].path)]
    assert found["max_bytes"] == 2**18 and found["runs"][0]["sampler"] == "eabm"


def test_samples_are_streamed(client: Client, app: App, pixels: Callable):
    *frames, last = messages(post(client, "/draw", PAGE | DRAW))
    assert {frame["kind"] for frame in frames} == {"frame"} and last["kind"] == "done"
    levels = app.runs[0].sample(5, sampler="eabm", nfe=9, seed=3).values * (255 / 16)
    np.testing.assert_allclose(pixels(last["sheet"])[..., 0], levels, atol=0.5)


def test_held_out_images_and_uploads_are_samples_of_the_run(client: Client, pixels: Callable):
    response = client.get("/held_out?run=0&index=902", base_url=HERE)
    stored, label = load_digits().test[3, 0].numpy(), load_digits().test_conditions["label"][3]
    assert response.json["words"] == f"held-out image 3 of 899, class {label}"
    np.testing.assert_allclose(pixels(response.json)[0, ..., 0], stored * (255 / 16), atol=0.5)
    content = {"data": png(np.full((20, 20), 255, np.uint8)), "content_type": "application/octet-stream"}
    response = client.post("/upload?run=0", base_url=HERE, **content)
    assert (pixels(response.json) == 255).all() and "resized from 20x20 to 8x8" in response.json["words"]


def test_errors_are_messages(client: Client):
    (last,) = messages(post(client, "/draw", PAGE | DRAW | {"sampler": "none"}))
    assert last["kind"] == "error" and "sampling.sampler" in last["sentence"]


def test_a_stop_needs_no_work(client: Client):
    assert post(client, "/stop", {"page": "nobody"}).status_code == 200


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("/draw", PAGE, "it lacks count"),
        ("/draw", PAGE | DRAW | {"run": 1}, "no run 1"),
        ("/draw", PAGE | DRAW | {"count": 10**6}, "count must be"),
        ("/draw", PAGE | DRAW | {"seed": "1; rm"}, "seed must be an integer"),
        ("/score", [], "a list, not an object"),
        ("/upload?run=0", {}, "not of a format that is read"),
        ("/upload?run=9", {}, "no run 9"),
    ],
)
def test_what_cannot_be_used_is_refused_in_a_sentence(path: str, value: object, message: str, client: Client):
    response = post(client, path, value)
    assert response.status_code == 400 and message in response.json["sentence"]


def test_other_addresses_and_methods_do_not_exist(client: Client):
    for path in ("/../../etc/passwd", "/page/page.js", "/config.json", "/draw/"):
        assert client.get(path, base_url=HERE).status_code == 404
    assert client.get("/draw", base_url=HERE).status_code == 405
    assert client.get("/held_out?run=-1", base_url=HERE).status_code == 400


def test_what_is_too_large_is_refused_unread(client: Client):
    class Unread(io.BytesIO):
        def read(self, size: int | None = -1) -> bytes:
            raise AssertionError("it was read")

    stream = {"input_stream": Unread(), "content_type": "application/octet-stream"}
    size = {"CONTENT_LENGTH": str(2**18 + 1)}
    response = client.post("/upload?run=0", base_url=HERE, environ_overrides=size, **stream)
    assert response.status_code == 413 and "at most 0.25 MiB" in response.json["sentence"]
    chunked = {"HTTP_TRANSFER_ENCODING": "chunked", "CONTENT_LENGTH": "", "wsgi.input_terminated": True}
    response = client.post("/upload?run=0", base_url=HERE, environ_overrides=chunked, **stream)
    assert response.status_code == 411 and "must be stated" in response.json["sentence"]


@pytest.mark.parametrize(
    ("base", "headers", "content_type"),
    [
        ("http://evil.example:7860", {}, "application/json"),
        ("http://localhost.evil.example:7860", {}, "application/json"),
        (HERE, {"Origin": "http://evil.example"}, "application/json"),
        (HERE, {"Origin": "null"}, "application/json"),
        (HERE, {"Origin": "http://localhost:8000"}, "application/json"),
        (HERE, {}, "text/plain"),
        (HERE, {}, "application/x-www-form-urlencoded"),
    ],
)
def test_other_sites_cannot_use_the_page(base: str, headers: dict, content_type: str, client: Client):
    response = client.post(
        "/draw", base_url=base, headers=headers, content_type=content_type, data=json.dumps(PAGE | DRAW)
    )
    assert response.status_code == 403 and "Access-Control-Allow-Origin" not in response.headers


@pytest.mark.parametrize("base", [HERE, "http://127.0.0.1:7860", "http://[::1]:7860", "http://localhost"])
def test_this_machine_can(base: str, client: Client):
    origin = {"Origin": base}
    response = client.post("/stop", base_url=base, json={"page": "a"}, headers=origin)
    assert response.status_code == 200
    assert client.get("/", base_url=base).status_code == 200


def test_bound_to_other_addresses_it_has_any_name_but_serves_its_own_page_only(points: Run):
    client = Client(App([points], "0.0.0.0", 1.0))
    assert client.get("/", base_url="http://server.example:7860").status_code == 200
    value = {"page": "a"}
    for origin, code in (("http://server.example:7860", 200), ("http://evil.example", 403)):
        response = client.post(
            "/stop", base_url="http://server.example:7860", json=value, headers={"Origin": origin}
        )
        assert response.status_code == code


def test_points_are_not_filled_in(points: Run):
    client = Client(App([points], "127.0.0.1", 1.0))
    content = {"data": b"0", "content_type": "application/octet-stream"}
    for response in (
        client.post("/upload?run=0", base_url=HERE, **content),
        post(client, "/score", PAGE | {"image": "", "draws": 1, "seed": 0, "label": ""}),
    ):
        assert response.status_code == 400 and "points, not images" in response.json["sentence"]
