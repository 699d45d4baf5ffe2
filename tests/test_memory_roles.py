"""What the memory of the processes holds: the parts add up, and a mapped file counts once."""

from __future__ import annotations

import threading
import time
import weakref
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

import kit
from kit import model_bytes
from kit.mapped_files import in_mapped_files
from kit.settings import Settings
from tests.models import Doubling, Wide
from tests.widgets_helpers import until

PARTS = ["libraries_bytes", "weights_private_bytes", "weights_shared_bytes", "working_bytes"]
WIDTH, LAYERS = 1024, 20
SIZE = LAYERS * WIDTH * WIDTH * 4


class FromFile(kit.ModelHandler):
    """Layers that stay where the file is mapped, or are written to once they are loaded."""

    def __init__(self, path: Path, *, write: bool = False) -> None:
        super().__init__()
        self.path = path
        self.write = write

    def load_model(self):
        layers = load_file(self.path)
        if self.write:
            for weights in layers.values():
                weights.mul_(1.0)
        return layers

    def run_inference(self, batch, model, inference_args=None):
        rows = torch.stack(list(batch))
        for weights in model.values():
            rows = torch.tanh(rows @ weights)
        return list(rows)


class Reading(FromFile):
    """Reads half of its layers only."""

    def run_inference(self, batch, model, inference_args=None):
        few = [model[f"layer{number}"] for number in range(LAYERS // 2)]
        return [float(sum(layer.sum() for layer in few)) for _ in batch]


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    found = tmp_path_factory.mktemp("weights") / "layers.safetensors"
    save_file({f"layer{number}": torch.randn(WIDTH, WIDTH) for number in range(LAYERS)}, found)
    return found


def settled(deployment) -> dict[str, int]:
    """The memory of its processes once all of them have been read after the last batch."""
    deployment.predict(list(torch.rand(4, WIDTH)))
    began = time.time()
    until = began + 60
    while True:
        assert time.time() < until, "memory wasn't read"
        stats, rows = deployment.stats(), deployment.snapshot(60).rows
        read_at = time.time() - stats.pss_age_s
        if stats.pss_bytes.notna().all() and (read_at > began).all() and rows and rows[-1]["time"] > read_at.max():
            return {name: rows[-1][name] for name in ("pss_bytes", *PARTS)}
        time.sleep(0.2)


def half(rows) -> bool:
    """Whether less than all of the file counts by now."""
    return bool(rows) and 0 < rows[-1]["weights_shared_bytes"] < 0.7 * SIZE


@pytest.mark.parametrize("mode", ["default", "large", "shared"])
def test_the_parts_add_up_and_a_mapped_file_counts_once(path, mode):
    with kit.deploy(FromFile(path), mode=mode, processes=2) as deployment:
        found = settled(deployment)
        assert sum(found[part] for part in PARTS) == found["pss_bytes"]
        assert min(found.values()) >= 0
        assert found["weights_shared_bytes"] == pytest.approx(SIZE, rel=0.05)
        assert found["weights_private_bytes"] < 0.05 * SIZE
        stats = deployment.stats()
        holds = stats[stats.role == ("host" if mode == "large" else "worker")]
        assert (holds.weights_shared_bytes > 0.95 * SIZE).all()
        assert (holds.weights_private_bytes < 0.05 * SIZE).all()
        # Two copies more of a mapped file are none.
        more = deployment.snapshot(60)
        four = more.predict_memory(Settings.make(Doubling(), "default", 4))
        assert four["weights_private_bytes"] + four["weights_shared_bytes"] == pytest.approx(SIZE, rel=0.05)


def test_a_file_that_others_map_too_counts_for_the_part_that_is_not_theirs(path):
    layers = load_file(path)  # this process is another
    assert sum(float(layer.sum()) for layer in layers.values()) != 0
    with kit.deploy(FromFile(path), mode="large", processes=1) as deployment:
        settled(deployment)
        until(lambda: half(deployment.snapshot(60).rows), "another look")
        found = deployment.snapshot(60).rows[-1]
        assert sum(found[part] for part in PARTS) == found["pss_bytes"]
        assert found["weights_shared_bytes"] == pytest.approx(SIZE / 2, rel=0.1)
        assert found["working_bytes"] > 0
        same = deployment.snapshot(60).predict_memory(deployment.settings)
        assert same["weights_shared_bytes"] == found["weights_shared_bytes"]


def test_of_a_mapped_file_counts_what_is_in_memory(tmp_path):
    path = tmp_path / "layers.safetensors"
    save_file({f"layer{number}": torch.randn(WIDTH, WIDTH) for number in range(LAYERS)}, path)
    with kit.deploy(Reading(path), mode="large", processes=1) as deployment:
        deployment.predict([1])
        until(lambda: half(deployment.snapshot(60).rows), "a look")
        found = deployment.snapshot(60).rows[-1]
        assert found["weights_shared_bytes"] == pytest.approx(SIZE / 2, rel=0.1)
        assert found["working_bytes"] > 0


def test_weights_that_were_written_to_are_a_copy_a_process(path):
    with kit.deploy(FromFile(path, write=True), processes=2) as deployment:
        found = settled(deployment)
        assert sum(found[part] for part in PARTS) == found["pss_bytes"]
        assert found["weights_private_bytes"] == pytest.approx(2 * SIZE, rel=0.05)
        assert found["weights_shared_bytes"] < 0.05 * SIZE
        now = deployment.snapshot(60)
        four = now.predict_memory(Settings.make(Doubling(), "default", 4))
        assert four["weights_private_bytes"] == pytest.approx(4 * SIZE, rel=0.05)


def test_weights_of_no_file_are_a_copy_a_process_and_one_in_shared():
    with kit.deploy(Wide(120, width=WIDTH), processes=2) as deployment:
        found = settled(deployment)
        one = deployment.models().resident_bytes[0]
        assert found["weights_private_bytes"] == pytest.approx(2 * one, rel=0.02)
        deployment.switch("shared")
        found = settled(deployment)
        assert sum(found[part] for part in PARTS) == found["pss_bytes"]
        assert found["weights_shared_bytes"] == pytest.approx(one, rel=0.02)
        now = deployment.snapshot(60)
        predicted = now.predict_memory(Settings.make(Doubling(), "default", 2))
        assert predicted["weights_private_bytes"] == pytest.approx(2 * one, rel=0.02)


def test_a_model_of_which_a_part_is_mapped_and_a_part_is_written(path):
    layers = load_file(path)
    own = torch.ones(WIDTH, WIDTH)
    weighed = model_bytes.weigh({**layers, "own": own, "again": layers["layer0"]})
    assert weighed.size_bytes == pytest.approx(SIZE + own.nbytes, rel=0.01)  # a tie counts once
    assert list(weighed.mapped.values()) == [SIZE]
    assert weighed.device_bytes == 0
    layers["layer3"].mul_(2.0)
    written = sum(model_bytes.weigh(layers).mapped.values())
    assert SIZE - 1.1 * layers["layer3"].nbytes < written < SIZE


def test_memory_of_no_file_is_in_no_mapped_file():
    own = torch.ones(WIDTH, WIDTH)
    assert in_mapped_files([(own.data_ptr(), own.nbytes)]) == {}
    assert in_mapped_files([]) == {}
    assert in_mapped_files([(1, 8)]) == {}


@pytest.mark.parametrize("make", [lambda: torch.nn.Linear(8, 8), lambda: np.ones(1000)])
def test_weighing_keeps_nothing_of_a_model(make):
    model = make()
    gone = weakref.ref(model)
    assert model_bytes.weigh(model).size_bytes > 0
    del model
    assert gone() is None  # at once, without the garbage collector


class Locked(kit.ModelHandler):
    """A model of 40 MB that can't be pickled."""

    def load_model(self):
        return np.ones(5_000_000), threading.Lock()

    def run_inference(self, batch, model, inference_args=None):
        return list(batch)


def test_what_cannot_be_pickled_weighs_what_its_process_grows():
    # Beyond 32 MB the allocator takes fresh pages, whatever the process has freed before.
    with kit.deploy(Locked(), processes=1) as deployment:
        assert 38e6 < deployment.models().resident_bytes[0] < 50e6
