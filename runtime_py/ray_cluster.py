"""A Ray cluster for the length of a block: joined or started, quiet, and let go of in any case."""

from __future__ import annotations

import contextlib
import importlib.util
from collections.abc import Iterator
from typing import Any

from runtime_py.errors import MissingPackageError, ToolchainError

LOCAL = "local"
"""Address that starts Ray on this machine."""


@contextlib.contextmanager
def ray_cluster(address: str, *, command: str, target: str) -> Iterator[Any]:
    """The ``ray`` module, connected to ``address``.

    ``command``, ``target``: for messages. Raises MissingPackageError without Ray, ToolchainError when the cluster gives up, inside the block too.
    """
    if importlib.util.find_spec("ray") is None:
        raise MissingPackageError("ray", f"{command} --ray", "ray")
    import ray

    try:
        if not ray.is_initialized():
            ray.init(address=None if address == LOCAL else address, log_to_driver=False, include_dashboard=False, logging_level="ERROR")
        yield ray
    except (ray.exceptions.RayError, ConnectionError) as e:
        reason = str(e).strip().splitlines()[-1]
        raise ToolchainError(component="all components", target=target, stage="ray", reason=reason) from e
    finally:
        ray.shutdown()
