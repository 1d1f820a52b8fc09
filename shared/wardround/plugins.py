"""Parts that are one file each: those that come with wardround, and those that other packages bring.

A part of ours is a module of a package, found by its file's name; a part of somebody else's is an entry point. The
names are known without importing anything, since an import may take seconds (torch) and runs what it imports.
"""

from __future__ import annotations

import pkgutil
from dataclasses import dataclass
from functools import cached_property
from importlib import import_module
from importlib.metadata import entry_points
from importlib.util import find_spec
from typing import Generic, TypeVar

from wardround.errors import ConfigError

T_co = TypeVar("T_co", covariant=True)


def files_of(package: str, joined: str = "-") -> tuple[str, ...]:
    """Names of the parts that are a file each of a package, sorted; nothing is imported. joined: for "_" of a file."""
    spec = find_spec(package)
    folders = spec.submodule_search_locations if spec else None
    names = (module.name for module in pkgutil.iter_modules(folders or []))
    return tuple(sorted(name.replace("_", joined) for name in names if not name.startswith("_")))


@dataclass(frozen=True)
class Kind(Generic[T_co]):
    """All parts of one kind.

    what: the kind in words, for errors. package: where ours lie, a file each: `per_fedavg.py` holds "per-fedavg".
    attribute: the name, in each file, of the part. group: the entry points of other packages. joined: what stands
    between the words of a name.
    """

    what: str
    package: str
    attribute: str
    group: str
    joined: str = "-"

    @cached_property
    def built_in(self) -> tuple[str, ...]:
        """Names of the parts that come with wardround, sorted; files that begin with "_" are no parts."""
        return files_of(self.package, self.joined)

    @property
    def others(self) -> tuple[str, ...]:
        """Names of the parts that other packages bring, sorted."""
        return tuple(sorted({point.name for point in entry_points(group=self.group)} - set(self.built_in)))

    @property
    def names(self) -> tuple[str, ...]:
        """Names of all parts that are installed: ours, then the others."""
        return (*self.built_in, *self.others)

    def __contains__(self, name: object) -> bool:
        return name in self.built_in or name in self.names

    def __getitem__(self, name: str) -> T_co:
        """The part of that name; ours cannot be replaced by another package's.

        Raises: ConfigError, when none is installed, or the package that brings it cannot be imported.
        """
        if name in self.built_in:
            part: T_co = getattr(import_module(f"{self.package}.{name.replace(self.joined, '_')}"), self.attribute)
            return part
        for point in entry_points(group=self.group, name=name):
            try:
                part = point.load()
            except Exception as error:  # another's code
                raise ConfigError(
                    f"{self.what} {name!r} cannot be loaded from {point.value} ({type(error).__name__})",
                    do="install its package again, or take it out",
                ) from error
            return part
        raise ConfigError(
            f"unknown {self.what} {name!r}",
            allowed=", ".join(self.names),
            do="correct the name, or install the package that brings it",
        )
