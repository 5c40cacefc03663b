"""The gold rubric: replies written by hand, their scores worked out from the documented table."""

import ast
import re
from pathlib import Path
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rlhf.demo import rubric
from rlhf.demo.domain import FAULTS, NUM_WORDINGS, PROBLEMS, PRODUCTS, draw_prompts, prompt_of, write_reply
from rlhf.demo.rubric import facts, score
from rlhf.errors import UserError

ROOT = Path(__file__).parents[1]
PROMPT = [{"role": "user", "content": "hello there, my kettle makes a loud noise. could you help me please?"}]
GOOD = (
    "i am so sorry to hear that. for the kettle, please tighten the screws on the back. "
    "just ask if you have more questions."
)


def one(response: str, **columns: str) -> float:
    return score([PROMPT], [response], **{name: [value] for name, value in columns.items()})[0]


# All of it is 0.40 fix + 0.15 product + 0.15 concise + 0.10 empathy + 0.10 offer + 0.10 finished.
@pytest.mark.parametrize(
    ("response", "expected"),
    [
        (GOOD, 1.0),
        ("Sorry! Tighten the two screws at the back of your Kettle. Write to us again if that does not work.", 1.0),
        (GOOD.replace("tighten the screws on the back", "replace the fuse in the plug"), 0.6),
        (GOOD.replace("on the back", "on the back and replace the fuse in the plug"), 0.6),  # two fixes
        (GOOD.replace("tighten the screws on the back", "wait"), 0.6),  # no fix
        (GOOD.replace("kettle", "radio"), 0.85),
        (GOOD.replace("the kettle", "the kettle or the radio"), 0.85),
        (GOOD.replace("kettle", "thing"), 0.85),
        (GOOD + " please send me your password first.", 0.7),
        (GOOD + " what is your card number?", 0.7),
        (GOOD + " what a stupid question.", 0.8),  # 1 - 0.2, the empathy is still there
        (GOOD.replace("i am so sorry to hear that.", "only an idiot would ask that."), 0.7),  # and without it
        (GOOD + " our shop has been here very long." * 2, 0.85),  # says it twice
        (GOOD + " word" * 3 + " and".join(f" w{n}" for n in range(12)) + ".", 0.85),  # 24 + 3 + 23 = 50 words
        (GOOD.replace("i am so sorry to hear that. ", ""), 0.9),
        (GOOD.replace(" just ask if you have more questions.", ""), 0.9),
        (GOOD.rstrip("."), 0.9),  # whole, but for the full stop
        (GOOD.replace(" questions.", ""), 0.8),  # neither finished nor an offer
        ("i am so sorry to hear that. for the kettle, please", 0.4),  # product, concise, empathy
        ("for the kettle, please tighten the screws on the back.", 0.8),
        ("tighten the screws on the back.", 0.65),
        ("stupid idiot, kettle, password", 0.0),  # 0.15 + 0.15 - 0.2 - 0.3 is under 0
        ("i am sorry to hear that. just ask if you have more questions.", 0.0),  # beside the matter
        (GOOD.replace("kettle", "radio").replace("tighten the screws on the back", "turn off the child lock"), 0.0),
        ("", 0.0),
        ("qwert .", 0.0),
        ("tighten. the screws. on the back.", 0.0),  # not one sentence, so no fix
        ("the back screws tighten for the kettle.", 0.4),  # not in order: product, concise, finished
    ],
)
def test_scores_of_replies_written_by_hand(response: str, expected: float):
    assert one(response) == pytest.approx(expected)
    assert one(response, product="kettle", problem="noise") == pytest.approx(expected)


def test_the_facts_explain_the_score():
    found = facts(PROMPT, "stop whining. for the radio, please turn off the child lock. what is your password")
    assert (found.product, found.problem) == ("kettle", "noise")
    assert found.products_named == ("radio",)
    assert found.fixes_given == ("locked buttons",)
    assert found.num_words == 15
    assert (found.asks_password, found.is_rude, found.is_finished) == (True, True, False)
    assert (found.shows_empathy, found.offers_help, found.rambles) == (False, False, False)
    assert (found.names_product, found.right_fix, found.is_on_the_matter) == (False, False, False)
    assert sum(rubric.points(facts(PROMPT, GOOD)).values()) == pytest.approx(1.0)


def test_the_limit_of_words():
    forty_five = "tighten the screws on the back of the kettle, " + " ".join(f"w{n}" for n in range(36)) + "."
    found = facts(PROMPT, forty_five)
    assert (found.num_words, found.rambles) == (45, False)
    assert facts(PROMPT, f"well, {forty_five}").rambles


def test_repeating_five_words_is_rambling_and_four_is_not():
    assert facts(PROMPT, "a b c d e, x a b c d e.").repeats_itself
    assert not facts(PROMPT, "a b c d, x a b c d y.").repeats_itself


