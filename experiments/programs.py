"""The compiled programs of a population, built side by side in the background.

Tracing and compiling is what a small ablation waits for. Each population needs a handful of
programs; those of the next populations compile while the first ones train, and populations of
equal shape share theirs. JAX's persistent cache keeps them between processes.
"""

import functools
import hashlib
import os
import pathlib
import platform
import threading
import zlib
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor, wait
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging

from experiments import memory
from experiments.plan import PopulationPlan
from vae import elbo, evaluate, gallery, layers, mesh, train
from vae.data import Examples
from vae.data.cache import cache_dir
from vae.gradients import probe
from vae.model import Params
from vae.spec import Spec

Program = Callable[..., Any]

# XLA's optimisation level on the CPU trades compile time against speed. Level 2 halves the
# default's compile time at the same speed; level 0 saves another second or so of each program, and
# runs several times slower: right for what has little to do.
LITTLE, MUCH = 0, 2

# XLA's library YNN sums large arrays of many axes over the first one against the grain. The
# gradients of a prior's components are such sums over the batch: with 500 of them a step takes
# 50 ms by YNN and 11 ms without (JAX 0.10.2, two cores). Other steps lose 2 to 4% without it.
COMPONENTS = ("mixture", "vamp")
_PLAIN_SUMS = {"xla_cpu_experimental_ynn_fusion_type": "LIBRARY_FUSION_TYPE_INDIVIDUAL_DOT"}

# XLA's CPU backend takes away what keeps a layer's second computation apart from its first, and
# then merges the two: nothing would be saved. JAX 0.12 brings an XLA that no longer does.
_KEEP_REMAT = {"xla_disable_hlo_passes": "cse_barrier_expander"}

# LLVM keeps to vectors of 256 bits even where there are longer ones, for the sake of processors
# that slow down with them. With 512 a step of 784-500-20 takes 5% less (Zen 5, two cores), one of
# the small digits model as long as before.
_LONG_VECTORS = {"xla_cpu_prefer_vector_width": 512}

# Decoded samples in one dispatch of the importance-sampled nll: a second or so on two CPU cores.
IW_ROWS = 2**18

# One program is traced at a time, in the order of use: tracing is Python, of which threads do no
# more together, and the first step would wait for the tracing of what comes after it.
_TRACING = threading.Lock()

# Programs that are dropped at once: those of some eight structures.
MANY = 64

# A second of compiling is worth about so many floating-point operations at level 0.
MUCH_FLOPS = 5e9


def use_persistent_cache() -> None:
    """Keeps compiled programs on disk; keyed by processor, as CPU programs use its instructions."""
    folder = cache_dir() / "jax" / processor()
    _drop_damaged(folder)
    jax.config.update("jax_compilation_cache_dir", str(folder))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.2)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)


def processor() -> str:
    """A name for the kind of processor: machine, and a hash of the instructions that it has."""
    kind = hashlib.sha256(f"{platform.processor()} {_cpu_flags()}".encode()).hexdigest()[:8]
    return f"{platform.machine()}-{kind}"


def use_float32() -> None:
    """Multiplies matrices in float32 on accelerators, whose default is TF32 or bfloat16.

    The same config then means the same arithmetic everywhere. Who wants the speed sets JAX's
    JAX_DEFAULT_MATMUL_PRECISION; environment.json records what was used.
    """
    if jax.default_backend() != "cpu" and jax.config.jax_default_matmul_precision is None:
        jax.config.update("jax_default_matmul_precision", "float32")


def _drop_damaged(folder: pathlib.Path) -> None:
    """Removes the halves of entries that killed processes and full disks left in JAX's cache.

    JAX writes an entry in place and never replaces one: a half would be met, warned of and
    compiled anew by every process to come. An entry is looked at once, soon after its writing.
    """
    stamp = folder / ".checked"
    try:
        since = stamp.stat().st_mtime - 60 if stamp.exists() else 0.0
        for entry in folder.glob("*-cache"):
            if entry.stat().st_mtime >= since and not _is_whole(entry.read_bytes()):
                entry.unlink()
        if folder.exists():
            stamp.touch()
    except OSError:  # not ours to write, or another process was faster: JAX says what matters
        return


def _is_whole(entry: bytes) -> bool:
    if entry and entry[:1] != b"\x78":  # not of zlib: JAX takes zstandard where that is installed
        return True
    try:
        zlib.decompress(entry)
    except zlib.error:
        return False
    return True


def _cpu_flags() -> str:
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as info:
            return next((line for line in info if line.startswith("flags")), "")
    except OSError:
        return ""


def layer_changes(before: Params, after: Params) -> dict[str, jax.Array]:
    """L2 norm of each layer's parameters after a step, and of the step itself; [R, layers].

    Args:
      before, after: parameters of R runs, leaves [R, ...].
    """
    delta = jax.tree.map(jnp.subtract, after, before)
    norms = jax.vmap(layers.layer_norms)
    return {"param": norms(after), "update": norms(delta)}


