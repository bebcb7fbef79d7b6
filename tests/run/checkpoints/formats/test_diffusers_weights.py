"""The tensors of a model that diffusers saved in any of its ways: one file, shards, variants, torch.save."""

from __future__ import annotations

import json

import pytest
import torch

from score_diffusion.run.checkpoints.formats import diffusers
from score_diffusion.run.errors import UserError
from tests.run.checkpoints.formats.test_diffusers import ours, outputs, peer

pytest.importorskip("diffusers")


@pytest.mark.parametrize(
    "save",
    [
        dict(max_shard_size="100KB"),
        dict(variant="fp16"),
        dict(variant="fp16", max_shard_size="100KB"),
        dict(safe_serialization=False),
        dict(safe_serialization=False, max_shard_size="100KB"),
        dict(safe_serialization=False, variant="non_ema"),
    ],
    ids=lambda save: "-".join(f"{key}={value}" for key, value in save.items()),
)
def test_every_way_of_saving_is_read(save, tmp_path):
    """Sharded, in a variant, with torch.save: the tensors are those of the one safetensors file."""
    model = peer("ddpm")
    model.save_pretrained(tmp_path, **save)
    if "max_shard_size" in save:
        assert len(list(tmp_path.glob("*-of-*"))) > 2
    assert not (tmp_path / diffusers.WEIGHTS).exists()
    net, _ = ours(tmp_path)
    theirs, out = outputs("ddpm", model, net)
    torch.testing.assert_close(out, theirs, rtol=1e-5, atol=1e-5)
    weights = diffusers.read(net, tmp_path)
    assert (
        (len(weights.notes) == 1 and save["variant"] in weights.notes[0])
        if "variant" in save
        else not weights.notes
    )


def test_full_precision_is_preferred_to_a_variant(tmp_path):
    model = peer("ddpm")
    model.half().save_pretrained(tmp_path, variant="fp16")
    model.float().save_pretrained(tmp_path)
    assert not diffusers.read(ours(tmp_path)[0], tmp_path).notes
    (tmp_path / diffusers.WEIGHTS).unlink()
    assert "variant" in diffusers.read(ours(tmp_path)[0], tmp_path).notes[0]


@pytest.mark.parametrize(
    ("weight_map", "match"),
    [
        ({"a": "../secret.safetensors"}, "must list files next to it"),
        ({"a": "/etc/passwd"}, "must list files next to it"),
        ({"a": 7}, "must list files next to it"),
        ({"a": "gone.safetensors"}, "gone.safetensors is missing, which"),
        ({}, "must hold a weight_map"),
        ([1], "must hold a weight_map"),
    ],
)
def test_an_index_lists_files_next_to_it(weight_map, match, tmp_path):
    peer("ddpm").save_pretrained(tmp_path)
    net = ours(tmp_path)[0]
    (tmp_path / diffusers.WEIGHTS).unlink()
    (tmp_path / f"{diffusers.WEIGHTS}.index.json").write_text(json.dumps({"weight_map": weight_map}))
    with pytest.raises(UserError, match=match):
        diffusers.read(net, tmp_path)
