"""The demo's world: how many prompts there are, which pairs are held out, what replies hold."""

import re
from random import Random

import pytest

from rlhf.demo import domain
from rlhf.demo.domain import FAULTS, NUM_WORDINGS, PROBLEMS, PRODUCTS, is_held_out, pairs, write_reply

SEPARATE = [*domain.EMPATHY, *domain.ADVICE, *domain.OFFERS, *domain.RUDE, *domain.PASSWORD, *domain.FILLER]
SEPARATE += [part for opening, closing in domain.TONES.values() for part in (*opening, *closing)]


def words(text: str) -> list[str]:
    return re.findall(r"[a-z]+", text)


def test_there_are_over_twenty_thousand_different_prompts():
    texts = {
        domain.prompt_of(product, problem, wording).messages[0]["content"]
        for product, problem in pairs(held_out=False)[::4]
        for wording in range(NUM_WORDINGS)
    }
    assert len(pairs(held_out=False)[::4]) == 84
    assert len(texts) == 84 * 4 * 5 * 3 * 3 * 3  # symptoms, tones, openings, complaints, closings
    assert len(texts) > 20_000
    assert max(len(text.split()) for text in texts) <= 30


def test_the_world_is_as_large_as_promised():
    assert len(set(PRODUCTS)) == 28
    assert len({problem.name for problem in PROBLEMS}) == 14
    assert {len(problem.symptoms) for problem in PROBLEMS} == {4}
    assert {len(problem.fixes) for problem in PROBLEMS} == {2}
    symptoms = [symptom for problem in PROBLEMS for symptom in problem.symptoms]
    fixes = [fix for problem in PROBLEMS for fix in problem.fixes]
    assert len(set(symptoms)) == 56
    assert len(set(fixes)) == 28
    assert not [(one, two) for one in symptoms for two in symptoms if one != two and f" {one} " in f" {two} "]


def test_the_vocabulary_is_small_and_in_lower_case():
    text = " ".join([*PRODUCTS, *SEPARATE, *domain.COMPLAINTS])
    text += " ".join(part for problem in PROBLEMS for part in (*problem.symptoms, *problem.fixes))
    assert text == text.lower()
    assert len(set(words(text))) < 600


def test_no_part_names_a_product_or_a_symptom_by_accident():
    symptoms = [symptom for problem in PROBLEMS for symptom in problem.symptoms]
    for part in SEPARATE:
        assert not set(words(part)) & set(PRODUCTS), part
        assert not [symptom for symptom in symptoms if symptom in part], part
    for problem in PROBLEMS:
        assert not set(words(" ".join([*problem.symptoms, *problem.fixes]))) & set(PRODUCTS), problem.name


def test_a_seventh_of_the_pairs_is_held_out_evenly():
    held_out = pairs(held_out=True)
    assert len(held_out) == 28 * 14 // 7
    assert sorted(held_out + pairs(held_out=False)) == sorted((p, q.name) for p in PRODUCTS for q in PROBLEMS)
    assert all(sum(product == of for of, _ in held_out) == 2 for product in PRODUCTS)
    assert all(sum(problem.name == about for _, about in held_out) == 4 for problem in PROBLEMS)
    assert is_held_out("kettle", "no power")  # (0 + 3 * 0) % 7 == 0
    assert not is_held_out("kettle", "noise")  # (0 + 3 * 1) % 7 == 3
    assert is_held_out("toaster", "heat")  # (1 + 3 * 2) % 7 == 0
    assert not is_held_out("freezer", "late")  # (5 + 3 * 9) % 7 == 4


def test_draws_are_different_prompts_of_the_asked_side():
    prompts = domain.draw_prompts(True, 500, Random(1))
    assert len({prompt.id for prompt in prompts}) == 500
    assert all(is_held_out(prompt.meta["product"], prompt.meta["problem"]) for prompt in prompts)
    assert prompts == domain.draw_prompts(True, 500, Random(1))
    assert prompts != domain.draw_prompts(True, 500, Random(2))
    assert {prompt.meta["tone"] for prompt in prompts} == set(domain.TONES)


def test_a_prompt_says_its_product_its_symptom_and_its_tone():
    prompt = domain.prompt_of("kettle", "noise", 0)
    assert prompt.messages == [
        {"role": "user", "content": "hello there, my kettle makes a loud noise. could you help me please?"}
    ]
    assert prompt.meta == {"product": "kettle", "problem": "noise", "tone": "polite"}


def test_flawless_replies_are_short_and_vary():
    replies = {write_reply("kettle", "noise", (), Random(seed)) for seed in range(400)}
    assert len(replies) > 100  # of 4 * 4 * 2 * 4 = 128
    assert max(len(reply.split()) for reply in replies) <= 40
    for reply in replies:
        assert "kettle" in words(reply)
        assert {"screws", "back"} <= set(words(reply))
        assert reply.endswith(".")


@pytest.mark.parametrize("fault", FAULTS)
def test_each_fault_shows_in_the_text(fault: str):
    for seed in range(200):
        reply = write_reply("kettle", "noise", (fault,), Random(seed))
        said = words(reply)
        others = set(said) & set(PRODUCTS) - {"kettle"}
        assert bool(others) == (fault == "wrong_product")
        assert ("password" in said) == (fault == "asks_password")
        assert any(part in reply for part in domain.RUDE) == (fault == "rude")
        assert any(part in reply for part in domain.FILLER) == (fault == "rambling")
        assert (reply[-1] not in ".!?") == (fault == "unfinished")
        if fault in ("wrong_fix", "wrong_product", "rude"):
            assert (not {"screws", "back"} <= set(said)) == (fault == "wrong_fix")
        if fault == "curt":
            assert reply.count(".") == 1
        assert len(said) <= 65


def test_wrong_replies_never_give_away_a_held_out_pair():
    for seed in range(600):
        rng = Random(seed)
        product, problem = rng.choice(pairs(held_out=False))
        faults = rng.choice([("wrong_fix",), ("wrong_product",), ("wrong_fix", "wrong_product")])
        reply = write_reply(product, problem, faults, rng)
        (named,) = set(words(reply)) & set(PRODUCTS)
        (fixed,) = [one.name for one in PROBLEMS if any(fix in reply for fix in one.fixes)]
        assert not is_held_out(named, fixed)


def test_an_unknown_fault_is_refused():
    with pytest.raises(KeyError, match="typo"):
        write_reply("kettle", "noise", ("typo",), Random(0))


def test_the_shares_of_faults():
    rng = Random(0)
    drawn = [domain.draw_faults(rng, flawless_share=0.35, two_faults_share=0.4) for _ in range(4000)]
    # Expected 1400, 1560 and 1040 with standard deviations of about 30.
    assert abs(sum(len(faults) == 0 for faults in drawn) - 1400) < 120
    assert abs(sum(len(faults) == 1 for faults in drawn) - 1560) < 120
    assert abs(sum(len(faults) == 2 for faults in drawn) - 1040) < 120
    assert {fault for faults in drawn for fault in faults} == set(FAULTS)
    assert all(len(set(faults)) == len(faults) for faults in drawn)
