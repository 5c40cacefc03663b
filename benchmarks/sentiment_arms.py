"""The three methods of benchmarks/sentiment.py, all from one start, and the one measure of them all."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from math import comb, log
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from numpy.typing import NDArray
from sentiment_world import Scorer

from rlhf.generate import Reply, Sampling, generate
from rlhf.intervals import mean_interval
from rlhf.likelihood import reply_kl
from rlhf.models import Policy, load_causal, load_policy, load_tokenizer
from rlhf.records import Messages, Preference, make_id, write_jsonl, write_whole

TEMPLATE = "configs/templates/user_bot.jinja"
MAX_NEW_TOKENS = 32
POOL = 64  # replies a held-out prompt, for best-of-n
CANDIDATES = 8  # replies a training prompt, for DPO's pairs
PAIRS = 2  # the best against the worst, the second best against the second worst
REPLIES = 2  # a held-out prompt, at every other point
CHECKPOINTS = 4  # of a run, each a point
ROUND = 128  # PPO's replies a round
Point = dict[str, Any]


@dataclass(frozen=True)
class World:
    """What all arms share. `folder` holds what was done before; `seed` decides all that is random."""

    model: str
    folder: Path
    seed: int
    train: list[Messages]
    held_out: list[Messages]
    proxy: Scorer
    gold: Scorer

    def start(self) -> Policy:
        """The policy that every arm starts from, and is compared to."""
        return load_policy(self.model, chat_template_path=TEMPLATE)

    def sampled(self, policy: Policy, prompts: list[Messages], count: int, seed: int) -> list[Reply]:
        """`count` replies to each prompt, in order."""
        sampling = Sampling(temperature=1.0, max_new_tokens=MAX_NEW_TOKENS, seed=seed)
        replies = [reply for _, batch in generate(policy, prompts, count, sampling, 256) for reply in batch]
        return sorted(replies, key=lambda reply: (reply.prompt_index, reply.index))

    def seconds(self) -> dict[str, float]:
        """CPU seconds of what is finished: on a machine that others use, the clock on the wall says little."""
        path = self.folder / "seconds.json"
        return json.loads(path.read_text()) if path.is_file() else {}

    @contextmanager
    def clocked(self, name: str) -> Iterator[None]:
        """Add what is done inside, its child processes included, to `seconds`, once it is finished."""
        began = sum(os.times()[:4])
        yield
        seconds = self.seconds()
        seconds[name] = seconds.get(name, 0.0) + sum(os.times()[:4]) - began
        write_whole(self.folder / "seconds.json", [json.dumps(seconds)])


# ---- The arms


def best_of_n(world: World) -> tuple[list[Point], dict[str, float]]:
    """A point for n = 1, 2, 4, ..., 64, and how the two scorers agree on the start's replies.

    Of a pool of N replies a prompt, sorted by the proxy, the i-th (from 1) is the best of n drawn without
    replacement with probability C(i-1, n-1) / C(N, n): an unbiased estimate of any figure of best-of-n
    (Gao et al. 2023, "Scaling laws for reward model overoptimization", appendix). Its KL is the upper bound
    log n - (n-1)/n (Beirami et al. 2024, "Theoretical guarantees on the best-of-n alignment policy").
    """
    path = world.folder / "pool.json"
    if not path.is_file():
        with world.clocked("best-of-n"):
            replies = world.sampled(world.start(), world.held_out, POOL, world.seed)
        write_whole(path, [json.dumps([[reply.text, len(reply.ids), reply.finished] for reply in replies])])
    texts, lengths, finished = zip(*json.loads(path.read_text()), strict=True)
    columns = {"proxy": world.proxy(list(texts)), "gold": world.gold(list(texts)), "length": lengths}
    table = {name: np.reshape(np.asarray(values, dtype=float), (-1, POOL)) for name, values in columns.items()}
    table["finished"] = np.reshape(finished, (-1, POOL)).astype(float)
    agreement = {
        "correlation": _correlation(table["proxy"], table["gold"]),
        "correlation_within_prompts": _correlation(*(_centred(table[name]) for name in ("proxy", "gold"))),
        "correlation_proxy_length": _correlation(table["proxy"], table["length"]),
        "correlation_gold_length": _correlation(table["gold"], table["length"]),
    }
    order = np.argsort(table["proxy"], axis=1, kind="stable")
    points = []
    for n in (2**power for power in range(POOL.bit_length())):
        weights = np.array([comb(below, n - 1) / comb(POOL, n) for below in range(POOL)])
        chosen = {name: np.take_along_axis(values, order, axis=1) @ weights for name, values in table.items()}
        bound = log(n) - (n - 1) / n
        kl = {"mean": bound, "low": bound, "high": bound, "n": len(order)}
        points.append({"arm": "best-of-n", "setting": n, "step": n, "last": True, "kl": kl} | _figures(chosen))
    return points, agreement


def ppo(world: World, kl_coef: float, rounds: int) -> list[Point]:
    """PPO against the proxy; a point a checkpoint."""

    def train(folder: Path) -> None:
        from datasets import Dataset
        from transformers import PrinterCallback
        from transformers.trainer_callback import ProgressCallback

        from rlhf.ppo import PPOConfig, PPOTrainer

        settings = PPOConfig(
            output_dir=str(folder),
            seed=world.seed,
            kl_coef=kl_coef,
            max_steps=rounds,
            save_steps=rounds // CHECKPOINTS,
            save_only_model=True,
            per_device_train_batch_size=ROUND,
            num_ppo_epochs=2,
            num_mini_batches=2,
            learning_rate=2e-5,
            value_learning_rate=1e-4,
            value_warmup_steps=5,
            max_new_tokens=MAX_NEW_TOKENS,
            missing_eos_penalty=0.0,  # the proxy alone is what all three methods work for
            report_to="none",
            use_cpu=True,
        )
        trainer = PPOTrainer(
            load_causal(world.model),
            world.proxy.reward,
            settings,
            Dataset.from_list([{"prompt": prompt} for prompt in world.train]),
            processing_class=load_tokenizer(world.model, TEMPLATE),
        )
        for printer in (PrinterCallback, ProgressCallback):
            trainer.remove_callback(printer)
        trainer.train()

    return _curve(world, "ppo", kl_coef, world.folder / f"ppo-{kl_coef}", train)


def dpo(world: World, beta: float) -> list[Point]:
    """`rlhf dpo` on pairs of the start's own replies that the proxy has labelled; a point a checkpoint."""
    pairs = preferences(world)

    def train(folder: Path) -> None:
        settings = {
            "preferences": str(pairs),
            "model_name_or_path": world.model,
            "chat_template_path": TEMPLATE,
            "output_dir": str(folder),
            "seed": world.seed,
            "beta": beta,
            "max_length": 128,  # nothing is longer
            "num_train_epochs": 1,
            "per_device_train_batch_size": 16,
            "learning_rate": 2e-5,
            "lr_scheduler_type": "linear",
            "warmup_steps": 0.1,
            "save_steps": 1 / CHECKPOINTS,
            "save_only_model": True,
            "num_kl_prompts": 0,  # measured here
            "gradient_checkpointing": False,
            "bf16": False,
            "use_cpu": True,
            "report_to": "none",
            "disable_tqdm": True,
        }
        config = folder.with_name(f"{folder.name}.yaml")
        config.write_text(yaml.safe_dump(settings))
        with folder.with_name(f"{folder.name}.log").open("w") as out:  # what goes wrong is still said on the screen
            subprocess.run([sys.executable, "-m", "rlhf", "dpo", "--config", str(config)], check=True, stdout=out)

    return _curve(world, "dpo", beta, world.folder / f"dpo-{beta}", train)


