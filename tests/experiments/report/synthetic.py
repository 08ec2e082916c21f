"""Writes results folders as a run would leave them, with plausible numbers and no training."""

import csv
import dataclasses
import itertools
import json
import math
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from experiments.rules import BYTE_LIKELIHOODS

CONFIG = {
    "seed": 0,
    "data": {"source": "digits", "dir": "", "binarization": "dynamic"},
    "model": {"latent_dim": 8, "depth": 2, "width": 64, "likelihood": "bernoulli"},
    "objective": {"beta": 1.0},
    "optimizer": {"name": "adam", "learning_rate": 0.001},
    "train": {"steps": 2000, "batch_size": 64},
    "eval": {"every": 100, "iw_samples": 500},
}


SPLITS = ("train", "test")


@dataclasses.dataclass(frozen=True)
class Kind:
    """How a run's files differ from those of a Gaussian VAE: whether it has a rate, whether that is
    a number for each dimension, whether its latents are discrete, and what else it logs.
    """

    rate: bool = True
    divided: bool = True
    discrete: bool = False
    logged: Mapping[str, float] = dataclasses.field(default_factory=dict)


_LOGGED = {
    "iwae": {"bound": -31.0},
    "tcvae": {"mutual_information": 2.0, "total_correlation": 0.5, "dimension_kl": 1.0},
    "factor": {"total_correlation": 0.4, "discriminator_loss": 0.6, "discriminator_accuracy": 0.7},
    "vq": {"commitment": 3.0, "perplexity": 6.0, "code_usage": 0.8},
    "mine": {"strange_term": 1.5},
}


def kind_of(point: Mapping[str, Any]) -> Kind:
    posterior = point.get("model.posterior", "gaussian")
    return Kind(
        rate=posterior != "point",
        divided=posterior not in ("iaf", "coupling")
        and point.get("model.prior", "standard") == "standard",
        discrete=posterior in ("categorical", "vq"),
        logged=_LOGGED.get(point.get("objective.name", "elbo"), {}),
    )


