"""The whole model in torch: its parts, and the components that a phone calls one after another.

A component's graph holds everything an app should not have to write: it takes and gives RGB tiles in [0, 1], and normalisation, resizing, the
timestep embedding and the step's affine combination are inside.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

import torch
from diffusers import AutoencoderKL, AutoencoderTiny, UNet2DConditionModel
from torch import Tensor, nn
from transformers import Dinov2Model, Dinov2WithRegistersModel

from f2i_quantize.models.config import CODEC, ENCODER, PROJECTOR, UNET, ModelConfig, Step
from f2i_quantize.models.geometry import Geometry
from f2i_quantize.models.parts import PixelCodec, Resize, TokenProjector, average_tokens

if TYPE_CHECKING:
    from collections.abc import Mapping

FeatureBackbone: TypeAlias = Dinov2Model | Dinov2WithRegistersModel
Codec: TypeAlias = PixelCodec | AutoencoderKL | AutoencoderTiny


@dataclass(frozen=True)
class F2IModel:
    """The parts of one checkpoint, in float32 and eval mode."""

    config: ModelConfig
    unet: UNet2DConditionModel
    feature_encoder: FeatureBackbone
    projector: TokenProjector
    codec: Codec

    def parts(self) -> dict[str, nn.Module]:
        """Folder name → module, in the order of the checkpoint."""
        return {"unet": self.unet, "feature_encoder": self.feature_encoder, "projector": self.projector, "codec": self.codec}

    def parameters(self) -> int:
        """Number of parameters in all parts."""
        return sum(p.numel() for part in self.parts().values() for p in part.parameters())

    def geometry(self) -> Geometry:
        """The numbers of the parts' configurations that decide tiles and components."""
        return Geometry(
            self.config,
            {name: type(part).__name__ for name, part in self.parts().items()},
            {name: part.config for name, part in self.parts().items()},
        )


COMPONENT_PARTS = {
    "feature_encoder": (ENCODER, PROJECTOR),
    "unet": (UNET,),
    "codec_encoder": (CODEC,),
    "codec_decoder": (CODEC,),
}
"""Component → the parts of a checkpoint whose weights its graph holds."""


class FeatureEncoder(nn.Module):
    """RGB tile (1, 3, t, t) in [0, 1] → context (1, tokens, context_features)."""

    def __init__(self, model: F2IModel, tile: int) -> None:
        super().__init__()
        config = model.config
        patch = model.feature_encoder.config.patch_size
        self.resize = Resize(tile, config.feature_size(tile, patch))
        self.backbone = model.feature_encoder
        self.projector = model.projector
        self.first_patch = 1 + getattr(model.feature_encoder.config, "num_register_tokens", 0)
        self.keep_class_token = config.context == "all"
        self.null = config.context == "null"
        self.normalize = True
        self.token_stride = config.token_stride
        std = torch.tensor(config.normalization_std).reshape(1, 3, 1, 1)
        self.register_buffer("gain", 1 / std, persistent=False)
        self.register_buffer("offset", -torch.tensor(config.normalization_mean).reshape(1, 3, 1, 1) / std, persistent=False)

    def forward(self, lr: Tensor) -> Tensor:
        pixels = self.resize(lr)
        if self.normalize:
            pixels = pixels * self.gain + self.offset
        tokens = self.backbone(pixels).last_hidden_state
        patches = average_tokens(tokens[:, self.first_patch :], self.token_stride)
        tokens = torch.cat([tokens[:, :1], patches], 1) if self.keep_class_token else patches
        context = self.projector(tokens)
        return context * 0 if self.null else context


class Denoiser(nn.Module):
    """The UNet with its step: latent (and, with ``concat_lr``, low-resolution latent) and context → next latent.

    With one step the timestep is a constant of the graph. With several, ``time_embedding`` (1, features) and ``step_keep``/``step_add`` (1, 1, 1, 1) are inputs
    whose values the bundle carries, so that all steps share one graph and one set of weights.
    """

    def __init__(self, model: F2IModel) -> None:
        super().__init__()
        self.unet = model.unet
        self.steps = model.config.steps
        self.register_buffer("timestep", torch.tensor([self.steps[0].timestep]), persistent=False)

    def predict(self, sample: Tensor, context: Tensor, time_embedding: Tensor | None = None) -> Tensor:
        """The UNet's own output, before the step's affine combination."""
        if time_embedding is None:
            return self.unet(sample, self.timestep, context, return_dict=False)[0]
        return unet_with_embedding(self.unet, sample, time_embedding, context)

    def one_step(self, latent: Tensor, sample: Tensor, context: Tensor) -> Tensor:
        step = self.steps[0]
        predicted = self.predict(sample, context)
        predicted = predicted if step.add == 1 else predicted * step.add
        return predicted if step.keep == 0 else latent * step.keep + predicted


