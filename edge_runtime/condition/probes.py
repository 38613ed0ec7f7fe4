"""Readings of the machine: /sys and /proc first, psutil where they are silent. What cannot be read is absent, never 0.

Environment variables override them, for tests, demonstrations and machines whose sensors lie: `BATTERY` (percent),
`CHARGING` (true or false), `THERMAL` (degrees C, or cool, normal, warm, hot, critical), `MEMORY_GB`, `NETWORK_TYPE`,
`NETWORK_METERED` (true or false), and `CAUSEWAY_PROFILE` (battery_save, thermal_throttle, low_ram, performance,
balanced), which sets several at once.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import psutil

from edge_runtime.errors import ConfigError

MB = 1 << 20
_POWER = Path("/sys/class/power_supply")
_THERMAL = Path("/sys/class/thermal")
_BACKLIGHT = Path("/sys/class/backlight")
_ROUTES = Path("/proc/net/route")
_PLAUSIBLE_C = (-40.0, 150.0)
_WORDS_C = {"cool": 35.0, "normal": 45.0, "warm": 60.0, "hot": 75.0, "critical": 90.0}
CELLULAR = frozenset({"cellular", "2g", "3g", "4g", "5g", "lte"})
NETWORKS = CELLULAR | {"ethernet", "wifi", "vpn", "unknown"}
_PREFIXES = (("wl", "wifi"), ("ww", "cellular"), ("ppp", "cellular"), ("rmnet", "cellular"), ("e", "ethernet"))
_VIRTUAL = ("tun", "wg", "tap")


@dataclass(frozen=True, slots=True)
class Power:
    """The battery, if there is one."""

    percent: float | None = None
    charging: bool | None = None
    discharging: bool | None = None


@dataclass(frozen=True, slots=True)
class Memory:
    """RAM in MB."""

    total_mb: int
    free_mb: int


@dataclass(frozen=True, slots=True)
class Overrides:
    """What the environment says instead of the sensors."""

    percent: float | None = None
    charging: bool | None = None
    temp_c: float | None = None
    memory_mb: int | None = None
    network: str | None = None
    metered: bool | None = None


PROFILES = {
    "battery_save": Overrides(percent=15.0, charging=False),
    "thermal_throttle": Overrides(temp_c=85.0),
    "low_ram": Overrides(memory_mb=512),
    "performance": Overrides(percent=100.0, charging=True, temp_c=40.0),
    "balanced": Overrides(percent=70.0, charging=False, temp_c=50.0),
}


def read_overrides(environment: Mapping[str, str]) -> Overrides:
    """Parse the environment; a variable of its own beats the profile.

    Raises:
        ConfigError: naming the variable whose value makes no sense.
    """
    name = _word(environment, "CAUSEWAY_PROFILE", PROFILES)
    base = PROFILES.get(name, Overrides())
    percent = _number(environment, "BATTERY", 0, 100, "%")
    memory = _number(environment, "MEMORY_GB", 0.01, 1 << 14)
    network = _word(environment, "NETWORK_TYPE", NETWORKS)
    temp = _temperature(environment)
    charging = _truth(environment, "CHARGING")
    return Overrides(
        percent=base.percent if percent is None else percent,
        charging=base.charging if charging is None else charging,
        temp_c=base.temp_c if temp is None else temp,
        memory_mb=base.memory_mb if memory is None else int(memory * 1024),
        network=network or base.network,
        metered=_truth(environment, "NETWORK_METERED"),
    )


class Probes:
    """Reads the machine now, overrides applied."""

    def __init__(self, overrides: Overrides | None = None) -> None:
        self._overrides = overrides if overrides is not None else read_overrides(os.environ)
        # The first reading of psutil covers no time and says 0.
        psutil.cpu_percent(None)
        self._first_cpu = True

    def power(self) -> Power:
        """Battery and charger. "Charging" is charging and not discharging."""
        found = _battery()
        over = self._overrides
        charging = found.charging if over.charging is None else over.charging
        discharging = found.discharging if over.charging is None else not over.charging
        percent = found.percent if over.percent is None else over.percent
        return Power() if percent is None else Power(percent, charging, discharging)

    def temp_c(self) -> float | None:
        """The hottest plausible sensor."""
        return self._overrides.temp_c if self._overrides.temp_c is not None else _hottest()

    def memory(self) -> Memory:
        """RAM, total and available; an override keeps the share that is free."""
        memory = psutil.virtual_memory()
        total = self._overrides.memory_mb or memory.total // MB
        return Memory(total, int(total * memory.available / memory.total))

    def cpu_ratio(self) -> float | None:
        """Share of the CPU in use since the last reading; absent the first time."""
        percent = psutil.cpu_percent(None)
        first, self._first_cpu = self._first_cpu, False
        return None if first else min(1.0, percent / 100)

    def load(self) -> float | None:
        """Load average over a minute."""
        try:
            return os.getloadavg()[0]
        except OSError:
            return None

    def disk_free_mb(self, folder: Path) -> int | None:
        """Free space where the state folder is."""
        try:
            return shutil.disk_usage(folder).free // MB
        except OSError:
            return None

    def network(self) -> str:
        """Kind of the link that the default route uses."""
        return self._overrides.network or _network_kind()

    def metered(self) -> bool:
        """Whether its bytes cost: as the environment says, else if it is a cellular one."""
        return self.network() in CELLULAR if self._overrides.metered is None else self._overrides.metered

    def screen_on(self) -> bool | None:
        """Whether a panel is lit; absent without one."""
        states = [value for path in _BACKLIGHT.glob("*/bl_power") if (value := _text(path)) is not None]
        return any(state == "0" for state in states) if states else None


def _battery() -> Power:
    for supply in sorted(_POWER.glob("*")) if _POWER.is_dir() else []:
        if _text(supply / "type") != "Battery" or _text(supply / "scope") == "Device":
            continue
        percent, status = _float(supply / "capacity"), _text(supply / "status")
        if percent is not None:
            known = status in {"Charging", "Discharging", "Full", "Not charging"}
            charging = status == "Charging" if known else None
            return Power(min(100.0, max(0.0, percent)), charging, status == "Discharging" if known else None)
    return Power()


def _hottest() -> float | None:
    readings = [
        value / 1_000
        for path in (_THERMAL.glob("thermal_zone*/temp") if _THERMAL.is_dir() else [])
        if (value := _float(path)) is not None
    ]
    if not readings and hasattr(psutil, "sensors_temperatures"):
        readings = [entry.current for entries in psutil.sensors_temperatures().values() for entry in entries]
    low, high = _PLAUSIBLE_C
    # A zone without a sensor reads 0.
    plausible = [value for value in readings if low < value < high and value != 0]
    return max(plausible, default=None)


def _network_kind() -> str:
    routes = (_text(_ROUTES) or "").splitlines()[1:]
    for fields in (line.split() for line in routes):
        if len(fields) > 7 and fields[1] == "00000000" and fields[7] == "00000000":
            name = fields[0]
            if name.startswith(_VIRTUAL):
                return "vpn"
            if (Path("/sys/class/net") / name / "wireless").is_dir():
                return "wifi"
            return next((kind for prefix, kind in _PREFIXES if name.startswith(prefix)), "unknown")
    return "unknown"


def _text(path: Path) -> str | None:
    try:
        return path.read_text().strip()
    except (OSError, UnicodeDecodeError):
        return None


def _float(path: Path) -> float | None:
    try:
        return float(_text(path) or "")
    except ValueError:
        return None


def _word(environment: Mapping[str, str], name: str, known: Iterable[str]) -> str:
    text = environment.get(name, "").strip().lower()
    if text and text not in known:
        raise ConfigError(f"read {name}={environment[name]!r}: expected one of {', '.join(sorted(known))}")
    return text


def _number(
    environment: Mapping[str, str], name: str, low: float, high: float, unit: str = "", words: Iterable[str] = ()
) -> float | None:
    text = environment.get(name, "").strip().removesuffix(unit)
    if not text:
        return None
    try:
        value = float(text)
    except ValueError:
        value = float("nan")
    if not low <= value <= high:
        or_word = f", or one of {', '.join(words)}" if words else ""
        raise ConfigError(f"read {name}={environment[name]!r}: expected a number from {low:g} to {high:g}{or_word}")
    return value


def _truth(environment: Mapping[str, str], name: str) -> bool | None:
    text = environment.get(name, "").strip().lower()
    if not text:
        return None
    if text in {"1", "true", "yes", "on"}:
        return True
    if text in {"0", "false", "no", "off"}:
        return False
    raise ConfigError(f"read {name}={environment[name]!r}: expected true or false")


def _temperature(environment: Mapping[str, str]) -> float | None:
    word = environment.get("THERMAL", "").strip().lower()
    return _WORDS_C[word] if word in _WORDS_C else _number(environment, "THERMAL", -40, 150, words=_WORDS_C)
