from __future__ import annotations

import dataclasses
import json
import os
import shutil
import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import zarr

from samdeblur.storage import AtomMap, ImageNotReady, StoreError, TooManyAtoms, open_store
from samdeblur.storage.sharing.verify import verify_store
from samdeblur.storage.writing import lease
from samdeblur.storage.writing.commits import Committer, ImageContent, check_caps, run_folder, stage_block, staged_shard
from samdeblur.storage.writing.creation import create_store
from samdeblur.storage.writing.lease import Lease, StoreBusy


class Killed(BaseException):
    """Stands for a kill: nothing that handles errors handles this."""


@pytest.fixture
def case(store_case, tmp_path):
    placed = store_case.at(tmp_path / "gopro.zarr")
    placed.create()
    return placed


@pytest.fixture
def half_done(half_done_once, tmp_path):
    """A store with blocks 0 and 3 committed."""
    return half_done_once.at(Path(shutil.copytree(half_done_once.path, tmp_path / "gopro.zarr")))


@pytest.fixture(scope="module")
def half_done_once(store_case, tmp_path_factory):
    placed = store_case.at(tmp_path_factory.mktemp("half") / "gopro.zarr")
    committer = Committer(placed.create())
    committer.commit([placed.stage(committer, block) for block in (3, 0)])
    committer.close()
    return placed


@pytest.fixture(scope="module")
def dead_pid():
    process = subprocess.Popen([sys.executable, "-S", "-c", ""])
    process.wait()
    return process.pid


def _hold(store: Path, **changes: object) -> dict:
    """Write a lease as another job would have; by default one on this host, alive and just renewed."""
    holder = {"token": "another", "host": socket.gethostname(), "pid": os.getppid(), "renewed": time.time()} | changes
    run_folder(store).mkdir(exist_ok=True)
    (run_folder(store) / "lease.json").write_text(json.dumps(holder))
    return holder


def _leftovers(store: Path) -> list[Path]:
    return [*store.rglob("*.partial"), *run_folder(store).rglob("*.partial"), *run_folder(store).glob("staging/*")]


def test_a_new_store_is_all_pending(case):
    committer = Committer(case.path)
    assert committer.pending_blocks() == [0, 1, 2, 3, 4]
    assert open_store(case.path).ready_keys == []
    committer.close()


def test_staged_blocks_stay_pending_until_they_are_committed(case):
    before, committer = case.files(), Committer(case.path)
    staged = [case.stage(committer, block) for block in range(3)]
    assert committer.pending_blocks() == [0, 1, 2, 3, 4]
    assert case.files() == before
    committer.commit(staged[1:2])
    assert committer.pending_blocks() == [0, 2, 3, 4]
    store = open_store(case.path)
    assert store.ready_keys == [case.keys[2]]
    assert store.error(case.keys[3]) == case.quarantined[case.keys[3]]
    with pytest.raises(ImageNotReady, match="not prepared yet"):
        store.atoms(case.keys[0])
    committer.close()
    assert _leftovers(case.path) == []
    again = Committer(case.path)
    assert again.pending_blocks() == [0, 2, 3, 4]
    again.close()


def test_settings_of_zarr_change_no_byte(store_case, finished_store, tmp_path):
    of_a_user = {"default_zarr_format": 2, "array.write_empty_chunks": True, "array.order": "F"}
    with zarr.config.set(of_a_user):
        placed = store_case.at(tmp_path / "gopro.zarr")
        committer = Committer(placed.create())
        committer.commit([placed.stage(committer, block) for block in range(4)])
        committer.close()
        assert list(verify_store(placed.path)) == []
    assert placed.files() == finished_store.files()


def test_committing_nothing_changes_nothing(case):
    before, committer = case.files(), Committer(case.path)
    committer.commit([])
    assert case.files() == before
    committer.close()


