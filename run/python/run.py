"""A trained model in Python: `run = load_run("runs/vpsde")`, then `run.sample(16)`.

Everything goes through the functions of the commands, with the settings of the run: the samples are bit for
bit those of `--mode sample`.
"""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from ml_collections import ConfigDict

from score_diffusion.models import ENCODERS
from score_diffusion.run.builders.guidance import with_guidance
from score_diffusion.run.builders.inference import build_trained_sampler, load_unconditioned
from score_diffusion.run.builders.restoration import as_prior
from score_diffusion.run.builders.scoring import score_data
from score_diffusion.run.config import apply_overrides, read_config
from score_diffusion.run.data.info import DataInfo
from score_diffusion.run.distributed.devices import pick_device
from score_diffusion.run.errors import UserError
from score_diffusion.run.files import expanded
from score_diffusion.run.inference.conditioning import ALL
from score_diffusion.run.inference.latents import decode, encode, paths_between
from score_diffusion.run.inference.sample_files import draw
from score_diffusion.run.inference.scoring import check_chain
from score_diffusion.run.inference.trained_model import TrainedModel
from score_diffusion.run.python.arguments import Label, Prompt, Settings, label_text, prompt_text
from score_diffusion.run.python.chosen_model import ModelChoice
from score_diffusion.run.python.hub import SharedRun, download, upload
from score_diffusion.run.python.inputs import model_inputs, scored_inputs
from score_diffusion.run.python.restoring import restore_arrays
from score_diffusion.run.python.results import LogLikelihoods, Restorations, Samples
from score_diffusion.run.python.watching import Watch, with_watched_samples, with_watched_score
from score_diffusion.samplers import ODESampler
from score_diffusion.sde_lib import SDE, ScoreFunction

OWN_FILE = "own.json"
"""In place of config.json in the directory of a `Trainer`, which cannot write down its network."""


def load_run(path: str | Path, device: str = "auto", settings: Settings | None = None) -> Run:
    """The trained model of a run directory.

    Args:
        path: The run directory, as `--workdir`.
        device: "auto" for CUDA where there is one, "cuda" or "cpu".
        settings: Keys of the configuration with other values than in training, such as the new place of what
            the run works with: {"data.text_encoder": "clip/", "data.autoencoder": "runs/autoencoder"}.

    Raises:
        UserError: If the directory holds no run, or no checkpoint of it is intact.
    """
    workdir, where = expanded(str(path)), pick_device(device)
    if (workdir / OWN_FILE).exists():
        raise UserError(
            f"{workdir} holds the training of a network of your own, which only your code can make: make its "
            "Trainer again, and fit returns the run"
        )
    config = apply_overrides(read_config(workdir), [*(settings or {}).items()], "sample")
    run = Run(config, lambda config: load_unconditioned(workdir, config, where), workdir)
    if run.config.model.name not in ENCODERS:  # they have no score, and guide others
        run.score  # noqa: B018 - read now, so that a damaged checkpoint is named here
    return run


