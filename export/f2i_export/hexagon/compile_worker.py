"""The child process of a compilation: ``python -m f2i_export.hexagon.compile_worker REQUEST.json RESULT.json``.

It quantizes the graph where a precision of integers is asked, compiles it for the chip, and leaves the compiler's profile. It is a process of its own
because Qualcomm's compiler can crash, hang or take all memory. Everything printed goes to the log that the parent chose.
"""

from __future__ import annotations

import json
import sys
import traceback
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from f2i_runtime.child_process import die_with_parent
from f2i_runtime.errors import F2IError
from f2i_runtime.hexagon.chips import FLOAT16
from f2i_runtime.hexagon.qnn_provider import PROVIDER, register_provider

NO_ROOM_CODE = "1002"
NO_ROOM = "; the compiler found no way to lay the graph out on this chip: it is too large for it, or in a form that needs too much memory; try a smaller tile"
"""What QNN's error of that number means where no op is refused (measured: graphs with tensors of six axes)."""
PRODUCTS = ("FullyConnected", "MatMul")
STORED, INT8 = 4, (0x308, 0x408)
"""QNN's numbers (``QnnTypes.h``) for a stored tensor, and for integers of eight bits, signed and unsigned."""


def compile_graph(model: Path, devices: list[Any], options: Mapping[str, str], strict: bool, context: Path | None = None) -> Any:
    """Compiles a graph. ``strict``: an op that the NPU does not take is an error; otherwise it stays on the CPU. Returns the session.

    ``context``: where to write the graph of one op that names the context binary, which is written beside it.
    """
    import onnxruntime

    session = onnxruntime.SessionOptions()
    session.log_severity_level = 3
    session.intra_op_num_threads = 1
    session.add_session_config_entry("session.disable_cpu_ep_fallback", "1" if strict else "0")
    session.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
    if context:
        for entry, value in {"enable": "1", "file_path": str(context), "embed_mode": "0"}.items():
            session.add_session_config_entry(f"ep.context_{entry}", value)
    session.add_provider_for_devices(devices, dict(options))
    return onnxruntime.InferenceSession(str(model), session)


def integer_layers(folder: Path) -> int:
    """Returns the number of convolutions and products with a stored weight in integers, in the graphs that the provider described in ``folder``."""
    count = 0
    for path in folder.glob("*.json"):
        described = json.loads(path.read_text()).get("graph", {})
        tensors = described.get("tensors", {})
        for node in described.get("nodes", {}).values():
            weights = [tensors[name] for name in node["input_names"][1:2] if "Conv" in node["type"] or node["type"] in PRODUCTS]
            count += sum(weight["type"] == STORED and weight["data_type"] in INT8 for weight in weights)
    return count


def refused_ops(model: Path, devices: list[Any], options: Mapping[str, str]) -> str:
    """Returns the ops that the NPU refuses, with how often each occurs: ``NonZero ×1``. Empty where that cannot be found out."""
    try:
        session = compile_graph(model, devices, options, strict=False)
        parts = [part for part in session.get_provider_graph_assignment_info() if part.ep_name != PROVIDER]
        ops = Counter(node.op_type for part in parts for node in part.get_nodes())
    except Exception:  # the second attempt only explains the first; its own failure is in the log
        traceback.print_exc()
        return ""
    return ", ".join(f"{op} ×{count}" for op, count in sorted(ops.items()))


def work(request: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """Does what the request says; returns the result, with ``error`` where the compiler refused."""
    model = Path(request["model"])
    if request["precision"] != FLOAT16 and not request["quantized"]:
        from f2i_export.hexagon.to_qdq import quantize_for_npu

        model = quantize_for_npu(model, folder / f"{request['precision']}{model.suffix}", request["precision"], request["sample"])
    devices = register_provider(request["provider"])
    profile = folder / "profile.csv"
    options = dict(request["options"])
    context = folder / f"context{model.suffix}" if request["context"] else None
    if context:
        options |= {"dump_json_qnn_graph": "1", "json_qnn_graph_dir": str(folder)}
    else:
        options |= {"profiling_level": "detailed", "profiling_file_path": str(profile)}
    try:
        session = compile_graph(model, devices, options, strict=True, context=context)
    except Exception as e:  # ONNX Runtime raises its own classes and RuntimeError alike
        traceback.print_exc()
        refused = refused_ops(model, devices, request["options"])
        reason = (
            f"the NPU refuses these ops: {refused}" if refused else f"{type(e).__name__}: {e}{NO_ROOM if NO_ROOM_CODE in str(e) else ''}"
        )
        return {"error": reason}
    if context:
        parts = [part for part in session.get_provider_graph_assignment_info() if part.ep_name == PROVIDER]
        return {
            "context": context.name,
            "ops": sum(len(part.get_nodes()) for part in parts),
            "partitions": len(parts),
            "integer_layers": integer_layers(folder),
        }
    return {"profile": profile.read_text(encoding="utf-8", errors="replace").splitlines() if profile.is_file() else []}


def main(arguments: list[str]) -> int:
    """Does one request and writes its result, complete or not at all."""
    request_file, result_file = Path(arguments[0]), Path(arguments[1])
    die_with_parent()
    try:
        result = work(json.loads(request_file.read_text()), result_file.parent)
    except F2IError as e:
        traceback.print_exc()
        result = {"error": str(e)}
    except Exception as e:  # the quantizer raises anything; the log has the whole story
        traceback.print_exc()
        result = {"error": f"{type(e).__name__}: {e}"}
    staging = result_file.with_suffix(".part")
    staging.write_text(json.dumps(result))
    staging.rename(result_file)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
