"""--mode compare from the command line."""

from __future__ import annotations

import csv
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from score_diffusion.run.main import main


@pytest.fixture
def compare(tmp_path: Path) -> Callable[..., int]:
    def run(*arguments: object) -> int:
        return main(["--mode", "compare", *map(str, arguments), "--workdir", str(tmp_path / "out")])

    return run


def results(tmp_path: Path, number: str = "") -> list[dict]:
    return json.loads((tmp_path / f"out/comparison{number}.json").read_text())["results"]


@pytest.mark.slow
def test_compare_draws_what_is_missing_and_writes_one_table_and_one_picture(
    compare: Callable, trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    arguments = [trained, "--config.compare.samplers=eabm,euler", "--config.compare.nfe=4,6"]
    assert compare(*arguments, "--config.sampling.num_samples=40", "--config.sampling.eabm.order=2") == 0
    found = results(tmp_path)
    assert [(r["sampler"], r["nfe"]) for r in found] == [
        *(("eabm", 4), ("eabm", 6), ("euler", 4), ("euler", 6)),
    ]
    assert len({r["digest"] for r in found}) == 1 and all(r["num_samples"] == 40 for r in found)
    with open(tmp_path / "out/comparison.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    for row, record in zip(rows, found, strict=True):
        assert float(row["frechet_distance"]) == record["samples"]["frechet_distance"]
        assert float(row["recall_standard_error"]) == record["samples_standard_error"]["recall"]
    printed = capsys.readouterr().out
    page = (tmp_path / "out/comparison.html").read_text()
    for record in found:
        assert (
            f"{record['samples']['frechet_distance']:.4g} ±" in printed
            and f"<td>{record['nfe']}</td>" in page
        )
    assert (tmp_path / "out/comparison.png").read_bytes().startswith(b"\x89PNG") and "<svg" in page
    drawn = sorted(path.name for path in (trained / "samples").glob("*.npz"))
    assert len(drawn) == 4
    assert compare(*arguments, "--config.sampling.num_samples=40", "--config.sampling.eabm.order=2") == 0
    assert sorted(path.name for path in (trained / "samples").glob("*.npz")) == drawn
    assert results(tmp_path, "-2") == found


def test_runs_and_results_of_evaluate_are_compared(
    compare: Callable, cli: Callable, trained: Path, tmp_path: Path, refused: Callable
):
    assert cli("evaluate", trained) == 0
    other = Path(shutil.copytree(trained, tmp_path / "other"))
    message = refused(compare(trained, "--config.compare.metric=accuracy_on_samples"))
    assert "was not measured on these samples: choose one of frechet_distance" in message
    assert compare(trained, other, trained / "evaluation.json") == 0
    found = results(tmp_path)
    assert [Path(r["run"]).name for r in found] == ["trained", "other", "evaluation.json"]
    assert found[0]["samples"] == found[1]["samples"] == found[2]["samples"]


def test_unlike_results_are_refused(
    compare: Callable, cli: Callable, trained: Path, tmp_path: Path, refused: Callable
):
    assert cli("evaluate", trained) == cli("evaluate", trained, "--config.sampling.num_samples=6") == 0
    assert cli("evaluate", trained, "--config.evaluation.reference=train") == 0
    files = [trained / f"evaluation{number}.json" for number in ("", "-2", "-3")]
    assert "another number of samples: num_samples is 5 there and 6" in refused(compare(*files[:2]))
    assert "another data, features or settings" in refused(compare(files[0], files[2]))
    assert not (tmp_path / "out").exists()


def test_runs_of_different_data_are_refused_before_anything_is_drawn(
    compare: Callable, trained: Path, tmp_path: Path, refused: Callable
):
    other = Path(shutil.copytree(trained, tmp_path / "other"))
    record = json.loads((other / "data.json").read_text())
    (other / "data.json").write_text(json.dumps({**record, "name": "letters"}))
    message = refused(compare(trained, other, "--config.compare.nfe=4"))
    assert "they were trained on different data" in message and "letters" in message
    assert not list((trained / "samples").glob("*.npz"))


def test_what_cannot_be_compared_is_refused_in_one_sentence(
    compare: Callable, trained: Path, tmp_path: Path, refused: Callable
):
    assert "needs run directories" in refused(compare())
    assert "holds no run" in refused(compare(tmp_path / "none"))
    assert "nosuch" in refused(compare(trained, "--config.compare.samplers=nosuch"))
    message = refused(compare(trained, "--config.compare.samplers=eabm", "--config.sampling.pc.snr=0.2"))
    assert "option of sampler 'pc'" in message
    assert "names, such as frechet_distance" in refused(compare(trained, "--config.compare.metric=fid"))
    for text in ("{}", '{"digest": 1}', "[1]"):
        (tmp_path / "bad.json").write_text(text)
        assert "is damaged" in refused(compare(tmp_path / "bad.json"))


def test_a_function_that_only_a_run_names_is_not_called(
    compare: Callable, trained: Path, tmp_path: Path, refused: Callable
):
    config = json.loads((trained / "config.json").read_text())
    config["evaluation"]["features"] = "os:getcwd"
    (trained / "config.json").write_text(json.dumps(config))
    assert "only if you name it yourself" in refused(compare(trained))


def test_guidance_scales_are_compared(compare: Callable, trained: Path, tmp_path: Path, refused: Callable):
    assert "set --config.sampling.guidance" in refused(compare(trained, "--config.compare.scales=1,2"))
    guided = ["--config.sampling.guidance=autoguidance", "--config.sampling.autoguidance.checkpoint=4"]
    assert compare(trained, *guided, "--config.compare.scales=1,3", "--config.compare.nfe=6") == 0
    found = results(tmp_path)
    assert ["scale 1.0" in r["guidance"] for r in found] == [True, False]
    assert ["scale 3.0" in r["guidance"] for r in found] == [False, True]
    assert found[0]["samples"] != found[1]["samples"] and found[0]["real"] == found[1]["real"]
    assert (tmp_path / "out/comparison.csv").read_text().startswith("run,sampler,guidance,nfe,")
