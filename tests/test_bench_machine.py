"""What ran: enough to judge a figure by, nothing that identifies the machine."""

import getpass
import json
import platform
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path

import pytest

from bench import machine
from bench.machine import Machine, describe_machine


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


def test_clocks_are_those_that_the_system_tells_and_none_where_it_does_not(tmp_path: Path) -> None:
    cpuinfo = tmp_path / "cpuinfo"
    cpuinfo.write_text("processor\t: 0\ncpu MHz\t\t: 2000.5\nprocessor\t: 1\ncpu MHz\t\t: 3000.5\n")
    (tmp_path / "cpuinfo_max_freq").write_text("3500000\n")
    assert machine._cpu_mhz(cpuinfo) == 2500.5
    assert machine._max_mhz(tmp_path) == 3500.0
    assert machine._cpu_mhz(tmp_path / "missing") is None
    assert machine._max_mhz(tmp_path / "missing") is None


def test_memory_is_that_of_the_machine() -> None:
    meminfo = Path("/proc/meminfo")
    if not meminfo.is_file():
        pytest.skip("only Linux says it twice")
    kib = int(meminfo.read_text().splitlines()[0].split()[1])
    assert describe_machine().memory_bytes == pytest.approx(1024 * kib, rel=0.05)


def test_a_machine_described_by_an_older_version_is_still_one() -> None:
    later = {"cpu_mhz", "cpu_max_mhz", "governor", "memory_bytes", "gpu_clocks"}
    older = {name: value for name, value in asdict(describe_machine()).items() if name not in later}
    assert Machine(**older).governor is None


def test_a_gpu_is_named_as_its_driver_names_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tool = tmp_path / "nvidia-smi"
    told = (
        '#!/bin/sh\ncase $1 in *clocks*) echo "1980 MHz, 1980 MHz, 2619 MHz";; *) echo "Imagined GPU, 600.10";; esac\n'
    )
    tool.write_text(told)
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    found = describe_machine()
    assert (found.gpu, found.gpu_clocks) == ("Imagined GPU, 600.10", "1980 MHz, 1980 MHz, 2619 MHz")
    tool.write_text("#!/bin/sh\nexit 9\n")
    assert describe_machine().gpu is None
    monkeypatch.setenv("PATH", "")
    found = describe_machine()
    assert (found.gpu, found.gpu_clocks) == (None, None)