def write_workdir(
    workdir: pathlib.Path,
    axes: Mapping[str, Sequence[Any]] | Sequence[Mapping[str, Any]],
    *,
    lines: int = 20,
    diverged: Sequence[int] = (),
    missing: Sequence[int] = (),
    shape: Sequence[int] = (8, 8, 1),
    labels: bool = True,
    config: Mapping[str, Any] = CONFIG,
    environment: Mapping[str, Any] | None = None,
    images: np.ndarray | None = None,
) -> pathlib.Path:
    """Writes a results folder.

    Args:
      workdir: the folder to make.
      axes: swept field -> values; the runs are their product. Or the overrides of each run.
      lines: metrics lines per run.
      diverged: positions of runs that stop a third of the way.
      missing: positions of runs that have not started.
      shape: of one example, (H, W, C) or (D,).
      labels: whether the data have labels.
      config: the base config.
      environment: environment.json; a plausible one by default.
      images: uint8 [N, *shape] to show; noise by default.
    """
    workdir.mkdir(parents=True)
    if isinstance(axes, Mapping):
        values = itertools.product(*axes.values())
        points = [dict(zip(axes, row, strict=True)) for row in values]
    else:
        points = list(axes)
        fields = dict.fromkeys(field for point in points for field in point)
        axes = {
            field: list(dict.fromkeys(point[field] for point in points if field in point))
            for field in fields
        }
    runs = [
        {"run_id": f"{0xAB12CD34 + 7919 * i:010x}", "overrides": point}
        for i, point in enumerate(points)
    ]
    if environment is None:
        environment = {
            "versions": {"python": "3.11.9", "jax": "0.10.2", "flax": "0.12.8", "optax": "0.2.8"},
            "devices": ["cpu:0"],
            "git_commit": "0123456789abcdef0123456789abcdef01234567",
            "platform": "Linux-x86_64",
            "command": [
                "python",
                "-m",
                "experiments.run",
                "--config=configs/quickstart.py",
                "--config.model.width=64",
            ],
            "dataset": {
                "digits": {
                    "train": 1437,
                    "test": 360,
                    "split": "first 80% train",
                    "fingerprint": "sha256:" + "5e" * 32,
                }
            },
        }
    _write_json(workdir / "config.json", config)
    _write_json(workdir / "environment.json", environment)
    _write_json(
        workdir / "sweep.json", {"axes": {k: list(v) for k, v in axes.items()}, "runs": runs}
    )
    rows = [
        _write_run(workdir, i, run, config, lines, i in diverged, tuple(shape), labels, images)
        for i, run in enumerate(runs)
        if i not in missing
    ]
    columns = list(dict.fromkeys(key for row in rows for key in row))
    with (workdir / "results.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, columns, restval="")
        writer.writeheader()
        writer.writerows(rows)
    return workdir


def _write_run(
    workdir, position, run, config, lines, diverges, shape, labels, images
) -> dict[str, Any]:
    rng = np.random.default_rng(position)
    point = run["overrides"]
    beta = float(point.get("objective.beta", config["objective"]["beta"]))
    latent_dim = int(point.get("model.latent_dim", config["model"]["latent_dim"]))
    depth = int(point.get("model.depth", config["model"]["depth"]))
    directory = workdir / "runs" / run["run_id"]
    directory.mkdir(parents=True)
    kind = kind_of(point)

    # 1. Where the run ends: rate falls with beta and saturates with latent_dim.
    active = min(latent_dim, max(1, round(9 / beta**0.5)))
    rate = 4.2 * math.log1p(active) / beta**0.6 + rng.normal(0, 0.15)
    distortion = 29 - 1.05 * rate + 1.3 * beta + 0.4 * abs(depth - 2) + rng.normal(0, 0.15)
    train = {"rate": rate + 0.1, "distortion": distortion - 0.5}

    # 2. How it gets there.
    every = config["eval"]["every"]
    layers = [f"encoder/layer_{i}" for i in range(depth)] + ["encoder/mean", "encoder/scale"]
    layers += [f"decoder/layer_{i}" for i in range(depth)] + ["decoder/output"]
    layers += ["discriminator/layer_0"] if "discriminator_loss" in kind.logged else []
    with (directory / "metrics.jsonl").open("w") as file:
        for k in range(1, (lines if not diverges else lines // 3) + 1):
            late = math.exp(-6 * k / lines)
            line = {"step": k * every}
            for split, end in (
                ("train", train),
                ("test", {"rate": rate, "distortion": distortion}),
            ):
                r = end["rate"] * (1 - late) + rng.normal(0, 0.05)
                d = end["distortion"] + 14 * late + rng.normal(0, 0.1)
                line |= {f"{split}/elbo": -r - d, f"{split}/rate": r, f"{split}/distortion": d}
            line |= {
                "train/loss": line["train/distortion"] + beta * line["train/rate"],
                "train/beta": beta,
                "train/learning_rate": 1e-3,
                "test/active_units": active,
            }
            line |= {f"train/{name}": value * (1 + late) for name, value in kind.logged.items()}
            if not kind.rate:
                line |= {f"{split}/{m}": None for split in SPLITS for m in ("elbo", "rate")}
                line["train/loss"] = line["train/distortion"]
            for i, layer in enumerate(layers):
                norm = 10 ** (-0.3 * (len(layers) - i) + 0.8 * late) * math.exp(rng.normal(0, 0.1))
                line |= {
                    f"grad/{layer}/norm": norm,
                    f"param/{layer}/norm": 6 + i,
                    f"update/{layer}/norm": 0.004 * (late + 0.2) * (6 + i),
                }
            if diverges and k == lines // 3:
                line["train/loss"] = None
                line["grad/encoder/scale/norm"] = None
            file.write(json.dumps(line) + "\n")

    row = {"run_id": run["run_id"], "status": "diverged" if diverges else "ok", **point}
    row |= {"seed": point.get("seed", config["seed"]), "steps": lines * every, "wall_s": 12.5}
    if diverges:
        step = lines // 3 * every
        row |= {"diverged/step": step, "diverged/term": "rate", "diverged/layer": "encoder/scale"}
    else:
        row |= {"test/elbo": -rate - distortion, "test/rate": rate, "test/distortion": distortion}
        row |= {
            "test/nll": rate + distortion - 1.4,
            "test/nll_samples": config["eval"]["iw_samples"],
            "test/active_units": active,
        }
        row |= {"train_eval/elbo": -train["rate"] - train["distortion"]}
        row["train_eval/elbo"] += rng.normal(0, 0.1)
        row["gap/elbo"] = row["train_eval/elbo"] - row["test/elbo"]
        if point.get("model.likelihood") in BYTE_LIKELIHOODS:
            row["test/bpd"] = -row["test/elbo"] / (math.prod(shape) * math.log(2))
        if not kind.rate:
            # Not null but absent, as in results.csv, where both are an empty cell.
            for name in ("test/elbo", "test/rate", "train_eval/elbo", "gap/elbo"):
                row[name] = None
            del row["test/nll"], row["test/nll_samples"]
        arrays = _gallery(rng, latent_dim, active, rate, shape, labels, images)
        np.savez(directory / "gallery.npz", **_of_kind(rng, kind, arrays))
    _write_json(directory / "result.json", row)
    return {
        key: json.dumps(value) if isinstance(value, list | dict) else value
        for key, value in row.items()
        if value is not None
    }


def _gallery(rng, latent_dim, active, rate, shape, labels, images) -> dict[str, np.ndarray]:
    if images is None:
        images = rng.integers(0, 256, (40, *shape), dtype=np.uint8)
    blurred = (0.6 * images + 0.4 * images.mean(axis=0)).astype(np.uint8)
    values = np.linspace(-3, 3, 9, dtype=np.float32)
    dims = min(latent_dim, 4)
    blend = ((values + 3) / 6).reshape(-1, *[1] * len(shape))
    moved = np.stack(
        [((1 - blend) * blurred[i] + blend * blurred[i + 1]).astype(np.uint8) for i in range(dims)]
    )
    classes = rng.integers(0, 10, 360).astype(np.int32)
    centres = 1.4 * np.stack([np.cos(np.arange(10) * 0.63), np.sin(np.arange(10) * 0.63)], axis=1)
    latents = (centres[classes] + rng.normal(0, 0.35, (360, 2))).astype(np.float32)
    kl = np.where(np.arange(latent_dim) < active, rng.uniform(0.5, 1.5, latent_dim), 0.003)
    arrays = {
        "originals": images[:10],
        "reconstructions": blurred[:10],
        "samples": blurred[10:30],
        "traversals": moved,
        "traversal_dims": np.arange(dims),
        "traversal_values": values,
        "latents": latents[:, : min(2, latent_dim)],
        "latent_dims": np.arange(min(2, latent_dim)),
        "kl_per_dim": (kl * rate / kl.sum()).astype(np.float32),
    }
    return arrays | ({"labels": classes} if labels else {})


def _of_kind(rng, kind: Kind, arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The arrays that a run of this kind leaves, of 6 codes where there are codes."""
    kl = arrays["kl_per_dim"]
    if not kind.rate:
        return arrays | {"kl_per_dim": np.full_like(kl, np.nan)}
    if not kind.divided:
        return arrays | {"kl_per_dim": kl.sum(keepdims=True)}
    if kind.discrete:
        for name in ("latents", "latent_dims", "labels", "traversal_values"):
            arrays.pop(name, None)
        arrays["traversals"] = arrays["traversals"][:, :6]
        arrays["traversal_codes"] = np.arange(6, dtype=np.int32)
        arrays["code_counts"] = rng.multinomial(360, [1 / 6] * 6, kl.size).astype(np.int32)
    return arrays


def _write_json(path: pathlib.Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=1))
