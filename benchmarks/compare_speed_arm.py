"""One arm of benchmarks/compare_speed.py, in a process of its own: `python benchmarks/compare_speed_arm.py JOB.json`.

`plain` is the loop that one writes first: transformers' `generate` at batch 8, then the judges at batch 8. `trl` is
the same with TRL 1.0's own function for the completions, the one behind its WinRateCallback; TRL 1.0 is the last
that has judges. `same_work` is what the loops do, and nothing else, by the functions of `rlhf compare`: no KL, no
fluency, no intervals, no report. `resume` is `rlhf compare --resume true`, which counts what it generates.
"""

import json
import sys
from pathlib import Path
from typing import Any

BATCH = 8  # TRL's: per_device_eval_batch_size is 8 by default


def main() -> None:
    """Do the job and write what it measured."""
    job = json.loads(Path(sys.argv[1]).read_text())
    if job["arm"] == "trl":
        sys.path.insert(0, job["trl"])
    found = {"resume": resumed, "same_work": same_work}.get(job["arm"], looped)(job)
    Path(job["out"]).write_text(json.dumps(found))


def looped(job: dict[str, Any]) -> dict[str, Any]:
    """Every policy answers every prompt, both judges score every response, and win rates are counted."""
    from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

    rows = [json.loads(line) for line in Path(job["prompts"]).read_text().splitlines()][: job["num_prompts"]]
    completions = trl_completions if job["arm"] == "trl" else plain_completions
    texts: dict[str, list[str]] = {}
    for name, path in job["policies"].items():
        tokenizer = AutoTokenizer.from_pretrained(path)
        tokenizer.padding_side = "left"
        model = AutoModelForCausalLM.from_pretrained(path).eval()
        prompts = [
            tokenizer.apply_chat_template(row["messages"], tokenize=False, add_generation_prompt=True) for row in rows
        ]
        how = GenerationConfig(
            do_sample=True,
            top_k=0,
            temperature=1.0,
            max_new_tokens=job["max_new_tokens"],
            eos_token_id=model.generation_config.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
        texts[name] = completions(prompts, model, tokenizer, how)
    return found_by(
        {"reward_model": reward_scores(job["reward"], rows, texts), "gold": gold_scores(rows, texts)}, texts
    )


def found_by(scores: dict[str, dict[str, list[float]]], texts: dict[str, list[str]]) -> dict[str, Any]:
    """What an arm tells of its scores (by judge and policy) and of its texts."""
    first, *others = texts
    wins = {
        judge: {name: _win_rate(by_policy[name], by_policy[first]) for name in others}
        for judge, by_policy in scores.items()
    }
    words = [len(text.split()) for rows_of in texts.values() for text in rows_of]
    return {"responses": len(words), "words_a_response": sum(words) / len(words), "wins": wins}


def plain_completions(prompts: list[str], model: Any, tokenizer: Any, how: Any) -> list[str]:
    """`generate`, 8 prompts at a time in the file's order."""
    import torch

    found = []
    for start in range(0, len(prompts), BATCH):
        batch = tokenizer(prompts[start : start + BATCH], return_tensors="pt", padding=True, add_special_tokens=False)
        with torch.no_grad():
            ids = model.generate(**batch, generation_config=how)[:, batch["input_ids"].shape[1] :]
        found += tokenizer.batch_decode(ids, skip_special_tokens=True)
    return found


def trl_completions(prompts: list[str], model: Any, tokenizer: Any, how: Any) -> list[str]:
    """TRL 1.0's `_generate_completions`."""
    import trl
    from accelerate import Accelerator

    # TRL 1.0 is in a folder of its own, which only this process has on its path.
    from trl.experimental.winrate_callback import _generate_completions  # type: ignore[import-not-found]

    assert trl.__version__ == "1.0.0", trl.__version__
    return _generate_completions(prompts, model, tokenizer, Accelerator(cpu=True), how, batch_size=BATCH)


def reward_scores(path: str, rows: list[dict[str, Any]], texts: dict[str, list[str]]) -> dict[str, list[float]]:
    """The reward model's scores, 8 responses at a time in the file's order."""
    import torch
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(path)
    tokenizer.padding_side = "right"
    model = AutoModelForSequenceClassification.from_pretrained(path).eval()
    scores: dict[str, list[float]] = {}
    for name, replies in texts.items():
        whole = [
            tokenizer.apply_chat_template([*row["messages"], {"role": "assistant", "content": text}], tokenize=False)
            for row, text in zip(rows, replies, strict=True)
        ]
        scores[name] = []
        for start in range(0, len(whole), BATCH):
            batch = tokenizer(whole[start : start + BATCH], return_tensors="pt", padding=True, add_special_tokens=False)
            batch.pop("token_type_ids", None)
            with torch.no_grad():
                scores[name] += model(**batch).logits[:, 0].tolist()
    return scores


def gold_scores(rows: list[dict[str, Any]], texts: dict[str, list[str]]) -> dict[str, list[float]]:
    """The demo's gold of every response."""
    from rlhf.demo.rubric import score

    messages = [row["messages"] for row in rows]
    columns = {key: [row["meta"][key] for row in rows] for key in rows[0]["meta"]}
    return {name: score(messages, replies, **columns) for name, replies in texts.items()}


def same_work(job: dict[str, Any]) -> dict[str, Any]:
    """The loops' work by this project's own decoding and scoring."""
    from rlhf.generate import Sampling, generate
    from rlhf.models import load_policy
    from rlhf.records import Prompt, read_jsonl
    from rlhf.scoring import load_reward_model

    prompts = read_jsonl(job["prompts"], Prompt)[: job["num_prompts"]]
    messages = [prompt.messages for prompt in prompts]
    texts: dict[str, list[str]] = {}
    for name, path in job["policies"].items():
        batches = generate(load_policy(path), messages, 1, Sampling(1.0, job["max_new_tokens"]), job["batch_size"])
        replies = sorted((reply for _, batch in batches for reply in batch), key=lambda reply: reply.prompt_index)
        texts[name] = [reply.text for reply in replies]
    reward = load_reward_model(job["reward"])
    rows = [{"messages": prompt.messages, "meta": prompt.meta} for prompt in prompts]
    scores = {name: list(reward(messages, replies)) for name, replies in texts.items()}
    return found_by({"reward_model": scores, "gold": gold_scores(rows, texts)}, texts)


def resumed(job: dict[str, Any]) -> dict[str, Any]:
    """`rlhf compare` goes on with a killed run; how many responses of each policy it generates."""
    from rlhf import cli
    from rlhf.compare import answers

    generated: dict[str, int] = {}
    real = answers.generate

    def counting(policy: Any, *args: Any, **kwargs: Any) -> Any:
        name = Path(policy.path).name
        generated.setdefault(name, 0)
        for number, replies in real(policy, *args, **kwargs):
            generated[name] += len(replies)
            yield number, replies

    answers.generate = counting
    cli.main(["compare", *job["arguments"], "--resume", "true"])
    return generated


def _win_rate(scores: list[float], others: list[float]) -> float:
    return sum((a > b) + 0.5 * (a == b) for a, b in zip(scores, others, strict=True)) / len(scores)


if __name__ == "__main__":
    main()
