"""Rewrites for the NPU: the same numbers on real tiles, in other ops."""

import pytest
import torch
from f2i_quantize.models import checkpoint
from f2i_quantize.models.config import PixelCodecConfig, ProjectorConfig
from f2i_quantize.models.parts import PixelCodec, Resize, TokenProjector, average_tokens
from f2i_quantize.models.whole_model import build_components
from f2i_quantize.rewrites.capture import REWRITE_LIMIT, relative_l2, rewrite
from f2i_quantize.rewrites.hexagon_modules import AveragingProjector, ConvolvedPixelCodec, ShuffledUpsample, SidedResize
from f2i_quantize.rewrites.hexagon_rewrites import HEXAGON
from f2i_quantize.rewrites.phone_modules import SubpixelUpsample
from f2i_quantize.rewrites.transposed_shuffle import TransposedPixelCodec, TransposedUpsample, shuffle_kernels, transposed_shuffle
from f2i_runtime.photo.samples import sample_tiles
from torch import nn


@pytest.mark.parametrize("component", ["feature_encoder", "unet"])
def test_rewrites_are_exact_on_real_tiles_and_recorded(component):
    graph = build_components(checkpoint.load("tiny"), 32)
    tiles = []
    for _, tile in sample_tiles(32, 2):
        tensors = graph.run(torch.from_numpy(tile))
        tiles.append([tensors[name] for name in graph.components[component].inputs])
    found = rewrite(graph.components[component].module, HEXAGON, f"{component}/hexagon", tiles)
    names = {record.name for record in found.records}
    expected = {"sided_resize"} if component == "feature_encoder" else {"sided_resize", "shuffled_upsample", "convolved_unshuffle"}
    assert expected <= names
    assert all(record.relative_l2 <= REWRITE_LIMIT for record in found.records)
    assert not any(isinstance(m, (Resize, SubpixelUpsample)) for m in found.module.modules())
    assert any(isinstance(m, (Resize, nn.Upsample)) for m in graph.components[component].module.modules())  # the original keeps its own


@pytest.mark.parametrize("bias", [True, False])
def test_one_convolution_and_a_shuffle_are_four_phases(bias):
    torch.manual_seed(1)
    upsample = SubpixelUpsample(nn.Conv2d(3, 5, 3, padding=1, bias=bias))
    x = torch.randn(1, 3, 7, 6)
    with torch.no_grad():
        assert relative_l2(upsample(x), ShuffledUpsample(upsample)(x)) <= 1e-6


@pytest.mark.parametrize(("side", "wanted"), [(32, 64), (32, 28)])
def test_a_resize_from_both_sides_is_the_same(side, wanted):
    resize, x = Resize(side, wanted), torch.rand(1, 3, side, side)
    assert relative_l2(resize(x), SidedResize(resize)(x)) <= 1e-6


@pytest.mark.parametrize("factor", [1, 2])
def test_a_codec_by_convolution_shuffles_as_torch_does(factor):
    codec = PixelCodec(PixelCodecConfig(factor=factor))
    convolved, image = ConvolvedPixelCodec(codec), torch.rand(1, 3, 8, 8)
    latent = torch.rand(1, 3 * (2 * factor) ** 2, 4, 4)
    assert torch.equal(codec.encode(image), convolved.encode(image)) and torch.equal(codec.decode(latent), convolved.decode(latent))


@pytest.mark.parametrize("keep_class_token", [True, False])
def test_a_product_averages_tokens_as_a_mean_does(keep_class_token):
    torch.manual_seed(2)
    projector, tokens = TokenProjector(ProjectorConfig(in_features=8, context_features=6)), torch.randn(1, 17, 8)
    patches = average_tokens(tokens[:, 1:], 2)
    means = torch.cat([tokens[:, :1], patches], 1) if keep_class_token else patches
    given = tokens if keep_class_token else tokens[:, 1:]
    with torch.no_grad():
        assert relative_l2(projector(means), AveragingProjector(projector, 16, 2, keep_class_token)(given)) <= 1e-6


@pytest.mark.parametrize(("channels", "factor"), [(1, 2), (5, 2), (3, 4)])
def test_a_transposed_convolution_of_ones_is_a_pixel_shuffle_to_the_bit(channels, factor):
    x = torch.randn(1, channels * factor**2, 5, 4, generator=torch.Generator().manual_seed(3))
    got = nn.functional.conv_transpose2d(x, shuffle_kernels(channels, factor), stride=factor)
    assert torch.equal(got, nn.functional.pixel_shuffle(x, factor))


def test_shuffles_of_upsamplings_and_codecs_become_transposed_convolutions():
    torch.manual_seed(1)
    upsample, codec = SubpixelUpsample(nn.Conv2d(3, 5, 3, padding=1)), PixelCodec(PixelCodecConfig(factor=2))
    model = nn.ModuleDict({"up": ShuffledUpsample(upsample), "codec": ConvolvedPixelCodec(codec)})
    assert (
        transposed_shuffle(model) == 2 and isinstance(model["up"], TransposedUpsample) and isinstance(model["codec"], TransposedPixelCodec)
    )
    x, latent = torch.randn(1, 3, 7, 6), torch.rand(1, 48, 4, 4)
    with torch.no_grad():
        assert relative_l2(upsample(x), model["up"](x)) <= 1e-6
        assert torch.equal(model["codec"].decode(latent), codec.decode(latent))
