"""Keys of what is done with a trained model: drawing, restoring, scoring, measuring, comparing."""

from __future__ import annotations

from typing import Literal

from score_diffusion.run.key_types import AUTO, Key
from score_diffusion.run.keys.modes import MEASURES, NEW_RUN, RESTORES, SAMPLES, WEIGHTS, section

SAMPLING = section("sampling", SAMPLES, True, {
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
        modes=(*SAMPLES, "interpolate", "restore"),
    ),
    "conditions": Key(
        "",
        "for a model trained with cond_* data, an .npz of such arrays: sample k is drawn under row k, and "
        "after the last row comes the first again; empty for those of the held-out set",
        modes=(*SAMPLES, "interpolate"),
    ),
    "prompt": Key(
        "",
        "for a model trained with captions, the text to draw, or several, one a line, that samples take in "
        "turn; empty for prompts, or for held-out captions",
        modes=(*SAMPLES, "interpolate", "restore"),
    ),
    "prompts": Key(
        "", "a UTF-8 file of texts, one a line: sample k is drawn under line k, and after the last the first",
        modes=(*SAMPLES, "interpolate"),
    ),
    "threshold": Key(
        0.0,
        "dynamic thresholding (Imagen): the fraction of the elements of a denoised sample that stay within "
        "the range, as 0.995; 0 for none",
        least=0, below=1,
    ),
    "augment_noise": Key(
        0.1,
        "super-resolution: the level of the noise in the small images that samples are drawn under, up to "
        "training.augment_noise",
        least=0, below=1.0001, modes=(*SAMPLES, "likelihood"),
    ),
    "sampler": Key("eabm", "the sampler, whose options are sampling.SAMPLER.*; --sampler list shows all"),
    "stochastic": Key(
        False,
        "whether the sampler is stochastic; set, it replaces a sampler of the other kind by eab_sde or eabm",
    ),
    "guidance": Key(
        "none",
        "guidance of the samples, whose options are sampling.GUIDANCE.*: classifier-free, by a worse model, "
        "by a classifier, or by the embedding of a caption",
    ),
    "output": Key(
        "", "folder for samples, fitted grids and results if not the run's own; a run may be read-only",
        modes=("sample", "interpolate", "likelihood", "evaluate", "restore"),
    ),
    "num_samples": Key(64, "samples to draw", least=1),
    "batch_size": Key(256, "samples drawn at a time", least=1),
    "seed": Key(0, "seed of the samples; sample k depends on the seed and k only"),
    "save": Key(
        ("npz", "grid"), "what is written: npz, the array, in any case; grid, a picture of all; png, one of "
        "each; gif, a film and a strip of the way from noise to the first of them; safetensors, tensors",
        kind=tuple[Literal["npz", "grid", "png", "gif", "safetensors"], ...],
    ),
    "tile": Key(
        0,
        "decode latents in overlapping tiles of this many latent positions a side, as 64, so that large "
        "images need less memory; 0 decodes them whole",
        least=0, modes=(*SAMPLES, "interpolate"),
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
            "clock", "early", "spread", "uniform", "quadratic", "log_snr", "karras", "chain", "fitted", "auto"
        ],
    ),
})  # fmt: skip

UNCLIP = section("sampling", SAMPLES, True, {
    "unclip.images": Key(
        "", "image files, or held_out, whose embeddings take the place of the prior's: variations of each"
    ),
    "unclip.path": Key(False, "with two images, draw what is on the way from one to the other"),
    "unclip.change": Key(
        "", "with one image, two texts, as a red square -> a blue one: draw the image, changed more and more"
    ),
    "unclip.reach": Key(
        0.5, "how far a change goes: the part of the angle to the difference of the texts", above=0, below=1
    ),
    "unclip.best_of": Key(
        2, "embeddings that the prior draws for a sample, of which the nearest to the text is kept", least=1
    ),
    "unclip.prior": Key(True, "false: the decoder gets the embedding of the text itself, without the prior"),
})  # fmt: skip
"""What a system of the kind unclip draws; each key is for all of its stages."""

