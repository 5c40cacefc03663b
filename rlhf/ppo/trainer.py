"""PPOTrainer: transformers' Trainer whose every step is one round of PPO. docs/ppo.md follows its order."""

import contextlib
import time
from typing import Any

import torch
from accelerate.utils import DynamoBackend, TorchDynamoPlugin
from torch import Tensor
from transformers import TrainerCallback, set_seed

from rlhf.abreast import can_run_abreast
from rlhf.data.encode import CutReport
from rlhf.hardware import denormals_flushed, give_back_freed_memory, give_back_holes
from rlhf.models import load_causal, load_tokenizer, stop_ids
from rlhf.ppo import losses
from rlhf.ppo.build import build_models, check_arguments
from rlhf.ppo.compiled import CompiledLayers
from rlhf.ppo.config import PPOConfig
from rlhf.ppo.engines import make_engine
from rlhf.ppo.experience import Experience
from rlhf.ppo.figures import of_look, of_round, of_speed
from rlhf.ppo.guard import Guard
from rlhf.ppo.prompts import Prompts, Row, prompt_room
from rlhf.ppo.rewards import load_rewards
from rlhf.ppo.rollout import Batch, Episode, padded, reply_mask
from rlhf.ppo.scores import combine
from rlhf.ppo.state import MovingAverage, PPOState
from rlhf.ppo.update import Updates


class PPOTrainer(Updates, Experience):
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
        check_arguments(args, train_dataset, eval_dataset, gold_func, sft_dataset)
        name, trust = model if isinstance(model, str) else model.config.name_or_path, args.trust_remote_code
        tokenizer = processing_class or load_tokenizer(name, trust_remote_code=trust)
        policy = load_causal(model, trust_remote_code=trust) if isinstance(model, str) else model
        reward_funcs = reward_funcs if isinstance(reward_funcs, list) else [reward_funcs]
        set_seed(args.seed)  # before new weights are drawn: a LoRA's, a head's
        networks, self.reference = build_models(
            policy, tokenizer, args, reward_funcs, ref_model=ref_model, value_model=value_model, peft_config=peft_config
        )
        self.rewards = load_rewards(
            reward_funcs,
            batch_size=args.per_device_eval_batch_size,
            trust_remote_code=trust,
            policy=networks.policy,
            bf16=args.bf16,
        )
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
        self.compiled: CompiledLayers | None = None
        if args.torch_compile:
            pair = [networks.policy, networks.value_model]
            self.compiled = CompiledLayers(pair, args.torch_compile_backend or "inductor", args.torch_compile_mode)
        alone = self.accelerator.num_processes == 1 and not self.is_deepspeed_enabled
        apart = networks.kind == "separate" and not args.torch_compile  # whose making of programs is for one thread
        self.abreast = alone and apart and can_run_abreast(args.device)
        self.stop_ids = set(stop_ids(policy)) | {tokenizer.eos_token_id}
        self.prompt_room = prompt_room(args, policy)
        self.prompts = Prompts(tokenizer, self.stop_ids, self.prompt_room)
        self.engine = make_engine(
            args, self.stop_ids, networks, self.accelerator, tokenizer, self.prompt_room + args.max_new_tokens
        )
        self.ppo = PPOState.start(args)
        self.average = MovingAverage(networks.policy, args.ema_decay) if args.ema_decay is not None else None
        self.sft_dataset = sft_dataset
        self.guard: Guard | None = None
        if args.guard_steps or args.kl_ceiling is not None:
            gold = load_rewards([gold_func], batch_size=args.per_device_eval_batch_size) if args.guard_steps else []
            self.guard = Guard(self, gold)
            self.add_callback(self.guard)

    def create_accelerator_and_postprocess(self) -> None:
        """As Trainer's, but that it compiles nothing: `torch_compile` is for layers here (rlhf/ppo/compiled.py)."""
        super().create_accelerator_and_postprocess()
        self.accelerator.state.dynamo_plugin = TorchDynamoPlugin(backend=DynamoBackend.NO)

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
        with denormals_flushed():
            if self.args.device.type == "cpu":
                give_back_freed_memory()
            try:
                output = super().train(*args, **kwargs)
            finally:
                self.is_in_train = False  # Trainer leaves it where a round fails
        if self.average is not None:
            self.average.copy_to(self.model.policy)
        return output

    # ---- One round

    def training_step(self, model: Any, inputs: list[Row], num_items_in_batch: Any = None) -> Tensor:
        """A rollout, its advantages, its updates. Returns the mean loss of the updates."""
        # Dropout is 0, and eval mode turns off what else differs; but only training mode checkpoints activations.
        self.model.train(bool(self.args.gradient_checkpointing))
        episodes, seconds = self.roll_out(inputs, "train", self.state.global_step)
        batch = self.advantages(episodes)
        if self.args.device.type == "cpu":
            give_back_holes()  # which a rollout leaves, and the updates' activations do not fill
        began = time.perf_counter()
        with contextlib.nullcontext() if self.compiled is None else self.compiled.active():
            figures = self.update(model, batch)
        seconds["seconds/update"] = time.perf_counter() - began
        if self.args.ref_ema_decay is not None:
            self.reference.follow(self.model.policy, self.args.ref_ema_decay)
        names = [reward.name for reward in self.rewards]
        figures = of_round(batch, names, self.ppo.kl.coef) | figures | seconds | of_speed(episodes, seconds)
        self.ppo.kl.update(figures["kl"], len(episodes))  # the price of the next round
        self.ppo.finish_round(figures, episodes, self.args.num_ppo_epochs)
        return torch.tensor(figures["loss"], device=self.args.device)

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

    # ---- Beside the rounds

    def evaluate(
        self, eval_dataset: Any = None, ignore_keys: Any = None, metric_key_prefix: str = "eval"
    ) -> dict[str, float]:
        """Score, KL, length and share of finished replies on the evaluation prompts."""
        rows: Any = self.eval_dataset if eval_dataset is None else eval_dataset
        metrics = {f"{metric_key_prefix}_{name}": value for name, value in of_look(self.look(list(rows))).items()}
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """As Trainer's; a training row takes in the mean figures of the rounds since the last one."""
        if "loss" in logs and "learning_rate" in logs:
            logs = {**logs, **self.ppo.take_figures()}
        super().log(logs, start_time)

    def cut(self) -> CutReport:
        """How many of the training conversations lose their start, and how many tokens of it."""
        return self.prompts.cut(self.train_dataset)


def _as_they_are(rows: list[Row]) -> Any:
    return rows
