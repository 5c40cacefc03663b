"""What the PPO benchmarks run on: random-weight models, a tokenizer and prompts, in a folder; no network.

The models are plain Qwen2 checkpoints, so that every trainer and every engine takes them as they are. What
ends a reply is in the policy's weights alone: the first dimensions of the residual stream are reserved. The
embedding writes them, no layer does (their rows of `o_proj` and `down_proj` are 0), and the output layer
reads them:

- dimension 0 is 1 for every token; from it the output layer gives pad a logit of about -400, and where
  replies do not end, eos too: neither is ever sampled;
- where replies end (`ragged`), one-hot dimensions hold the class of the last token, which is how many tokens
  are still to come, and the output layer allows only the class below, at the end eos. So the last
  token of a prompt sets the length of its reply, drawn at random beforehand: the same in every trainer.
"""

import json
import platform
import random
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

PAD, EOS = 0, 1
FIRST_WORD = 2
# Turns one after the other, eos at the end of a reply: a reward model reads the text as it reads the ids.
TEMPLATE = (
    "{% for message in messages %}{{ message['content'] }} "
    "{% if message['role'] == 'assistant' %}<eos> {% endif %}{% endfor %}"
)
# Of a reserved dimension; the final norm makes 1 there at least 5, so logits lie 200 apart. At 100 apart the
# probabilities are not 0 but under 1e-38, on which a CPU spends more time than on everything else.
READOUT = 40.0


@dataclass(frozen=True)
class Shape:
    """A model's shape and a round's. Lengths are in tokens, `longest_reply` with the end of turn."""

    hidden: int = 256
    intermediate: int = 1024
    layers: int = 6
    heads: int = 4
    vocabulary: int = 4096
    episodes: int = 64
    shortest_prompt: int = 8
    longest_prompt: int = 64
    shortest_reply: int = 8
    longest_reply: int = 64
    epochs: int = 4
    minibatches: int = 4


FULL = Shape()  # 8.4 million parameters
TINY = Shape(hidden=64, intermediate=128, layers=2, vocabulary=256, episodes=8, longest_prompt=16, longest_reply=16)


@dataclass
class Inputs:
    """What a folder holds, loaded: float32 models on the CPU."""

    shape: Shape
    prompts: list[list[int]]
    ends: bool
    tokenizer: Any
    policy: Any
    value: Any
    reward: Any


def write_inputs(folder: Path, shape: Shape, ends: bool, seed: int = 0) -> Path:
    """Write a policy, a value model, a reward model and one round's prompts; returns the folder.

    Args:
        ends: replies end, at `shortest_reply` to `longest_reply` tokens; else all have `longest_reply`.
    """
    import torch
    from transformers import Qwen2ForCausalLM, Qwen2ForSequenceClassification
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()
    config = qwen2_config(shape, shape.heads)
    torch.manual_seed(seed)
    policy = Qwen2ForCausalLM(config)
    set_ends(policy, shape, ends)
    tokenizer = word_tokenizer(shape.vocabulary)
    models = {"policy": policy, "value": Qwen2ForSequenceClassification(config)}
    models["reward"] = Qwen2ForSequenceClassification(config)
    for name, model in models.items():
        model.save_pretrained(folder / name)
        tokenizer.save_pretrained(folder / name)
    round_ = {"shape": asdict(shape), "ends": ends, "prompts": make_prompts(shape, ends, seed)}
    (folder / "round.json").write_text(json.dumps(round_) + "\n")
    return folder


def qwen2_config(shape: Shape, kv_heads: int) -> Any:
    """Qwen2's architecture in this shape, for the policy and for classifiers with one label."""
    from transformers import Qwen2Config

    config = Qwen2Config(
        vocab_size=shape.vocabulary,
        hidden_size=shape.hidden,
        intermediate_size=shape.intermediate,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=kv_heads,
        max_position_embeddings=4 * (shape.longest_prompt + shape.longest_reply),
        tie_word_embeddings=False,
        pad_token_id=PAD,
        bos_token_id=None,
        eos_token_id=EOS,
    )
    config.num_labels = 1
    return config


