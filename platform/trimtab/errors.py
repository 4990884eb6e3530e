"""Every error that trimtab raises on purpose: what is wrong, where, and the way out."""

from collections.abc import Mapping
from types import MappingProxyType


class TrimtabError(Exception):
    """The root; `exit_code` is what the command line returns for it."""

    exit_code = 1


class JobError(TrimtabError):
    """The job file or an override cannot be used. Carries every mistake found."""

    exit_code = 2

    def __init__(self, problems: list[str]) -> None:
        self.problems = problems
        super().__init__("\n".join(problems))


class DataError(TrimtabError):
    """A data set cannot be used as asked."""

    exit_code = 2


class ModelError(TrimtabError):
    """A model cannot be found or used as asked."""

    exit_code = 2


class ResourceError(TrimtabError):
    """Too little memory, disk or compute for the plan."""

    exit_code = 2


class StageError(TrimtabError):
    """A stage failed while it ran; finished stages stay finished. `rank`: the worker whose log says why.

    `cause`: out of memory, segfault, killed, lost node, hang, or an exception. `logs`: by rank, of workers whose files
    the driver does not see.
    """

    rank = 0
    cause = "exception"
    logs: Mapping[int, str] = MappingProxyType({})


class OutOfMemory(StageError):
    """A stage's worker asked for more memory than there was."""

    cause = "out of memory"


class Stopped(TrimtabError):
    """A stage was let go of because the run is being stopped."""


class ServerError(ModelError):
    """Another server with a model does not answer, or refuses."""


class ClusterError(TrimtabError):
    """A cluster cannot be reached, does not let us in, or does not know the job."""

    exit_code = 2
