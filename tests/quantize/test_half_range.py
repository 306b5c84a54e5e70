"""Graphs that every accelerator takes: norms whose squares stay inside half precision, four axes at most, and the place of what does not."""

import pytest
import torch
from f2i_quantize.models.whole_model import Resize
from f2i_quantize.rewrites.graph_survey import spare_idle_shrinking, survey
from f2i_quantize.rewrites.phone_modules import (
    Centred,
    ChannelGroupNorm,
    ExplicitGroupNorm,
    ExplicitLayerNorm,
    ScaledGroupNorm,
    SubpixelUpsample,
)
from torch import nn
from torch.nn import functional


def group_norms(norm):
    explicit = ExplicitGroupNorm(norm)
    return [explicit, ChannelGroupNorm(explicit, pooled=False), ChannelGroupNorm(explicit, pooled=True), ScaledGroupNorm(explicit)]


def image(largest):
    torch.manual_seed(0)
    x = torch.randn(1, 8, 16, 16) * 20
    x[0, 3, 5, 5] = largest
    return x


@torch.no_grad()
def test_explicit_norms_are_the_norms():
    group, layer = nn.GroupNorm(4, 8, eps=1e-6), nn.LayerNorm(8, eps=1e-6)
    for norm in (group, layer):
        nn.init.normal_(norm.weight)
        nn.init.normal_(norm.bias)
    x = image(600.0)
    for found in group_norms(group):
        assert torch.allclose(found(x), group(x), atol=1e-5), type(found).__name__
    tokens = x.flatten(2).transpose(1, 2)
    assert torch.allclose(ExplicitLayerNorm(layer)(tokens), layer(tokens), atol=1e-5)


@torch.no_grad()
def test_norms_stay_inside_half_precision_and_without_their_scale_they_do_not():
    x, norm = image(600.0), nn.GroupNorm(4, 8, eps=1e-6)
    tokens, layer = x.flatten(2).transpose(1, 2), nn.LayerNorm(8, eps=1e-6)
    for found, given, expected in [*((n, x, norm(x)) for n in group_norms(norm)), (ExplicitLayerNorm(layer), tokens, layer(tokens))]:
        assert survey(found, [[given]]).fits_half, type(found).__name__
        if isinstance(found, ScaledGroupNorm):
            continue  # it divides by the largest magnitude instead
        assert (found.half()(given.half()).float() - expected).norm() / expected.norm() < 5e-3, type(found).__name__
        found.float()
        found.shrink, found.grow = torch.ones_like(found.shrink), found.grow / 64
        assert not survey(found, [[given]]).fits_half
        assert "leaves half precision, which ends at 65,504" in survey(found, [[given]]).findings()[0]


@torch.no_grad()
def test_values_are_made_smaller_only_where_their_squares_leave_half_precision():
    norm = nn.GroupNorm(4, 8, eps=1e-6)
    for largest, spared in ((600.0, 0), (40.0, 1)):
        found, x = ChannelGroupNorm(ExplicitGroupNorm(norm), pooled=True), image(0.0).clamp(-30, 30)
        x[0, 3, 5, 5] = largest
        assert spare_idle_shrinking([[x]])(nn.Sequential(found)) == spared and found.shrinks == (not spared)
        expected = norm(x)
        assert torch.allclose(found(x), expected, atol=1e-5)
        assert survey(found, [[x]]).fits_half
        assert (found.half()(x.half()).float() - expected).norm() / expected.norm() < 5e-3
        norm.float()


@torch.no_grad()
@pytest.mark.parametrize("eps", [1e-5, 1e-6])
def test_equal_values_are_no_division_by_zero_in_half_precision(eps):
    flat = torch.full((1, 8, 16, 16), 3.0).half()
    for found in group_norms(nn.GroupNorm(4, 8, eps=eps)):
        assert torch.isfinite(found.half()(flat)).all(), type(found).__name__
    assert torch.isfinite(ExplicitLayerNorm(nn.LayerNorm(8, eps=eps)).half()(flat[:, :, 0].transpose(1, 2))).all()


@torch.no_grad()
def test_an_upsampling_has_four_axes_and_the_place_of_five_is_named():
    torch.manual_seed(0)
    conv = nn.Conv2d(3, 5, 3, padding=1)
    x, found = torch.randn(1, 3, 6, 4), SubpixelUpsample(conv)
    assert torch.allclose(found(x), conv(functional.interpolate(x, scale_factor=2)), atol=1e-5)
    assert survey(found, [[x]]).deepest.value == 4 and survey(found, [[x]]).findings() == ()

    class SixAxes(nn.Module):
        def forward(self, x):
            phases = torch.cat(found.convolved(x), 1)
            return phases.reshape(2, 2, 5, 6, 4).permute(2, 3, 0, 4, 1).reshape(1, 5, 12, 8)

    (line,) = survey(nn.Sequential(nn.Identity(), SixAxes()), [[x]]).findings()
    assert line.endswith("in 1 has 5 axes; GPU delegates and NPUs take 4")


@torch.no_grad()
def test_a_centred_image_is_the_image_less_one_half():
    resize = Resize(16, 28)
    image = torch.rand(1, 3, 16, 16)
    assert torch.allclose(Centred(resize)(image), resize(image) - 0.5, atol=1e-6)


def test_what_is_not_a_number_is_the_largest():
    class Overflow(nn.Module):
        def forward(self, x):
            return (x * 1e20 * 1e30) - 1

    found = survey(nn.Sequential(Overflow()), [[torch.ones(1, 2)]])
    assert found.largest.where == "0" and found.largest.value == 1e30 and not found.fits_half
