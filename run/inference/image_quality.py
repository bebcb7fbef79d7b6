"""How close restored images are to the truth: PSNR and SSIM.

    PSNR = 10 log₁₀(range²/mean (x - y)²)
    SSIM = mean of (2 μ_x μ_y + c_1)(2 σ_xy + c_2)/((μ_x² + μ_y² + c_1)(σ_x² + σ_y² + c_2))

with local moments under a Gaussian window of 11x11 pixels and σ = 1.5, over all windows inside the image and
all channels, c_1 = (0.01 range)² and c_2 = (0.03 range)². Smaller images get the largest odd window that
fits.

Reference:
    Image Quality Assessment: From Error Visibility to Structural Similarity (Wang et al., 2004),
        https://doi.org/10.1109/TIP.2003.819861: eq. 13.
"""

from __future__ import annotations

import numpy as np
from scipy.ndimage import correlate1d

WINDOW, WINDOW_STD = 11, 1.5


def psnr(x: np.ndarray, y: np.ndarray, value_range: float) -> np.ndarray:
    """The peak signal-to-noise ratio of each pair in dB, float64 (n,); infinite for equal ones.

    Args:
        x, y: Samples, (n, *shape).
        value_range: The distance of black and white.
    """
    error = np.square(x.astype(np.float64) - y).reshape(len(x), -1).mean(1)
    with np.errstate(divide="ignore"):
        return 10 * np.log10(value_range**2 / error)


def ssim(x: np.ndarray, y: np.ndarray, value_range: float) -> np.ndarray:
    """The structural similarity of each pair of images, float64 (n,), at most 1.

    Args:
        x, y: Images, (n, C, H, W).
        value_range: The distance of black and white.
    """
    x, y = x.astype(np.float64), y.astype(np.float64)
    mean_x, mean_y = _local_mean(x), _local_mean(y)
    var_x, var_y = _local_mean(x * x) - mean_x**2, _local_mean(y * y) - mean_y**2
    covariance = _local_mean(x * y) - mean_x * mean_y
    c_1, c_2 = (0.01 * value_range) ** 2, (0.03 * value_range) ** 2
    brightness = (2 * mean_x * mean_y + c_1) / (mean_x**2 + mean_y**2 + c_1)
    structure = (2 * covariance + c_2) / (var_x + var_y + c_2)
    return (brightness * structure).reshape(len(x), -1).mean(1)


def _local_mean(x: np.ndarray) -> np.ndarray:
    """Weighted means under all windows inside the images, (n, C, H', W')."""
    shortest = min(x.shape[2:])
    size = min(WINDOW, shortest - (shortest + 1) % 2)
    offsets = np.arange(size) - size // 2
    weights = np.exp(-0.5 * (offsets / WINDOW_STD) ** 2)
    for axis in (2, 3):
        x = correlate1d(x, weights / weights.sum(), axis)
        x = x.take(range(size // 2, x.shape[axis] - size // 2), axis)
    return x
