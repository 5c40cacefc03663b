"""Tasks on which annotators disagree, the most disputed first."""

import numpy as np

from labeling_app.quality.votes import Votes


def disputed(votes: Votes, most: int | None = None) -> list[dict[str, object]]:
    """Every task with some disagreement, as `{"task_id", "score", "n"}`.

    `score` is the mean distance of two annotators' verdicts, over the pairs of responses and of
    annotators: 1 where they prefer different ones, one half where one of them sees a tie, 0 where they
    say the same. Of equal scores those with more votes come first. `n` is the number of annotators.
    """
    first, second = votes.couples
    num_tasks = len(votes.task_ids)
    distance = np.abs(votes.verdict[first] - votes.verdict[second]) / 2
    task = votes.task[first]
    sums, counts = np.bincount(task, distance, num_tasks), np.bincount(task, minlength=num_tasks)
    voters = np.zeros(num_tasks, dtype=np.int64)
    np.add.at(voters, np.unique(np.stack([votes.task, votes.annotator]), axis=1)[0], 1)
    scores = np.divide(sums, counts, out=np.zeros(num_tasks), where=counts > 0)
    order = np.lexsort((np.arange(num_tasks), -voters, -np.round(scores, 9)))
    kept = order[scores[order] > 0][:most]
    return [{"task_id": votes.task_ids[at], "score": round(float(scores[at]), 6), "n": int(voters[at])} for at in kept]
