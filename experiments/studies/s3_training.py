"""What an autoencoder, a VAE and a VAE-GAN update, parameter by parameter (seed S3).

Set-up: configs/seeds/s3_training.py: one net, one set of images, batches of 32, three objectives:
the write-up's error alone (σ² = 1, β = 0: an autoencoder), its ELBO (β = 1), and VAE-GAN. Gradients
are split by the term by which they leave the loss (`vae.gradients.flow`): the distortion, −log
p(x|z); the rate; and a penalty, which is all that a game and its features' error add. A layer's
share of a term is its norm over the sum of the terms' norms, at the last look.

What follows from the losses and is exact: the autoencoder has no rate; no rate reaches a decoder;
no likelihood drives a VAE-GAN. What the write-up says and is measured: the VAE gives up some of the
error for the rate; its two terms pull the encoder in different directions; and samples from the
prior are pictures where, and only where, something has drawn the codes to it. That is told by the
squared distance of a sample to the nearest of 2,000 test images, over the same distance of
reconstructions.
"""

import numpy as np

from experiments.report import canvas, style
from experiments.report.results import Run
from experiments.studies.cases import Arguments, Context, Found
from experiments.studies.quantity import Quantity, by_seed, difference, of_seeds
from vae import data

ID = "S3"
CONFIGS = {"quick": "configs/seeds/s3_training_quick.py", "full": "configs/seeds/s3_training.py"}
OBJECTIVES = {"autoencoder": "autoencoder", "VAE": "elbo", "VAE-GAN": "vaegan"}
TERMS = ("distortion", "rate", "penalty")
LAYERS = (
    *("encoder/layer_0", "encoder/layer_1", "encoder/mean", "encoder/scale"),
    *("decoder/layer_0", "decoder/layer_1", "decoder/output"),
)


def cases(budget: str) -> list[Arguments]:
    return [{"objective": name} for name in OBJECTIVES]


def run(arguments: Arguments, context: Context) -> dict[str, np.ndarray]:
    """Mean squared distance to the nearest test image: of samples, of reconstructions; [seeds]."""
    config = context.results.config["data"]
    dataset = data.load(**config | {"dir": context.data_dir or config["dir"]})
    raw, transform = dataset.evaluation("test")
    images = np.asarray(data.prepare(transform, raw, None)).reshape(len(raw), -1)
    found = {"samples": [], "reconstructions": []}
    for run in of(context.results.runs, arguments["objective"]):
        for kind, values in found.items():
            values.append(nearest(run.gallery[kind] / 255.0, images))  # kept as bytes
    return {kind: np.array(values) for kind, values in found.items()}


def nearest(pictures: np.ndarray, images: np.ndarray) -> float:
    """Mean over pictures [n, *x] of min over images [N, D] of |picture − image|²."""
    flat = pictures.reshape(len(pictures), -1).astype(np.float64)
    squared = np.sum(flat**2, 1)[:, None] + np.sum(images**2, 1)[None] - 2 * flat @ images.T
    return float(squared.min(axis=1).mean())


def of(runs: tuple[Run, ...], name: str) -> list[Run]:
    """The finished runs of an objective."""
    wanted = OBJECTIVES[name]
    return [r for r in runs if r.setting("objective.name") == wanted and r.status == "ok"]


def looked(run: Run, key: str) -> np.ndarray:
    """What was read at each look; [] where there was nothing."""
    curve = run.looks.curves.get(key, np.zeros(0))
    return curve[np.isfinite(curve)]


def shares(run: Run, layer: str) -> dict[str, float]:
    """Of the terms' norms at the last look; 0 of a layer that is not there."""
    norms = {}
    for term in TERMS:
        seen = looked(run, f"grad/{layer}/{term}")
        norms[term] = float(seen[-1]) if seen.size else 0.0
    whole = sum(norms.values())
    return {term: norm / whole if whole else 0.0 for term, norm in norms.items()}


