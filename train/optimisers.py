"""Optimisers by name: those of torch, and Lion."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, optim

from samdeblur.train.settings import ConfigError

_NEED_MORE = ("LBFGS", "SparseAdam")  # a closure; sparse gradients


class Lion(optim.Optimizer):
    """Chen et al., "Symbolic Discovery of Optimization Algorithms", arXiv 2302.06675, algorithm 2.

    Every weight moves by the learning rate, in the direction of the sign of a mean of gradients, and decays as with
    AdamW. Learning rates are a third to a tenth of AdamW's, decays as many times larger.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-4,
        betas: tuple[float, float] = (0.9, 0.99),
        weight_decay: float = 0.0,
    ) -> None:
        super().__init__(params, {"lr": lr, "betas": betas, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        loss = closure() if closure is not None else None
        for group in self.param_groups:
            fast, slow = group["betas"]
            for weight in group["params"]:
                if weight.grad is None:
                    continue
                mean: Tensor = self.state[weight].setdefault("mean", torch.zeros_like(weight))
                weight.mul_(1 - group["lr"] * group["weight_decay"])
                weight.sub_(torch.lerp(weight.grad, mean, fast).sign_(), alpha=group["lr"])
                mean.lerp_(weight.grad, 1 - slow)
        return loss


_KINDS: dict[str, type[optim.Optimizer]] = {
    name: kind
    for name, kind in vars(optim).items()
    if inspect.isclass(kind) and issubclass(kind, optim.Optimizer) and kind is not optim.Optimizer
    if name not in _NEED_MORE
} | {"Lion": Lion}
OPTIMISERS = tuple(sorted(_KINDS))


def build_optimiser(
    name: str, parameters: Iterable[Any], own: dict[str, Any], options: dict[str, Any], on_gpu: bool
) -> optim.Optimizer:
    """An optimiser.

    Args:
        own: values of settings (lr, betas, weight_decay), of which it gets those it knows.
        options: others, all of which it must know.

    Raises ConfigError.
    """
    known = inspect.signature(_KINDS[name].__init__).parameters
    if strange := [option for option in options if option not in known]:
        there = ", ".join(option for option in known if option not in ("self", "params", *own))
        raise ConfigError(f"optimizer_options: {name} has no {strange[0]}; it has {there}")
    given = {option: value for option, value in own.items() if option in known} | options
    if "fused" in known:
        given.setdefault("fused", on_gpu)
    try:
        return getattr(optim, name, Lion)(parameters, **given)
    except (TypeError, ValueError, RuntimeError) as error:
        raise ConfigError(f"optimizer {name}: {' '.join(str(error).split())}") from error
