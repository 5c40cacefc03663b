"""PPOTrainer: transformers' Trainer whose every step is one round of PPO. docs/ppo.md follows its order."""

import resource
import time
from typing import Any

import torch
from accelerate.utils import gather_object
from torch import Tensor
from transformers import Trainer, TrainerCallback, set_seed
from trl.models.utils import unwrap_model_for_generation

from rlhf.data.encode import CutReport, Encoder
from rlhf.errors import UserError
from rlhf.models import context_length, load_causal, load_tokenizer, stop_ids
from rlhf.ppo import losses
from rlhf.ppo.build import build_models
from rlhf.ppo.checkpoint import Checkpoints
from rlhf.ppo.config import PPOConfig
from rlhf.ppo.endpoint import RewardError
from rlhf.ppo.engines import Engine, make_engine
from rlhf.ppo.guard import Guard
from rlhf.ppo.networks import kept_hidden, logits_of, token_logps
from rlhf.ppo.rewards import combine, load_rewards, score
from rlhf.ppo.rollout import Batch, Episode, micro_batches, pack, padded, reply_mask, seeded
from rlhf.ppo.selfcheck import check_architecture
from rlhf.ppo.state import MovingAverage, PPOState
from rlhf.ppo.update import Updates
from rlhf.ppo.vllm_engine import require_vllm

Row = dict[str, Any]


