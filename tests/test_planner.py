"""rlhf plan: what it counts against sums by hand and against real passes, what it chooses, what it refuses."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers import LlamaConfig

from rlhf import cli
from rlhf.planner.dry_run import LiveBytes, Peak, dry_forward, dry_passes, placed, shapes_only, without_data
from rlhf.planner.memory import GIB, account
from rlhf.planner.options import PlanOptions, Setting
from rlhf.planner.search import search, settings
from rlhf.planner.speed import duration, read_throughput
from rlhf.planner.stages import Stage
from rlhf.runs import open_run
from tests import stages
from tests.cli_cases import fails

HIDDEN, INNER, LAYERS, VOCABULARY, HEADS = 64, 96, 3, 500, 4
# Embedding (tied with the head), and a layer: four square projections, three of the feed-forward, two norms.
LAYER = 4 * HIDDEN * HIDDEN + 3 * HIDDEN * INNER + 2 * HIDDEN
TRUNK = VOCABULARY * HIDDEN + LAYERS * LAYER + HIDDEN


@pytest.fixture(scope="session")
def shape(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a Llama's config and nothing else: a plan needs no weights."""
    return _shape(tmp_path_factory.mktemp("shape"))


def _shape(folder: Path, **values: Any) -> Path:
    plain: dict[str, Any] = {
        "vocab_size": VOCABULARY,
        "hidden_size": HIDDEN,
        "intermediate_size": INNER,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS,
        "tie_word_embeddings": True,
        "max_position_embeddings": 256,
    }
    LlamaConfig(**(plain | values)).save_pretrained(folder)
    return folder


def _stage(verb: str, shape: Path, options: PlanOptions, **values: Any) -> Stage:
    files = {"ppo": {"prompts": "p.jsonl", "reward": ["tests.ppo_cases:count_e_in_texts"]}}
    files |= {"sft": {"demonstrations": "d.jsonl"}}
    given = files.get(verb, {"preferences": "p.jsonl"})
    plain = {"bf16": False, "gradient_checkpointing": False, "per_device_train_batch_size": 4}
    plain |= {"max_new_tokens": 8, "max_prompt_length": 24} if verb == "ppo" else {"max_length": 32}
    if verb == "ppo":
        plain["num_mini_batches"] = 1
    return Stage(
        verb, stages.config(verb, model_name_or_path=shape, output_dir="run", **(given | plain | values)), options
    )


def _sums(stage: Stage, setting: Setting, options: PlanOptions, phase: str) -> dict[tuple[str, str], int]:
    found = account(stage, setting, options)
    moment = next(moment for moment in found.moments if moment.phase == phase)
    return {(part.model, part.kind): part.bytes for part in moment.parts}


def test_live_bytes_of_a_pass_by_hand() -> None:
    """The worst moment of a layer of 8 x 16 is when its gradient is made: beside it the loss and the loss's gradient.

    What it put out is gone by then, and its weights are no new memory, though the passes transpose them.
    """
    with shapes_only():
        layer = nn.Linear(8, 16, bias=False)
    with without_data():
        placed(layer)
        rows = torch.zeros(4, 8)
        passes = dry_passes(lambda: layer(rows).sum(), layer, {16})
    assert passes.alone == Peak(activations=8 * 16 * 4 + 2 * 4)
    assert passes.end == Peak(activations=2 * 4, gradients=8 * 16 * 4)


def test_logits_are_known_by_their_width() -> None:
    with shapes_only():
        layer = nn.Linear(8, 100, bias=False)
    with without_data():
        placed(layer)
        rows = torch.zeros(64, 8)
        assert dry_forward(lambda: layer(rows), layer, {100}) == Peak(logits=64 * 100 * 4)


def test_weights_are_counted_without_loading_any(shape: Path) -> None:
    (policy,) = _stage("sft", shape, PlanOptions(gpus=1)).held
    assert (policy.count.total, policy.count.trained) == (TRUNK, TRUNK)
    (model,) = _stage("reward", shape, PlanOptions(gpus=1)).held
    assert model.count.total == TRUNK + HIDDEN  # the score's row


