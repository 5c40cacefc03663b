"""The encoder: nothing is lost, nothing trains on pad, every cut is counted."""

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rlhf.data.encode import CutReport, Encoder
from rlhf.errors import UserError
from rlhf.models import load_policy, load_tokenizer

USER = {"role": "user", "content": "Hello, how can I help you?"}
BOT = {"role": "assistant", "content": "Thank you."}


@pytest.fixture(scope="module")
def encoder(policy_folder: Path) -> Encoder:
    return Encoder(load_tokenizer(str(policy_folder)))


def _text(encoder: Encoder, ids: list[int]) -> str:
    return encoder.tokenizer.decode(ids)


def test_prompt_and_reply_join_to_the_template(encoder: Encoder) -> None:
    encoded = encoder.encode_reply([USER], ["Thank you."], None, CutReport())
    assert encoded is not None
    prompt, (reply,) = encoded
    assert _text(encoder, prompt) == f"<|im_start|>user\n{USER['content']}<|im_end|>\n<|im_start|>assistant\n"
    assert _text(encoder, reply) == "Thank you.<|im_end|>"  # the line break after the end of turn is nobody's


def test_a_lone_surrogate_is_read_as_the_sign_for_no_character(encoder: Encoder) -> None:
    def ids(text: str) -> list[int]:
        return encoder.prompt_ids([{"role": "user", "content": text}])

    assert ids("a\ud800b") == ids("a\ufffdb")


def test_all_assistant_turns_are_masked_in_and_nothing_else(encoder: Encoder) -> None:
    messages = [{"role": "system", "content": "Be kind."}, USER, BOT, USER, {"role": "assistant", "content": "Bye"}]
    encoded = encoder.encode_conversation(messages, None, CutReport())
    assert encoded is not None
    ids, mask = encoded
    kept = "|".join(_text(encoder, [i]) for i, m in zip(ids, mask, strict=True) if m)
    assert kept.replace("|", "") == "Thank you.<im_end>Bye<im_end>"
    assert len(ids) == len(mask)


def test_the_oldest_turns_go_first_and_the_end_stays(encoder: Encoder) -> None:
    messages = [{"role": "system", "content": "Be kind."}, USER, BOT, USER, BOT, USER]
    full = encoder.prompt_ids(messages)
    cut = CutReport()
    fitted = encoder.fit_prompt(messages, len(full) - 1, cut)
    assert _text(encoder, fitted) == encoder.prompt_text([messages[0], USER, BOT, USER])
    assert cut.metrics() == {
        "num_examples": 0,
        "num_prompts_cut": 1,
        "num_replies_cut": 0,
        "num_tokens_cut": len(full) - len(fitted),
        "num_dropped": 0,
    }


def test_a_long_reply_keeps_its_end_of_turn(encoder: Encoder) -> None:
    cut = CutReport()
    encoded = encoder.encode_reply([USER], ["Thank you. " * 40, "Bye"], 64, cut)
    assert encoded is not None
    prompt, replies = encoded
    assert max(len(prompt) + len(reply) for reply in replies) <= 64
    assert all(reply[-1] == encoder.tokenizer.eos_token_id for reply in replies)
    assert (cut.num_replies_cut, cut.num_prompts_cut, cut.num_examples) == (1, 1, 1)
    assert "1 the end of a reply" in (cut.sentence("pairs", 64) or "")


def test_what_fits_is_not_reported(encoder: Encoder) -> None:
    cut = CutReport()
    encoder.encode_reply([USER], ["Bye"], 200, cut)
    assert cut.sentence("pairs", 200) is None


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.text(min_size=1, max_size=60), min_size=1, max_size=5),
    st.text(max_size=80),
    st.integers(min_value=4, max_value=120),
)
def test_whatever_the_text_it_fits_and_ends(policy_folder: Path, turns: list[str], reply: str, max_length: int) -> None:
    encoder = _cached(policy_folder)
    messages = [{"role": ("user", "assistant")[n % 2], "content": text} for n, text in enumerate(turns)]
    if len(messages) % 2 == 0:
        messages = messages[:-1]
    cut = CutReport()
    encoded = encoder.encode_conversation([*messages, {"role": "assistant", "content": reply}], max_length, cut)
    if encoded is None:
        assert cut.num_dropped == 1
        return
    ids, mask = encoded
    assert len(ids) == len(mask) <= max_length
    assert ids[-1] == encoder.tokenizer.eos_token_id
    assert mask[-1] == 1
    assert encoder.tokenizer.pad_token_id not in ids


