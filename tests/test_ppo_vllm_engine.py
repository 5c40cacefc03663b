"""The vLLM engine on TRL's real VLLMGeneration and VLLMClient: what is asked, what comes back, what is refused.

vLLM itself is a stub (tests/vllm_stubs.py). `test_trl_...` hold what we rely on in TRL, so that a new
version that changes it fails here.
"""

import ast
import inspect
import math
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from trl.generation.vllm_client import VLLMClient
from trl.generation.vllm_generation import VLLMGeneration

from rlhf.errors import UserError
from rlhf.ppo import vllm_engine
from rlhf.ppo.vllm_engine import SERVE, VLLMEngine, require_vllm, seeds
from tests.architectures import tiny
from tests.vllm_stubs import (
    COLOCATE,
    PROMPTS,
    SERVER,
    STOPS,
    UNIFORMS,
    Client,
    behind,
    both,
    engine,
    install,
    named,
    reply_of,
)


@pytest.fixture(autouse=True)
def vllm(monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch)


@pytest.fixture
def policy() -> Any:
    return named(tiny("llama"))


# --- replies -----------------------------------------------------------------------------------


@both
def test_replies_and_their_log_probabilities_come_in_the_prompts_order(mode: str, policy: Any) -> None:
    rollout = engine(mode, policy)
    replies = rollout.generate(policy, PROMPTS, UNIFORMS)
    wanted = [reply_of(p, seed, [7, 20], 6) for p, seed in zip(PROMPTS, seeds(UNIFORMS), strict=True)]
    assert replies == [tokens for tokens, _ in wanted]
    assert rollout.logps == [logps for _, logps in wanted]
    assert any(reply[-1] in STOPS for reply in replies) and any(len(reply) == 6 for reply in replies)


@both
def test_two_rounds_of_the_same_numbers_are_the_same_and_others_are_not(mode: str, policy: Any) -> None:
    rollout = engine(mode, policy)
    first = rollout.generate(policy, PROMPTS, UNIFORMS)
    assert rollout.generate(policy, PROMPTS, UNIFORMS) == first
    assert rollout.generate(policy, PROMPTS, 1 - UNIFORMS) != first


@both
def test_one_prompt_twice_gets_two_replies(mode: str, policy: Any) -> None:
    replies = engine(mode, policy).generate(policy, PROMPTS, UNIFORMS)
    assert PROMPTS[0] == PROMPTS[2] and replies[0] != replies[2]


@both
def test_vllm_is_asked_for_our_stops_temperature_and_length_and_nothing_cut_off(mode: str, policy: Any) -> None:
    rollout = engine(mode, policy)
    rollout.generate(policy, PROMPTS, UNIFORMS)
    asked = behind(rollout).asked
    assert len(asked) == len(PROMPTS)
    for each in asked:
        each = each if isinstance(each, dict) else vars(each)
        wanted = {"stop_token_ids": [7, 20], "ignore_eos": True, "temperature": 0.9, "max_tokens": 6, "n": 1}
        wanted |= {"top_p": 1.0, "top_k": 0, "min_p": 0.0, "repetition_penalty": 1.0, "logprobs": 0}
        assert {key: each[key] for key in wanted} == wanted
    found = sorted(each["seed"] if isinstance(each, dict) else each.seed for each in asked)
    assert found == sorted(seeds(UNIFORMS))


def test_settings_reach_vllm(policy: Any) -> None:
    rollout = engine("vllm_colocate", policy, trust_remote_code=True)
    settings = behind(rollout).settings
    wanted = {"model": "runs/sft", "tensor_parallel_size": 1, "gpu_memory_utilization": 0.3, "max_model_len": 32}
    wanted |= {"max_num_seqs": 8, "enable_sleep_mode": False, "trust_remote_code": True}
    assert {key: settings[key] for key in wanted} == wanted
    assert settings["logprobs_mode"] == "processed_logprobs"  # or the importance weights would be wrong
    client = behind(engine("vllm_server", policy, server_base_url="http://gpu:1", group_port=5, server_timeout=2.0))
    assert (client.base_url, client.group_port, client.timeout) == ("http://gpu:1", 5, 2.0)


def test_a_log_probability_that_is_no_number_stays_so_for_the_update_to_see() -> None:
    found = vllm_engine._sampled([4, 5], [[-1.0], [None]], [[4], [5]])
    assert found[0] == -1.0 and math.isnan(found[1])


def test_the_sampled_tokens_figure_is_taken_not_the_likeliest_ones() -> None:
    assert vllm_engine._sampled([4, 5], [[-0.1, -2.0], [-0.3]], [[9, 4], [5]]) == [-2.0, -0.3]


# --- seeds -------------------------------------------------------------------------------------


