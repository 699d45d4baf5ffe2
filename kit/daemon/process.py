"""The process of a named deployment: it takes connections from the daemon, and serves until it is told to end."""

from __future__ import annotations

import os
import signal
import socket
import threading
from pathlib import Path

from kit import errors
from kit.daemon import hello, paths, quiet
from kit.daemon.frames import LinkClosed
from kit.daemon.link import Link
from kit.daemon.protocol import CONNECTION, STOP
from kit.daemon.served import Served
from kit.daemon.session import Session
from kit.daemon.wire import Malformed
from kit.engine import system
from kit.engine.forkserver import environment


def main(control: int, name: str, log: str) -> None:
    """Serve until the daemon closes `control`, or is gone, or the deployment has ended by itself."""
    quiet.use_log(Path(log), anew=True)  # not that of an earlier one of this name
    for variable, value in environment().items():
        os.environ.setdefault(variable, value)  # before any library starts a pool of threads
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    system.set_name(f"kit-{name}")
    link = Link(socket.socket(fileno=control))
    parent = system.pidfd(os.getppid())
    if parent is not None:
        link.watch_peer(parent)
    served = Served(name)
    threading.Thread(target=_take_connections, args=(link, served), name="kit-accept", daemon=True).start()
    threading.Thread(target=served.watch_idle, name="kit-idle", daemon=True).start()
    served.over.wait()
    link.hang_up()  # the daemon sends nobody here any more
    served.stop_loading()
    served.wait_answered(5.0)
    for session in list(served.sessions):
        session.say_goodbye(served.last_words)
    if served.deployment is not None:
        served.deployment.close()
    print(served.last_words)  # for who reads the log
    os._exit(0)


def _words(served: Served, why: str) -> errors.KitError:
    if not why:
        return served.last_words
    return errors.DeploymentLost(
        f"the named deployment {served.name!r} has ended with its daemon: {why}. Serve it again with %serve or "
        f"kit.deploy(handler, name={served.name!r})."
    )


def _take_connections(link: Link, served: Served) -> None:
    try:
        while True:
            frame = link.receive()
            if frame is None:
                continue
            if frame.kind == STOP:
                served.end(_words(served, frame.decoder.value()))
                return
            if frame.kind != CONNECTION or frame.fd < 0:
                raise Malformed("not a connection")
            sock = socket.socket(fileno=frame.fd)
            said = hello.read(frame)
            if not paths.is_ours(sock):
                sock.close()
                continue
            session = Session(sock, said, served)
            served.entering.add(session)
            session.start()
    except (LinkClosed, Malformed):
        served.end(
            errors.DeploymentLost(
                f"the daemon of the named deployment {served.name!r} was killed, and the deployment with it; serve it "
                f"again with %serve or kit.deploy(handler, name={served.name!r})."
            )
        )
