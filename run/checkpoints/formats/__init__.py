"""Checkpoints of other libraries: score_sde_pytorch, diffusers, guided-diffusion."""
