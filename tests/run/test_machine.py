"""The device of a run, and what is said of the machine."""

import os
import re
import shutil
import subprocess

import pytest
import torch

from bidir.config import ConfigError
from bidir.run.machine import machine, make_accelerator, peak_memory_mib
from bidir.run.training import fit


def test_no_gpu_when_one_is_asked_for(quick):
    if torch.cuda.is_available():
        pytest.skip("there is one")
    with pytest.raises(ConfigError, match="device = 'cuda'"):
        fit(quick.replace(device="cuda"), progress=False)


def test_precision_that_this_process_cannot_change_is_refused(quick):
    make_accelerator(quick)
    with pytest.raises(ConfigError, match="if an earlier run of this process used others, restart the kernel"):
        make_accelerator(quick.replace(mixed_precision="bf16"))


def test_the_machine_is_described():
    told = machine(torch.device("cpu"))
    assert told["hardware"].startswith("CPU ")
    if shutil.which("lscpu"):  # which of a maker's processors it is
        listed = subprocess.run(
            ["lscpu"], capture_output=True, text=True, check=True, env={**os.environ, "LC_ALL": "C"}
        )
        known = dict(re.findall(r"^(CPU family|Model): +(\d+)$", listed.stdout, re.MULTILINE))
        assert all(f"{name.lower()} {value}" in told["hardware"] for name, value in known.items())
    assert told["threads"] == torch.get_num_threads()
    assert 10 < peak_memory_mib(torch.device("cpu")) < 1_000_000
