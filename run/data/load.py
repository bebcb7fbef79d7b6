"""Finding the data set that the options name, and loading it.

The user's own data are read by image_folders.py (folders and zip files of images), array_files.py (arrays),
archives.py (the files of MNIST and CIFAR-10), hugging_face.py (data sets of the hub) and user_function.py (a
Python function). Each returns streams of samples without reading the samples. Then the test set is held out,
numbers are standardized by the training set, and data that fit in data.memory_gib are read into memory.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from score_diffusion.run.console import warn
from score_diffusion.run.data.archives import CIFAR_CLASSES, find_cifar, find_idx, read_cifar, read_idx
from score_diffusion.run.data.array_files import array_splits, is_array_folder, read_array_files
from score_diffusion.run.data.arrays import standardize
from score_diffusion.run.data.captioned_digits import load_captioned_digits
from score_diffusion.run.data.dataset import Dataset
from score_diffusion.run.data.decoding import ImagePreparation
from score_diffusion.run.data.hugging_face import HUB, find_on_hub
from score_diffusion.run.data.image_folders import find_images
from score_diffusion.run.data.image_source import BadFile, all_bad_files
from score_diffusion.run.data.low_resolution import shrunk
from score_diffusion.run.data.options import DataOptions
from score_diffusion.run.data.scaling import Scaling
from score_diffusion.run.data.shapes import SHAPE_SETS, load_shapes
from score_diffusion.run.data.sources import GIB, Samples, Stream, load_into_memory
from score_diffusion.run.data.splits import Splits, encode_captions, hold_out
from score_diffusion.run.data.toys import TOYS, load_digits, load_mnist5k, load_toy
from score_diffusion.run.data.user_function import arrays_of, call_function, names_function
from score_diffusion.run.errors import UserError, some_of
from score_diffusion.run.machine import refuse_beyond_memory


def load_dataset(options: DataOptions, scaling: Scaling | None = None, *, streamed: bool = False) -> Dataset:
    """The data set that the options name.

    Args:
        options: Which data to load, and how to prepare them.
        scaling: The scaling of the run that will use the data; by default the training set decides it.
        streamed: Whether to leave the samples of a user's own data where they are, whatever memory they take.

    Raises:
        UserError: If the name is unknown, or the source cannot be used.
    """
    if options.path or options.name.startswith(HUB):
        try:
            dataset = _load_own(options, scaling, streamed)
        except BadFile as error:
            raise all_bad_files(error, options.workers) from error
    else:
        dataset = _load_built_in(options)
    dataset = shrunk(dataset, options.shrink)
    if options.flip and len(dataset.shape) < 2:
        raise UserError("data.flip mirrors images, and these data are points: leave it false")
    return dataset


BUILT_IN: dict[str, Callable[[DataOptions], Dataset]] = {
    "digits": lambda options: load_digits(),
    "captioned_digits": lambda options: load_captioned_digits(options.tokenizer),
    "mnist5k": lambda options: load_mnist5k(),
    **dict.fromkeys(SHAPE_SETS, load_shapes),
    **dict.fromkeys(TOYS, load_toy),
}
"""The data sets that need no file of the user's."""


def _load_built_in(options: DataOptions) -> Dataset:
    if options.name not in BUILT_IN:
        raise UserError(
            f"unknown data set {options.name!r}: choose one of {some_of(options.name, BUILT_IN)}, or "
            f"{HUB}NAME of the Hugging Face hub, or set data.path to your own data"
        )
    sized = ImagePreparation(options.image_size if options.name in SHAPE_SETS else None, options.crop)
    if ImagePreparation.of(options) != sized:
        keys = "data.channels and data.bits" if sized.size else "data.image_size, data.channels and data.bits"
        raise UserError(f"{keys} are for your own images, not {options.name}")
    if options.standardize == "per_channel" or options.layout != "auto":
        raise UserError(f"data.standardize and data.layout are for your own arrays, not {options.name}")
    return BUILT_IN[options.name](options)


