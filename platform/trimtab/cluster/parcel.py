"""What travels to a cluster: named files, their sizes, and a folder that holds nothing else."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import trimtab
from trimtab.cluster.inputs import below
from trimtab.errors import ResourceError

LIMIT = 100 * 2**20
"""What Ray's dashboard takes in one piece."""
SHOWN = 10


@dataclass(frozen=True)
class Parcel:
    """Files of this machine by their names in the folder that travels."""

    what: str
    files: Mapping[str, Path]

    @property
    def sizes(self) -> dict[str, int]:
        """Bytes by name, the largest first."""
        sizes = {name: path.stat().st_size for name, path in self.files.items()}
        return dict(sorted(sizes.items(), key=lambda item: (-item[1], item[0])))

    @property
    def size(self) -> int:
        return sum(self.sizes.values())

    def fits(self, limit: int = LIMIT) -> None:
        """Raises ResourceError, with the largest files, when it is more than a cluster takes."""
        if self.size <= limit:
            return
        largest = "".join(f"\n  {mib(size):>11}  {name}" for name, size in list(self.sizes.items())[:SHOWN])
        raise ResourceError(
            f"{self.what}: {mib(self.size)} in {len(self.files)} files would travel, and a cluster takes {mib(limit)}; "
            "put large files where all nodes reach them (below compute.storage, or a folder given as --shared). "
            f"The largest:{largest}"
        )

    @contextmanager
    def laid_out(self) -> Iterator[Path]:
        """A folder with the files, for as long as the context lasts."""
        with tempfile.TemporaryDirectory(prefix="trimtab-") as made:
            for name, path in self.files.items():
                place = Path(made, name)
                place.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(path, place)
            yield Path(made)


def code() -> Parcel:
    """The package trimtab as it is here."""
    package = Path(trimtab.__file__).parent
    return Parcel("code", {str(path.relative_to(package.parent)): path for path in sorted(below(package))})


def mib(size: int) -> str:
    return f"{size / 2**20:.1f} MiB" if size >= 2**17 else f"{size / 2**10:.1f} KiB"
