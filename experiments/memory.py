"""How much memory a population takes, estimated before anything is built."""

import dataclasses
import math
import pathlib
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from vae import data, gallery, objectives, train
from vae.hparams import HParams, stack
from vae.likelihoods import LIKELIHOODS
from vae.model import Params
from vae.nets import NETS
from vae.posteriors import POSTERIORS
from vae.spec import ModelSpec, Spec

# Rows (examples × samples) decoded at once by an evaluation, and the bytes that they may take, on a
# CPU and on an accelerator: small enough for the caches of the one, large enough to fill the other.
EVAL_ROWS, EVAL_BYTES = {"cpu": 4096}, {"cpu": 2**28}
EVAL_ROWS_ACCELERATOR, EVAL_BYTES_ACCELERATOR = 2**16, 2**32

# Images that a run shows, in all: originals, reconstructions, samples, traversals.
PICTURES = (
    2 * gallery.NUM_IMAGES + gallery.NUM_SAMPLES + gallery.NUM_TRAVERSED * len(gallery.TRAVERSAL)
)


@dataclasses.dataclass(frozen=True)
class Estimate:
    """Bytes by what they are for.

    Attributes:
      data: the examples on the device, shared by all runs.
      state: parameters, optimiser and statistics of all runs, twice (a copy is held to measure the
        size of an update), and their gradients and updates.
      activations: of a training step of the runs that go together.
      evaluation: of an evaluation batch, and of the pictures of the runs.
    """

    data: int
    state: int
    activations: int
    evaluation: int

    @property
    def total(self) -> int:
        return self.data + self.state + max(self.activations, self.evaluation)

    def describe(self) -> str:
        parts = dataclasses.asdict(self).items()
        return ", ".join(f"{name} {gib(size)}" for name, size in parts)


def _shapes(spec: Spec) -> train.TrainState:
    shape = spec.model.example_shape
    return jax.eval_shape(
        lambda h, m, u: train.init_run(spec, h, m, u),
        jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape[1:], a.dtype), stack([HParams()])),
        jax.ShapeDtypeStruct(shape, jnp.float32),
        jax.ShapeDtypeStruct((spec.model.prior_components, *shape), jnp.float32),
    )


def _bytes(tree: object) -> int:
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))


def num_params(spec: Spec) -> int:
    """Parameters of one run."""
    return sum(leaf.size for leaf in jax.tree.leaves(parameters(spec)))


def parameters(spec: Spec) -> Params:
    """The shapes of the parameters of one run."""
    return _shapes(spec).params


def values_per_example(spec: ModelSpec) -> tuple[int, int]:
    """Numbers that (encoder and input, one decoded sample) of one example hold at once."""
    net = NETS[spec.net]
    hidden = net.hidden_values(spec)
    encoder, decoder = net.patches(spec)
    heads = LIKELIHOODS[spec.likelihood].heads(spec.channels)
    outputs = spec.num_pixels * sum(heads.values())
    latent = _latent_values(spec)
    # Each hidden layer keeps its sum and its activation, and the output its logits and the terms
    # of the likelihood. Twice, because back-propagation holds gradients beside them.
    return (
        2 * (2 * hidden + 2 * spec.num_values + encoder + latent),
        2 * (2 * hidden + 4 * max(spec.num_values, outputs) + decoder + latent),
    )


def _latent_values(spec: ModelSpec) -> int:
    """Numbers that one z takes on its way: the posterior's heads, its covariance, flows, priors."""
    d, family = spec.latent_dim, POSTERIORS[spec.posterior]
    values = sum(family.heads(spec).values()) + family.latent_size(spec)
    flows = (spec.posterior in ("iaf", "coupling")) + (spec.prior == "flow")
    values += flows * spec.flow_layers * 4 * (spec.flow_width + 4 * d)
    between = 4 * spec.stochastic_depth * sum(spec.stochastic_widths) if family.nets else 0
    # Two networks between two layers, and numbers of each dimension: means, variances, densities.
    values += 2 * between + (10 * d if family.nets else 0)
    values += {"full": 4 * d * d, "low_rank": 4 * d * spec.posterior_rank**2}.get(spec.posterior, 0)
    values += 2 * spec.latent_dim * spec.codes if not family.continuous else 0
    if spec.prior in ("mixture", "vamp"):
        values += 4 * spec.prior_components * d
    return values


def _shared_bytes(spec: Spec, encoded: int) -> int:
    """Of one step and run, what is not one example's: pairs of examples, pseudo-inputs, nets."""
    objective, batch = spec.objective, spec.batch_size
    # Six matrices of all pairs: what `vae.penalties` holds at most, in training steps measured.
    pairs = 6 * batch**2 if objective.name in ("tcvae", "mmd") else 0
    pseudo = spec.model.prior_components * encoded if spec.model.prior == "vamp" else 0
    discriminator = 0
    if objective.name == "factor":
        discriminator = 6 * batch * objective.discriminator_depth * objective.discriminator_width
    if objective.name == "vaegan":
        discriminator = 6 * batch * encoded
    return 4 * (pairs + pseudo + discriminator)


