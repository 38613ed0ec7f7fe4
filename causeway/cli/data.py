"""`causeway data`: real data, split as unevenly as it is in the field."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import numpy as np
import typer

from causeway.cli.common import EXIT_USAGE, Json, console, explained, fail, print_json, table
from causeway.cli.options import number, whole
from causeway.data.shard import DATASETS, ShardPlan, split, write_shards

app = typer.Typer(no_args_is_help=True, help="Split a data set across devices, for trials of federated learning.")


@app.callback()
def _nouns() -> None:
    """Keep `shard` a verb of its own although it is the only one."""


@app.command()
def shard(
    out: Annotated[Path, typer.Option("--out", help="Folder for shard-1.npz ... and holdout.npz.")],
    dataset: Annotated[str, typer.Option("--dataset", help=f"One of: {', '.join(DATASETS)}.")] = "digits",
    shards: Annotated[int, whole("--shards", text="How many devices.", high=10_000)] = 8,
    alpha: Annotated[
        float, number("--alpha", text="Of the Dirichlet distribution; small is uneven.", low=0.001, high=1e6)
    ] = 0.5,
    smallest: Annotated[int, whole("--min", text="Samples of the smallest shard.")] = 20,
    holdout: Annotated[float, number("--holdout", text="Share that no device trains on.", high=1)] = 0.2,
    seed: Annotated[int, whole("--seed", text="Equal seeds split equally.", low=0)] = 0,
    as_json: Json = False,
) -> None:
    """Split a data set into uneven shards and a held-out part.

    Example: causeway data shard --dataset digits --shards 8 --alpha 0.5 --out shards
    """
    load = DATASETS.get(dataset)
    if load is None:
        fail(f"there is no data set {dataset!r}: known are {', '.join(DATASETS)}", EXIT_USAGE)
    x, y = load()
    with explained():
        try:
            parts = split(y, ShardPlan(shards, alpha, smallest, holdout, seed))
        except ValueError as error:
            fail(str(error), EXIT_USAGE)
        paths = write_shards(x, y, parts, out)
    found = [
        {"file": str(path), "samples": len(indices), "classes": np.bincount(y[indices], minlength=10).tolist()}
        for path, indices in zip(paths, [*parts.shards, parts.holdout], strict=True)
    ]
    if as_json:
        print_json({"dataset": dataset, "samples": len(y), "parts": found})
        return
    rows = [(part["file"], part["samples"], " ".join(map(str, part["classes"]))) for part in found]
    table(f"{dataset}: {len(y)} samples", ("file", "samples", "per class"), rows)
    console.print('next: name a shard in a device\'s settings under \\[datasets], as digits = "shard-1.npz"')
