"""What a graph is rewritten into: the same functions as diffusers' and transformers' own modules, in ops that phones' delegates take."""

from __future__ import annotations

from typing import Any

import torch
from diffusers.models.activations import GEGLU
from diffusers.models.resnet import ResnetBlock2D
from torch import Tensor, nn
from torch.nn import functional
from transformers import Dinov2Model, Dinov2WithRegistersModel

from f2i_quantize.models.whole_model import unet_with_embedding

MIDDLE = 0.5
"""The middle of the range of an image's values; see :class:`Centred`."""
SHRINK = 1 / 8
"""What is squared in a norm is made smaller by this first: half precision ends at 65,504, the square of 256, and encoders have values of 600."""
QUARTER = 1 / 4
"""So much of the variance, and of ε, is what the root is taken of. The whole of it leaves half precision where values of 256 are usual; of a 64th, as the
squares are, ε = 1e-6 would be zero in half precision, and so would be what a row of equal values is divided by. The inverse of the root is then twice too
large. All are powers of two, so that nothing is rounded."""


class ExplicitNorm(nn.Module):
    """What the explicit spellings of normalisation share: ε, and squares that stay inside half precision (:data:`SHRINK`, :data:`QUARTER`)."""

    def __init__(self, norm: nn.GroupNorm | nn.LayerNorm) -> None:
        super().__init__()
        self.weight, self.bias = norm.weight, norm.bias
        # Tensors, not numbers: in half precision a number becomes a float32 constant and a cast that no delegate takes.
        for name, value in (("eps", norm.eps * QUARTER), ("shrink", SHRINK), ("grow", QUARTER / SHRINK**2), ("root", QUARTER**0.5)):
            self.register_buffer(name, torch.full((1, 1, 1, 1), value), persistent=False)

    def inverse_deviation(self, squares: Tensor) -> Tensor:
        """Returns 1/√(variance + ε) for the squares of shrunk values, over the last two axes."""
        return torch.rsqrt(squares.mean((-1, -2), keepdim=True) * self.grow + self.eps) * self.root


