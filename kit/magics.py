"""The IPython extension: ``%load_ext kit`` gives %serve, %switch, %models, %stats, %panel, %unserve and %%infer."""

from __future__ import annotations

import argparse
import importlib
import keyword
import os
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from IPython.core.error import UsageError
from IPython.core.magic import Magics, line_cell_magic, line_magic, magics_class, no_var_expand

import kit
from kit import errors, magics_bodies, magics_complete
from kit.checks import check_handler, check_platform
from kit.magics_args import options_as_typed, parsers, settings_of, split_expression, switch_to
from kit.magics_errors import plainly
from kit.magics_values import value_of
from kit.settings import MODES, Settings

if TYPE_CHECKING:
    import pandas as pd

    from kit.deployment import Deployment


@magics_class
class KitMagics(Magics):
    """The magics, and what they have served or connected to."""

    def __init__(self, shell: Any) -> None:
        super().__init__(shell)
        self.parsers = parsers()
        self._connected: dict[str, Any] = {}
        # By expression: running a cell again must not leave two deployments, and Out[...] keeps the first.
        self._own: dict[str, Deployment] = {}
        self._latest: Deployment | None = None
        self._served = False  # ever

    def _parse(self, magic: str, line: str) -> argparse.Namespace:
        return self.parsers[magic].parse_line(line)

    @no_var_expand
    @line_magic
    @plainly
    def serve(self, line: str) -> Deployment:
        """Serve a model handler: %serve HANDLER_EXPR --name NAME --mode MODE ...; see %serve --help."""
        expression, options = split_expression(line)
        if not expression and not {"--help", "-h"} & {*options.split()}:
            raise UsageError(
                "%serve: give an expression of a model handler before the options, such as %serve handler --name minilm"
            )
        wanted = self._parse("serve", options)
        for_named = {
            "--keep-alive": wanted.keep_alive,
            "--replace": wanted.replace,
            "--allow-pickle": wanted.allow_pickle,
        }
        given = [option for option, value in for_named.items() if value]
        if given and wanted.name is None:
            raise UsageError(f"%serve: {', '.join(given)}: for named deployments; give a --name, too")
        handler = value_of(self.shell, "%serve", expression)
        settings = {"mode": wanted.mode, **settings_of(wanted)}
        with options_as_typed():
            if wanted.name is None:
                deployment = self._serve_here(expression, handler, settings)
            else:
                deployment = self._serve_named(handler, settings, wanted)
        self._latest, self._served = deployment, True
        return deployment

    def _serve_here(self, expression: str, handler: Any, settings: dict[str, Any]) -> Deployment:
        """A deployment of this kernel."""
        former = self._own.get(expression)
        if former is not None:
            # First, since there may be no room for both; but not where the new one will be refused.
            _check(handler, settings, former)
            former.close()
            del self._own[expression]
        deployment = kit.deploy(handler, **settings)
        self._own[expression] = deployment
        print(
            f"It lives in this kernel (pid {os.getpid()}) and ends with it. With --name NAME it would live in the "
            "daemon, for all your kernels."
        )
        return deployment

    def _serve_named(self, handler: Any, settings: dict[str, Any], wanted: argparse.Namespace) -> Any:
        from kit.daemon import hello, kept

        check_platform()
        began = time.monotonic()
        deployment = kit._serve_named(
            check_handler(handler),
            wanted.name,
            settings,
            sample=None,
            keep_alive=wanted.keep_alive,
            replace=wanted.replace,
            allow_pickle=wanted.allow_pickle,
        )
        self._connected[wanted.name] = deployment
        done = hello.REPLACED if deployment.replaced else hello.SERVED
        if deployment.attached:
            done = f"{hello.ATTACHED}: it was served already"
        print(f"{wanted.name}: {done} ({time.monotonic() - began:.2f} s, mode {deployment.mode!r}).")
        if words := kept.settings(deployment, settings):
            print(f"{words} This changes them: {switch_to(wanted)}")
        for stays in kept.others(deployment, wanted.keep_alive, wanted.allow_pickle, "--allow-pickle"):
            print(f"{stays} To serve it otherwise, end it for all kernels first: %unserve {wanted.name}")
        return deployment

    @no_var_expand
    @line_magic
    @plainly
    def switch(self, line: str) -> None:
        """Change the serving mode and other settings, live: %switch MODE [NAME] [--processes N] ..."""
        wanted = self._parse("switch", line)
        words = list(wanted.words)
        settings = settings_of(wanted)
        mode = wanted.mode or next((word for word in words if word in MODES), None)
        if mode is not None and wanted.mode is None:
            words.remove(mode)
        if words and (len(words) > 1 or all(value is None for value in (mode, *settings.values()))):
            raise UsageError(f"%switch: {words[0]!r} is no mode; give one of {', '.join(MODES)}")
        if len(words) > 1 or (mode is None and all(value is None for value in settings.values())):
            raise UsageError(f"%switch: give a mode ({', '.join(MODES)}) and at most one name; see %switch --help")
        deployment = self._find(words[0] if words else None)
        began, former = time.monotonic(), deployment.settings
        try:
            with options_as_typed():
                before, after = deployment._switch({"mode": mode, **settings}, {}, anew=False)
        except KeyboardInterrupt as stop:
            if stop.args or deployment.settings != former:
                raise
            before = None
        if before is None:  # out here, where the error doesn't hold the frames of the first, with all that these hold
            raise KeyboardInterrupt("the switch was cancelled, and it serves on as before.")
        if before == after:
            print(f"Nothing to do: it is served so already (mode {after.mode!r}, {after.workers_in_words}).")
        else:
            print(f"{before.change_in_words(after)} in {time.monotonic() - began:.2f} s.")

    @line_magic
    @plainly
    def models(self, line: str) -> pd.DataFrame:
        """The models that a deployment holds: %models [NAME]"""
        return self._find(self._parse("models", line).name).models()

    @line_magic
    @plainly
    def stats(self, line: str) -> pd.DataFrame:
        """The processes of a deployment: %stats [NAME]"""
        return self._find(self._parse("stats", line).name).stats()

    @line_magic
    @plainly
    def panel(self, line: str) -> Any:
        """Watch a deployment and switch its mode: %panel [NAME]"""
        deployment = self._find(self._parse("panel", line).name)
        try:
            # By name: the widgets need ipywidgets, and the kit itself never does.
            panel = importlib.import_module("widgets").ServingPanel
        except ImportError as error:
            raise errors.MissingExtra(
                f"the panel needs ipywidgets ({error}): pip install ipywidgets, or look at %stats and %models."
            ) from error
        return panel(deployment)

    @line_magic
    @plainly
    def unserve(self, line: str) -> None:
        """End a deployment, for all kernels: %unserve NAME"""
        name = self._parse("unserve", line).name
        connected = self._connected.get(name) if name is not None else None
        if name is not None and (connected is None or connected.closed):
            from kit.daemon import client

            try:
                client.stop(name)
            except (errors.UnknownDeployment, errors.DaemonUnavailable, errors.InvalidSetting):
                if not self._is_variable(name):
                    raise
            else:
                print(f"{name}: ended.")
                return
        deployment: Any = self._find(name)
        if hasattr(deployment, "stop"):
            called = deployment.name
            deployment.stop()
            self._connected.pop(called, None)
        else:
            called = name or next((text for text, own in self._own.items() if own is deployment), "the latest one")
            deployment.close()
            self._own = {text: own for text, own in self._own.items() if own is not deployment}
        if self._latest is deployment:
            self._latest = None
        print(f"{called}: ended.")

    @no_var_expand
    @line_cell_magic
    @plainly
    def infer(self, line: str, cell: str = "") -> pd.DataFrame | None:
        """Predictions for the examples that the body gives: %%infer [NAME] [--lines] [--into VAR]"""
        if not cell and not {"-h", "--help"} & set(line.split()):
            raise UsageError("%infer: begin the cell with %%infer, and give the examples in the lines below it")
        wanted = self._parse("infer", line)
        if wanted.into is not None and (not wanted.into.isidentifier() or keyword.iskeyword(wanted.into)):
            raise UsageError(f"%%infer: --into {wanted.into!r} is no name of a variable")
        deployment = self._find(wanted.name)
        examples: Any = [text for text in cell.splitlines() if text.strip()]
        if not examples or not (wanted.lines or any(not text.lstrip().startswith("#") for text in examples)):
            raise UsageError("%%infer: the cell's body is empty; give an expression of examples, or lines with --lines")
        if not wanted.lines:
            examples = value_of(self.shell, "%%infer", cell, first_line=2)
        found = examples | kit.RunInference(deployment)
        predictions = found if isinstance(found, kit.Predictions) else kit.Predictions(list(found))
        frame = predictions.to_frame()
        if wanted.into is None:
            return frame
        self.shell.user_ns[wanted.into] = frame
        return None

    # ---- which deployment ----------------------------------------------------------------------

    def _is_variable(self, name: str) -> bool:
        from kit.deployment import Deployment

        return isinstance(self.shell.user_ns.get(name), Deployment)

    def _find(self, name: str | None) -> Deployment:
        """A deployment by its name, or by the variable that holds it where none has that name; the latest for None."""
        if name is None:
            if self._latest is None or self._latest.closed:
                open_ones = sorted(name for name, known in self._connected.items() if not known.closed)
                if open_ones:
                    raise UsageError(f"the latest deployment has ended; say which: {', '.join(open_ones)}")
                others = ", ".join(magics_complete.names())
                nothing = "what was served here has ended" if self._served else "nothing is served from here yet"
                raise UsageError(
                    f"{nothing}: %serve HANDLER_EXPR --name NAME, or give a name"
                    + (f"; these are served: {others}" if others else "")
                )
            return self._latest
        known: Any = self._connected.get(name)
        if known is None or known.closed:
            try:
                known = self._connected[name] = self._connect(name, known)
            except (errors.UnknownDeployment, errors.DeploymentLost, errors.DaemonUnavailable, errors.InvalidSetting):
                if not self._is_variable(name):
                    raise
                known = self.shell.user_ns[name]  # anew each time: it may hold another one by now
        held = self.shell.user_ns[name] if self._is_variable(name) else known
        if held is not known and getattr(held, "name", None) != name and not held.closed:
            print(f"{name}: the deployment of that name; the variable {name} holds another one.")
        self._latest, self._served = known, True
        return known  # type: ignore[no-any-return]

    def _connect(self, name: str, former: Any) -> Deployment:
        """Connect; where nobody serves that name any more, tell what ended the `former` one that this kernel had."""
        try:
            return kit.connect(name)
        except errors.UnknownDeployment:
            if former is not None:
                try:
                    former.raise_if_closed()
                except errors.DeploymentLost:
                    raise
                except errors.DeploymentClosed:
                    pass  # this kernel had let go of it before it ended
            raise


def _check(handler: Any, settings: Mapping[str, Any], former: Any) -> None:
    """Raise what `kit.deploy` would refuse a handler with, as far as it can be told while a former one is served."""
    from kit.daemon import sameness

    handler = check_handler(handler)
    wanted = Settings.make(handler, **settings)
    if not former.closed and sameness.digest(handler) == sameness.digest(former.handler):
        snapshot = former.snapshot()
        wanted.check_budget(None if snapshot.models else snapshot.model_bytes)


def load_ipython_extension(shell: Any) -> None:
    """Register the magics and their completion; those that take the place of others go on with what these served."""
    magics = KitMagics(shell)
    former = shell.magics_manager.registry.get(KitMagics.__name__)
    if former is not None:
        magics._connected, magics._own = former._connected, former._own
        magics._latest, magics._served = former._latest, former._served
    shell.register_magics(magics)
    magics_complete.install(shell, magics.parsers)
    magics_bodies.install(shell)