def test_lora_trains_rank_times_both_sides(shape: Path) -> None:
    lora = {"use_peft": True, "lora_r": 4, "lora_target_modules": ["q_proj", "v_proj"]}
    (policy,) = _stage("sft", shape, PlanOptions(gpus=1), **lora).held
    assert policy.count.trained == LAYERS * 2 * 4 * (HIDDEN + HIDDEN)
    assert policy.count.total == TRUNK + policy.count.trained


@pytest.mark.parametrize(
    ("zero", "parameters", "gradients", "optimizer"),
    [(0, 4, 4, 8), (1, 4, 4, 12 / 8), (2, 4, 4 / 8, 12 / 8), (3, 4 / 8, 4 / 8, 12 / 8)],
)
def test_zero_shares_what_it_says(
    shape: Path, zero: int, parameters: float, gradients: float, optimizer: float
) -> None:
    """Bytes of a float32 weight on one of 8 ranks; DeepSpeed's optimizer keeps a copy of the weights too."""
    options = PlanOptions(gpus=8)
    sums = _sums(_stage("sft", shape, options), Setting(zero=zero, micro_batch=1), options, "step")
    assert sums["policy", "parameters"] == round(TRUNK * parameters)
    assert sums["policy", "gradients"] == round(TRUNK * gradients)
    assert sums["policy", "optimizer"] == round(TRUNK * optimizer)


@pytest.mark.parametrize("verb", ["sft", "reward", "reward implicit", "dpo", "ppo"])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_a_dry_run_is_the_real_run(shape: Path, verb: str, checkpointing: bool) -> None:
    """The same passes on tensors with data: the bytes alive at the worst moment are the same."""
    options = PlanOptions(gpus=0)
    verb, _, kind = verb.partition(" ")
    stage = _stage(verb, shape, options, **({"reward_kind": kind} if kind else {}))
    setting = Setting(checkpointing=checkpointing, micro_batch=4 if verb != "ppo" else 128)
    dry = stage.update(setting)
    real = _real_passes(stage, setting)
    assert dry.alone.working == pytest.approx(real.alone.working, rel=0.03)
    assert dry.mixed.working + dry.mixed.gradients == pytest.approx(real.mixed.working + real.mixed.gradients, rel=0.03)


def _real_passes(stage: Stage, setting: Setting) -> LiveBytes:
    from rlhf.planner.stages import as_on_device

    with as_on_device(False, VOCABULARY):
        module, loss = stage.build(stage.config, setting)
        live = LiveBytes(module, stage.widths())
        for parameter in module.parameters():
            if parameter.requires_grad:
                parameter.register_post_accumulate_grad_hook(live.keep_as_gradient)
        with live:
            loss().backward()
    return live


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("verb", ["sft", "ppo"])
def test_deep_models_go_on_along_the_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, verb: str, checkpointing: bool
) -> None:
    """Of 12 layers 2 and 4 are run; all 12 say the same."""
    shape = _shape(tmp_path, num_hidden_layers=12)
    options = PlanOptions(gpus=0)
    setting = Setting(checkpointing=checkpointing, micro_batch=4 if verb != "ppo" else 128)
    short = account(_stage(verb, shape, options), setting, options)
    monkeypatch.setattr("rlhf.planner.stages._DEEP", 100)
    whole = account(_stage(verb, shape, options), setting, options)
    for mine, theirs in zip(short.moments, whole.moments, strict=True):
        assert mine.total == pytest.approx(theirs.total, rel=0.03), mine.phase


