"""What alembic runs: the migrations on the connection, and in the transaction, of store/migrate.py.

A new one: change schema.py, copy the last of versions/, write what changed, and raise migrate.NEWEST.
"""

from alembic import context

from labeling_app.store.migrate import VERSION_TABLE
from labeling_app.store.schema import metadata

context.configure(
    connection=context.config.attributes["connection"], target_metadata=metadata, version_table=VERSION_TABLE
)
context.run_migrations()
