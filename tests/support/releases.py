"""A release of a tiny model, published with the command line as a release manager does."""

from __future__ import annotations

from pathlib import Path

from typer.testing import CliRunner, Result

from causeway.cli.main import app
from tests.support.models import scale_model, smoke_inputs
from tests.support.platform import LivePlatform

FACTOR = 2.0


def causeway(live: LivePlatform, *words: object) -> Result:
    """One command of the operator, in this process."""
    return CliRunner().invoke(app, [*map(str, words), "--state", str(live.state.root)])


def publish(live: LivePlatform, folder: Path, model: str = "scale", version: str = "1.0.0") -> None:
    """Stage, sign and publish a model that multiplies, with its smoke test; the depot must run."""
    onnx, smoke, file = folder / f"{model}.onnx", folder / f"{model}.safetensors", folder / f"{model}.release.json"
    onnx.write_bytes(scale_model(FACTOR))
    smoke.write_bytes(smoke_inputs(FACTOR))
    staged = causeway(
        live, "release", "stage", onnx, "--model", model, "--version", version, "--smoke", smoke, "-o", file
    )
    assert staged.exit_code == 0, staged.output
    keys = [word for name in ("targets", "models") for word in ("--key", str(live.state.offline_keys / f"{name}.pem"))]
    signed = CliRunner().invoke(app, ["release", "sign", str(file), *keys])
    assert signed.exit_code == 0, signed.output
    published = causeway(live, "release", "publish", file)
    assert published.exit_code == 0, published.output