def test_what_ppo_holds_follows_its_config(shape: Path, tmp_path: Path) -> None:
    options = PlanOptions(gpus=1)
    lora = {"use_peft": True, "lora_r": 4, "lora_target_modules": ["q_proj", "v_proj"]}
    adapter = LAYERS * 2 * 4 * (HIDDEN + HIDDEN)

    def held(**values: Any) -> dict[str, tuple[int, int, str]]:
        models = _stage("ppo", shape, options, **values).held
        return {model.name: (model.count.total, model.count.trained, model.how) for model in models}

    policy, value = (TRUNK, TRUNK, "trained"), (TRUNK + HIDDEN, TRUNK + HIDDEN, "trained")
    assert held() == {"policy": policy, "value model": value, "reference": (TRUNK, 0, "shardable")}
    assert held(reference="offload")["reference"] == (TRUNK, 0, "host")
    assert held(value_model_kind="shared")["value model"] == (HIDDEN, HIDDEN, "trained")
    # The reference is the policy without its adapter; a value model of its own learns all its weights.
    assert held(**lora) == {"policy": (TRUNK + adapter, adapter, "trained"), "value model": value}
    second = held(value_model_kind="adapter", **lora)
    assert second["value model"] == (adapter + HIDDEN, adapter + HIDDEN, "trained")
    assert second["policy"] == (TRUNK + adapter, adapter, "trained")
    assert held(ema_decay=0.9)["average of the policy"] == (TRUNK, 0, "frozen")
    scored = _shape(tmp_path, num_hidden_layers=1)
    with_model = held(reward=[str(scored)])
    small = TRUNK - (LAYERS - 1) * LAYER + HIDDEN
    assert with_model["reward model"] == (small, 0, "frozen")
    assert with_model["value model"] == (small, small, "trained")  # starts from the first reward model


def test_an_implicit_reward_is_two_language_models(shape: Path, tmp_path: Path) -> None:
    options = PlanOptions(gpus=1)
    models = _stage("reward", shape, options, reward_kind="implicit").held
    assert [(model.name, model.count.total, model.count.trained) for model in models] == [
        ("reward model", TRUNK, TRUNK),
        ("reference", TRUNK, 0),
    ]
    run = {"id": "r", "stage": "reward", "parents": [], "config": {"reward_kind": "implicit"}, "data_sha256": {}}
    (_shape(tmp_path) / "run.json").write_text(json.dumps(run | {"git_sha": None, "versions": {}}))
    stage = _stage("ppo", shape, options, reward=[str(tmp_path)])
    held = {model.name: (model.count.total, model.count.trained) for model in stage.held}
    assert held["reward model"] == held["reward model's start"] == (TRUNK, 0)
    assert held["value model"] == (TRUNK + HIDDEN, TRUNK + HIDDEN)  # starts from the policy: these have no head
    phase = next(phase for phase in stage.phases(stage.start()) if phase.name == "reward model")
    # Four rows of 32 tokens, of which 8 are the reply's: whole logits, the reply's, and their log-softmax.
    assert phase.peak.logits == 4 * (32 + 8 + 8) * VOCABULARY * 4
    # On a CPU rows lie end to end, 1,024 tokens at a time (32 rows), and only the reply's have logits.
    wide = 5000
    _shape(tmp_path, vocab_size=wide)
    on_cpu = _stage("ppo", tmp_path, PlanOptions(gpus=0), reward=[str(tmp_path)], per_device_train_batch_size=64)
    phase = next(phase for phase in on_cpu.phases(on_cpu.start()) if phase.name == "reward model")
    assert phase.peak.logits == 32 * (8 + 8) * wide * 4


@pytest.mark.parametrize("kind", ["shared", "separate"])
def test_what_the_rollout_notes_is_not_weighed_again(tmp_path: Path, kind: str) -> None:
    """Then the reference's alone are made: four replies of 8 tokens, logits and their log-softmax; no entropy."""
    vocabulary = 5000
    wide = _shape(tmp_path, vocab_size=vocabulary)

    def logits(**values: Any) -> int:
        stage = _stage("ppo", wide, PlanOptions(gpus=0), value_model_kind=kind, **values)
        return next(phase for phase in stage.phases(stage.start()) if phase.name == "scoring").peak.logits

    assert logits(old_logps="rollout") == 2 * 4 * 8 * vocabulary * 4 < logits()


