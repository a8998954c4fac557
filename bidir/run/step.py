"""One training step: the update, what it says of itself, and whether its values were finite."""

from collections import defaultdict
from contextlib import nullcontext
from itertools import chain, combinations
from typing import NamedTuple

import pandas as pd
import torch
import torch.nn.functional as F
from accelerate import Accelerator
from jaxtyping import Float
from torch import Tensor
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from bidir.config import Optimiser, RunConfig
from bidir.method import distributed
from bidir.method.network import DualBranchNetwork
from bidir.method.supervision import active, forward, labelled_shares, loss_terms, make_targets, total_loss
from bidir.method.tensors import Batch


class Learner(NamedTuple):
    """What a run trains, and what with: ``model`` is ``network``, or its wrapper for many GPUs; ``average`` follows its
    weights, exponentially; None without ``ema_decay``."""

    network: DualBranchNetwork
    model: torch.nn.Module
    optimizer: torch.optim.Optimizer
    average: AveragedModel | None
    accelerator: Accelerator

    @property
    def scored(self) -> DualBranchNetwork:
        """The network whose maps are scored."""
        return self.average.module if self.average else self.network


def build(config: RunConfig, num_classes: int, accelerator: Accelerator) -> Learner:
    """The network as the run's seed makes it, in train mode; its average is at first the network as it is."""
    torch.manual_seed(config.seed)
    network = DualBranchNetwork(config, num_classes)
    network = network.to(accelerator.device, memory_format=torch.channels_last)
    fused = accelerator.device.type == "cuda"
    groups = network.parameter_groups(config)
    optimizer = torch.optim.AdamW(groups, lr=config.learning_rate, betas=(0.9, 0.999), fused=fused)
    if config.compile:
        network.compile()
    model, optimizer = accelerator.prepare(network, optimizer)
    model.train()
    if accelerator.process_index:  # each has its own dropout
        torch.manual_seed(config.seed + accelerator.process_index)
    follow = get_ema_multi_avg_fn(config.ema_decay)
    average = AveragedModel(network, multi_avg_fn=follow, use_buffers=True).eval() if config.ema_decay else None
    return Learner(network, model, optimizer, average, accelerator)


def train_step(learner: Learner, batch: Batch, config: RunConfig, step: int) -> dict[str, Float[Tensor, ""] | float]:
    """One update: targets, terms, total, gradients, optimiser, average.
    Returns this process's means: loss, each term, what each teacher labels, each term's gradient when that is due; and
    grad_norm, lr. Nothing here waits for the device."""
    network, model, optimizer, average, accelerator = learner
    due = config.gradients_every and (step + 1) % config.gradients_every == 0
    on, parts = active(config, step), batch.to(accelerator.device).parts(config.images_per_pass)
    rate = learning_rate(config, step)
    for group in optimizer.param_groups:
        group["lr"] = group["factor"] * rate
    optimizer.zero_grad()
    row: dict[str, Tensor | float] = defaultdict(float)
    for number, part in enumerate(parts, 1):
        share = len(part.image) / len(batch.image)
        with nullcontext() if number == len(parts) else accelerator.no_sync(model):
            outputs = forward(model, part, config, on)  # in mixed precision, if that is set; all else here is in full
            targets = make_targets(average.module if config.ema_teacher else network, outputs, part, config, on)
            terms = loss_terms(outputs, part, targets, config, on)
            loss = total_loss(terms, config)
            said = _said(*gradients(network, terms, config), [*terms]) if due else {}
            accelerator.backward(share * loss)
        for name, value in {"loss": loss, **terms, **labelled_shares(targets), **said}.items():
            row[name] += share * value.detach()
    norm = accelerator.clip_grad_norm_(network.parameters(), config.grad_clip or float("inf"))
    optimizer.step()
    if average:
        average.update_parameters(network)
    return {**row, "grad_norm": norm, "lr": rate}


