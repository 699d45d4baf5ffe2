"""Deploying a handler in this process, or by a name in the user's daemon; and closing all that this process serves."""

from __future__ import annotations

import atexit
import sys
from typing import Any

from kit import errors, inputs, shown
from kit.checks import check_handler, check_platform
from kit.deployment import Deployment
from kit.own_deployment import OwnDeployment
from kit.settings import Settings, given


def deploy(
    handler: Any,
    mode: str | None = None,
    processes: int | None = None,
    threads: int | None = None,
    model_copies: int | None = None,
    memory_budget: int | float | str | None = None,
    sample: Any = None,
    name: str | None = None,
    keep_alive: float | str | None = None,
    *,
    replace: bool = False,
    allow_pickle: bool = False,
) -> Deployment:
    """Serve a handler on this machine.

    Args:
        handler: a model handler, ours, Beam's or your own.
        mode: "default", "medium", "large" or "shared"; the handler's own choice when None.
        processes: worker processes (2).
        threads: worker threads a process (1). A model host computes as many batches at once, where there are cores.
        model_copies: model hosts of mode "medium".
        memory_budget: bytes, or text such as "2GiB", for all copies of the model together. While mode "shared" starts,
            the process that loads the model has one more.
        sample: a few examples to verify mode "shared" with before it serves; else the first batch is.
        name: serve in the daemon of this user: the deployment outlives this process, and others reach it with
            ``kit.connect(name)``. Where the name serves the same handler already, this attaches to it, leaves its
            settings as they are, and warns where others were given.
        keep_alive: with a name, how long it may go without a request before it ends: seconds, or text such as
            "30m"; None for no end.
        replace: with a name that is served already, load this handler, also the same one, and replace what is served
            by a hot update; of the settings those that are given change, too.
        allow_pickle: with a name, let examples and predictions of any type travel, as pickles.

    Raises:
        InvalidSetting, BudgetExceeded, HandlerNotPicklable, PreloadFailed, ModelLoadFailed,
        SharedModeUnavailable: with what happened and what to do; nothing is left running.
        NameTaken: the name serves another handler. DaemonUnavailable: no daemon can be started.
    """
    check_platform()
    handler = check_handler(handler)
    wanted = given(mode, processes, threads, model_copies, memory_budget)
    if name is not None:
        import kit
        from kit.daemon import kept

        named = kit._serve_named(
            handler,
            name,
            wanted,
            sample=sample,
            keep_alive=keep_alive,
            replace=replace,
            allow_pickle=allow_pickle,
        )
        kept.warn(named, wanted, keep_alive, allow_pickle)
        return named
    if keep_alive is not None or replace or allow_pickle:
        raise errors.InvalidSetting(
            f"keep_alive={keep_alive!r}, replace={replace!r}, allow_pickle={allow_pickle!r}: these are for named "
            "deployments; give name='...' too."
        )
    deployment = start(handler, Settings.make(handler, **wanted), sample)
    shown.made(deployment)
    return deployment


def start(handler: Any, settings: Settings, sample: Any = None, forkserver: Any = None) -> OwnDeployment:
    """`deploy` with settings made, and possibly a fork server that several deployments share."""
    from kit.engine import core

    rows = inputs.sample_rows(sample)
    engine = core.Engine(handler, settings, forkserver)
    engine.start(rows)
    return OwnDeployment(engine)


def close_all() -> None:
    """Close all deployments of this process."""
    core = sys.modules.get("kit.engine.core")
    for engine in list(core.running) if core is not None else []:
        engine.close()


atexit.register(close_all)