def _eval_rows(spec: ModelSpec) -> int:
    backend = jax.default_backend()
    _, decoded = values_per_example(spec)
    most = EVAL_BYTES.get(backend, EVAL_BYTES_ACCELERATOR) // (4 * decoded)
    return max(1, min(EVAL_ROWS.get(backend, EVAL_ROWS_ACCELERATOR), most))


def eval_batch(spec: ModelSpec, rows_per_example: int, together: int) -> int:
    """Examples in one evaluation batch, for so many rows of each and so many runs together."""
    return max(1, min(512, _eval_rows(spec) // (rows_per_example * together)))


def estimate(
    spec: Spec,
    dataset: data.Dataset,
    train_limit: int,
    *,
    rows_per_example: int,
    num_runs: int,
    pack: str,
) -> Estimate:
    """Bytes on the device for a population of `num_runs` runs.

    Args:
      train_limit: training examples that are evaluated. rows_per_example: samples of one example
        that an evaluation decodes at once.
    """
    shapes = _shapes(spec)
    encoded, decoded = values_per_example(spec.model)
    together = num_runs if pack == "vmap" else 1
    # Of the VAE-GAN, a reconstruction and two decoded images for its discriminator besides.
    passes = objectives.num_samples(spec) + (3 if spec.objective.name == "vaegan" else 0)
    example = (encoded + passes * decoded) * 4
    shared = _shared_bytes(spec, encoded)
    rows = max(_eval_rows(spec.model), together * rows_per_example)
    looked_at = min(dataset.num_test, gallery.NUM_LATENTS) * encoded + PICTURES * decoded
    pictures = PICTURES * math.prod(spec.model.example_shape) * 4
    item = dataset.train.dtype.itemsize * math.prod(dataset.example_shape)
    return Estimate(
        data=item * (dataset.num_train + dataset.num_test + train_limit),
        state=num_runs * (2 * _bytes(shapes) + 2 * _bytes(shapes.params)),
        activations=together * (spec.batch_size * example + shared),
        evaluation=4 * max(rows * decoded, together * looked_at) + num_runs * pictures,
    )


def max_runs(of: Callable[[int], Estimate], budget: int, most: int) -> int:
    """The largest number of runs up to `most` whose estimate fits the budget; at least 1.

    Args:
      of: number of runs -> the estimate for a population of them.
    """
    if of(most).total <= budget:
        return most
    fits, too_many = 1, most  # the estimate grows with the runs: halve the interval
    while too_many - fits > 1:
        middle = (fits + too_many) // 2
        fits, too_many = (middle, too_many) if of(middle).total <= budget else (fits, middle)
    return fits


def default_budget() -> int:
    """Bytes that a population may take: four fifths of an accelerator's, 60% of free host memory.

    The host's share is smaller because Python, the compiler and the arrays of the report live
    there too.
    """
    device = jax.devices()[0]
    stats = device.memory_stats() if device.platform != "cpu" else None
    if stats and "bytes_limit" in stats:
        return int(0.8 * stats["bytes_limit"])
    return int(0.6 * free_host_memory())


def free_host_memory(root: pathlib.Path = pathlib.Path("/")) -> int:
    """Bytes free on this host, within the limits of its control groups (Slurm jobs, containers)."""
    free = 8 * 2**30  # where the system does not say
    if info := _read(root / "proc/meminfo"):
        fields = dict(line.split(":") for line in info.splitlines())
        free = int(fields["MemAvailable"].split()[0]) * 1024
    for line in _read(root / "proc/self/cgroup").splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers in _CGROUPS:
            mount, *names = _CGROUPS[controllers]
            # A limit holds for everything below it. In a container the path may be the host's, and
            # the folders on it are not there: the mount itself is then the container's own group.
            parts = pathlib.PurePosixPath(path).parts[1:]
            for depth in range(len(parts) + 1):
                free = min(free, _free_in_cgroup(root / mount / "/".join(parts[:depth]), *names))
    return max(0, free)


# By the name in /proc/self/cgroup (none: version 2): where groups are, and what files are called.
_CGROUPS = {
    "": ("sys/fs/cgroup", "memory.max", "memory.current", ""),
    "memory": (
        "sys/fs/cgroup/memory",
        "memory.limit_in_bytes",
        "memory.usage_in_bytes",
        "total_",
    ),
}


def _free_in_cgroup(folder: pathlib.Path, limit: str, usage: str, prefix: str) -> float:
    """What a control group may still take: cached files count as used, but give way."""
    allowed, used = _read(folder / limit).strip(), _read(folder / usage).strip()
    if not (allowed.isdigit() and used.isdigit()):  # no such group, or no limit
        return math.inf
    stat = dict(line.split() for line in _read(folder / "memory.stat").splitlines())
    cached = sum(int(stat.get(f"{prefix}{kind}_file", 0)) for kind in ("active", "inactive"))
    return int(allowed) - int(used) + cached


def _read(file: pathlib.Path) -> str:
    try:
        return file.read_text()
    except OSError:
        return ""


def gib(size: int | float) -> str:
    """A size for people: 1.5 GiB, 312 MiB."""
    return f"{size / 2**30:.1f} GiB" if size >= 2**30 else f"{np.ceil(size / 2**20):.0f} MiB"
