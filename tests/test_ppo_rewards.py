"""Reward functions: every kind of them, what they may return, every way they fail, and ensembles by hand."""

import functools
import json
import shutil
import sys
import threading
from collections.abc import Callable, Iterator
from fractions import Fraction
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from rlhf.errors import UserError
from rlhf.models import load_causal, load_classifier, load_tokenizer
from rlhf.ppo.endpoint import HTTPReward, RewardError
from rlhf.ppo.rewards import Reward, combine, load_rewards, score, text_reward
from rlhf.scoring import load_reward_model

PROMPTS = [[{"role": "user", "content": text}] for text in ("Hello", "What time does the shop close?", "Thank you")]
COMPLETIONS = [[{"role": "assistant", "content": text}] for text in ("Thank you", "What what what what", "a")]
TEXTS = ["Thank you", "What what what what", "a"]


def ask(*functions: Any, columns: dict[str, Any] | None = None, timeout: float = 60.0) -> list[list[float]]:
    """The scores that these functions give to the three replies."""
    return score(load_rewards(list(functions)), PROMPTS, COMPLETIONS, columns or {}, timeout)


def answers(value: Any) -> Callable[..., Any]:
    """A reward function that always returns this."""

    def fixed(prompts, completions, **columns):
        return value

    return fixed


# --- what is asked, and what may come back ------------------------------------------------------


def test_a_function_gets_prompts_completions_and_columns_as_in_trl() -> None:
    def by_column(prompts, completions, weight, **columns):
        assert (prompts, completions) == (PROMPTS, COMPLETIONS)
        assert columns == {"topic": ["x", "y", "z"]}
        return [each * len(reply[-1]["content"]) for each, reply in zip(weight, completions, strict=True)]

    columns = {"weight": [1, 2, 3], "topic": ["x", "y", "z"]}
    assert ask(by_column, columns=columns) == [[9, 38, 3]]


@pytest.mark.parametrize(
    "value",
    [
        [1, -2.5, 0],
        (1, -2.5, 0),
        [Fraction(1), np.float32(-2.5), torch.tensor(0)],
        [True, -2.5, np.bool_(False)],
        np.array([1, -2.5, 0]),
        torch.tensor([1, -2.5, 0], dtype=torch.bfloat16),
        torch.tensor([1, -2.5, 0], requires_grad=True),
    ],
)
def test_lists_arrays_and_tensors_of_numbers_are_scores(value: Any) -> None:
    (scores,) = ask(answers(value))
    assert scores == [1.0, -2.5, 0.0]
    assert [type(number) for number in scores] == [float, float, float]


def test_an_async_function_is_awaited() -> None:
    async def later(prompts, completions, **columns):
        return [1.0, 2.0, 3.0]

    assert ask(later) == [[1, 2, 3]]


def test_a_function_keeps_no_gradients() -> None:
    weight = torch.ones(3, requires_grad=True)
    seen = []
    ask(lambda **_: seen.append((weight * 2).requires_grad) or [0, 0, 0])
    assert seen == [False]


def test_a_column_cannot_take_the_place_of_the_prompts() -> None:
    assert ask(lambda prompts, **_: [len(prompts)] * 3, columns={"prompts": ["x"]}) == [[3, 3, 3]]


def test_scores_come_in_the_order_of_the_functions() -> None:
    assert ask(answers([1, 2, 3]), answers([4, 5, 6])) == [[1, 2, 3], [4, 5, 6]]


def test_our_own_reward_functions_get_messages_and_text() -> None:
    seen = []

    def ours(prompts, responses, **columns):
        seen.append((prompts, responses, columns))
        return [float(len(text)) for text in responses]

    reward = text_reward(ours)
    # A dataset may have a column of the name of our second argument: the replies are what counts.
    assert reward(prompts=PROMPTS, completions=COMPLETIONS, topic=["x"] * 3, responses=["y"] * 3) == [9, 19, 1]
    assert reward(prompts=["Hello"], completions=["Hi"]) == [2]
    assert seen[0] == (PROMPTS, TEXTS, {"topic": ["x"] * 3})
    assert seen[1] == ([[{"role": "user", "content": "Hello"}]], ["Hi"], {})


# --- names ----------------------------------------------------------------------------------------


