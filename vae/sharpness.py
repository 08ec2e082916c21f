"""How sharp an image is: its power at each spatial frequency, and the variance of its Laplacian.

Both are of one image [H, W] in the units of its values, and know nothing of what it shows: noise is
sharp too. They are read beside what the same numbers are of the data.
"""

import jax
import jax.numpy as jnp
import numpy as np


def radial_spectrum(image: jax.Array) -> jax.Array:
    """Mean power |F(u, v)|²/(H·W) at each whole radius of frequency r = 0 ... min(H, W)//2.

    The mean is taken off first, so that r = 0 is 0. Frequencies are u/H and v/W in cycles a pixel;
    r counts cycles over the shorter side, so that the last r is Nyquist's. Those in the corners,
    beyond it, are left out. With all frequencies, the sum of |F|²/(H·W) is the sum of the squared
    deviations (Parseval).

    Args:
      image: [H, W].

    Returns:
      [min(H, W)//2 + 1].
    """
    height, width = image.shape
    ring, counts = _rings(height, width)
    transform = jnp.fft.fft2(image - jnp.mean(image))
    power = jnp.square(jnp.abs(transform)) / (height * width)
    # One ring more, for the corners.
    sums = jnp.zeros(len(counts) + 1, power.dtype).at[ring.ravel()].add(power.ravel())
    return sums[:-1] / counts.astype(power.dtype)


def _rings(height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    """The ring of each frequency [H, W], and how many frequencies each ring has."""
    short = min(height, width)
    u, v = np.fft.fftfreq(height)[:, None], np.fft.fftfreq(width)[None, :]
    ring = np.rint(short * np.hypot(u, v)).astype(int)
    ring = np.minimum(ring, short // 2 + 1)
    return ring, np.bincount(ring.ravel(), minlength=short // 2 + 2)[:-1]


def high_frequency_share(image: jax.Array) -> jax.Array:
    """The share of an image's power, of what rings hold, above half of Nyquist's frequency.

    0 of an image that is one value throughout.
    """
    _, counts = _rings(*image.shape)
    power = radial_spectrum(image)
    power = power * counts.astype(power.dtype)
    total = jnp.sum(power)
    high = jnp.sum(power[len(counts) // 2 + 1 :])
    return high / jnp.where(total > 0, total, 1)


def laplacian_variance(image: jax.Array) -> jax.Array:
    """The variance over inner pixels of the sum of the four neighbours less four times the pixel.

    The usual measure of focus (Pech-Pacheco et al. 2000). Of white noise it is 20 times its
    variance.
    """
    around = image[:-2, 1:-1] + image[2:, 1:-1] + image[1:-1, :-2] + image[1:-1, 2:]
    return jnp.var(around - 4 * image[1:-1, 1:-1])
