"""All configuration keys that are no argument of an SDE, a network, a sampler or a guidance method, each
declared once.

From a declaration follow the key's default in configs/base.py, its checks, the modes that take it, whether it
may change when training is resumed, its explanation in `--help_config` and `--dry_run`, and its row in
docs/configuration.md. The keys of `sde`, of `sampling.SAMPLER` and most keys of `model` follow from
constructors instead, see constructor_keys.py.

Nothing here imports torch, so that `--help` is answered at once.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

from score_diffusion.run.key_types import AUTO, Key

MODES = ("train", "sample", "restore", "likelihood", "evaluate", "compare", "data", "report", "convert")
CONVERT_FROM, CONVERT_TO = "convert --from", "convert --to"  # two modes as far as keys are concerned
NEW_RUN = ("train", CONVERT_FROM)
"""The modes that make a run and write its configuration."""

WEIGHTS = (*NEW_RUN, "sample", "restore", "likelihood", "evaluate", "compare", CONVERT_TO)
SAMPLES = (*NEW_RUN, "sample", "evaluate", "compare")
RESTORES = (*NEW_RUN, "restore")
DATA_ACCESS = (*NEW_RUN, "data", "restore", "likelihood", "evaluate", "compare")
MEASURES = ("evaluate", "compare")

LEVEL_RULES = {  # keys of `sde` that may be "auto", and the rule that replaces it when training starts
    "sigma_max": "auto: the largest distance of two training samples (NCSNv2, Technique 1)",
    "N": "auto: the number of noise levels by NCSNv2's Technique 2",
}


def _section(name: str, modes: tuple[str, ...], may_change: bool, keys: dict[str, Key]) -> dict[str, Key]:
    """The keys of a section by their full names, with the section's modes where they name none."""
    return {
        f"{name}.{key}": replace(
            declared,
            modes=declared.modes or modes,
            may_change=may_change if declared.may_change is None else declared.may_change,
        )
        for key, declared in keys.items()
    }


SEED = {"seed": Key(
    0, "seed of the initial weights, the order of the data and the noise in training",
    modes=NEW_RUN, may_change=False,
)}  # fmt: skip

DATA = _section("data", (*NEW_RUN, "data"), False, {
    "name": Key(
        "digits",
        "data set: digits, mnist5k, captioned_digits, shapes, single_shapes, swiss_roll, moons, "
        "checkerboard, 8gaussians, or hf:NAME from the Hugging Face hub",
    ),
    "path": Key(
        "",
        "your own data instead: .npy, .npz, a folder or zip of images, MNIST's or CIFAR-10's files, or "
        "FILE.py:FUNCTION",
        modes=DATA_ACCESS, may_change=True,  # the content of the data is compared instead
    ),
    "num_points": Key(20000, "2-D toys: points drawn for training, and again for the held-out set", least=1),
    "num_images": Key(10_000, "captioned shapes: images drawn for training", least=1),
    "seed": Key(0, "seed of the toys' points, the captioned shapes and the held-out split of your own data"),
    "image_size": Key(
        0, "size that images are brought to, one number or height,width; 0 keeps them as they are",
        kind=int | tuple[int, int],
    ),
    "crop": Key(
        "center", "before resizing: center keeps the largest part of the target's aspect ratio",
        kind=Literal["center", "none"],
    ),
    "channels": Key(
        0, "1 grey, 2 grey and alpha, 3 colour, 4 colour and alpha; 0 for 1 or 3, as the images are",
        least=0, below=5,
    ),
    "bits": Key(
        0,
        "significant bits of a grey level, 12 for 12-bit images in 16-bit files; 0 for what the format says",
        least=0, below=33,
    ),
    "max_megapixels": Key(
        100.0, "megapixels that an image file may have at most", above=0, modes=DATA_ACCESS, may_change=True
    ),
    "max_file_mib": Key(
        128.0, "MiB that an image file in a zip archive may take unpacked at most",
        above=0, modes=DATA_ACCESS, may_change=True,
    ),
    "skip_bad_files": Key(
        False, "leave out image files that cannot be read, with a warning", modes=DATA_ACCESS, may_change=True
    ),
    "standardize": Key(
        "auto",
        "numbers, not grey levels: auto gives each column of points, else the whole set, mean 0 and standard "
        "deviation 1",
        kind=Literal["auto", "per_channel", "none"],
    ),
    "layout": Key(
        "auto", "where arrays of numbers have their channels; auto takes an axis of at most 4 at one end",
        kind=Literal["auto", "channels_first", "channels_last"],
    ),
    "memory_gib": Key(
        4.0, "data sets that take more GiB of memory are read from the disk batch by batch",
        least=0, modes=DATA_ACCESS, may_change=True,
    ),
    "workers": Key(8, "threads that read images", least=1, modes=DATA_ACCESS, may_change=True),
    "flip": Key(False, "mirror each image of a training batch left to right with probability 1/2"),
    "dequantize": Key(True, "add uniform noise within a grey level in training; false for bare pixel values"),
})  # fmt: skip