def test_names_are_short_and_unique() -> None:
    def length(**_):
        return [0.0]

    class Polite:
        def __call__(self, **_):
            return [0.0]

    url = "http://rewards.example.org:8000/score"
    items = [length, functools.partial(length, scale=2), text_reward(length), Polite(), lambda **_: [0.0]]
    rewards = load_rewards([*items, url, f"{url}/2", HTTPReward(url)])
    host = "rewards.example.org"
    names = ["length", "length-2", "length-3", "Polite", "lambda", host, f"{host}-2", f"{host}-3"]
    assert [reward.name for reward in rewards] == names


def test_one_function_needs_no_list() -> None:
    function = answers([0, 0, 0])
    assert load_rewards(function) == [Reward("fixed", function)]


# --- classifiers ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def reward_folder(policy_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny reward model with random weights, saved as a reward run saves it."""
    folder = tmp_path_factory.mktemp("rewards") / "tiny"
    tokenizer = load_tokenizer(str(policy_folder))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        model = load_classifier(str(policy_folder), tokenizer)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def test_a_folder_scores_as_the_reward_model_alone(reward_folder: Path) -> None:
    """By hand: the whole conversation in ChatML, the head's output at the end of the reply's turn."""
    tokenizer = load_tokenizer(str(reward_folder))
    model = load_classifier(str(reward_folder), tokenizer).eval()
    expected = []
    for prompt, text in zip(PROMPTS, TEXTS, strict=True):
        whole = f"<|im_start|>user\n{prompt[0]['content']}<|im_end|>\n<|im_start|>assistant\n{text}<|im_end|>"
        ids = torch.tensor([tokenizer(whole, add_special_tokens=False)["input_ids"]])
        with torch.no_grad():
            expected.append(model.score(model.model(ids).last_hidden_state[0, -1]).item())
    assert len({round(value, 4) for value in expected}) == 3
    # Columns are of no interest to a classifier, also one that is called as its own argument is.
    assert ask(str(reward_folder), columns={"responses": [1, 2, 3]})[0] == pytest.approx(expected, abs=1e-5)
    (reward,) = load_rewards(reward_folder, batch_size=2)
    assert reward.name == "tiny"
    plain = score([reward], [prompt[0]["content"] for prompt in PROMPTS], TEXTS, {}, 60)
    assert plain[0] == pytest.approx(expected, abs=1e-5)


def test_a_loaded_model_scores_as_its_folder_and_leaves_the_tokenizer_as_it_was(reward_folder: Path) -> None:
    tokenizer = load_tokenizer(str(reward_folder))
    model = load_classifier(str(reward_folder), tokenizer)
    # As a policy has them, whose tokenizer it may be: with pad for eos the end of turn would not be scored.
    tokenizer.padding_side, tokenizer.pad_token = "left", tokenizer.eos_token
    model.config.pad_token_id = tokenizer.eos_token_id
    (reward,) = load_rewards((model, tokenizer))
    assert reward.name == "tiny"
    assert (tokenizer.padding_side, tokenizer.pad_token) == ("left", tokenizer.eos_token)
    scores = score([reward], PROMPTS, COMPLETIONS, {}, 60)[0]
    assert scores == pytest.approx(load_reward_model(str(reward_folder))(PROMPTS, TEXTS), abs=1e-5)


def test_an_adapter_of_a_classifier_is_a_reward_model(policy_folder: Path, tmp_path: Path) -> None:
    from peft import LoraConfig, get_peft_model

    tokenizer = load_tokenizer(str(policy_folder))
    model = get_peft_model(load_classifier(str(policy_folder), tokenizer), LoraConfig(task_type="SEQ_CLS"))
    model.save_pretrained(str(tmp_path / "adapter"))
    tokenizer.save_pretrained(tmp_path / "adapter")
    expected = load_rewards((model, tokenizer))
    loaded = load_rewards(str(tmp_path / "adapter"))
    there, here = (score(each, PROMPTS, COMPLETIONS, {}, 60)[0] for each in (expected, loaded))
    assert here == pytest.approx(there, abs=1e-5)
    settings = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    headless = {**settings, "task_type": "CAUSAL_LM"}
    (tmp_path / "adapter" / "adapter_config.json").write_text(json.dumps(headless))
    with pytest.raises(UserError, match=r"adapter: is a language model without a score"):
        load_rewards(str(tmp_path / "adapter"))


