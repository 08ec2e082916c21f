"""Why a run diverged: which term and which layer were first not to be finite.

Training records the step alone and freezes the run at its last good state. As the batch and the
noise of a step are functions of (seed, step), the step is then run again here, slowly and with
every layer's output in view, at no cost to the runs that are well.
"""

import dataclasses
import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from vae import hierarchy, layers, loss, model, random, schedules
from vae.data import Examples, Window
from vae.family import Posterior
from vae.hparams import HParams
from vae.loss import Batch, batch_at, batch_gradient
from vae.posteriors import POINTS, POSTERIORS
from vae.priors import PRIORS
from vae.spec import ModelSpec, Spec
from vae.train import TrainState


class Provenance(NamedTuple):
    """The step that diverged, its first bad term, and its first bad layer.

    Attributes:
      term: `rate`, `distortion`, `loss` or `gradient`, in the order in which they are computed.
      layer: first layer whose output is not finite; where all outputs are finite, the layer that
        feeds the term, or, of gradients, the last one, which back-propagation reaches first.
    """

    step: int
    term: str
    layer: str


def diagnose(spec: Spec, examples: Examples | Window, state: TrainState) -> Provenance:
    """Runs the step again at which one run (leaves without the axis [R]) diverged.

    Raises:
      ValueError: the run has not diverged.
    """
    step = int(state.diverged_step)
    if step < 0:
        raise ValueError("The run has not diverged.")
    names = layers.layer_names(state.params)
    outputs, terms, gradients = jax.tree.map(np.asarray, _replay(spec, examples, state))
    # Where a term overflows though all outputs are finite: what it exponentiates, else squares.
    rate_head = "encoder/logits" if "encoder/logits" in names else "encoder/mean"
    rate_head = next((f"encoder/{n}" for n in ("scale", "factor") if not terms[n]), rate_head)
    distortion_head = "decoder/output" if terms["precision"] else "likelihood/logvar"
    # In the order in which the step computes: encoder, rate, decoder, distortion, loss, gradient.
    for parts, term, head in (
        (("encoder/", "posterior/", "prior/"), "rate", rate_head),
        (("decoder/",), "distortion", distortion_head),
    ):
        bad = [name for name in names if name.startswith(parts) and not outputs.get(name, True)]
        if bad or not terms[term]:
            return Provenance(step, term, bad[0] if bad else head)
    if not terms["discriminator"]:
        return Provenance(step, "loss", "discriminator/output")
    if not terms["loss"]:
        return Provenance(step, "loss", "decoder/output")
    bad = [name for name, ok in zip(names, gradients, strict=True) if not ok]
    # No single layer: each norm is finite, and only their sum of squares is not.
    return Provenance(step, "gradient", bad[-1] if bad else names[-1])


@functools.partial(jax.jit, static_argnames="spec")
def _replay(spec: Spec, examples: Examples | Window, state: TrainState):
    """Which outputs (by layer name), terms (by name) and gradients ([L]) of the step are finite."""
    step = state.diverged_step
    batch = batch_at(spec, examples, state.hparams.seed, step)
    grads, (metrics, _) = batch_gradient(
        spec, examples.transform, state.params, state.stats, state.hparams, step, batch
    )
    outputs = _finite_outputs(spec.in_training(), examples, state, batch)
    terms = {name: jnp.isfinite(metrics[name]) for name in ("rate", "distortion")}
    if spec.model.posterior in POINTS:  # which have no rate
        terms["rate"] = jnp.ones((), bool)
    terms |= {name: outputs.pop(name) for name in ("scale", "factor")}
    terms["loss"] = jnp.isfinite(metrics["loss"])
    terms["discriminator"] = jnp.isfinite(metrics.get("discriminator_loss", jnp.zeros(())))
    shared = state.params.get("likelihood", {}).get("logvar", jnp.zeros(()))
    terms["precision"] = jnp.isfinite(jnp.exp(-shared))
    return outputs, terms, jnp.isfinite(layers.layer_norms(grads))


def _finite_outputs(
    spec: Spec, examples: Examples | Window, state: TrainState, batch: Batch
) -> dict[str, jax.Array]:
    """Whether each layer's output is finite in all of a batch.

    And whether what a finite `scale` and `factor` of the posterior become is: the variance, and the
    square. Of a flow each layer's output is looked at, of the networks between stochastic layers
    too; of another prior its density at 0.
    """
    rngs = random.example_rngs(random.stream(state.hparams.seed, state.diverged_step), batch.index)

    params, stats, hparams = state.params, state.stats, state.hparams
    hparams = hparams.replace(temperature=schedules.temperature(state.diverged_step, hparams))

    def apply(part, value):
        _, seen = getattr(model, part)(
            spec.model,
            params,
            stats,
            value,
            True,
            mutable=("batch_stats", "intermediates"),
            capture_intermediates=True,
        )
        return {
            f"{part}/{name}": jnp.stack([jnp.all(jnp.isfinite(a)) for a in jax.tree.leaves(tree)])
            for name, tree in seen["intermediates"].items()
            if name != "__call__"
        }

    def one(raw, rng):
        inputs = loss.draw(spec, examples.transform, hparams, raw, rng)
        seen, noise = inputs.encoded, inputs.noise
        posterior, _ = model.encode(spec.model, params, stats, hparams, seen, train=True)
        z, between = _between(spec.model, params, stats, hparams, posterior, noise)
        logvar = jnp.zeros(1) if posterior.logvar is None else posterior.logvar
        return {
            **apply("encoder", seen),
            **between,
            **jax.vmap(functools.partial(apply, "decoder"), axis_name="sample")(z),
            "scale": jnp.isfinite(jnp.exp(logvar)),
            "factor": jnp.isfinite(jnp.square(posterior.rest.get("factor", jnp.zeros(1)))),
        }

    seen = jax.vmap(one, axis_name="batch")(batch.raw, rngs)
    return {name: jnp.all(values) for name, values in seen.items()}


def _between(
    spec: ModelSpec,
    params: model.Params,
    stats: model.Stats,
    hparams: HParams,
    posterior: Posterior,
    noise: jax.Array,
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """z [K, n] of one example, and whether what comes out of `posterior` and `prior` is finite."""
    own = model.posterior_params(spec, params, stats, True)
    each = functools.partial(jax.vmap, axis_name="sample")

    def draw(part):
        draw_one = POSTERIORS[spec.posterior].draw
        return each(lambda e: draw_one(part, own, posterior, e, hparams, True)[0])(noise)

    z, finite = draw(spec), {}
    if POSTERIORS[spec.posterior].nets:
        for part in ("posterior", "prior"):
            nets = hierarchy.Nets(params.get(part, {}), stats.get(part, {}), True)
            outputs = functools.partial(hierarchy.outputs, spec, nets, upward=part == "posterior")
            for name, gaussian in (each(outputs)(z) if part in params else {}).items():
                finite[f"{part}/{name}"] = jnp.isfinite(jnp.stack(gaussian))
        return z, finite
    for i in range(len(params.get("posterior", {}))):
        part = dataclasses.replace(spec, flow_layers=i + 1)
        finite[f"posterior/layer_{i}"] = jnp.isfinite(draw(part))
    state = model.prior_state(spec, params, stats, hparams)
    density = PRIORS[spec.prior].log_prob(spec, state, jnp.zeros_like(z[0]))
    return z, finite | {f"prior/{name}": jnp.isfinite(density) for name in params.get("prior", {})}
