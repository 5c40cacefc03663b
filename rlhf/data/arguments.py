"""The keys of `configs/prepare.yaml`."""

from dataclasses import dataclass, field
from typing import Literal

from rlhf.data.formats import Columns
from rlhf.data.split import SPLITS

Format = Literal[
    "auto",
    "preference",
    "implicit_preference",
    "hh",
    "messages",
    "sharegpt",
    "alpaca",
    "prompt_completion",
    "prompt",
    "text",
]


@dataclass(frozen=True)
class PrepareArguments:
    """Where the data is, what its columns hold, and how to split it."""

    output_dir: str = field(metadata={"help": "Run folder to write; it must not hold a finished run."})
    input: list[str] = field(
        default_factory=list,
        metadata={"help": "Files (.json .jsonl .csv .tsv .txt, also .gz; .parquet) or Hub ids, to be split here."},
    )
    train: list[str] = field(
        default_factory=list,
        metadata={"help": "Inputs that are the training split already; instead of `input`."},
    )
    validation: list[str] = field(
        default_factory=list,
        metadata={"help": "Inputs that are the validation split already."},
    )
    test: list[str] = field(default_factory=list, metadata={"help": "Inputs that are the test split already."})
    resume: bool = field(default=False, metadata={"help": "Go on with an unfinished run in `output_dir`."})

    format: Format = field(
        default="auto",
        metadata={"help": "Format of the rows; `auto` recognises it by the columns."},
    )
    prompt_column: str | None = field(
        default=None,
        metadata={"help": "Column with the prompt. `a.b` is the key `b` inside column `a`, here and below."},
    )
    response_column: str | None = field(default=None, metadata={"help": "Column with the reply to imitate."})
    chosen_column: str | None = field(default=None, metadata={"help": "Column with the better reply of a pair."})
    rejected_column: str | None = field(default=None, metadata={"help": "Column with the worse reply of a pair."})
    response_columns: list[str] = field(
        default_factory=list,
        metadata={"help": "Columns with the K replies of a prompt, or the one that holds a list."},
    )
    rank_columns: list[str] = field(
        default_factory=list,
        metadata={"help": "Ranks of the replies, 1 is best: K columns, or one that holds a list."},
    )
    score_columns: list[str] = field(
        default_factory=list,
        metadata={"help": "Scores of the replies, higher is better: K columns, or one with a list."},
    )
    pairwise_column: str | None = field(
        default=None,
        metadata={
            "help": "Column with the verdict on each pair, in the order (1,2) (1,3) ... (K-1,K): 0 equal, "
            "1 first, 2 second."
        },
    )
    annotator_column: str | None = field(default=None, metadata={"help": "Column that says who ranked the replies."})
    messages_column: str | None = field(
        default=None,
        metadata={"help": "Column with a conversation: a list of messages or of [role, text] pairs."},
    )
    user_role: str | None = field(
        default=None,
        metadata={"help": "What the data calls the user, where it is not `user` or `human`."},
    )
    assistant_role: str | None = field(
        default=None,
        metadata={"help": "What the data calls the assistant, where it is not `assistant` or `gpt`."},
    )
    system_column: str | None = field(default=None, metadata={"help": "Column with the system message."})
    context_column: str | None = field(
        default=None,
        metadata={"help": "Column with text to put before the prompt, such as passages."},
    )
    context_chars: int | None = field(default=None, metadata={"help": "Keep this many characters of the context."})
    text_column: str | None = field(default=None, metadata={"help": "Column with plain text for pretraining."})
    dataset_config: str | None = field(
        default=None,
        metadata={"help": "Configuration of a Hub data set that has several."},
    )
    dataset_split: str = field(default="train", metadata={"help": "Split of a Hub data set."})

    max_rows: int | None = field(default=None, metadata={"help": "Keep a random sample of so many clean rows."})
    demonstrations_from: Literal["none", "chosen"] = field(
        default="none",
        metadata={"help": "`chosen` also writes the preferred replies as demonstrations."},
    )
    train_share: float = field(default=0.9, metadata={"help": "Share of the prompts for training."})
    validation_share: float = field(default=0.0, metadata={"help": "Share of the prompts for validation."})
    test_share: float = field(default=0.1, metadata={"help": "Share of the prompts for the test split."})
    split_by: Literal["conversation", "prompt"] = field(
        default="conversation",
        metadata={"help": "What stays in one split: conversations with the same first turn, or only equal prompts."},
    )
    seed: int = field(default=0, metadata={"help": "Seed of the split and of the sample."})

    def columns(self) -> Columns:
        """The columns that were named."""
        return Columns(
            prompt=self.prompt_column,
            response=self.response_column,
            chosen=self.chosen_column,
            rejected=self.rejected_column,
            responses=tuple(self.response_columns),
            ranks=tuple(self.rank_columns),
            scores=tuple(self.score_columns),
            pairwise=self.pairwise_column,
            annotator=self.annotator_column,
            messages=self.messages_column,
            system=self.system_column,
            context=self.context_column,
            text=self.text_column,
            context_chars=self.context_chars,
            user_role=self.user_role,
            assistant_role=self.assistant_role,
        )

    def sources(self) -> list[tuple[str, str | None]]:
        """`(source, split)` of every input; the split is None where it is to be made here."""
        sources: list[tuple[str, str | None]] = [(source, None) for source in self.input]
        return sources + [(source, name) for name in SPLITS for source in getattr(self, name)]