GUIDING = section("sampling", SAMPLES, True, {
    "cfg.negative": Key("", "class that samples are guided away from, by name or index; empty for none"),
    "autoguidance.run": Key("", "run directory of the worse model; empty for this run"),
    "autoguidance.checkpoint": Key(
        "latest", "checkpoint of the worse model", kind=int | Literal["latest", "best"]
    ),
    "classifier.run": Key("runs/classifier", "run directory of the classifier"),
    "clip.run": Key("runs/clip_digits", "run directory of the image and text encoders"),
    "clip.prompt": Key("", "caption that samples are guided to; empty for sampling.prompt"),
})  # fmt: skip
"""Options of guidance methods besides those of their constructors."""

INTERPOLATE = section("interpolate", (*NEW_RUN, "interpolate"), True, {
    "input": Key(
        "held_out",
        "the samples between which paths lead, the first to the second, the third to the fourth, ...: files "
        "as of restore.input, or held_out for held-out data of the run",
    ),
    "num_pairs": Key(6, "pairs, from the first on, or as many as there are", least=1),
    "num_samples": Key(10, "samples on each path, its two ends included", least=3),
    "batch_size": Key(256, "samples encoded or decoded at a time", least=1),
    "rtol": Key(1e-5, "relative tolerance of the solver of the probability flow", above=0),
    "atol": Key(1e-5, "absolute tolerance of the solver", above=0),
})  # fmt: skip

LIKELIHOOD = section("likelihood", (*NEW_RUN, "likelihood", "demo"), True, {
    "num_images": Key(256, "held-out samples to score, from the first on, or all of them if fewer", least=1),
    "batch_size": Key(256, "samples scored at a time", least=1),
    "seed": Key(0, "seed of the dequantization noise, the probes and the noise of the bound"),
    "method": Key(
        "ode",
        "ode: the probability-flow ODE; reverse_sde: the reverse SDE's bound; bound: DDPM's variational "
        "bound; both: ode and bound; all: all three",
        kind=Literal["ode", "reverse_sde", "bound", "both", "all"],
    ),
    "path": Key(
        "",
        "other data that are scored besides: image files, a folder or zip of images, an .npy or .npz file",
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
    "n_draws": Key(
        1, "times that a sample is scored by ode and reverse_sde, each with its own noise", least=1
    ),
    "reverse_times": Key(
        64, "times of the reverse SDE's bound for each sample and draw, two evaluations each", least=1
    ),
    "checked_images": Key(4, "samples scored again by a tighter solver to measure its error", least=0),
    "solver": Key(
        "adaptive_adams",
        "solver of the ODE: an Adams method or dopri5 with steps by tolerance, or an Adams method with fixed "
        "steps",
        kind=Literal["adaptive_adams", "dopri5", "exponential_adams"],
    ),
    "rtol": Key(
        AUTO,
        "relative tolerance of an adaptive solver; auto: the largest power of ten for an error of a tenth of "
        "the standard error, by 16 samples",
        kind=float | Literal["auto"], above=0,
    ),
    "atol": Key(
        AUTO,
        "absolute tolerance of an adaptive solver; auto: as for rtol",
        kind=float | Literal["auto"], above=0,
    ),
    "steps": Key(
        AUTO,
        "steps of solver=exponential_adams, an even number; auto: the fewest of 32, 64, 128, ... for such an "
        "error",
        kind=int | Literal["auto"], least=8,
    ),
    "dequantization": Key(
        "uniform",
        "dequantization of images for ode and reverse_sde: uniform noise, the diffusion's own (gaussian), or "
        "the run directory of --config dequantizer",
    ),
    "variance": Key(
        "small", "variance of the reverse steps in the bound", kind=Literal["small", "large", "learned"]
    ),
    "clip": Key(0.0, "bound on the denoised samples in the variational bound; 0 for none", least=0),
    "bound_terms": Key(0, "terms of the bound drawn for each sample; 0: all, one evaluation each", least=0),
    "bound_draws": Key(1, "times that the bound is repeated, each with its own noise", least=1),
})  # fmt: skip

RESTORE = section("restore", RESTORES, True, {
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

EVALUATION = section("evaluation", MEASURES, True, {
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

COMPARE = section("compare", ("compare",), True, {
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

DEMO = section("demo", ("demo",), True, {
    "host": Key(
        "127.0.0.1",
        "address that the page is bound to; 0.0.0.0 lets every machine that reaches this one use it, without "
        "a password",
    ),
    "port": Key(7860, "port of the page; 0 for any that is free", least=0, below=65536),
    "max_upload_mib": Key(16.0, "MiB that an uploaded image may have at most", above=0),
})  # fmt: skip
