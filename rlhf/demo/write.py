"""demo-write: the demo's files, from a seed: pretraining text, demonstrations and prompts."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from random import Random
from statistics import fmean
from typing import NamedTuple

from rlhf import config as configuration
from rlhf.demo.domain import (
    NUM_WORDINGS,
    PROBLEMS,
    PRODUCTS,
    draw_faults,
    draw_prompts,
    is_held_out,
    pairs,
    write_reply,
)
from rlhf.records import Demonstration, Prompt, Run, Text, make_id, write_jsonl
from rlhf.runs import open_run

# Each names the product twice: a small model learns to copy it from the prompt only where text repeats it
# often. With these and a manual_share of 0.6 or more it does so in 200 to 300 steps of 16 rows, else in over 500.
MANUAL_SENTENCES = (
    "the {product} {symptom}: {fix} and the {product} will be fine.",
    "if your {product} {symptom}, the right step for the {product} is to {fix}.",
    "question: my {product} {symptom}. answer: for the {product}, please {fix}.",
    "to help a customer whose {product} {symptom}, say: for your {product}, {fix}.",
)
SENTENCES_PER_PAGE = 3


@dataclass(frozen=True)
class WriteConfig:
    """How much of each to write, and how good the replies in it are."""

    output_dir: str = field(metadata={"help": "The run's folder."})
    seed: int = field(default=0, metadata={"help": "Same seed and sizes, same bytes."})
    num_texts: int = field(default=12000, metadata={"help": "Rows of pretraining text."})
    manual_share: float = field(default=0.7, metadata={"help": "Share of the text that is pages of manuals."})
    num_demonstrations: int = field(default=4000, metadata={"help": "Demonstrations to train on."})
    num_test_demonstrations: int = field(default=300, metadata={"help": "Demonstrations to measure the loss on."})
    flawless_share: float = field(default=0.35, metadata={"help": "Share of the replies that have no fault."})
    two_faults_share: float = field(default=0.4, metadata={"help": "Of the others: the share that has two faults."})
    num_train_prompts: int = field(default=4000, metadata={"help": "Prompts for the policies to practise on (PPO)."})
    num_reward_prompts: int = field(default=2000, metadata={"help": "Prompts whose responses are ranked."})
    num_validation_prompts: int = field(
        default=300, metadata={"help": "Ranked prompts that the reward model is not trained on."}
    )
    num_test_prompts: int = field(default=300, metadata={"help": "Prompts of held-out pairs, to compare policies."})
    resume: bool = field(default=False, metadata={"help": "Write into an unfinished run folder again."})

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if name.startswith("num_") and value < 1:
                raise ValueError(f"{name} is {value}, should be at least 1")
            if name.endswith("_share") and not 0 <= value <= 1:
                raise ValueError(f"{name} is {value}, should be from 0 to 1")
        limit = len(pairs(held_out=False)) * NUM_WORDINGS
        if self.num_drawn > limit:
            raise ValueError(f"the sizes need {self.num_drawn} different prompts, there are {limit}; lower num_texts")
        limit = len(pairs(held_out=True)) * NUM_WORDINGS
        if self.num_test_prompts > limit:
            raise ValueError(
                f"num_test_prompts is {self.num_test_prompts}, there are {limit} prompts of held-out pairs"
            )

    @property
    def num_transcripts(self) -> int:
        """Rows of pretraining text that are dialogues."""
        return self.num_texts - round(self.num_texts * self.manual_share)

    @property
    def num_drawn(self) -> int:
        """How many different prompts about training pairs the files need."""
        demonstrations = self.num_demonstrations + self.num_test_demonstrations
        prompts = self.num_train_prompts + self.num_reward_prompts + self.num_validation_prompts
        return self.num_transcripts + demonstrations + prompts


class Config(NamedTuple):
    """What the stage `demo-write` of the demo's recipe may hold."""

    write: WriteConfig


def run(config: Config) -> Run:
    """Write the demo's files into the run folder.

    text.train            pages of manuals, and dialogues with replies of every quality
    demonstrations.train  replies of mixed quality, to imitate
    demonstrations.test   the same, of other prompts
    prompts.train         to practise on
    prompts.reward        to sample responses to and rank them, for the reward model and DPO
    prompts.validation    the same, kept out of the reward model's training
    prompts.test          held-out pairs of product and problem, which are nowhere else

    No prompt is in two files, or in a file and a dialogue.
    """
    settings = config.write
    with open_run("demo-write", settings.output_dir, configuration.as_dict(config), {}, settings.resume) as folder:
        rng = Random(settings.seed)
        prompts = iter(draw_prompts(False, settings.num_drawn, rng))

        def take(count: int) -> list[Prompt]:
            return [next(prompts) for _ in range(count)]

        files: dict[str, Sequence[object]] = {
            "text.train": _texts(take(settings.num_transcripts), settings, rng),
            "demonstrations.train": (shown := _demonstrations(take(settings.num_demonstrations), settings, rng)),
            "demonstrations.test": _demonstrations(take(settings.num_test_demonstrations), settings, rng),
            "prompts.train": take(settings.num_train_prompts),
            "prompts.reward": take(settings.num_reward_prompts),
            "prompts.validation": take(settings.num_validation_prompts),
            "prompts.test": draw_prompts(True, settings.num_test_prompts, rng),
        }
        counts = {name: write_jsonl(folder.path / f"{name}.jsonl", rows) for name, rows in files.items()}
        return folder.finish(
            counts=counts,
            mean_words_per_prompt=fmean(_num_words(row.messages[0]["content"]) for row in shown),
            mean_words_per_reply=fmean(_num_words(row.messages[-1]["content"]) for row in shown),
        )


def _texts(prompts: list[Prompt], settings: WriteConfig, rng: Random) -> list[Text]:
    # Turns begin on a new line, as in a chat template, so that words without a space before them are known.
    transcripts = []
    for prompt in prompts:
        reply = _reply(prompt, settings, rng)
        transcripts.append(Text(f"customer:\n{prompt.messages[0]['content']}\nagent:\n{reply}\n"))
    texts = transcripts + [_page(rng) for _ in range(settings.num_texts - len(transcripts))]
    rng.shuffle(texts)
    return texts


def _page(rng: Random) -> Text:
    """Some right answers about one product, without its held-out problems."""
    product = rng.choice(PRODUCTS)
    problems = [problem for problem in PROBLEMS if not is_held_out(product, problem.name)]
    sentences = []
    for problem in rng.sample(problems, SENTENCES_PER_PAGE):
        symptom, fix = rng.choice(problem.symptoms), rng.choice(problem.fixes)
        sentences.append(rng.choice(MANUAL_SENTENCES).format(product=product, symptom=symptom, fix=fix))
    return Text(" ".join(sentences) + "\n")


def _demonstrations(prompts: list[Prompt], settings: WriteConfig, rng: Random) -> list[Demonstration]:
    demonstrations = []
    for prompt in prompts:
        reply = {"role": "assistant", "content": _reply(prompt, settings, rng)}
        messages = [*prompt.messages, reply]
        demonstrations.append(Demonstration(make_id("demo", messages), messages))
    return demonstrations


def _reply(prompt: Prompt, settings: WriteConfig, rng: Random) -> str:
    faults = draw_faults(rng, settings.flawless_share, settings.two_faults_share)
    return write_reply(prompt.meta["product"], prompt.meta["problem"], faults, rng)


def _num_words(text: str) -> int:
    return len(text.split())
