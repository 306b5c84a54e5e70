"""The engines' own benchmark programs, played by their Python packages: the same options, the same words (as in their sources), real results.

native_stand_in.py PROGRAM [the program's own arguments]
"""

import argparse
import sys
import time
from pathlib import Path

import numpy as np


def timed(run, times):
    spent = []
    for _ in range(times):
        began = time.perf_counter()
        run()
        spent.append(time.perf_counter() - began)
    return spent


def executor_runner(arguments):
    from executorch.runtime import Runtime

    parser = argparse.ArgumentParser(allow_abbrev=False)
    for name in ("model_path", "inputs", "output_file"):
        parser.add_argument(f"--{name}")
    for name in ("num_executions", "cpu_threads"):
        parser.add_argument(f"--{name}", type=int)
    o = parser.parse_args(arguments)
    import torch

    method = Runtime.get().load_program(o.model_path).load_method("forward")
    feeds = []
    for k, file in enumerate(o.inputs.split(",")):
        shape = method.metadata.input_tensor_meta(k).sizes()
        feeds.append(torch.from_numpy(np.fromfile(file, "<f4").reshape(shape)))
    sys.stderr.write("I 00:00:00.000001 executorch:executor_runner.cpp:500] Model loaded in 12.500000 ms.\n")
    output = []
    spent = timed(lambda: output.append(method.execute(feeds)[0].numpy().copy()), o.num_executions)
    for k, seconds in enumerate(spent):
        sys.stderr.write(
            f"I 00:00:00.1 executorch:executor_runner.cpp:600] Iteration {k + 1} of {o.num_executions}: {1e3 * seconds:f} ms\n"
        )
    sys.stderr.write(
        f"I 00:00:00.2 executorch:executor_runner.cpp:610] Model executed successfully {len(spent)} time(s) in {sum(spent) * 1e3:f} ms.\n"
    )
    output[-1].tofile(f"{o.output_file}-0.bin")


def benchmark_model(arguments):
    from ai_edge_litert.interpreter import Interpreter

    parser = argparse.ArgumentParser(allow_abbrev=False)
    for name in ("graph", "input_layer", "input_layer_shape", "input_layer_value_files", "output_filepath", "report_peak_memory_footprint"):
        parser.add_argument(f"--{name}")
    for name in ("num_threads", "warmup_runs", "num_runs"):
        parser.add_argument(f"--{name}", type=int)
    for name in ("min_secs", "warmup_min_secs"):
        parser.add_argument(f"--{name}", type=float)
    for name in ("use_npu", "use_cpu", "use_gpu", "require_full_delegation", "dispatch_library_path"):
        parser.add_argument(f"--{name}")
    o = parser.parse_args(arguments)
    if o.use_npu == "true":
        npu_benchmark_model(o)
        return
    interpreter = Interpreter(model_path=o.graph, num_threads=o.num_threads)
    interpreter.allocate_tensors()
    files = dict(pair.replace("::", "\0").split(":") for pair in o.input_layer_value_files.split(","))
    for detail, name, shape in zip(interpreter.get_input_details(), o.input_layer.split(","), o.input_layer_shape.split(":"), strict=True):
        wanted = tuple(int(n) for n in shape.split(","))
        assert (detail["name"], tuple(detail["shape"])) == (name, wanted)
        interpreter.set_tensor(detail["index"], np.fromfile(files[name.replace(":", "\0")], "<f4").reshape(wanted))
    warm = [1e6 * s for s in timed(interpreter.invoke, o.warmup_runs)]
    runs = [1e6 * s for s in timed(interpreter.invoke, o.num_runs)]
    for some in (warm, runs):
        statistics = f"min={min(some):.0f} max={max(some):.0f} avg={np.mean(some):g} std={np.std(some):.0f}"
        sys.stdout.write(
            f"INFO: count={len(some)} first={some[0]:.0f} curr={some[-1]:.0f} {statistics} p5={min(some):.0f} median={np.median(some):.0f} p95=9\n"
        )
    sys.stdout.write(f"INFO: Inference timings in us: Init: 5579, First inference: {warm[0]:.0f}, Warmup (avg): {np.mean(warm):g}, ")
    sys.stdout.write(f"Inference (avg): {np.mean(runs):g}\n")
    sys.stdout.write("INFO: Overall peak memory footprint (MB) via periodic monitoring: 109.832\n")
    interpreter.get_tensor(interpreter.get_output_details()[0]["index"]).tofile(o.output_filepath)


