"""Every measure on a pretended GPU: no devices are mixed, the numbers are the CPU's, and the host seldom waits."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

pytestmark = pytest.mark.skipif(not hasattr(torch._C, "_acc"), reason="this PyTorch has no backends in Python")

PROGRAM = Path(__file__).parent / "programs" / "on_the_pretended_device.py"
COMMANDS = PROGRAM.with_name("commands_on_the_pretended_device.py")


def said(program, *arguments):
    """What a program says in its last line."""
    ran = subprocess.run(
        [sys.executable, str(program), *arguments],
        env={**os.environ, "PYTHONPATH": str(PROGRAM.parents[2]), "OMP_NUM_THREADS": "1"},
        capture_output=True, text=True, check=False, timeout=600,
    )  # fmt: skip
    assert ran.returncode == 0, ran.stderr[-3000:]
    return json.loads(ran.stdout.splitlines()[-1])


@pytest.fixture(scope="module")
def told():
    return said(PROGRAM)


@pytest.fixture(scope="module")
def without_float64():
    """The same of a device that has no float64, as Apple's and some of Intel's."""
    return said(PROGRAM, "without-float64")


def compare(there, here):
    for name, expected in here.items():
        if not isinstance(expected, list):
            assert there[name] == expected, name
            continue
        assert len(there[name]) == len(expected), name
        size = max((abs(b) for b in expected if not isinstance(b, list)), default=0.0)
        for a, b in zip(there[name], expected, strict=True):
            if isinstance(b, list):
                assert abs(a[0] - b[0]) <= a[1] + b[1] + 1e-12, (name, a, b)
            else:
                assert a == pytest.approx(b, rel=1e-6, abs=3e-7 * size, nan_ok=True), name


def test_numbers_are_the_cpus_within_their_bars(told):
    there, here = told["numbers"]["pretended"], told["numbers"]["cpu"]
    assert there.keys() == here.keys()
    compare(there, here)
    again = told["numbers in twice the batches"]
    compare(again, {name: here[name] for name in again})


def test_on_a_device_without_float64_numbers_are_the_cpus_within_bars_as_wide(without_float64):
    there, here = without_float64["numbers"]["pretended"], without_float64["numbers"]["cpu"]
    assert there.keys() == here.keys()
    compare(there, here)
    again = without_float64["numbers in twice the batches"]
    compare(again, {name: here[name] for name in again})
    for name in ("spectrum", "checkpoints", "ends, conv", "spectrum, mc-fisher"):  # measured against float64 there too
        for (_, ours), (_, bar) in zip(there[name], here[name], strict=True):
            assert 0.3 * bar <= ours <= 3.0 * bar, name


def test_nothing_falls_back_in_silence_on_either_device(told, without_float64):
    for of in (told, without_float64):
        assert of["remarks"]["pretended"] == of["remarks"]["cpu"]


def test_a_device_without_float64_waits_no_oftener_for_points_and_products(without_float64):
    waits = without_float64["waits"]
    assert waits["a point"] == waits["a product"] == 1.0
    assert without_float64["refusal"].startswith("the weights are on several devices")


@pytest.mark.slow
@pytest.mark.parametrize("device", ["with-float64", "without-float64"])
def test_every_command_gives_the_cpus_numbers_there_or_says_what_the_device_has_not(device):
    commands = said(COMMANDS, device)
    refused = commands.pop("float64")["auto"]
    assert (refused["code"] == 2) == (device == "without-float64")
    if refused["code"]:
        assert "--precision float64: Pretended GPU has no float64; take float32" in refused["text"]
    for command, on in commands.items():
        assert on["cpu"]["code"] == on["auto"]["code"] == 0, (command, on["auto"])
        here, there = on["cpu"]["numbers"], on["auto"]["numbers"]
        assert here.keys() == there.keys(), command
        if command not in ("train", "estimate"):
            assert here and on["auto"]["launches"] > 500 and not on["cpu"]["launches"], command
        for name in here:
            compare_arrays(command, name, there, here)


def compare_arrays(command, name, there, here):
    """Equal but for float32's rounding, or within both bars; how long things took and bars themselves differ."""
    if any(part in name for part in ("seconds", "memory", "rank", "error", "rounding", "residual", "limit", "bytes")):
        return
    ours, theirs = np.array(there[name]), np.array(here[name])
    assert ours.shape == theirs.shape, (command, name)
    bars = [np.array(numbers.get(f"{name}_error", [0.0])) for numbers in (there, here)]
    bars = [bar if bar.shape == ours.shape else np.zeros_like(ours) for bar in bars]
    finite = np.isfinite(theirs)
    assert (finite == np.isfinite(ours)).all(), (command, name)
    size = np.abs(theirs[finite]).max(initial=0.0)
    apart = np.abs(ours[finite] - theirs[finite])
    within = np.nan_to_num(bars[0][finite] + bars[1][finite])
    assert (apart <= 2e-5 * size + within).all(), (command, name, apart.max(initial=0.0), size)


