"""The decode step that a GPU records: without a GPU it runs as it is, and must draw what the plain loop draws."""

from pathlib import Path

import pytest
import torch

from rlhf.decoding import cut, decode, decode_noted, draw
from rlhf.decoding_graph import FixedDecoder, can_be_fixed
from rlhf.layers import logits_of, trunk
from rlhf.models import load_policy


def _note(hidden: torch.Tensor, logits: torch.Tensor, drawn: torch.Tensor) -> torch.Tensor:
    """Something of each that the note is given."""
    logps = logits.log_softmax(-1).gather(1, drawn[:, None]).squeeze(1)
    return torch.stack([logps, hidden.sum(-1), drawn.float()], dim=1)


def _fixed(
    policy, prompts: list[list[int]], uniforms: torch.Tensor, stops: list[int], note=None
) -> tuple[list[list[int]], torch.Tensor | None]:
    width, length = max(map(len, prompts)), uniforms.shape[1]
    input_ids = torch.zeros(len(prompts), width, dtype=torch.long)
    mask = torch.ones(len(prompts), width + length, dtype=torch.long)
    for row, prompt in enumerate(prompts):
        input_ids[row, width - len(prompt) :] = torch.tensor(prompt)
        mask[row, : width - len(prompt)] = 0
    with torch.no_grad():
        decoder = FixedDecoder(
            trunk(policy),
            logits_of(policy),
            draw,
            policy.config.get_text_config(),
            input_ids,
            mask,
            uniforms,
            torch.tensor(stops),
            1.0,
            note,
        )
        replies, notes = decoder.run()
    return [cut(ids, stops) for ids in replies], notes


@pytest.mark.parametrize("num_stops", [1, 40])
def test_it_draws_what_the_plain_loop_draws(policy_folder: Path, num_stops: int) -> None:
    """With many stop tokens rows end early, and the batch shrinks more than once."""
    policy = load_policy(str(policy_folder)).model
    generator = torch.Generator().manual_seed(num_stops)
    vocabulary = policy.config.vocab_size
    lengths = [3, 9, 1, 14, 5, 5, 2, 7]
    prompts = [torch.randint(4, vocabulary, (n,), generator=generator).tolist() for n in lengths]
    uniforms = torch.rand(len(prompts), 40, generator=generator)
    stops = list(range(3, 3 + num_stops))
    expected = decode(policy, prompts, uniforms, stops, 1.0, len(prompts))
    assert _fixed(policy, prompts, uniforms, stops) == (expected, None)
    replies, notes = decode_noted(policy, prompts, uniforms, stops, 1.0, len(prompts), note=_note)
    found, mine = _fixed(policy, prompts, uniforms, stops, _note)
    assert found == replies == expected and mine is not None
    for row, noted in enumerate(notes):
        assert noted[:, 2].tolist() == expected[row]
        torch.testing.assert_close(mine[row, : len(noted)], noted, rtol=1e-4, atol=1e-4)
    assert len({len(ids) for ids in expected}) > 1 or num_stops == 1


def test_only_plain_caches_are_fixed(policy_folder: Path) -> None:
    """A sliding window does not see the buffer's whole length."""
    config = load_policy(str(policy_folder)).model.config
    assert can_be_fixed(config)
    from transformers import MistralConfig

    assert not can_be_fixed(MistralConfig(sliding_window=16, num_hidden_layers=2))
