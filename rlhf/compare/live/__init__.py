"""A comparison while it runs: what its folder holds so far, and a page that shows it."""