_ENCODERS: dict[Path, Encoder] = {}


def _cached(folder: Path) -> Encoder:
    return _ENCODERS.setdefault(folder, Encoder(load_tokenizer(str(folder))))


def test_chat_3m_reads_as_it_was_trained(shared: Path) -> None:
    """Its README says a perplexity of about 6.2 on the bot's tokens: a lost eos or space would show at once."""
    import math
    import re

    import torch

    policy = load_policy(str(shared / "models" / "chat-3m"), chat_template_path="configs/templates/user_bot.jinja")
    nll, count = 0.0, 0
    for dialogue in (shared / "models" / "chat-3m" / "chat_val.txt").read_text().split("\n\n")[:120]:
        parts = re.split(r"^(User|Bot):", dialogue.strip(), flags=re.M)[1:]
        messages = [
            {"role": "user" if who == "User" else "assistant", "content": text.strip().replace("<|endoftext|>", "")}
            for who, text in zip(parts[::2], parts[1::2], strict=True)
        ]
        if not messages or messages[0]["role"] != "user" or messages[-1]["role"] != "assistant":
            continue
        encoded = policy.encoder.encode_conversation(messages, 256, CutReport())
        assert encoded is not None
        ids, mask = torch.tensor([encoded[0]]), torch.tensor(encoded[1])
        with torch.no_grad():
            logps = torch.log_softmax(policy.model(ids).logits[0, :-1], -1).gather(-1, ids[0, 1:, None]).squeeze(-1)
        nll -= logps[mask[1:] == 1].sum().item()
        count += int(mask[1:].sum())
    assert math.exp(nll / count) == pytest.approx(6.2, abs=0.4)


def test_errors_say_how_to_set_a_template(policy_folder: Path, tmp_path: Path) -> None:
    tokenizer = load_tokenizer(str(policy_folder))
    tokenizer.chat_template = None
    with pytest.raises(UserError, match=r"has no chat template; set one with --chat_template_path configs/templates"):
        Encoder(tokenizer)
    with pytest.raises(UserError, match=r"none\.jinja: no such chat template"):
        load_tokenizer(str(policy_folder), "none.jinja")
    (tmp_path / "odd.jinja").write_text("{{ messages | length }}{% if add_generation_prompt %}>{% endif %}")
    with pytest.raises(UserError, match="does not render a reply as a continuation"):
        Encoder(load_tokenizer(str(policy_folder), str(tmp_path / "odd.jinja"))).reply_ids([USER], "hi")
    (tmp_path / "strict.jinja").write_text("{{ raise_exception('users first') }}")
    with pytest.raises(UserError, match="the chat template refuses a conversation of roles user: users first"):
        Encoder(load_tokenizer(str(policy_folder), str(tmp_path / "strict.jinja"))).prompt_ids([USER])
    eosless = load_tokenizer(str(policy_folder))
    eosless.eos_token = None
    with pytest.raises(UserError, match="has no eos token"):
        Encoder(eosless)


def test_a_template_without_eos_gets_one(policy_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "bare.jinja").write_text(
        "{% for m in messages %}{{ m['role'] + ': ' + m['content'] + '\\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ 'assistant:' }}{% endif %}"
    )
    encoder = Encoder(load_tokenizer(str(policy_folder), str(tmp_path / "bare.jinja")))
    assert _text(encoder, encoder.reply_ids([USER], "hi")) == " hi<|im_end|>"
