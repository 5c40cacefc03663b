"""The labeling app: people rank responses in a browser, `export` turns rankings into preferences.

Imports only `rlhf`'s records, errors, config, runs and data, never torch, so that it starts in a
second on a machine without an accelerator.
"""