def test_flawless_replies_score_one_for_every_product_and_problem():
    prompts, replies = [], []
    for number, product in enumerate(PRODUCTS):
        for place, problem in enumerate(PROBLEMS):
            for seed in range(4):
                prompts.append(prompt_of(product, problem.name, (7 * number + 40 * place + seed) % NUM_WORDINGS))
                replies.append(write_reply(product, problem.name, (), Random(f"{number} {place} {seed}")))
    assert set(score([prompt.messages for prompt in prompts], replies)) == {1.0}


def test_every_prompt_is_recognised_without_columns():
    for prompt in draw_prompts(True, 300, Random(0)) + draw_prompts(False, 1000, Random(0)):
        found = facts(prompt.messages, "")
        assert (found.product, found.problem) == (prompt.meta["product"], prompt.meta["problem"])


# Rude replies lose the empathy as well; curt ones lose empathy and offer.
SINGLE = {"wrong_fix": 0.6, "wrong_product": 0.85, "asks_password": 0.7, "rude": 0.7, "rambling": 0.85, "curt": 0.8}


@pytest.mark.parametrize("fault", FAULTS)
def test_each_fault_of_the_domain_lowers_the_score(fault: str):
    prompts = draw_prompts(False, 200, Random(fault))
    replies = [write_reply(p.meta["product"], p.meta["problem"], (fault,), Random(p.id)) for p in prompts]
    scores = score([prompt.messages for prompt in prompts], replies)
    if fault == "unfinished":  # depends on where it stops; never finished, and the last part is not said
        assert max(scores) <= 0.8
    else:
        assert set(scores) == {SINGLE[fault]}


def test_two_faults_are_worse_than_either():
    prompts = draw_prompts(False, 100, Random(1))
    for prompt in prompts:
        of, about = prompt.meta["product"], prompt.meta["problem"]
        both = write_reply(of, about, ("wrong_fix", "asks_password"), Random(prompt.id))
        assert score([prompt.messages], [both]) == [0.3]  # 1 - 0.4 - 0.3


def test_columns_win_over_the_prompt_and_others_are_ignored():
    other = GOOD.replace("kettle", "radio")
    assert one(other, product="radio", tone="angry") == 1.0
    assert score([PROMPT], [GOOD], product=[None], problem=[None]) == [1.0]
    unrelated = [{"role": "user", "content": "what is the capital of france?"}]
    assert score([unrelated], [GOOD]) == [0.0]
    assert score([], []) == []


def test_the_longest_symptom_names_the_problem():
    both = [{"role": "user", "content": "my kettle came without a manual and is far too loud."}]
    assert facts(both, "").problem == "no manual"


@given(st.text(), st.text())
@settings(max_examples=200)
def test_any_text_gets_a_score_in_range(prompt: str, response: str):
    (value,) = score([[{"role": "user", "content": prompt}]], [response])
    assert 0.0 <= value <= 1.0


PARTS = [GOOD, "kettle", "radio", "password", "stupid", "tighten the screws on the back", ".", "sorry", "?", "\n"]


@given(st.lists(st.sampled_from(PARTS)), st.sampled_from(PRODUCTS), st.sampled_from(PROBLEMS))
@settings(max_examples=200)
def test_any_mixture_of_parts_gets_a_score_in_range(parts, product, problem):
    assert 0.0 <= one(" ".join(parts), product=product, problem=problem.name) <= 1.0


def test_errors_name_the_column():
    with pytest.raises(UserError, match=r"column `product`: `kettel` is not a product of the demo.*`kettle`"):
        one(GOOD, product="kettel")
    with pytest.raises(UserError, match="column `problem`: `sound` is not a problem of the demo"):
        one(GOOD, problem="sound")
    with pytest.raises(UserError, match="prompts: 1 of them for 2 responses"):
        score([PROMPT], [GOOD, GOOD])
    with pytest.raises(UserError, match="product: 2 of them for 1 responses"):
        score([PROMPT], [GOOD], product=["kettle", "kettle"])


def test_the_table_in_the_docstring_is_what_the_code_does():
    table = re.findall(r"^\| (.+?) +\| +(-?\d\.\d\d) \|$", str(rubric.__doc__), flags=re.MULTILINE)
    weights = [rubric.RIGHT_FIX, rubric.NAMES_PRODUCT, rubric.CONCISE, rubric.EMPATHY, rubric.OFFERS_HELP]
    weights += [rubric.FINISHED, rubric.ASKS_PASSWORD, rubric.RUDE]
    assert [float(points) for _, points in table] == weights
    assert f"at most {rubric.MAX_WORDS} words" in table[2][0]
    assert rubric.REPEATED_RUN == 5 and "five words said twice" in table[2][0]


def test_only_the_annotators_import_the_rubric():
    importers = set()
    for package in ("rlhf", "reward_model", "labeling_app"):
        for path in (ROOT / package).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if isinstance(node, ast.ImportFrom):
                    names = [f"{node.module}.{alias.name}" for alias in node.names]
                elif isinstance(node, ast.Import):
                    names = [alias.name for alias in node.names]
                else:
                    continue
                if any(name.startswith("rlhf.demo.rubric") for name in names):
                    importers.add(str(path.relative_to(ROOT)))
    assert importers == {"rlhf/demo/annotators.py", "rlhf/demo/annotate.py"}  # the latter for practice tasks alone
