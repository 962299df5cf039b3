"""The training loop."""

from __future__ import annotations

import math
import os
import time
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from samdeblur.evaluation.evaluate import score_images
from samdeblur.evaluation.ranks import Ranks, joined, local_world, without_averaging
from samdeblur.evaluation.results import summarise
from samdeblur.models import Deblurrer, MAPUnit, NotFinite
from samdeblur.models.inference.precision import computing, kernels
from samdeblur.storage import MaskStore, folders
from samdeblur.storage.writing.fence import StoreBusy
from samdeblur.storage.writing.lease import held
from samdeblur.train.config import ConfigError, TrainConfig
from samdeblur.train.data.crops import Batch, CropDataset, Cutting, Share
from samdeblur.train.data.loader import LoaderFailed, crop_loader
from samdeblur.train.data.mixture import Mixture
from samdeblur.train.losses import in_decibels, loss_of
from samdeblur.train.optimisers import build_optimiser
from samdeblur.train.resuming import read_run, what_was_run
from samdeblur.train.schedules import learning_rate, phases_of
from samdeblur.train.standing import note_error
from samdeblur.train.start import Mixed, Validation, build_network, choose_images, resolved, run_facts
from samdeblur.train.state import Row, add_to_log, save_state, write_facts, write_log
from samdeblur.train.stopping import Stopped, StopRequest
from samdeblur.train.trackers.base import Trackers, require

WORSE = 10.0  # dB by which the loss may rise above its best before a run counts as lost
WILD = 30.0  # the same for a single batch
MOST_WORKERS = 16  # of a loader by default: some 150 crops/s each, and a GPU takes up to 1,300 (docs/training.md)
MEMORY = 200  # steps that the loss is averaged over before it is judged


class AskedToStop(Exception):
    """A signal came while a batch was waited for."""