class Run:
    """A trained model with its data and its settings.

    Args:
        config: The configuration.
        load: Loads the model with the weights that the section `sampling` of a configuration chooses.
        path: The run directory.
    """

    def __init__(self, config: ConfigDict, load: Callable[[ConfigDict], TrainedModel], path: Path) -> None:
        self.config, self.path = config, path
        self._models = ModelChoice(config, load, path)
        self._watch: Watch | None = None

    def __repr__(self) -> str:
        return f"Run({str(self.path)!r}: {self.sde}, {self.data}, after {self.step:,} training steps)"

    @property
    def score(self) -> ScoreFunction:
        """The score(x, t) ∇ log p_t(x), of model inputs x (B, *shape) at times t (B,); a `ScoreModel`."""
        return self._models.unconditioned().score

    @property
    def sde(self) -> SDE:
        """The SDE."""
        return self._models.unconditioned().sde

    @property
    def data(self) -> DataInfo:
        """What is known about the data: shape, scaling, classes, number of samples."""
        return self._models.unconditioned().data

    @property
    def step(self) -> int:
        """Training steps behind the weights."""
        return self._models.unconditioned().step

    def watched(self, watch: Watch) -> Run:
        """This run with a function that sees how it draws, restores and scores.

        Args:
            watch: Called as watch(x_t, t, score) after every evaluation of the score, guidance included: the
                states (B, *shape), their times (B,), the scores. What it raises ends the work.
        """
        run = copy.copy(self)
        run._watch = watch
        return run

    def sample(
        self,
        n: int | None = None,
        *,
        sampler: str | None = None,
        nfe: int | None = None,
        grid: str | None = None,
        label: Label | None = None,
        prompt: Prompt | None = None,
        guidance: str | None = None,
        scale: float | None = None,
        negative: int | str | None = None,
        seed: int | None = None,
        batch_size: int | None = None,
        settings: Settings | None = None,
    ) -> Samples:
        """Draws samples, those of `--mode sample` with the same settings. What is None is as in the run.

        Args:
            n: Number of samples.
            sampler: A name in `score_diffusion.samplers.SAMPLERS`.
            nfe: Network evaluations per sample at most.
            grid: The time grid, a name in `score_diffusion.samplers.GRIDS` or "fitted".
            label: The classes that are drawn, in turn; -1 for no class and no text.
            prompt: The texts that are drawn, in turn; with guidance="clip", the one that is guided to, too.
            guidance: cfg, autoguidance, ..., as `--guidance`; "none" for none.
            scale: Scale of the guidance.
            negative: The class or the text that cfg guides away from, in place of none.
            seed: Sample k depends on the seed, k and its class or text only.
            batch_size: Samples drawn at a time, which decides the speed only.
            settings: Further keys of `sampling`: {"pc.snr": 0.2, "checkpoint": "best"}.

        Raises:
            UserError: If a setting is unknown or has a wrong value, there is no such class, or the model
                cannot read a text.
            InputError: If the sampler cannot be used so, or a result is not finite.
        """
        named: dict[str, object] = dict(sampler=sampler, num_samples=n, nfe=nfe, grid=grid, seed=seed)
        named |= dict(batch_size=batch_size, guidance=guidance)
        if scale is not None:
            named[f"{guidance or self.config.sampling.guidance}.scale"] = scale
        if negative is not None:
            named["cfg.negative"] = str(negative)
        config, trained = self._models.chosen(named, label, prompt, settings, with_guidance)
        trained, section = with_watched_samples(trained, self._watch), config.sampling
        chosen = build_trained_sampler(section, trained, self.path)
        batches = draw(trained, chosen, range(section.num_samples), section.seed, section.batch_size)
        return self._samples([values for values, _ in batches], max(nfe for _, nfe in batches), trained)

    def log_likelihood(
        self,
        x: object,
        *,
        label: Label | None = None,
        prompt: Prompt | None = None,
        method: str = "ode",
        seed: int | None = None,
        settings: Settings | None = None,
    ) -> LogLikelihoods:
        """Scores samples, as `--mode likelihood` scores held-out data.

        Args:
            x: Samples as your data have them: whole-numbered pixels (n, H, W) or (n, H, W, C), or numbers; or
                as `Samples.samples`.
            label: The class of each sample, or of all.
            prompt: The text of each sample, or of all; without class and text, log p(x).
            method: "ode" for the probability flow, "reverse_sde" for the reverse SDE's bound, "bound" for
                DDPM's variational bound.
            seed: Seed of the dequantization noise, the probes and the noise of the bound.
            settings: Further keys of `likelihood`: {"divergence": "exact", "rtol": 1e-4}.

        Raises:
            UserError: If the samples are not as the run's data, or a setting is wrong.
        """
        if method not in ("ode", "reverse_sde", "bound"):
            raise UserError(f"method must be ode, reverse_sde or bound, got {method!r}")
        chosen = ({} if seed is None else {"seed": seed}) | dict(settings or {})
        overrides = [(f"likelihood.{key}", value) for key, value in chosen.items()]
        section = apply_overrides(self.config, overrides, "likelihood").likelihood
        _, trained = self._models.of_density(label, prompt)
        if method == "bound" or section.dequantization == "gaussian":
            check_chain(trained.sde)
        scores = score_data(
            method, section, with_watched_score(trained, self._watch), scored_inputs(trained, x)
        )
        assert scores is not None  # there is one process
        return LogLikelihoods.of(scores, self.data)

    def encode(
        self,
        x: object,
        *,
        label: Label | None = None,
        prompt: Prompt | None = None,
        rtol: float = 1e-5,
        atol: float = 1e-5,
    ) -> np.ndarray:
        """The codes of samples: where the probability flow takes them from data to noise.

        Args:
            x: Samples as for `log_likelihood`.
            label: The class of each sample, or of all; None for no class.
            prompt: The text of each sample, or of all; None for no text.
            rtol: Relative tolerance of the ODE solver.
            atol: Absolute tolerance of the ODE solver.

        Returns:
            Codes, float32 (n, *shape), about N(0, `sde.prior_std`² I).
        """
        sampler, section, trained = self._flow(label, prompt, rtol, atol)
        return encode(trained, sampler, model_inputs(trained, x), section.batch_size).numpy()

    def decode(
        self,
        codes: object,
        *,
        label: Label | None = None,
        prompt: Prompt | None = None,
        rtol: float = 1e-5,
        atol: float = 1e-5,
    ) -> Samples:
        """The samples of codes: the probability flow from noise to data, the inverse of `encode`.

        Args:
            codes: Codes, floating point (n, *shape).
            label: As for `encode`.
            prompt: As for `encode`.
            rtol: Relative tolerance of the ODE solver.
            atol: Absolute tolerance of the ODE solver.
        """
        sampler, section, trained = self._flow(label, prompt, rtol, atol)
        x_T = torch.as_tensor(np.asarray(codes), dtype=torch.float32)
        if x_T.shape[1:] != self.data.shape or not len(x_T):
            expected = f"(n, {', '.join(map(str, self.data.shape))})"
            raise UserError(f"codes must have the shape {expected}, got {tuple(x_T.shape)}")
        x, nfe = decode(trained, sampler, x_T, section.batch_size)
        return self._samples([trained.to_user(x).cpu().numpy()], nfe, trained)

    def interpolate(
        self,
        a: object,
        b: object,
        n: int = 8,
        *,
        label: int | str | None = None,
        prompt: str | None = None,
        rtol: float = 1e-5,
        atol: float = 1e-5,
    ) -> Samples:
        """A path of samples from one sample to another: their codes, interpolated on the sphere, decoded.

        Args:
            a: One sample, as for `log_likelihood`.
            b: Another.
            n: Samples on the path, at least 2; the first is `a` and the last is `b`.
            label: The class of the whole path; None for no class.
            prompt: The text of the whole path; None for no text.
            rtol: Relative tolerance of the ODE solver.
            atol: Absolute tolerance of the ODE solver.
        """
        if n < 2:
            raise UserError(f"n must be at least 2, the two ends, got {n}")
        ends = [model_inputs(self._models.unconditioned(), x) for x in (a, b)]
        if any(len(end) != 1 for end in ends):
            raise UserError(f"a and b must be one sample each, got {len(ends[0])} and {len(ends[1])}")
        sampler, section, trained = self._flow(label, prompt, rtol, atol)
        paths = paths_between(trained, sampler, torch.stack(ends, 1), n, section.batch_size)
        return self._samples([trained.to_user(paths.samples[0]).cpu().numpy()], paths.nfe, trained)

    def restore(
        self,
        x: object,
        task: str = "inpaint",
        *,
        known: object = None,
        measured: bool = False,
        noise: float | None = None,
        method: str | None = None,
        nfe: int | None = None,
        num_samples: int | None = None,
        label: int | str | None = None,
        prompt: str | None = None,
        seed: int | None = None,
        settings: Settings | None = None,
    ) -> Restorations:
        """Restores what was measured, as `--mode restore` does: draws samples of the posterior.

        Args:
            x: Samples as for `log_likelihood`, which are measured first; or what was measured.
            task: A name in `score_diffusion.run.tasks.TASKS`, such as inpaint, superres or jpeg.
            known: For inpaint, which pixels are known, booleans (H, W) or of a sample's shape; None for the
                mask of `settings`.
            measured: Whether `x` are measurements: for inpaint samples with anything in the missing pixels,
                for superres small images, ...; as pixels, or in floating point and channels first.
            noise: Standard deviation of the measurement's noise; images reach from -1 to 1, standardized
                numbers have standard deviation 1.
            method: A name in `score_diffusion.run.tasks.RESTORERS`.
            nfe: Network evaluations per sample at most.
            num_samples: Posterior samples of each measurement.
            label: The class of all samples; None for p(x) without a class.
            prompt: The text of all samples; None for p(x) without a text.
            seed: Seed of masks, of the measurement's noise and of the samples.
            settings: Further keys of `restore`: {"superres.factor": 4, "dps.zeta": 1.0}.

        Raises:
            UserError: If the samples or a setting do not fit the run or the task.
        """
        named = dict(task=task, noise=noise, method=method, nfe=nfe, num_samples=num_samples, seed=seed)
        chosen = {key: value for key, value in named.items() if value is not None} | dict(settings or {})
        overrides: list[tuple[str, object]] = [(f"restore.{key}", value) for key, value in chosen.items()]
        overrides.append(("sampling.label", ALL if label is None else label_text(label)))
        if prompt is not None:
            overrides.append(("sampling.prompt", prompt_text(prompt)))
        config = apply_overrides(self.config, overrides, "restore")
        trained = as_prior(self._models.unconditioned(config), config, self.path)
        trained = with_watched_samples(trained, self._watch)
        return restore_arrays(trained, config.restore, x, known, measured)

    @classmethod
    def from_pretrained(
        cls,
        name_or_path: str | Path,
        *,
        revision: str | None = None,
        token: str | None = None,
        device: str = "auto",
        settings: Settings | None = None,
    ) -> Run:
        """The run of a folder, or of a repository of the Hugging Face hub, of which nothing is executed.

        Args:
            name_or_path: A run directory, or OWNER/NAME.
            revision: Branch, tag or commit of the repository.
            token: Of the hub; None for the one that is saved on this machine.
            device: As for `load_run`.
            settings: As for `load_run`.

        Raises:
            UserError: If there is no such run.
        """
        folder = expanded(str(name_or_path))
        folder = folder if folder.is_dir() else download(str(name_or_path), revision, token)
        return load_run(folder, device, settings)

    def save_pretrained(
        self, folder: str | Path, *, licence: str | None = None, name: str | None = None, samples: int = 16
    ) -> Path:
        """Writes the run to a new folder as it is shared: configuration, weights, results, samples and card.

        The weights are those of one checkpoint, without the optimizer's moments; paths of this machine are
        left out of the configuration.

        Args:
            folder: Where to; must not exist or be empty.
            licence: Of the weights, an identifier of the hub such as "apache-2.0"; None if none is stated.
            name: What the card calls the run, OWNER/NAME; None for the folder's.
            samples: Samples in the picture on the card; 0 for no picture.

        Raises:
            UserError: If the folder holds something, or the run is that of a network of your own.
        """
        target = expanded(str(folder))
        shared = SharedRun(self.config, self._models.unconditioned(), self.path, name or target.name, licence)
        shared.write(target, (lambda path: self.sample(samples).save(path)) if samples else None)
        return target

    def push_to_hub(
        self,
        repository: str,
        *,
        licence: str | None = None,
        private: bool = False,
        token: str | None = None,
        samples: int = 16,
        message: str = "Add a run of score-diffusion",
    ) -> str:
        """Uploads what `save_pretrained` writes to a repository of the Hugging Face hub; returns its address.

        Args:
            repository: OWNER/NAME, created if need be.
            licence: As for `save_pretrained`.
            private: Whether a new repository is private.
            token: Of the hub; None for the one that is saved on this machine.
            samples: As for `save_pretrained`.
            message: Of the commit.

        Raises:
            UserError: If the hub refuses it, or as for `save_pretrained`.
        """
        with tempfile.TemporaryDirectory() as folder:
            target = Path(folder) / "run"
            self.save_pretrained(target, licence=licence, name=repository, samples=samples)
            return upload(target, repository, private, token, message)

    def _flow(
        self, label: Label | None, prompt: Prompt | None, rtol: float, atol: float
    ) -> tuple[ODESampler, ConfigDict, TrainedModel]:
        """The probability flow with a step size for each sample."""
        config, trained = self._models.of_density(label, prompt)
        trained = with_watched_samples(trained, self._watch)
        return ODESampler(trained.sde, rtol=rtol, atol=atol), config.sampling, trained

    def _samples(self, parts: list[np.ndarray], nfe: int, trained: TrainedModel) -> Samples:
        samples = np.concatenate(parts)
        labels, names = trained.conditions.labels(len(samples)), trained.conditions.names(len(samples))
        return Samples(samples, nfe, trained.shown, None if labels is None else labels.numpy(), names)
