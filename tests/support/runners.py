"""Runners that an owner could have installed, good and bad, for tests of the limits."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

from edge_runtime.tasks.runners import RunnerContext, Scalar, TaskError

Values = dict[str, Scalar]


def add(inputs: Values, context: RunnerContext) -> Values:
    sys.stdout.write("a runner may print\n")
    return {"sum": float(inputs["left"]) + float(inputs["right"]), "pid": os.getpid(), "nice": os.nice(0)}


def refuse(inputs: Values, context: RunnerContext) -> Values:
    raise TaskError("the sensor is not connected", reason="no_sensor")


def bug(inputs: Values, context: RunnerContext) -> Values:
    return {"never": 1 // int(inputs["zero"])}


def leave(inputs: Values, context: RunnerContext) -> Values:
    sys.exit("gone")


def die(inputs: Values, context: RunnerContext) -> Values:
    os._exit(9)


def sleep(inputs: Values, context: RunnerContext) -> Values:
    Path(str(inputs["started"])).write_text(str(os.getpid()))
    time.sleep(600)
    return {}


def spin(inputs: Values, context: RunnerContext) -> Values:
    while True:
        pass


def spin_in_child(inputs: Values, context: RunnerContext) -> Values:
    subprocess.run([sys.executable, "-c", "while True: pass"], check=True)
    return {}


def eat(inputs: Values, context: RunnerContext) -> Values:
    """Takes memory piece by piece and touches it."""
    held = []
    while True:
        held.append(bytearray(os.urandom(1 << 20) * 8))
        time.sleep(0.005)


def swallow(inputs: Values, context: RunnerContext) -> Values:
    """Takes it at once."""
    return {"bytes": len(bytearray(4 << 30))}


def chatter(inputs: Values, context: RunnerContext) -> Values:
    return {f"value-{index}": "x" * 4_000 for index in range(64)}


def nested(inputs: Values, context: RunnerContext) -> Values:
    return {"list": [1, 2]}  # type: ignore[dict-item]


def nothing(inputs: Values, context: RunnerContext) -> Values:
    return None  # type: ignore[return-value]


def busy(inputs: Values, context: RunnerContext) -> Values:
    """0.3 s of CPU time."""
    began, wall = time.process_time(), time.monotonic()
    while time.process_time() - began < 0.3:
        pass
    return {"wall_s": time.monotonic() - wall}


TABLE = {
    f"{name}@1": f"tests.support.runners:{name}"
    for name in (
        "add",
        "refuse",
        "bug",
        "leave",
        "die",
        "sleep",
        "spin",
        "eat",
        "swallow",
        "chatter",
        "nested",
        "nothing",
        "busy",
    )
}
