"""A Ray cluster for the length of a block: joined or started, quiet, and let go of in any case."""

from __future__ import annotations

import contextlib
import importlib.util
from collections.abc import Iterator
from typing import Any

from f2i_runtime.errors import MissingPackageError, ToolchainError

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
    import ray.exceptions

    try:
        if not ray.is_initialized():
            _join(ray, address, target)
        yield ray
    except (ray.exceptions.RayError, ConnectionError) as e:
        raise _failure(e, target) from e
    finally:
        ray.shutdown()


def _join(ray: Any, address: str, target: str) -> None:
    try:
        ray.init(address=None if address == LOCAL else address, log_to_driver=False, include_dashboard=False, logging_level="ERROR")
    except Exception as e:  # Ray raises bare Exception when its own processes do not come up in time
        raise _failure(e, target) from e


def _failure(error: Exception, target: str) -> ToolchainError:
    reason = str(error).strip().splitlines()[-1:] or [type(error).__name__]
    return ToolchainError(component="all components", target=target, stage="ray", reason=reason[0])
