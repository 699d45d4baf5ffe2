"""Named deployments have the whole surface of a deployment, that for models by key too."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from pathlib import Path
from types import CodeType, FunctionType
from typing import Any

import numpy as np
import pytest

import kit
from kit import KeyedModelHandler, KeyModelMapping, KeyModelPathMapping, RunInference, errors
from kit.daemon.remote_deployment import RemoteDeployment
from kit.own_deployment import OwnDeployment
from tests.daemon_kernels import Kernel, wait_for
from tests.models import Doubling


class Weighing(kit.ModelHandler):
    """Multiplies by what the file at its path says; its model weighs 1 MB."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.model_id = str(path)

    def load_model(self) -> Any:
        return np.full(250_000, float(Path(self.model_id).read_text()), np.float32)

    def run_inference(self, batch: Any, model: Any, inference_args: Any = None) -> list[float]:
        return [float(example * model[0]) for example in batch]

    def update_model_path(self, model_path: str | None = None) -> None:
        if model_path is not None:
            self.model_id = model_path


KEYS = [1, 2, 3, 4, 5, 6]
EXAMPLES = [(key, number) for number in range(1, 4) for key in KEYS]


def inferences(predictions: Any) -> list[float]:
    return [prediction.inference for _, prediction in predictions]


EXPECTED = [float(key * number) for key, number in EXAMPLES]


@pytest.fixture
def handler(tmp_path: Path) -> KeyedModelHandler:
    """Six models by key, and one that can't be loaded."""
    for key in KEYS:
        (tmp_path / str(key)).write_text(str(key))
    keys = [*KEYS, "broken"]
    return KeyedModelHandler([KeyModelMapping([key], Weighing(tmp_path / str(key))) for key in keys])


@pytest.fixture
def named(runtime: Path, handler: KeyedModelHandler) -> Iterator[RemoteDeployment]:
    deployment: Any = kit.deploy(handler, name="keyed", processes=2, memory_budget="10MB")
    yield deployment
    deployment.close()


def states(deployment: Any) -> dict[Any, str]:
    return {keys[0]: state for keys, state in deployment.models()[["keys", "state"]].itertuples(index=False)}


def test_the_same_models_by_key_are_attached_to_and_others_are_not(named: RemoteDeployment, tmp_path: Path) -> None:
    def again(*keys: int) -> KeyedModelHandler:
        files = [KeyModelMapping([key], Weighing(tmp_path / str(key))) for key in keys]
        return KeyedModelHandler([*files, KeyModelMapping(["broken"], Weighing(tmp_path / "broken"))])

    with kit.deploy(again(*KEYS), name="keyed", processes=2, memory_budget="10MB") as attached:
        assert attached.attached  # type: ignore[attr-defined]
    with pytest.raises(errors.NameTaken):
        kit.deploy(again(*KEYS[:-1]), name="keyed", processes=2, memory_budget="10MB")


# ---- the whole surface -------------------------------------------------------------------------


def names_in(code: CodeType) -> set[str]:
    """The attributes and globals that a function uses, and those of the functions inside."""
    inner = [names_in(constant) for constant in code.co_consts if isinstance(constant, CodeType)]
    return set(code.co_names).union(*inner)


def functions_of(cls: type, name: str) -> list[FunctionType]:
    found = inspect.getattr_static(cls, name)
    if isinstance(found, property):
        return [part for part in (found.fget, found.fset) if isinstance(part, FunctionType)]
    return [found] if isinstance(found, FunctionType) else []


def test_a_named_deployment_has_every_method_and_none_that_wants_an_engine() -> None:
    for name in dir(OwnDeployment):
        if name.startswith("_") and name not in ("__enter__", "__exit__", "__repr__", "_repr_mimebundle_"):
            continue
        assert hasattr(RemoteDeployment, name), name
        for own, remote in zip(functions_of(OwnDeployment, name), functions_of(RemoteDeployment, name), strict=True):
            assert inspect.signature(own).parameters == inspect.signature(remote).parameters, name
            assert name.startswith("_") or inspect.getdoc(getattr(RemoteDeployment, name)), name
    for name in dir(RemoteDeployment):
        for function in functions_of(RemoteDeployment, name):
            if function.__module__.startswith("kit."):
                assert not names_in(function.__code__) & {"_engine", "_watch"}, name


def test_models_are_loaded_pinned_and_unloaded_from_another_process(named: RemoteDeployment) -> None:
    assert set(states(named).values()) == {"evicted"}
    named.preload([1, 2]).pin([3])
    assert {key for key, state in states(named).items() if state == "resident"} == {1, 2, 3}
    with Kernel() as other:
        other.run("import kit; d = kit.connect('keyed').unload([1])")
        assert other.run("", "sorted(map(str, d.models().query('pinned')['keys']))") == ["[3]"]
        assert other.run("", "repr(d)").endswith("2 × 1 workers, models by key>")
    assert states(named)[1] == "evicted"
    named.switch(memory_budget="1.1MB")
    assert {key for key, state in states(named).items() if state == "resident"} == {3}
    named.unpin([3])
    assert not named.models()["pinned"].any()
    assert inferences(named.predict([(4, 5)])) == [20.0]
    assert states(named)[3] == "evicted"
    events = " ".join(named.history["events"])
    assert "load: 3 at worker" in events
    assert "evict: 3 from worker" in events
    assert "resize: memory budget 10 MB → 1.1 MB" in events
    assert {event.kind for event in named.snapshot().events} >= {"load", "evict", "resize"}