def test_what_cannot_score_is_refused(policy_folder: Path, reward_folder: Path, tmp_path: Path) -> None:
    tokenizer = load_tokenizer(str(policy_folder))
    causal = load_causal(str(policy_folder))
    model = load_classifier(str(reward_folder), load_tokenizer(str(reward_folder)))
    bare = load_tokenizer(str(policy_folder))
    bare.chat_template = None
    shutil.copytree(reward_folder, tmp_path / "bare", ignore=shutil.ignore_patterns("chat_template*"))
    settings = json.loads((tmp_path / "bare" / "tokenizer_config.json").read_text())
    settings.pop("chat_template", None)
    (tmp_path / "bare" / "tokenizer_config.json").write_text(json.dumps(settings))
    cases = [
        ([], "reward_funcs: is empty; give at least one"),
        ([7], "reward_funcs: a int cannot score; give a callable, a URL, the folder"),
        ([(model, tokenizer, 1)], "reward_funcs: a tuple cannot score"),
        ([(tokenizer, model)], "LlamaForSequenceClassification) cannot score; give `(model, tokenizer)`"),
        ([model], "reward_funcs: tiny has no tokenizer; give `(model, tokenizer)`"),
        ([(causal, tokenizer)], "reward_funcs: LlamaForCausalLM has 2 labels; give a sequence classifier with one"),
        ([(model, bare)], "tokenizer of LlamaForSequenceClassification has no chat template; give it one: set"),
        ([tmp_path / "bare"], "bare: the reward model's tokenizer has no chat template; give it one: set"),
        ([str(policy_folder)], "is a language model without a score; give the folder of a `rlhf reward` run"),
        ([str(tmp_path / "none")], "none: no such model folder; check the path, or give a Hub id"),
        (["http://"], "http://: is a URL without a host; give http://host:port/path"),
        (["http://host:port"], "http://host:port: is not a URL (Invalid port: 'port'); give http://host:port/path"),
    ]
    for item, message in cases:
        with pytest.raises(UserError) as error:
            load_rewards(item)
        assert message in str(error.value)


# --- how a function fails -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (None, "returned None; return a list of 3 numbers, one a completion"),
        ("good", "returned a str ('good'); return a list of 3 numbers"),
        ({"a": 1}, "returned a dict ({'a': 1}); return a list"),
        (1.0, "returned a float (1.0); return a list"),
        ([1.0, 2.0], "returned 2 scores for 3 completions; return one for each"),
        (torch.zeros(4), "returned 4 scores for 3 completions; return one for each"),
        (torch.zeros(3, 1), "returned an array of shape (3, 1); return one of shape (3,)"),
        (np.array(1.0), "returned an array of shape (); return one of shape (3,)"),
        ([0, None, None], "returned None for 2 of 3 completions (the first at index 1); PPO needs a number for each"),
        ([0, "1", "2"], "returned a str ('1') for 2 of 3 completions (the first at index 1); return numbers alone"),
        ([0, 1, [2]], "returned a list ([2]) for 1 of 3 completions (the first at index 2); return numbers"),
        ([0, 1, np.zeros(2)], "returned a ndarray (array([0., 0.])) for 1 of 3"),
        ([0, 1j, 2], "returned a complex (1j) for 1 of 3"),
        ([0, float("nan"), 1], "returned nan for 1 of 3 completions (the first at index 1); return finite numbers"),
        (torch.tensor([-torch.inf, 0, torch.nan]), "returned -inf for 2 of 3 completions (the first at index 0)"),
        ([0, 10**400, 0], "returned inf for 1 of 3"),
    ],
)
def test_what_is_no_score_is_an_error(value: Any, message: str) -> None:
    with pytest.raises(RewardError) as error:
        ask(answers([0, 0, 0]), answers(value))
    assert f"reward `fixed-2`: {message}" in str(error.value)


def broken(prompts, completions, **columns):
    return json.loads("{")  # line of `broken`, not of the json library, is what its author needs


def _line(text: str) -> int:
    """The line of this file that begins so."""
    lines = Path(__file__).read_text().splitlines()
    return next(number for number, line in enumerate(lines, 1) if line.strip().startswith(text))


