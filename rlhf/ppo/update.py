"""The updates of a round: minibatches dealt to ranks by tokens, one optimizer step each."""

import contextlib
import math
from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor
from transformers import Trainer

from rlhf.abreast import abreast
from rlhf.errors import UserError
from rlhf.ppo import losses
from rlhf.ppo.config import PPOConfig
from rlhf.ppo.rollout import Batch, micro_batches, pack, seeded, shares
from rlhf.ppo.state import PPOState

_SUMS = ["loss/policy", "loss/value", "clip_fraction", "clip_fraction_value", "approx_kl"]


class Updates(Trainer):
    """The part of PPOTrainer that learns from a batch of episodes."""

    args: PPOConfig  # type: ignore[assignment]
    model: Any
    accelerator: Any
    optimizer: Any
    ppo: PPOState
    average: Any
    abreast: bool
    sft_dataset: Any

    def update(self, model: Any, batch: Batch) -> dict[str, float]:
        """`num_ppo_epochs` passes of `num_mini_batches` optimizer steps. Returns the mean of their figures.

        Passes end early where KL(old || new) a token goes over `target_kl`. A step with a NaN is left
        out and counted; UserError after `max_skipped_steps` in a row.
        """
        args, seen = self.args, list[dict[str, float]]()
        skipped, stopped, num = 0, False, len(batch.episodes)
        for epoch in range(args.num_ppo_epochs):
            order = self.minibatch_order(epoch, num)
            for part in range(args.num_mini_batches):
                rows = order[part * num // args.num_mini_batches : (part + 1) * num // args.num_mini_batches]
                figures = self._minibatch(model, batch, rows, epoch * args.num_mini_batches + part)
                skipped += figures is None
                self._count_skips(figures is None)
                if figures is not None:
                    seen.append(figures)
                    stopped = args.target_kl is not None and figures["approx_kl"] > args.target_kl
                if stopped:
                    break
            if stopped:
                break
        means = {key: sum(row[key] for row in seen) / len(seen) for key in seen[0]} if seen else {"loss": math.nan}
        if seen:
            means["ratio/first_deviation"] = seen[0]["ratio/first_deviation"]
        return means | {"updates_skipped": float(skipped), "updates_stopped": float(stopped)}

    def minibatch_order(self, epoch: int, num_episodes: int) -> list[int]:
        """The episodes in the order of one pass: a permutation that seed, round and pass decide."""
        generator = seeded(self.args.seed, "order", self.state.global_step, epoch)
        return torch.randperm(num_episodes, generator=generator).tolist()

    def _minibatch(self, model: Any, batch: Batch, rows: list[int], number: int) -> dict[str, float] | None:
        """One optimizer step on some episodes, dealt to ranks by tokens. None where it was skipped."""
        args, device = self.args, self.args.device
        rank, num_ranks = self.accelerator.process_index, self.accelerator.num_processes
        lengths = [episode.length for episode in batch.episodes]
        limit, padded = args.micro_batch_tokens or 1, not self.model.packs_rows
        dealt = [micro_batches(lengths, share, limit, padded) for share in shares(lengths, rows, num_ranks)]
        # ZeRO and DDP share gradients in backward passes: each rank makes as many, the surplus ones of weight 0.
        groups = dealt[rank] + [rows[:1]] * (max(map(len, dealt)) - len(dealt[rank]))
        num_tokens = int(batch.mask[rows].sum())
        demonstrations = self._demonstrations(len(rows), number)

        def learn(parts: list[str]) -> tuple[Tensor, float]:
            """Backward passes of some parts over all groups; their sums of _SUMS, and how far the ratio is off 1."""
            sums, deviation = torch.zeros(len(_SUMS), device=device), 0.0
            for at, group in enumerate(groups):
                weight = 1 / num_tokens if at < len(dealt[rank]) else 0.0
                flat, last = batch.flat(group), at == len(groups) - 1 and not demonstrations
                for part in parts:
                    with self._accumulating(model, last):
                        loss, added, moved = self._loss(model, flat, device, part)
                        sums += added * weight
                        deviation = max(deviation, moved if weight else 0.0)
                        self._backward(loss * weight * num_ranks, sums)
            return sums, deviation

        lanes = self._lanes(model)
        if len(lanes) > 1:
            self._make_room_for_gradients()
        done = abreast([partial(learn, parts) for parts in lanes])
        sums, deviation = torch.stack([each for each, _ in done]).sum(0), max(moved for _, moved in done)
        figures = {"loss/ptx": self._imitate(model, demonstrations, sums)} if demonstrations else {}
        *parts, deviations = self.accelerator.gather(torch.cat([sums, sums.new_tensor([deviation])])[None]).unbind(1)
        figures |= {name: part.sum().item() for name, part in zip(_SUMS, parts, strict=True)}
        figures["ratio/first_deviation"] = deviations.max().item()
        figures["loss"] = figures["loss/policy"] + args.vf_coef * figures["loss/value"]
        figures["loss"] += args.ptx_coef * figures.get("loss/ptx", 0.0)
        norm = self._step(model, finite=math.isfinite(figures["loss"]))
        return None if norm is None else figures | {"grad_norm": norm}

    def _lanes(self, model: Any) -> list[list[str]]:
        """What has a backward pass of its own, by what is computed at once.

        Policy and value model where they have a forward pass each, side by side where they share no weights and
        there are cores. A wrapper for several ranks counts on one pass through all weights.
        """
        if model is not self.model or self.model.kind == "shared":
            return [["both"]]
        return [["policy"], ["value"]] if self.abreast else [["policy", "value"]]

    def _make_room_for_gradients(self) -> None:
        """Have the gradients in one place: made between activations in two threads, they leave holes all over the heap.

        Those of weights that have had one: the others' stay None, and the optimizer leaves them alone.
        """
        for parameter in self.optimizer.state:
            parameter.grad = torch.zeros_like(parameter)

    def _loss(self, model: Any, flat: Batch, device: Any, part: str) -> tuple[Tensor, Tensor, float]:
        """The loss of a micro-batch summed over its tokens, the sums of _SUMS, and max |pi/pi_old - 1|; of a part."""
        args = self.args
        warming = self.state.global_step < args.value_warmup_steps
        input_ids, keep = pack(flat.episodes, device)
        logps, values, _ = model(input_ids, keep, args.temperature, detach_value=warming, part=part)
        sums = {name: logps.new_zeros(()) for name in _SUMS}
        loss, moved = logps.new_zeros(()), 0.0
        if part != "value":
            old_logps, advantages = flat.old_logps.to(device), flat.advantages.to(device)
            weights = None if flat.weights is None else flat.weights.to(device)
            policy, clipped = losses.policy_loss(
                logps, old_logps, advantages, args.cliprange, args.dual_clip, args.log_ratio_clamp, weights
            )
            loss = loss + policy.sum() * (0.0 if warming else 1.0)
            with torch.no_grad():
                sums["approx_kl"] = losses.kl_per_token(old_logps, logps, "k3").sum()
                moved = torch.expm1(logps - old_logps).abs().max().item()
            sums |= {"loss/policy": policy.sum(), "clip_fraction": clipped.float().sum()}
        if part != "policy":
            value, clipped = losses.value_loss(
                values, flat.old_values.to(device), flat.returns.to(device), args.cliprange_value
            )
            loss = loss + args.vf_coef * value.sum()
            sums |= {"loss/value": value.sum(), "clip_fraction_value": clipped.float().sum()}
        return loss, torch.stack([sums[name].detach().float() for name in _SUMS]), moved

    def _imitate(self, model: Any, rows: list[dict[str, Any]], sums: Tensor) -> float:
        """The SFT loss that InstructGPT mixes in (Ouyang et al. 2022, equation 2), on this rank's demonstrations."""
        rank, num_ranks, device = self.accelerator.process_index, self.accelerator.num_processes, self.args.device
        mine = rows[rank::num_ranks]
        weight = 1 / sum(sum(row["assistant_masks"][1:]) for row in rows) if mine else 0.0
        share = mine or rows[:1]
        width = max(len(row["input_ids"]) for row in share)
        input_ids = torch.tensor([row["input_ids"] + [0] * (width - len(row["input_ids"])) for row in share])
        keep = torch.tensor([row["assistant_masks"] + [0] * (width - len(row["input_ids"])) for row in share])
        with self._accumulating(model, last=True):
            logps, values, _ = model(input_ids.to(device), keep[:, 1:].bool().to(device), 1.0)
            loss = -logps.sum() * weight
            # Every weight takes part in the graph, or DDP waits for the value's gradients.
            self._backward((self.args.ptx_coef * loss + 0.0 * values.sum()) * num_ranks, sums + loss.detach())
        return self.accelerator.reduce(loss.detach(), "sum").item()

    def _demonstrations(self, num_rows: int, number: int) -> list[dict[str, Any]]:
        if not self.args.ptx_coef:
            return []
        generator = seeded(self.args.seed, "ptx", self.state.global_step, number)
        picked = torch.randint(len(self.sft_dataset), (num_rows,), generator=generator)
        return [self.sft_dataset[at] for at in picked.tolist()]

    @contextlib.contextmanager
    def _accumulating(self, model: Any, last: bool) -> Iterator[None]:
        """Ranks share gradients in the last backward pass of a step only, where that can be."""
        self.accelerator.gradient_state._set_sync_gradients(last)
        with contextlib.nullcontext() if last or self.is_deepspeed_enabled else self.accelerator.no_sync(model):
            yield

    def _backward(self, loss: Tensor, sums: Tensor) -> None:
        """`loss.backward()`; DeepSpeed also steps in the last of a minibatch, so a NaN must be seen before."""
        if not self.is_deepspeed_enabled:
            self.accelerator.backward(loss)
            return
        if self.accelerator.sync_gradients:
            finite = self.accelerator.reduce(torch.isfinite(sums).all().float(), "sum").item()
            if finite < self.accelerator.num_processes:
                raise UserError(
                    f"step {self.state.global_step + 1}: the loss is not a number; lower --learning_rate, and go on "
                    "from the last checkpoint with --resume true"
                )
        self.accelerator.backward(loss, scale_wrt_gas=False)

    def _step(self, model: Any, finite: bool) -> float | None:
        """Clip, step, clear. Returns the norm of the gradient, None where it or the loss is no number."""
        if self.is_deepspeed_enabled:  # the engine has stepped in its last backward pass
            return float(self.accelerator.deepspeed_engine_wrapped.get_global_grad_norm() or 0.0)
        limit = self.args.max_grad_norm or math.inf
        norm = float(self.accelerator.clip_grad_norm_(model.parameters(), limit)) if finite else math.nan
        if math.isfinite(norm):
            self.optimizer.step()
            if self.average is not None:
                self.average.update(self.model.policy)
        self.optimizer.zero_grad()  # gone, not 0: Trainer's own step, which follows a round, would move by momentum
        return norm if math.isfinite(norm) else None

    def _count_skips(self, skipped: bool) -> None:
        self.ppo.skipped += skipped
        self.ppo.skipped_in_a_row = self.ppo.skipped_in_a_row + 1 if skipped else 0
        if self.ppo.skipped_in_a_row >= self.args.max_skipped_steps:
            raise UserError(
                f"step {self.state.global_step + 1}: {self.ppo.skipped_in_a_row} updates in a row held a NaN and "
                "were skipped; lower --learning_rate, or train in float32 (--bf16 false), and go on from the last "
                "checkpoint with --resume true"
            )

    # Trainer clips and steps once more after `training_step`, on gradients that are gone: nothing happens.

    def _clip_grad_norm(self, model: Any) -> float:
        return self.ppo.figures[-1].get("grad_norm", math.nan) if self.ppo.figures else 0.0

    def _get_grad_norm(self, model: Any, grad_norm: Any = None) -> float:
        return self._clip_grad_norm(model)
