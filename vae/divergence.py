"""Why a run diverged: which term and which layer were first not to be finite.

Training records the step alone and freezes the run at its last good state. As the batch and the
noise of a step are functions of (seed, step), the step is then run again here, slowly and with
every layer's output in view, at no cost to the runs that are well.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from vae import layers, model, random
from vae.data import Examples, prepare
from vae.nets import Decoder, Encoder
from vae.spec import Spec
from vae.train import Batch, TrainState, batch_at, batch_loss


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


def diagnose(spec: Spec, examples: Examples, state: TrainState) -> Provenance:
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
    rate_head = "encoder/mean" if terms["variance"] else "encoder/scale"
    distortion_head = "decoder/output" if terms["precision"] else "likelihood/logvar"
    # In the order in which the step computes: encoder, rate, decoder, distortion, loss, gradient.
    for part, term, head in (
        ("encoder/", "rate", rate_head),
        ("decoder/", "distortion", distortion_head),
    ):
        bad = [name for name in names if name.startswith(part) and not outputs.get(name, True)]
        if bad or not terms[term]:
            return Provenance(step, term, bad[0] if bad else head)
    if not terms["loss"]:
        return Provenance(step, "loss", "decoder/output")
    bad = [name for name, ok in zip(names, gradients, strict=True) if not ok]
    # No single layer: each norm is finite, and only their sum of squares is not.
    return Provenance(step, "gradient", bad[-1] if bad else names[-1])


@functools.partial(jax.jit, static_argnames="spec")
def _replay(spec: Spec, examples: Examples, state: TrainState):
    """Which outputs (by layer name), terms (by name) and gradients ([L]) of the step are finite."""
    step = state.diverged_step
    batch = batch_at(spec, examples, state.hparams.seed, step)
    (loss, (metrics, _)), grads = jax.value_and_grad(
        lambda params: batch_loss(
            spec, examples.transform, params, state.stats, state.hparams, step, batch
        ),
        has_aux=True,
    )(state.params)
    outputs = _finite_outputs(spec, examples, state, batch)
    terms = {name: jnp.isfinite(metrics[name]) for name in ("rate", "distortion")}
    terms |= {"loss": jnp.isfinite(loss), "variance": outputs.pop("variance")}
    shared = state.params.get("likelihood", {"logvar": jnp.zeros(())})["logvar"]
    terms["precision"] = jnp.isfinite(jnp.exp(-shared))
    return outputs, terms, jnp.isfinite(layers.layer_norms(grads))


def _finite_outputs(
    spec: Spec, examples: Examples, state: TrainState, batch: Batch
) -> dict[str, jax.Array]:
    """Whether each layer's output, and the posterior's `variance`, is finite in all of a batch."""
    rngs = random.example_rngs(random.stream(state.hparams.seed, state.diverged_step), batch.index)

    def apply(net, part, value):
        variables = {"params": state.params[part], "batch_stats": state.stats.get(part, {})}
        _, seen = net.apply(
            variables,
            value,
            True,
            mutable=["batch_stats", "intermediates"],
            capture_intermediates=True,
        )
        return {
            f"{part}/{name}": jnp.stack([jnp.all(jnp.isfinite(a)) for a in jax.tree.leaves(tree)])
            for name, tree in seen["intermediates"].items()
            if name != "__call__"
        }

    def one(raw, rng):
        data_rng, noise_rng = jax.random.split(rng)
        x = prepare(examples.transform, raw, data_rng)
        posterior, _ = model.encode(spec.model, state.params, state.stats, x, train=True)
        noise = jax.random.normal(noise_rng, (spec.objective.samples, spec.model.latent_dim))
        z = jax.vmap(posterior.reparameterize)(noise)
        decode = functools.partial(apply, Decoder(spec.model), "decoder")
        decoded = jax.vmap(decode, axis_name="sample")(z)
        variance = jnp.isfinite(jnp.exp(posterior.logvar))
        return {**apply(Encoder(spec.model), "encoder", x), **decoded, "variance": variance}

    seen = jax.vmap(one, axis_name="batch")(batch.raw, rngs)
    return {name: jnp.all(values) for name, values in seen.items()}
