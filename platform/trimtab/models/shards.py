"""Files of tensors that many processes may add to one folder: written aside, renamed when whole, never changed."""

from __future__ import annotations

import json
import uuid
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trimtab.sharing import shared

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor


def write_shard(folder: Path, tensors: dict[str, Tensor], note: Mapping[str, Any]) -> None:
    """One more file in the folder, which is made when missing; whoever dies meanwhile leaves nothing that is read."""
    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
    name = f"{uuid.uuid4().hex}.safetensors"
    save_file(tensors, folder / f".{name}", metadata={key: json.dumps(value) for key, value in note.items()})
    shared(folder / f".{name}")
    (folder / f".{name}").rename(folder / name)


def shards(folder: Path) -> list[Path]:
    """The whole files of a folder, if there is one."""
    return sorted(path for path in folder.glob("*.safetensors") if not path.name.startswith("."))


def read_shard(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
    """Tensors (mapped from disk) and note of a file; None, and a warning, where it cannot be read."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            note = {key: json.loads(value) for key, value in (file.metadata() or {}).items()}
            return {name: file.get_tensor(name) for name in file.keys()}, note  # noqa: SIM118
    except (OSError, ValueError, SafetensorError) as error:
        warnings.warn(f"{path} cannot be read and counts as not there ({error})", RuntimeWarning, stacklevel=2)
        return None
