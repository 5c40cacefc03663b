"""How episodes are made: replies sampled, weighed by policy, reference and value model, and scored."""

import time
from functools import partial
from statistics import fmean
from typing import Any

import torch
from accelerate.utils import gather_object
from trl.models.utils import unwrap_model_for_generation

from rlhf.abreast import abreast
from rlhf.layers import logits_of
from rlhf.ppo.checkpoint import Checkpoints
from rlhf.ppo.endpoint import RewardError
from rlhf.ppo.engines import Engine
from rlhf.ppo.networks import kept_hidden, token_logps
from rlhf.ppo.prompts import Prompts, Row
from rlhf.ppo.rewards import Reward
from rlhf.ppo.rollout import Episode, micro_batches, pack, seeded
from rlhf.ppo.scores import combine, score
from rlhf.ppo.selfcheck import check_architecture


class Experience(Checkpoints):
    """The part of PPOTrainer that turns prompts into episodes; where a reward fails it leaves a checkpoint."""

    accelerator: Any
    engine: Engine
    prompts: Prompts
    rewards: list[Reward]
    stop_ids: set[int]
    abreast: bool  # whether policy and value model compute at once
    checked: bool = False  # whether the self-check has passed

    def roll_out(
        self, rows: list[Row], purpose: str, step: int, gold: list[Reward] | None = None
    ) -> tuple[list[Episode], dict[str, float]]:
        """Sample one reply to each row's prompt, weigh and score it; every rank gets all ranks' episodes.

        The randomness of a reply comes from the seed, `purpose`, `step` and its place among all ranks'
        rows alone, so the same rows get the same replies however many ranks share them.
        """
        clock, seconds = _Clock(), {}
        prompts = [self.prompts.ids(row) for row in rows]
        first, num_ranks = self.accelerator.process_index * len(rows), self.accelerator.num_processes
        generator = seeded(self.args.seed, purpose, step)
        uniforms = torch.rand(len(rows) * num_ranks, self.args.max_new_tokens, generator=generator)
        mine = uniforms[first : first + len(rows)]
        engine, own = self.engine, self.engine.own_weights
        replies = engine.generate(self.model.policy, prompts, mine) if own else []
        with (
            torch.no_grad(),
            unwrap_model_for_generation(self.model_wrapped, self.accelerator) as unwrapped,
            self.accelerator.autocast(),
        ):
            networks: Any = unwrapped
            replies = replies if own else engine.generate(networks.policy, prompts, mine)
            episodes = [
                Episode(prompt, ids, ids[-1] in self.stop_ids, self.prompts.text(ids))
                for prompt, ids in zip(prompts, replies, strict=True)
            ]
            seconds["seconds/rollout"] = clock.lap()
            self._weigh(networks, episodes)
            if not self.checked and self.args.engine == "hf":
                check_architecture(networks.policy, episodes, mine, self.args.temperature)
                self.checked = True
        if self.engine.logps is not None:
            for episode, logps in zip(episodes, self.engine.logps, strict=True):
                episode.engine_logps = logps
        seconds["seconds/reference"] = clock.lap()
        self._score(rows, episodes, gold or [])
        seconds["seconds/reward"] = clock.lap()
        return gather_object(episodes), seconds

    def look(self, rows: list[Row], gold: list[Reward] | None = None) -> list[Episode]:
        """One reply to each row with the same randomness at every look, shared between ranks."""
        rank, num_ranks = self.accelerator.process_index, self.accelerator.num_processes
        share = -(-len(rows) // num_ranks)
        mine = [rows[min(at, len(rows) - 1)] for at in range(rank * share, (rank + 1) * share)]
        training = self.model.training
        self.model.eval()
        try:
            episodes, _ = self.roll_out(mine, "look", 0, gold)
        finally:
            self.model.train(training)
        return episodes[: len(rows)]

    def _weigh(self, networks: Any, episodes: list[Episode]) -> None:
        """Log-probabilities under policy and reference, values and entropy, on each episode's tokens.

        What the rollout has noted of them (`old_logps` rollout) is taken from there.
        """
        lengths = [episode.length for episode in episodes]
        limit, padded = self.args.micro_batch_tokens or 1, not self.model.packs_rows
        groups = micro_batches(lengths, list(range(len(episodes))), limit, padded)
        batches = [(group, *pack([episodes[row] for row in group], self.args.device)) for group in groups]
        notes = self.engine.notes
        if notes is not None:
            for episode, figures in zip(episodes, notes, strict=True):
                episode.logps, entropy, *values = figures.T.tolist()
                episode.entropy, episode.values = fmean(entropy), values[0] if values else []
        calls = [partial(self._weigh_by_reference, episodes, batches)]
        if notes is None or self.model.kind != "shared":
            part = "both" if notes is None else "value"
            calls.insert(0, partial(self._weigh_by_what_learns, networks, episodes, batches, part))
        if self.abreast and self.reference.model is not None:
            abreast(calls)
        else:
            for call in calls:
                call()

    def _weigh_by_what_learns(self, networks: Any, episodes: list[Episode], batches: list[Any], part: str) -> None:
        for group, input_ids, keep in batches:
            logps, values, entropy = networks(input_ids, keep, self.args.temperature, entropy=True, part=part)
            sizes = [len(episodes[row].ids) for row in group]
            for row, each in zip(group, values.split(sizes), strict=True):
                episodes[row].values = each.tolist()
            if part == "both":
                for row, each, spread in zip(group, logps.split(sizes), entropy.split(sizes), strict=True):
                    episodes[row].logps, episodes[row].entropy = each.tolist(), spread.mean().item()

    def _weigh_by_reference(self, episodes: list[Episode], batches: list[Any]) -> None:
        with self.reference.active(self.args.device) as reference:
            for group, input_ids, keep in batches:
                hidden = kept_hidden(reference, input_ids, keep)
                logps = token_logps(logits_of(reference), hidden, input_ids[:, 1:][keep], self.args.temperature)
                for row, each in zip(group, logps.split([len(episodes[row].ids) for row in group]), strict=True):
                    episodes[row].ref_logps = each.tolist()

    def _score(self, rows: list[Row], episodes: list[Episode], gold: list[Reward]) -> None:
        """Ask the reward functions, and the gold where there is one; an error on one rank is raised on all."""
        args = self.args
        columns = {key: [row[key] for row in rows] for key in rows[0] if key not in ("prompt", "prompt_ids")}
        prompts = [self.prompts.shown(row) for row in rows]
        completions = [
            [{"role": "assistant", "content": episode.text}] if isinstance(prompt, list) else episode.text
            for prompt, episode in zip(prompts, episodes, strict=True)
        ]
        error, scores, golds = "", [], []
        try:
            scores = score(self.rewards, prompts, completions, columns, args.reward_timeout)
            golds = score(gold, prompts, completions, columns, args.reward_timeout)
        except RewardError as caught:
            error = str(caught)
        if failed := [message for message in gather_object([error]) if message]:
            self.save_before_end()
            raise RewardError(failed[0])
        totals = combine(scores, args.reward_weights, args.reward_ensemble, args.reward_ensemble_k)
        for row, episode in enumerate(episodes):
            episode.scores, episode.score = [each[row] for each in scores], totals[row]
            episode.gold = [each[row] for each in golds]


class _Clock:
    """Seconds since the last lap."""

    def __init__(self) -> None:
        self.at = time.perf_counter()

    def lap(self) -> float:
        before, self.at = self.at, time.perf_counter()
        return self.at - before