def term_gradients(network: DualBranchNetwork, batch: Batch, config: RunConfig, step: int) -> tuple[pd.DataFrame, ...]:
    """What each weighted term says at iteration ``step``: one training pass, a gradient of each term on its graph.
    Returns their norms, a row per term, a column per module (0 where a term does not reach), and the terms' cosines on
    the shared encoder (0 where a gradient is 0). Dropout and norm statistics as in a step; no ``grad`` is written.
    """
    on = active(config, step)
    outputs = forward(network, batch, config, on)
    terms = loss_terms(outputs, batch, make_targets(network, outputs, batch, config, on), config, on)
    norms, cosines = gradients(network, terms, config)
    table = pd.DataFrame({name: norm.cpu() for name, norm in norms.items()}, [*terms])
    return table, pd.DataFrame(cosines.cpu(), [*terms], [*terms])


def gradients(
    network: DualBranchNetwork, terms: dict[str, Float[Tensor, ""]], config: RunConfig
) -> tuple[dict[str, Float[Tensor, "T"]], Float[Tensor, "T T"]]:  # noqa: F821
    """Norms of the T weighted terms' gradients by module, and their cosines on the encoder; the graph is kept."""
    modules = {name: [p for p in m.parameters() if p.requires_grad] for name, m in network.named_children()}
    every, sizes = [*chain(*modules.values())], [sum(p.numel() for p in ps) for ps in modules.values()]
    rows = []
    for name, term in terms.items():
        loss = total_loss({name: term}, config)
        gradients = torch.autograd.grad(loss, every, retain_graph=True, materialize_grads=True)
        rows.append(torch.cat([gradient.flatten() for gradient in gradients]))
    parts = dict(zip(modules, torch.stack(rows).double().split(sizes, dim=1), strict=True))
    shared = F.normalize(parts["encoder"])
    return {name: part.norm(dim=1) for name, part in parts.items()}, shared @ shared.T


def _said(norms: dict, cosines: Float[Tensor, "T T"], terms: list[str]) -> dict[str, Float[Tensor, ""]]:
    """Norms and cosines on the encoder, as a step's row names them: gradient/c2s, cosine/c2s/s2c."""
    pairs = {f"cosine/{terms[i]}/{terms[k]}": cosines[i, k] for i, k in combinations(range(len(terms)), 2)}
    return {**{f"gradient/{term}": norm for term, norm in zip(terms, norms["encoder"], strict=True)}, **pairs}


def learning_rate(config: Optimiser, step: int) -> float:
    """Learning rate of the encoder at iteration ``step``: linear warm-up, then poly with power 1."""
    decayed = config.learning_rate * (1 - step / config.iterations)
    if step >= config.warmup_iterations:
        return decayed
    return config.warmup_lr + (config.learning_rate - config.warmup_lr) * step / config.warmup_iterations


class Health:
    """Whether all values were finite since the last check: noted on the device, asked for when a row is logged or a
    checkpoint saved, so that no update done with a value that is not finite is ever saved."""

    def __init__(self, skips: bool) -> None:
        self.skips, self.broken = skips, {}  # fp16 skips steps whose gradients overflow, by itself

    def look(self, row: dict[str, Float[Tensor, ""] | float]) -> None:
        """Note which values of a step's row are not finite."""
        for name, value in row.items():
            if isinstance(value, Tensor) and not (self.skips and name == "grad_norm"):
                self.broken[name] = self.broken.get(name, False) | ~torch.isfinite(value)

    def check(self) -> None:
        """``FloatingPointError`` that names what was not finite, on any process."""
        names, flags = list(self.broken), torch.stack([*self.broken.values()]).float()
        self.broken = {}
        if bad := [name for name, count in zip(names, distributed.total(flags).tolist(), strict=True) if count]:
            raise FloatingPointError(f"{', '.join(bad)}: not finite; lower learning_rate or set grad_clip")


def mean_row(row: dict[str, Float[Tensor, ""] | float]) -> dict[str, float]:
    """A step's row as plain numbers, its means over all processes."""
    names = [name for name in row if name not in ("grad_norm", "lr")]
    means = distributed.total(torch.stack([row[name] for name in names])) / distributed.count()
    rounded = {name: round(value, 6) for name, value in zip(names, means.tolist(), strict=True)}
    return {**rounded, "grad_norm": round(float(row["grad_norm"]), 4), "lr": row["lr"]}
