"""``f2i doctor``: what this machine can export and run."""

from __future__ import annotations

from f2i.tables import doctor_table
from f2i.terminal import JsonFlag, out, print_json, print_table


def doctor(as_json: JsonFlag = False) -> None:
    """Show what this machine can export and run: versions, memory and engines.

    Example: `f2i doctor`
    """
    from f2i_bench.host.machine import examine

    data = examine()
    if as_json:
        print_json(data)
        return
    print_table(doctor_table(data))
    out.print(", ".join(f"{k} {v}" for k, v in data["versions"].items() if v))
