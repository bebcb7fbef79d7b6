"""What every experiment starts from: digits, a small U-Net, and the settings of all modes.

An experiment file adds its `sde` section and sets what differs from here.
"""

from __future__ import annotations

import inspect

from ml_collections import ConfigDict, FieldReference


def unet_defaults() -> dict[str, object]:
    """The arguments of `models.UNet` that have a default."""
    from score_diffusion.models import UNet  # here, so that --help does not wait for torch

    parameters = inspect.signature(UNet).parameters.values()
    return {p.name: p.default for p in parameters if p.default is not p.empty}


def get_config() -> ConfigDict:
    """All sections but `sde`."""
    from score_diffusion.models import PRESETS

    config = ConfigDict()
    config.seed = 0  # of the initial weights, the order of the data and the noise in training

    config.data = ConfigDict(
        dict(
            # digits | swiss_roll | moons | checkerboard | 8gaussians | hf:NAME of the Hugging Face hub
            name="digits",
            # instead, your own: a .npy or .npz (uint8 (N, H, W[, C]) images, float (N, D) points), a folder
            # or zip of images, MNIST's idx files, CIFAR-10's archive, FILE.py:FUNCTION; see docs/data.md
            path="",
            num_points=20000,  # points drawn for training, and again for the held-out set; 2-D toys only
            seed=0,  # of the toys' points and of the held-out split of your own data
            # bring images to this size: one number or (height, width); 0 to keep them
            image_size=FieldReference(0, field_type=object),
            crop="center",  # before that: center (the largest part of that aspect ratio) | none
            channels=0,  # 1 grey, 2 grey and alpha, 3 colour, 4 colour and alpha; 0 for 1 or 3, as images are
            memory_gib=4.0,  # sets that take more are read from the disk batch by batch
            workers=8,  # threads that read images
            flip=False,  # mirror each image of a training batch left to right with probability one half
            dequantize=True,  # train on grey levels with uniform noise; False for the bare pixel values
        )
    )
    config.model = ConfigDict(
        dict(
            name="unet",
            prediction="v",  # noise | x0 | v | score, or with EDM's names edm | vp | ve | iddpm
            learned_variance=False,  # of the reverse step in ddpm and the bound; objective hybrid trains it
            scale_input=True,  # whether the network sees x_t at unit variance, or x_t itself
            # what it is told of the noise: auto (what the prediction says) | log_level | quarter_log_level |
            # log_half_level | position | step | reversed_step
            noise_input="auto",
            sigma_data=0.5,  # of prediction and weighting edm: the standard deviation of the data
            **(unet_defaults() | PRESETS["digits"]),  # models/unet.py says what they are
        )
    )
    config.training = ConfigDict(
        dict(
            steps=2600,  # at most; under five minutes on two CPU cores
            images=0,  # training images at most, repetitions counted; 0 for no limit
            max_minutes=0.0,  # of training at most; 0 for no limit
            batch_size=64,
            accumulate=1,  # micro-batches that a batch is worked through in, which need less memory
            learning_rate=2e-3,  # of Adam, after the warm-up
            warmup_steps=200,
            schedule="cosine",  # after the warm-up: cosine (down to 0 at the last step) | constant
            # of the network, by autocast (weights are float32): float32 | bf16 | fp16 | auto (bf16 where the
            # device has it and images have 16x16 pixels or more, else float32)
            precision="auto",
            channels_last=False,  # order of images in memory; faster for bf16 and fp16 on a GPU
            compile=False,  # torch.compile of the network
            parallel="ddp",  # of several processes (docs/scaling.md): ddp | fsdp (weights in pieces, too)
            patience=25.0,  # seconds that one of them may keep the others waiting in a step before they end
            # of the average for samples, reached from below: min(ema_decay, (1 + n)/(10 + n)) after n updates
            ema_decay=0.999,
            extra_ema_decays=(),  # of further averages; sampling.ema takes one
            ema_sigma_rels=(),  # widths of power averages, 0.05,0.1 say; sampling.ema_sigma_rel makes others
            snapshot_every=1000,  # steps between two snapshots of the power averages
            weighting="plain",  # plain | likelihood | min_snr | edm (by sigma_data, 1 with other predictions)
            min_snr_gamma=5.0,  # the bound γ of min_snr
            # continuous | lognormal (EDM's) | discrete (those of the SDE's chain) | importance (of these)
            times="continuous",
            p_mean=-1.2,  # of log(σ/α) in lognormal: its mean, and its standard deviation
            p_std=1.2,
            # dsm (denoising score matching) | uncertainty (dsm over a learned mean of the loss at each noise
            # level) | hybrid (with the bound, for learned_variance)
            objective="dsm",
            vlb_weight=1e-3,  # of the bound in hybrid
            grad_clip=1.0,  # largest norm of the gradient; 0 for none
            max_skipped=20,  # steps in a row skipped for a loss or gradient that is not finite: training ends
            held_out=256,  # held-out samples whose loss, at each checkpoint, tells the best; 0 for none
            log_every=50,  # steps between two points of the loss curve
            sample_every=1000,  # steps between two sample pictures
            checkpoint_every=1000,
            keep=3,  # newest checkpoints to keep, beside the best
        )
    )
    config.sampling = ConfigDict(
        dict(
            # the weights, of likelihood and evaluate too: those of the latest or the best checkpoint
            checkpoint="latest",
            ema=0.0,  # their average: one of training.extra_ema_decays; 0 for training.ema_decay
            ema_sigma_rel=0.0,  # or the power average of this width, made of snapshots; 0 for none
            label=-1,  # the class to draw and score, of a network with classes; -1 for none
            sampler="eabm",  # --sampler list shows all of them
            num_samples=64,
            batch_size=256,
            seed=0,
            denoise=True,  # end with the denoised samples
            nfe=0,  # network evaluations per sample at most, the denoising included; 0 for `steps`
            steps=0,  # steps of the grid; 0 for the sampler's default number of evaluations
            # the sampler's own, or clock | uniform | quadratic | log_snr | karras | chain | fitted
            grid="auto",
            predictor="reverse_diffusion",  # euler_maruyama | reverse_diffusion | ancestral | none
            corrector="langevin",  # langevin | ald | none
            snr=0.16,  # signal-to-noise ratio of a corrector's step
            n_corrector_steps=1,
            ode_method="dopri5",
            rtol=1e-5,  # of ode's adaptive methods
            atol=1e-5,
            sde_rtol=0.02,  # of adaptive_sde
            sde_atol=2 / 256,
            s_churn=40.0,  # of edm_churn: EDM's S_churn, S_tmin, S_tmax, S_noise
            s_tmin=0.05,
            s_tmax=50.0,
            s_noise=1.003,
            ald_grid="log_snr",  # levels of annealed Langevin dynamics: log_snr | chain (the SDE's own)
            ald_levels=200,  # of log_snr, geometric noise levels
            ald_steps_each=5,
            ald_step_size=0.5,  # relative to the variance of the noise at each level; auto: NCSNv2's rule
            cas_levels=200,  # geometric noise levels of consistent annealed sampling
            cas_step_size=0.2,  # as ald's
            variance="small",  # of ddpm: small | large | learned
            eta=0.0,  # of ddim: 0 (deterministic) to 1 (ddpm with the small variance)
            clip=0.0,  # bound on the denoised samples of ddpm and ddim, 1 for pixel values; 0 for none
        )
    )
    config.likelihood = ConfigDict(
        dict(
            num_images=256,  # held-out images (or points), from the first on; all of them if there are fewer
            batch_size=256,
            seed=0,  # of the dequantization noise, the probes and the noise of the bound
            method="ode",  # ode (probability flow) | bound (DDPM's variational one) | both
            divergence="hutchinson",  # hutchinson | exact
            n_probes=1,
            rtol=1e-5,
            atol=1e-5,
            dequantization="uniform",  # of images for the ODE: uniform | gaussian (the path's own noise)
            variance="small",  # of the reverse steps in the bound: small | large | learned
            clip=0.0,  # of the bound: as in sampling
            bound_terms=0,  # terms drawn for each image; 0 for all of them, one evaluation each
            bound_draws=1,  # times that the bound is repeated, with noise of its own
        )
    )
    return config