class ExplicitGroupNorm(ExplicitNorm):
    """Group normalisation as mean, subtract, multiply, rsqrt on (n, groups, channels/groups, positions).

    XNNPACK has no group norm; its mean takes rank 4 and the last two axes. Source: Wu and He, arXiv 1803.08494, eq. 1-4.
    """

    def __init__(self, norm: nn.GroupNorm) -> None:
        super().__init__(norm)
        self.groups = norm.num_groups

    def forward(self, x: Tensor) -> Tensor:
        n, c = x.shape[:2]
        grouped = x.reshape(n, self.groups, c // self.groups, -1)
        centred = grouped - grouped.mean((-1, -2), keepdim=True)
        small = centred * self.shrink
        scaled = (centred * self.inverse_deviation(small * small)).reshape(x.shape)
        affine = (1, c) + (1,) * (x.dim() - 2)
        return scaled * self.weight.reshape(affine) + self.bias.reshape(affine)


class ScaledGroupNorm(nn.Module):
    """Group normalisation whose squares cannot overflow half precision: values are first divided by their group's largest magnitude m.

    With c = x − mean and r = 1/m: (c·r) · rsqrt(mean((c·r)²) + ε·r²) is c · rsqrt(mean(c²) + ε), and no product exceeds 1 but ε·r², whose overflow
    means a group of equal values, for which 0 is the right answer. As it stands, |c| over 255 becomes infinite when squared, and the group becomes 0.
    """

    def __init__(self, norm: ExplicitGroupNorm) -> None:
        super().__init__()
        self.groups, self.weight, self.bias = norm.groups, norm.weight, norm.bias
        self.register_buffer("eps", norm.eps / QUARTER, persistent=False)
        self.register_buffer("least", torch.full((1, 1, 1, 1), 1e-4), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        n, c = x.shape[:2]
        grouped = x.reshape(n, self.groups, c // self.groups, -1)
        centred = grouped - grouped.mean((-1, -2), keepdim=True)
        scale = torch.reciprocal(torch.maximum(centred.abs().amax((-1, -2), keepdim=True), self.least))
        unit = centred * scale
        variance = (unit * unit).mean((-1, -2), keepdim=True)
        scaled = (unit * torch.rsqrt(variance + self.eps * scale * scale)).reshape(x.shape)
        affine = (1, c) + (1,) * (x.dim() - 2)
        return scaled * self.weight.reshape(affine) + self.bias.reshape(affine)


class ChannelGroupNorm(nn.Module):
    """Group normalisation of images whose only full-size ops are pooling over positions and products per channel.

    Convolutions of XNNPACK and LiteRT hold channels last. Grouping channels next to positions, as :class:`ExplicitGroupNorm` does, transposes the whole
    image there and back; here groups exist only in tensors of one value per channel. With channel means m and variances v, the group's mean is
    μ = E[m] and its variance E[v + (m − μ)²] (Chan, Golub and LeVeque, 1979), so that x becomes (x − m)·a + (m − μ)·a + bias, a = weight·rsqrt(variance + ε).

    ``pooled``: spell the mean over positions as average pooling in equal windows, the only form LiteRT's converter keeps with channels last.
    """

    def __init__(self, norm: ExplicitGroupNorm, pooled: bool) -> None:
        super().__init__()
        self.groups, self.pooled, self.shrinks = norm.groups, pooled, True
        self.weight, self.bias = norm.weight, norm.bias
        for name in ("shrink", "grow", "root"):
            self.register_buffer(name, getattr(norm, name), persistent=False)
        # One value per channel brings a group's value to its channels. Were all the same, LiteRT's converter would make of it an op that no delegate takes.
        eps = norm.eps.detach().expand(1, norm.groups, norm.weight.numel() // norm.groups, 1).clone()
        eps[0, 0, 0, 0] = torch.nextafter(eps[0, 0, 0, 0], torch.tensor(torch.inf, dtype=eps.dtype))
        self.register_buffer("eps", eps, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        n, c = x.shape[:2]
        grouped, single = (n, self.groups, c // self.groups, 1), (n, c, 1, 1)
        image = x if x.dim() == 4 else x.reshape(n, c, -1, 1)
        mean = self._mean(image)
        centred = image - mean
        small = centred * self.shrink if self.shrinks else centred
        squares = self._mean(small * small).reshape(grouped)
        mean = mean.reshape(grouped)
        offset = mean - mean.mean((-1, -2), keepdim=True)
        apart = offset * self.shrink
        variance = (squares + apart * apart).mean((-1, -2), keepdim=True) * self.grow
        gain = torch.rsqrt(variance + self.eps) * self.root * self.weight.reshape((1, *grouped[1:]))
        shift = offset * gain + self.bias.reshape((1, *grouped[1:]))
        result = centred * gain.reshape(single) + shift.reshape(single)
        return result if x.dim() == 4 else result.reshape(x.shape)

    def without_shrinking(self) -> None:
        """From now on squares are taken of the values as they are: one product a value less, where that stays inside half precision."""
        self.shrinks = False
        for name, value in (("shrink", 1.0), ("grow", QUARTER)):
            self.register_buffer(name, torch.full((1, 1, 1, 1), value), persistent=False)

    def _mean(self, x: Tensor) -> Tensor:
        if not self.pooled:
            return x.mean((-1, -2), keepdim=True)
        while max(x.shape[-2:]) > 1:
            x = functional.avg_pool2d(x, tuple(_window(side) for side in x.shape[-2:]))
        return x


def _window(side: int) -> int:
    """The largest divisor of ``side`` up to 16, or the smallest above it: equal windows, so that a mean of means is the mean."""
    divisors = [k for k in range(1, side + 1) if side % k == 0]
    return max((k for k in divisors if 1 < k <= 16), default=next((k for k in divisors if k > 1), 1))


class ExplicitLayerNorm(ExplicitNorm):
    """Layer normalisation over the last axis as mean, subtract, multiply, rsqrt. Source: Ba et al., arXiv 1607.06450, eq. 3.

    Tokens go to the batch axis, so that to reduce the last two axes needs no transposition, whichever way round an engine holds images.
    """

    def __init__(self, norm: nn.LayerNorm) -> None:
        super().__init__(norm)

    def forward(self, x: Tensor) -> Tensor:
        rows = x.reshape(-1, 1, 1, x.shape[-1])
        centred = rows - rows.mean((-1, -2), keepdim=True)
        small = centred * self.shrink
        scaled = (centred * self.inverse_deviation(small * small)).reshape(x.shape)
        return scaled * self.weight + self.bias


class SplitGEGLU(nn.Module):
    """GEGLU with its one projection split in two, so that no engine has to cut a tensor. Source: Shazeer, arXiv 2002.05202."""

    def __init__(self, geglu: GEGLU) -> None:
        super().__init__()
        self.value, self.gate = _halves(geglu.proj)
        self.gelu: nn.Module = nn.GELU()

    def forward(self, x: Tensor) -> Tensor:
        return self.value(x) * self.gelu(self.gate(x))


class SubpixelUpsample(nn.Module):
    """Nearest ×2 followed by a 3×3 convolution, as four 2×2 convolutions on the small image and a pixel shuffle.

    Each output pixel of the pair sees only 2×2 distinct inputs, so the four phases' kernels are sums of the 3×3 kernel's taps: 4/9 of the products,
    and no resize op. Equivalent to "sub-pixel convolution" of Shi et al., arXiv 1609.07009, sec. 3, with weights given in closed form.

    The shuffle is spelled in four axes at most, which is what GPU delegates take: two transpositions that move one axis each, first for columns, then for rows.
    """

    def __init__(self, conv: nn.Conv2d) -> None:
        super().__init__()
        self.phases = nn.ModuleList(_phase(conv, row, column) for row in (0, 1) for column in (0, 1))

    def forward(self, x: Tensor, output_size: Any = None, *args: Any, **kwargs: Any) -> Tensor:
        _, _, h, w = x.shape
        phases = torch.cat(self.convolved(x), 1)
        c = phases.shape[1] // 4
        rows = phases.reshape(2, 2, c * h, w).permute(0, 2, 3, 1).reshape(2, c, h, 2 * w)
        return rows.permute(1, 2, 0, 3).reshape(1, c, 2 * h, 2 * w)

    def convolved(self, x: Tensor) -> list[Tensor]:
        """Returns the four phases' outputs: row 0 column 0, row 0 column 1, row 1 column 0, row 1 column 1."""
        # Phase (row, column) reads its pixel and the neighbour above or below, left or right: zeros are padded on that side only.
        pads = [(1 - column, column, 1 - row, row) for row in (0, 1) for column in (0, 1)]
        return [phase(functional.pad(x, pad)) for phase, pad in zip(self.phases, pads, strict=True)]


class ChannelsLastUpsample(SubpixelUpsample):
    """:class:`SubpixelUpsample` for engines that hold channels last, where neighbours in a row are neighbours in memory: concatenations alone."""

    def __init__(self, upsample: SubpixelUpsample) -> None:
        nn.Module.__init__(self)
        self.phases = upsample.phases

    def forward(self, x: Tensor, output_size: Any = None, *args: Any, **kwargs: Any) -> Tensor:
        _, _, h, w = x.shape
        phases = self.convolved(x)
        c = phases[0].shape[1]
        rows = [torch.cat(phases[k : k + 2], 1).permute(0, 2, 3, 1).reshape(1, h, 2 * w, c) for k in (0, 2)]
        return torch.cat(rows, 2).reshape(1, 2 * h, 2 * w, c).permute(0, 3, 1, 2)


class ExplicitAttention(nn.Module):
    """Multi-head attention as two batched products around a softmax, on (heads, tokens, width): every engine's fastest spelling.

    The scale 1/sqrt(width) is folded into the query projection. Source: Vaswani et al., arXiv 1706.03762, eq. 1.
    """

    def __init__(self, query: nn.Linear, key: nn.Linear, value: nn.Linear, out: nn.Linear, heads: int, scale: float) -> None:
        super().__init__()
        self.query, self.key, self.value, self.out = _scaled(query, scale), key, value, out
        self.heads = heads

    def attend(self, x: Tensor, context: Tensor) -> Tensor:
        """x (1, tokens, features), context (1, context tokens, features) → (1, tokens, features)."""
        query = self._split(self.query(x)).transpose(0, 1)
        key = self._split(self.key(context)).permute(1, 2, 0)
        value = self._split(self.value(context)).transpose(0, 1)
        attended = torch.bmm(torch.softmax(torch.bmm(query, key), -1), value)
        return self.out(attended.transpose(0, 1).reshape(1, x.shape[1], -1))

    def _split(self, x: Tensor) -> Tensor:
        return x.reshape(x.shape[1], self.heads, -1)


class ExplicitUNetAttention(ExplicitAttention):
    """Stands for diffusers' ``Attention``."""

    def forward(self, hidden_states: Tensor, encoder_hidden_states: Tensor | None = None, **_: Any) -> Tensor:
        return self.attend(hidden_states, hidden_states if encoder_hidden_states is None else encoder_hidden_states)


class ExplicitDinoAttention(ExplicitAttention):
    """Stands for transformers' ``Dinov2Attention``."""

    def forward(self, hidden_states: Tensor, attention_mask: Tensor | None = None, **_: Any) -> tuple[Tensor, None]:
        return self.attend(hidden_states, hidden_states), None


class BakedEmbeddings(nn.Module):
    """DINOv2's embeddings at one image size: class and register tokens are one constant, position embeddings another."""

    def __init__(self, backbone: Dinov2Model | Dinov2WithRegistersModel, side: int) -> None:
        super().__init__()
        embeddings, hidden = backbone.embeddings, backbone.config.hidden_size
        self.patch_embeddings = embeddings.patch_embeddings
        patches = (side // backbone.config.patch_size) ** 2
        position = embeddings.interpolate_pos_encoding(torch.zeros(1, patches + 1, hidden), side, side)
        prefix = [embeddings.cls_token + position[:, :1]]
        if isinstance(backbone, Dinov2WithRegistersModel):
            prefix.append(embeddings.register_tokens)
        self.prefix, self.position = frozen(torch.cat(prefix, 1)), frozen(position[:, 1:])

    def forward(self, pixel_values: Tensor, bool_masked_pos: Tensor | None = None) -> Tensor:
        patches = self.patch_embeddings.projection(pixel_values)
        patches = patches.reshape(1, patches.shape[1], -1).transpose(1, 2)
        return torch.cat([self.prefix, patches + self.position], 1)


class Centred(nn.Module):
    """A resize of an RGB image in [0, 1] that gives values around zero, because its rows add up to one.

    A GPU in half precision adds up a patch convolution's hundreds of products in half precision. Of an image that is all above zero the sum passes values that
    are far from where it ends: 43 dB of a small encoder, where centred values leave 57.
    """

    def __init__(self, resize: nn.Module) -> None:
        super().__init__()
        self.resize = resize
        self.register_buffer("middle", torch.full((1, 1, 1, 1), MIDDLE), persistent=False)

    def forward(self, image: Tensor) -> Tensor:
        return self.resize(image - self.middle)


class ExplicitSiLU(nn.Module):
    """x · sigmoid(x): what SiLU decomposes to, without the detour through float32 that the decomposition takes in half precision."""

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.sigmoid(x)


class SigmoidGELU(nn.Module):
    """GELU as x · sigmoid(x · P(x²)), for half precision, where XNNPACK has no GELU.

    P is a minimax fit of the logit of the normal distribution function over |x| ≤ 8: largest error 2.6e-5, a tenth of half precision's own step at 1.
    """

    def __init__(self) -> None:
        super().__init__()
        for name, value in (("c0", 1.5950105507921268), ("c1", 0.07401603997084144), ("c2", -0.0007038047878454235), ("limit", 64.0)):
            self.register_buffer(name, torch.full((1, 1, 1), value), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        # Beyond |x| = 8 the sigmoid is 0 or 1 in half precision; the bound keeps the polynomial from turning round there.
        square = torch.minimum(x * x, self.limit)
        return x * torch.sigmoid(x * (self.c0 + square * (self.c1 + square * self.c2)))


class TimelessUNet(nn.Module):
    """A UNet whose timestep has been folded away, run from its first convolution."""

    def __init__(self, unet: nn.Module) -> None:
        super().__init__()
        self.config = unet.config
        for name in ("conv_in", "down_blocks", "mid_block", "up_blocks", "conv_norm_out", "conv_act", "conv_out"):
            setattr(self, name, getattr(unet, name))

    def forward(self, sample: Tensor, timestep: Tensor, encoder_hidden_states: Tensor, return_dict: bool = False) -> tuple[Tensor]:
        return (unet_with_embedding(self, sample, None, encoder_hidden_states),)  # type: ignore[arg-type]


class UnscaledResnet(nn.Module):
    """diffusers' ``ResnetBlock2D`` without time embedding, resampling or the division by an output scale of one."""

    def __init__(self, block: ResnetBlock2D) -> None:
        super().__init__()
        self.norm1, self.conv1, self.norm2, self.conv2 = block.norm1, block.conv1, block.norm2, block.conv2
        self.nonlinearity, self.conv_shortcut = block.nonlinearity, block.conv_shortcut

    def forward(self, x: Tensor, temb: Tensor | None = None, *args: Any, **kwargs: Any) -> Tensor:
        hidden = self.conv1(self.nonlinearity(self.norm1(x)))
        hidden = self.conv2(self.nonlinearity(self.norm2(hidden)))
        return (x if self.conv_shortcut is None else self.conv_shortcut(x)) + hidden


def frozen(tensor: Tensor) -> nn.Parameter:
    """A contiguous parameter that is not trained."""
    return nn.Parameter(tensor.detach().contiguous(), requires_grad=False)


def _scaled(linear: nn.Linear, scale: float) -> nn.Linear:
    return _linear(linear.weight * scale, None if linear.bias is None else linear.bias * scale)


def _halves(linear: nn.Linear) -> tuple[nn.Linear, nn.Linear]:
    half = linear.out_features // 2
    bias = linear.bias
    return _linear(linear.weight[:half], None if bias is None else bias[:half]), _linear(
        linear.weight[half:], None if bias is None else bias[half:]
    )


def _linear(weight: Tensor, bias: Tensor | None) -> nn.Linear:
    linear = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None, device="meta")
    linear.weight = frozen(weight)
    if bias is not None:
        linear.bias = frozen(bias)
    return linear


def _phase(conv: nn.Conv2d, row: int, column: int) -> nn.Conv2d:
    """The 2×2 convolution that gives output pixels (2i + row, 2j + column): taps that fall on the same input pixel are added."""
    weight = conv.weight
    weight = torch.stack(
        (weight[:, :, 0], weight[:, :, 1] + weight[:, :, 2]) if row == 0 else (weight[:, :, 0] + weight[:, :, 1], weight[:, :, 2]), 2
    )
    first, middle, last = weight.unbind(3)
    weight = torch.stack((first, middle + last) if column == 0 else (first + middle, last), 3)
    phase = nn.Conv2d(conv.in_channels, conv.out_channels, 2, bias=conv.bias is not None, device="meta")
    phase.weight = frozen(weight)
    if conv.bias is not None:
        phase.bias = conv.bias
    return phase
