from __future__ import annotations

import os
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest

from edge_runtime.errors import EdgeError
from edge_runtime.inference import InferenceError, ModelStore, Session, run
from edge_runtime.ota import smoke
from edge_runtime.ota.slots import Slots
from edge_runtime.ota.state import SlotState
from tests.support.models import scale_model, sha256, smoke_inputs, write

X = np.ones((2, 4), np.float32)


def serve(root: Path, model: bytes, name: str = "digits") -> str:
    """Put bytes into a slot and switch to it."""
    slots, digest = Slots(root), sha256(model)
    write(slots.file(name, digest), model)
    slots.store(SlotState(slot=name, digest=digest))
    return digest


def test_the_served_version_answers_and_is_swapped_while_it_runs(tmp_path: Path) -> None:
    store = ModelStore(tmp_path)
    for factor in (2.0, 3.0, 2.0):
        digest = serve(tmp_path, scale_model(factor))
        answer = store.infer("digits", X)
        assert answer.sha256 == digest
        np.testing.assert_array_equal(answer.outputs["y"], X * factor)
    stats = store.stats("digits")
    assert (stats.calls, stats.errors) == (3, 0)
    assert stats.p50_ms is not None


def test_many_threads_see_one_version_or_the_other(tmp_path: Path) -> None:
    store = ModelStore(tmp_path)
    factors = {serve(tmp_path, scale_model(factor)): factor for factor in (3.0, 2.0)}
    stop, wrong = threading.Event(), []

    def ask() -> None:
        while not stop.is_set():
            answer = store.infer("digits", X)
            if not np.array_equal(answer.outputs["y"], X * factors[answer.sha256]):
                wrong.append(answer)

    threads = [threading.Thread(target=ask) for _ in range(4)]
    for thread in threads:
        thread.start()
    for factor in (3.0, 2.0) * 5:
        serve(tmp_path, scale_model(factor))
        store.infer("digits", X)
    stop.set()
    for thread in threads:
        thread.join(10)
    assert wrong == []


def test_a_version_that_does_not_load_leaves_the_old_one_answering(tmp_path: Path) -> None:
    store = ModelStore(tmp_path)
    good = serve(tmp_path, scale_model(2.0))
    store.infer("digits", X)
    serve(tmp_path, b"no model")
    assert store.infer("digits", X).sha256 == good
    assert store.stats("digits").errors == 1
    with pytest.raises(InferenceError) as raised:
        store.probe("digits")
    assert raised.value.reason == "bad_model"


def test_bytes_that_changed_on_disk_are_not_loaded(tmp_path: Path) -> None:
    digest = serve(tmp_path, scale_model(2.0))
    Slots(tmp_path).file("digits", digest).write_bytes(scale_model(3.0))
    with pytest.raises(InferenceError, match="has digest") as raised:
        ModelStore(tmp_path).infer("digits", X)
    assert raised.value.reason == "wrong_digest"


@pytest.mark.parametrize(
    ("inputs", "reason"),
    [
        (np.ones((2, 5), np.float32), "inference_failed"),
        ({"z": X}, "bad_input"),
        ([["a", "b", "c", "d"]], "bad_input"),
        ([[1, 2], [3]], "bad_input"),
    ],
)
def test_bad_input_is_named_and_counted(tmp_path: Path, inputs: object, reason: str) -> None:
    serve(tmp_path, scale_model(2.0))
    store = ModelStore(tmp_path)
    with pytest.raises(InferenceError) as raised:
        store.infer("digits", inputs)  # type: ignore[arg-type]
    assert raised.value.reason == reason
    assert store.stats("digits").errors == 1


def test_nothing_installed_says_what_to_do(tmp_path: Path) -> None:
    store = ModelStore(tmp_path)
    with pytest.raises(EdgeError, match="roll one out") as raised:
        store.infer("digits", X)
    assert raised.value.reason == "not_installed"
    serve(tmp_path, scale_model(2.0))
    store.infer("digits", X)
    Slots(tmp_path).store(SlotState(slot="digits"))
    with pytest.raises(EdgeError, match="no version of it is installed"):
        store.infer("digits", X)


