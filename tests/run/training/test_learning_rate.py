from __future__ import annotations

import pytest

from score_diffusion.run.training.learning_rate import LearningRate, total_steps


def test_the_warmup_and_the_cosine():
    rate = LearningRate(2.0, warmup_steps=10, total_steps=100, schedule="cosine")
    rates = [rate(step) for step in range(100)]
    assert rates[0] == pytest.approx(0.2) and rates[9] == pytest.approx(2.0)
    assert rates[55] == pytest.approx(1.0) and 0 < rates[99] < 0.001
    assert max(rates) == pytest.approx(2.0)
    assert LearningRate(2.0, 0, 100, "cosine")(0) == 2.0


def test_the_constant_schedule():
    rate = LearningRate(2.0, 10, 100, "constant")
    assert rate(4) == 1.0 and rate(10) == rate(99) == 2.0


def test_images_end_training_before_the_steps_do():
    assert total_steps(100, 0, 64) == 100
    assert total_steps(100, 50 * 64 - 1, 64) == 50
    assert total_steps(100, 1000 * 64, 64) == 100
