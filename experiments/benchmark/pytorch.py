"""The same VAE in PyTorch, trained by a plain loop and by pythae: peers, of the extra `[bench]`.

Only what `peers` compares: MLPs and convolutions with ReLU, a Gaussian posterior, a Bernoulli
likelihood, Adam. The parameters are those of a run here, so that the loss can be compared too
(tests/experiments/test_benchmark_peers.py).
"""

import contextlib
import importlib.util
import logging
import os
import tempfile
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import numpy as np

from experiments.benchmark import products
from vae.model import Params
from vae.nets import conv_sizes
from vae.spec import ModelSpec


class Nets(NamedTuple):
    """torch modules: x ↦ h; h ↦ mean, log σ² of q(z|x); z ↦ logits."""

    trunk: Any
    mean: Any
    scale: Any
    decoder: Any

    def parameters(self) -> list[Any]:
        return [p for net in self for p in net.parameters()]


def absent(package: str) -> str:
    """Why a peer cannot be measured here; empty where it can."""
    for name in dict.fromkeys(("torch", package)):
        if importlib.util.find_spec(name) is None:
            return f"{name} is not installed: the extra [bench] has it"
    import torch

    if jax.default_backend() != "cpu" and not torch.cuda.is_available():
        return "this PyTorch sees no accelerator"
    return ""


def device() -> str:
    return "cpu" if jax.default_backend() == "cpu" else "cuda"


def use_threads(count: int) -> None:
    """Gives PyTorch so many threads within an operation."""
    import torch

    torch.set_num_threads(count)


def nets(spec: ModelSpec, params: Params) -> Nets:
    """The modules of a spec, with one run's parameters (leaves without an axis of runs)."""
    from torch import nn

    params = jax.tree.map(np.asarray, params)
    encoder, decoder = params["encoder"], params["decoder"]
    hidden = [f"layer_{i}" for i in range(spec.depth)]
    if spec.net == "mlp":
        trunk = nn.Sequential(nn.Flatten())
        for name in hidden:
            trunk.extend([_linear(**encoder[name]["dense"]), nn.ReLU()])
        heads = [_linear(**encoder[name]) for name in ("mean", "scale")]
        rest = nn.Sequential()
        for name in hidden:
            rest.extend([_linear(**decoder[name]["dense"]), nn.ReLU()])
        height, width, channels = spec.example_shape
        rest.append(_linear(**decoder["output"]))
        # Flat rows are images already where there is one channel.
        assert channels == 1
        rest.append(nn.Unflatten(1, (1, height, width)))
        return _placed(spec, Nets(trunk, *heads, rest))
    # The last axis is the channel here, and the first one there: what is flattened is reordered.
    smallest = (*conv_sizes(spec)[-1], spec.widths[-1])
    order = np.arange(np.prod(smallest)).reshape(smallest).transpose(2, 0, 1).reshape(-1)
    trunk = nn.Sequential()
    for name in hidden:
        trunk.extend([_conv(**encoder[name]["conv"], stride=2), nn.ReLU()])
    trunk.append(nn.Flatten())
    heads = [
        _linear(encoder[name]["kernel"][order], encoder[name]["bias"]) for name in ("mean", "scale")
    ]
    project = decoder["project"]
    rest = nn.Sequential(_linear(project["kernel"][:, order], project["bias"][order]), nn.ReLU())
    rest.append(nn.Unflatten(1, (smallest[2], *smallest[:2])))
    for name in hidden:
        rest.extend([nn.Upsample(scale_factor=2), _conv(**decoder[name]["conv"]), nn.ReLU()])
    rest.append(_conv(**decoder["output"]))
    return _placed(spec, Nets(trunk, *heads, rest))


def _linear(kernel: np.ndarray, bias: np.ndarray) -> Any:
    from torch import nn

    return _filled(nn.Linear(*kernel.shape), kernel.T, bias)


def _conv(kernel: np.ndarray, bias: np.ndarray, stride: int = 1) -> Any:
    from torch import nn

    size, _, inputs, outputs = kernel.shape
    # Padding SAME of even images: one on each side, for 4 × 4 with stride 2 and 3 × 3 with 1.
    layer = nn.Conv2d(inputs, outputs, size, stride, padding=1)
    return _filled(layer, kernel.transpose(3, 2, 0, 1), bias)


def _filled(layer: Any, weight: np.ndarray, bias: np.ndarray) -> Any:
    import torch

    with torch.no_grad():
        layer.weight.copy_(torch.tensor(np.ascontiguousarray(weight)))
        layer.bias.copy_(torch.tensor(np.ascontiguousarray(bias)))
    return layer


def _placed(spec: ModelSpec, nets: Nets) -> Nets:
    import torch

    # The layout that PyTorch's convolutions are quickest in: half the time on two CPU cores.
    layout = torch.channels_last if spec.net == "conv" else torch.contiguous_format
    return Nets(*(net.to(device(), memory_format=layout) for net in nets))


def images(spec: ModelSpec, examples: np.ndarray) -> Any:
    """Examples [N, H, W, C] in [0, 1] as the modules read them: a tensor [N, C, H, W]."""
    import torch

    moved = torch.tensor(np.ascontiguousarray(examples.transpose(0, 3, 1, 2)), device=device())
    layout = torch.channels_last if spec.net == "conv" else torch.contiguous_format
    return moved.contiguous(memory_format=layout)