class Diverged(RuntimeError):
    """The loss is not a finite number any more, or far worse than it was."""


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
        progress: called after each step with its number, and with each row of the log once it is complete.
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
    cutting = Cutting(config.crop_size, config.subimage_size, config.crops_per_image, config.misrotated_masks, phases)
    with joined(config.device) as ranks, StopRequest() as request, ExitStack() as stack:
        stack.enter_context(kernels(ranks.device, config.precision))
        for size in (config.batch_size, *config.progressive_batches):
            if size % (ranks.world * config.accumulate):
                raise ConfigError(
                    f"batch_size: {size} does not part into {ranks.world} processes with "
                    f"{config.accumulate} parts each (accumulate)"
                )
        cache, with_atoms = (config.cache_mb << 20) // (1 + len(mixed)), config.method != "none"
        crops = CropDataset(store, keys, cutting, config.seed, with_atoms, cache)
        parts = [crops] + [
            CropDataset(
                other.store, other.keys, cutting, zlib.crc32(f"{config.seed} {place}".encode()), with_atoms, cache
            )
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
        alone = stack.enter_context(_alone(folder, ranks))
        run = _Run(config, network, val, folder, ranks, request, progress, alone)
        state = read_run(folder, config, facts, extend)
        run.said = what_was_run(config, facts) | {"extended": (state or {}).get("extended", [])}
        if ranks.first:
            write_facts(folder, config, facts | {"extended": run.said["extended"]})
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
        batches = _Waiting(loader)
        images = sum(len(part.keys) for part in parts)
        progress({"step": run.step, "images": images, "crops_per_epoch": images * config.crops_per_image})
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
        run.board.close(folder)
        return run.history


def _seed_of(config: TrainConfig, place: int) -> int:
    """Of a store that is mixed in, so that stores alike are not cut alike."""
    return zlib.crc32(f"{config.seed} {place}".encode())


@contextmanager
def _alone(folder: Path, ranks: Ranks) -> Iterator[Callable[[], None]]:
    """The folder of a run to its first process; gives a check that it still is. Raises StoreBusy."""
    if not ranks.first:
        yield lambda: None
        return
    with held(folder, "this run") as lease:
        yield lease.check


@dataclass
class _Waiting:
    """Batches, and the seconds spent waiting for them."""

    batches: Iterator[Batch]
    seconds: float = 0.0

    def next(self) -> Batch:
        start = time.perf_counter()
        batch = next(self.batches)
        self.seconds += time.perf_counter() - start
        return batch


class _Run:
    """A network in training, and all that a later run needs to go on with it."""

    def __init__(
        self,
        config: TrainConfig,
        network: Deblurrer,
        val: Validation,
        folder: Path,
        ranks: Ranks,
        request: StopRequest,
        progress: Callable[[Row], None],
        check_alone: Callable[[], None],
    ) -> None:
        self.check_alone = check_alone
        self.config, self.val, self.folder, self.ranks = config, val, folder, ranks
        self.phases = phases_of(config)
        self.request, self.progress = request, progress
        self.dtype = torch.float64 if config.precision == "float64" else torch.float32
        self.layout = torch.channels_last if config.channels_last else torch.contiguous_format
        self.network = network.to(self.dtype).to(memory_format=self.layout)  # type: ignore[call-overload]
        self.backbone = set(network.network.parameters())
        self.average = AveragedModel(network, multi_avg_fn=get_ema_multi_avg_fn(config.ema)) if config.ema else None
        self.optimizer = build_optimiser(
            config.optimizer,
            network.parameters(),
            {"lr": config.learning_rate, "betas": config.betas, "weight_decay": config.weight_decay},
            config.optimizer_options,
            ranks.device.type == "cuda",
        )
        self.scaler = torch.amp.GradScaler(ranks.device.type, enabled=config.precision == "float16")
        self.parallel = ranks.wrap(network)
        self.stepped = compiled(network, self.parallel) if config.compile else self.parallel
        self.board = Trackers()
        self.watch = _Watch()
        self.history: list[Row] = []
        self.losses: list[Tensor] = []  # since the last row
        self.batch: Batch | None = None  # the last one, on the device
        self.said: dict[str, Any] = {}  # what the state says of the run
        self.step = 0
        self.saved = -1  # step of the last state on the disk
        self.since = time.perf_counter()
        self.samples = 0  # since then

    def restore(self, state: dict[str, Any] | None) -> None:
        """Take up a state; without one, begin at step 0."""
        names = tracker_names(self.config) if self.ranks.first else ()
        self.board = Trackers.open(names, self.folder, self.config.plain(), state["step"] if state else 0)
        if state is None:
            self.history.append({"step": 0})
            return
        self.network.load_state_dict(state["network"])
        self.optimizer.load_state_dict(_for_these_kernels(state["optimizer"], self.optimizer))
        self.scaler.load_state_dict(state["scaler"])
        if self.average is not None:
            self.average.load_state_dict(state["average"])
        self.history, self.step = state["history"], state["step"]
        self.losses = list(state["losses"].to(self.ranks.device).unbind())  # means over all processes
        for row in self.history:
            self.watch.rise(row, self.config.loss)
        self.saved = self.step
        if self.ranks.first:
            write_log(self.folder, self.history)

    @contextmanager
    def noted(self) -> Iterator[None]:
        """What ends the run but for a request to stop is said in its folder, for `standing`."""
        if self.ranks.first:
            note_error(self.folder, self.step, None)
        try:
            yield
        except BaseException as error:
            self.board.close()
            if self.ranks.first and isinstance(error, Exception) and not isinstance(error, Stopped | StoreBusy):
                note_error(self.folder, self.step, error)
            raise

    # One step

    def take_step(self, step: int, batches: _Waiting) -> None:
        """Forward and backward for this process's share of the batch, then one step of the optimiser."""
        config = self.config
        self.step = step
        torch.manual_seed(self._seed())
        self.network.train()
        rate = learning_rate(step - 1, config)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        total = torch.zeros((), dtype=self.dtype, device=self.ranks.device)
        for part in range(config.accumulate):
            last = part == config.accumulate - 1
            with nullcontext() if last else without_averaging(self.parallel):
                self.batch = batches.next().to(self.ranks.device, self.dtype)
                loss = self.loss(self.stepped, self.batch) / config.accumulate
                self.scaler.scale(loss).backward()
            total += loss.detach()
        self.scaler.unscale_(self.optimizer)
        if step <= config.freeze_backbone:
            for parameter in self.backbone:
                parameter.grad = None
        nn.utils.clip_grad_norm_(self.network.parameters(), config.grad_clip or math.inf)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)
        if self.average is not None:
            self._blend(self.average)
        self.losses.append(total)
        self.samples += self.phases.at_step(step).batch_size

    @torch.no_grad()
    def _blend(self, average: AveragedModel) -> None:
        """As `average.update_parameters`, which copies its count to the device at every step, and waits."""
        if average.n_averaged == 0:  # on the CPU
            average.update_parameters(self.network)
            return
        mine: list[Tensor] = [*average.module.parameters()]
        torch._foreach_lerp_(mine, [*self.network.parameters()], 1 - self.config.ema)
        for kept, buffer in zip(average.module.buffers(), self.network.buffers(), strict=True):
            kept.copy_(buffer)
        average.n_averaged += 1

    def loss(self, network: nn.Module, batch: Batch) -> Tensor:
        """The loss of a batch on the device."""
        with computing(self.ranks.device, self.config.precision):
            output = network(batch.blurred.contiguous(memory_format=self.layout), batch.atoms)
        return loss_of(self.config.loss, output.to(self.dtype), batch.sharp)

    def _seed(self) -> int:
        """Of what is random inside a network; masks are dropped by the seeds of the samples."""
        return zlib.crc32(f"{self.config.seed} {self.step} {self.ranks.rank}".encode())

    def check_asked(self) -> None:
        """While there is no batch. Raises AskedToStop; with other processes, which would wait for this one, never."""
        if self.request.by and self.ranks.world == 1:
            raise AskedToStop

    # What follows a step

    def note(self, batches: _Waiting) -> None:
        """Log, save, stop and validate where it is time to."""
        config, step = self.config, self.step
        self.progress({"step": step})
        if step % config.log_every == 0 or self._to_be_looked_at():
            self.add_row(batches)
        if stop := self.ranks.largest(self.request.by):
            self.stop(stop)
        self.look()
        if self.saved < step and (step % config.save_every == 0 or self._kept()):
            self.save()

    def add_row(self, batches: _Waiting) -> None:
        """A row of the log: what happened since the last one. Raises Diverged."""
        config = self.config
        loss = self.ranks.mean(torch.stack(self.losses).mean()).item()  # waits until the device is done
        seconds = time.perf_counter() - self.since
        row: Row = {
            "step": self.step,
            "loss": loss,
            "learning_rate": learning_rate(self.step - 1, config),
            "samples_per_second": self.samples / seconds,
            "loader_wait": batches.seconds / seconds,
        }
        if not math.isfinite(loss):
            raise self._diverged(f"the loss is {loss}")
        if (rise := self.watch.rise(row, config.loss)) > WORSE:
            raise self._diverged(f"the loss is {rise:.0f} dB above its best")
        self.losses.clear()
        self.since, batches.seconds, self.samples = time.perf_counter(), 0.0, 0
        self.history.append(row)
        self.board.scalars(row)
        self.check_alone()
        if self.ranks.first:
            add_to_log(self.folder, row)
        self.progress(row)

    def save(self) -> None:
        """Write the state. Raises Diverged when something in it is not a finite number."""
        losses = self.ranks.mean(torch.stack(self.losses)) if self.losses else torch.empty(0)
        if not torch.isfinite(losses).all():
            raise self._diverged("the loss is not a finite number")
        bad = [name for name, weight in self.network.named_parameters() if not torch.isfinite(weight).all()]
        if bad:
            raise self._diverged(f"{len(bad)} of the weights are not finite, such as {bad[0]},")
        self._try_weights()
        self.check_alone()
        if self.ranks.first:
            state = {
                "step": self.step,
                "network": self.network.state_dict(),
                "optimizer": self.optimizer.state_dict(),
                "scaler": self.scaler.state_dict(),
                "average": self.average.state_dict() if self.average is not None else None,
                "losses": losses,
                "history": self.history,
                **self.said,
            }
            save_state(self.folder, state, self.shown, self._kept())
        self.saved = self.step

    def _try_weights(self) -> None:
        """The last batch once more: what cannot be computed with must not take the place of a good state."""
        if self.batch is None:
            return
        torch.manual_seed(self._seed())
        with torch.no_grad():
            again = self.ranks.mean(self.loss(self.network, self.batch)).item()
        if not math.isfinite(again):
            raise self._diverged(f"the loss is {again} after an update")
        if (rise := in_decibels(self.config.loss, again) - self.watch.best) > WILD:
            raise self._diverged(f"the loss is {rise:.0f} dB above its best after an update")

    def stop(self, by: int) -> None:
        """Save, and say so to who asked for it."""
        self.save()
        raise Stopped(f"{self.folder}: stopped after step {self.step} of {self.config.steps}, which is saved", by)

    def look(self) -> None:
        """Validate and save, at steps where that is due and was not done."""
        row = self.history[-1]
        if not self._to_be_looked_at() or "val_psnr" in row:
            return
        found = self.validate()
        row |= found
        self.board.scalars({"step": self.step, **found})
        self.save()
        self.progress(row)
        self.since = time.perf_counter()

    def validate(self) -> Row:
        """Mean PSNR and SSIM and the MCR on whole images, each process scoring some. Raises Diverged, Stopped."""
        keys = self.ranks.share(self.val.keys)
        scores, broken = [], None
        try:
            for score, result in score_images(self.shown.eval(), self.val.store, keys):
                if score.key == self.val.keys[0]:
                    self.board.picture(self.step, self.val.store, score.key, result)
                scores.append(score)
                self.progress({"step": self.step, "validated": len(scores), "of": len(keys)})
                if self.request.by and self.ranks.world == 1:  # others would wait for the scores of this process
                    self.network.train()
                    self.stop(self.request.by)
        except NotFinite as error:
            broken = error
        if self.ranks.largest(int(broken is not None)):
            raise self._diverged(f"validation: {broken or 'another process has values that are not finite'};")
        summary = summarise(self.ranks.gather(scores))
        return {"val_psnr": summary["psnr"], "val_ssim": summary["ssim_wang"], "val_mcr": summary["mcr"]}

    @property
    def shown(self) -> Deblurrer:
        """The network that is validated and saved: the average of the weights where one is kept."""
        shown = self.average.module if self.average is not None else self.network
        assert isinstance(shown, Deblurrer)
        return shown

    def _to_be_looked_at(self) -> bool:
        return self.step % self.config.val_every == 0 or self.step == self.config.steps

    def _kept(self) -> bool:
        return bool(self.config.keep_every) and self.step > 0 and self.step % self.config.keep_every == 0

    def _diverged(self, what: str) -> Diverged:
        saved = f"the state of step {self.saved} is intact" if self.saved >= 0 else "nothing was saved yet"
        return Diverged(
            f"{self.folder}: {what} at step {self.step}; lower learning_rate or grad_clip and look at the images. "
            f"{saved.capitalize()}"
        )