class Wrapped:
    def __call__(self, **columns):
        raise RuntimeError("two\nlines " + "x" * 1000)


async def late(**columns):
    raise KeyError("gone")


def test_an_exception_says_what_and_where_in_the_function() -> None:
    cases = [
        (broken, "JSONDecodeError: Expecting property name", 'return json.loads("{")'),
        (functools.partial(broken, scale=1), "JSONDecodeError: Expecting property name", 'return json.loads("{")'),
        (text_reward(broken), "JSONDecodeError: Expecting property name", 'return json.loads("{")'),
        (torch.no_grad()(broken), "JSONDecodeError: Expecting property name", 'return json.loads("{")'),
        (Wrapped(), "RuntimeError: two lines xxx", 'raise RuntimeError("two'),
        (late, "KeyError: 'gone'", 'raise KeyError("gone")'),
        (lambda **_: sys.exit(3), "SystemExit: 3", "(lambda **_: sys.exit(3)"),
    ]
    for function, what, line in cases:
        with pytest.raises(RewardError) as error:
            ask(function)
        assert what in str(error.value)
        assert str(error.value).endswith(f" ({__file__}:{_line(line)}); mend it there")
        assert len(str(error.value)) < 600
        assert "\n" not in str(error.value)
        assert error.value.__cause__ is not None  # the whole traceback, for who wants it


def narrow(prompts, completions):
    return [0.0] * len(prompts)


def test_a_function_that_takes_no_columns_is_told_to() -> None:
    with pytest.raises(RewardError) as error:
        ask(narrow, columns={"topic": [1, 2, 3]})
    place = f"({__file__}:{_line('def narrow(')})"
    assert "reward `narrow`: TypeError: narrow() got an unexpected keyword argument 'topic'" in str(error.value)
    assert (
        f"{place}; it is called with the keywords prompts, completions, topic: "
        "take those it has no use for as **columns"
    ) in str(error.value)


def test_a_user_error_is_passed_on_with_the_name() -> None:
    def careful(**_):
        raise UserError("words.txt: no such file; write one")

    with pytest.raises(RewardError, match=r"^reward `careful`: words.txt: no such file; write one$"):
        ask(careful)


def test_too_little_memory_says_to_score_fewer() -> None:
    def big(**_):
        raise torch.OutOfMemoryError("CUDA out of memory")

    with pytest.raises(RewardError, match=r"OutOfMemoryError: CUDA out of memory \(.*\); score fewer at a time"):
        ask(big)


def test_a_function_that_hangs_is_given_up() -> None:
    never = threading.Event()

    def hangs(**_):
        never.wait()
        return [0, 0, 0]

    with pytest.raises(RewardError) as error:
        ask(hangs, timeout=0.05)
    threads = [each for each in threading.enumerate() if each.name == "rewards"]
    assert threads
    assert all(thread.daemon for thread in threads)  # they let the process end
    assert ask(answers([1, 2, 3])) == [[1.0, 2.0, 3.0]]  # in another thread: the first still hangs
    never.set()
    message = "no answer within 0.05 seconds for 3 completions; make it faster, or raise --reward_timeout"
    assert str(error.value) == f"reward `hangs`: {message}"


def test_an_endless_timeout_is_allowed() -> None:
    assert ask(answers([1, 2, 3]), timeout=float("inf")) == [[1, 2, 3]]


# --- endpoints ------------------------------------------------------------------------------------


class Server(ThreadingHTTPServer):
    """A real server on a free port; `reply(body, number)` gives status and answer of each request."""

    daemon_threads = True

    def __init__(self, reply: Callable[[Any, int], tuple[int, Any]]) -> None:
        self.reply = reply
        self.bodies: list[Any] = []
        super().__init__(("127.0.0.1", 0), _Handler)
        self.url = f"http://127.0.0.1:{self.server_address[1]}/score"


class _Handler(BaseHTTPRequestHandler):
    server: Server  # type: ignore[assignment]

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        self.server.bodies.append(body)
        status, answer = self.server.reply(body, len(self.server.bodies))
        if status == 0:  # hang up
            self.close_connection = True
            return
        data = answer if isinstance(answer, bytes) else json.dumps(answer).encode()
        try:
            self.send_response(status)
            self.send_header("content-length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)
        except BrokenPipeError:
            pass  # the client has given up already

    def log_message(self, format: str, *args: Any) -> None:
        pass


@pytest.fixture
def serve(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Server]]:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    servers = []

    def start(reply: Callable[[Any, int], tuple[int, Any]]) -> Server:
        server = Server(reply)
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        servers.append(server)
        return server

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