def test_a_seed_is_made_of_a_rows_first_two_numbers() -> None:
    # 0.5 is 2**23 of 2**24, 0.25 is 2**22; the second stands 24 bits higher. The third plays no part.
    uniforms = torch.tensor([[0.0, 0.0, 0.3], [0.5, 0.0, 0.9], [0.5, 0.25, 0.1]])
    assert seeds(uniforms) == [0, 2**23, 2**23 + 2**46]
    assert seeds(torch.tensor([[0.5]])) == [2**23]
    assert max(seeds(torch.full((1, 2), 1 - 2**-24))) == 2**48 - 1


@pytest.mark.parametrize(
    ("mode", "group", "wanted"),
    [("vllm_colocate", 1, [30, 31]), ("vllm_colocate", 2, [20, 21, 30, 31]), ("vllm_server", 1, None)],
)
def test_each_process_has_the_seeds_of_the_prompts_it_hands_over(
    mode: str, group: int, wanted: list[int] | None, policy: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rank 3 of 4, with two prompts each: its own, those of its tensor-parallel group, or all for the server."""
    everyones = [0, 1, 10, 11, 20, 21, 30, 31]
    rollout = engine(mode, policy)
    rollout.accelerator, rollout.tensor_parallel = SimpleNamespace(process_index=3), group
    monkeypatch.setattr(vllm_engine, "gather_object", lambda mine: everyones)
    assert rollout._gathered_seeds(UNIFORMS[:2]) == (wanted or everyones)


# --- errors ------------------------------------------------------------------------------------


@both
def test_without_vllm_it_says_how_to_get_it(mode: str, policy: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vllm_engine, "find_spec", lambda name: None)
    message = f"engine: {mode} needs vllm (pip install 'rlhf[vllm]'); set --engine hf"
    for start in (lambda: require_vllm(mode), lambda: engine(mode, policy)):
        with pytest.raises(UserError) as caught:
            start()
        assert str(caught.value) == message


@pytest.mark.parametrize(
    "error", [ConnectionError("can't be reached at X"), RuntimeError("no engine"), NotImplementedError("needs CUDA")]
)
def test_a_server_that_cannot_be_used_says_how_to_start_one(
    error: Exception, policy: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Client, "refuses", error)
    with pytest.raises(UserError, match=str(error)) as caught:
        engine("vllm_server", policy)
    assert SERVE in str(caught.value) and "--vllm_server_base_url" in str(caught.value)


def test_too_little_memory_names_the_setting(policy: Any) -> None:
    with pytest.raises(UserError, match=r"vllm_colocate does not start: Free memory .*--vllm_gpu_memory_utilization"):
        engine("vllm_colocate", policy, gpu_memory_utilization=0.99)


@pytest.mark.parametrize(
    ("mode", "temperature", "fine"),
    [
        ("raw_logprobs", 0.9, False),
        ("raw_logprobs", 1.0, True),
        ("processed_logprobs", 0.9, True),
        ("raw_logits", 1.0, False),
    ],
)
def test_the_server_must_report_what_it_samples_with(
    mode: str, temperature: float, fine: bool, policy: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Client, "logprobs_mode", mode)
    if fine:
        engine("vllm_server", policy, temperature)
        return
    with pytest.raises(UserError, match=f"reports {mode}.*--logprobs-mode processed_logprobs"):
        engine("vllm_server", policy, temperature)


def test_a_policy_from_nowhere_cannot_start_vllm(policy: Any) -> None:
    policy.name_or_path = ""
    with pytest.raises(UserError, match="folder or Hub id, and this one has none"):
        engine("vllm_colocate", policy)
    engine("vllm_server", policy)  # the server has its own


def test_fsdp_and_uneven_groups_are_refused(policy: Any) -> None:
    state = SimpleNamespace(fsdp_plugin=object(), deepspeed_plugin=None)
    start = {"accelerator": SimpleNamespace(state=state, num_processes=3), "tokenizer": None, "stop_ids": STOPS}
    start |= {"max_new_tokens": 6, "temperature": 1.0, "policy": policy}
    with pytest.raises(UserError, match="vllm_server cannot read FSDP's weights"):
        VLLMEngine("vllm_server", **start)
    state.fsdp_plugin = None
    with pytest.raises(UserError, match="vllm_tensor_parallel_size: 2 does not divide the 3 processes"):
        VLLMEngine("vllm_colocate", **start, tensor_parallel_size=2)


@pytest.mark.parametrize("left_out", ["logprobs", "tokens"])
def test_replies_without_log_probabilities_are_refused(
    left_out: str, policy: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    answer = {"logprobs": ([[4]], None, [[[4]]]), "tokens": ([[4]], [[[-1.0]]], None)}[left_out]
    monkeypatch.setattr(VLLMGeneration, "generate", lambda self, **_: ([[5]], *answer))
    with pytest.raises(UserError, match="gave no log-probabilities"):
        engine("vllm_server", policy).generate(policy, PROMPTS[:1], UNIFORMS[:1])


def test_a_server_that_leaves_log_probabilities_out_is_refused(policy: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    post = Client._post

    def without(self: Any, url: str, **kwargs: Any) -> dict[str, Any]:
        return {"choices": [choice | {"logprobs": None} for choice in post(self, url, **kwargs)["choices"]]}

    monkeypatch.setattr(Client, "_post", without)
    with pytest.raises(UserError, match="gave no log-probabilities"):
        engine("vllm_server", policy).generate(policy, PROMPTS, UNIFORMS)


def test_an_empty_reply_is_refused() -> None:
    with pytest.raises(UserError, match="a reply without a token"):
        vllm_engine._sampled([], [], [])


def test_another_policy_than_its_own_is_refused(policy: Any) -> None:
    with pytest.raises(ValueError, match="made for"):
        engine("vllm_colocate", policy).generate(tiny("llama"), PROMPTS, UNIFORMS)


# --- what we rely on in TRL --------------------------------------------------------------------


def parameters(function: Any) -> set[str]:
    return set(inspect.signature(function).parameters)


def calls(function: Any, name: str) -> list[ast.Call]:
    """The calls of `name` (dotted, as written) in a function's source."""
    tree = ast.parse(inspect.cleandoc("\n" + inspect.getsource(function)))
    return [node for node in ast.walk(tree) if isinstance(node, ast.Call) and ast.unparse(node.func) == name]


def test_trl_takes_our_settings_and_has_no_other_that_we_have_not_looked_at() -> None:
    """A new one may cut the distribution, as top_p does: then it must be set here too."""
    ours = {"model", "accelerator", "processing_class", "mode", "max_completion_length", "temperature", "logprobs"}
    ours |= {"top_p", "top_k", "min_p", "repetition_penalty", "generation_kwargs", *SERVER, *COLOCATE}
    left_out = {"self", "structured_outputs_regex", "server_host", "server_port", "model_impl"}
    assert parameters(VLLMGeneration.__init__) == ours | left_out
    assert parameters(VLLMGeneration.generate) == {"self", "prompts", "images", "num_generations", "profiler"}
    assert parameters(VLLMGeneration.sync_weights) == {"self"}


def test_trl_asks_llm_and_client_in_the_one_way_that_we_put_the_seeds_into() -> None:
    [llm] = calls(VLLMGeneration.generate, "self.llm.generate")
    assert ast.unparse(llm) == "self.llm.generate(vllm_prompts, sampling_params=sampling_params, use_tqdm=False)"
    [client] = calls(VLLMGeneration.generate, "self.vllm_client.generate")
    assert {keyword.arg for keyword in client.keywords} == {"prompts", "features", None}
    assert "'generation_kwargs': self.generation_kwargs" in ast.unparse(
        ast.parse(inspect.cleandoc("\n" + inspect.getsource(VLLMGeneration.generate)))
    )
    assert {"prompts", "features", "generation_kwargs", "temperature", "max_tokens"} <= parameters(VLLMClient.generate)
    assert "sampling_params.update(generation_kwargs or {})" in inspect.getsource(VLLMClient.generate)


def test_trl_starts_a_colocated_vllm_that_reports_what_it_samples_with() -> None:
    [start] = calls(VLLMGeneration._init_vllm, "LLM")
    settings = {keyword.arg: ast.unparse(keyword.value) for keyword in start.keywords}
    assert settings["logprobs_mode"] == "'processed_logprobs'"
    assert settings["model"] == "model.name_or_path"


def test_trl_has_what_the_server_is_asked() -> None:
    assert "vllm_config" in inspect.getsource(VLLMClient.get_server_info)
    assert parameters(VLLMClient.__init__) >= {"base_url", "group_port", "connection_timeout"}
    assert parameters(VLLMClient.update_named_params) == {"self", "metadata", "named_params"}
    for flag in ("VLLM_SERVER_DEV_MODE=1", "--weight-transfer-config", "--logprobs-mode processed_logprobs"):
        assert flag in (VLLMClient.__doc__ or "") and flag in SERVE


def test_trl_gathers_and_merges_by_itself() -> None:
    source = inspect.getsource(VLLMGeneration._iter_named_params)
    for step in ("gather_params([param])", "gather_params(list(model.parameters()))", "merge_adapter()"):
        assert step in source
    assert "model.unmerge_adapter()" in source


def test_deepspeed_lets_nothing_gather_twice() -> None:
    """Why `own_weights` is there: VLLMGeneration's gathering inside the trainer's would be an error."""
    import deepspeed

    assert VLLMEngine.own_weights
    source = inspect.getsource(deepspeed.zero.GatheredParameters.__enter__)
    assert "Nested GatheredParameters contexts cannot overlap" in source


def test_trls_grpo_trainer_uses_it_as_we_do() -> None:
    """The order that TRL's own trainer keeps: send the weights, then generate from ids."""
    from trl import GRPOTrainer

    source = inspect.getsource(GRPOTrainer._generate_single_turn)
    assert source.index("self.vllm_generation.sync_weights()") < source.index("self.vllm_generation.generate(")
    [call] = calls(GRPOTrainer._generate_single_turn, "self.vllm_generation.generate")
    assert {keyword.arg for keyword in call.keywords} == {"prompts", "images", "num_generations", "profiler"}
