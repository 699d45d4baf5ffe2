"""Every error that a user of the kit can meet.

Each message says what happened, with the value or numbers concerned, and what to do next.
Errors raised on behalf of another process carry that process's traceback as text in
``remote_traceback``; it is shown under the message.
"""

from __future__ import annotations

from typing import Self


class KitError(Exception):
    """Base of all errors of the kit.

    Attributes:
        remote_traceback: traceback text of the worker, host or loader process where the error
            arose; empty when it arose here.
    """

    def __init__(self, message: str, remote_traceback: str = "") -> None:
        super().__init__(message)
        self.remote_traceback = remote_traceback

    def __str__(self) -> str:
        message = str(self.args[0]) if self.args else ""
        if not self.remote_traceback:
            return message
        indented = "\n".join("    " + line for line in self.remote_traceback.rstrip().splitlines())
        return f"{message}\n  in the process that ran it:\n{indented}"

    def copy(self) -> Self:
        """The same error as a new object: one that is raised repeatedly would pile up tracebacks."""
        return type(self)(str(self.args[0]) if self.args else "", self.remote_traceback)

    def __reduce__(self) -> tuple[object, ...]:
        return (type(self), (self.args[0] if self.args else "", self.remote_traceback))


class UnsupportedPlatform(KitError):
    """Raised at import of the engine on a system where the kit can't run (Windows)."""


class InvalidSetting(KitError, ValueError):
    """A setting has a value that can't work: unknown mode, zero processes, a budget that doesn't parse."""


class UnknownOption(InvalidSetting, TypeError):
    """A handler was given an option that it doesn't have; the message names the closest and lists them."""


class UnsupportedInput(KitError, TypeError):
    """The examples are of a kind that RunInference refuses (a bare string, a dict, a PCollection)."""


class UnknownKey(KitError, KeyError):
    """No model is known for the key of an example."""


class MissingExtra(KitError, ImportError):
    """An optional package is needed and not installed; the message has the pip command."""


class DeviceUnavailable(KitError):
    """A GPU was asked for by name and this process has none."""


class WeightsFileError(KitError):
    """A weights file is missing, corrupt, or doesn't fit the model class."""


class HandlerNotPicklable(KitError, TypeError):
    """A handler can't travel to the worker processes; the message names the attribute."""


class PreloadFailed(KitError):
    """The fork server couldn't import a library that the handler needs."""


class ModelLoadFailed(KitError):
    """``load_model`` raised in a serving process."""


class InferenceFailed(KitError):
    """Pre-processing, ``run_inference`` or post-processing raised on an example."""


class WrongPredictionCount(InferenceFailed):
    """``run_inference`` returned more or fewer predictions than there were examples."""


class WorkerDied(KitError):
    """A serving process died while computing an example, and the example kills it alone too."""


class CrashLoop(KitError):
    """Serving processes died too often; the kit has stopped replacing them."""


class BudgetExceeded(KitError):
    """The copies of the model don't fit the memory budget; nothing was loaded or changed."""


class SharedModeUnavailable(KitError):
    """The model can't be served in ``shared`` mode; the message says why and which mode to use."""


class DeploymentClosed(KitError):
    """The deployment was closed; deploy the handler again."""


class DeadlineExceeded(KitError, TimeoutError):
    """The request wasn't answered within its deadline."""


class QueueFull(KitError):
    """The queue of the deployment is full and the request had a deadline."""


class SwitchCancelled(KitError):
    """A switch or update was cancelled before the new topology took over; the old one serves on."""


class AssetUnavailable(KitError):
    """A demo model or data set couldn't be fetched, or its bytes aren't the pinned ones."""


class DaemonUnavailable(KitError):
    """The per-user daemon can't be started or reached, or its runtime folder isn't safe to use."""


class DaemonMismatch(DaemonUnavailable):
    """The daemon or the deployment runs another version of the kit or of Python."""


class UnknownDeployment(KitError, LookupError):
    """No named deployment has this name; the message lists those that there are."""


class NameTaken(KitError):
    """A named deployment has this name and serves another handler; `replace` makes it a hot update."""


class DeploymentLost(DeploymentClosed):
    """The process of a named deployment is gone, or this kernel's connection to it."""


class UnsupportedType(KitError, TypeError):
    """A value of a type that doesn't travel to or from a named deployment; the message names it."""


class UnsupportedResult(UnsupportedType):
    """A handler's result is of such a type: it isn't what was asked that is wrong."""
