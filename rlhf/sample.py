"""sample: K responses a prompt from one or more policies; a kill loses and doubles none."""

import dataclasses
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from tqdm import tqdm

from rlhf.config import as_dict
from rlhf.data.encode import CutReport
from rlhf.errors import UserError
from rlhf.generate import Reply, Sampling, batches, check_room, generate
from rlhf.models import Policy, load_policy
from rlhf.parts import PartFile
from rlhf.records import Prompt, Response, Run, Task, make_id, parse_record, read_jsonl, write_jsonl
from rlhf.runs import model_id, open_run


@dataclass
class SampleConfig:
    """Which policies answer which prompts, and how."""

    policies: list[str] = field(metadata={"help": "Run folders, checkpoints or Hub ids, one or more."})
    prompts: str = field(metadata={"help": "JSONL file of prompts."})
    output_dir: str = field(metadata={"help": "The run's folder."})
    num_responses: int = field(default=4, metadata={"help": "Responses a prompt from each policy (K)."})
    num_prompts: int | None = field(default=None, metadata={"help": "Take only the first so many prompts."})
    temperature: float = field(default=1.0, metadata={"help": "Sampling temperature; 0 takes the likeliest token."})
    max_new_tokens: int = field(default=256, metadata={"help": "Longest response in tokens."})
    batch_size: int = field(default=32, metadata={"help": "Responses generated at a time."})
    dtype: str | None = field(default=None, metadata={"help": "float32 (default), bfloat16, float16 or auto."})
    trust_remote_code: bool = field(default=False, metadata={"help": "Run code that comes with a checkpoint."})
    seed: int = field(default=0, metadata={"help": "Seed of the sampling."})
    resume: bool = field(default=False, metadata={"help": "Go on with an unfinished run."})


class Config(NamedTuple):
    """What `configs/sample.yaml` may hold."""

    sample: SampleConfig


def run(config: Config) -> Run:
    """Write `responses.jsonl`, and `tasks.jsonl` that groups them by prompt for labeling.

    Every batch is on disk before the next begins. Raises UserError for missing prompts or policies.
    """
    settings = config.sample
    if settings.num_responses * len(settings.policies) < 1:
        raise UserError("num_responses: must be at least 1")
    prompts = read_jsonl(settings.prompts, Prompt)[: settings.num_prompts]
    policies = {path: load_policy(path, settings.dtype, settings.trust_remote_code) for path in settings.policies}
    if len(policies) < len(settings.policies):
        raise UserError("policies: names the same policy twice; name each once")

    sampling = Sampling(settings.temperature, settings.max_new_tokens, settings.seed)
    for policy in policies.values():
        check_room(policy, sampling)

    inputs = {"prompts": settings.prompts} | {f"policy {n}": path for n, path in enumerate(settings.policies)}
    with open_run("sample", settings.output_dir, as_dict(config), inputs, settings.resume) as folder:
        cut = CutReport()
        responses: list[Response] = []
        for number, (path, policy) in enumerate(policies.items()):
            part = folder.path / f"policy-{number}.jsonl.part"
            responses += _sample(policy, prompts, settings, sampling, part, model_id(path), cut)
        responses.sort(key=lambda response: (response.prompt_id, response.id))
        write_jsonl(folder.path / "responses.jsonl", responses)
        num_tasks = write_jsonl(folder.path / "tasks.jsonl", tasks(prompts, responses))
        for part in folder.path.glob("*.part"):
            part.unlink()
        finished = sum(response.sampling["finished"] for response in responses) / len(responses)
        folder.tokens_generated = sum(response.sampling["num_tokens"] for response in responses)
        if sentence := cut.sentence("prompts", min(policy.max_length for policy in policies.values())):
            print(sentence)
        return folder.finish(
            num_prompts=len(prompts),
            num_responses=len(responses),
            num_tasks=num_tasks,
            share_finished=finished,
            mean_tokens=folder.tokens_generated / len(responses),
            cut=cut.metrics(),
        )


def tasks(prompts: list[Prompt], responses: list[Response]) -> list[Task]:
    """One task a prompt with at least two responses."""
    by_prompt: dict[str, list[Response]] = {}
    for response in responses:
        by_prompt.setdefault(response.prompt_id, []).append(response)
    return [
        Task(make_id("task", prompt.id, [r.id for r in by_prompt[prompt.id]]), prompt, by_prompt[prompt.id])
        for prompt in prompts
        if len(by_prompt.get(prompt.id, [])) >= 2
    ]


def _sample(
    policy: Policy,
    prompts: list[Prompt],
    settings: SampleConfig,
    sampling: Sampling,
    part: Path,
    run_id: str,
    cut: CutReport,
) -> list[Response]:
    there = PartFile(part)
    responses = [
        parse_record(json.dumps(row), Response, f"{part}, batch {number}")
        for number, rows in there.done.items()
        for row in rows
    ]
    messages = [prompt.messages for prompt in prompts]
    total = len(prompts) * settings.num_responses
    batch_count = sum(1 for _ in batches([[]] * len(prompts), settings.num_responses, settings.batch_size))
    if len(there.done) > batch_count:
        raise UserError(f"{part}: belongs to other prompts; remove it and run again")
    with tqdm(total=total, initial=len(responses), desc="sample", unit=" responses") as bar, there:
        for number, replies in generate(
            policy, messages, settings.num_responses, sampling, settings.batch_size, skip=set(there.done), cut=cut
        ):
            batch = [_response(reply, prompts, run_id, sampling) for reply in replies]
            there.add(number, [dataclasses.asdict(response) for response in batch])
            responses += batch
            bar.update(len(batch))
    return responses


def _response(reply: Reply, prompts: list[Prompt], run_id: str, sampling: Sampling) -> Response:
    prompt = prompts[reply.prompt_index]
    how = {
        "temperature": sampling.temperature,
        "max_new_tokens": sampling.max_new_tokens,
        "seed": sampling.seed,
        "index": reply.index,
        "finished": reply.finished,
        "num_tokens": len(reply.ids),
    }
    return Response(make_id("rsp", run_id, prompt.id, how), prompt.id, reply.text, run_id, how)