@pytest.mark.parametrize("groups", [[[1], [2]], [[2], [1]], [[2, 1]]], ids=str)
def test_the_store_does_not_depend_on_order_and_grouping_of_commits(half_done, finished_store, groups):
    committer = Committer(half_done.path)
    for group in groups:
        committer.commit([half_done.stage(committer, block) for block in group])
    committer.close()
    assert half_done.files() == finished_store.files()


class Renames:
    """Counts the renames through a fence, in which all changes of a store end, and acts before one of them."""

    def __init__(self, patch, at=None, act=None):
        self.count, self._at, self._act = 0, at, act
        for name in ("rename", "replace"):
            patch.setattr(os, name, self._counted(getattr(os, name)))

    def _counted(self, rename):
        def call(source, target):
            self.count += "owner-" in f"{source}{target}"
            if self.count == self._at:
                self._at = None
                self._act()
            return rename(source, target)

        return call


class Job:
    """A whole preparation of a small store in three commits, the last of a block that is done again, resized."""

    def __init__(self, case, folder):
        wanted = (1, 2, 3, 4)  # small ones, two a block: done and quarantined, done without overlaps
        keys, shapes = [case.keys[i] for i in wanted], case.shapes[list(wanted)]
        header = dataclasses.replace(case.header, n_images=4, extent=(256, 512), images=False)
        contents = [case.contents[i] for i in wanted]
        contents = [content and dataclasses.replace(content, blurred=None, sharp=None) for content in contents]
        self.case = dataclasses.replace(case, header=header, keys=keys, shapes=shapes, contents=contents)
        self._staged = {}
        self._folder = folder
        self.at(folder / "undisturbed").do()
        self.files = self.case.files()
        with pytest.MonkeyPatch.context() as patch:
            counted = Renames(patch)
            self.at(folder / "counted").do()
        self.renames = counted.count

    def at(self, path):
        """Begin a store there, in which the size of one image is not known yet."""
        self.case = self.case.at(path)
        shapes = self.case.shapes.copy()
        shapes[2] = 0
        create_store(path, self.case.header, self.case.keys, shapes)
        return self

    def do(self):
        committer = Committer(self.case.path)
        committer.commit([self._stage(committer, 0)])
        committer.commit([self._stage(committer, 1)])
        committer.reopen([2], self.case.shapes[2:3])
        committer.commit([self._stage(committer, 1)])
        committer.close()

    def _stage(self, committer, block):
        """Staged once, then copied, for time."""
        if block not in self._staged:
            staged = self.case.stage(committer, block)
            kept = shutil.copytree(staged.staging, self._folder / f"staged-{block}")
            self._staged[block] = staged, kept
            return staged
        staged, kept = self._staged[block]
        return dataclasses.replace(staged, staging=str(shutil.copytree(kept, committer.staging(block))))


@pytest.fixture(scope="module")
def job(store_case, tmp_path_factory):
    return Job(store_case, tmp_path_factory.mktemp("job"))


def test_a_job_killed_before_any_of_its_changes_is_finished_by_the_next(job, dead_pid, tmp_path):
    assert job.renames > 25
    for at in range(1, job.renames + 1):
        job.at(tmp_path / f"{at}.zarr")
        with pytest.MonkeyPatch.context() as patch:

            def die():
                raise Killed

            Renames(patch, at, die)
            with pytest.raises(Killed):
                job.do()
        _hold(job.case.path, pid=dead_pid)
        job.do()
        assert job.case.files() == job.files, at
        assert not run_folder(job.case.path).exists()


def test_a_job_suspended_before_any_of_its_changes_makes_none_when_it_wakes_and_another_has_finished(
    job, dead_pid, tmp_path, monkeypatch
):
    monkeypatch.setattr(lease, "LOCK_TRIES", 1)  # it may be suspended with the lock
    refused = 0
    for at in range(1, job.renames + 1):
        job.at(tmp_path / f"{at}.zarr")

        def other_finishes():
            _hold(job.case.path, pid=dead_pid)
            job.do()

        with pytest.MonkeyPatch.context() as patch:
            Renames(patch, at, other_finishes)
            try:
                job.do()
            except StoreBusy:
                refused += 1
        assert job.case.files() == job.files, at
        assert list(verify_store(job.case.path)) == []
    assert refused >= job.renames - 3  # all but those of closing, when all is done


