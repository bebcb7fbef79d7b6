"""Runs that are shared: the round trip through a folder, the card, and the calls of the hub's client."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from fnmatch import fnmatch
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from score_diffusion import Run, load_run
from score_diffusion.run.checkpoints import checkpoint
from score_diffusion.run.config import read_config
from score_diffusion.run.errors import UserError
from score_diffusion.run.main import main
from score_diffusion.run.python.hub import PATTERNS
from tests.run.conftest import TINY


@pytest.fixture(scope="module")
def shared(finished_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with a result, as it is shared."""
    folder = tmp_path_factory.mktemp("shared")
    workdir = folder / "run"
    shutil.copytree(finished_run, workdir)
    assert main(["--mode", "likelihood", "--workdir", str(workdir), "--config.likelihood.num_images=2"]) == 0
    return load_run(workdir).save_pretrained(folder / "out", licence="mit", name="me/digits", samples=4)


def test_the_round_trip_keeps_samples_weights_and_training(shared: Path, finished_run: Path, tmp_path: Path):
    run, original = Run.from_pretrained(shared), load_run(finished_run)
    assert np.array_equal(run.sample(3).samples, original.sample(3).samples)
    assert run.data == original.data and run.step == original.step
    for part in ("model", "ema"):
        name = f"checkpoints/00000008/{part}.safetensors"
        assert (shared / name).read_bytes() == (finished_run / name).read_bytes()
    resumed = tmp_path / "resumed"
    shutil.copytree(shared, resumed)
    arguments = ["--config", TINY, "--workdir", str(resumed), "--config.training.steps=10"]
    assert main(["--mode", "train", *arguments]) == 0
    assert checkpoint.latest(resumed).step == 10


def test_the_folder_holds_what_the_hub_may_be_asked_for_and_no_more(shared: Path):
    files = {path.relative_to(shared).as_posix() for path in shared.rglob("*") if path.is_file()}
    assert {"README.md", "samples.png", "config.json", "likelihood.json"} <= files
    read = {name for name in files if any(fnmatch(name, pattern) for pattern in PATTERNS)}
    assert read == files - {"README.md", "samples.png"}


def test_the_card(shared: Path):
    text = (shared / "README.md").read_text()
    assert text.startswith("---\nlibrary_name: score-diffusion\nlicense: mit\n")
    assert "# me/digits\n" in text and 'Run.from_pretrained("me/digits")' in text
    for name in ("likelihood.json", "checkpoints/00000008/ema.safetensors"):
        assert hashlib.sha256((shared / name).read_bytes()).hexdigest() in text
    bits = json.loads((shared / "likelihood.json").read_text())["bits_per_dim"]
    assert f"| bits_per_dim | {bits:.4g} ± " in text and "bits/dim | 2 | likelihood.json" in text
    assert "training.steps = 8" in text and "![Samples](samples.png)" in text


def test_paths_of_this_machine_are_left_out(trained: Path, tmp_path: Path):
    config = json.loads((trained / "config.json").read_text())
    config["data"]["path"] = "/home/someone/secret.npz"
    config["sampling"]["conditions"] = "~/secret.npz"
    (trained / "config.json").write_text(json.dumps(config))
    (trained / "likelihood.json").write_text(json.dumps({"settings": {"file": "/home/someone/x"}, "n": 1.5}))
    folder = load_run(trained).save_pretrained(tmp_path / "out", samples=0)
    written = "".join(path.read_text() for path in (*folder.glob("*.json"), folder / "README.md"))
    assert "secret" not in written and "someone" not in written
    assert (
        read_config(folder).data.path == ""
        and json.loads((folder / "likelihood.json").read_text())["n"] == 1.5
    )
    text = (folder / "README.md").read_text()
    assert "license: other" in text and "not stated" in text and "samples.png)" not in text


def test_what_cannot_be_shared_is_refused(trained: Path, tmp_path: Path):
    run = load_run(trained)
    with pytest.raises(UserError, match="is not empty"):
        run.save_pretrained(trained)
    with pytest.raises(UserError, match="a network of your own cannot be shared"):
        Run(run.config, run._models.unconditioned, tmp_path).save_pretrained(tmp_path / "out")
    assert not (tmp_path / "out").exists()


def fake_hub(monkeypatch: pytest.MonkeyPatch, **names: Callable) -> None:
    monkeypatch.setitem(__import__("sys").modules, "huggingface_hub", SimpleNamespace(**names))


def test_uploading_and_downloading(trained: Path, tmp_path: Path, monkeypatch):
    """The calls of the hub's client; its own behaviour is its own."""
    remote, calls = tmp_path / "remote", []

    class HfApi:
        def __init__(self, token: str | None) -> None:
            calls.append(token)

        def create_repo(self, name: str, private: bool, exist_ok: bool) -> str:
            calls.append((name, private, exist_ok))
            return f"https://hub/{name}"

        def upload_folder(self, repo_id: str, folder_path: Path, commit_message: str) -> None:
            shutil.copytree(folder_path, remote)

    def snapshot_download(name: str, revision: str | None, token: str | None, allow_patterns: list) -> str:
        assert (name, revision, allow_patterns) == ("me/digits", "v1", list(PATTERNS))
        return str(remote)

    def snapshot_download_as_links(*arguments: object, **options: object) -> str:
        """As the client's cache has them: links to files of other names."""
        snapshot_download(*arguments, **options)  # type: ignore[arg-type]
        for k, path in enumerate([path for path in remote.rglob("*") if path.is_file()]):
            linked = tmp_path / "cache" / path.relative_to(remote)
            linked.parent.mkdir(parents=True, exist_ok=True)
            path.rename(tmp_path / f"blob-{k}")
            linked.symlink_to(tmp_path / f"blob-{k}")
        return str(tmp_path / "cache")

    fake_hub(monkeypatch, HfApi=HfApi, snapshot_download=snapshot_download_as_links)
    monkeypatch.chdir(tmp_path)
    run = load_run(trained)
    assert run.push_to_hub("me/digits", private=True, token="t", samples=0) == "https://hub/me/digits"
    assert calls == ["t", ("me/digits", True, True)]
    again = Run.from_pretrained("me/digits", revision="v1")
    assert np.array_equal(again.sample(2).samples, run.sample(2).samples)


def test_errors_of_the_hub_are_one_sentence(trained: Path, tmp_path: Path, monkeypatch):
    def fail(*_: object, **__: object) -> None:
        raise OSError("no such repository\nRequest ID: 7")

    fake_hub(monkeypatch, HfApi=fail, snapshot_download=fail)
    with pytest.raises(UserError, match="^me/nothing is no folder here, .*: no such repository$"):
        Run.from_pretrained("me/nothing")
    with pytest.raises(UserError, match="^me/nothing cannot be written to: no such repository$"):
        load_run(trained).push_to_hub("me/nothing", samples=0)
    monkeypatch.setitem(__import__("sys").modules, "huggingface_hub", None)
    with pytest.raises(UserError, match=r"pip install 'score-diffusion\[hub\]'"):
        Run.from_pretrained("me/nothing")


def test_our_calls_are_those_that_the_client_takes():
    import inspect

    hub = pytest.importorskip("huggingface_hub")
    inspect.signature(hub.snapshot_download).bind("me/x", revision=None, token=None, allow_patterns=[])
    inspect.signature(hub.HfApi).bind(token=None)
    inspect.signature(hub.HfApi.create_repo).bind(None, "me/x", private=False, exist_ok=True)
    inspect.signature(hub.HfApi.upload_folder).bind(
        None, repo_id="me/x", folder_path=Path(), commit_message="x"
    )
