"""Keys that decide what a run is: its data, SDE, network and training."""

from __future__ import annotations

from typing import Literal

from score_diffusion.run.key_types import AUTO, Key
from score_diffusion.run.keys.modes import DATA_ACCESS, ENCODED, NEW_RUN, OF_DATA, section

LEVEL_RULES = {  # keys of `sde` that may be "auto", and the rule that replaces it when training starts
    "sigma_max": "auto: the largest distance of two training samples (NCSNv2, Technique 1)",
    "N": "auto: the number of noise levels by NCSNv2's Technique 2",
}


SEED = {"seed": Key(
    0, "seed of the initial weights, the order of the data and the noise in training",
    modes=NEW_RUN, may_change=False,
)}  # fmt: skip

DATA = section("data", (*NEW_RUN, "data"), False, {
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
    "tokenizer": Key(
        "words",
        "how captions are read: as words of the training set, or as bytes, with which any text is a prompt",
        kind=Literal["words", "bytes"],
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
    "shrink": Key(
        1, "factor by which the sides of images are made smaller, each pixel the mean of a block of them",
        least=1,
    ),
    "autoencoder": Key(
        "",
        "run of an autoencoder in whose latent space the model works; standardize decides how latents are "
        "scaled; empty for none",
        modes=OF_DATA, may_change=True,  # the digest of its weights is compared instead
    ),
    "flip": Key(False, "mirror each image of a training batch left to right with probability 1/2"),
    "encoder": Key(
        "", "run of --config clip_shapes, or of your own encoders, whose image embeddings the data get",
        modes=ENCODED, may_change=True,  # their weights are compared instead
    ),
    "text_encoder": Key(
        "",
        "folder of transformers with a CLIP text model or a T5 encoder, which reads the captions and is not "
        "trained; empty for an encoder that is",
        modes=OF_DATA, may_change=True,  # the digest of its files is compared instead
    ),
    "embeddings": Key(
        "conditions",
        "with data.encoder: conditions of the images, for unCLIP's decoder, or samples in their place, under "
        "captions, for its prior",
        kind=Literal["conditions", "samples"],
    ),
    "dequantize": Key(True, "add uniform noise within a grey level in training; false for bare pixel values"),
})  # fmt: skip

SDE = section("sde", NEW_RUN, False, {
    "name": Key(
        "vpsde", "the SDE; its arguments are further keys of this section"
    ),
})  # fmt: skip

MODEL = section("model", NEW_RUN, False, {
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
        0,
        "different words or bytes that the text encoder, which is trained with the network, reads; 0 follows "
        "from the data's captions",
        least=0,
    ),
    "encoder_width": Key(128, "text encoder: size of its tokens; even, and divisible by its heads", least=2),
    "encoder_depth": Key(2, "text encoder: number of its blocks", least=1),
    "encoder_heads": Key(4, "text encoder: attention heads", least=1),
    "upscale": Key(
        0,
        "super-resolution: the network is conditioned on images whose sides are smaller by this factor, made "
        "of the samples themselves; 0 for none",
        least=0,
    ),
    "upsampling": Key(
        "bilinear", "super-resolution: how the network enlarges them first",
        kind=Literal["nearest", "bilinear", "bicubic"],
    ),
    "sigma_data": Key(0.5, "standard deviation of the data in prediction and weighting edm", above=0),
})  # fmt: skip

TRAINING = section("training", NEW_RUN, False, {
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
    "recompute": Key(
        False, "compute the blocks of a U-Net again in the backward pass: less memory, more time",
        may_change=True,
    ),
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
    "augment_noise": Key(
        1.0,
        "super-resolution: the largest level of the noise that training adds to small images, 0 for none, 1 "
        "for nothing but noise; levels are drawn evenly up to it (conditioning augmentation)",
        least=0, below=1.0001,
    ),
    "augment_blur": Key(
        0.0,
        "super-resolution: training blurs every second small image by a Gaussian of a width up to this one, "
        "in pixels of the small image",
        least=0,
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
        "plain",
        "weighting of the loss over noise levels; edm uses sigma_data, 1 with other predictions; x0 is the "
        "error of the denoised sample",
        kind=Literal["plain", "likelihood", "x0", "min_snr", "edm"],
    ),
    "min_snr_gamma": Key(5.0, "the bound γ of weighting min_snr", above=0),
    "times": Key(
        "continuous",
        "times drawn in training: the whole interval, EDM's log-normal noise levels, the times of the SDE's "
        "discrete chain, these in proportion to their losses, or in proportion to the weighting likelihood",
        kind=Literal["continuous", "lognormal", "discrete", "importance", "likelihood"],
    ),
    "first_time": Key(
        1e-5,
        "earliest time of training and likelihood, where noise must be small against the details of the data",
        above=0, below=0.1,
    ),
    "p_mean": Key(-1.2, "mean of log(σ/α) for times=lognormal"),
    "p_std": Key(1.2, "standard deviation of log(σ/α) for times=lognormal", above=0),
    "objective": Key(
        "dsm",
        "dsm: denoising score matching; uncertainty: dsm over a learned loss of each noise level; hybrid: "
        "with the bound; the others are of networks without a score; clean_...: without noise",
        kind=Literal[
            "dsm", "uncertainty", "hybrid", "classification", "clean_classification", "contrastive",
            "clean_contrastive", "autoencoding", "dequantization",
        ],
    ),
    "autoencoding.penalty_weight": Key(
        AUTO, "weight of the KL divergence or of the codebook's losses; auto: 1e-6 or 1, as in the paper",
        least=0, kind=float | Literal["auto"],
    ),
    "autoencoding.perceptual": Key(
        "", "run of --config classifier_features whose features measure a perceptual distance; empty for none"
    ),
    "autoencoding.perceptual_weight": Key(1.0, "weight of the perceptual distance", least=0),
    "autoencoding.adversarial_weight": Key(
        0.0, "weight of the patch discriminator, 0.5 in the paper; 0 for none", least=0
    ),
    "autoencoding.adversarial_start": Key(
        1000, "step from which the discriminator is trained and counts", least=0
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
    "wandb": Key(
        "", "project of Weights & Biases that the log is sent to; named again to resume, empty for none",
        may_change=True,
    ),
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
