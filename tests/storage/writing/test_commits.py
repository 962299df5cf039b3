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

from samdeblur.storage import AtomMap, ImageNotReady, StoreError, TooManyAtoms, files, open_store
from samdeblur.storage.sharing.verify import verify_store
from samdeblur.storage.writing import lease
from samdeblur.storage.writing.commits import Committer, ImageContent, check_caps, run_folder, stage_block, staged_shard
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


_STEPS = ["first shard", "last shard", "index/digest", "index/shard_digest", "index/state"]


@pytest.mark.parametrize(
    ("step", "renamed"),
    [*((step, False) for step in _STEPS), ("index/state", True)],
    ids=lambda value: value if isinstance(value, str) else ("after the rename" if value else "before the rename"),
)
def test_a_commit_killed_anywhere_leaves_its_blocks_pending_and_a_rerun_repairs_it(
    half_done, finished_store, dead_pid, monkeypatch, step, renamed
):
    case = half_done
    write, rename, moves = files.write_durably, os.rename, []
    last = 2 * len(case.header.data_arrays()) - 1

    def killed_write(path, data):
        in_store = Path(path).is_relative_to(case.path)
        if in_store and step in str(path):
            if renamed:
                write(path, data)
            else:
                path.parent.mkdir(parents=True, exist_ok=True)
                path.with_name(path.name + files.PARTIAL).write_bytes(bytes(data)[:7])
            raise Killed
        write(path, data)

    def killed_rename(source, target):
        moves.append(target)
        if step.endswith("shard") and len(moves) - 1 == (0 if step == "first shard" else last):
            raise Killed
        return rename(source, target)

    before = open_store(case.path).ready_keys
    committer = Committer(case.path)
    staged = [case.stage(committer, block) for block in (1, 2)]
    with monkeypatch.context() as patch:
        patch.setattr(files, "write_durably", killed_write)
        patch.setattr(os, "rename", killed_rename)
        with pytest.raises(Killed):
            committer.commit(staged)
    committed = step == "index/state" and renamed  # the one write that counts was made
    assert open_store(case.path).ready_keys == list(case.masks if committed else before)

    _hold(case.path, pid=dead_pid)  # the killed job's lease
    second = Committer(case.path)
    assert _leftovers(case.path) == []
    assert second.pending_blocks() == ([4] if committed else [1, 2, 4])
    second.commit([case.stage(second, block) for block in second.pending_blocks() if block != 4])
    second.close()
    assert case.files() == finished_store.files()


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
    monkeypatch.setattr(lease, "time", SimpleNamespace(time=lambda: next(clock)))
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
