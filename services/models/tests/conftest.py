"""The models service over a real database and folders; only its peers are played."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from models_service.storage import MIGRATIONS
from models_service.storage.catalog import SqlCatalog
from models_service.usecases.models import Models
from models_service.usecases.ports import InstanceGroup
from models_service.usecases.removals import Removals
from models_service.usecases.templates import Templates
from models_service.usecases.weights import Weights
from servicekit.database import Database
from servicekit.errors import forbidden, invalid
from servicekit.paths import DataRoots
from servicekit.weight_paths import WeightPaths


@dataclass
class PlayedPeers:
    """Datasets, instance groups and activity as the tests want them."""

    datasets: set[str] = field(default_factory=lambda: {"digits"})
    foreign_datasets: set[str] = field(default_factory=set)
    running: dict[str, str] = field(default_factory=dict)

    async def require(self, name: str, field: str) -> None:
        if name in self.foreign_datasets:
            raise forbidden(f"dataset {name!r} belongs to another user")
        if name not in self.datasets:
            raise invalid(field, name, "the name of a dataset")

    async def find(self, name_or_id: str, field: str) -> InstanceGroup:
        if name_or_id not in {"local", "1d"}:
            raise invalid(field, name_or_id, ("local",))
        return InstanceGroup(id="1d", name="local")

    async def of_model(self, name: str) -> str | None:
        return self.running.get(name)


@dataclass
class Room:
    """Everything of the service but its gRPC face, on one home."""

    home: Path
    database: Database
    catalog: SqlCatalog
    peers: PlayedPeers
    templates: Templates
    models: Models
    weights: Weights
    removals: Removals

    @property
    def data(self) -> Path:
        return self.home / "data"

    def make_folder(self, name: str = "program", **files: str) -> Path:
        folder = self.data / name
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "main.py").write_text("print('train')\n")
        (folder / "net").mkdir(exist_ok=True)
        (folder / "net" / "layers.py").write_text("layers = 2\n")
        for file, text in files.items():
            (folder / file).write_text(text)
        return folder

    def folders(self, kind: str) -> list[str]:
        """What lies in `home/<kind>` now."""
        place = self.home / kind
        return sorted(path.name for path in place.iterdir()) if place.exists() else []


async def make_room(home: Path, database_url: str) -> Room:
    home.mkdir(parents=True, exist_ok=True)
    (home / "data").mkdir(exist_ok=True)
    database = Database(database_url, "models")
    await database.migrate(MIGRATIONS)
    catalog = SqlCatalog(database, home)
    roots = DataRoots([home / "data"])
    peers = PlayedPeers()

    def wake() -> None:
        pass

    weight_paths = WeightPaths(home, [home / "data"])
    return Room(
        home=home,
        database=database,
        catalog=catalog,
        peers=peers,
        templates=Templates(catalog, roots, home, wake),
        models=Models(catalog, home, weights=weight_paths, datasets=peers, groups=peers, activity=peers, wake=wake),
        weights=Weights(catalog, weight_paths, home, wake),
        removals=Removals(catalog),
    )


@pytest.fixture
async def room(tmp_path: Path) -> AsyncIterator[Room]:
    home = tmp_path / "home"
    room = await make_room(home, f"sqlite:///{home / 'db' / 'models.sqlite'}")
    yield room
    await room.database.close()


@pytest.fixture
async def room_on_each(tmp_path: Path, database_url: str) -> AsyncIterator[Room]:
    """The same on SQLite and on PostgreSQL."""
    room = await make_room(tmp_path / "home", database_url)
    yield room
    await room.database.close()