class PixelUNet(nn.Module):
    """RGB tile and context → RGB tile, for the pixel codec: shuffle, UNet, shuffle back and add the enlarged tile, in one graph.

    lr (1, 3, t, t) in [0, 1], context (1, tokens, features) → sr (1, 3, 2t, 2t), nominally in [0, 1] (not clipped).
    """

    def __init__(self, model: F2IModel, tile: int) -> None:
        super().__init__()
        self.denoiser = Denoiser(model)
        self.codec: Any = model.codec
        self.enlarge = Resize(tile, tile * model.config.scale) if model.config.base == "bicubic" else None

    def forward(self, lr: Tensor, context: Tensor) -> Tensor:
        latent = self.codec.encode(lr)
        residual = self.codec.decode(self.denoiser.one_step(latent, latent, context))
        return residual if self.enlarge is None else self.enlarge(lr) + residual


class LatentUNet(nn.Module):
    """Latents and context → the next latent. Inputs in this order: latent, [lr_latent], context, [time_embedding, step_keep, step_add]."""

    def __init__(self, model: F2IModel) -> None:
        super().__init__()
        self.denoiser = Denoiser(model)
        self.concat_lr = model.config.concat_lr
        self.several = len(model.config.steps) > 1

    def forward(self, *inputs: Tensor) -> Tensor:
        queue = list(inputs)
        latent = queue.pop(0)
        sample = torch.cat([latent, queue.pop(0)], 1) if self.concat_lr else latent
        context = queue.pop(0)
        if not self.several:
            return self.denoiser.one_step(latent, sample, context)
        time_embedding, keep, add = queue
        return latent * keep + self.denoiser.predict(sample, context, time_embedding) * add


def _without(codec: Codec, *names: str) -> Any:
    """The codec without some of its parts, sharing the rest: a graph's file holds no weights that the graph does not use."""
    part = copy.copy(codec)
    part._modules = {name: child for name, child in codec._modules.items() if name not in names}
    return part


class CodecEncoder(nn.Module):
    """RGB tile (1, 3, t, t) in [0, 1] → latent of the enlarged tile, scaled as the UNet expects it."""

    def __init__(self, model: F2IModel, tile: int) -> None:
        super().__init__()
        self.enlarge = Resize(tile, tile * model.config.scale)
        self.codec: Any = _without(model.codec, "decoder", "post_quant_conv")

    def forward(self, lr: Tensor) -> Tensor:
        image = self.enlarge(lr) * 2.0 - 1.0
        encoded = self.codec.encode(image)
        latent = encoded.latents if isinstance(self.codec, AutoencoderTiny) else encoded.latent_dist.mean
        return (latent - (self.codec.config.shift_factor or 0.0)) * self.codec.config.scaling_factor


class CodecDecoder(nn.Module):
    """Latent → RGB tile (1, 3, 2t, 2t), nominally in [0, 1] (not clipped)."""

    def __init__(self, model: F2IModel) -> None:
        super().__init__()
        self.codec: Any = _without(model.codec, "encoder", "quant_conv")

    def forward(self, latent: Tensor) -> Tensor:
        latent = latent / self.codec.config.scaling_factor + (getattr(self.codec.config, "shift_factor", None) or 0.0)
        return self.codec.decode(latent).sample * 0.5 + 0.5


def unet_with_embedding(unet: UNet2DConditionModel, sample: Tensor, time_embedding: Tensor | None, context: Tensor) -> Tensor:
    """``UNet2DConditionModel.forward`` from its time embedding on (the embedding's own MLP is a constant per step)."""
    if unet.config.center_input_sample:
        sample = 2 * sample - 1.0
    sample = unet.conv_in(sample)
    residuals = [sample]
    for block in unet.down_blocks:
        cross = {"encoder_hidden_states": context} if getattr(block, "has_cross_attention", False) else {}
        sample, more = block(hidden_states=sample, temb=time_embedding, **cross)
        residuals += more
    if unet.mid_block is not None:
        cross = {"encoder_hidden_states": context} if getattr(unet.mid_block, "has_cross_attention", False) else {}
        sample = unet.mid_block(sample, time_embedding, **cross)
    for block in unet.up_blocks:
        skips = tuple(residuals[-len(block.resnets) :])
        del residuals[-len(block.resnets) :]
        cross = {"encoder_hidden_states": context} if getattr(block, "has_cross_attention", False) else {}
        sample = block(hidden_states=sample, temb=time_embedding, res_hidden_states_tuple=skips, **cross)
    if unet.conv_norm_out is not None:
        sample = unet.conv_act(unet.conv_norm_out(sample))
    return unet.conv_out(sample)


@dataclass(frozen=True)
class Component:
    """One graph of the bundle: a module, and the names and example shapes of what it takes and gives."""

    name: str
    module: nn.Module
    inputs: dict[str, tuple[int, ...]]
    output: str
    output_shape: tuple[int, ...]