def _load_own(options: DataOptions, scaling: Scaling | None, streamed: bool) -> Dataset:
    if options.path:
        name, splits = _find(options)
    else:
        name = options.name
        splits = find_on_hub(name.removeprefix(HUB), options)
    kept = replace(options, memory_gib=0.0) if streamed else options
    return _dataset(splits, kept, name, options.path or name, scaling)


def load_arrays(given: object, options: DataOptions) -> Dataset:
    """The data set of arrays in memory.

    Args:
        given: An array, (train, test) or a dictionary of arrays, see user_function.py.
        options: How to prepare them.

    Raises:
        UserError: If they cannot be used.
    """
    what = "the data"
    return _dataset(array_splits(arrays_of(given, what), what, options), options, "own data", what, None)


RESERVED = {"-1": "no class", "all": "all classes"}
"""Names that a class cannot have, by what `--label` takes them for."""


def _check_class_names(classes: Sequence[str], source: str) -> None:
    for name, meaning in RESERVED.items():
        if name in classes:
            raise UserError(f"{source} has a class {name!r}, which means {meaning} to --label: rename it")


def _dataset(
    splits: Splits, options: DataOptions, name: str, source: str, scaling: Scaling | None
) -> Dataset:
    """The data set of a source: held out, standardized, and in memory if it fits."""
    _check_class_names(splits.classes, source)
    if splits.levels is not None and options.standardize != "auto":
        warn(f"data.standardize is for numbers, and {source} holds images: it changes nothing")
    splits, digest = hold_out(splits, options.seed, source)
    splits, vocabulary = encode_captions(splits, options.tokenizer, source)
    if splits.levels is None:
        splits, scaling = standardize(splits, options.standardize, source, scaling)
    else:
        scaling = Scaling(levels=splits.levels)
    samples = load_or_stream([part.samples for part in splits.parts.values()], options.memory_gib)
    loaded = dict(zip(splits.parts, samples, strict=True))
    conditions = {name: part.all_conditions for name, part in splits.parts.items()}
    return Dataset(
        name=name,
        train=loaded["train"],
        test=loaded["test"],
        scaling=scaling,
        conditions=conditions["train"],
        test_conditions=conditions["test"],
        classes=splits.classes,
        digest=digest,
        validation=loaded.get("validation"),
        validation_conditions=conditions.get("validation", {}),
        vocabulary=vocabulary,
    )


def load_or_stream(streams: list[Stream], memory_gib: float) -> list[Samples]:
    """The samples in memory if all of them fit, else as streams."""
    if sum(stream.nbytes for stream in streams) <= memory_gib * GIB:
        return [load_into_memory(stream) for stream in streams]
    for source in {stream.source for stream in streams}:
        refuse_beyond_memory(2 * source.sample_bytes, "a pair of samples", "lower data.image_size")
        source.check_before_streaming()
    return list(streams)


def _find(options: DataOptions) -> tuple[str, Splits]:
    """The data that `data.path` names, with a name for them."""
    if names_function(options.path):
        arrays = call_function(options.path)
        return options.path.rpartition(":")[2], array_splits(arrays, options.path, options)
    path = Path(options.path)
    if not path.exists():
        raise UserError(f"data.path {path} does not exist")
    if not (path.is_file() or path.is_dir()):
        raise UserError(f"data.path {path} must be a file or a folder, it is a pipe, a socket or a device")
    name, source = path.name.split(".")[0], str(path)
    if path.suffix in (".npy", ".npz") or is_array_folder(path):
        return path.stem, array_splits(read_array_files(path, options.memory_gib), source, options)
    idx = find_idx(path)
    if idx is not None:
        return name, array_splits(read_idx(idx, options.memory_gib), source, options)
    cifar = find_cifar(path)
    if cifar is not None:
        return name, array_splits(read_cifar(cifar), source, options, CIFAR_CLASSES)
    if path.is_dir() or path.suffix.lower() == ".zip":
        return name, find_images(path, options)
    raise UserError(
        "data.path must name a .npy or .npz file or a folder of .npy files, a folder or .zip of images, "
        "MNIST's idx files (…idx3-ubyte[.gz]), CIFAR-10's .tar.gz or the folder of either, or "
        f"FILE.py:FUNCTION, got {path}"
    )