def loss(nets: Nets, x: Any, noise: Any) -> Any:
    """distortion + rate of a batch x [B, C, H, W] at the noise [B, d]: nats, mean over examples."""
    from torch.nn import functional

    h = nets.trunk(x)
    mean, logvar = nets.mean(h), nets.scale(h)
    logits = nets.decoder(mean + (0.5 * logvar).exp() * noise)
    distortion = functional.binary_cross_entropy_with_logits(logits, x, reduction="sum")
    rate = -0.5 * (1 + logvar - mean.square() - logvar.exp()).sum()
    return (distortion + rate) / len(x)


def plain_loop(
    spec: ModelSpec, params: Params, examples: np.ndarray, batch_size: int, learning_rate: float
) -> Callable[[int], None]:
    """n steps of a loop as one would write it with care.

    The data is a tensor on the device, a batch one gather from it, Adam one fused pass, and the
    loss is read once, at the end.
    """
    import torch

    model, data = nets(spec, params), images(spec, examples)
    optimizer = torch.optim.Adam(model.parameters(), lr=learning_rate, fused=True)

    def batches() -> Iterator[Any]:
        while True:
            order = torch.randperm(len(data), device=data.device)
            yield from order.split(batch_size)[: len(data) // batch_size]

    source = batches()

    def run(num_steps: int) -> None:
        for _ in range(num_steps):
            x = data[next(source)]
            noise = torch.randn(len(x), spec.latent_dim, device=x.device)
            value = loss(model, x, noise)
            optimizer.zero_grad()
            value.backward()
            optimizer.step()
        value.item()

    return run


def products_alone(spec: ModelSpec, batch_size: int) -> Callable[[int], None]:
    """n times the matrix products of an MLP's step, by the library that PyTorch takes."""
    import torch

    weights = jax.tree.map(
        lambda array: torch.tensor(np.asarray(array), device=device()),
        products.weights(spec.num_values, spec.widths, spec.latent_dim),
    )
    x = (torch.rand(batch_size, spec.num_values, device=device()) < 0.13).float()

    def run(num_steps: int) -> None:
        for _ in range(num_steps):
            *_, last = products.once(weights, x)
        last[0, 0].item()

    return run


def pythae_model(spec: ModelSpec, params: Params) -> Any:
    """pythae's own VAE around the same networks; its loss reads probabilities."""
    import torch
    from pythae.models import VAE, VAEConfig
    from pythae.models.base.base_utils import ModelOutput
    from pythae.models.nn import BaseDecoder, BaseEncoder

    class Encoder(BaseEncoder):
        def __init__(self, nets: Nets) -> None:
            super().__init__()
            self.trunk, self.mean, self.scale = nets.trunk, nets.mean, nets.scale

        def forward(self, x: Any) -> Any:
            h = self.trunk(x)
            return ModelOutput(embedding=self.mean(h), log_covariance=self.scale(h))

    class Decoder(BaseDecoder):
        def __init__(self, nets: Nets) -> None:
            super().__init__()
            self.net = nets.decoder

        def forward(self, z: Any) -> Any:
            return ModelOutput(reconstruction=torch.sigmoid(self.net(z)))

    height, width, channels = spec.example_shape
    config = VAEConfig(
        input_dim=(channels, height, width), latent_dim=spec.latent_dim, reconstruction_loss="bce"
    )
    built = nets(spec, params)
    return VAE(config, Encoder(built), Decoder(built))


class Pythae:
    """pythae's `BaseTrainer` with its defaults: calling it with n makes an epoch of n steps.

    A step then takes its examples one by one from a `DataLoader` and stacks them, reads the loss
    and moves a progress bar, which goes nowhere here. What it does once an epoch, copying the
    best model, is left out.
    """

    def __init__(
        self,
        spec: ModelSpec,
        params: Params,
        examples: np.ndarray,
        batch_size: int,
        learning_rate: float,
    ) -> None:
        self._spec, self._params, self._examples = spec, params, examples
        self._batch_size, self._learning_rate = batch_size, learning_rate
        self._trainers: dict[int, Any] = {}

    def __call__(self, num_steps: int) -> None:
        with open(os.devnull, "w", encoding="utf-8") as nowhere:
            with contextlib.redirect_stderr(nowhere), contextlib.redirect_stdout(nowhere):
                if num_steps not in self._trainers:
                    self._trainers[num_steps] = self._trainer(num_steps)
                trainer = self._trainers[num_steps]
                trainer.train_step(epoch=1)
                trainer.callback_handler.on_epoch_end(training_config=trainer.training_config)

    def _trainer(self, num_steps: int) -> Any:
        import torch
        from pythae.data.datasets import BaseDataset
        from pythae.trainers import BaseTrainer, BaseTrainerConfig
        from pythae.trainers.base_trainer import base_trainer

        base_trainer.logger.setLevel(logging.ERROR)
        count = num_steps * self._batch_size
        rows = np.resize(np.arange(len(self._examples)), count)
        data = BaseDataset(images(self._spec, self._examples[rows]), torch.zeros(count))
        with tempfile.TemporaryDirectory() as folder:
            config = BaseTrainerConfig(
                output_dir=folder,
                per_device_train_batch_size=self._batch_size,
                learning_rate=self._learning_rate,
                no_cuda=device() == "cpu",
            )
            model = pythae_model(self._spec, self._params)
            trainer = BaseTrainer(model, data, training_config=config)
            trainer.prepare_training()
        return trainer
