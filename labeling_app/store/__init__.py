"""The label store: tables, one durable write path, backup. These three names are all that other rooms use."""

from labeling_app.store.database import Store, StoreError, open_store

__all__ = ["Store", "StoreError", "open_store"]
