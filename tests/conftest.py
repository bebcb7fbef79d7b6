from __future__ import annotations

import os

import torch

# The tests run side by side, a process per core, on tensors so small that threads cost more than they give.
os.environ["OMP_NUM_THREADS"] = "1"  # of the processes that tests start
torch.set_num_threads(1)
