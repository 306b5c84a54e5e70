"""Skip concatenations cut in two: the same numbers in float, a scale for each half in int8."""

import pytest
import torch
from f2i_export.lowering import load_converter
from f2i_quantize.models import checkpoint
from f2i_quantize.models.whole_model import build_components
from f2i_quantize.ptq import quantized
from f2i_quantize.ptq.quantize_job import QuantizeOptions, quantize_checkpoint
from f2i_quantize.ptq.recipe import load_recipe, parse_recipe
from f2i_quantize.rewrites.capture import rewrite
from f2i_quantize.rewrites.passes import rewritten, with_split_skips
from f2i_quantize.rewrites.split_skips import SplitSkipResnet
from f2i_runtime.errors import UsageError
from f2i_runtime.photo.samples import sample_tiles
from f2i_runtime.targets import TARGETS
from model_zoo import latent_model, small_kl

RECIPE = parse_recipe(load_recipe("w8a8").model_dump(mode="json") | {"tiles": 4, "split_skips": True}, "r")


def tiny_inputs():
    graph = build_components(checkpoint.load("tiny"), 32)
    [(_, tile)] = sample_tiles(32, 1)
    tensors = graph.run(torch.from_numpy(tile))
    return graph.components["unet"].module, [tensors["lr"], tensors["context"]]


@pytest.mark.parametrize("target", TARGETS)
def test_split_is_exact_on_every_target_and_recorded(target):
    module, inputs = tiny_inputs()
    found = rewrite(module, with_split_skips(load_converter(target).rewrites), f"unet/{target}", [inputs])
    record = next(r for r in found.records if r.name == "split_skip_concatenation")
    assert record.count == 4 and record.relative_l2 <= 1e-5
    assert not any(r.name == record.name for r in rewrite(module, load_converter(target).rewrites, f"unet/{target}", [inputs]).records)


def test_norms_are_cut_where_no_group_lies_across_the_border():
    module, _ = tiny_inputs()
    blocks = [m for m in rewritten(module, split_skips=True).modules() if isinstance(m, SplitSkipResnet)]
    # Of 4 groups: 16 + 16 channels have 8 per group and 8 + 8 have 4, 16 + 8 have 6.
    assert [block.whole for block in blocks] == [False, True, True, False]


def test_each_half_has_a_scale_of_its_own(tmp_path):
    quantize_checkpoint(QuantizeOptions("tiny", RECIPE, tmp_path / "tiny"))
    found = quantized.read(tmp_path / "tiny", "w8a8")
    assert found.recipe.split_skips and found.record()["split_skips"]
    halves = [name for name in found.rules if name.endswith("resnets.1.conv1.main")]
    assert halves
    for name in halves:
        scales = [float(found.tensors[f"{n}.input_scale"]) for n in (name, name.replace(".main", ".skip"))]
        assert scales[0] != scales[1]
    module, inputs = tiny_inputs()
    split = rewritten(module, split_skips=True)
    expected = quantized.simulated(split, inputs, "unet", found).run(inputs)
    with torch.no_grad():
        torch.testing.assert_close(quantized.qdq_graph(split, inputs, "unet", found, fold=True)(*inputs), expected, rtol=0, atol=0)


def test_a_model_without_such_a_concatenation_is_refused(tmp_path):
    checkpoint.save(latent_model(small_kl(), steps=2), tmp_path / "steps")
    with pytest.raises(UsageError, match="has no skip concatenation that can be split"):
        quantize_checkpoint(QuantizeOptions(str(tmp_path / "steps"), RECIPE, tmp_path / "out"))
