"""Which runs of different latent dimensions and depths share one program: by masks, `vae.packed`.

Such a program is that of the largest of them. It is compiled once, where each structure by itself
is compiled anew; and every run pays for the largest in arithmetic.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import jax

# The fields that runs of one program may differ in, beside numbers.
FIELDS = ("model.latent_dim", "model.depth")

# What else they must be: what the masks are made for.
NEEDS: dict[str, tuple[Any, ...]] = {
    "model.net": ("mlp",),
    "model.posterior": ("gaussian",),
    "model.prior": ("standard",),
    "model.norm": ("none", "layer"),
    "model.residual": ("none", "plain", "zero_init"),
    "model.latent_skip": ("none",),
    "objective.name": ("elbo", "iwae", "miwae", "ciwae", "piwae", "renyi"),
    "objective.free_bits": (0.0,),
    "objective.free_bits_groups": (None,),
    "optimizer.encoder_steps": (1,),
    "probe.instruments": ("none",),
}

# Seconds that one more structure costs to trace and compile, and floating-point operations a second
# of a population's small products. `python -m experiments.benchmark structures` prints both: 5.6 s
# and 167 GFLOP/s on two idle cores (Zen 5, JAX 0.10.2). Both are lower here, so that what is packed
# pays with some margin, and on slower cores. That of an accelerator is a guess, and low.
COMPILE_SECONDS = 4.0
FLOPS, FLOPS_ACCELERATOR = 5e10, 5e12


def admits(flat: Mapping[str, Any]) -> bool:
    """Whether a run can share a program with runs of other shapes."""
    width, latents, depth = (flat[f"model.{name}"] for name in ("width", "latent_dim", "depth"))
    if any(flat[name] not in values for name, values in NEEDS.items()):
        return False
    if not isinstance(width, int) or not isinstance(latents, int) or depth < 1:
        return False
    # Where a residual layer adds its input, the sizes say: they must say the same for all.
    return flat["model.residual"] == "none" or latents != width


def largest(flats: Sequence[Mapping[str, Any]]) -> dict[str, int]:
    """The fields of the program that runs share."""
    return {name: max(flat[name] for flat in flats) for name in FIELDS}


def padding(flats: Sequence[Mapping[str, Any]]) -> list[int]:
    """Weights of the shared program that are not a run's own, for each run.

    A latent dimension has a column in two heads and a row in the decoder, a hidden layer a square
    matrix in each network.
    """
    most, width = largest(flats), flats[0]["model.width"]
    return [
        3 * width * (most["model.latent_dim"] - flat["model.latent_dim"])
        + 2 * width**2 * (most["model.depth"] - flat["model.depth"])
        for flat in flats
    ]


def pays(flats: Sequence[Mapping[str, Any]], num_steps: int, num_test: int) -> bool:
    """Whether one program for all takes less time than one for each structure.

    A weight costs two operations for each row on the way forward, and twice that on the way back.
    """
    flat = flats[0]
    rows = flat["train.batch_size"] * flat["objective.samples"] * flat["objective.groups"]
    operations = 6 * rows * num_steps + 2 * flat["eval.iw_samples"] * num_test
    rate = FLOPS if jax.default_backend() == "cpu" else FLOPS_ACCELERATOR
    structures = len({tuple(flat[name] for name in FIELDS) for flat in flats})
    return sum(padding(flats)) * operations / rate < (structures - 1) * COMPILE_SECONDS