@dataclass(frozen=True)
class Call:
    """One line of the dataflow: ``component(**{argument: tensor})`` gives ``result``."""

    component: str
    arguments: dict[str, str]
    result: str


@dataclass(frozen=True)
class ComponentGraph:
    """Components, the calls that make a super-resolved tile of ``lr``, and the constant tensors those calls read."""

    components: dict[str, Component]
    calls: tuple[Call, ...]
    constants: dict[str, Tensor]

    def run(self, lr: Tensor, extra: Mapping[str, Tensor] | None = None) -> dict[str, Tensor]:
        """All named tensors of one tile, in eager torch. ``lr`` (1, 3, t, t) in [0, 1]."""
        tensors: dict[str, Tensor] = {"lr": lr, **self.constants, **(extra or {})}
        with torch.no_grad():
            for call in self.calls:
                arguments = [tensors[call.arguments[name]] for name in self.components[call.component].inputs]
                tensors[call.result] = self.components[call.component].module(*arguments)
        return tensors


def build_components(model: F2IModel, tile: int) -> ComponentGraph:
    """The components of ``model`` for low-resolution tiles of ``tile`` pixels. The modules share the model's weights.

    Raises UsageError when the tile is not a multiple of what the model needs.
    """
    geometry = model.geometry()
    tokens = geometry.tokens(tile)
    scale = model.config.scale
    rgb, large = (1, 3, tile, tile), (1, 3, tile * scale, tile * scale)
    context = (1, tokens, model.projector.config.context_features)
    components = {"feature_encoder": Component("feature_encoder", FeatureEncoder(model, tile).eval(), {"lr": rgb}, "context", context)}
    calls = [Call("feature_encoder", {"lr": "lr"}, "context")]
    if geometry.is_pixel():
        unet = PixelUNet(model, tile).eval()
        components["unet"] = Component("unet", unet, {"lr": rgb, "context": context}, "sr", large)
        calls.append(Call("unet", {"lr": "lr", "context": "context"}, "sr"))
        return ComponentGraph(components, tuple(calls), {})
    return _latent_graph(model, tile, components, calls, context)


def _latent_graph(
    model: F2IModel, tile: int, components: dict[str, Component], calls: list[Call], context: tuple[int, ...]
) -> ComponentGraph:
    config = model.config
    geometry = model.geometry()
    side = tile // geometry.latent_factor()
    channels = geometry.latent_channels()
    latent = (1, channels, side, side)
    rgb, large = (1, 3, tile, tile), (1, 3, tile * config.scale, tile * config.scale)
    components["codec_encoder"] = Component("codec_encoder", CodecEncoder(model, tile).eval(), {"lr": rgb}, "latent", latent)
    calls.append(Call("codec_encoder", {"lr": "lr"}, "lr_latent"))
    inputs: dict[str, tuple[int, ...]] = {"latent": latent}
    if config.concat_lr:
        inputs["lr_latent"] = latent
    inputs["context"] = context
    constants: dict[str, Tensor] = {}
    if len(config.steps) > 1:
        for k, (embedding, step) in enumerate(zip(time_embeddings(model.unet, config.steps), config.steps, strict=True)):
            constants |= {
                f"time_embedding_{k}": embedding,
                f"step_keep_{k}": torch.full((1, 1, 1, 1), step.keep),
                f"step_add_{k}": torch.full((1, 1, 1, 1), step.add),
            }
        inputs |= {"time_embedding": tuple(constants["time_embedding_0"].shape), "step_keep": (1, 1, 1, 1), "step_add": (1, 1, 1, 1)}
    components["unet"] = Component("unet", LatentUNet(model).eval(), inputs, "latent_out", latent)
    current = "noise" if config.noise else "lr_latent"
    for k in range(len(config.steps)):
        source = {"latent": current, "lr_latent": "lr_latent", "context": "context"} | {
            n: f"{n}_{k}" for n in ("time_embedding", "step_keep", "step_add")
        }
        calls.append(Call("unet", {n: source[n] for n in inputs}, current := f"latent_{k + 1}"))
    components["codec_decoder"] = Component("codec_decoder", CodecDecoder(model).eval(), {"latent": latent}, "sr", large)
    calls.append(Call("codec_decoder", {"latent": current}, "sr"))
    return ComponentGraph(components, tuple(calls), constants)


@torch.no_grad()
def time_embeddings(unet: UNet2DConditionModel, steps: Sequence[Step]) -> Iterator[Tensor]:
    """The UNet's time embedding (1, features) of every step."""
    for step in steps:
        sinusoid = unet.time_proj(torch.tensor([step.timestep]))
        embedding = unet.time_embedding(sinusoid.to(next(unet.parameters())))
        yield embedding if unet.time_embed_act is None else unet.time_embed_act(embedding)