@dataclass
class _Watch:
    """The loss of the last few hundred steps, against the lowest it has been, in dB."""

    mean: float | None = None
    best: float = math.inf
    step: int = 0

    def rise(self, row: Row, loss: str | dict[str, float]) -> float:
        if "loss" not in row:
            return 0.0
        value, fading = in_decibels(loss, row["loss"]), math.exp((self.step - row["step"]) / MEMORY)
        self.mean = value if self.mean is None else fading * self.mean + (1 - fading) * value
        self.step, self.best = int(row["step"]), min(self.best, self.mean)
        return self.mean - self.best


def _for_these_kernels(state: dict[str, Any], optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """A state saved by a run on another kind of device: what computes a step is this run's choice."""
    groups = [
        saved | {name: ours[name] for name in ("fused", "foreach", "capturable") if name in ours}
        for saved, ours in zip(state["param_groups"], optimizer.param_groups, strict=True)
    ]
    return state | {"param_groups": groups}


def compiled(network: Deblurrer, whole: nn.Module | None = None) -> nn.Module:
    """The network compiled, but for its prior: the number of masks is another in every batch.

    Args:
        whole: what is called, where it is not the network itself but the network in several processes. Compiled from
            outside it is cut where gradients are sent, so that they travel while the rest is computed.
    """
    if network.prior is not None:
        network.prior.forward = torch.compiler.disable(network.prior.forward)
    return torch.compile(network if whole is None else whole)  # type: ignore[return-value]


def loader_workers(config: TrainConfig, ranks: Ranks) -> int:
    """Processes that read crops for one process of the run."""
    if config.loader_workers >= 0:
        return config.loader_workers
    return min(MOST_WORKERS, max(1, cores() // local_world())) if ranks.device.type == "cuda" else 0


def tracker_names(config: TrainConfig) -> tuple[str, ...]:
    return (*config.trackers, *(("tensorboard",) if config.tensorboard else ()))


def cores() -> int:
    """Those this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
