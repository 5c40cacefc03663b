"""ppo: train a policy on the scores of its own replies. The stage around PPOTrainer."""

import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from trl import ModelConfig, get_peft_config

from rlhf.config import as_dict, load_function
from rlhf.data.encode import Encoder
from rlhf.data.split import check_splits
from rlhf.models import load_tokenizer, stop_ids
from rlhf.ppo.config import PPOConfig
from rlhf.ppo.guard import best
from rlhf.ppo.rewards import text_reward
from rlhf.ppo.trainer import PPOTrainer
from rlhf.records import Demonstration, Prompt, Run, read_jsonl
from rlhf.runs import is_main_process, open_run
from rlhf.training import encode_rows, load_for_training, model_path, set_up, train

_LAST_FIGURES = ["score", "kl", "length", "eos_rate", "entropy", "explained_variance", "clip_fraction"]


@dataclass
class PPOData:
    """Where the prompts lie, and what scores the replies."""

    prompts: str = field(metadata={"help": "JSONL file of prompts to train on."})
    reward: list[str] = field(
        metadata={
            "help": "What scores replies, one or more: a reward run or classifier, an http(s):// address, or a "
            "`module:function` of (prompts, responses, **columns) -> numbers."
        }
    )
    eval_prompts: str | None = field(default=None, metadata={"help": "JSONL file of held-out prompts."})
    num_prompts: int | None = field(default=None, metadata={"help": "Take only the first so many prompts."})
    num_eval_prompts: int | None = field(default=None, metadata={"help": "Take only the first so many of these."})
    gold: str | None = field(
        default=None, metadata={"help": "What the guard asks, named as in `reward`, and not one of those."}
    )
    value_model: str | None = field(
        default=None,
        metadata={"help": "Start of a separate value model; default: the first reward run, else the policy."},
    )
    ref_model: str | None = field(default=None, metadata={"help": "The reference; the policy's start by default."})
    demonstrations: str | None = field(default=None, metadata={"help": "JSONL file to mix in with --ptx_coef."})
    chat_template_path: str | None = field(default=None, metadata={"help": "A .jinja file that replaces the template."})
    resume: bool = field(default=False, metadata={"help": "Go on with an unfinished run from its last checkpoint."})


class Config(NamedTuple):
    """What `configs/ppo.yaml` may hold."""

    data: PPOData
    model: ModelConfig
    training: PPOConfig


def run(config: Config) -> Run:
    """Train a policy by PPO; the run folder is a plain Hugging Face checkpoint, the value model in `value/`.

    With a guard the run's model is the best one by gold. Raises UserError for missing or broken data
    and models, before anything is written, and for reward functions that fail.
    """
    data, model_config, training = config
    set_up(training)
    path = model_path(model_config)
    prompts = read_jsonl(data.prompts, Prompt)[: data.num_prompts]
    held_out = read_jsonl(data.eval_prompts, Prompt)[: data.num_eval_prompts] if data.eval_prompts else []
    if data.eval_prompts:
        check_splits([data.prompts, data.eval_prompts])
    demonstrations = read_jsonl(data.demonstrations, Demonstration) if data.demonstrations else []
    rewards = [_scorer(name, "reward") for name in data.reward]
    gold = _scorer(data.gold, "gold") if data.gold else None

    tokenizer = load_tokenizer(path, data.chat_template_path, training.trust_remote_code)
    model = load_for_training(model_config, training)
    reference = data.ref_model
    if reference is None and not model_config.use_peft:
        reference = load_for_training(model_config, training)
    imitated = _tokenize(demonstrations, Encoder(tokenizer, stop_ids(model)), data) if demonstrations else None

    inputs = {
        "model": path,
        "prompts": data.prompts,
        "eval_prompts": data.eval_prompts,
        "demonstrations": data.demonstrations,
        "value_model": data.value_model,
        "ref_model": data.ref_model,
        "gold": data.gold,
    } | {f"reward {at}": name for at, name in enumerate(data.reward)}
    with open_run("ppo", str(training.output_dir), as_dict(config), inputs, data.resume) as folder:
        trainer = PPOTrainer(
            model=model,
            reward_funcs=rewards,
            args=training,
            train_dataset=_rows(prompts),
            eval_dataset=_rows(held_out) or None,
            processing_class=tokenizer,
            ref_model=reference,
            value_model=data.value_model,
            peft_config=get_peft_config(model_config),
            gold_func=gold,
            sft_dataset=imitated,
        )
        cut = trainer.cut()
        if is_main_process() and (sentence := cut.sentence("prompts", trainer.prompt_room)):
            print(sentence)
        metrics: dict[str, Any] = {"steps": train(trainer, folder, data.resume)["steps"]}
        last = next((row for row in reversed(trainer.state.log_history) if "score" in row), {})
        metrics |= {key: last[key] for key in _LAST_FIGURES if key in last}
        if held_out:
            metrics |= {key: value for key, value in trainer.evaluate().items() if key != "epoch"}
        metrics |= _guarded(trainer, folder.path)
        metrics |= {"episodes": trainer.ppo.num_episodes, "updates_skipped": trainer.ppo.skipped}
        folder.tokens_generated, folder.tokens_trained = trainer.ppo.tokens_generated, trainer.ppo.tokens_trained
        return folder.finish(**metrics, cut=cut.metrics())


def _scorer(name: str, key: str) -> Any:
    """A `module:function` as a callable; addresses and paths as they are, which PPOTrainer loads."""
    if name.startswith(("http://", "https://")) or Path(name).exists() or ":" not in name:
        return name
    return text_reward(load_function(name, key))


def _rows(prompts: list[Prompt]) -> list[dict[str, Any]]:
    """Prompts as the trainer takes them: what a prompt's `meta` holds becomes columns of the reward functions."""
    return [{**prompt.meta, "prompt": prompt.messages} for prompt in prompts]


def _tokenize(rows: list[Demonstration], encoder: Encoder, data: PPOData) -> list[dict[str, list[int]]]:
    def encode(row: Demonstration, cut: Any) -> dict[str, list[int]] | None:
        encoded = encoder.encode_conversation(row.messages, None, cut)
        return {"input_ids": encoded[0], "assistant_masks": encoded[1]} if encoded else None

    return encode_rows(rows, encode, "demonstrations", 0, str(data.demonstrations))[0]


def _guarded(trainer: PPOTrainer, folder: Path) -> dict[str, Any]:
    """Make the best policy by gold the run's, and say why training stopped early."""
    if trainer.guard is None:
        return {}
    if trainer.guard.message and is_main_process():
        print(trainer.guard.message)
    looks = trainer.ppo.guard.get("looks")
    if not looks:
        return {"stopped": trainer.guard.message}
    top = best(looks)
    if top is not looks[-1] and is_main_process():
        shutil.copytree(folder / "best", folder, dirs_exist_ok=True)
    gold = sum(top["gold"]) / len(top["gold"])
    return {"best_step": top["step"], "best_gold": gold, "stopped": trainer.guard.message}
