"""Restarts of the codes of a codebook that are not used.

A code that no latent vector is nearest to gets no gradient of the reconstruction and never moves where the
vectors are: in a few hundred steps a codebook can collapse to a few codes. Of each code the share of vectors
whose nearest it is, times the number of codes, is averaged over the steps; where this use falls below a
threshold, the code is set to a vector of the batch, drawn at random. At the start no code counts as used, so
that the first batch sets them all.

Reference:
    Jukebox: A Generative Model for Music (Dhariwal et al., 2020), https://arxiv.org/abs/2005.00341:
        Section 3.1, random restarts.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.distributed import ProcessGroup

from score_diffusion.run.distributed.model import set_full
from score_diffusion.run.distributed.processes import average_over_ranks_, concatenate_over_ranks

DECAY = 0.99
LEAST_USE = 0.1
"""Of a code that stays, in units of equal use of all codes."""
NEW_USE = LEAST_USE * math.e
"""Of a code that was restarted, so that it stays for 100 steps at least."""


class Restarts(nn.Module):
    """How much each code of a codebook is used; restarts those that are not.

    Args:
        codes: Number of codes, K.
    """

    usage: Tensor

    def __init__(self, codes: int) -> None:
        super().__init__()
        self.register_buffer("usage", torch.zeros(codes))

    @torch.no_grad()
    def update(
        self, codebooks: Sequence[Tensor], latents: Tensor, codes: Tensor, group: ProcessGroup | None
    ) -> None:
        """Counts the codes of a batch, and restarts those that are too little used.

        Args:
            codebooks: The codebook that is trained and its averages, (K, D), sharded or not.
            latents: Latents of this rank's batch, (B, D, *size).
            codes: The codes that they were replaced by, int64 (B, *size).
            group: The ranks that share the work; None for one process.
        """
        total, vectors, chosen = (
            len(self.usage),
            latents.float().movedim(1, -1).flatten(0, -2),
            codes.flatten(),
        )
        use = torch.zeros_like(self.usage).index_add_(0, chosen, torch.ones_like(chosen, dtype=torch.float32))
        use *= total / len(chosen)
        average_over_ranks_([use], group)
        self.usage.lerp_(use, 1 - DECAY)
        each = math.ceil(total / (group.size() if group else 1))
        drawn = vectors[torch.randint(len(vectors), (each,), device=vectors.device)]
        drawn = concatenate_over_ranks(drawn, group)[:total]
        restart = (self.usage < LEAST_USE) & drawn.isfinite().all(1)
        self.usage.masked_fill_(restart, NEW_USE)
        for codebook in codebooks:
            set_full(codebook, restart[:, None], drawn)
