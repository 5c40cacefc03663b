"""A judge that is a language model behind an OpenAI-compatible chat endpoint."""

from rlhf.compare.llm_judge.endpoint import JudgeEndpoint
from rlhf.compare.llm_judge.judging import judge_pairs
from rlhf.compare.llm_judge.verdicts import JudgeSummary, PairItem, PairVerdict, summarise

__all__ = ["JudgeEndpoint", "JudgeSummary", "PairItem", "PairVerdict", "judge_pairs", "summarise"]
