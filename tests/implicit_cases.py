"""Runs whose policy is a reward, and log-likelihoods token by token."""

import json
from pathlib import Path
from typing import Any

import torch

from rlhf.models import load_policy
from tests.tiny import tiny_policy

PROMPTS = [[{"role": "user", "content": "How many shoes?"}]] * 3
REPLIES = ["Thank you.", "You can return them within thirty days.", ""]


def logps_by_hand(folder: Path, reply: str) -> list[float]:
    """The log-likelihood of each token of the reply and its end, one softmax after another."""
    policy = load_policy(str(folder))
    chat: Any = policy.tokenizer.apply_chat_template(PROMPTS[0], tokenize=False, add_generation_prompt=True)
    ids = policy.tokenizer(chat, add_special_tokens=False)["input_ids"]
    found = []
    for token in [*policy.tokenizer(reply, add_special_tokens=False)["input_ids"], policy.tokenizer.eos_token_id]:
        with torch.no_grad():
            logits = policy.model(torch.tensor([ids])).logits[0, -1].double()
        found.append(float(torch.log_softmax(logits, -1)[token]))
        ids = [*ids, token]
    return found


def dpo_run(place: Path, **changes: Any) -> Path:
    """A folder as `rlhf dpo` leaves it."""
    folder = tiny_policy(place / "dpo", seed=1)
    config = {"beta": 0.25, "model_name_or_path": str(place / "sft")}
    record = {"id": "dpo-1", "stage": "dpo", "parents": [], "config": config, "data_sha256": {}, "git_sha": None}
    (folder / "run.json").write_text(json.dumps(record | {"versions": {}} | changes))
    return folder
