"""The tensors of a model that diffusers saved, in one file or several, in one of its variants, and what the
readers of its networks share.

diffusion_pytorch_model.safetensors                      one file
diffusion_pytorch_model.safetensors.index.json           several: the file of each tensor by name
diffusion_pytorch_model.fp16.safetensors                 a variant; .index.fp16.json for several files
diffusion_pytorch_model.bin, .bin.index.json             the same with torch.save, read without executing
                                                         anything
"""

from __future__ import annotations

from pathlib import Path

import safetensors.torch
from torch import Tensor

from score_diffusion.run.checkpoints.formats.safe_pickle import load_tensors, state_dict
from score_diffusion.run.checkpoints.formats.settings import Settings
from score_diffusion.run.checkpoints.formats.weight_maps import Rules
from score_diffusion.run.errors import UserError

CONFIG = "config.json"
# At most, so that no configuration exhausts the machine.
LEVELS, BLOCKS, WIDTH, SIDE = 12, 64, 2**15, 2**14
# What its present code calls the projections of attention, by what old files call them.
OLD_NAMES = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}
STEM = "diffusion_pytorch_model"
WEIGHTS = f"{STEM}.safetensors"
# In the order of preference; * is a variant.
PATTERNS = (
    *(WEIGHTS, f"{WEIGHTS}.index.json", f"{STEM}.bin", f"{STEM}.bin.index.json"),
    *(f"{STEM}.*.safetensors", f"{WEIGHTS}.index.*.json", f"{STEM}.*.bin", f"{STEM}.bin.index.*.json"),
)


def read_tensors(folder: Path) -> tuple[dict[str, Tensor], str, tuple[str, ...]]:
    """The tensors of a model's folder by their present names, the file that they are from, and what to say
    about the choice of it.

    Raises:
        UserError: If there are none, or a file is missing or damaged.
    """
    path = next((found for pattern in PATTERNS for found in sorted(_matching(folder, pattern))), None)
    if path is None:
        raise UserError(
            f"{folder / WEIGHTS} is missing, and so are sharded files, variants such as fp16, and .bin: save "
            "the model with save_pretrained"
        )
    variant = path.name.removesuffix(".json").replace(".index", "").removeprefix(f"{STEM}.")
    notes = () if variant in ("safetensors", "bin") else (f"weights: variant {path.name}",)
    names = _shards(path) if path.name.endswith(".json") else [path.name]
    state: dict[str, Tensor] = {}
    for name in names:
        state |= _read_one(folder / name)
    return {_new_name(name): tensor for name, tensor in state.items()}, str(path), notes


def _new_name(name: str) -> str:
    for old, new in OLD_NAMES.items():
        name = name.replace(f".{old}.", f".{new}.")
    return name


def attention_rules(result: Rules, ours: str, theirs: str) -> None:
    """Adds the rules of a block of attention."""
    result.layer(f"{ours}.norm", f"{theirs}.group_norm")
    result.qkv(f"{ours}.qkv", [f"{theirs}.to_{name}" for name in "qkv"])
    result.projection(f"{ours}.project", f"{theirs}.to_out.0")


def _matching(folder: Path, pattern: str) -> list[Path]:
    """The files of a pattern; shards of several files are none of their own."""
    return [path for path in folder.glob(pattern) if path.is_file() and "-of-" not in path.name]


def _shards(index: Path) -> list[str]:
    """The files that an index lists, which lie next to it."""
    weight_map = Settings.from_json(index, {}).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise UserError(f"{index} must hold a weight_map from tensors to files: copy it again")
    names = set(weight_map.values())
    for name in names:
        if not isinstance(name, str) or not name or Path(name).name != name:
            raise UserError(f"{index} must list files next to it, it lists {name!r}")
        if not (index.parent / name).is_file():
            raise UserError(f"{index.parent / name} is missing, which {index.name} lists: copy it again")
    return sorted(names)


def _read_one(path: Path) -> dict[str, Tensor]:
    if path.suffix == ".bin":
        return state_dict(load_tensors(path), str(path))
    try:
        return state_dict(safetensors.torch.load_file(path), str(path))
    except UserError:
        raise
    except Exception as error:  # torn bytes make the parser raise anything
        raise UserError(f"{path} is damaged: copy it again") from error
