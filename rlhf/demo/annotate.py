"""demo-rank with a person: `rlhf demo --annotate true` opens the labeling app where else annotators are simulated."""

import itertools
import json

from rlhf import config as configuration
from rlhf.demo import rubric
from rlhf.demo.rank import Config, inputs, read_tasks
from rlhf.errors import UserError
from rlhf.records import Run, Task, to_json, write_jsonl, write_whole
from rlhf.runs import open_run

__all__ = ["Config", "run"]

FORM = "configs/forms/demo.yaml"
NUM_PRACTICE = 3


def run(config: Config) -> Run:
    """Serve the demo's tasks until Ctrl-C, then write what people ranked as `tasks.jsonl` and `rankings.jsonl`.

    Labels stay in the run folder's `labels.db`; the stage is finished only once there are some.
    Raises UserError as `rank.run` does, and where nothing is ranked yet.
    """
    from labeling_app import label
    from labeling_app.stored import read_store

    settings = config.rank
    _, tasks = read_tasks(settings)
    practice = practice_tasks(tasks, NUM_PRACTICE)
    recorded = configuration.as_dict(config)
    with open_run("demo-rank", settings.output_dir, recorded, inputs(settings), settings.resume) as folder:
        store, asked, known = (str(folder.path / name) for name in ("labels.db", "tasks.jsonl", "practice.jsonl"))
        write_jsonl(asked, tasks)
        write_whole(known, practice)
        print("Rank as many as you like, then press Ctrl-C here: training goes on with your labels.", flush=True)
        label.run(
            label.Config(label.LabelConfig(store, [asked], known, form=FORM, seed=settings.seed, port=settings.port))
        )
        rankings = [row for row in read_store(store).rankings if row.kind == "task"]
        if not rankings:
            raise UserError("nothing is ranked yet; the same command again opens the app where it was")
        write_jsonl(folder.path / "rankings.jsonl", rankings)
        return folder.finish(
            num_tasks=len(tasks), num_rankings=len(rankings), num_annotators=len({row.annotator for row in rankings})
        )


def practice_tasks(tasks: list[Task], num: int) -> list[str]:
    """The tasks whose responses the rubric tells apart most clearly, as lines of KnownTask rows."""
    scored = []
    for task in tasks:
        texts = [response.text for response in task.responses]
        prompts = [task.prompt.messages] * len(texts)
        columns = {name: [task.prompt.meta.get(name)] * len(texts) for name in ("product", "problem")}
        scores = rubric.score(prompts, texts, **columns)
        gaps = sorted(scores)
        scored.append((min(b - a for a, b in itertools.pairwise(gaps)), task, scores))
    scored.sort(key=lambda item: (-item[0], item[1].id))
    return [_known(task, scores) for _, task, scores in scored[:num]]


def _known(task: Task, scores: list[float]) -> str:
    order = sorted(set(scores), reverse=True)
    ranks = {response.id: 1 + order.index(score) for response, score in zip(task.responses, scores, strict=True)}
    best = max(scores)
    explanation = (
        f"The best one earns {best:.0%} of the points: the right fix counts most, then naming the product, not "
        "rambling, empathy, an offer of more help and a proper end; asking for a password or being rude costs."
    )
    row = json.loads(to_json(task))
    row = {key: row[key] for key in ("prompt", "responses")} | {"id": f"practice-{task.id}"}
    return json.dumps(row | {"ranks": ranks, "explanation": explanation}, ensure_ascii=False) + "\n"
