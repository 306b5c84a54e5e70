"""Operations of the evaluator against coremltools' own value inference and against torch."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from mil_programs import evaluated, inferred

modest = settings(max_examples=8, deadline=None)
seeds = st.integers(0, 2**31)
shapes = st.lists(st.integers(1, 4), min_size=1, max_size=4).map(tuple)


def normal(shape, seed=0, scale=1.0):
    return (np.random.default_rng(seed).standard_normal(shape) * scale).astype(np.float32)


def close(got, want, tolerance=1e-5):
    got, want = np.asarray(got), np.asarray(want)
    assert got.shape == want.shape
    np.testing.assert_allclose(got, want, rtol=tolerance, atol=tolerance)


UNARY = (
    "abs", "atan", "ceil", "cos", "cosh", "erf", "exp", "exp2", "floor", "relu", "relu6", "round", "sigmoid", "sign",
    "sin", "sinh", "softplus", "softsign", "square", "tan", "tanh",
)  # fmt: skip


@pytest.mark.parametrize("operation", UNARY)
@modest
@given(shape=shapes, seed=seeds)
def test_unary(operation, shape, seed):
    x = normal(shape, seed)
    close(evaluated(operation, x=x), inferred(operation, x=x), 1e-4 if operation == "tan" else 1e-5)


@pytest.mark.parametrize("operation", ["acos", "asin", "sqrt", "rsqrt", "log", "inverse", "atanh"])
@modest
@given(shape=shapes, seed=seeds)
def test_unary_of_a_part_of_the_line(operation, shape, seed):
    x = np.random.default_rng(seed).uniform(0.05, 0.95, shape).astype(np.float32)
    close(evaluated(operation, x=x), inferred(operation, x=x))


@pytest.mark.parametrize(
    "operation",
    ["add", "sub", "mul", "maximum", "minimum", "equal", "less", "less_equal", "greater", "greater_equal", "not_equal", "real_div"],
)
@modest
@given(shape=shapes, seed=seeds, data=st.data())
def test_binary_with_broadcast(operation, shape, seed, data):
    other = tuple(data.draw(st.sampled_from([1, size])) for size in shape)[data.draw(st.integers(0, len(shape) - 1)) :]
    x, y = normal(shape, seed), normal(other, seed + 1)
    close(evaluated(operation, x=x, y=y), inferred(operation, x=x, y=y))


@pytest.mark.parametrize("operation", ["floor_div", "mod", "pow"])
@modest
@given(shape=shapes, seed=seeds)
def test_binary_of_positive_numbers(operation, shape, seed):
    random = np.random.default_rng(seed)
    x, y = (random.uniform(0.5, 3, shape).astype(np.float32) for _ in range(2))
    close(evaluated(operation, x=x, y=y), inferred(operation, x=x, y=y))


@pytest.mark.parametrize("operation", ["max", "mean", "min", "prod", "sum", "l1_norm", "l2_norm", "sum_square", "log_sum_exp"])
@modest
@given(shape=shapes, seed=seeds, data=st.data())
def test_reductions(operation, shape, seed, data):
    axes = data.draw(st.lists(st.integers(0, len(shape) - 1), min_size=1, max_size=len(shape), unique=True))
    keep = data.draw(st.booleans())
    x, name = normal(shape, seed), f"reduce_{operation}"
    want = inferred(name, x=x, axes=axes, keep_dims=keep)
    close(evaluated(name, x=x, axes=axes, keep_dims=keep), np.asarray(want), 1e-4)


@modest
@given(shape=shapes, seed=seeds, data=st.data())
def test_shapes(shape, seed, data):
    x, rank = normal(shape, seed), len(shape)
    perm = data.draw(st.permutations(range(rank)))
    axis = data.draw(st.integers(-rank, rank - 1))
    reps = data.draw(st.lists(st.integers(1, 3), min_size=rank, max_size=rank))
    for name, arguments in {
        "transpose": {"perm": perm},
        "expand_dims": {"axes": [axis]},
        "tile": {"reps": reps},
        "reverse": {"axes": [axis]},
        "reshape": {"shape": [-1]},
        "cumsum": {"axis": axis % rank},
        "softmax": {"axis": axis},
    }.items():
        close(evaluated(name, x=x, **arguments), inferred(name, x=x, **arguments))
    for name in ("concat", "stack"):
        close(evaluated(name, values=[x, x + 1], axis=axis % rank), inferred(name, values=[x, x + 1], axis=axis % rank))


@modest
@given(shape=shapes, seed=seeds, data=st.data())
def test_slices(shape, seed, data):
    x = normal(shape, seed)
    begin = [data.draw(st.integers(0, size - 1)) for size in shape]
    end = [data.draw(st.integers(start + 1, size)) for start, size in zip(begin, shape, strict=True)]
    stride = [data.draw(st.integers(1, 2)) for _ in shape]
    by_index = {"x": x, "begin": begin, "end": end, "stride": stride}
    close(evaluated("slice_by_index", **by_index), inferred("slice_by_index", **by_index))
    by_size = {"x": x, "begin": begin, "size": [last - first for first, last in zip(begin, end, strict=True)]}
    close(evaluated("slice_by_size", **by_size), inferred("slice_by_size", **by_size))


@modest
@given(shape=shapes, seed=seeds, data=st.data())
def test_indexing(shape, seed, data):
    x, axis = normal(shape, seed), data.draw(st.integers(0, len(shape) - 1))
    random = np.random.default_rng(seed)
    index = random.integers(-shape[axis], shape[axis], 3).astype(np.int32)
    close(evaluated("gather", x=x, indices=index, axis=axis), inferred("gather", x=x, indices=index, axis=axis))
    along = random.integers(0, shape[axis], shape).astype(np.int32)
    want = inferred("gather_along_axis", x=x, indices=along, axis=axis)
    close(evaluated("gather_along_axis", x=x, indices=along, axis=axis), want)
    close(evaluated("topk", x=x, k=1, axis=axis)[0], np.max(x, axis, keepdims=True))


@modest
@given(seed=seeds, stride=st.integers(1, 2), groups=st.sampled_from([1, 2]), dilation=st.integers(1, 2), pad=st.integers(0, 2))
def test_convolutions(seed, stride, groups, dilation, pad):
    x, weight, bias = normal((2, 4, 9, 8), seed), normal((6, 4 // groups, 3, 3), seed + 1), normal((6,), seed + 2)
    arguments = {"strides": [stride] * 2, "dilations": [dilation] * 2, "groups": groups, "pad_type": "custom", "pad": [pad] * 4}
    want = torch.nn.functional.conv2d(*map(torch.tensor, (x, weight, bias)), stride, pad, dilation, groups)
    close(evaluated("conv", x=x, weight=weight, bias=bias, **arguments), want, 1e-4)
    weight = normal((4, 6 // groups, 3, 3), seed)
    want = torch.nn.functional.conv_transpose2d(torch.tensor(x), torch.tensor(weight), None, stride, pad, 0, groups, dilation)
    close(evaluated("conv_transpose", x=x, weight=weight, **arguments), want, 1e-4)


@modest
@given(seed=seeds, rows=st.integers(1, 5), inner=st.integers(1, 5), columns=st.integers(1, 5), flip=st.booleans())
def test_products(seed, rows, inner, columns, flip):
    x, y, bias = normal((2, rows, inner), seed), normal((2, inner, columns), seed + 1), normal((columns,), seed)
    got = evaluated("matmul", x=x.swapaxes(1, 2) if flip else x, y=y, transpose_x=flip, transpose_y=False)
    close(got, x @ y)
    close(evaluated("linear", x=x, weight=y[0].T.copy(), bias=bias), x @ y[0] + bias)
    q, k = normal((2, 1, 4, inner), seed), normal((2, 1, rows, inner), seed + 2)
    v = normal((2, 1, rows, 3), seed + 3)
    want = torch.nn.functional.scaled_dot_product_attention(*map(torch.tensor, (q, k, v)))
    close(evaluated("scaled_dot_product_attention", 18, query=q, key=k, value=v), want)


@modest
@given(seed=seeds, epsilon=st.sampled_from([1e-5, 1e-2]))
def test_norms_and_pools(seed, epsilon):
    x, gamma, beta = normal((2, 4, 6, 6), seed), normal((4,), seed + 1), normal((4,), seed + 2)
    t, g, b = map(torch.tensor, (x, gamma, beta))
    functional = torch.nn.functional
    want = functional.instance_norm(t, None, None, g, b, eps=epsilon)
    close(evaluated("instance_norm", x=x, gamma=gamma, beta=beta, epsilon=epsilon), want, 1e-4)
    rows = x.reshape(2, 36, 4)
    want = functional.layer_norm(torch.tensor(rows), (4,), g, b, epsilon)
    close(evaluated("layer_norm", x=rows, axes=[-1], gamma=gamma, beta=beta, epsilon=epsilon), want, 1e-4)
    variance = np.abs(gamma) + 0.1
    want = functional.batch_norm(t, b, torch.tensor(variance), g, b, False, 0.0, epsilon)
    close(evaluated("batch_norm", x=x, mean=beta, variance=variance, gamma=gamma, beta=beta, epsilon=epsilon), want, 1e-4)
    arguments = {"x": x, "kernel_sizes": [2, 2], "strides": [2, 2], "pad_type": "valid"}
    close(evaluated("max_pool", **arguments), functional.max_pool2d(t, 2))
    close(evaluated("avg_pool", **arguments), functional.avg_pool2d(t, 2))


@pytest.mark.parametrize(("mode", "approximate"), [("EXACT", "none"), ("TANH_APPROXIMATION", "tanh")])
def test_gelu(mode, approximate):
    x = normal((64,), 3, 3)
    close(evaluated("gelu", x=x, mode=mode), torch.nn.functional.gelu(torch.tensor(x), approximate=approximate))


@modest
@given(seed=seeds, height=st.integers(2, 6), width=st.integers(2, 6), scale=st.integers(2, 3))
def test_resizes(seed, height, width, scale):
    x = normal((1, 2, height, width), seed)
    t = torch.tensor(x)
    for align in (False, True):
        got = evaluated("upsample_bilinear", x=x, scale_factor_height=float(scale), scale_factor_width=float(scale), align_corners=align)
        close(got, torch.nn.functional.interpolate(t, scale_factor=scale, mode="bilinear", align_corners=align), 1e-4)
    got = evaluated("upsample_nearest_neighbor", x=x, scale_factor_height=scale, scale_factor_width=scale)
    close(got, torch.nn.functional.interpolate(t, scale_factor=scale, mode="nearest"))
    wide = normal((1, 2 * scale**2, height, width), seed)
    close(evaluated("pixel_shuffle", x=wide, upscale_factor=scale), torch.nn.functional.pixel_shuffle(torch.tensor(wide), scale))


@modest
@given(seed=seeds)
def test_lstm(seed):
    torch.manual_seed(seed)
    lstm = torch.nn.LSTM(3, 4)
    x = normal((5, 2, 3), seed)
    order = [0, 1, 3, 2]  # torch keeps i f g o, MIL i f o g
    weights = [getattr(lstm, name).detach().reshape(4, 4, -1)[order].reshape(16, -1).numpy() for name in ("weight_ih_l0", "weight_hh_l0")]
    bias = (lstm.bias_ih_l0 + lstm.bias_hh_l0).detach().reshape(4, 4)[order].reshape(16).numpy()
    zero = np.zeros((2, 4), np.float32)
    got = evaluated(
        "lstm", x=x, initial_h=zero, initial_c=zero, weight_ih=weights[0], weight_hh=weights[1], bias=bias, output_sequence=True
    )
    with torch.no_grad():
        want, (_, cell) = lstm(torch.tensor(x))
    close(got[0], want)
    close(got[2], cell[0])


@modest
@given(seed=seeds, kind=st.sampled_from(["int8", "uint8"]))
def test_quantize(seed, kind):
    x, scale = normal((4, 5), seed), np.float32(0.05)
    zero = np.array(3, kind)
    quantized = evaluated("quantize", 17, input=x, scale=scale, zero_point=zero, output_dtype=kind)
    limits = np.iinfo(kind)
    np.testing.assert_array_equal(quantized, np.clip(np.round(x / scale) + 3, limits.min, limits.max).astype(kind))
    got = evaluated("dequantize", 17, input=quantized, scale=scale, zero_point=zero)
    close(got, (quantized.astype(np.float32) - 3) * scale)
