"""Whether a file is a model that devices can load, asked of what they load it with."""

from __future__ import annotations

from pathlib import Path

from services.kit.errors import SettingsError


def check_model(path: Path) -> None:
    """Load a model once.

    Raises:
        SettingsError: if ONNX Runtime cannot load it.
    """
    import onnxruntime  # noqa: PLC0415 - half a second that other commands do not need

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4  # failures come as exceptions
    try:
        onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # the runtime's exceptions have no common base of their own
        # C++ signatures stand before the reason, which comes last.
        reason = str(error).strip().splitlines()[0].rpartition(" : ")[2].rpartition(") ")[2].lstrip(", ")
        older = "; save it with an older `ir_version`" if "IR version" in reason else "; name an ONNX file"
        raise SettingsError(
            f"stage {path}: ONNX Runtime cannot load it, so no device could ({reason[-300:]}){older}"
        ) from error
