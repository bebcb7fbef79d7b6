"""Images are not mirrored where what goes with them would be wrong of the mirrored image."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from score_diffusion.run.data.dataset import Dataset
from score_diffusion.run.data.mirroring import check_mirroring
from score_diffusion.run.data.scaling import Scaling
from score_diffusion.run.data.vocabulary import Bytes, Words
from score_diffusion.run.errors import UserError

IMAGES = torch.zeros(2, 1, 4, 4, dtype=torch.uint8)
TOLD, PLAIN = ["a ring left of a cross", "a cross"], ["a bright ring", "a leftover cross"]


def captioned(captions: list[str], kind: type[Words] | type[Bytes]) -> Dataset:
    vocabulary = kind.of_captions(captions, "these data")
    ids = vocabulary.encode(captions)
    return Dataset("shapes", IMAGES, IMAGES, Scaling(levels=256), {"text": ids}, vocabulary=vocabulary)


@pytest.mark.parametrize("kind", [Words, Bytes])
def test_captions_that_name_a_side(kind: type[Words] | type[Bytes]):
    check_mirroring(captioned(PLAIN, kind), with_conditions=True)
    check_mirroring(captioned(TOLD, kind), with_conditions=False)
    with pytest.raises(UserError, match=r"captions of the data name a side \('left'\), which would be wrong"):
        check_mirroring(captioned(TOLD, kind), with_conditions=True)


def test_embeddings_of_images():
    dataset = replace(captioned(PLAIN, Words), encoders={"encoder": "a digest"})
    with pytest.raises(UserError, match=r"their embeddings of data\.encoder are those of the images as they"):
        check_mirroring(dataset, with_conditions=True)


def test_vectors_of_the_users_own_are_named(capsys):
    dataset = Dataset("own", IMAGES, IMAGES, Scaling(levels=256), {"vector": torch.zeros(2, 3)})
    check_mirroring(dataset, with_conditions=True)
    assert "leaves their cond_vector as they are" in capsys.readouterr().err
