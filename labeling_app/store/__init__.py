"""The label store: tables, one durable write path, backup. `Store` is all that other rooms use."""

from labeling_app.store.database import Store, StoreError

__all__ = ["Store", "StoreError"]
