"""Refusals, toxicity, stereotypes, and gaps between groups of people: before and after alignment."""
