"""`stead store`: declarations go to a file and back, between SQLite and etcd; nothing is lost, nothing runs back."""

from __future__ import annotations

import asyncio
import uuid
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from stead.cli.main import main
from stead.config import Settings
from stead.store import location
from stead.store.contract import Compacted, Delete, Entry, Put, Store, StoreFailure
from stead.store.etcd import EtcdStore

LARGE = b"x" * 1_200_000


class Site:
    """An installation whose store is in one of the two places, and the other one beside it."""

    def __init__(self, tmp_path: Path, cluster: Any) -> None:
        self.given = {**cluster.settings(f"t{uuid.uuid4().hex[:12]}"), "state_dir": str(tmp_path / "state"), "user": "",
                      "run_dir": str(tmp_path / "run")}  # fmt: skip
        self.url = self.given["store"]
        self.file = tmp_path / "backup"
        (tmp_path / "state" / "plane").mkdir(parents=True)
        (tmp_path / "run").mkdir()
        self.config = tmp_path / "stead.toml"
        self.use("sqlite")

    def use(self, store: str) -> None:
        self.given["store"] = "" if store == "sqlite" else self.url
        self.config.write_text("".join(f'{key} = "{value}"\n' for key, value in self.given.items()))

    def stead(self, *words: object) -> Result:
        return CliRunner().invoke(main, ["--config", str(self.config), "store", *map(str, words)])

    async def opened(self, *, to_fill: bool = False) -> Any:
        settings = Settings(**{**self.given, "state_dir": Path(self.given["state_dir"])})
        return await location.open_store(location.of(settings), to_fill=to_fill)

    async def of(self, store: str) -> Any:
        self.use(store)
        return await self.opened()


@pytest.fixture
def site(tmp_path: Path, etcd_cluster: Any) -> Site:
    return Site(tmp_path, etcd_cluster)


async def furnish(store: Store) -> int:
    """Some objects, one of them gone, some large; the last revision."""
    for number in range(150):
        await store.commit([Put(f"/registry/g/p/ns/{number}", b"%d" % number, 0)])
    await store.commit([Put("/registry/g/p/ns/7", b"seven", None), Delete("/registry/g/p/ns/8", None)])
    for number in range(3):
        await store.commit([Put(f"/registry/g/large/ns/{number}", LARGE, 0)])
    return await store.latest()


def plain(entries: tuple[Entry, ...]) -> dict[str, bytes]:
    return {entry.key: entry.value for entry in entries}


@pytest.mark.parametrize(("first", "second"), [("sqlite", "etcd"), ("etcd", "sqlite")])
async def test_a_copy_holds_the_same_and_goes_on_after_it(site: Site, first: str, second: str) -> None:
    store = await site.of(first)
    last = await furnish(store)
    before = (await store.range("")).entries
    await store.close()
    places = {"sqlite": "sqlite", "etcd": site.url}
    result = await asyncio.to_thread(site.stead, "copy", places[first], places[second])
    assert result.exit_code == 0, result.output
    assert "152 objects copied" in result.output
    assert "SHA-256" in result.output
    store = await site.of(second)
    after = await store.range("")
    assert plain(after.entries) == plain(before)
    assert min(entry.mod_revision for entry in after.entries) > last, "no resourceVersion runs backwards"
    order = sorted(before, key=lambda entry: entry.mod_revision)
    assert [entry.key for entry in sorted(after.entries, key=lambda entry: (entry.mod_revision, order.index(
        next(old for old in order if old.key == entry.key))))] == [entry.key for entry in order]  # fmt: skip
    with pytest.raises(Compacted):
        await store.history(last - 1)
    assert await store.commit([Put("/registry/g/p/ns/new", b"", 0)]) > after.entries[-1].mod_revision
    await store.close()
    again = await asyncio.to_thread(site.stead, "copy", places[first], places[second])
    assert again.exit_code == 1
    assert "holds a store already; --replace" in again.output
    assert (await asyncio.to_thread(site.stead, "copy", "sqlite", "sqlite")).exit_code == 1


@pytest.mark.parametrize("place", ["sqlite", "etcd"])
async def test_a_restored_store_is_that_of_the_backup_and_its_revisions_go_on(site: Site, place: str) -> None:
    store = await site.of(place)
    await furnish(store)
    before = (await store.range("")).entries
    taken = await asyncio.to_thread(site.stead, "backup", site.file)  # while the store is in use
    assert taken.exit_code == 0, taken.output
    assert site.file.stat().st_mode & 0o777 == 0o600
    assert (await asyncio.to_thread(site.stead, "backup", site.file)).exit_code == 1, "never over another one"
    last = await store.commit([Put("/registry/g/p/ns/late", b"", 0)])
    if place == "sqlite":
        refused = await asyncio.to_thread(site.stead, "restore", site.file, "--replace")
        assert "in use by another plane" in refused.output
        await store.close()
    assert (await asyncio.to_thread(site.stead, "restore", site.file)).exit_code == 1, "not without --replace"
    done = await asyncio.to_thread(site.stead, "restore", site.file, "--replace")
    assert done.exit_code == 0, done.output
    if place == "etcd":
        with pytest.raises(StoreFailure, match="replaced"):
            await store.commit([Put("/registry/g/p/ns/lost", b"", 0)])
        await store.close()
    store = await site.opened()
    after = (await store.range("")).entries
    assert plain(after) == plain(before)
    assert min(entry.mod_revision for entry in after) > last
    await store.close()


async def test_a_damaged_backup_changes_nothing(site: Site) -> None:
    store = await site.of("etcd")
    await furnish(store)
    before = (await store.range("")).entries
    await asyncio.to_thread(site.stead, "backup", site.file)
    whole = site.file.read_bytes()
    lines = whole.split(b"\n")
    for damaged in (whole[:-20], whole.replace(b'"value":"', b'"value":"AAAA', 1), b"\n".join([lines[0], *lines[2:]]),
                    b"", b"{}\n"):  # fmt: skip
        site.file.write_bytes(damaged)
        result = await asyncio.to_thread(site.stead, "restore", site.file, "--replace")
        assert result.exit_code == 1
        assert "damaged" in result.output or "no backup" in result.output
    assert (await store.range("")).entries == before
    await store.close()


async def test_a_restore_that_breaks_off_leaves_a_store_that_no_plane_opens_and_can_be_done_again(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = await site.of("etcd")
    await furnish(store)
    before = (await store.range("")).entries
    await store.close()
    await asyncio.to_thread(site.stead, "backup", site.file)
    with monkeypatch.context() as broken:
        broken.setattr("stead.store.moving.digest", _wrong_on_read_back())
        result = await asyncio.to_thread(site.stead, "restore", site.file, "--replace")
    assert "what was written is not what was read" in result.output
    with pytest.raises(StoreFailure, match=r"the restore of .* was begun and not finished: do it again"):
        await site.opened()
    again = await asyncio.to_thread(site.stead, "restore", site.file)
    assert again.exit_code == 0, again.output
    store = await site.opened()
    assert isinstance(store, EtcdStore)
    assert plain((await store.range("")).entries) == plain(before)
    await store.close()


def _wrong_on_read_back() -> Any:
    """A disk that gives back something else than was written: the second hash differs."""
    from stead.store.backups import digest

    count = 0

    def counted(entries: Any) -> str:
        nonlocal count
        count += 1
        return digest(entries) if count < 2 else "0"

    return counted
