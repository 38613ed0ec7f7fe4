"""Inference with ONNX Runtime on the served version of each model, swapped while it runs. For workers and other hosts.

A host is any process on the device: it follows `state.json`, which one `stat` per call makes cheap. The resident agent
does not import this module.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from edge_runtime.errors import EdgeError, InstallError
from edge_runtime.ota.slots import Slots, digest_of

KEPT_LATENCIES = 256
MAX_THREADS = 2
_PREFERRED = ("CUDAExecutionProvider", "CPUExecutionProvider")
_DTYPES = {
    "tensor(float)": np.float32,
    "tensor(double)": np.float64,
    "tensor(float16)": np.float16,
    "tensor(int64)": np.int64,
    "tensor(int32)": np.int32,
    "tensor(uint8)": np.uint8,
    "tensor(int8)": np.int8,
    "tensor(bool)": np.bool_,
}

Array = NDArray[Any]


class InferenceError(EdgeError):
    """A model did not answer."""

    reason = "inference_failed"


@dataclass(frozen=True, slots=True)
class Answer:
    """Outputs by name, and which version gave them."""

    outputs: dict[str, Array]
    sha256: str
    took_ms: float


class Session:
    """One loaded model.

    Raises:
        InferenceError: `wrong_digest` if the file changed, `bad_model` if it does not load.
    """

    def __init__(self, path: Path, sha256: str) -> None:
        try:
            found, _ = digest_of(path)
        except OSError as error:
            raise InferenceError(f"load {path.name}: {error.strerror}", reason="bad_model") from error
        if found != sha256:
            raise InferenceError(f"load model {sha256[:12]}: the file has digest {found[:12]}", reason="wrong_digest")
        options = ort.SessionOptions()
        options.intra_op_num_threads = MAX_THREADS
        options.log_severity_level = 4  # failures come as exceptions
        providers = [name for name in _PREFERRED if name in ort.get_available_providers()]
        try:
            self._session = ort.InferenceSession(str(path), options, providers=providers)
        except Exception as error:  # the runtime's exceptions have no common base of their own
            raise InferenceError(f"load model {sha256[:12]}: {_first_line(error)}", reason="bad_model") from error
        self.sha256 = sha256
        self._inputs = {node.name: node for node in self._session.get_inputs()}
        self._outputs = [node.name for node in self._session.get_outputs()]

    def run(self, inputs: Array | Mapping[str, Any]) -> Answer:
        """Infer; a bare array is the first input. Arrays are cast to the declared types. Safe in many threads.

        Raises:
            InferenceError: `bad_input` or `inference_failed`.
        """
        named = inputs if isinstance(inputs, Mapping) else {next(iter(self._inputs)): inputs}
        if unknown := set(named) - set(self._inputs):
            raise InferenceError(
                f"infer: there is no input {', '.join(sorted(unknown))}; inputs are {', '.join(self._inputs)}",
                reason="bad_input",
            )
        try:
            feed = {name: np.ascontiguousarray(value, self._dtype(name)) for name, value in named.items()}
        except (TypeError, ValueError) as error:
            raise InferenceError(f"infer: {_first_line(error)}", reason="bad_input") from error
        began = time.perf_counter()
        try:
            outputs = self._session.run(self._outputs, feed)
        except Exception as error:  # see above
            raise InferenceError(f"infer: {_first_line(error)}") from error
        took_ms = (time.perf_counter() - began) * 1e3
        return Answer(dict(zip(self._outputs, outputs, strict=True)), self.sha256, took_ms)

    def zeros(self) -> dict[str, Array]:
        """Inputs of the declared shapes, 1 where a dimension is open."""
        return {
            name: np.zeros(
                [size if isinstance(size, int) and size > 0 else 1 for size in node.shape], self._dtype(name)
            )
            for name, node in self._inputs.items()
        }

    def _dtype(self, name: str) -> type[Any]:
        declared = self._inputs[name].type
        dtype = _DTYPES.get(declared)
        if dtype is None:
            raise InferenceError(f"infer: input {name} is {declared}, which is not supported", reason="bad_input")
        return dtype


@dataclass(frozen=True, slots=True)
class Stats:
    """How a model has answered since this host loaded it."""

    p50_ms: float | None
    calls: int
    errors: int


class ModelStore:
    """Serves every model of a device; thread-safe.

    Args:
        slots: `EdgeFolder.slots`.
    """

    def __init__(self, slots: Path) -> None:
        self._slots = Slots(slots)
        self._served: dict[str, _Served] = {}
        self._lock = threading.Lock()

    def infer(self, model: str, inputs: Array | Mapping[str, Any]) -> Answer:
        """Infer with the version that is served now.

        Raises:
            InferenceError: `not_installed`, `bad_input`, `bad_model`, `wrong_digest` or `inference_failed`.
        """
        served = self._entry(model)
        try:
            answer = served.current().run(inputs)
        except EdgeError:
            served.failed()
            raise
        served.answered(answer.took_ms)
        return answer

    def probe(self, model: str) -> Answer:
        """Load what is served now and run it once on zeros; does not count."""
        session = self._entry(model).current(strict=True)
        return session.run(session.zeros())

    def stats(self, model: str) -> Stats:
        """Latency and errors of a model in this host."""
        return self._entry(model).stats()

    def _entry(self, model: str) -> _Served:
        with self._lock:
            return self._served.setdefault(model, _Served(self._slots, model))


class _Served:
    """One model: the loaded session, and the state file that it was loaded for."""

    def __init__(self, slots: Slots, model: str) -> None:
        self._slots = slots
        self._model = model
        self._lock = threading.Lock()
        self._stamp: tuple[int, int] | None = None
        self._session: Session | None = None
        self._latencies: deque[float] = deque(maxlen=KEPT_LATENCIES)
        self._calls = 0
        self._errors = 0

    def current(self, *, strict: bool = False) -> Session:
        """The session of the served digest.

        If a new digest does not load, the old one goes on answering and an error is counted; `strict` raises instead.
        """
        with self._lock:
            stamp = self._look()
            if stamp is None:
                self._session, self._stamp = None, None
                raise self._absent()
            if stamp != self._stamp or strict:
                try:
                    self._session = self._loaded()
                except EdgeError:
                    if strict or self._session is None:
                        raise
                    self._errors += 1
                self._stamp = stamp
            if self._session is None:
                raise self._absent()
            return self._session

    def _look(self) -> tuple[int, int] | None:
        try:
            found = self._slots.state_file(self._model).stat()
        except FileNotFoundError:
            return None
        return found.st_mtime_ns, found.st_ino

    def _loaded(self) -> Session | None:
        digest = self._slots.load(self._model).digest
        if digest is None:
            return None
        if self._session is not None and self._session.sha256 == digest:
            return self._session
        self._latencies.clear()
        return Session(self._slots.file(self._model, digest), digest)

    def _absent(self) -> InstallError:
        return InstallError(
            f"infer with {self._model}: no version of it is installed; roll one out with `causeway rollout create`",
            reason="not_installed",
        )

    def answered(self, took_ms: float) -> None:
        with self._lock:
            self._calls += 1
            self._latencies.append(took_ms)

    def failed(self) -> None:
        with self._lock:
            self._errors += 1

    def stats(self) -> Stats:
        with self._lock:
            return Stats(median(self._latencies) if self._latencies else None, self._calls, self._errors)


_STORES: dict[str, ModelStore] = {}
"""One per slots folder, kept between jobs of a worker."""


def run(params: dict[str, Any]) -> dict[str, Any]:
    """Worker job `infer`.

    Args:
        params: `slots` (folder), `model`, and either `inputs` (nested lists for the first input, or an object of them
            by name) or `probe`: true, which runs the model once on zeros.

    Returns:
        `outputs` (nested lists by name; absent for a probe), `sha256` of the version that answered, `took_ms`,
        `p50_ms`, `errors`.

    Raises:
        InferenceError, InstallError: see `ModelStore.infer`.
    """
    store = _STORES.setdefault(params["slots"], ModelStore(Path(params["slots"])))
    model = str(params["model"])
    if params.get("probe"):
        answer = store.probe(model)
        return {"sha256": answer.sha256, "took_ms": answer.took_ms, "p50_ms": answer.took_ms, "errors": 0}
    answer = store.infer(model, params["inputs"])
    stats = store.stats(model)
    return {
        "outputs": {name: np.asarray(value).tolist() for name, value in answer.outputs.items()},
        "sha256": answer.sha256,
        "took_ms": answer.took_ms,
        "p50_ms": stats.p50_ms,
        "errors": stats.errors,
    }


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {error}".splitlines()[0][:300]