def test_dropout_costs_where_the_trainer_leaves_it_on(shape: Path) -> None:
    """TRL turns it off in dpo, also a LoRA's: no copy of each layer's input, and no mask."""
    options = PlanOptions(gpus=1)
    lora = {"use_peft": True, "lora_r": 4, "lora_target_modules": "all-linear", "lora_dropout": 0.1}
    kept = _stage("dpo", shape, options, disable_dropout=False, **lora)
    gone = _stage("dpo", shape, options, **lora)
    assert gone.update(gone.start()).alone.activations < 0.9 * kept.update(kept.start()).alone.activations


def test_the_cache_of_a_rollout_by_hand(shape: Path) -> None:
    """Keys and values of 4 replies, 32 tokens long with their prompts, in float32."""
    options = PlanOptions(gpus=1)
    stage = _stage("ppo", shape, options)
    sums = _sums(stage, stage.start(), options, "rollout")
    assert sums["policy", "KV cache"] == 2 * LAYERS * 4 * 32 * HIDDEN * 4


def test_the_logits_of_dpo_s_kl_by_hand(shape: Path, tmp_path: Path) -> None:
    """Its worst moment: the reference's whole logits of 4 sequences, those of its replies, and the policy's."""
    options = PlanOptions(gpus=1)
    vocabulary = 5000
    wide = _shape(tmp_path, vocab_size=vocabulary)
    stage = _stage("dpo", wide, options, per_device_eval_batch_size=4, max_new_tokens=8)
    logits = _sums(stage, stage.start(), options, "KL")["policy", "logits"]
    assert logits == (4 * 32 + 2 * 4 * 8) * vocabulary * 4
    without = _stage("dpo", shape, options, num_kl_prompts=0)
    assert {moment.phase for moment in account(without, without.start(), options).moments} == {"update", "step"}


def test_four_bits_are_half_a_byte(shape: Path) -> None:
    options = PlanOptions(gpus=1)
    lora = {"use_peft": True, "lora_r": 4, "lora_target_modules": ["q_proj", "v_proj"]}
    stage = _stage("sft", shape, options, load_in_4bit=True, **lora)
    linear = LAYERS * (LAYER - 2 * HIDDEN)
    rest = TRUNK - linear + LAYERS * 2 * 4 * (HIDDEN + HIDDEN)
    sums = _sums(stage, stage.start(), options, "step")
    assert sums["policy", "parameters"] == linear // 2 + rest * 4


def test_throughput_of_a_run(tmp_path: Path, shape: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def write(*rows: dict[str, Any]) -> None:
        (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))

    with open_run("sft", tmp_path, {}, {}) as folder:
        folder.finish()
    write({"step": 1, "num_tokens": 500}, {"step": 2, "num_tokens": 1000}, {"step": 2, "train_runtime": 20.0})
    assert read_throughput(str(tmp_path)) == 50
    write({"step": 1, "tokens_per_second": 10.0}, {"tokens_per_second": 30.0}, {"tokens_per_second": 200.0})
    assert read_throughput(str(tmp_path)) == 30  # the median: the first round warms up
    options = PlanOptions(gpus=4, like=str(tmp_path), like_gpus=2, examples=10, price=3.0)
    stage = _stage("sft", shape, options, num_train_epochs=2)
    found = duration(stage, stage.start(), options)
    assert found is not None
    assert (found.tokens, found.tokens_per_second) == (2 * 10 * 32, 15)
    assert found.hours == pytest.approx(640 / (15 * 4) / 3600)
    assert found.cost == pytest.approx(3 * 640 / 15 / 3600)
    write({"step": 1, "loss": 1.0})
    argv = ["plan", "sft", "--model_name_or_path", str(shape), "--gpu_memory", "8", "--like", str(tmp_path)]
    assert "has no throughput in metrics.jsonl" in fails(capsys, *argv)


