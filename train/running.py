"""A network in training: its steps, its log, its states, and what ends it."""

from __future__ import annotations

import math
import time
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from samdeblur.evaluation.evaluate import score_images
from samdeblur.evaluation.ranks import Ranks, without_averaging
from samdeblur.evaluation.results import summarise
from samdeblur.models import Deblurrer, NotFinite
from samdeblur.models.inference.precision import computing
from samdeblur.storage.writing.fence import StoreBusy
from samdeblur.train.config import TrainConfig
from samdeblur.train.data.crops import Batch
from samdeblur.train.losses import in_decibels, loss_of
from samdeblur.train.optimisers import build_optimiser
from samdeblur.train.schedules import learning_rate, phases_of
from samdeblur.train.standing import note_error
from samdeblur.train.start import Validation
from samdeblur.train.state import Row, add_to_log, save_state, write_log
from samdeblur.train.stopping import Stopped, StopRequest
from samdeblur.train.trackers.base import Trackers

WORSE = 10.0  # dB by which the loss may rise above its best before a run counts as lost
WILD = 30.0  # the same for a single batch
MEMORY = 200  # steps that the loss is averaged over before it is judged


class AskedToStop(Exception):
    """A signal came while a batch was waited for."""


class Diverged(RuntimeError):
    """The loss is not a finite number any more, or far worse than it was."""


@dataclass
class Waiting:
    """Batches, and the seconds spent waiting for them."""

    batches: Iterator[Batch]
    seconds: float = 0.0

    def next(self) -> Batch:
        start = time.perf_counter()
        batch = next(self.batches)
        self.seconds += time.perf_counter() - start
        return batch


@dataclass
class LossWatch:
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


class Run:
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
        self.trackers = Trackers()
        self.watch = LossWatch()
        self.history: list[Row] = []
        self.losses: list[Tensor] = []  # since the last row
        self.batch: Batch | None = None  # the last one, on the device
        self.facts: dict[str, Any] = {}  # what the state says of the run
        self.step = 0
        self.saved = -1  # step of the last state on the disk
        self.since = time.perf_counter()
        self.samples = 0  # since then

    def restore(self, state: dict[str, Any] | None) -> None:
        """Take up a state; without one, begin at step 0."""
        names = tracker_names(self.config) if self.ranks.first else ()
        self.trackers = Trackers.open(names, self.folder, self.config.plain(), state["step"] if state else 0)
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
            self.trackers.close()
            if self.ranks.first and isinstance(error, Exception) and not isinstance(error, Stopped | StoreBusy):
                note_error(self.folder, self.step, error)
            raise

    # One step

    def take_step(self, step: int, batches: Waiting) -> None:
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

    def note(self, batches: Waiting) -> None:
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

    def add_row(self, batches: Waiting) -> None:
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
        self.trackers.scalars(row)
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
                **self.facts,
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
        self.trackers.scalars({"step": self.step, **found})
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
                    self.trackers.image(self.step, self.val.store, score.key, result)
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


def compiled(network: Deblurrer, whole: nn.Module | None = None) -> nn.Module:
    """The network compiled, but for its prior: the number of masks is another in every batch.

    Args:
        whole: what is called, where it is not the network itself but the network in several processes. Compiled from
            outside it is cut where gradients are sent, so that they travel while the rest is computed.
    """
    if network.prior is not None:
        network.prior.forward = torch.compiler.disable(network.prior.forward)
    return torch.compile(network if whole is None else whole)  # type: ignore[return-value]


def _for_these_kernels(state: dict[str, Any], optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """A state saved by a run on another kind of device: what computes a step is this run's choice."""
    groups = [
        saved | {name: ours[name] for name in ("fused", "foreach", "capturable") if name in ours}
        for saved, ours in zip(state["param_groups"], optimizer.param_groups, strict=True)
    ]
    return state | {"param_groups": groups}


def tracker_names(config: TrainConfig) -> tuple[str, ...]:
    return (*config.trackers, *(("tensorboard",) if config.tensorboard else ()))
