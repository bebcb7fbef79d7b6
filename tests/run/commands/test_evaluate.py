"""--mode evaluate from the command line."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np


def test_evaluate_draws_samples_unless_a_file_of_these_settings_is_there(
    snapshot: Callable, cli: Callable, trained: Path, capsys
):
    assert cli("evaluate", trained) == 0
    assert {"eabm.npz", "eabm.png"} <= set(snapshot(trained / "samples"))
    assert cli("evaluate", trained) == 0
    assert not (trained / "samples/eabm-2.npz").exists()
    assert cli("evaluate", trained, "--config.sampling.num_samples=6") == 0
    assert cli("evaluate", trained, "--config.sampling.seed=1") == 0
    results = [json.loads((trained / f"evaluation{n}.json").read_text()) for n in ("", "-2", "-3", "-4")]
    assert [result["file"] for result in results] == ["eabm.npz", "eabm.npz", "eabm-2.npz", "eabm-3.npz"]
    assert results[0]["samples"] == results[1]["samples"]
    assert [result["num_real"] for result in results] == [5, 5, 6, 5]
    assert results[0]["real"] == results[3]["real"] != results[2]["real"]
    assert len({result["digest"] for result in results}) == 1 and results[3]["seed"] == 1
    assert results[0]["nfe"] == 5 and results[0]["seconds_per_sample"] > 0
    assert results[0]["samples"].keys() == results[0]["real"].keys()


def test_evaluate_looks_for_copies_and_keeps_the_reference(snapshot: Callable, cli: Callable, trained: Path):
    assert cli("evaluate", trained) == 0
    record = json.loads((trained / "evaluation.json").read_text())
    found = record["copies"]["raw pixels"]
    assert (
        found["nearer_than_new_data"] == 0 and found["median_distance"] > found["median_distance_of_new_data"]
    )
    assert len(found["nearest_samples"]) == 5 and (trained / "evaluation-copies.png").exists()
    kept = snapshot(trained / "reference")
    assert len(kept) == 2
    assert cli("evaluate", trained) == 0
    assert snapshot(trained / "reference") == kept
    assert cli("evaluate", trained, "--config.evaluation.reference=train") == 0
    other = json.loads((trained / "evaluation-3.json").read_text())
    assert other["reference"] == "training data" and other["num_reference"] == 898
    assert other["digest"] != record["digest"]


def test_evaluate_takes_features_of_a_function_that_the_user_names(
    cli: Callable, trained: Path, tmp_path: Path, refused: Callable
):
    file = tmp_path / "features.py"
    file.write_text("def halves(x):\n    return x.flatten(2).mean(2), (10 * x.flatten(1)).softmax(1)\n")
    assert cli("evaluate", trained, f"--config.evaluation.features={file}:halves") == 0
    record = json.loads((trained / "evaluation.json").read_text())
    assert record["measured_on"] == f"the function {file}:halves"
    assert 1 < record["samples"]["classifier_score"] < 64
    assert list(record["copies"]) == ["raw pixels", record["measured_on"]]
    assert "does not exist" in refused(cli("evaluate", trained, "--config.evaluation.features=inception.pth"))


def test_a_function_that_only_the_run_directory_names_is_not_called(
    cli: Callable, trained: Path, tmp_path: Path, refused: Callable
):
    file = tmp_path / "evil.py"
    file.write_text(f"open({str(tmp_path / 'called')!r}, 'w')\n")
    config = json.loads((trained / "config.json").read_text())
    config["evaluation"]["features"] = f"{file}:function"
    (trained / "config.json").write_text(json.dumps(config))
    assert "only if you name it yourself" in refused(cli("evaluate", trained))
    assert not (tmp_path / "called").exists()
    assert cli("sample", trained) == 0


def test_evaluate_compares_with_a_file_of_statistics(cli: Callable, trained: Path, tmp_path: Path, refused):
    np.savez(tmp_path / "fid.npz", mu=np.zeros(64), sigma=np.eye(64))
    assert cli("evaluate", trained, f"--config.evaluation.reference={tmp_path / 'fid.npz'}") == 0
    record = json.loads((trained / "evaluation.json").read_text())
    assert list(record["samples"]) == ["frechet_distance"] and record["num_reference"] == 0
    np.savez(tmp_path / "fid.npz", mu=np.zeros(3), sigma=np.eye(3))
    message = refused(cli("evaluate", trained, f"--config.evaluation.reference={tmp_path / 'fid.npz'}"))
    assert "64 features and the reference 3" in message
    assert "must be held_out, train" in refused(
        cli("evaluate", trained, "--config.evaluation.reference=test")
    )


def test_the_configuration_of_an_older_run_lacks_the_keys_of_evaluation(cli: Callable, trained: Path):
    config = json.loads((trained / "config.json").read_text())
    del config["evaluation"]
    (trained / "config.json").write_text(json.dumps(config))
    assert cli("evaluate", trained) == 0


def test_samples_of_classes_are_classified_both_ways(cli: Callable, tmp_path: Path):
    assert cli("train", tmp_path / "run", "--config.training.conditional=true") == 0
    assert cli("evaluate", tmp_path / "run", "--config.sampling.num_samples=40") == 0
    record = json.loads((tmp_path / "run/evaluation.json").read_text())
    for name in ("accuracy_on_samples", "accuracy_from_samples"):
        assert 0 <= record["samples"][name] < 0.6 < record["real"][name] <= 1
        assert record["samples_standard_error"][name] > 0
