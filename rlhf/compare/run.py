"""compare: N policies on the same held-out prompts; which is better, how sure is that, and at what cost."""

import contextlib
import json
import re
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from rlhf.compare.answers import Questions, same_place
from rlhf.compare.held_out import check_held_out
from rlhf.compare.judges import GOLD, LLM_JUDGE, REWARD_MODEL, check_judges, in_order, score_texts
from rlhf.compare.live.page import HERE, watching
from rlhf.compare.live.scores import PROMPTS, ScoresSoFar
from rlhf.compare.llm_judge.policies import check_two, judge_policies, read_judge
from rlhf.compare.markdown import render_markdown
from rlhf.compare.page import render_page
from rlhf.compare.page.show import show_page
from rlhf.compare.people import ask_people, gather
from rlhf.compare.report import build_report, files_of
from rlhf.compare.sections import SECTIONS
from rlhf.compare.sections.frontier import FrontierConfig
from rlhf.compare.sections.quality import QualityConfig
from rlhf.compare.sections.safety import SafetyConfig
from rlhf.compare.sources import answer_policies, check_sources, described, folder_name, models_of, named_policies
from rlhf.compare.statistics import Bootstrap
from rlhf.compare.study import Context, Study
from rlhf.compare.tables import pairs_csv, policies_csv
from rlhf.compare.terminal import print_report
from rlhf.config import as_dict
from rlhf.data.split import prompt_key
from rlhf.errors import UserError
from rlhf.generate import Sampling
from rlhf.models import load_tokenizer
from rlhf.ports import choose_port
from rlhf.records import Prompt, Ranking, RewardFunction, Run, Task, read_jsonl, write_jsonl, write_whole
from rlhf.runs import check_output_dir, file_sha256, open_run


@dataclass(frozen=True)
class CompareConfig:
    """Which policies are compared, on what, by whom."""

    policies: list[str] = field(
        metadata={
            "help": "Run folders, checkpoints, Hub ids, files of responses (.jsonl) or servers (http://host/v1#MODEL), "
            "the baseline first; `name=path` gives another name."
        }
    )
    prompts: str = field(metadata={"help": "JSONL file of held-out prompts."})
    output_dir: str = field(metadata={"help": "The run's folder: report.json, .html, .md, CSV tables, responses."})
    reward_model: str | None = field(default=None, metadata={"help": "Run folder of the reward model that scores."})
    gold: str | None = field(
        default=None,
        metadata={"help": "A measure to trust, as `module:function`: (prompts, responses, **columns) -> numbers."},
    )
    llm_judge: str | None = field(
        default=None,
        metadata={"help": "YAML file of a language model that judges over an API; configs/judges/llm.yaml is one."},
    )
    people: str | None = field(
        default=None,
        metadata={"help": "Label store in which people judged these policies blind (`rlhf label --comparison RUN`)."},
    )
    reference: str | None = field(
        default=None, metadata={"help": "The SFT start that KL is measured to; the first policy by default."}
    )
    train_data: list[str] = field(
        default_factory=list,
        metadata={
            "help": "More JSONL files that policies trained on, beside those that their run folders name; a prompt "
            "that is in one of them, or nearly, is an error."
        },
    )
    num_prompts: int | None = field(default=None, metadata={"help": "Take only the first so many prompts."})
    num_responses: int = field(default=1, metadata={"help": "Responses a prompt from each policy."})
    max_new_tokens: int = field(default=256, metadata={"help": "Longest response in tokens, for all policies."})
    temperature: float = field(default=1.0, metadata={"help": "Sampling temperature; 0 takes the likeliest token."})
    batch_size: int = field(default=32, metadata={"help": "Responses generated or scored at a time."})
    seed: int = field(default=0, metadata={"help": "Seed of the sampling and of the bootstrap."})
    num_bootstrap: int = field(default=2000, metadata={"help": "Resamples of the prompts behind each interval."})
    looks: list[int] = field(
        default_factory=list,
        metadata={
            "help": "After how many prompts the result was looked at before, where more were added since: adds an "
            "interval that holds at all looks."
        },
    )
    judges: list[str] = field(
        default_factory=list,
        metadata={
            "help": "Further judges, as `name=module:function` (rlhf.compare.checks:number_matches) or `name=RUN`; "
            "`name=RUN,RUN` is the mean of several reward models, `name=likelihood:MODEL` a model's mean "
            "log-likelihood, `name=implicit:RUN` the implicit reward of a DPO run."
        },
    )
    confidence: float = field(default=0.95, metadata={"help": "Confidence of the intervals."})
    dtype: str | None = field(default=None, metadata={"help": "float32 (default), bfloat16, float16 or auto."})
    trust_remote_code: bool = field(default=False, metadata={"help": "Run code that comes with a checkpoint."})
    open: bool = field(default=False, metadata={"help": "Open report.html in a browser when done."})
    live: bool = field(
        default=False,
        metadata={"help": "Show how far it is, win rates so far and answers on a page, until Ctrl-C."},
    )
    port: int = field(default=7860, metadata={"help": "Port of the live page; 0 = any free one."})
    resume: bool = field(default=False, metadata={"help": "Go on with an unfinished run."})


