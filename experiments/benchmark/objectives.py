"""What objectives cost: against their own matrix products, against the ELBO, and in memory."""

import functools
from typing import Any

import jax
import jax.numpy as jnp

from configs import mnist
from experiments import programs
from experiments.benchmark import products
from experiments.benchmark.library import (
    EPOCH,
    Training,
    mnist_overrides,
    population_plan,
    products_of,
)
from experiments.benchmark.measure import Row, Settings, in_turns, ratio, spread
from vae import penalties

# Burda et al. 2016: batches of 20, 50 samples of z.
IWAE = {"objective.name": "iwae", "objective.samples": "50", "train.batch_size": "20"}
ELBO = {"objective.name": "elbo"}
FACTOR = {"objective.name": "factor"}
# Of the size of this VAE: 784-500-20 has 0.81 million parameters, 3 × 500 has 0.51. On draws of
# q(z) and of the product of its marginals, and back to z, its products are 1.5 times the VAE's.
LARGE = {"objective.discriminator_depth": "3", "objective.discriminator_width": "500"}
OTHERS = {
    "dreg": IWAE | {"objective.estimator": "dreg"},
    "tcvae": {"objective.name": "tcvae"},
    "mmd": {"objective.name": "mmd"},
    "dip_ii": {"objective.name": "dip_ii"},
}
PAIRS_BATCH, PAIRS_LATENT = 1024, 10


def objectives(settings: Settings) -> list[Row]:
    """Steps of 784-500-20 with several objectives, and the memory of those that compare pairs."""
    return [*_iwae(settings), *_against_the_elbo(settings), *_pairs(settings)]


def _iwae(settings: Settings) -> list[Row]:
    overrides, source = mnist_overrides(settings)
    plan = population_plan(mnist, overrides | IWAE)
    functions = {
        "products": products_of(plan),
        "IWAE-50": Training(plan),
        "IWAE-50, dreg": Training(population_plan(mnist, overrides | OTHERS["dreg"])),
    }
    seconds = in_turns(functions, settings.pick(EPOCH // 4, 2), settings.pick(9, 2))
    model, objective = plan.spec.model, plan.spec.objective
    sizes = (plan.spec.batch_size, model.num_values, model.widths, model.latent_dim)
    speed = products.flops(*sizes, objective.samples) / seconds["products"] / 1e9
    rows = [
        Row("objectives", "products of IWAE-50", **spread(1e3 * seconds["products"]), unit="ms"),
        Row("objectives", "their speed", **spread(speed), unit="GFLOP/s"),
    ]
    for name, target in (("IWAE-50", ("<=", 1.4)), ("IWAE-50, dreg", None)):
        rows.append(
            Row(
                "objectives",
                f"{name}: step / products",
                **ratio(seconds[name], seconds["products"]),
                unit="ratio",
                target=target,
                note=source,
            )
        )
    return rows


def _against_the_elbo(settings: Settings) -> list[Row]:
    overrides, source = mnist_overrides(settings)
    large = "factor, discriminator 3 × 500"
    variants = {"factor": FACTOR, large: FACTOR | LARGE}
    variants |= {n: OTHERS[n] for n in ("tcvae", "mmd", "dip_ii")}
    functions: dict[str, Any] = {"elbo": Training(population_plan(mnist, overrides | ELBO))}
    for name, fields in variants.items():
        functions[name] = Training(population_plan(mnist, overrides | fields))
    seconds = in_turns(functions, settings.pick(EPOCH // 2, 2), settings.pick(9, 2))
    targets = {"factor": ("<=", 2.5)}
    return [
        Row(
            "objectives",
            f"{name}: step / step of the ELBO",
            **ratio(seconds[name], seconds["elbo"]),
            unit="ratio",
            target=targets.get(name),
            note=source,
        )
        for name in variants
    ]


def _pairs(settings: Settings) -> list[Row]:
    """Temporary memory of value and gradient, in arrays of batch² × latent floats."""
    batch, latent = (8, 3) if settings.quick else (PAIRS_BATCH, PAIRS_LATENT)
    shape = jax.ShapeDtypeStruct((batch, latent), jnp.float32)

    def densities(z, mean, logvar):
        return penalties.total_correlation(
            penalties.aggregate_log_densities(z, mean, logvar, 60_000, "stratified")
        )

    functions = {
        "total correlation": (densities, 3),
        "MMD": (functools.partial(_mmd, kernel="imq"), 2),
    }
    rows = []
    for name, (function, count) in functions.items():

        def loss(*arrays, function=function):
            return jnp.mean(jax.vmap(function, axis_name="batch")(*arrays))

        gradient = jax.jit(jax.value_and_grad(loss, argnums=tuple(range(count))))
        program = programs.compiled(gradient, (shape,) * count, programs.MUCH)
        size = program.memory_analysis().temp_size_in_bytes / (4 * batch**2 * latent)
        rows.append(
            Row(
                "objectives",
                f"{name}, batch {batch}, {latent} latents: temporary memory / (batch² × latents)",
                **spread(size),
                unit="ratio",
                target=("<=", 1.0),
            )
        )
    return rows


def _mmd(z: jax.Array, prior_z: jax.Array, kernel: str) -> jax.Array:
    return penalties.mmd(z, prior_z, kernel, 1.0)