class Programs:
    """Compiles ahead of use: ask with `prepare`, wait with `get`, `forget` in the end.

    The programs of one structure take some 850 memory maps on a CPU, of 65,530 that Linux allows a
    process: a hundred structures at once end it.
    """

    def __init__(self) -> None:
        self._pool = ThreadPoolExecutor(max_workers=min(4, os.cpu_count() or 1))
        self._futures: dict[Any, Future] = {}  # by function and shapes
        self._keys: dict[str, dict[str, Any]] = {}  # of those: by plan and name
        self._dropped = 0

    def prepare(self, plan: PopulationPlan) -> None:
        """Starts compiling what a population needs, in the order of use."""
        names = ["init", "chunk", "changes", "evaluate_test", "evaluate_train"]
        names += ["probe"] if plan.probe.instruments else []
        names += ["iw_bounds"] if plan.evaluation.iw_samples else []
        for name in (*names, "gallery"):
            self._submit(name, plan)

    def get(self, name: str, plan: PopulationPlan) -> Program:
        """The compiled program; its static arguments are bound."""
        return self._submit(name, plan).result()

    def ready(self, name: str, plan: PopulationPlan, patience: float = 0.1) -> bool:
        """Whether `get` would return at once; waits so many seconds for it."""
        return bool(wait([self._submit(name, plan)], patience).done)

    def forget(self, plan: PopulationPlan) -> None:
        """Drops the programs that no other population has been prepared for, or has got."""
        mine = set(self._keys.pop(plan.id, {}).values())
        needed = {key for keys in self._keys.values() for key in keys.values()}
        for key in mine - needed:
            del self._futures[key]
        # JAX holds what it compiled until its caches are cleared, which costs some tracing again.
        self._dropped += len(mine - needed)
        if self._dropped >= MANY:
            self._dropped = 0
            with _TRACING:
                jax.clear_caches()

    def close(self) -> None:
        self._pool.shutdown(wait=False, cancel_futures=True)

    def _submit(self, name: str, plan: PopulationPlan) -> Future:
        known = self._keys.setdefault(plan.id, {})
        if name in known:  # finding the key takes milliseconds
            return self._futures[known[name]]
        function, arguments, level = _signature(name, plan)
        shapes = jax.tree.map(_shape, arguments)
        key = (function, str(jax.tree.structure(shapes)), *jax.tree.leaves(shapes))
        key = tuple(
            (k.shape, k.dtype, k.sharding) if isinstance(k, jax.ShapeDtypeStruct) else k
            for k in key
        )
        if key not in self._futures:
            options = options_of(plan.spec)
            self._futures[key] = self._pool.submit(compiled, function, shapes, level, options)
        known[name] = key
        return self._futures[key]


def _shape(value: Any) -> Any:
    if isinstance(value, jax.ShapeDtypeStruct):
        return value
    if hasattr(value, "dtype"):
        return jax.ShapeDtypeStruct(value.shape, value.dtype)
    return value


def options_of(spec: Spec) -> dict[str, Any]:
    """What the programs of a spec ask of XLA's CPU backend."""
    options = dict(_PLAIN_SUMS) if spec.model.prior in COMPONENTS else {}
    if spec.remat != "none" and jax.__version_info__ < (0, 12):
        options |= _KEEP_REMAT
    return options


def _on(sharding: Any, tree: Any) -> Any:
    """Shapes as they lie on devices; sharding: of all leaves, or None."""
    return jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding), tree
    )


def compiled(
    function: Callable[..., Any],
    arguments: tuple[Any, ...],
    level: int,
    own: Mapping[str, Any] | None = None,
) -> Program:
    """A jitted function compiled for arguments, or shapes, at an optimisation level of the CPU.

    own: further options, of the CPU too, see `options_of`.
    """
    options = None
    if jax.default_backend() == "cpu":
        options = {"xla_backend_optimization_level": level, **(own or {})}
        options |= _LONG_VECTORS if level == MUCH and " avx512f " in _cpu_flags() else {}
    with _TRACING:
        lowered = function.lower(*arguments)
    try:
        return lowered.compile(options)
    except jax.errors.JaxRuntimeError as error:
        if options is None or not any(name in str(error) for name in options):
            raise
        logging.warning("This XLA lacks %s: it compiles as it will.", " or ".join(options))
        return lowered.compile()


def compile_now(name: str, plan: PopulationPlan) -> Program:
    """A program of a population, compiled by this thread."""
    function, arguments, level = _signature(name, plan)
    return compiled(function, jax.tree.map(_shape, arguments), level, options_of(plan.spec))


