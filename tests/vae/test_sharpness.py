"""Sharpness: against sinusoids, white noise and Gaussian blur, whose spectra are known."""

import jax.numpy as jnp
import numpy as np
import pytest

from vae import sharpness

pytestmark = pytest.mark.usefixtures("x64")


def noise(shape=(64, 64), seed=0):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape))


def wave(cycles, shape=(32, 32)):
    x = np.arange(shape[1]) / shape[1]
    return jnp.asarray(np.broadcast_to(np.cos(2 * np.pi * cycles * x), shape))


@pytest.mark.parametrize("cycles", [1, 5, 15])
def test_a_sinusoid_is_in_its_ring_alone(cycles):
    spectrum = np.asarray(sharpness.radial_spectrum(wave(cycles)))
    assert np.argmax(spectrum) == cycles
    assert spectrum.sum() == pytest.approx(spectrum[cycles], rel=1e-10)


def test_it_is_the_mean_over_a_ring_in_numpy():
    image = np.asarray(noise((9, 12)))
    power = np.abs(np.fft.fft2(image - image.mean())) ** 2 / image.size
    found = sharpness.radial_spectrum(jnp.asarray(image))
    assert found.shape == (5,)
    for r in range(5):
        own = [
            power[i, j]
            for i, u in enumerate(np.fft.fftfreq(9))
            for j, v in enumerate(np.fft.fftfreq(12))
            if round(9 * np.hypot(u, v)) == r
        ]
        assert found[r] == pytest.approx(np.mean(own), rel=1e-9, abs=1e-12)


def test_white_noise_is_flat_and_has_twenty_times_its_variance():
    spectra = np.stack([sharpness.radial_spectrum(noise(seed=s)) for s in range(40)])
    # A ring r > 2 has 2πr > 12 frequencies, half of them free, of exponential power: over 40
    # images the standard error is below 1/√(40·6) = 0.065.
    np.testing.assert_allclose(spectra.mean(0)[3:], 1, atol=4 * 0.065)
    variances = [float(sharpness.laplacian_variance(noise(seed=s))) for s in range(40)]
    error = np.std(variances) / np.sqrt(40)
    assert np.mean(variances) == pytest.approx(20, abs=4 * error)


def test_blur_takes_off_what_a_gaussian_takes_off():
    image = noise((64, 64))
    u = np.fft.fftfreq(64)
    squared = u[:, None] ** 2 + u[None] ** 2
    std = 1.5
    kernel = np.exp(-2 * np.pi**2 * std**2 * squared)
    blurred = jnp.asarray(np.real(np.fft.ifft2(np.fft.fft2(image) * kernel)))
    before, after = (np.asarray(sharpness.radial_spectrum(i)) for i in (image, blurred))
    r = np.arange(1, 20)
    # Within a ring r varies by ± ½.
    low, high = (np.exp(-4 * np.pi**2 * std**2 * ((r + e) / 64) ** 2) for e in (0.5, -0.5))
    assert np.all((after[1:20] / before[1:20] >= low) & (after[1:20] / before[1:20] <= high))
    for measure in (sharpness.laplacian_variance, sharpness.high_frequency_share):
        assert measure(blurred) < 0.1 * measure(image)


def test_a_blank_image_has_none():
    blank = jnp.full((8, 8), 0.3)
    assert sharpness.laplacian_variance(blank) == pytest.approx(0, abs=1e-25)
    assert np.isfinite(sharpness.high_frequency_share(blank))


@pytest.mark.parametrize(("cycles", "share"), [(3, 0.0), (12, 1.0)])
def test_the_share_is_of_what_is_above_half_of_nyquist(cycles, share):
    assert sharpness.high_frequency_share(wave(cycles)) == pytest.approx(share, abs=1e-10)
