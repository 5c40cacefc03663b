"""Tiny models for tests: built in memory, no network, under a second."""

import json
from pathlib import Path

from rlhf.models import new_llama, train_tokenizer

_SENTENCES = [
    "Hello, how can I help you with your order today?",
    "I would like to return the shoes that I bought last week.",
    "You can return them within thirty days, with the receipt.",
    "Thank you, that is very kind. What time does the shop close?",
]


def tiny_policy(folder: str | Path, max_length: int = 256, seed: int = 0) -> Path:
    """A plain Hugging Face folder with a randomly initialised Llama; returns its path.

    32 wide, 2 layers, about 30,000 weights, context `max_length`. Byte-level BPE of 320 tokens with
    `<|im_start|>`, `<|im_end|>` (eos) and `<|pad|>`, and the ChatML template. It writes nonsense: which
    one depends on `seed`, and it hardly ever ends a turn by itself.
    """
    import torch

    folder = Path(folder)
    tokenizer = train_tokenizer(_SENTENCES, 320, "configs/templates/chatml.jinja")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = new_llama(tokenizer, hidden_size=32, num_layers=2, num_heads=2, max_length=max_length)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def endless_policies(place: Path, names: tuple[str, ...]) -> list[str]:
    """Policies of these names that never end their turn: a random one does so at one token in 300, by chance."""
    folders = []
    for seed, name in enumerate(names):
        folder = tiny_policy(place / name, max_length=4096, seed=seed)
        generation = json.loads((folder / "generation_config.json").read_text())
        generation["suppress_tokens"] = [generation["eos_token_id"]]
        (folder / "generation_config.json").write_text(json.dumps(generation))
        folders.append(str(folder))
    return folders