def test_shards_left_by_a_killed_job_go_when_the_images_are_quarantined(case):
    committer = Committer(case.path)
    case.stage(committer, 0)
    left = staged_shard(committer.staging(0), "atoms") / "0/0"
    (case.path / "atoms/c/0/0").mkdir(parents=True)
    shutil.move(left, case.path / "atoms/c/0/0/0")
    shutil.rmtree(committer.staging(0))
    quarantined = dataclasses.replace(case, contents=[None] * len(case.keys))
    committer.commit([quarantined.stage(committer, 0)])
    committer.close()
    assert not (case.path / "atoms/c/0/0/0").exists()
    assert list(verify_store(case.path)) == []
    assert open_store(case.path).error(case.keys[0]) == "not meant to be done"


def test_stage_block_returns_digests_of_what_lies_in_the_folder(case):
    committer = Committer(case.path)
    staged = case.stage(committer, 3)  # a quarantined image and one without masks
    shards = {name: list(staged_shard(Path(staged.staging), name).rglob("0")) for name in case.header.data_arrays()}
    found = {name: [file for file in paths if file.is_file()] for name, paths in shards.items()}
    assert {name: len(paths) for name, paths in found.items()} == {
        **dict.fromkeys(("atoms", "pairs", "records"), 0),
        **dict.fromkeys(("images/blurred", "images/sharp"), 1),
    }
    assert [digest != bytes(32) for digest in staged.shard_digests] == [False, False, False, True, True]
    committer.close()


def test_two_attempts_at_a_block_do_not_share_a_folder(case, dead_pid):
    first = Committer(case.path)
    _hold(case.path, pid=dead_pid)
    second = Committer(case.path)
    assert first.staging(0) != second.staging(0)
    second.close()


def test_staging_into_a_used_folder_is_refused(case):
    committer = Committer(case.path)
    case.stage(committer, 0)
    with pytest.raises(OSError, match="not empty"):
        stage_block(case.path, case.header, committer.staging(0), 0, case.contents[:2])
    committer.close()


@pytest.mark.parametrize(
    "changes",
    [{}, {"host": "elsewhere"}, {"host": "elsewhere", "pid": 2**30}, {"pid": 1}, {"renewed": time.time() + 3600}],
    ids=["alive", "other host", "unknown process of another host", "process of another user", "clock ahead"],
)
def test_a_held_store_is_refused_and_left_alone(case, changes):
    holder = _hold(case.path, **changes)
    (run_folder(case.path) / "staging/0-another").mkdir(parents=True)
    before = case.files()
    with pytest.raises(StoreBusy) as caught:
        Committer(case.path)
    message = str(caught.value)
    assert all(str(word) in message for word in (run_folder(case.path), holder["pid"], holder["host"]))
    assert "\n" not in message
    assert json.loads((run_folder(case.path) / "lease.json").read_text()) == holder
    assert (run_folder(case.path) / "staging/0-another").exists()
    assert case.files() == before


@pytest.mark.parametrize(("ahead", "said"), [(100, "2 minutes"), (7200, "2 hours"), (365 * 86400, "365 days")])
def test_a_lease_from_a_clock_ahead_says_so_and_what_to_do(case, ahead, said):
    _hold(case.path, host="elsewhere", renewed=time.time() + ahead + 1)
    with pytest.raises(StoreBusy, match=rf"{said} from now by the clock of this machine, .*set them alike") as caught:
        Committer(case.path)
    assert f"remove {run_folder(case.path) / 'lease.json'}" in str(caught.value)