SDE = _section("sde", NEW_RUN, False, {
    "name": Key(
        "vpsde", "the SDE; its arguments are further keys of this section"
    ),
})  # fmt: skip

MODEL = _section("model", NEW_RUN, False, {
    "name": Key("unet", "the network; its arguments are further keys of this section"),
    "prediction": Key(
        "v", "what the network predicts; edm, vp, ve and iddpm are EDM's names of preconditionings",
        kind=Literal["noise", "x0", "v", "score", "edm", "vp", "ve", "iddpm"],
    ),
    "learned_variance": Key(
        False, "whether the network learns the variance of the reverse step; needs training.objective=hybrid"
    ),
    "scale_input": Key(True, "whether the network sees x_t scaled to unit variance, or x_t itself"),
    "noise_input": Key(
        AUTO,
        "how the network is given the noise level; auto follows the prediction",
        kind=Literal[
            "log_noise_level",
            "quarter_log_noise_level",
            "log_half_noise_level",
            "position",
            "step",
            "reversed_step",
            "auto",
        ],
    ),
    "encoder_words": Key(
        0, "words of the text encoder, which is trained with the network; 0 follows from the data's captions",
        least=0,
    ),
    "encoder_width": Key(128, "text encoder: size of its tokens; even, and divisible by its heads", least=2),
    "encoder_depth": Key(2, "text encoder: number of its blocks", least=1),
    "encoder_heads": Key(4, "text encoder: attention heads", least=1),
    "sigma_data": Key(0.5, "standard deviation of the data in prediction and weighting edm", above=0),
})  # fmt: skip

