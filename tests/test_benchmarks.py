"""Every benchmark runs, at its smallest size, and prints its table."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from scipy import stats
from torch import Tensor, nn

from benchmarks import captions, costs
from score_diffusion import train
from score_diffusion.run.data.shapes import NEW
from score_diffusion.run.main import main

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]

ROOT = Path(__file__).resolve().parent.parent
SMALLEST = {  # arguments, and a row that the table must have
    "captions": ("--digits RUNS --scales 0 2 --each 1 --nfe 2 --picture PICTURE", "real images"),
    "cascade": ("RUNS --features pixels --levels 0 --samples 8 --nfe 2", "drawn at 0"),
    "costs": ("measured --systems TINY --steps 3", "x8"),
    "data_loading": ("--images 300 --rounds 1 --steps 1 --batch_size 2", "zip of JPEG"),
    "ddpm_is_vpsde": ("--steps 32 64", "| 64 |"),
    "engine": ("--rounds 1 --steps 1 --cifar_images 300 --cifar_batch 2", "| cifar10, 3x32x32 |"),
    "evaluation": ("--numbers 32 64 --repeats 2", "| frechet distance | noisy | 1.12 |"),
    "exact_mixtures": ("--law ring --sde vp --samples 20", "| 2-D, 8 modes | vp |"),
    "grid_scale": ("--laws 8 --nfe 5", "| 0.5 to 1.5, 3 laws | 1.25 |"),
    "inverse": (
        "--problem ring --noise 0.3 --samples 8 --nfe 12",
        "| 2-D ring of 8 modes, 1 row | 0.3 |",
    ),
    "guidance": ("--steps 2 --samples 2 --scales 1 --nfe 4 --workdir RUNS --picture PICTURE", "| clip | 1 |"),
    "likelihood": ("--coverage --law 2-D --sde vp --size 4 --repeats 3", "| 2-D | vp |"),
    "low_density": ("--steps 2 --picture PICTURE", "annealed Langevin, multiscale score"),
    "networks": ("--rounds 1 --repeats 1 --batch 1", "NCSN++, bf16"),
    "overhead": ("--rounds 1", "| diffusers DDIM |"),
    "quality_vs_nfe": ("--problem ring --nfe 5 --fit --picture PICTURE", "| `eabm, fitted` |"),
    "unclip": ("--system RUNS --each 1 --nfe 2 --pairs 1 --points 2", "nearest of 48 captions"),
    "scaling": ("--parameters 56e6 --seconds_per_image 6e-4", "1,024"),
}
NO_SCRIPT = {"inverse_peers", "peers", "recognizers", "stochastic_peers", "zoo"}  # parts of other ones


def test_all_are_listed():
    assert {path.stem for path in (ROOT / "benchmarks").glob("*.py")} == {*SMALLEST, *NO_SCRIPT}


@pytest.mark.parametrize("name", SMALLEST)
def test_it_runs(name: str, tmp_path: Path, capsys):
    if name in ("networks", "overhead", "quality_vs_nfe"):
        pytest.importorskip("diffusers")
    if name == "inverse":
        pytest.importorskip("azula")
    if name == "captions":
        settings = {"training.steps": 1, "training.preview_samples": 0, "training.held_out": 8}
        train("text_digits", tmp_path / "runs", settings | {"model.channels": 8})
    if name == "cascade":
        tiny = ROOT / "tests/run/tiny_system.py"
        main(["--mode", "train", "--config", str(tiny), "--workdir", str(tmp_path / "runs")])
    if name == "unclip":
        few = ("training.steps=1", "data.num_images=200", "training.held_out=8", "decoder.model.channels=8")
        few += ("decoder.training.preview_samples=0", "towers.model.channels=8")
        start = ("--mode", "train", "--config", "unclip_shapes", "--workdir", str(tmp_path / "runs"))
        main([*start, *(f"--config.{setting}" for setting in few)])
    arguments, row = SMALLEST[name]
    picture = tmp_path / "picture.png"
    arguments = arguments.replace("PICTURE", str(picture)).replace("RUNS", str(tmp_path / "runs"))
    arguments = arguments.replace("TINY", str(ROOT / "tests/run/tiny_system.py"))
    importlib.import_module(f"benchmarks.{name}").main(arguments.split())
    assert row in capsys.readouterr().out
    assert picture.exists() == (str(picture) in arguments)


class Attention(nn.Module):
    """Self-attention of two heads of eight channels."""

    def forward(self, x: Tensor) -> Tensor:
        return F.scaled_dot_product_attention(x, x, x)


def test_operations_and_memory_are_counted_as_by_hand():
    def counted(make: Callable[[], nn.Module], *shape: int) -> costs.Counts:
        return costs.count(costs.Published(make, lambda b: (torch.zeros(b, *shape),), 1, 1, 1), False)

    conv = counted(lambda: nn.Conv2d(3, 5, 3, padding=1), 3, 8, 8)
    assert conv.parameters == 140 and conv.operations == 2 * 9 * 3 * 5 * 64
    assert conv.activations == 2 * 3 * 64  # the input in bfloat16
    assert conv.constant == 2 * 9 * 3 * 5  # the weight in bfloat16
    assert counted(Attention, 2, 16, 8).operations == 4 * 2 * 16**2 * 8


def test_a_plan_works_on_the_whole_batch_and_fits():
    counts = {False: costs.Counts(10**9, 1e12, 10**9, 0.0), True: costs.Counts(10**9, 1e12, 10**8, 0.0)}
    published = costs.Published(nn.Identity, lambda b: (), 10, 512, 1)
    found = costs.plans(published, 8, 0.25, counts)
    assert {(plan.parallel, plan.recompute) for plan in found} == {
        (kind, recompute) for kind in ("ddp", "fsdp") for recompute in (False, True)
    }
    assert all(8 * plan.micro_batch * plan.accumulate == 512 for plan in found)
    assert all(plan.memory[plan.parallel] <= costs.MEMORY for plan in found)
    chosen = costs.simplest(found)
    assert chosen.seconds <= 1.05 * min(plan.seconds for plan in found)
    # 64 images at 0.012 s each, if everything else hides behind them
    assert chosen.parallel == "ddp" and chosen.seconds == pytest.approx(64 * 3e12 / (0.25 * 989e12), rel=0.1)


def test_prompts_of_new_combinations():
    """Each combination is where it belongs; two shapes differ in colour, and one of them is new."""
    for group, scenes in (captions.single_shapes() | captions.pairs_of_shapes(40)).items():
        for scene in scenes:
            new = [(shape.colour, shape.kind) in NEW for shape in scene.shapes]
            assert new == [group.endswith("new"), False][: len(new)]
            assert len({shape.colour for shape in scene.shapes}) == len(scene.shapes)
            assert bool(scene.relation) == (len(scene.shapes) == 2)
    singles = captions.single_shapes()
    assert (len(singles["seen"]), len(singles["new"])) == (40, 8)


def test_the_error_of_a_share_is_the_deviation_of_its_posterior():
    share = captions.Share(30, 40)
    assert str(share) == "75.0 ± 6.7 %"
    assert share.error == pytest.approx(100 * stats.beta(31, 11).std())


def test_stochastic_samplers_are_compared_with_their_peers(capsys):
    pytest.importorskip("diffusers")
    importlib.import_module("benchmarks.quality_vs_nfe").main("--stochastic --problem ring --nfe 5".split())
    out = capsys.readouterr().out
    assert "| `eab_sde` |" in out and "| SDE-DPMSolver++ 2M karras |" in out and "Best peers: 5:" in out
