"""The database's tables, made or brought up to date; a database that is not ours stays as it is."""

from pathlib import Path

from sqlalchemy import Connection, inspect, text

from rlhf.errors import UserError

VERSION_TABLE = "label_store_version"
FOLDER = Path(__file__).parent / "migrations"
# The newest of migrations/versions. Written here too: alembic, which would know, takes long to import.
NEWEST = "0001"


def upgrade(connection: Connection, where: str) -> None:
    """Bring the tables to this version, inside the connection's transaction.

    Raises UserError, naming `where`, and changes nothing in a database that is another program's or
    a newer rlhf's.
    """
    if version_of(connection, where) == NEWEST:
        return
    from alembic import command
    from alembic.config import Config

    config = Config(attributes={"connection": connection})
    config.set_main_option("script_location", str(FOLDER).replace("%", "%%"))
    command.upgrade(config, "head")


def version_of(connection: Connection, where: str) -> str | None:
    """Which version the tables have; None where there are none yet.

    Raises UserError where they are another program's or a newer rlhf's.
    """
    tables = inspect(connection).get_table_names()
    if VERSION_TABLE not in tables:
        if tables:
            raise UserError(
                f"{where}: is no label store, it has other tables ({', '.join(sorted(tables)[:3])}); "
                "name another file, or an empty database"
            )
        return None
    version = str(connection.execute(text(f"SELECT version_num FROM {VERSION_TABLE}")).scalar())
    if version > NEWEST:
        raise UserError(
            f"{where}: was made by a newer rlhf (its tables have version {version}, this one knows {NEWEST}); "
            "upgrade rlhf"
        )
    return version