def _lengths(body: Any) -> list[int]:
    return [len(completion[-1]["content"]) for completion in body["completions"]]


def endpoint(url: str, **settings: Any) -> HTTPReward:
    return HTTPReward(url, **{"backoff": 0.001, "num_retries": 2, **settings})


@pytest.mark.parametrize("bare", [True, False])
def test_an_endpoint_is_asked_in_batches(serve: Callable[..., Server], bare: bool) -> None:
    server = serve(lambda body, _: (200, _lengths(body) if bare else {"scores": _lengths(body)}))
    rewards = load_rewards([server.url], batch_size=2)
    assert score(rewards, PROMPTS, COMPLETIONS, {"topic": ["x", "y", None]}, 60) == [[9, 19, 1]]
    assert server.bodies == [
        {"prompts": PROMPTS[:2], "completions": COMPLETIONS[:2], "columns": {"topic": ["x", "y"]}},
        {"prompts": PROMPTS[2:], "completions": COMPLETIONS[2:], "columns": {"topic": [None]}},
    ]


@pytest.mark.parametrize("status", [0, 429, 500, 503])
def test_a_flaky_endpoint_is_tried_again(serve: Callable[..., Server], status: int) -> None:
    server = serve(lambda body, number: (200, _lengths(body)) if number == 3 else (status, {"error": "busy"}))
    assert ask(endpoint(server.url)) == [[9, 19, 1]]
    assert len(server.bodies) == 3


def test_the_wait_doubles_between_tries(serve: Callable[..., Server], monkeypatch: pytest.MonkeyPatch) -> None:
    waits: list[float] = []
    monkeypatch.setattr("rlhf.ppo.endpoint.time.sleep", waits.append)
    server = serve(lambda *_: (500, {}))
    with pytest.raises(RewardError):
        HTTPReward(server.url, num_retries=4, backoff=0.5)(PROMPTS, COMPLETIONS)
    assert waits == [0.5, 1, 2, 4]
    assert len(server.bodies) == 5


def _message(function: HTTPReward, **columns: Any) -> str:
    with pytest.raises(RewardError) as error:
        ask(function, columns=columns)
    return str(error.value)


def test_an_endpoint_that_stays_broken_is_given_up(serve: Callable[..., Server]) -> None:
    server = serve(lambda *_: (500, b"no memory left"))
    assert _message(endpoint(server.url)) == (
        f"reward `127.0.0.1`: {server.url}: failed 3 times, at last with HTTP 500 'no memory left'; "
        "check that the server runs and can be reached from here"
    )
    assert len(server.bodies) == 3


def test_a_refusal_is_final(serve: Callable[..., Server]) -> None:
    for status in (400, 404, 307):
        server = serve(lambda *_, status=status: (status, {"error": "no topic"}))
        assert _message(endpoint(server.url)) == (
            f'reward `127.0.0.1`: {server.url}: answered HTTP {status} \'{{"error": "no topic"}}\'; '
            "mend the URL, or the server"
        )
        assert len(server.bodies) == 1


def test_an_endpoint_that_is_not_there_is_an_error(serve: Callable[..., Server]) -> None:
    server = serve(lambda *_: (200, []))
    server.shutdown()
    server.server_close()
    message = _message(endpoint(server.url))
    assert f"{server.url}: failed 3 times, at last with ConnectError: " in message


def test_a_slow_answer_is_a_failed_try(serve: Callable[..., Server]) -> None:
    go = threading.Event()

    def slow_once(body: Any, number: int) -> tuple[int, Any]:
        if number == 1:
            go.wait(60)
        return 200, _lengths(body)

    server = serve(slow_once)
    assert ask(endpoint(server.url, timeout=0.2, num_retries=50)) == [[9, 19, 1]]
    go.set()

    halt = threading.Event()
    server = serve(lambda *_: (200 if halt.wait(60) else 500, []))
    assert "failed 1 times, at last with ReadTimeout: timed out" in _message(
        endpoint(server.url, timeout=0.05, num_retries=0)
    )
    with pytest.raises(RewardError, match=r"reward `127.0.0.1`: no answer within 0.05 seconds"):
        ask(endpoint(server.url, num_retries=0), timeout=0.05)
    halt.set()