@pytest.mark.parametrize(
    "document",
    ["[]", "null", "7", "{}", '{"pid": {}, "host": "a", "token": "b", "renewed": 1e99}', '"' + "[" * 9, "\x00\x00",
     '{"pid": 1e400, "host": "a", "token": "b", "renewed": 9e9}',
     '{"pid": 1, "host": "a", "token": "b", "renewed": NaN}',
     "[" * 100000],
)  # fmt: skip
def test_a_damaged_lease_holds_nothing(case, document):
    run_folder(case.path).mkdir(parents=True)
    (run_folder(case.path) / "lease.json").write_text(document)
    Committer(case.path).close()


def test_a_second_committer_is_refused_until_the_first_closes(case):
    first = Committer(case.path)
    with pytest.raises(StoreBusy):
        Committer(case.path)
    first.commit([case.stage(first, 0)])
    first.close()
    second = Committer(case.path)
    second.commit([case.stage(second, 1)])
    second.close()
    assert not (run_folder(case.path) / "lease.json").exists()


@pytest.mark.parametrize("kind", ["expired", "expired elsewhere", "dead", "half written"])
def test_a_lease_nobody_keeps_is_taken_over_and_leftovers_go(case, dead_pid, kind):
    changes = {"renewed": time.time() - lease.LEASE_SECONDS - 1} if kind.startswith("expired") else {"pid": dead_pid}
    _hold(case.path, **changes | ({"host": "elsewhere"} if kind == "expired elsewhere" else {}))
    if kind == "half written":
        (run_folder(case.path) / "lease.json").write_text('{"tok')
    (run_folder(case.path) / "staging/0-another/atoms").mkdir(parents=True)
    (case.path / "index/state/c").mkdir(exist_ok=True)
    (case.path / "index/state/c/0.partial").write_bytes(b"half")
    committer = Committer(case.path)
    assert _leftovers(case.path) == []
    holder = json.loads((run_folder(case.path) / "lease.json").read_text())
    assert (holder["pid"], holder["host"]) == (os.getpid(), socket.gethostname())
    assert time.time() - holder["renewed"] < lease.LEASE_SECONDS
    committer.close()


@pytest.mark.parametrize("stale", [True, False], ids=["a dead job's lease", "no lease"])
def test_of_jobs_that_start_at_the_same_moment_one_gets_the_store(tmp_path, dead_pid, stale):
    for round_number in range(20):
        folder = tmp_path / str(round_number)
        folder.mkdir()
        if stale:
            holder = {"token": "old", "host": socket.gethostname(), "pid": dead_pid, "renewed": time.time()}
            (folder / "lease.json").write_text(json.dumps(holder))
        together = threading.Barrier(6)

        def job(folder=folder, together=together):
            together.wait()
            try:
                return Lease(folder)
            except StoreBusy:
                return None

        with ThreadPoolExecutor(6) as pool:
            got = [held for held in [pool.submit(job) for _ in range(6)] if held.result() is not None]
        holding = [held.result() for held in got if _holds(held.result())]
        assert len(holding) == 1
        for held in got:
            held.result().release()
        assert list(folder.iterdir()) == []


def _holds(held):
    try:
        held.check()
    except StoreBusy:
        return False
    return True


def test_a_job_that_lost_its_lease_is_refused_at_commit_and_writes_nothing(case, dead_pid):
    first = Committer(case.path)
    _hold(case.path, pid=dead_pid)
    second = Committer(case.path)
    staged = case.stage(first, 0)
    before = case.files()
    with pytest.raises(StoreBusy, match="taken this store over"):
        first.commit([staged])
    assert case.files() == before
    holder = (run_folder(case.path) / "lease.json").read_text()
    first.lease.release()
    assert (run_folder(case.path) / "lease.json").read_text() == holder  # it is not the first one's to give back
    second.commit([case.stage(second, 0)])
    second.close()


def test_closing_a_job_that_lost_its_lease_leaves_the_staging_of_the_new_one(case, dead_pid):
    first = Committer(case.path)
    _hold(case.path, pid=dead_pid)
    second = Committer(case.path)
    staged = case.stage(second, 0)
    first.close()
    second.commit([staged])
    assert open_store(case.path).ready_keys == case.keys[:2]
    second.close()