def measure(found: Found) -> list[Quantity]:
    runs = {name: of(found.results.runs, name) for name in OBJECTIVES}
    own = {
        name: by_seed(found.results, "test/distortion", objective__name=objective)
        for name, objective in OBJECTIVES.items()
    }
    rows = [of_seeds(f"distortion: {name}, nats", values.values()) for name, values in own.items()]
    rows.append(
        of_seeds(
            "distortion, VAE − autoencoder, nats",
            difference(own["VAE"], own["autoencoder"]),
            0,
            relation=">=",
            source="the loss: the rate has a price",
        )
    )
    exact = (
        ("autoencoder", "encoder/mean", "rate", "its loss has none"),
        ("VAE", "decoder/layer_0", "rate", "the KL does not read the decoder"),
        ("VAE", "encoder/mean", "penalty", "the ELBO has none"),
        ("VAE-GAN", "encoder/mean", "distortion", "Larsen et al. 2016, algorithm 1"),
        ("VAE-GAN", "decoder/layer_0", "distortion", "Larsen et al. 2016, algorithm 1"),
    )
    for name, layer, term, source in exact:
        values = [shares(run, layer)[term] for run in runs[name]]
        rows.append(of_seeds(f"share of the {term} in {layer}: {name}", values, 0, source=source))
    for layer in ("encoder/layer_0", "encoder/mean", "encoder/scale"):
        key = f"grad/{layer}/cosine_distortion_rate"
        values = [looked(run, key)[-1] for run in runs["VAE"] if looked(run, key).size]
        rows.append(
            of_seeds(
                f"cosine of distortion and rate in {layer}: VAE, last look",
                values,
                0,
                relation="<=",
                source="the write-up: the two terms are in conflict",
            )
        )
    for name in ("VAE", "VAE-GAN"):
        values = [shares(run, "encoder/mean")["rate"] for run in runs[name]]
        rows.append(of_seeds(f"share of the rate in encoder/mean: {name}", values))
    far = {}
    for case in found.cases:
        name = case.arguments["objective"]
        far[name] = case.values["samples"] / case.values["reconstructions"]
        rows.append(of_seeds(f"distance to the nearest image, samples: {name}", far[name]))
    rows.append(
        of_seeds(
            "distance to the nearest image, autoencoder − VAE",
            far["autoencoder"] - far["VAE"],
            0,
            relation=">=",
            source="Kingma and Welling 2014: without a KL the prior is not where the codes are",
        )
    )
    return rows


def figure(found: Found):
    """Curves of the error; shares of the terms by layer; and samples."""
    sheet, panels = canvas.new_figure(2, 3, 7.4, 4.4)
    curves, pictures = panels[0], panels[3:]
    colors = style.category_colors(3)
    for (name, color), picture in zip(zip(OBJECTIVES, colors, strict=True), pictures, strict=True):
        for run in of(found.results.runs, name):
            curve = run.curves.get("test/distortion", np.zeros(0))
            there = np.isfinite(curve)
            label = name if run.seed == 0 else None
            curves.plot(run.step[there], curve[there], color=color, label=label)
        first = of(found.results.runs, name)[:1]
        for run in first:
            if "samples" not in run.gallery:
                continue
            images = run.gallery["samples"][:24, ..., 0]
            lines = [np.concatenate(list(images[i : i + 6]), axis=1) for i in range(0, 24, 6)]
            picture.imshow(np.concatenate(lines), cmap="gray_r", vmin=0, vmax=255)
        picture.set_title(f"samples: {name}")
        picture.set_xticks([])
        picture.set_yticks([])
        picture.grid(visible=False)
    curves.set_xlabel("step")
    curves.set_ylabel("test distortion, nats")
    low, high = curves.get_ylim()
    curves.set_ylim(low, high + 0.2 * (high - low))
    curves.legend(fontsize=6, ncols=3, loc="upper center", columnspacing=1)
    for panel, name in zip(panels[1:3], ("VAE", "VAE-GAN"), strict=True):
        runs = of(found.results.runs, name)
        left = np.zeros(len(LAYERS))
        for term, color in zip(TERMS, style.category_colors(3), strict=True):
            width = np.array([np.mean([shares(r, la)[term] for r in runs]) for la in LAYERS])
            panel.barh(range(len(LAYERS)), width, left=left, color=color, label=term)
            left += width
        panel.set_yticks(range(len(LAYERS)), LAYERS, fontsize=6)
        panel.invert_yaxis()
        panel.set_xlabel(f"share of the gradient: {name}")
    panels[1].legend(fontsize=6, loc="lower left")
    return sheet