class Config(NamedTuple):
    """What `configs/compare.yaml` may hold."""

    compare: CompareConfig
    frontier: FrontierConfig = FrontierConfig()
    quality: QualityConfig = QualityConfig()
    safety: SafetyConfig = SafetyConfig()


def run(
    config: Config,
    judges: Mapping[str, RewardFunction],
    people: tuple[Sequence[Task], Sequence[Ranking]] | None = None,
) -> Run:
    """Write report.json, report.html, report.md, policies.csv and pairs.csv, print the table, return the Run.

    `judges` are reward functions by name: "gold", "reward_model" or both. `people` is what a label
    store holds of comparisons: the tasks and every answer. Raises UserError for bad settings, missing
    prompts, policies or judges, prompts that were trained on, for a judge that does not give one finite
    number a response, and for a store without votes.
    """
    settings = config.compare
    check_output_dir(settings.output_dir, settings.resume)
    policies = named_policies(settings.policies)
    _check_numbers(settings)
    port = choose_port(HERE, settings.port) if settings.live else 0
    prompts = _read_prompts(settings)
    judges = _check_judges(settings, judges, prompts)
    sampling = Sampling(settings.temperature, settings.max_new_tokens, settings.seed)
    questions = Questions(
        prompts,
        settings.num_responses,
        sampling,
        settings.batch_size,
        settings.dtype,
        settings.trust_remote_code,
    )
    reference = check_sources(policies, settings.reference, questions)
    models = models_of(policies)
    if len(models) < len(policies):
        _check_models_only(config, next(name for name in policies if name not in models))
    for section in SECTIONS:
        section.check(config, models)
    votes = None if people is None else gather(*people)
    language = None
    if settings.llm_judge is not None:
        check_two(list(policies))
        language = read_judge(settings.llm_judge, settings.output_dir)
    for path in {*models.values(), reference}:
        load_tokenizer(path, trust_remote_code=settings.trust_remote_code)  # so that a wrong path shows now
    learners = {**policies, "reference": reference}
    if settings.reward_model is not None:
        learners[REWARD_MODEL] = settings.reward_model
    held_out = check_held_out(prompts, settings.prompts, learners, settings.train_data)

    inputs = _inputs(settings, policies) | config.safety.inputs() | config.quality.inputs()
    with (
        contextlib.ExitStack() as live,
        open_run("compare", settings.output_dir, _as_recorded(as_dict(config)), inputs, settings.resume) as to,
    ):
        if settings.live:
            print(f"live view at {live.enter_context(watching(to.path, HERE, port))}", flush=True)
        write_jsonl(to.path / PROMPTS, [Prompt(prompt.id, prompt.messages) for prompt in prompts])
        so_far = ScoresSoFar(judges, prompts, to.path)
        answers = answer_policies(policies, reference, questions, to.path, so_far.hear)
        texts = [answer.texts for answer in answers]
        known = so_far.known
        scores = {name: score_texts(name, judge, prompts, texts, known[name]) for name, judge in judges.items()}
        clusters = [prompt_key(prompt.messages) for prompt in prompts]
        bootstrap = Bootstrap(clusters, settings.confidence, settings.num_bootstrap, settings.seed)
        told = None if language is None else judge_policies(language, prompts, answers)
        said = None if votes is None else ask_people(votes, answers, bootstrap)
        recorded = _recorded(settings, policies, reference, judges, prompts) | {"held_out": held_out.numbers}
        if sources := described(policies):
            recorded["sources"] = sources
        context = Context(config, models, reference, questions, answers, judges, scores, bootstrap, to.path)
        measured = {section.key: section.measure(context) for section in SECTIONS}
        study = Study(prompts, answers, scores, bootstrap, recorded, said, told, measured)
        report = build_report(study)
        for name, part in files_of(report).items():
            write_whole(to.path / name, [json.dumps(part, indent=2, ensure_ascii=False), "\n"])
        write_whole(to.path / "report.html", [render_page(study, report)])
        write_whole(to.path / "report.md", [render_markdown(report)])
        write_whole(to.path / "policies.csv", [policies_csv(report)])
        write_whole(to.path / "pairs.csv", [pairs_csv(report)])
        print_report(report)
        done = to.finish(**_metrics(report, len(prompts)))
        so_far.remove()
        if settings.open:
            show_page(to.path / "report.html")
        if settings.live:
            live.callback(_until_interrupted)  # once the run's folder is closed, before the page is
    return done


def _until_interrupted() -> None:
    with contextlib.suppress(KeyboardInterrupt):
        print("done; the live view stays until Ctrl-C", flush=True)
        threading.Event().wait()


