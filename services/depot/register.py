"""Artifacts as the depot knows them: cut once, their recipes stored beside them and indexed in bucket `recipes`."""

from __future__ import annotations

import asyncio
import tempfile
from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from nats.js.errors import KeyNotFoundError
from pydantic import BaseModel

from schemas.aggregator import Artifact
from schemas.depot import read_recipe
from schemas.ids import Count, Digest
from services.kit.artifacts import ArtifactStore
from services.kit.artifacts.recipe import cut
from services.kit.errors import NotFoundError

CACHED_RECIPES = 32


class RecipeRecord(BaseModel):
    """Value of bucket `recipes`; the key is the recipe's digest."""

    sha256: Digest
    length: Count
    pieces: Count


class Bucket(Protocol):
    """The part of a key-value bucket that is needed."""

    async def get(self, key: str) -> Entry:
        """The newest value of a key."""

    async def put(self, key: str, value: bytes) -> int:
        """Store a value."""


class Entry(Protocol):
    """A value in a bucket."""

    value: bytes | None


@dataclass(frozen=True, slots=True)
class RecipeIndex:
    """A recipe, ready to serve from.

    Attributes:
        sha256: of the artifact that the pieces are in.
        raw: the recipe object.
        places: offset and length by digest of a piece.
    """

    sha256: str
    raw: bytes
    places: dict[str, tuple[int, int]]


class Register:
    """Cuts artifacts and finds their pieces again."""

    def __init__(self, store: ArtifactStore, recipes: Bucket) -> None:
        self._store = store
        self._recipes = recipes
        self._cache: OrderedDict[str, RecipeIndex] = OrderedDict()

    async def register(self, sha256: str) -> Artifact:
        """Cut an artifact that is in the store, and remember its recipe; the same every time.

        Raises:
            StoreError: if the store does not have it, or what it has is damaged.
            RefusedError: if it is too large.
        """
        with tempfile.TemporaryDirectory(prefix="causeway-cut-") as folder:
            path = Path(folder) / "artifact"
            await self._store.fetch(sha256, path)
            recipe = await asyncio.to_thread(cut, path)
        await self._store.put(recipe.raw)
        record = RecipeRecord(sha256=recipe.sha256, length=recipe.length, pieces=recipe.pieces)
        await self._recipes.put(recipe.digest, record.model_dump_json().encode())
        return recipe.artifact

    async def index(self, recipe: str) -> RecipeIndex:
        """Find a recipe.

        Raises:
            NotFoundError: if nothing was registered under it.
            StoreError: if the store lost it.
        """
        if recipe in self._cache:
            self._cache.move_to_end(recipe)
            return self._cache[recipe]
        try:
            entry = await self._recipes.get(recipe)
        except KeyNotFoundError as error:
            raise NotFoundError(f"find recipe {recipe}: nothing is registered under it") from error
        record = RecipeRecord.model_validate_json(entry.value or b"{}")
        raw = await self._store.open_range(recipe, 0, 36 * record.pieces)
        places: dict[str, tuple[int, int]] = {}
        offset = 0
        for piece in read_recipe(raw):
            places.setdefault(piece.sha256, (offset, piece.length))
            offset += piece.length
        index = RecipeIndex(record.sha256, raw, places)
        self._cache[recipe] = index
        if len(self._cache) > CACHED_RECIPES:
            self._cache.popitem(last=False)
        return index