def test_launches_of_a_point_and_of_a_product_are_held(told):
    # of a net of two layers: a point reads two batches, a product one; the bare passes of a point are 12 launches
    most = {
        "a point": 70, "its bare passes": 12, "a product, linearized": 30, "a product, retained-graph": 103,
        "a product, double-backward": 172,
    }  # fmt: skip
    assert told["launches"].keys() == most.keys()
    for name, number in told["launches"].items():
        assert 0 < number <= most[name], (name, number)


def test_products_of_a_model_on_two_devices_are_refused_by_name(told):
    assert told["refusal"].startswith("the weights are on several devices (cpu, pretended:0): ")


def test_the_host_waits_once_for_a_point_of_each_split_and_once_for_a_product(told):
    assert told["waits"] == {"a point": 1.0, "a point of a connection, of two splits": 2.0, "a product": 1.0}


def test_no_measure_waits_for_a_batch(told):
    for measure, (of_5, of_10) in told["passes"].items():
        assert 0 < of_5 == of_10 <= 12, (measure, of_5, of_10)


def test_a_point_of_streamed_samples_waits_as_often_for_twice_the_batches(told):
    assert told["streamed"] == [told["streamed"][0]] * 2 and told["streamed"][0] <= 1


def test_searches_wait_as_often_for_twice_the_batches(told):
    # with the checks and the probe before them; of checkpoints two, of layers four with some 90 products, of a
    # connection with what rounding makes of its barrier, and one wait for what of the other network stands at its end
    most = {"spectrum": 450, "layers": 530, "connection": 140, "sharpness": 410, "checkpoints": 430}
    assert told["searches"].keys() == most.keys()
    for measure, (once, twice) in told["searches"].items():
        # 3 for a look at one batch of more than 16 samples, which only the larger ones have, and 3 for a search that
        # rounding makes one product longer; a wait for each batch would make hundreds
        assert 0 < once <= most[measure] and abs(twice - once) <= 6, (measure, once, twice)


def test_one_more_checkpoint_waits_for_its_products_and_not_for_batches(told):
    once, twice = told["checkpoint"]
    assert 0 < once <= 60 and abs(twice - once) <= 3


def test_a_dense_matrix_waits_once_for_each_product_and_once_for_all_columns(told):
    assert 1 <= told["dense"] <= 1.5


def test_a_search_waits_at_most_three_times_for_each_product(told):
    assert 0 < told["search"] <= 3


def test_the_pretended_device_refuses_mixtures_and_counts_waits():
    program = """
from tests import pretended_device as device
import torch
x = device.up(torch.ones(3))
try:
    x + torch.ones(3)
except RuntimeError as error:
    assert "same device" in str(error)
else:
    raise SystemExit("devices were mixed")
assert not device.waits and float((x + 1.0).sum()) == 6.0 and sum(device.waits.values()) == 1
assert x[x > 0].cpu().tolist() == [1.0] * 3 and sum(device.waits.values()) == 3
"""
    root = PROGRAM.parents[2]
    program += """
device.without_float64()
made = lambda: torch.ones(3, dtype=torch.float64, device=x.device)
for refused in (x.double, made, lambda: x.to("cpu", torch.float64)):
    try:
        refused()
    except TypeError as error:
        assert "doesn't support float64" in str(error)
    else:
        raise SystemExit("there was float64")
assert x.cpu().double().tolist() == [1.0] * 3
"""
    subprocess.run(
        [sys.executable, "-c", program], env={**os.environ, "PYTHONPATH": str(root)}, check=True, timeout=120
    )