def test_the_job_answers_in_plain_values(tmp_path: Path) -> None:
    digest = serve(tmp_path, scale_model(2.0))
    answer = run({"slots": str(tmp_path), "model": "digits", "inputs": {"x": [[1, 2, 3, 4]]}})
    assert (answer["outputs"], answer["sha256"], answer["errors"]) == ({"y": [[2, 4, 6, 8]]}, digest, 0)
    probed = run({"slots": str(tmp_path), "model": "digits", "probe": True})
    assert probed["sha256"] == digest


def smoke_params(folder: Path, model: bytes, inputs: bytes | None) -> dict[str, object]:
    return {
        "model": str(write(folder / "model.onnx", model)),
        "sha256": sha256(model),
        "inputs": str(write(folder / "smoke", inputs)) if inputs else None,
        "inputs_sha256": sha256(inputs) if inputs else None,
        "tolerance": 1e-4,
    }


def test_the_smoke_test_compares_with_what_was_signed(tmp_path: Path) -> None:
    good = smoke.run(smoke_params(tmp_path, scale_model(2.0), smoke_inputs(2.0)))
    assert (good["passed"], good["samples"], good["max_error"]) == (True, 3, 0.0)
    assert good["p50_ms"] > 0
    bad = smoke.run(smoke_params(tmp_path, scale_model(3.0), smoke_inputs(2.0)))
    assert (bad["passed"], bad["max_error"]) == (False, 11.0)


def test_an_output_that_is_not_a_number_fails_the_smoke_test(tmp_path: Path) -> None:
    result = smoke.run(smoke_params(tmp_path, scale_model(float("nan")), smoke_inputs(2.0)))
    assert (result["passed"], result["max_error"]) == (False, None)


def test_without_inputs_the_model_must_at_least_run(tmp_path: Path) -> None:
    assert smoke.run(smoke_params(tmp_path, scale_model(2.0), None))["passed"] is True
    with pytest.raises(InferenceError, match="load model"):
        smoke.run(smoke_params(tmp_path, b"no model", None))


@pytest.mark.parametrize(
    ("inputs", "digest", "reason"),
    [(b"junk", None, "bad_smoke"), (smoke_inputs(2.0), "0" * 64, "wrong_digest")],
)
def test_smoke_inputs_must_be_the_signed_ones(tmp_path: Path, inputs: bytes, digest: str | None, reason: str) -> None:
    params = smoke_params(tmp_path, scale_model(2.0), inputs)
    with pytest.raises(EdgeError) as raised:
        smoke.run(params | ({"inputs_sha256": digest} if digest else {}))
    assert raised.value.reason == reason


def test_a_session_fills_open_dimensions_with_one(tmp_path: Path) -> None:
    model = scale_model(2.0)
    session = Session(write(tmp_path / "m.onnx", model), sha256(model))
    assert {name: value.shape for name, value in session.zeros().items()} == {"x": (1, 4)}


def test_onnx_runtime_reports_to_nobody(tmp_path: Path) -> None:
    write(tmp_path / "model.onnx", scale_model(2.0))
    code = (
        "import edge_runtime, onnxruntime\n"
        "onnxruntime.InferenceSession('model.onnx', providers=['CPUExecutionProvider'])\n"
    )
    # Its opt-out, and what else silences it on a builder, must come from us alone.
    quiet = ("ORT_DISABLE_TELEMETRY", "ORT_RUNNING_UNIT_TESTS", "CI", "XDG_CACHE_HOME")
    environment = {name: value for name, value in os.environ.items() if name not in quiet}
    home = tmp_path / "home"
    home.mkdir()
    root = Path(__file__).parents[2]
    subprocess.run(
        [sys.executable, "-c", code],
        check=True,
        cwd=tmp_path,
        env=environment | {"HOME": str(home), "TMPDIR": str(home), "PYTHONPATH": str(root)},
    )
    assert list(home.rglob("*")) == []
