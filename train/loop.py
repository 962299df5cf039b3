"""A training from settings to its last step: stores, folder, loader, processes."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

from dask.system import CPU_COUNT

from samdeblur.evaluation.ranks import Ranks, joined, local_world
from samdeblur.models import MAPUnit
from samdeblur.models.inference.precision import kernels
from samdeblur.storage import MaskStore, folders
from samdeblur.storage.writing.lease import held
from samdeblur.train.config import ConfigError, TrainConfig
from samdeblur.train.data.crops import CropDataset, Cutting, Share
from samdeblur.train.data.loader import LoaderFailed, crop_loader
from samdeblur.train.data.mixture import Mixture
from samdeblur.train.resuming import read_run, what_was_run
from samdeblur.train.running import AskedToStop, Run, Waiting, tracker_names
from samdeblur.train.schedules import phases_of
from samdeblur.train.start import Mixed, build_network, choose_images, resolved, run_facts
from samdeblur.train.state import Row, write_facts
from samdeblur.train.stopping import StopRequest
from samdeblur.train.trackers.base import require

MOST_WORKERS = 16  # of a loader by default: some 150 crops/s each, and a GPU takes up to 1,300 (docs/training.md)


def train(
    config: TrainConfig,
    store: MaskStore,
    folder: Path,
    validation: MaskStore | None = None,
    progress: Callable[[Row], None] = lambda row: None,
    extend: bool = False,
    mixed: Sequence[Mixed] = (),
    share: float = 1.0,
) -> list[Row]:
    """Train a network on the crops of a store; called again on the same folder, go on where it stopped.

    Under torchrun every process calls it alike, takes its share of each batch, and the first one writes.

    Args:
        validation: store to validate on; by default training images are held out.
        progress: called after each step with its number, and with each row of the log once it is complete; its method
            `stopping`, where it has one, once a signal asks to stop, within the handler.
        extend: go on with a run to more steps than it was asked for.
        mixed: stores that are trained on beside the first, with their shares of the samples; `share` is that of the
            first, whose images alone are held out where there is no validation store.

    Returns:
        The log of the whole run.

    Raises:
        StoreError, ConfigError: unusable store or settings.
        Diverged: the loss became infinite, not a number, or much worse; the last state saved is from before.
        Stopped: a signal asked for it; the state is saved.
        LoaderFailed: the workers that read crops give none any more; the state is saved.
        StoreBusy: another process trains in this folder.
    """
    keys, val = choose_images(config, store, validation)
    phases = phases_of(config)
    cutting = Cutting(
        config.crop_size,
        config.subimage_size,
        config.crops_per_image,
        config.misrotated_masks,
        phases,
        config.mask_shift,
    )
    stopping = getattr(progress, "stopping", lambda: None)
    with joined(config.device) as ranks, StopRequest(stopping) as request, ExitStack() as stack:
        stack.enter_context(kernels(ranks.device, config.precision))
        for size in (config.batch_size, *config.progressive_batches):
            if size % (ranks.world * config.accumulate):
                raise ConfigError(
                    f"batch_size: {size} cannot be divided among {ranks.world} processes with "
                    f"{config.accumulate} parts each (accumulate)"
                )
        cache, with_atoms = (config.cache_mb << 20) // (1 + len(mixed)), config.method != "none"
        crops = CropDataset(store, keys, cutting, config.seed, with_atoms, cache)
        parts = [crops] + [
            CropDataset(other.store, other.keys, cutting, _seed_of(config, place), with_atoms, cache)
            for place, other in enumerate(mixed, 1)
        ]
        shares = [share, *(other.share for other in mixed)]
        network = build_network(config).to(ranks.device)
        config = resolved(config, network)
        facts = run_facts(config, store, keys, val, ranks.device, mixed, share)
        facts |= {"smaller_than_crop": sum(part.n_small for part in parts)}
        network.provenance = {
            "of": config.steps,
            "segmenter": facts["train"]["segmenter"] if network.prior else "",
            "images": store.header.seal,
            "masks": [
                {name: used[name] for name in ("dataset", "split", "seal", "recipe", "made_by", "share")}
                for used in (facts["train"], *facts["train"]["mixed_with"])
            ],
        }
        folders.check_claim(folder, folders.RUN)
        require(tracker_names(config))
        alone = stack.enter_context(_hold_folder(folder, ranks))
        run = Run(config, network, val, folder, ranks, request, progress, alone)
        state = read_run(folder, config, facts, extend)
        run.facts = what_was_run(config, facts) | {"extended": (state or {}).get("extended", [])}
        if ranks.first:
            write_facts(folder, config, facts | {"extended": run.facts["extended"]})
        run.restore(state)
        stack.enter_context(run.noted())
        loader = crop_loader(
            Mixture(parts, shares, config.seed) if mixed else crops,
            Share(config.batch_size, run.step + 1, config.steps, config.accumulate, ranks.rank, ranks.world, phases),
            loader_workers(config, ranks),
            network.prior.dropout if isinstance(network.prior, MAPUnit) else 0.0,
            run.check_asked,
        )
        stack.callback(loader.close)
        batches = Waiting(loader)
        images = sum(len(part.keys) for part in parts)
        counts = {"images": images, "validation_images": len(val.keys)}
        progress({"step": run.step, **counts, "crops_per_epoch": images * config.crops_per_image})
        run.look()  # the network before its first step, or a step that was saved and not validated
        for step in range(run.step + 1, config.steps + 1):
            try:
                run.take_step(step, batches)
            except (AskedToStop, LoaderFailed):
                run.step = step - 1
                if request.by and ranks.world == 1:  # it may have come to the workers too, which were not yet up
                    run.stop(request.by)
                if run.saved < run.step and ranks.world == 1:
                    run.save()
                raise
            run.note(batches)
        run.trackers.close(folder)
        return run.history


def _seed_of(config: TrainConfig, place: int) -> int:
    """Of a store that is mixed in, so that stores alike are not cut alike."""
    return zlib.crc32(f"{config.seed} {place}".encode())


@contextmanager
def _hold_folder(folder: Path, ranks: Ranks) -> Iterator[Callable[[], None]]:
    """The folder of a run to its first process; gives a check that it still is. Raises StoreBusy."""
    if not ranks.first:
        yield lambda: None
        return
    with held(folder, "this run") as lease:
        yield lease.check


def loader_workers(config: TrainConfig, ranks: Ranks) -> int:
    """Processes that read crops for one process of the run."""
    if config.loader_workers >= 0:
        return config.loader_workers
    return min(MOST_WORKERS, max(1, CPU_COUNT // local_world())) if ranks.device.type == "cuda" else 0