def test_a_job_whose_lease_was_removed_is_refused_at_commit(case):
    committer = Committer(case.path)
    (run_folder(case.path) / "lease.json").unlink()
    with pytest.raises(StoreBusy):
        committer.commit([case.stage(committer, 0)])
    committer.close()


def test_a_held_lease_is_renewed_and_a_lost_one_is_not(tmp_path, monkeypatch):
    clock, rounds = iter(range(1000, 2000)), []

    class Waits:
        """Never released; a round after which another job holds the lease, and the renewing must end by itself."""

        def wait(self, seconds):
            rounds.append((seconds, json.loads((tmp_path / "lease.json").read_text())["renewed"]))
            if len(rounds) == 3:
                _overwrite()
            return False

        def set(self):
            pass

    def _overwrite():
        (tmp_path / "lease.json").write_text('{"token": "another"}')

    def run_at_once(target, **_):
        return SimpleNamespace(start=target)

    monkeypatch.setattr(lease, "threading", SimpleNamespace(Event=Waits, Thread=run_at_once))
    monkeypatch.setattr(lease, "time", SimpleNamespace(time=lambda: next(clock), sleep=time.sleep))
    Lease(tmp_path)
    assert [renewed for _, renewed in rounds] == [1000, 1001, 1002]
    assert all(seconds < lease.LEASE_SECONDS / 2 for seconds, _ in rounds)
    assert json.loads((tmp_path / "lease.json").read_text()) == {"token": "another"}


def test_a_committer_needs_a_store(tmp_path):
    with pytest.raises(FileNotFoundError, match="no such store"):
        Committer(tmp_path / "gone.zarr")
    (tmp_path / "folder.zarr").mkdir()
    with pytest.raises(StoreError, match="not a mask store"):
        Committer(tmp_path / "folder.zarr")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["folder.zarr"]


def _map(n_masks: int, n_pairs: int) -> AtomMap:
    pairs = np.zeros((n_pairs, 2), np.uint16)
    return AtomMap(np.zeros((1, 1), np.uint16), pairs, np.arange(n_masks, dtype=np.int32))


def test_maps_up_to_the_caps_fit():
    check_caps(_map(4096, 65536))
    check_caps(AtomMap.empty((1, 1)))


@pytest.mark.parametrize(("n_masks", "n_pairs", "named"), [(4097, 0, "4097 masks"), (5, 65537, "65537 .*pairs")])
def test_maps_past_the_caps_are_refused_with_figures(n_masks, n_pairs, named):
    with pytest.raises(TooManyAtoms, match=named) as caught:
        check_caps(_map(n_masks, n_pairs))
    assert "4096" in str(caught.value)
    assert "65536" in str(caught.value)


def test_a_map_at_the_caps_comes_back(case, tmp_path):
    rng = np.random.default_rng(0)
    masks = np.zeros((4096, 16, 16), bool)  # 256 atoms under 256 masks each: 65,536 pairs
    for pixel in np.ndindex(16, 16):
        masks[rng.permutation(4096)[:256], *pixel] = True
    atoms = AtomMap.from_masks(masks)
    assert (atoms.n_masks, len(atoms.pairs)) == (4096, 65536)
    check_caps(atoms)
    blank = rng.integers(0, 256, (16, 16, 3), np.uint8)
    full = ImageContent(atoms, {"predicted_iou": rng.random(4096)}, blank, blank)
    shapes = np.array([[16, 16]] * len(case.keys), np.int32)
    other = dataclasses.replace(case, path=tmp_path / "full.zarr", contents=[full] * len(case.keys), shapes=shapes)
    committer = Committer(other.create())
    committer.commit([other.stage(committer, 4)])
    committer.close()
    store = open_store(other.path)
    assert store.atoms(case.keys[-1]) == atoms
    assert np.array_equal(store.records(case.keys[-1])["predicted_iou"], full.records["predicted_iou"])
