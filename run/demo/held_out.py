"""Held-out images of a run, read when the page first asks for one."""

from __future__ import annotations

import threading
from functools import cached_property

import numpy as np

from score_diffusion.run.builders.data import load_shown_data
from score_diffusion.run.data.dataset import Dataset
from score_diffusion.run.data.sample_conditions import class_name
from score_diffusion.run.data.user_function import refuse_function
from score_diffusion.run.python.run import Run


class HeldOut:
    """The held-out images of a run.

    Args:
        run: The run.
        own_path: Whether the user named the data, so that a function that makes them may be called.
    """

    def __init__(self, run: Run, own_path: bool) -> None:
        self._run, self._own_path = run, own_path
        self._reading = threading.Lock()

    @cached_property
    def _dataset(self) -> Dataset:
        if not self._own_path:
            refuse_function(self._run.config.data.path)
        return load_shown_data(self._run.config.data, self._run.data)

    def __call__(self, index: int) -> tuple[np.ndarray, str]:
        """An image, counted from the first again after the last, and what it is in words.

        Returns:
            Brightness in [-1, 1], float32 (1, C, H, W), and the words.

        Raises:
            UserError: If the data cannot be read.
        """
        with self._reading:  # once, whoever else asks meanwhile
            data = self._dataset
        k = index % len(data.test)
        image = data.scaling.stored_to_user(data.test[k : k + 1]).numpy()
        words = f"held-out image {k} of {len(data.test)}"
        if "label" in data.test_conditions:
            words += f", class {class_name(int(data.test_conditions['label'][k]), data.classes)}"
        return image, words
