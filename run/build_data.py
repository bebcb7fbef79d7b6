"""From a section `data` to the data of a run, parts of which the network of another run may have computed."""

from __future__ import annotations

from ml_collections import ConfigDict

from score_diffusion.run.build import data_options
from score_diffusion.run.build_encoders import load_contrastive_encoders
from score_diffusion.run.data.dataset import Dataset
from score_diffusion.run.data.info import DataInfo, load_data
from score_diffusion.run.data.load import load_dataset
from score_diffusion.run.data.options import DataOptions
from score_diffusion.run.data.scaling import Scaling
from score_diffusion.run.encoded_data.embeddings import EMBEDDINGS


def load_run_data(section: ConfigDict, info: DataInfo | None = None) -> Dataset:
    """The data of a section `data`, as `load_data` loads them, encoded where the section names encoders.

    Args:
        section: The section.
        info: What the run has recorded about its data; None for a new run.

    Raises:
        UserError: As for `load_data`, or if the encoders are not those of the record, or not for these data.
    """
    if not section.encoder:
        return load_data(data_options(section), info)
    encoders = load_contrastive_encoders(section.encoder, info)
    encode = EMBEDDINGS[section.embeddings]

    def load(options: DataOptions, scaling: Scaling | None) -> Dataset:
        return encode(load_dataset(options, encoders.info.scaling), encoders)

    return load_data(data_options(section), info, load)
