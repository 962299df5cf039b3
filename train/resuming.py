"""What a folder holds of an earlier run, and whether this one goes on with it, goes beyond it, or is refused.

The state says what was run, beside where it stands, so the files for people (config.yaml, run.json, log.csv) may be
lost or cut: they are written again, and that is said. Without a state nothing is begun in a folder that holds a run.
"""

from __future__ import annotations

import csv
import json
import warnings
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from samdeblur.evaluation.ranks import is_first
from samdeblur.models import CheckpointError
from samdeblur.models.checkpoints.contents import read_torch
from samdeblur.models.checkpoints.loading import LAST_WEIGHTS, training_of
from samdeblur.storage import folders
from samdeblur.storage.files import write_durably
from samdeblur.train.config import ConfigError, TrainConfig, read_config
from samdeblur.train.standing import CONFIG, LOG
from samdeblur.train.state import RUN, STATE, encode_state

# Settings that do not change the result; a run may go on with others.
FREE = {"device", "loader_workers", "cache_mb", "save_every", "keep_every", "tensorboard", "trackers"}
# Facts that do.
DATA = ("train", "validation", "weights")
_OF_A_STATE = ("step", "network", "optimizer", "scaler", "average", "losses", "history")


class RunMended(UserWarning):
    """Said where files of a run were cut or changed, and are written again."""


def what_was_run(config: TrainConfig, facts: Mapping[str, Any]) -> dict[str, Any]:
    """What a state says of its run, for `read_run`: plain values."""
    return {"config": json.loads(json.dumps(config.plain())), "facts": {name: facts[name] for name in DATA}}


def read_run(
    folder: Path, config: TrainConfig, facts: Mapping[str, Any], extend: bool = False
) -> dict[str, Any] | None:
    """The state to go on from, None when the folder holds no run yet.

    Args:
        facts: `train`, `validation` and `weights` (JSON values, compared) and what else run.json is to say.
        extend: go on to more steps than the run was asked for. What it ended with is kept as step-N.safetensors.

    Raises:
        ConfigError: the folder holds a run with other settings or stores, or something of a run and no state to go on
            from; or there is nothing to extend.
        NotItsFolder: it holds something else.
        CheckpointError: its state cannot be read.
    """
    folders.check_claim(folder, folders.RUN)
    if not (folder / STATE).exists():
        _refuse_orphans(folder)
        if extend:
            raise ConfigError(f"{folder}: holds no run to extend; leave --extend out, or name the folder of one")
        return None
    state = _read_state(folder)
    stored, known = _stored(folder, state)
    asked = config
    if extend and stored.steps <= config.steps:
        asked = replace(config, steps=stored.steps)
    elif extend:
        raise ConfigError(f"{folder}: was asked for {stored.steps} steps already, more than {config.steps}")
    changed = [
        f"{name} {getattr(stored, name)} -> {getattr(asked, name)}"
        for name in vars(asked)
        if name not in FREE and getattr(stored, name) != getattr(asked, name)
    ]
    if bool(facts["train"].get("mixed_with")) != bool(known["train"].get("mixed_with")):  # older ones do not say
        changed.append("train: another number of stores")
    changed += [f"{name}: other images, masks or weights" for name in DATA if _contradict(known.get(name), facts[name])]
    if changed:
        longer = changed == [f"steps {stored.steps} -> {config.steps}"] and stored.steps < config.steps
        advice = "add --extend to go on to more steps, or use another --out" if longer else "use another --out"
        raise ConfigError(f"{folder}: holds a run with other settings ({'; '.join(changed)}); {advice}")
    if config.steps > stored.steps and is_first():
        _extend(folder, state, config, facts, stored.steps)
    return state


def _read_state(folder: Path) -> dict[str, Any]:
    path = folder / STATE
    try:
        state = read_torch(path)
        if not isinstance(state, dict) or any(name not in state for name in _OF_A_STATE):
            raise CheckpointError(f"{path}: not the state of a run")
    except CheckpointError as error:
        there = f"begin another run with --weights {folder / LAST_WEIGHTS} --out elsewhere"
        remedy = there if _step_of(folder / LAST_WEIGHTS) is not None else "begin again with another --out"
        cut = "empty" if not path.stat().st_size else "cut off, or not the state of a run"
        raise CheckpointError(f"{path}: {cut}, so this run cannot go on; put a copy back, or {remedy}") from error
    return state