def preferences(world: World) -> Path:
    """The file of DPO's pairs: of each prompt's replies the best by the proxy against the worst, and the next two."""
    path = world.folder / "preferences.jsonl"
    if path.is_file():
        return path
    with world.clocked("preferences"):
        replies = world.sampled(world.start(), world.train, CANDIDATES, world.seed + 1)
    scores = world.proxy([reply.text for reply in replies]).reshape(-1, CANDIDATES)
    rows = []
    for at, prompt in enumerate(world.train):
        order = np.argsort(scores[at], kind="stable")
        for rank in range(PAIRS):
            best, worst = (replies[at * CANDIDATES + order[place]].text for place in (-1 - rank, rank))
            if scores[at, order[-1 - rank]] > scores[at, order[rank]]:
                chosen, rejected = ([{"role": "assistant", "content": text}] for text in (best, worst))
                rows.append(Preference(make_id("prf", at, rank), make_id("prm", prompt), prompt, chosen, rejected))
    write_jsonl(path, rows)
    return path


# ---- The measure


def _curve(world: World, arm: str, setting: float, folder: Path, train: Callable[[Path], None]) -> list[Point]:
    """The points of a run's checkpoints; what is trained or measured already is read."""
    if folder.name not in world.seconds():
        shutil.rmtree(folder, ignore_errors=True)
        with world.clocked(folder.name):
            train(folder)
    checkpoints = sorted(folder.glob("checkpoint-*"), key=_step)
    points = []
    for checkpoint in checkpoints:
        path = checkpoint / "point.json"
        if not path.is_file():
            with world.clocked("measure"):
                point = measure(world, str(checkpoint))
            write_whole(path, [json.dumps(point, indent=2)])
        which = {"arm": arm, "setting": setting, "step": _step(checkpoint), "last": checkpoint is checkpoints[-1]}
        points.append(which | json.loads(path.read_text()))
    return points


def measure(world: World, path: str) -> Point:
    """Both scores, KL to the start in nats a reply, length and end of a policy's replies to the held-out prompts."""
    policy = load_policy(path)
    replies = world.sampled(policy, world.held_out, REPLIES, world.seed + 2)
    texts = [reply.text for reply in replies]
    columns = {
        "kl": reply_kl(policy, world.start(), replies, batch_size=64),
        "proxy": world.proxy(texts),
        "gold": world.gold(texts),
        "length": [len(reply.ids) for reply in replies],
        "finished": [float(reply.finished) for reply in replies],
    }
    figures = _figures(
        {name: np.reshape(np.asarray(values, dtype=float), (-1, REPLIES)) for name, values in columns.items()}
    )
    return figures | {"examples": texts[: 5 * REPLIES : REPLIES]}


def _figures(columns: dict[str, NDArray[np.float64]]) -> Point:
    """Each column's mean with its interval over prompts, of values (prompts,) or (prompts, replies)."""
    bounds: dict[str, Any] = {"kl": (0.0, None), "length": (0.0, MAX_NEW_TOKENS), "finished": (0.0, 1.0)}
    figures = {}
    for name, values in columns.items():
        prompts = np.repeat(np.arange(len(values)), values.size // len(values)).tolist()
        figures[name] = asdict(mean_interval(values, prompts, bounds.get(name, (None, None))))
    return figures


def _centred(table: NDArray[np.float64]) -> NDArray[np.float64]:
    return table - table.mean(axis=1, keepdims=True)


def _correlation(a: NDArray[np.float64], b: NDArray[np.float64]) -> float:
    return float(np.corrcoef(a.ravel(), b.ravel())[0, 1])


def _step(checkpoint: Path) -> int:
    return int(checkpoint.name.rsplit("-", 1)[1])