def _check_models_only(config: Config, name: str) -> None:
    """What is measured by loading every policy cannot be where one is a file or a server."""
    asked = ("heldout", "tasks", "lm_eval", "safety_prompts", "stereotypes", "bold")
    given = as_dict(config)
    if wanted := [key for key in asked if given.get(key)]:
        raise UserError(f"{wanted[0]}: needs every policy as a model, and {name} is none; leave one of them out")


def _check_numbers(settings: CompareConfig) -> None:
    for key in ("num_prompts", "num_responses", "max_new_tokens", "batch_size"):
        value = getattr(settings, key)
        if value is not None and value < 1:
            raise UserError(f"{key}: is {value}, must be at least 1")
    if settings.num_bootstrap < 100:
        raise UserError(f"num_bootstrap: is {settings.num_bootstrap}, must be at least 100; 2000 is usual")
    if not 0.5 <= settings.confidence < 1:
        raise UserError(f"confidence: is {settings.confidence:g}, must be from 0.5 to below 1; 0.95 is usual")
    if settings.looks != sorted(set(settings.looks)) or min(settings.looks, default=1) < 1:
        raise UserError(f"looks: is {settings.looks}, must be numbers of prompts that rise, as [100, 200]")
    if settings.temperature < 0:
        raise UserError(f"temperature: is {settings.temperature:g}, must be 0 or more")
    if settings.temperature == 0 and settings.num_responses > 1:
        raise UserError(
            f"num_responses: is {settings.num_responses} at temperature 0, which gives the same response each time; "
            "set --num_responses 1 or a temperature above 0"
        )


def _read_prompts(settings: CompareConfig) -> list[Prompt]:
    prompts = read_jsonl(settings.prompts, Prompt)[: settings.num_prompts]
    seen: set[str] = set()
    for prompt in prompts:
        if not prompt.messages or prompt.messages[-1].get("role") == "assistant":
            raise UserError(
                f"{settings.prompts}: prompt `{prompt.id}` does not wait for a reply; its last message must not be "
                "the assistant's"
            )
        if prompt.id in seen:
            raise UserError(f"{settings.prompts}: two prompts have the id `{prompt.id}`; give each its own")
        seen.add(prompt.id)
    return prompts


def _check_judges(
    settings: CompareConfig, judges: Mapping[str, RewardFunction], prompts: list[Prompt]
) -> dict[str, RewardFunction]:
    if not judges:
        raise UserError("no judge: give --reward_model RUN, --gold module:function, or both")
    ordered = in_order(judges)
    check_judges(ordered, prompts)
    return ordered


def _inputs(settings: CompareConfig, policies: dict[str, str]) -> dict[str, str | Path | None]:
    return {
        "prompts": settings.prompts,
        "reference": settings.reference,
        "reward_model": settings.reward_model,
        "llm_judge": settings.llm_judge,
        **{f"policy {name}": path for name, path in policies.items()},
        **{f"train_data {number}": path for number, path in enumerate(settings.train_data)},
    }


def _as_recorded(config: dict[str, Any]) -> dict[str, Any]:
    """The config as run.json has it: `people` may be a database's URL, and how it is shown changes no result."""
    url = config["people"]
    config = {key: value for key, value in config.items() if key not in ("open", "live", "port")}
    return config if url is None else config | {"people": re.sub(r"(://[^:/@]*):[^/]*@", r"\1:***@", url)}


def _recorded(
    settings: CompareConfig,
    policies: dict[str, str],
    reference: str,
    judges: Mapping[str, RewardFunction],
    prompts: list[Prompt],
) -> dict[str, Any]:
    """What the report says about how it was made: nothing that depends on the place or the time."""
    named = [name for name, path in policies.items() if same_place(path, reference)]
    return {
        "policies": list(policies),
        "baseline": next(iter(policies)),
        "reference": named[0] if named else folder_name(reference),
        "judges": [*judges, *([LLM_JUDGE] if settings.llm_judge else [])],
        "decided_by": next(iter(judges)),
        "gold": settings.gold if GOLD in judges else None,
        "reward_model": folder_name(settings.reward_model or "") if REWARD_MODEL in judges else None,
        "prompts": Path(settings.prompts).name,
        "prompts_sha256": file_sha256(settings.prompts),
        "num_prompts": len(prompts),
        "num_responses": settings.num_responses,
        "max_new_tokens": settings.max_new_tokens,
        "temperature": settings.temperature,
        "batch_size": settings.batch_size,
        "dtype": settings.dtype or "float32",
        "seed": settings.seed,
        "confidence": settings.confidence,
        "num_bootstrap": settings.num_bootstrap,
        "looks": settings.looks,
        "length_unit": "tokens, the end of turn included",
        "kl_unit": "nats a response, policy to reference",
    }


def _metrics(report: dict[str, Any], num_prompts: int) -> dict[str, Any]:
    means = {
        name: {key: interval and interval["mean"] for key, interval in numbers.items()}
        for name, numbers in report["policies"].items()
    }
    return {"num_prompts": num_prompts, "verdict": report["verdict"], "policies": means}