def _stored(folder: Path, state: Mapping[str, Any]) -> tuple[TrainConfig, Mapping[str, Any]]:
    """Settings and facts of the run: as its state has them, or, of an earlier version, as its files do."""
    found: dict[str, Any] = {}
    for name, read in ((CONFIG, lambda path: read_config(str(path))), (RUN, lambda path: json.loads(path.read_text()))):
        try:
            found[name] = read(folder / name)
            if not isinstance(found[name], dict) or not found[name]:
                raise ValueError("nothing in it")
        except (OSError, ValueError) as error:
            found[name] = None
            reason = "gone" if isinstance(error, FileNotFoundError) else "empty or cut"
            if "config" not in state:
                raise ConfigError(
                    f"{folder / name}: {reason}, and {STATE}, of an earlier version, does not say what was run; put a "
                    f"copy back, or begin another run with --weights {folder / LAST_WEIGHTS} --out elsewhere"
                ) from error
    if "config" not in state:
        if missing := [name for name in ("steps", "seed", "device") if name not in found[CONFIG]]:
            raise ConfigError(f"{folder / CONFIG}: cut off, {missing[0]} is missing; put a copy back")
        return TrainConfig.of(found[CONFIG]), found[RUN]
    stored = TrainConfig.of(state["config"])
    mended = [] if _agrees_with_state(found[CONFIG], stored) else [CONFIG]
    if found[RUN] is None or any(_contradict(found[RUN].get(name), state["facts"][name]) for name in DATA):
        mended.append(RUN)
    if mended and is_first():
        warnings.warn(
            f"{folder}: {' and '.join(mended)} cut or changed since; written again from {STATE}, which has it all",
            RunMended,
            stacklevel=3,
        )
    return stored, state["facts"]


def _agrees_with_state(values: Mapping[str, Any] | None, stored: TrainConfig) -> bool:
    """Whether config.yaml says what the state does, but for what may change."""
    try:
        said = TrainConfig.of(values or {})
    except ConfigError:
        return False
    return values is not None and all(
        getattr(said, name) == getattr(stored, name) for name in vars(stored) if name not in FREE | {"steps"}
    )


def _extend(folder: Path, state: dict[str, Any], config: TrainConfig, facts: Mapping[str, Any], before: int) -> None:
    """Keep what a run ended with, and have its state say how far it goes now."""
    last = folder / LAST_WEIGHTS
    if (step := _step_of(last)) is not None and step == state["step"]:
        write_durably(folder / f"step-{step}.safetensors", last.read_bytes())
    state |= what_was_run(config, facts)
    state["extended"] = [*state.get("extended", []), {"at": state["step"], "from": before, "to": config.steps}]
    write_durably(folder / STATE, encode_state(state))


def _step_of(path: Path) -> int | None:
    """The step in the head of weights; None for none that can be read."""
    try:
        return int((training_of(path) or {})["step"])
    except (CheckpointError, KeyError, TypeError, ValueError):
        return None


def _refuse_orphans(folder: Path) -> None:
    """Raise ConfigError for what a run left, and no state; weights of step 0 may be what a kill left of the first."""
    for path in sorted(folder.glob("*.safetensors")):
        if _step_of(path) != 0:
            raise ConfigError(
                f"{folder}: holds the weights of a run ({path.name}), and no {STATE} to go on from; put it back, or "
                "use another --out"
            )
    if rows := _rows_beyond_the_first(folder / LOG):
        raise ConfigError(
            f"{folder}: holds the log of a run that came to step {rows[-1]} ({LOG}), and no {STATE} to go on from; put "
            "it back, or use another --out"
        )


def _rows_beyond_the_first(path: Path) -> list[str]:
    try:
        with open(path, newline="", encoding="utf-8", errors="replace") as file:
            steps = [row.get("step") or "" for row in csv.DictReader(file)]
    except (OSError, csv.Error):
        return []
    return [step for step in steps if step.isdecimal() and int(step)]


def _contradict(known: Any, now: Any) -> bool:
    """Whether facts contradict each other; what an earlier version did not write down does not."""
    if isinstance(known, Mapping) and isinstance(now, Mapping):
        return any(_contradict(known[name], now[name]) for name in known.keys() & now.keys())
    return bool(known != now)
