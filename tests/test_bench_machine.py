"""What ran: enough to judge a figure by, nothing that identifies the machine."""

import getpass
import json
import platform
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path

import pytest

from bench import machine
from bench.machine import describe_machine


def test_the_facts_that_figures_depend_on_are_there() -> None:
    found = describe_machine()
    assert found.cpu
    assert 1 <= found.num_usable_cores <= found.num_cores
    assert found.libraries["numpy"] == version("numpy")
    assert found.python == platform.python_version()
    json.dumps(asdict(found), allow_nan=False)


def test_no_host_name_user_or_path_is_told() -> None:
    told = json.dumps(asdict(describe_machine()))
    for secret in (str(Path.cwd()), str(Path.home()) + "/", f"@{platform.node()}", f'"{getpass.getuser()}"'):
        assert secret not in told


def test_the_cpu_model_comes_from_cpuinfo_or_the_platform(tmp_path: Path) -> None:
    cpuinfo = tmp_path / "cpuinfo"
    cpuinfo.write_text("processor\t: 0\nmodel name\t: Imagined 3000\n")
    assert machine._cpu_model(cpuinfo) == "Imagined 3000"
    assert machine._cpu_model(tmp_path / "missing") in (platform.processor(), platform.machine())


def test_a_gpu_is_named_as_its_driver_names_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tool = tmp_path / "nvidia-smi"
    tool.write_text('#!/bin/sh\necho "Imagined GPU, 600.10"\n')
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert describe_machine().gpu == "Imagined GPU, 600.10"
    tool.write_text("#!/bin/sh\nexit 9\n")
    assert describe_machine().gpu is None
    monkeypatch.setenv("PATH", "")
    assert describe_machine().gpu is None
