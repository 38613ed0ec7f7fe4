"""The smoke test's file: safetensors with `input` and `expected`, float32 each, samples first."""

from __future__ import annotations

from pathlib import Path

from safetensors import SafetensorError, safe_open

from services.kit.errors import SettingsError

NAMES = ("input", "expected")


def check_smoke(path: Path) -> int:
    """Refuse a file that no device could use.

    Returns:
        How many samples it holds.

    Raises:
        SettingsError: naming what is wrong.
    """
    try:
        with safe_open(str(path), framework="numpy") as file:
            names = sorted(file.keys())
            if names != sorted(NAMES):
                raise SettingsError(f"read smoke test {path}: it holds {names}, wanted are {sorted(NAMES)}")
            slices = {name: file.get_slice(name) for name in NAMES}
            kinds = {name: str(part.get_dtype()) for name, part in slices.items()}
            counts = {name: (list(part.get_shape()) or [0])[0] for name, part in slices.items()}
    except (OSError, SafetensorError) as error:
        raise SettingsError(f"read smoke test {path}: {error}; write it with safetensors") from error
    if set(kinds.values()) != {"F32"}:
        raise SettingsError(f"read smoke test {path}: its tensors are {kinds}, wanted is float32")
    if counts["input"] != counts["expected"] or not counts["input"]:
        raise SettingsError(
            f"read smoke test {path}: {counts['input']} inputs and {counts['expected']} expected outputs"
        )
    return int(counts["input"])