TRAINING = _section("training", NEW_RUN, False, {
    "steps": Key(2600, "training steps at most", least=1, may_change=True),
    "images": Key(0, "training images at most, counting repetitions; 0: no limit", least=0, may_change=True),
    "max_minutes": Key(0.0, "minutes of training at most; 0 for no limit", least=0, may_change=True),
    "batch_size": Key(64, "samples in a training step, over all processes", least=1),
    "accumulate": Key(1, "micro-batches that a batch is split into, which need less memory", least=1),
    "learning_rate": Key(2e-3, "Adam's learning rate after the warm-up", above=0),
    "warmup_steps": Key(200, "steps of linear warm-up of the learning rate", least=0),
    "schedule": Key(
        "cosine", "learning rate after the warm-up; cosine reaches 0 at the last step",
        kind=Literal["cosine", "constant"],
    ),
    "precision": Key(
        AUTO,
        "precision of the network under autocast; auto takes bf16 where the device has it and images have at "
        "least 16x16 pixels, else float32",
        kind=Literal["float32", "bf16", "fp16", "auto"],
    ),
    "channels_last": Key(False, "keep images in channels-last order, faster for bf16 and fp16 on a GPU"),
    "compile": Key(False, "compile the network with torch.compile"),
    "parallel": Key(
        "ddp", "how several processes share the model: a copy each (ddp), or sharded weights (fsdp)",
        kind=Literal["ddp", "fsdp"], may_change=True,
    ),
    "patience": Key(
        25.0, "seconds that a process may keep the others waiting in a step before training ends",
        above=0, may_change=True,
    ),
    "init_from": Key(
        "", "run directory whose averaged weights a new training starts from (fine-tuning); empty for none"
    ),
    "run": Key("", "run whose data and SDE a classifier or encoders are trained with; empty for their own"),
    "conditional": Key(
        False,
        "condition the network on what the data come with, class labels, captions or cond_* arrays, whose "
        "sizes the network takes from the data",
    ),
    "condition_dropout": Key(
        0.1,
        "probability that a training sample is not conditioned, for classifier-free guidance and the "
        "unconditional likelihood; only with training.conditional",
        least=0, below=1,
    ),
    "ema_decay": Key(
        0.999,
        "decay of the average used for sampling, min(ema_decay, (1 + n)/(10 + n)) after n updates",
        least=0, below=1,
    ),
    "extra_ema_decays": Key(
        (), "decays of further averages, which sampling.ema selects", kind=tuple[float, ...], above=0, below=1
    ),
    "ema_sigma_rels": Key(
        (),
        "relative widths of power averages; sampling.ema_sigma_rel makes other widths of their snapshots",
        kind=tuple[float, ...], above=0, below=0.28,  # 1/√12 is the width of the average of all weights alike
    ),
    "snapshot_every": Key(1000, "steps between snapshots of the power averages", least=1, may_change=True),
    "weighting": Key(
        "plain", "weighting of the loss over noise levels; edm uses sigma_data, 1 with other predictions",
        kind=Literal["plain", "likelihood", "min_snr", "edm"],
    ),
    "min_snr_gamma": Key(5.0, "the bound γ of weighting min_snr", above=0),
    "times": Key(
        "continuous",
        "times drawn in training: the whole interval, EDM's log-normal noise levels, the times of the SDE's "
        "discrete chain, or these in proportion to their losses",
        kind=Literal["continuous", "lognormal", "discrete", "importance"],
    ),
    "p_mean": Key(-1.2, "mean of log(σ/α) for times=lognormal"),
    "p_std": Key(1.2, "standard deviation of log(σ/α) for times=lognormal", above=0),
    "objective": Key(
        "dsm",
        "dsm: denoising score matching; uncertainty: dsm divided by a learned loss of each noise level; "
        "hybrid: with the variational bound; (clean_)classification, contrastive: of model classifier, clip",
        kind=Literal[
            "dsm", "uncertainty", "hybrid", "classification", "clean_classification", "contrastive"
        ],
    ),
    "vlb_weight": Key(1e-3, "weight of the bound in objective hybrid", least=0),
    "grad_clip": Key(1.0, "largest norm of the gradient; 0 for no bound", least=0),
    "max_skipped": Key(
        20, "training ends after so many steps in a row whose loss or gradient is not finite",
        least=1, may_change=True,
    ),
    "held_out": Key(
        256, "held-out samples whose loss, at each checkpoint, decides which is best; 0 for none", least=0
    ),
    "log_every": Key(50, "steps between two points of the loss curve", least=1, may_change=True),
    "sample_every": Key(1000, "steps between two pictures of samples", least=1, may_change=True),
    "preview_samples": Key(
        AUTO,
        "samples in such a picture, 0 for no pictures; auto: 64 images or the batch size if that is smaller, "
        "1,000 points",
        least=0, kind=int | Literal["auto"], may_change=True,
    ),
    "checkpoint_every": Key(1000, "steps between two checkpoints", least=1, may_change=True),
    "keep": Key(3, "newest checkpoints to keep, besides the best", least=1, may_change=True),
})  # fmt: skip