def test_a_table_for_people(shape: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cli.main(["plan", "sft", "--model_name_or_path", str(shape), "--gpu_memory", "8", "--gpus", "2"])
    told = capsys.readouterr().out
    assert "activations" in told
    assert "the first setting that was tried fits" in told


def test_the_order_goes_from_cheap_to_dear(shape: Path) -> None:
    options = PlanOptions(gpus=2)
    stage = _stage("sft", shape, options, per_device_train_batch_size=2)
    order = list(settings(stage, options))
    assert order[0] == Setting(0, "none", False, 2, 1)
    assert [each.zero for each in order[:8]] == [0, 1, 2, 3, 0, 1, 2, 3]
    assert [each.checkpointing for each in order[:8]] == [False] * 4 + [True] * 4
    assert order[8].offload == "optimizer"
    assert order[-1] == Setting(3, "params", True, 1, 2)  # the global batch stays


def test_the_first_that_fits_is_chosen_and_no_memory_is_too_small_to_say_so(shape: Path) -> None:
    options = PlanOptions(gpus=0)
    stage = _stage("sft", shape, options)
    whole = account(stage, stage.start(), options).peak
    found = search(stage, options, 2 * whole / GIB)
    assert found.fits
    assert found.chosen.setting == stage.start()
    tight = search(stage, options, 1.1 * whole / GIB)  # 10% stay free: over by a hair
    assert tight.fits
    assert tight.chosen.setting.checkpointing
    assert not search(stage, options, whole / GIB / 100).fits


def test_what_does_not_fit_names_the_least_of_all(shape: Path) -> None:
    """Settings that are passed over by their lower bound may need less than the first, which was counted in full."""
    options = PlanOptions(gpus=8)
    stage = _stage("sft", shape, options)
    found = search(stage, options, 1e-6)
    every = [account(stage, setting, options).peak for setting in settings(stage, options)]
    assert not found.fits
    assert found.chosen.peak == min(every)


def test_zero_3_is_whole_while_ppo_samples_and_weighs(shape: Path) -> None:
    options = PlanOptions(gpus=8)
    stage = _stage("ppo", shape, options)
    for phase in ("rollout", "scoring"):
        sums = _sums(stage, Setting(zero=3, micro_batch=128), options, phase)
        assert sums["policy", "gathered weights"] == TRUNK * 4
        assert sums["value model", "gathered weights"] == (TRUNK + HIDDEN) * 4


def test_zero_3_of_ppo_names_its_reference(shape: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    argv = ["plan", "ppo", "--model_name_or_path", str(shape), "--reward", "http://localhost:1", "--gpus", "2"]
    argv += ["--gpu_memory", "80", "--max_prompt_length", "24", "--max_new_tokens", "8", "--output", str(tmp_path)]
    cli.main([*argv, "--zero", "3"])
    assert f"--ref_model {shape}" in capsys.readouterr().out.replace("\n", "")
    assert f"--ref_model {shape}" in (tmp_path / "flags.txt").read_text()
    cli.main([*argv, "--zero", "2"])
    assert "--ref_model" not in (tmp_path / "flags.txt").read_text()


@pytest.mark.parametrize("argv", [["--help"], ["sft", "-h"]])
def test_help_is_the_plan_s_own(capsys: pytest.CaptureFixture[str], argv: list[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        cli.main(["plan", *argv])
    told = capsys.readouterr().out
    assert not stop.value.code
    assert "--gpu_memory" in told
    assert "--adam_beta1" not in told


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ([], "name the training that is to be planned"),
        (["sample"], "`sample` trains nothing"),
        (["sft", "--model_name_or_path", "no/such/model"], "no such model folder"),
        (["sft"], "model_name_or_path: is not set"),
        (["sft", "--zero", "4"], "zero: `4` is not one of 0, 1, 2, 3, auto"),
        (["sft", "--offload", "all"], "offload: `all` is not one of"),
        (["sft", "--gpus", "-1"], "gpus: -1 is below 0"),
        (["sft", "--nodes", "0"], "nodes: 0 is not above 0"),
        (["sft", "--price", "-1"], "price: -1.0 is below 0"),
        (["sft", "--config"], "--config: needs the path"),
        (["sft", "--use_peft", "true", "--lora_target_modules", "no", "such"], "lora_target_modules: "),
        (["sft", "--gpu_memry", "3"], "unknown flag `--gpu_memry`"),
        (["dpo"], "runs/sft: is not there; a plan needs a config.json alone"),
    ],
)
def test_mistakes_are_one_line(capsys: pytest.CaptureFixture[str], shape: Path, argv: list[str], message: str) -> None:
    argv = [*argv, "--model_name_or_path", str(shape)] if "--use_peft" in argv else argv
    machine = [] if not argv or argv[0] == "sample" else ["--gpu_memory", "8"]
    assert message in fails(capsys, "plan", *argv[:1], *machine, *argv[1:])


def test_no_gpu_and_no_memory_given(capsys: pytest.CaptureFixture[str], shape: Path) -> None:
    if torch.cuda.is_available():
        pytest.skip("there is a GPU here, whose memory is taken")
    error = fails(capsys, "plan", "sft", "--model_name_or_path", str(shape))
    assert "gpu_memory: is not given and there is no GPU here" in error


def test_what_does_not_fit_is_an_error_with_its_mends(capsys: pytest.CaptureFixture[str], shape: Path) -> None:
    error = fails(capsys, "plan", "sft", "--model_name_or_path", str(shape), "--gpu_memory", "0.001")
    assert "sft at 256 tokens does not fit" in error
    assert "LoRA (--use_peft true)" in error


def test_more_gpus_are_no_mend_where_weights_are_whole(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """DPO's KL at ZeRO-3: its logits decide, and the weights are whole on each GPU."""
    wide = str(_shape(tmp_path, vocab_size=200_000))
    argv = ["plan", "dpo", "--model_name_or_path", wide, "--gpus", "8", "--gpu_memory", "1.6", "--zero", "3"]
    error = fails(capsys, *argv, "--max_length", "256", "--per_device_eval_batch_size", "64")
    assert "GPUs with more memory (the weights are whole there" in error
    assert "--num_kl_prompts 0" in error


def test_json_and_files(capsys: pytest.CaptureFixture[str], shape: Path, tmp_path: Path) -> None:
    argv = ["plan", "sft", "--model_name_or_path", str(shape), "--gpus", "8", "--zero", "2", "--gpu_memory", "8"]
    more = ["--examples", "100", "--tokens_per_second", "10", "--price", "2", "--max_length", "64"]
    cli.main([*argv, *more, "--json", "true", "--output", str(tmp_path / "plan")])
    told = json.loads(capsys.readouterr().out)
    assert told["fits"]
    assert told["chosen"]["setting"]["zero"] == 2
    assert told["duration"]["tokens"] == 100 * 64
    # 6,400 tokens at 10 a second and GPU: 640 GPU-seconds, over 8 GPUs 80 seconds.
    assert told["duration"]["gpu_hours"] == pytest.approx(640 / 3600)
    assert told["duration"]["hours"] == pytest.approx(80 / 3600)
    assert told["duration"]["cost"] == pytest.approx(2 * 640 / 3600)
    deepspeed = json.loads((tmp_path / "plan" / "deepspeed.json").read_text())
    assert deepspeed["zero_optimization"] == {"stage": 2, "reduce_bucket_size": TRUNK}
    flags = (tmp_path / "plan" / "flags.txt").read_text()
    assert "--per_device_train_batch_size 8" in flags
    assert f"--deepspeed {tmp_path / 'plan' / 'deepspeed.json'}" in flags