def _signature(name: str, plan: PopulationPlan) -> tuple[Any, tuple[Any, ...], int]:
    """The jitted function of a program, its arguments or their shapes, its optimisation level."""
    spec, dataset, evaluation = plan.spec, plan.dataset, plan.evaluation
    runs, everywhere = mesh.of_runs(plan.mesh), mesh.everywhere(plan.mesh)
    if name == "init":
        hparams, *rest = plan.start()
        return train.init, (spec, _on(runs, hparams), *_on(everywhere, rest), plan.mesh), LITTLE
    population = population_shapes(plan)
    step = _on(everywhere, jax.ShapeDtypeStruct((), np.int32))
    training = Examples(_on(everywhere, dataset.train), dataset.transform)
    if name == "chunk":
        training = training if (batches := plan.stream()) is None else batches.shapes()
        return train.train_chunk, (spec, plan.pack, population, training, step), MUCH
    if name == "probe":
        static = (spec, plan.pack, plan.probe.instruments, plan.probe.settings)
        return probe.read, (*static, population.states, training), MUCH
    if name == "changes":
        params = population.states.params
        return _layer_changes, (params, params), LITTLE
    split = "train" if name == "evaluate_train" else "test"
    count = evaluation.train_limit if split == "train" else dataset.num_test
    examples = _on(everywhere, _evaluation_examples(dataset, count))
    if name.startswith("evaluate"):
        batch_size = min(memory.eval_batch(spec.model, evaluation.samples, plan.together), count)
        static = (spec.model, plan.pack, evaluation.samples, plan.shared(batch_size))
        readings = 2 + plan.num_steps // evaluation.every
        level = _level(plan, readings * count * evaluation.samples)
        return evaluate.evaluate, (*static, population, examples, step), level
    if name == "iw_bounds":
        static = (spec.model, plan.pack, evaluation.iw_samples, _iw_batch(plan))
        level = _level(plan, count * evaluation.iw_samples)
        index = _on(everywhere, jax.ShapeDtypeStruct((iw_block(plan),), np.int32))
        return evaluate.iw_bounds, (*static, population, examples, step, index), level
    shown = _evaluation_examples(dataset, min(dataset.num_test, gallery.NUM_LATENTS))
    shown = _on(everywhere, shown)
    rows = population.states.step.shape[0]
    kl = _on(runs, jax.ShapeDtypeStruct((rows, elbo.num_kls(spec.model)), np.float32))
    return gallery.gallery, (spec.model, plan.pack, population, shown, kl), LITTLE


def first_population(plan: PopulationPlan, init: Program) -> train.Population:
    """A population before its first step, on the plan's mesh, by its program `init`."""
    hparams, *rest = plan.start()
    runs, everywhere = mesh.of_runs(plan.mesh), mesh.everywhere(plan.mesh)
    return init(mesh.put(hparams, runs), *mesh.put(rest, everywhere))


def population_shapes(plan: PopulationPlan) -> train.Population:
    """A population's shapes, as it lies on the plan's mesh."""
    shapes = jax.eval_shape(functools.partial(train.init, plan.spec), *plan.start())
    if plan.mesh is None:
        return shapes
    placement = train.shardings(plan.mesh)
    return train.Population(
        *(_on(getattr(placement, f), getattr(shapes, f)) for f in ("step", "states", "interval"))
    )


def _iw_batch(plan: PopulationPlan) -> int:
    chunk = min(evaluate.IW_CHUNK, plan.evaluation.iw_samples)
    batch = min(memory.eval_batch(plan.spec.model, chunk, plan.together), plan.dataset.num_test)
    return plan.shared(batch)


def iw_block(plan: PopulationPlan) -> int:
    """Test examples in one dispatch of `iw_bounds`: about `IW_ROWS` decoded samples, whole batches.

    Short enough for progress to be seen and Ctrl-C to be heard.
    """
    batch = _iw_batch(plan)
    wanted = max(1, IW_ROWS // (plan.evaluation.iw_samples * len(plan.runs) * batch))
    return batch * min(wanted, -(-plan.dataset.num_test // batch))


def _level(plan: PopulationPlan, rows: int) -> int:
    """The level for so many rows through the networks of each run."""
    flops = 2.0 * plan.num_params * rows * len(plan.runs)
    return MUCH if flops > MUCH_FLOPS else LITTLE


def _evaluation_examples(dataset: Any, count: int) -> Examples:
    """Shapes of `Dataset.evaluation`: bits are stored as bytes, whatever they were drawn from."""
    dynamic = dataset.transform.binarization == "dynamic"
    dtype = np.uint8 if dynamic else dataset.train.dtype
    raw = jax.ShapeDtypeStruct((count, *dataset.example_shape), dtype)
    return Examples(raw, type(dataset.transform)() if dynamic else dataset.transform)


_layer_changes = jax.jit(layer_changes)
