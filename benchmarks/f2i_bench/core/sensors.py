"""Temperature and clocks of a Linux machine, read from sysfs as phones have it too; and the gate that waits for a cool one."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

SYSFS = Path("/sys")
PLAUSIBLE = (-30.0, 150.0)
"""The plausible range in degrees Celsius. Drivers report absent sensors as -274 or 0x7fffffff."""
HEADROOM = 5.0
"""How many degrees above the starting temperature a round may begin when no limit is given."""


@dataclass(frozen=True)
class Sensors:
    """Readers under one sysfs; tests give a folder of their own."""

    root: Path = SYSFS

    def celsius(self) -> float | None:
        """The hottest thermal zone; None when there is none."""
        values = []
        for file in self.root.glob("class/thermal/thermal_zone*/temp"):
            value = _integer(file)
            if value is not None and PLAUSIBLE[0] <= value / 1e3 <= PLAUSIBLE[1]:
                values.append(value / 1e3)
        return max(values, default=None)

    def megahertz(self) -> float | None:
        """The fastest core's present clock; None when the kernel does not say."""
        clocks = [_integer(f) for f in self.root.glob("devices/system/cpu/cpu[0-9]*/cpufreq/scaling_cur_freq")]
        return max((c / 1e3 for c in clocks if c is not None), default=None)


class Thermometer(Protocol):
    """The sensors that the gate reads."""

    def celsius(self) -> float | None:
        """Returns the temperature in degrees Celsius, or None where there is no sensor."""
        ...


@dataclass
class TemperatureGate:
    """Holds a round back until the machine is below ``limit`` degrees Celsius; at most ``seconds`` in all per wait.

    ``limit`` None is set from the first reading and :data:`HEADROOM`. Without a sensor nothing waits.
    """

    sensors: Thermometer
    limit: float | None
    seconds: float
    waited: float = 0.0
    gave_up: int = 0
    sleep: Callable[[float], None] = time.sleep

    def wait(self) -> None:
        """Returns when it is cool enough or the time is up; ``gave_up`` counts the latter."""
        now = self.sensors.celsius()
        if now is None:
            return
        if self.limit is None:
            self.limit = now + HEADROOM
        spent = 0.0
        while now is not None and now > self.limit:
            if spent >= self.seconds:
                self.gave_up += 1
                return
            self.sleep(1.0)
            spent += 1.0
            self.waited += 1.0
            now = self.sensors.celsius()

    def note(self) -> str:
        """Returns what the gate did, for the report."""
        if self.limit is None:
            return "no temperature sensor: rounds were not held back"
        gave = f", gave up {self.gave_up} times" if self.gave_up else ""
        return f"temperature gate {self.limit:.0f} °C: waited {self.waited:.0f} s{gave}"


def _integer(file: Path) -> int | None:
    try:
        return int(file.read_text())
    except (OSError, ValueError):  # zones of switched-off parts fail to read
        return None