class PPOTrainer(Updates, Checkpoints, Trainer):
    """Proximal policy optimization with GRPOTrainer's conventions.

    Args:
        model: the policy to train: a causal language model, a PEFT one included, or a path or Hub id.
        reward_funcs: one or several of: a callable `(prompts, completions, **columns) -> list[float]`,
            a sequence classifier's path or Hub id, `(classifier, tokenizer)`, or an `http(s)://` address.
        args: the settings.
        train_dataset: rows with `prompt` (messages, or plain text) or `prompt_ids`; other columns go to
            the reward functions.
        eval_dataset: the same, for `evaluate` and for the guard.
        processing_class: the policy's tokenizer; loaded where `model` is a path.
        ref_model: the reference; the policy as it starts where none is given.
        value_model: a sequence classifier for `value_model_kind` separate; else made from the first
            reward function that is a path, else from the policy.
        peft_config: train a LoRA of this shape instead of all weights.
        callbacks: as Trainer's.
        gold_func: what the guard asks: a callable or anything else that may be a reward function.
        sft_dataset: rows of `input_ids` and `assistant_masks` for `ptx_coef`.

    Raises UserError for settings, models or data that do not fit each other.
    """

    def __init__(
        self,
        model: Any,
        reward_funcs: Any,
        args: PPOConfig,
        train_dataset: Any,
        eval_dataset: Any = None,
        processing_class: Any = None,
        ref_model: Any = None,
        value_model: Any = None,
        peft_config: Any = None,
        callbacks: list[TrainerCallback] | None = None,
        gold_func: Any = None,
        sft_dataset: Any = None,
    ) -> None:
        _check(args, train_dataset, eval_dataset, gold_func, sft_dataset)
        name, trust = model if isinstance(model, str) else model.config.name_or_path, args.trust_remote_code
        tokenizer = processing_class or load_tokenizer(name, trust_remote_code=trust)
        policy = load_causal(model, trust_remote_code=trust) if isinstance(model, str) else model
        reward_funcs = reward_funcs if isinstance(reward_funcs, list) else [reward_funcs]
        set_seed(args.seed)  # before new weights are drawn: a LoRA's, a head's
        networks, self.reference = build_models(
            policy, tokenizer, args, reward_funcs, ref_model=ref_model, value_model=value_model, peft_config=peft_config
        )
        self.rewards = load_rewards(reward_funcs, batch_size=args.per_device_eval_batch_size, trust_remote_code=trust)
        combine([[0.0]] * len(self.rewards), args.reward_weights, args.reward_ensemble, args.reward_ensemble_k)
        super().__init__(
            model=networks,
            args=args,
            train_dataset=train_dataset,
            eval_dataset=eval_dataset,
            processing_class=tokenizer,
            data_collator=_as_they_are,
            callbacks=callbacks,
        )
        self.tokenizer = tokenizer
        self.stop_ids = set(stop_ids(policy)) | {tokenizer.eos_token_id}
        self.encoder = Encoder(tokenizer, sorted(self.stop_ids)) if tokenizer.chat_template else None
        self.prompt_room = _prompt_room(args, policy)
        self.engine: Engine = make_engine(
            args, self.stop_ids, networks.policy, self.accelerator, tokenizer, self.prompt_room + args.max_new_tokens
        )
        self.ppo = PPOState.start(args)
        self._checked = False
        self.average = MovingAverage(networks.policy, args.ema_decay) if args.ema_decay is not None else None
        self.sft_dataset = sft_dataset
        self.guard: Guard | None = None
        if args.guard_steps or args.kl_ceiling is not None:
            gold = load_rewards([gold_func], batch_size=args.per_device_eval_batch_size) if args.guard_steps else []
            self.guard = Guard(self, gold)
            self.add_callback(self.guard)

    def create_optimizer(self, model: Any = None) -> Any:
        """As Trainer's, with a learning rate of its own for the value model's weights."""
        super().create_optimizer(model)
        args, value = self.args, {id(parameter) for parameter in self.model.value_parameters()}
        optimizer: Any = self.optimizer
        if args.value_learning_rate is None or any("value" in group for group in optimizer.param_groups):
            return optimizer
        for group in list(optimizer.param_groups):
            theirs = [parameter for parameter in group["params"] if id(parameter) in value]
            group["params"] = [parameter for parameter in group["params"] if id(parameter) not in value]
            settings = {key: setting for key, setting in group.items() if key != "params"}
            optimizer.add_param_group({**settings, "params": theirs, "lr": args.value_learning_rate, "value": True})
        optimizer.param_groups[:] = [group for group in optimizer.param_groups if group["params"]]
        return optimizer

    def train(self, *args: Any, **kwargs: Any) -> Any:
        """As Trainer's; with `ema_decay` the policy then has the average of its weights."""
        # A sure policy's probabilities and gradients are full of numbers under 1e-38, which CPUs handle very slowly.
        # Only while training: other code of this process may count on them.
        torch.set_flush_denormal(True)
        try:
            output = super().train(*args, **kwargs)
        finally:
            torch.set_flush_denormal(False)
        if self.average is not None:
            self.average.copy_to(self.model.policy)
        return output

    # ---- One round

    def training_step(self, model: Any, inputs: list[Row], num_items_in_batch: Any = None) -> Tensor:
        """A rollout, its advantages, its updates. Returns the mean loss of the updates."""
        # Dropout is 0, and eval mode turns off what else differs; but only training mode checkpoints activations.
        self.model.train(bool(self.args.gradient_checkpointing))
        try:
            episodes, seconds = self.roll_out(inputs, "train", self.state.global_step)
        except RewardError:
            self.save_before_end()
            raise
        batch = self.advantages(episodes)
        began = time.perf_counter()
        figures = self.update(model, batch)
        seconds["seconds/update"] = time.perf_counter() - began
        if self.args.ref_ema_decay is not None:
            self.reference.follow(self.model.policy, self.args.ref_ema_decay)
        figures = self.describe(batch) | figures | seconds | _speed(episodes, seconds)
        self.ppo.finish_round(figures, len(episodes))
        return torch.tensor(figures["loss"], device=self.args.device)

    def roll_out(
        self, rows: list[Row], purpose: str, step: int, gold: list[Any] | None = None
    ) -> tuple[list[Episode], dict[str, float]]:
        """Sample one reply to each row's prompt, weigh and score it; every rank gets all ranks' episodes.

        The randomness of a reply comes from the seed, `purpose`, `step` and its place among all ranks'
        rows alone, so the same rows get the same replies however many ranks share them.
        """
        clock, seconds = _Clock(), {}
        prompts = [self._prompt_ids(row) for row in rows]
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
                Episode(prompt, ids, ids[-1] in self.stop_ids, self._text(ids))
                for prompt, ids in zip(prompts, replies, strict=True)
            ]
            seconds["seconds/rollout"] = clock.lap()
            self._weigh(networks, episodes)
            if not self._checked and self.args.engine == "hf":
                check_architecture(networks.policy, episodes, mine, self.args.temperature)
                self._checked = True
        if self.engine.logps is not None:
            for episode, logps in zip(episodes, self.engine.logps, strict=True):
                episode.engine_logps = logps
        seconds["seconds/reference"] = clock.lap()
        self._score(rows, episodes, gold or [])
        seconds["seconds/reward"] = clock.lap()
        return gather_object(episodes), seconds

    def _weigh(self, networks: Any, episodes: list[Episode]) -> None:
        """Log-probabilities under policy and reference, values and entropy, on each episode's tokens."""
        lengths = [episode.length for episode in episodes]
        groups = micro_batches(lengths, list(range(len(episodes))), self.args.micro_batch_tokens or 1)
        batches = [(group, *pack([episodes[row] for row in group], self.args.device)) for group in groups]
        for group, input_ids, keep in batches:
            figures = networks(input_ids, keep, self.args.temperature, entropy=True)
            parts = [figure.split([len(episodes[row].ids) for row in group]) for figure in figures]
            for row, logps, values, entropy in zip(group, *parts, strict=True):
                episodes[row].logps, episodes[row].values = logps.tolist(), values.tolist()
                episodes[row].entropy = entropy.mean().item()
        with self.reference.active(self.args.device) as reference:
            for group, input_ids, keep in batches:
                hidden = kept_hidden(reference, input_ids, keep)
                logps = token_logps(logits_of(reference), hidden, input_ids[:, 1:][keep], self.args.temperature)
                for row, part in zip(group, logps.split([len(episodes[row].ids) for row in group]), strict=True):
                    episodes[row].ref_logps = part.tolist()

    def _score(self, rows: list[Row], episodes: list[Episode], gold: list[Any]) -> None:
        """Ask the reward functions, and the gold where there is one; an error on one rank is raised on all."""
        args = self.args
        columns = {key: [row[key] for row in rows] for key in rows[0] if key not in ("prompt", "prompt_ids")}
        prompts = [self._prompt(row) for row in rows]
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
            raise RewardError(failed[0])
        totals = combine(scores, args.reward_weights, args.reward_ensemble, args.reward_ensemble_k)
        for row, episode in enumerate(episodes):
            episode.scores, episode.score = [each[row] for each in scores], totals[row]
            episode.gold = [each[row] for each in golds]

    def advantages(self, episodes: list[Episode]) -> Batch:
        """What each token was paid, and how much better that is than the value model expected."""
        args = self.args
        mask = reply_mask(episodes)
        logps, ref_logps, values = (
            padded([getattr(episode, name) for episode in episodes], mask.shape[1])
            for name in ("logps", "ref_logps", "values")
        )
        paid = torch.tensor(self.ppo.pay(episodes, args))
        kl = losses.kl_per_token(logps, ref_logps, args.kl_estimator)
        rewards = losses.token_rewards(paid, kl, mask, self.ppo.kl.coef)
        advantages, returns = losses.gae(rewards, values, mask, args.gamma, args.lam)
        if args.whiten_advantages:
            advantages = losses.whiten(advantages, mask)
        weights = None
        if all(episode.engine_logps is not None for episode in episodes):
            engine = padded([episode.engine_logps or [] for episode in episodes], mask.shape[1])
            weights = losses.mismatch_weights(logps, engine, args.importance_cap)
        return Batch(episodes, mask, logps, values, logps - ref_logps, rewards, advantages, returns, weights)

    def describe(self, batch: Batch) -> dict[str, float]:
        """The round's figures that do not come from its updates; moves the KL's price for the next."""
        episodes = batch.episodes
        scores = torch.tensor([episode.score for episode in episodes])
        kl = (batch.kl * batch.mask).sum(1).mean().item()
        figures = {
            "score": scores.mean().item(),
            "score/std": scores.std().item() if len(episodes) > 1 else 0.0,
            "reward": batch.rewards.sum(1).mean().item(),
            "kl": kl,
            "kl_coef": self.ppo.kl.coef,
            "length": batch.mask.sum(1).float().mean().item(),
            "eos_rate": sum(episode.finished for episode in episodes) / len(episodes),
            "entropy": sum(episode.entropy for episode in episodes) / len(episodes),
            "explained_variance": losses.explained_variance(batch.old_values[batch.mask], batch.returns[batch.mask]),
        }
        if len(self.rewards) > 1:
            for at, reward in enumerate(self.rewards):
                figures[f"score/{reward.name}"] = sum(episode.scores[at] for episode in episodes) / len(episodes)
        self.ppo.kl.update(kl, len(episodes))
        return figures

    # ---- Looking at held-out prompts

    def look(self, rows: list[Row], gold: list[Any] | None = None) -> list[Episode]:
        """One reply to each row with the same randomness at every look, shared between ranks."""
        rank, num_ranks = self.accelerator.process_index, self.accelerator.num_processes
        share = -(-len(rows) // num_ranks)
        mine = [rows[min(at, len(rows) - 1)] for at in range(rank * share, (rank + 1) * share)]
        training = self.model.training
        self.model.eval()
        episodes, _ = self.roll_out(mine, "look", 0, gold)
        self.model.train(training)
        return episodes[: len(rows)]

    def evaluate(
        self, eval_dataset: Any = None, ignore_keys: Any = None, metric_key_prefix: str = "eval"
    ) -> dict[str, float]:
        """Score, KL, length and share of finished replies on the evaluation prompts."""
        rows: list[Row] = list(self.eval_dataset if eval_dataset is None else eval_dataset)  # type: ignore[arg-type]
        episodes = self.look(rows)
        figures = {
            "score": [episode.score for episode in episodes],
            "kl": [sum(episode.logps) - sum(episode.ref_logps) for episode in episodes],
            "length": [len(episode.ids) for episode in episodes],
            "eos_rate": [float(episode.finished) for episode in episodes],
        }
        metrics = {f"{metric_key_prefix}_{name}": sum(values) / len(values) for name, values in figures.items()}
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """As Trainer's; a training row takes in the mean figures of the rounds since the last one."""
        if "loss" in logs and "learning_rate" in logs:
            logs = {**logs, **self.ppo.take_figures()}
        super().log(logs, start_time)

    # ---- Text and ids

    def cut(self) -> CutReport:
        """How many of the training conversations lose their start, and how many tokens of it."""
        report = CutReport()
        rows: Any = self.train_dataset if self.encoder is not None else []
        for row in rows:
            if "prompt_ids" not in row and isinstance(row["prompt"], list):
                report.num_examples += 1
                self.encoder.fit_prompt(row["prompt"], self.prompt_room, report)  # type: ignore[union-attr]
        return report

    def _prompt(self, row: Row) -> Any:
        return row["prompt"] if "prompt" in row else self.tokenizer.decode(row["prompt_ids"])

    def _prompt_ids(self, row: Row) -> list[int]:
        if "prompt_ids" in row or isinstance(row["prompt"], str):
            ids = row["prompt_ids"] if "prompt_ids" in row else self.tokenizer(row["prompt"])["input_ids"]
            if not len(ids):
                raise UserError("train_dataset: a prompt is empty; remove it, or give it a first token")
            return list(ids)[-self.prompt_room :]
        if self.encoder is None:
            raise UserError("train_dataset: prompts are conversations, and the tokenizer has no chat template; set one")
        return self.encoder.fit_prompt(row["prompt"], self.prompt_room, CutReport())

    def _text(self, ids: list[int]) -> str:
        return self.tokenizer.decode(ids, skip_special_tokens=True).strip()


def _as_they_are(rows: list[Row]) -> Any:
    return rows


class _Clock:
    """Seconds since the last lap."""

    def __init__(self) -> None:
        self.at = time.perf_counter()

    def lap(self) -> float:
        before, self.at = self.at, time.perf_counter()
        return self.at - before


def _speed(episodes: list[Episode], seconds: dict[str, float]) -> dict[str, float]:
    total = sum(seconds.values())
    return {
        "episodes_per_second": len(episodes) / total,
        "tokens_per_second": sum(episode.length for episode in episodes) / total,
        "memory/peak_mb": _peak_memory(),
    }


def _peak_memory() -> float:
    """The accelerator's peak, else the process's, in MB (2**20 bytes)."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10


def _prompt_room(args: PPOConfig, policy: Any) -> int:
    """The longest prompt in tokens. Raises UserError where the context has no room for one."""
    room = context_length(policy) - args.max_new_tokens
    if room < 1:
        raise UserError(
            f"max_new_tokens: {args.max_new_tokens} leaves no room for a prompt in a context of "
            f"{context_length(policy)}; set --max_new_tokens {context_length(policy) // 2} or less"
        )
    return min(room, args.max_prompt_length or room)


def _check(args: PPOConfig, train_dataset: Any, eval_dataset: Any, gold_func: Any, sft_dataset: Any) -> None:
    """Raise UserError for settings that miss what they need."""
    if args.engine != "hf":
        require_vllm(args.engine)
    needed = args.per_device_train_batch_size * args.world_size
    if len(train_dataset) < needed:
        raise UserError(
            f"train_dataset: has {len(train_dataset)} prompts and a round takes {needed}; give more, or lower "
            "--per_device_train_batch_size"
        )
    columns = set(train_dataset[0])
    if not columns & {"prompt", "prompt_ids"}:
        raise UserError(f"train_dataset: has no column `prompt`; there are: {', '.join(sorted(columns))}")
    if args.ptx_coef and sft_dataset is None:
        raise UserError("ptx_coef: needs demonstrations to mix in; give sft_dataset (--demonstrations FILE)")
    if args.guard_steps and gold_func is None:
        raise UserError("guard_steps: needs a gold to ask; give gold_func (--gold), or set --guard_steps 0")
    if args.guard_steps and eval_dataset is None:
        raise UserError("guard_steps: needs held-out prompts; give eval_dataset (--eval_prompts FILE)")