SAMPLING = _section("sampling", SAMPLES, True, {
    "checkpoint": Key(
        "latest", "checkpoint whose weights are used; a step takes the one of that step, digests or not",
        kind=int | Literal["latest", "best"], modes=WEIGHTS,
    ),
    "ema": Key(
        0.0, "average whose weights are used: a decay of training.extra_ema_decays; 0 for training.ema_decay",
        least=0, below=1, modes=WEIGHTS,
    ),
    "ema_sigma_rel": Key(
        0.0, "or the power average of this relative width, made from snapshots; 0 for none",
        least=0, below=0.28, modes=WEIGHTS,
    ),
    "label": Key(
        "all",
        "classes to draw in turn, by name or index: 7, or cat, or 3,5,7; all: every class that the model was "
        "trained with, and none to restore; -1: no class and no other condition",
        modes=(*SAMPLES, "restore"),
    ),
    "conditions": Key(
        "",
        "for a model trained with cond_* data, an .npz of such arrays: sample k is drawn under row k, and "
        "after the last row comes the first again; empty for those of the held-out set",
    ),
    "prompt": Key(
        "",
        "for a model trained with captions, the text to draw; empty for prompts, or for held-out captions",
        modes=(*SAMPLES, "restore"),
    ),
    "prompts": Key(
        "", "a UTF-8 file of texts, one a line: sample k is drawn under line k, and after the last the first"
    ),
    "threshold": Key(
        0.0,
        "dynamic thresholding (Imagen): the fraction of the elements of a denoised sample that stay within "
        "the range, as 0.995; 0 for none",
        least=0, below=1,
    ),
    "sampler": Key("eabm", "the sampler, whose options are sampling.SAMPLER.*; --sampler list shows all"),
    "guidance": Key(
        "none",
        "guidance of the samples, whose options are sampling.GUIDANCE.*: classifier-free, by a worse model, "
        "by a classifier, or by the embedding of a caption",
    ),
    "output": Key(
        "", "folder for samples, fitted grids and results if not the run's own; a run may be read-only",
        modes=("sample", "likelihood", "evaluate", "restore"),
    ),
    "num_samples": Key(64, "samples to draw", least=1),
    "batch_size": Key(256, "samples drawn at a time", least=1),
    "seed": Key(0, "seed of the samples; sample k depends on the seed and k only"),
    "save": Key(
        ("npz", "grid"), "what is written: npz, the array, in any case; grid, a picture of all; png, one of "
        "each; gif, a film and a strip of the way from noise to the first of them; safetensors, tensors",
        kind=tuple[Literal["npz", "grid", "png", "gif", "safetensors"], ...],
    ),
    "denoise": Key(True, "end with the denoised samples"),
    "nfe": Key(
        0,
        "evaluations of the score per sample at most, the denoising included; 0 to go by steps; guidance by "
        "a second score makes each two of the network",
        least=0,
    ),
    "steps": Key(0, "steps of the time grid; 0 for the sampler's default number of evaluations", least=0),
    "grid": Key(
        AUTO,
        "time grid; fitted fits grid and coefficients of eabm to the model and keeps them with the run, auto "
        "is the sampler's own, to which choosing another sampler returns",
        kind=Literal[
            "clock", "early", "uniform", "quadratic", "log_snr", "karras", "chain", "fitted", "auto"
        ],
    ),
})  # fmt: skip

GUIDING = _section("sampling", SAMPLES, True, {
    "cfg.negative": Key("", "class that samples are guided away from, by name or index; empty for none"),
    "autoguidance.run": Key("", "run directory of the worse model; empty for this run"),
    "autoguidance.checkpoint": Key(
        "latest", "checkpoint of the worse model", kind=int | Literal["latest", "best"]
    ),
    "classifier.run": Key("runs/classifier", "run directory of the classifier"),
    "clip.run": Key("runs/clip_digits", "run directory of the image and text encoders"),
    "clip.prompt": Key("", "caption that samples are guided to"),
})  # fmt: skip
"""Options of guidance methods besides those of their constructors."""

LIKELIHOOD = _section("likelihood", (*NEW_RUN, "likelihood"), True, {
    "num_images": Key(256, "held-out samples to score, from the first on, or all of them if fewer", least=1),
    "batch_size": Key(256, "samples scored at a time", least=1),
    "seed": Key(0, "seed of the dequantization noise, the probes and the noise of the bound"),
    "method": Key(
        "ode", "probability-flow ODE, DDPM's variational bound, or both", kind=Literal["ode", "bound", "both"]
    ),
    "classify": Key(
        "none",
        "of a model with classes, the class of each sample by Bayes' rule: from its likelihoods under all "
        "classes, or from denoising losses at shared noise",
        kind=Literal["none", "likelihood", "denoising"],
    ),
    "classify_draws": Key(
        64, "noise levels for each sample and class in classify=denoising, one evaluation each", least=1
    ),
    "divergence": Key(
        "hutchinson", "the ODE's divergence", kind=Literal["hutchinson", "hutch++", "exact"]
    ),
    "probe": Key("rademacher", "law of the probes", kind=Literal["rademacher", "gaussian", "sphere"]),
    "n_probes": Key(1, "random probes of the divergence, not of the exact one", least=1),
    "n_draws": Key(1, "times that a sample is scored by the ODE, each with its own noise", least=1),
    "checked_images": Key(4, "samples scored again by a tighter solver to measure its error", least=0),
    "solver": Key("dopri5", "adaptive or fixed-step solver", kind=Literal["dopri5", "exponential_adams"]),
    "rtol": Key(1e-5, "relative tolerance of solver=dopri5", above=0),
    "atol": Key(1e-5, "absolute tolerance of solver=dopri5", above=0),
    "steps": Key(128, "steps of solver=exponential_adams, an even number", least=8),
    "dequantization": Key(
        "uniform", "dequantization of images for the ODE: uniform noise, or the diffusion's own (gaussian)",
        kind=Literal["uniform", "gaussian"],
    ),
    "variance": Key(
        "small", "variance of the reverse steps in the bound", kind=Literal["small", "large", "learned"]
    ),
    "clip": Key(0.0, "bound on the denoised samples in the variational bound; 0 for none", least=0),
    "bound_terms": Key(0, "terms of the bound drawn for each sample; 0: all, one evaluation each", least=0),
    "bound_draws": Key(1, "times that the bound is repeated, each with its own noise", least=1),
})  # fmt: skip

