"""The record of a target that only the tests have. With ``to_eager.py`` and ``run_eager.py`` it is all that a target consists of."""

from f2i_runtime.targets import Adapter, Target

TARGET = Target(
    name="eager",
    label="Eager Six",
    colour=("#0a6b7c", "#7fe3f5"),
    suffix=".eager",
    engine=Adapter("run_eager", "torch", "model"),
    converter=Adapter("to_eager", "torch", "model"),
    distributions=("torch",),
    engine_distributions=("torch",),
    precisions=("fp32",),
    accelerators=("cpu", "twin"),
)
