"""compare: which policy is better, how sure is that, and at what cost."""
