"""The whole model as one differentiable module, for training and for evaluation without export."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from f2i_quantize.models.whole_model import F2IModel, build_components


class Pipeline(nn.Module):
    """RGB tiles (n, 3, t, t) in [0, 1] → RGB tiles (n, 3, 2t, 2t), not clipped, with gradients: the calls of ``build_components`` in order.

    The modules share the model's weights; ``modules``, by component, stand for them where given. ``noise``, for models that start from it, is the first
    latent (n, c, t/f, t/f).
    """

    def __init__(self, model: F2IModel, tile: int, modules: Mapping[str, nn.Module] | None = None) -> None:
        super().__init__()
        graph = build_components(model, tile)
        self.modules_by_name = nn.ModuleDict(
            {name: (modules or {}).get(name, component.module) for name, component in graph.components.items()}
        )
        self.inputs = {name: tuple(component.inputs) for name, component in graph.components.items()}
        self.calls = graph.calls
        self.constant_names = tuple(graph.constants)
        for name, tensor in graph.constants.items():
            self.register_buffer(f"constant_{name}", tensor, persistent=False)

    @property
    def last_latent(self) -> str:
        """The name of the latent that the decoder is given. Raises ValueError for pixel models, which have none."""
        [decode] = [call for call in self.calls if call.component == "codec_decoder"]
        return decode.arguments["latent"]

    def forward(self, lr: Tensor, noise: Tensor | None = None) -> Tensor:
        return self.tensors(lr, noise)["sr"]

    def tensors(self, lr: Tensor, noise: Tensor | None = None) -> dict[str, Tensor]:
        """Returns all named tensors of the calls, the inputs among them."""
        tensors: dict[str, Tensor] = {"lr": lr} | {name: getattr(self, f"constant_{name}") for name in self.constant_names}
        if noise is not None:
            tensors["noise"] = noise
        for call in self.calls:
            arguments = [tensors[call.arguments[name]] for name in self.inputs[call.component]]
            tensors[call.result] = self.modules_by_name[call.component](*arguments)
        return tensors


def step_noise(model: F2IModel, crop: int, count: int, seed: int, position: int) -> Tensor | None:
    """``count`` first latents for training step ``position``, for models that start from noise; None for the others."""
    if not model.config.noise:
        return None
    generator = torch.Generator().manual_seed(seed * 1_000_003 + position)
    side = crop // model.geometry().latent_factor()
    return torch.randn(count, model.geometry().latent_channels(), side, side, generator=generator)