def onnxruntime_perf_test(arguments):
    import onnx
    import onnxruntime
    from onnx import numpy_helper

    parser = argparse.ArgumentParser(allow_abbrev=False)
    for flag, kind in (("-e", str), ("-i", str), ("-m", str), ("-r", int), ("-x", int)):
        parser.add_argument(flag, type=kind)
    parser.add_argument("model", type=Path)
    parser.add_argument("result", type=Path)
    o = parser.parse_args(arguments)
    assert o.m == "times" and (o.e == "cpu" or (o.e, o.i.split()[0]) == ("qnn", "backend_path|libQnnHtp.so"))
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = o.x
    session = Once("onnx", o.model) if o.e == "qnn" else onnxruntime.InferenceSession(str(o.model), options)
    tensors = [onnx.load_tensor(file) for file in sorted((o.model.parent / "test_data_set_0").glob("input_*.pb"))]
    feeds = {t.name: numpy_helper.to_array(t) for t in tensors}
    first = timed(lambda: session.run(None, feeds), 1)[0]
    spent = timed(lambda: session.run(None, feeds), o.r)
    with o.result.open("a") as file:
        for k, seconds in enumerate(spent):
            file.write(f"{o.model.parent.name},{seconds:g},114634752,382,{k}\n")
    sys.stdout.write(
        f"Session creation time cost: 0.217932 s\nFirst inference time cost: {first * 1e3:.0f} ms\nTotal inference requests: {o.r}\n"
    )


class Once:
    """An artifact for the NPU on the simulator, which is asked once for an input: it takes seconds, and keeps its results."""

    def __init__(self, target, path):
        self.target, self.path = target, path

    def run(self, _, feeds):
        from f2i_runtime.engines.session import open_session
        from f2i_runtime.targets import Variant

        shapes = {name: array.shape for name, array in feeds.items()}
        session = open_session(Variant(self.target, "fp16", "hexagon_sm8750"), Path(self.path), component="c", inputs=shapes)
        output = session.run(feeds)
        session.close()
        return [output]


def npu_benchmark_model(o):
    from f2i_runtime.hexagon.dispatch_file import read_dispatch

    assert (o.use_cpu, o.require_full_delegation, o.dispatch_library_path) == ("false", "true", ".")
    rng = np.random.default_rng(0)
    feeds = {name: rng.random(shape, np.float32) for name, shape in sorted(read_dispatch(Path(o.graph)).inputs.items())}
    first, *runs = [1e3 * s for s in timed(lambda: Once("tflite", o.graph).run(None, feeds), 1 + o.num_runs)]
    sys.stdout.write(f"INFO: [benchmark_litert_model.h:75] Model initialization: 3.25 ms\nINFO: Warmup (first):       {first:.2f} ms\n")
    sys.stdout.write(f"INFO: [benchmark_litert_model.h:81] Inference (avg):      {np.mean(runs):.2f} ms ({len(runs)} runs)\n")
    sys.stdout.write("INFO: [benchmark_litert_model.h:109] Peak memory:          41.50 MB\n")


def qnn_executor_runner(arguments):
    from executorch.runtime import Runtime

    parser = argparse.ArgumentParser(allow_abbrev=False)
    for name in ("model_path", "input_list_path", "output_folder_path"):
        parser.add_argument(f"--{name}")
    for name in ("iteration", "warm_up"):
        parser.add_argument(f"--{name}", type=int)
    o = parser.parse_args(arguments)
    program = Runtime.get().load_program(o.model_path)
    [method] = program.method_names
    [line] = Path(o.input_list_path).read_text().splitlines()
    feeds = {}
    for k, file in enumerate(line.split(" ")):
        feeds[f"input{k}"] = np.fromfile(file, "<f4").reshape(program.metadata(method).input_tensor_meta(k).sizes())
    head = "I 00:00:00.000123 executorch:qnn_executor_runner.cpp:"
    sys.stderr.write(f"{head}240] Using method {method}\n{head}298] Method loaded.\n")
    output = []
    spent = timed(lambda: output.append(Once("executorch", o.model_path).run(None, feeds)[0]), o.iteration)
    sys.stderr.write(f"{head}447] {len(spent)} inference took {sum(spent) * 1e3:f} ms, avg {np.mean(spent) * 1e3:f} ms\n")
    sys.stderr.write(f"{head}496] 1 inference took {sum(spent) * 1e3:f} ms, avg {sum(spent) * 1e3:f} ms\n")
    output[-1].tofile(f"{o.output_folder_path}/output_0_0.raw")


if __name__ == "__main__":
    programs = {f.__name__: f for f in (executor_runner, benchmark_model, onnxruntime_perf_test, qnn_executor_runner)}
    programs[sys.argv[1]](sys.argv[2:])