def test_the_table_of_models_is_that_of_an_own_deployment(named: RemoteDeployment, handler: KeyedModelHandler) -> None:
    with kit.deploy(handler, processes=2, memory_budget="10MB") as own:
        for deployment in (own, named):
            assert inferences(deployment.predict(EXAMPLES)) == EXPECTED
        here, there = own.models(), RunInference(named).models()
        assert list(here.columns) == list(there.columns)
        assert list(here.dtypes) == list(there.dtypes)
        same = ["state", "size_bytes", "requests", "loads", "evictions", "pinned", "error"]
        first, second = (
            table.assign(key=table["keys"].astype(str)).set_index("key").sort_index() for table in (here, there)
        )
        assert first[same].equals(second[same])


def test_some_keys_get_other_models_while_the_others_serve(
    named: RemoteDeployment, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    named.predict(EXAMPLES)
    loads = named.models().set_index(named.models()["keys"].str[0])["loads"]
    (tmp_path / "ten").write_text("10")
    monkeypatch.chdir(tmp_path)  # where the deployment's process isn't
    named.update_models([KeyModelPathMapping([1, 2], "ten")])
    assert inferences(named.predict([(1, 3), (2, 3), (3, 3)])) == [30.0, 30.0, 9.0]
    named.update_model([KeyModelPathMapping([1], str(tmp_path / "1"))])
    assert inferences(named.predict([(1, 3), (2, 3)])) == [3.0, 30.0]
    after = named.models().set_index(named.models()["keys"].str[0])["loads"]
    assert after[3] == loads[3]
    assert "2 models by key replaced" in " ".join(named.history["events"])


def test_after_an_update_of_some_keys_the_first_handler_is_another_one(
    named: RemoteDeployment, handler: KeyedModelHandler, tmp_path: Path
) -> None:
    attached: Any = kit.deploy(handler, name="keyed")
    assert attached.attached
    attached.close()
    named.update_models([KeyModelPathMapping([1], str(tmp_path / "2"))])
    with pytest.raises(errors.NameTaken, match="replace=True"):
        kit.deploy(handler, name="keyed")
    kit.deploy(handler, name="keyed", replace=True).close()
    assert inferences(named.predict([(1, 3)])) == [3.0]


WRONG = {
    "an unknown key": lambda d: d.preload([1, 99]),
    "keys that are a text": lambda d: d.pin("ab"),
    "keys that are a number": lambda d: d.unload(5),
    "something that can't be a key": lambda d: d.unpin([{}]),
    "no time": lambda d: d.preload([1], timeout=0),
    "a time in words": lambda d: d.pin([1], timeout="soon"),
    "a load that fails": lambda d: d.preload(["broken"]),
    "more than the budget": lambda d: d.pin(KEYS),
    "a budget below what is pinned": lambda d: d.switch(memory_budget="1.5MB"),
    "no budget": lambda d: d.switch(memory_budget="much"),
    "no mode": lambda d: d.switch("huge"),
    "batching that isn't by name": lambda d: d.switch(batching="large"),
    "settings that can't be": lambda d: d.settings_for(processes=0),
    "no such process": lambda d: d.kill("host"),
    "lines in words": lambda d: d.logs("a"),
    "less than no lines": lambda d: d.logs(-1),
    "a path for all keys": lambda d: d.update_model("some/path"),
    "one model for models by key": lambda d: d.update_model(Doubling()),
    "a class": lambda d: d.update_model(Doubling),
    "no model": lambda d: d.update_model(3),
    "an update without a path": lambda d: d.update_models([KeyModelPathMapping([1], "")]),
    "an update that isn't one": lambda d: d.update_models([("1", "path")]),
    "an update in a dict": lambda d: d.update_models({1: "path"}),
    "a path of another type": lambda d: d.update_models([KeyModelPathMapping([1], 7)]),  # type: ignore[arg-type]
    "a key in two updates": lambda d: d.update_models(
        [KeyModelPathMapping([1], "a"), KeyModelPathMapping([2, 1], "b")]
    ),
    "an update of an unknown key": lambda d: d.update_model([KeyModelPathMapping([99], "a")]),
    "an example without a key": lambda d: d.predict([1]),
    "an example of an unknown key": lambda d: d.predict([(99, 1)]),
}


def test_errors_are_of_the_same_class_and_in_the_same_words(named: RemoteDeployment, tmp_path: Path) -> None:
    said: dict[str, list[tuple[str, str]]] = {}
    keys = [*KEYS, "broken"]
    handler = KeyedModelHandler([KeyModelMapping([key], Weighing(tmp_path / str(key))) for key in keys])
    with kit.deploy(handler, processes=2, memory_budget="10MB") as own:
        for deployment in (own, named):
            deployment.switch(memory_budget="2.1MB").pin([2, 3])
            for what, act in WRONG.items():
                with pytest.raises(errors.KitError) as caught:
                    act(deployment)
                said.setdefault(what, []).append((type(caught.value).__name__, str(caught.value.args[0])))
    for what, (here, there) in said.items():
        assert here == there, what
    assert said["an unknown key"][0][0] == "UnknownKey"
    assert said["a load that fails"][0][0] == "ModelLoadFailed"
    assert said["more than the budget"][0][0] == "BudgetExceeded"


def test_one_model_has_no_keys_there_either(runtime: Path) -> None:
    with kit.deploy(Doubling(), name="one", processes=1) as deployment:
        with pytest.raises(errors.InvalidSetting, match="Doubling has one model"):
            deployment.preload(["a"])
        with pytest.raises(errors.InvalidSetting, match="Doubling has no update_model_path"):
            deployment.watch("models/*.pt")
        with pytest.raises(errors.InvalidSetting, match="Doubling has one model, and no keys: use update_model"):
            deployment.update_models([KeyModelPathMapping(["a"], "b")])
        with pytest.raises(errors.InvalidSetting, match="can't take the place"):
            deployment.update_model(KeyedModelHandler([KeyModelMapping(["a"], Doubling())]))
        assert list(deployment.models()["model_id"]) == ["Doubling"]


def test_what_another_kernel_changed_of_the_handler_is_seen(runtime: Path) -> None:
    with kit.deploy(Doubling(), name="one", processes=1) as first, kit.connect("one") as second:
        first.switch(batching={"max_batch_size": 3})
        assert second.handler.batching_options() == first.handler.batching_options() == {"max_batch_size": 3}
        second.update_model(Doubling(max_batch_size=5))
        assert first.handler.batching_options() == {"max_batch_size": 5}
    assert second.handler.batching_options() == {"max_batch_size": 5}, "what was known last"


# ---- files, pipelines, panels --------------------------------------------------------------------


def test_files_are_watched_for_a_named_deployment(runtime: Path, tmp_path: Path) -> None:
    (tmp_path / "v1.txt").write_text("1")
    with kit.deploy(Weighing(tmp_path / "v1.txt"), name="one", processes=1) as deployment:
        watch = deployment.watch(str(tmp_path / "*.txt"), interval_s=0.05)
        (tmp_path / "v2.txt").write_text("2")
        wait_for(lambda: watch.updates, "the update")
        assert deployment.predict([4])[0].inference == 8.0
        (tmp_path / "v3.txt").write_text("not a number")
        wait_for(lambda: watch.errors, "the error")
        assert isinstance(watch.error, errors.ModelLoadFailed)
        assert deployment.predict([4])[0].inference == 8.0
        assert any("v3.txt isn't served" in event.text for event in deployment.snapshot().events)
    wait_for(lambda: not watch.running, "the watch ends when this kernel lets go")


def test_a_pipeline_asks_a_named_deployment_with_models_by_key(named: RemoteDeployment) -> None:
    pytest.importorskip("apache_beam")
    found = EXAMPLES | named.to_beam()
    assert sorted((key, found.inference) for key, found in found) == sorted(
        (key, float(key * number)) for key, number in EXAMPLES
    )
    assert (named.models()["loads"] > 0).sum() == len(KEYS), "they were loaded there"
    with pytest.raises(errors.InvalidSetting, match="settings of its own"):
        named.to_beam(processes=4)


def test_the_panel_shows_and_moves_the_models_of_a_named_deployment(named: RemoteDeployment) -> None:
    from tests.test_widgets_keyed import slots_of
    from widgets import ServingPanel

    named.switch(memory_budget="3.2MB")
    panel = ServingPanel(named, EXAMPLES)
    view = panel._view.models

    def held() -> int:
        return sum(map(len, slots_of(panel._view.topology.value)))

    try:
        assert view.box.layout.display == ""
        named.predict(EXAMPLES)
        wait_for(lambda: held() == 3, "the models that fit, in their slots")
        assert "7 models by key, 3 loaded: 3 of 3.2 MB" in panel.text()
        assert view.table.value.count('scope="row"') == 7
        spans = [span.state for row in named.snapshot().models for span in panel._redraw._models.spans(row)]
        assert {"resident", "evicted"} <= set(spans)
        view.slider.value = 2.1
        wait_for(lambda: named.settings.memory_budget == 2_100_000, "the budget")
        wait_for(lambda: held() == 2, "the models that fit now")
        kit.connect("keyed").switch(memory_budget="5MB")
        wait_for(lambda: view.slider.value == 5, "the slider where another connection has put the budget")
        assert panel._view.errors.value == ""
    finally:
        panel.close()
