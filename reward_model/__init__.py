"""A reward model: trained on preferences, then a callable that scores responses."""
