"""Coverage-guided fuzzing with Atheris (libFuzzer): `python -m tests.fuzz [--runs N] [TARGET ...]`.

Each target runs in a process of its own, since libFuzzer ends its process. An input that breaks a parser is printed in
hex with the traceback and kept as `crash-*` in the working folder, and the program ends with 1.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path

RSS_LIMIT_MB = 700
GROWTH_MB = 128
"""libFuzzer keeps its corpus in memory; a parser must not keep more."""
_FIGURES = re.compile(r"stat::(\w+):\s+(\d+)")
_STATUS = re.compile(r"^#\d+\s+\w+.*rss: (\d+)Mb", re.MULTILINE)


def main() -> None:
    """Fuzz every target in turn and print what was done as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("targets", nargs="*", help="default: all")
    parser.add_argument("--runs", type=int, default=30_000, help="inputs per target (default: 30000)")
    parser.add_argument("--inside", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.inside:
        inside(options.inside)
        return
    from tests.fuzz.targets import targets

    found = targets()
    broken, total = [], 0
    for name in options.targets or found:
        done, grown_mb, ok = guided(name, found[name].seeds, options.runs)
        total += done
        print(
            f"{name}: {done} inputs, {grown_mb} MB more memory{'' if ok else ', BROKEN'}", file=sys.stderr, flush=True
        )
        if not ok:
            broken.append(name)
    print(json.dumps({"inputs": total, "targets": len(options.targets or found), "broken": broken}))
    raise SystemExit(1 if broken else 0)


def guided(name: str, seeds: tuple[bytes, ...], runs: int) -> tuple[int, int, bool]:
    """One target; returns the inputs tried, the growth of memory in MB and whether all was well."""
    with tempfile.TemporaryDirectory(prefix="causeway-fuzz-") as folder:
        for number, seed in enumerate(seeds):
            (Path(folder) / f"seed{number}").write_bytes(seed)
        command = [sys.executable, "-m", "tests.fuzz", "--inside", name, folder, "--runs", str(runs)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    figures = {key: int(value) for key, value in _FIGURES.findall(done.stderr)}
    rss = [int(value) for value in _STATUS.findall(done.stderr)]
    grown_mb = rss[-1] - rss[0] if rss else 0
    ok = done.returncode == 0 and grown_mb < GROWTH_MB
    if not ok:
        print(done.stderr[-4_000:], file=sys.stderr)
    return figures.get("number_of_executed_units", 0), grown_mb, ok


def inside(name: str) -> None:
    """The process of one target."""
    import atheris

    with atheris.instrument_imports(include=["schemas", "services", "edge_runtime"]):
        from tests.fuzz.targets import targets
    target = targets()[name]
    folder = next(argument for argument in sys.argv[1:] if Path(argument).is_dir())
    runs = sys.argv[sys.argv.index("--runs") + 1]

    def one(raw: bytes) -> None:
        with contextlib.suppress(*target.refusals):
            target.parse(raw)

    limits = [f"-runs={runs}", "-max_len=4096", f"-rss_limit_mb={RSS_LIMIT_MB}", "-print_final_stats=1", "-seed=1"]
    atheris.Setup([sys.argv[0], *limits, folder], one)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
