"""``python -m kit ps | top | stop NAME | logs NAME``."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from typing import Any

import kit
from kit import errors
from kit.daemon import client, hello, paths
from kit.sizes import format_bytes

_PS = ("name", "state", "handler", "mode", "processes", "threads", "kernels", "pid", "age")
_TOP = ("name", "mode", "kernels", "elements/s", "queued", "p50", "p99", "memory (PSS)")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; returns the exit code: 0, 1 for an error of the kit, 2 for wrong arguments."""
    wanted = _parser().parse_args(arguments)
    try:
        wanted.run(wanted)
    except errors.KitError as error:
        print(f"kit: {error}", file=sys.stderr)
        return 1
    except (KeyboardInterrupt, BrokenPipeError):
        return 0
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m kit", description="Named deployments of this user.")
    version = f"kit {kit.__version__}, Python {hello.PYTHON}"  # what must be the same in kernels and daemon
    parser.add_argument("--version", action="version", version=version)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    commands.add_parser("ps", help="list the deployments").set_defaults(run=_ps)
    top = commands.add_parser("top", help="rates and memory, once a second until interrupted")
    top.add_argument("-n", type=_count, metavar="TIMES", help="print the table so many times and end")
    top.set_defaults(run=_top)
    stop = commands.add_parser("stop", help="end deployments; kernels that use them get an error")
    stop.add_argument("names", nargs="*", metavar="NAME")
    stop.add_argument("--all", action="store_true", help="end all, and with them the daemon")
    stop.set_defaults(run=_stop)
    logs = commands.add_parser(
        "logs", help="what the serving processes printed; also of one of the latest that have ended"
    )
    logs.add_argument("name", metavar="NAME")
    logs.add_argument("-n", type=_count, metavar="LINES", help="the last lines only")
    logs.set_defaults(run=_logs)
    return parser


def _count(text: str) -> int:
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number of at least 0")
    return int(text)


def _ps(wanted: argparse.Namespace) -> None:
    rows = [{**row, "age": _age(time.time() - row["since"])} for row in client.overview()]
    _print(_PS, rows, "no named deployment runs")


def _top(wanted: argparse.Namespace) -> None:
    times = wanted.n
    while times is None or times > 0:
        if sys.stdout.isatty():
            print("\x1b[2J\x1b[H", end="")
        _print(_TOP, client.of_each(_figures), "no named deployment runs")
        sys.stdout.flush()
        times = None if times is None else times - 1
        if times != 0:
            time.sleep(1.0)


def _figures(known: dict[str, Any]) -> dict[str, Any]:
    name = known["name"]
    try:
        with client.look(name, client.LOOK_S) as (status, connection):
            row = {"name": name, "mode": status["state"], "kernels": status["kernels"]}
            if status["state"] != "serving":
                return row
            seconds = [entry for entry in connection.call("history") if "elements_per_s" in entry]
    except (errors.UnknownDeployment, errors.DeploymentLost):
        return {"name": name, "mode": "ended"}
    except errors.DaemonUnavailable:
        return {"name": name, "mode": client.SILENT}
    last = seconds[-1] if seconds else {}
    return {
        **row,
        "mode": status["settings"]["mode"],
        "elements/s": f"{last.get('elements_per_s', 0.0):,.0f}",
        "queued": last.get("queued", 0),
        "p50": _milliseconds(last.get("p50_s")),
        "p99": _milliseconds(last.get("p99_s")),
        "memory (PSS)": format_bytes(last.get("pss_bytes", 0)),
    }


def _stop(wanted: argparse.Namespace) -> None:
    names = client.names() if wanted.all else wanted.names
    if not names and wanted.all:
        print("no named deployment runs")
    if not names and not wanted.all:
        raise errors.InvalidSetting("name the deployments to stop, or give --all; `python -m kit ps` lists them.")
    for name in names:
        client.stop(name, missing_ok=wanted.all)
        print(f"stopped {name}")


def _logs(wanted: argparse.Namespace) -> None:
    state = "has ended, and"
    try:
        with client.look(wanted.name) as (status, connection):
            if status["state"] in ("empty", "loading"):
                state = "is still loading, and has"
            print(connection.call("logs", lines=wanted.n))
    except (errors.UnknownDeployment, errors.DeploymentLost):
        path = paths.log_of(paths.runtime_folder(), wanted.name)
        if not path.exists():
            raise
        ago = _age(time.time() - path.stat().st_mtime)
        print(f"{wanted.name} {state} printed this ({ago} ago the last):", file=sys.stderr)
        lines = path.read_text(errors="replace").splitlines()
        print("\n".join(lines if wanted.n is None else lines[max(0, len(lines) - wanted.n) :]))


def _print(columns: Sequence[str], rows: Sequence[dict[str, Any]], otherwise: str) -> None:
    if not rows:
        print(otherwise)
        return
    cells = [list(columns), *(["" if row.get(name) is None else str(row[name]) for name in columns] for row in rows)]
    widths = [max(len(line[at]) for line in cells) for at in range(len(columns))]
    for line in cells:
        print("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip())


def _age(seconds: float) -> str:
    for unit, size in (("d", 86400), ("h", 3600), ("m", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds:.0f} s"


def _milliseconds(seconds: float | None) -> str:
    return "" if seconds is None or seconds != seconds else f"{seconds * 1e3:.3g} ms"