RESTORE = _section("restore", RESTORES, True, {
    "task": Key("inpaint", "what was measured; its options are restore.TASK.*"),
    "input": Key(
        "held_out",
        "what to restore: image files, with commas between them or as a pattern, a folder or zip of images, "
        "an .npy or .npz file, or held_out for held-out data of the run",
    ),
    "num_inputs": Key(8, "inputs to restore, from the first on, or all of them if fewer", least=1),
    "measured": Key(False, "the inputs are measurements; false: they are the truth and are measured first"),
    "noise": Key(
        0.05,
        "standard deviation of the measurement's noise; images reach from -1 to 1, raw numbers have standard "
        "deviation 1",
        least=0,
    ),
    "method": Key(
        AUTO, "the method, whose options are restore.METHOD.*; auto: moment_matching, or what suits the task"
    ),
    "sampler": Key(AUTO, "the sampler of methods that work with any; auto takes the method's own"),
    "nfe": Key(50, "network evaluations per sample at most, of twisted per particle", least=2),
    "num_samples": Key(32, "posterior samples of each input; intervals of 90 % need 19", least=2),
    "batch_size": Key(256, "samples drawn at a time", least=1),
    "seed": Key(0, "seed of masks, of the measurement's noise and of the samples"),
    "data_std": Key(
        AUTO, "standard deviation of the data, for pigdm and twisted; auto measures it on samples drawn",
        kind=float | Literal["auto"], above=0,
    ),
})  # fmt: skip

EVALUATION = _section("evaluation", MEASURES, True, {
    "features": Key(
        "pixels",
        "what distances are measured on: pixels, or points as they are standardized; the run directory of "
        "--config classifier_features; a file of Inception-v3 weights; FILE.py:FUNCTION",
    ),
    "reference": Key(
        "held_out",
        "what samples are compared with: held_out, train, or an .npz of FID statistics with mu and sigma",
    ),
    "kept": Key(
        2000,
        "samples whose features are kept, for all but the Fréchet distance; the cost grows as its square",
        least=2,
    ),
})  # fmt: skip

COMPARE = _section("compare", ("compare",), True, {
    "samplers": Key(
        (), "samplers to compare, each at every number of evaluations; empty for the sampler of each run",
        kind=tuple[str, ...],
    ),
    "nfe": Key(
        (), "network evaluations per sample to compare; empty for what each run has set",
        kind=tuple[int, ...], least=1,
    ),
    "scales": Key(
        (), "scales of the guidance sampling.guidance to compare; empty for the one that is set",
        kind=tuple[float, ...], least=0,
    ),
    "metric": Key(
        "frechet_distance", "the metric that the picture shows",
        kind=Literal[
            "frechet_distance", "kernel_distance", "precision", "recall", "density", "coverage",
            "sliced_wasserstein", "exact_wasserstein", "classifier_score", "accuracy_on_samples",
            "accuracy_from_samples",
        ],
    ),
})  # fmt: skip

KEYS: dict[str, Key] = (
    SEED | DATA | SDE | MODEL | TRAINING | SAMPLING | LIKELIHOOD | RESTORE | EVALUATION | COMPARE
)
