"""The page of a module's own `home`, served."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.web import Served, served

from wardround_client.pages import work
from wardround_client.pages.desk import Desk
from wardround_client.pages.site import app


@pytest.fixture(scope="module")
def desk(home: Path) -> Desk:
    return Desk(home)


@pytest.fixture(scope="module")
def there(desk: Desk) -> Iterator[Served]:
    """What still runs is ended with it."""
    with served(app(desk)) as found:
        yield found
        work.end(desk.site)
