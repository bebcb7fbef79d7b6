"""Checkpoints of other libraries: score_sde_pytorch, NCSNv2, diffusers, guided-diffusion, EDM."""
