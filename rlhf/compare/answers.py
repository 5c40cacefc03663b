"""Each policy's answers to the same prompts, and how far each lies from the reference; one policy at a time."""

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from rlhf.data.encode import CutReport
from rlhf.errors import UserError
from rlhf.generate import Reply, Sampling, generate
from rlhf.likelihood import kl_batches
from rlhf.models import Policy, free_memory, load_policy
from rlhf.parts import PartFile
from rlhf.records import Prompt, Response, make_id, read_jsonl, write_jsonl
from rlhf.runs import model_id


@dataclass(frozen=True)
class Answers:
    """What one policy wrote: for each prompt its responses, in the order of their index."""

    name: str
    responses: list[list[Response]]

    @property
    def texts(self) -> list[list[str]]:
        """The responses' texts, by prompt."""
        return [[response.text for response in row] for row in self.responses]

    @cached_property
    def lengths(self) -> NDArray[np.float64]:
        """Tokens of each response, the end of turn included, (prompts, responses)."""
        return self._measured("num_tokens")

    @cached_property
    def finished(self) -> NDArray[np.float64] | None:
        """1 where a response ended by itself, 0 where it was cut at max_new_tokens, (prompts, responses); None where
        that is not known of all."""
        if any(response.sampling["finished"] is None for row in self.responses for response in row):
            return None
        return self._measured("finished")

    @cached_property
    def kl(self) -> NDArray[np.float64] | None:
        """KL to the reference in nats, (prompts, responses); None where the two share no tokens."""
        if any(response.sampling["kl"] is None for row in self.responses for response in row):
            return None
        return self._measured("kl")

    def _measured(self, key: str) -> NDArray[np.float64]:
        return np.array([[float(response.sampling[key]) for response in row] for row in self.responses])


@dataclass(frozen=True)
class Questions:
    """What every policy is asked, and how it answers: the same for all."""

    prompts: list[Prompt]
    num_responses: int
    sampling: Sampling
    batch_size: int
    dtype: str | None = None
    trust_remote_code: bool = False


# Told of answers as they come: the policy's name, and (prompt, index, text) of each.
Heard = Callable[[str, Sequence[tuple[int, int, str]]], None]


def answer_all(
    policies: dict[str, str], reference: str, questions: Questions, folder: Path, heard: Heard | None = None
) -> list[Answers]:
    """The answers of every policy (name: path), each written to `responses.<name>.jsonl` when complete.

    A policy whose file is complete is not generated again, nor are the batches of one that a kill cut off, nor
    is their KL measured again. At most one policy and the reference are in memory. Raises UserError where a policy
    cannot be loaded or has no room for the prompts. `heard` is told of every batch, those that were there already
    first.
    """
    answers = []
    loaded: Policy | None = None  # the reference
    for name, path in policies.items():
        file = folder / f"responses.{name}.jsonl"
        ids = model_id(path), model_id(reference)
        responses = _read_complete(file, ids, questions)
        if responses is None:
            loaded = loaded or _load(reference, questions)
            policy = loaded if same_place(path, reference) else _load(path, questions)
            parts = PartFile(folder / f"responses.{name}.part"), PartFile(folder / f"kl.{name}.part")
            responses = _answer(name, ids, policy, loaded, questions, *parts, heard)
            write_jsonl(file, responses)
            for part in parts:
                part.path.unlink(missing_ok=True)
            del policy
            free_memory()
        elif heard is not None:
            places = [divmod(at, questions.num_responses) for at in range(len(responses))]
            heard(name, [(*place, one.text) for place, one in zip(places, responses, strict=True)])
        size = questions.num_responses
        rows = [responses[start : start + size] for start in range(0, len(responses), size)]
        answers.append(Answers(name, rows))
    return answers


def same_place(path: str, other: str) -> bool:
    """Whether two paths or Hub ids name the same model."""
    return path == other or Path(path).resolve() == Path(other).resolve()


def _load(path: str, questions: Questions) -> Policy:
    return load_policy(path, questions.dtype, questions.trust_remote_code)


def _answer(
    name: str,
    ids: tuple[str, str],
    policy: Policy,
    reference: Policy,
    questions: Questions,
    part: PartFile,
    kl_part: PartFile,
    heard: Heard | None,
) -> list[Response]:
    messages = [prompt.messages for prompt in questions.prompts]
    cut = CutReport()
    replies: list[Reply] = []
    for rows in part.done.values():
        replies += _told(name, [Reply(**row) for row in rows], heard)
    size = questions.num_responses
    with tqdm(total=len(messages) * size, initial=len(replies), desc=name, unit=" responses") as bar, part:
        for number, batch in generate(
            policy, messages, size, questions.sampling, questions.batch_size, skip=set(part.done), cut=cut
        ):
            part.add(number, [dataclasses.asdict(reply) for reply in batch])
            replies += _told(name, batch, heard)
            bar.update(len(batch))
    if sentence := cut.sentence(f"prompts of {name}", policy.max_length):
        print(sentence)
    replies.sort(key=lambda reply: (reply.prompt_index, reply.index))
    kls = _kls(name, policy, reference, replies, questions, kl_part)
    return [_response(reply, kl, *ids, questions) for reply, kl in zip(replies, kls, strict=True)]


def _told(name: str, batch: list[Reply], heard: Heard | None) -> list[Reply]:
    if heard is not None:
        heard(name, [(reply.prompt_index, reply.index, reply.text) for reply in batch])
    return batch


def _kls(
    name: str, policy: Policy, reference: Policy, replies: list[Reply], questions: Questions, part: PartFile
) -> list[float] | list[None]:
    if policy is reference:
        return [0.0] * len(replies)
    if not _share_tokens(policy, reference):
        return [None] * len(replies)
    temperature, batch_size = questions.sampling.temperature, questions.batch_size
    with part:
        for number, batch in kl_batches(policy, reference, replies, temperature, batch_size, skip=set(part.done)):
            part.add(number, [{"reply": at, "kl": kl} for at, kl in batch])
    by_reply = {row["reply"]: row["kl"] for rows in part.done.values() for row in rows}
    kls = [by_reply[at] for at in range(len(replies))]
    if not np.isfinite(kls).all():
        raise UserError(
            f"{name}: its KL to the reference is not finite, so a model's numbers overflowed; "
            "set --dtype float32, or leave this policy out"
        )
    return kls


def _share_tokens(policy: Policy, reference: Policy) -> bool:
    sizes = {model.model.config.get_text_config().vocab_size for model in (policy, reference)}
    return len(sizes) == 1 and policy.tokenizer.get_vocab() == reference.tokenizer.get_vocab()


def _response(reply: Reply, kl: float | None, run_id: str, reference_id: str, questions: Questions) -> Response:
    prompt = questions.prompts[reply.prompt_index]
    how = dataclasses.asdict(questions.sampling) | {
        "index": reply.index,
        "finished": reply.finished,
        "num_tokens": len(reply.ids),
    }
    return Response(
        make_id("rsp", run_id, prompt.id, how),
        prompt.id,
        reply.text,
        run_id,
        how | {"kl": kl, "reference": reference_id},
    )


def _read_complete(file: Path, ids: tuple[str, str], questions: Questions) -> list[Response] | None:
    """The responses on disk where they are all there, in order and of these models; else None."""
    if not file.is_file():
        return None
    responses = read_jsonl(file, Response)
    there = [(one.prompt_id, one.sampling.get("index"), one.run_id, one.sampling.get("reference")) for one in responses]
    asked = [(prompt.id, index, *ids) for prompt in questions.prompts for index in range(questions.num_responses)]
    return responses if there == asked else None