def set_ends(policy: Any, shape: Shape, ends: bool) -> None:
    """Write into the policy's weights what may follow a token; see this file's top."""
    import torch

    classes = torch.tensor([word_class(token, shape) for token in range(shape.vocabulary)])
    tokens = torch.arange(shape.vocabulary)
    reserved = slice(0, 2 + shape.longest_reply)  # the constant, then classes 0 to longest_reply
    embedding, output = policy.model.embed_tokens.weight.data, policy.lm_head.weight.data
    embedding[:, reserved] = output[:, reserved] = 0
    embedding[:, 0] = 1
    output[PAD, 0] = -READOUT
    if ends:
        embedding[tokens, 1 + classes] = 1
        following = (1 + classes + 1).clamp(max=1 + shape.longest_reply)
        output[tokens[EOS:], following[EOS:]] = READOUT
        output[classes == shape.longest_reply, 1 + shape.longest_reply] = 0  # only a prompt ends with this class
    else:
        output[EOS, 0] = -READOUT
    for layer in policy.model.layers:
        layer.self_attn.o_proj.weight.data[reserved] = 0
        layer.mlp.down_proj.weight.data[reserved] = 0


def word_class(token: int, shape: Shape) -> int:
    """How many tokens follow this one in a reply that ends: 0 for eos, 1 to `longest_reply` for words."""
    return 0 if token < FIRST_WORD else 1 + (token - FIRST_WORD) % shape.longest_reply


def make_prompts(shape: Shape, ends: bool, seed: int) -> list[list[int]]:
    """One round's prompts: words at random, lengths evenly from shortest to longest, in random order.

    Where replies end, each prompt's last token sets its reply's length, spread evenly and drawn independently.
    """
    draw = random.Random(seed)
    lengths = spread(shape.shortest_prompt, shape.longest_prompt, shape.episodes)
    replies = spread(shape.shortest_reply, shape.longest_reply, shape.episodes)
    draw.shuffle(lengths)
    draw.shuffle(replies)
    words = range(FIRST_WORD, shape.vocabulary)
    prompts = [draw.choices(words, k=length) for length in lengths]
    if ends:
        for prompt, reply in zip(prompts, replies, strict=True):
            prompt[-1] = draw.choice([word for word in words if word_class(word, shape) == reply])
    return prompts


def spread(low: int, high: int, count: int) -> list[int]:
    """`count` whole numbers evenly from low to high, both included."""
    return [low + round((high - low) * at / max(count - 1, 1)) for at in range(count)]


def word_tokenizer(vocabulary: int) -> Any:
    """One word a token, so that text and token ids are the same thing: `w2 w3 ...`, `<pad>` and `<eos>`."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = {"<pad>": PAD, "<eos>": EOS} | {f"w{token}": token for token in range(FIRST_WORD, vocabulary)}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="<pad>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    specials = {"pad_token": "<pad>", "eos_token": "<eos>", "padding_side": "left"}
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, **specials)
    fast.chat_template = TEMPLATE
    return fast


def load_inputs(folder: Path, value: bool = True) -> Inputs:
    """Load what `write_inputs` wrote; without the value model where a trainer needs none."""
    import torch
    from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, PreTrainedTokenizerFast

    round_ = json.loads((folder / "round.json").read_text())
    # AutoTokenizer goes by the model's kind and would take Qwen's.
    tokenizer = PreTrainedTokenizerFast.from_pretrained(folder / "policy")
    assert tokenizer.padding_side == "left"  # TRL pads its prompts as the tokenizer does
    policy = AutoModelForCausalLM.from_pretrained(folder / "policy", dtype=torch.float32)
    policy.generation_config.update(eos_token_id=EOS, pad_token_id=PAD)
    classifier = AutoModelForSequenceClassification.from_pretrained
    return Inputs(
        shape=Shape(**round_["shape"]),
        prompts=round_["prompts"],
        ends=round_["ends"],
        tokenizer=tokenizer,
        policy=policy,
        value=classifier(folder / "value", dtype=torch.float32) if value else None,
        reward=classifier(folder / "reward", dtype=torch.float32),
    )


def cpu() -> str:
    """The processor's name."""
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    return next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.machine())