def test_an_answer_that_is_no_list_of_scores_is_an_error(serve: Callable[..., Server]) -> None:
    right = 'it should answer {"scores": [...]} or a list'
    for answer, told in [
        ({"score": 1}, "'{\"score\": 1}'"),
        (b"<html>", "'<html>'"),
        (3, "'3'"),
        (b"\xff", "'\ufffd'"),
    ]:
        server = serve(lambda *_, answer=answer: (200, answer))
        assert _message(endpoint(server.url)) == f"reward `127.0.0.1`: {server.url}: answered {told}; {right}"
    # Two batches whose wrong lengths add up to the right one: each is counted.
    server = serve(lambda body, number: (200, [0] if number == 1 else [0, 0]))
    assert "gave 1 scores for 2 completions; give one for each" in _message(endpoint(server.url, batch_size=2))
    server = serve(lambda *_: (200, b'{"scores": [1, NaN, 2]}'))
    assert "returned nan for 1 of 3 completions (the first at index 1)" in _message(endpoint(server.url))


def test_a_column_that_json_does_not_know_is_named() -> None:
    message = _message(endpoint("http://127.0.0.1:9/score"), good=[1, 2, 3], seen=[object()] * 3)
    assert "http://127.0.0.1:9/score: column `seen` cannot be sent (Object of type object is not JSON" in message
    message = _message(endpoint("http://127.0.0.1:9/score"), seen=[1.0, float("nan"), 2.0])
    assert "column `seen` cannot be sent (Out of range float values are not JSON compliant" in message
    assert message.endswith("; store it as text, or drop it")


def test_errors_do_not_show_the_password_of_a_url(serve: Callable[..., Server]) -> None:
    server = serve(lambda *_: (400, {}))
    message = _message(endpoint(server.url.replace("//", "//me:secret@")))
    assert server.url in message
    assert "secret" not in message


# --- ensembles ------------------------------------------------------------------------------------

THREE = [[1.0, 4.0], [3.0, 0.0], [5.0, -1.0]]  # (3 functions, 2 completions)


@pytest.mark.parametrize(
    ("how", "weights", "expected"),
    [
        ("sum", None, [9.0, 3.0]),
        ("mean", None, [3.0, 1.0]),
        ("minimum", None, [1.0, -1.0]),
        # Squared distances from the means: 4 + 0 + 4, and 9 + 1 + 4.
        ("lower_bound", None, [3 - 0.5 * (8 / 3) ** 0.5, 1 - 0.5 * (14 / 3) ** 0.5]),
        # Weighted: [2, 8], [0, 0], [-5, 1].
        ("sum", [2, 0, -1], [-3.0, 9.0]),
        ("mean", [2, 0, -1], [-1.0, 3.0]),
        ("minimum", [2, 0, -1], [-5.0, 0.0]),
        # 9 + 1 + 16, and 25 + 9 + 4.
        ("lower_bound", [2, 0, -1], [-1 - 0.5 * (26 / 3) ** 0.5, 3 - 0.5 * (38 / 3) ** 0.5]),
    ],
)
def test_ensembles_by_hand(how: str, weights: list[float] | None, expected: list[float]) -> None:
    assert combine(THREE, weights, how, k=0.5) == pytest.approx(expected)


def test_one_function_alone_is_its_own_ensemble() -> None:
    for how in ("sum", "mean", "minimum", "lower_bound"):
        assert combine([[1.5, -2.0]], None, how, k=3.0) == [1.5, -2.0]


def test_rewards_that_agree_have_no_lower_bound_below_them() -> None:
    assert combine([[2.0], [2.0]], None, "lower_bound", k=100.0) == [2.0]


def test_each_reward_needs_its_weight() -> None:
    with pytest.raises(UserError, match="reward_weights: 2 weights for 3 reward functions; give one for each"):
        combine(THREE, [1, 2], "sum", 1.0)
    with pytest.raises(ValueError, match="`median` is not sum, mean, minimum or lower_bound"):
        combine(THREE, None, "median", 1.0)
