"""The tables of DDPM's variances against the papers' definitions."""

from __future__ import annotations

import math

import pytest
import torch

from score_diffusion.sde_lib import BETA_TABLES, cosine_betas

every_table = pytest.mark.parametrize("table", BETA_TABLES)


def test_tables_are_the_papers():
    """The ends at N = 1000, the defining property of each, and float64."""
    for table in BETA_TABLES.values():
        betas = table(1000)
        assert betas.dtype == torch.float64 and betas.shape == (1000,) and (betas.diff() >= 0).all()
    for name in ("linear", "quadratic"):
        assert BETA_TABLES[name](1000)[[0, -1]].tolist() == pytest.approx([1e-4, 0.02], rel=1e-12)
    torch.testing.assert_close(BETA_TABLES["quadratic"](1000).sqrt().diff().diff(), torch.zeros(998).double())
    betas = BETA_TABLES["sigmoid"](1000)
    u = ((betas - 1e-4) / (0.02 - 1e-4)).logit()
    torch.testing.assert_close(u, torch.linspace(-6, 6, 1000, dtype=torch.float64))


def test_cosine_table():
    """ᾱ is cos² up to its constant, until β is clipped at 0.999 (Nichol & Dhariwal, 2021, eq. 17)."""
    betas = cosine_betas(1000)
    alpha_bar = (1 - betas).cumprod(0)
    for k in (0, 499, 998):
        f = [math.cos((u + 0.008) / 1.008 * math.pi / 2) ** 2 for u in ((k + 1) / 1000, 0)]
        assert alpha_bar[k].item() == pytest.approx(f[0] / f[1], rel=1e-10)
    assert betas[-1] == 0.999 and betas[-2] < 0.999


@every_table
def test_shorter_tables_end_at_the_same_noise(table):
    """The scaling by 1000/N keeps the total: ∫β is that of the table of 1,000 steps."""
    if table != "cosine":
        sums = [-torch.log1p(-BETA_TABLES[table](N)).sum().item() for N in (1000, 4000)]
        assert sums[1] == pytest.approx(sums[0], rel=0.02)
        with pytest.raises(ValueError, match="use N > 20 or cosine_betas, got N=20"):
            BETA_TABLES[table](20)
    else:
        assert cosine_betas(4).shape == (4,)
    with pytest.raises(ValueError, match="N"):
        BETA_TABLES[table](0)


@pytest.mark.parametrize("table", ["linear", "quadratic", "sigmoid"])
def test_other_ends(table):
    """Other libraries keep the ends of 1,000 steps for any number of steps."""
    betas = BETA_TABLES[table](10, first=1e-4, last=0.02)
    inside = 1 / (1 + math.exp(6)) * (0.02 - 1e-4) if table == "sigmoid" else 0.0
    assert betas[[0, -1]].tolist() == pytest.approx([1e-4 + inside, 0.02 - inside])
    assert (betas.diff() > 0).all()
    for ends in (dict(first=0.1, last=0.01), dict(first=0.0), dict(last=1.0)):
        with pytest.raises(ValueError, match="must ascend within"):
            BETA_TABLES[table](1000, **ends)
