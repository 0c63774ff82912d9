"""The pins agree with each other, and run_all.sh keeps its promises without installing."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).resolve().parents[1]
SCRIPT = ROOT / "run_all.sh"
LOCK = (ROOT / "requirements.lock").read_text()
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
OPTION = re.compile(r"^ +(?:-\w, )?(--[a-z][a-z-]*)", re.MULTILINE)


def lock_entries(text):
    """(requirement, its number of hashes, the names that ask for it) of each pin."""
    entries = []
    for block in re.split(r"\n(?=[a-z0-9])", text):
        if block.startswith("#"):
            continue
        first, *rest = block.splitlines()
        askers = re.findall(r"^    # +(?:via +)?([a-z0-9][\w.-]*)", block, re.MULTILINE)
        hashes = sum("--hash=sha256:" in line for line in rest)
        entries.append((Requirement(first.rstrip(" \\")), hashes, set(askers) - {"via"}))
    return entries


def environments():
    for minor in (10, 11, 12, 13):
        for platform, system in (("linux", "Linux"), ("darwin", "Darwin")):
            yield {
                "python_version": f"3.{minor}",
                "python_full_version": f"3.{minor}.9",
                "sys_platform": platform,
                "platform_system": system,
                "platform_machine": "x86_64" if platform == "linux" else "arm64",
                "os_name": "posix",
                "implementation_name": "cpython",
                "platform_python_implementation": "CPython",
            }


def applies(requirement, environment):
    return requirement.marker is None or requirement.marker.evaluate(environment)


def script(*arguments, path=SCRIPT, **options):
    command = ["bash", str(path), *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, **options)


def sourced(code):
    command = ["bash", "-c", f". ./run_all.sh; {code}"]
    return subprocess.check_output(command, cwd=ROOT, text=True, timeout=60)


def test_lock_pins_every_declared_dependency():
    pins = [requirement for requirement, _, _ in lock_entries(LOCK)]
    declared = sum(PROJECT["optional-dependencies"].values(), PROJECT["dependencies"])
    for environment in environments():
        for wanted in map(Requirement, declared):
            if not applies(wanted, environment):
                continue
            name = canonicalize_name(wanted.name)
            found = [pin for pin in pins if pin.name == name and applies(pin, environment)]
            assert len(found) == 1, f"{name}: {len(found)} pins for {environment}"
            (version,) = found[0].specifier
            assert version.operator == "=="
            assert version.version in wanted.specifier, f"{found[0]} is not {wanted}"


def test_lock_has_hashes_and_no_addresses():
    for requirement, hashes, _ in lock_entries(LOCK):
        assert hashes, f"{requirement} has no hash"
    assert not re.search("://|index.url|find.links", LOCK)


def test_environment_yml_repeats_the_lock():
    dependencies = yaml.safe_load((ROOT / "environment.yml").read_text())["dependencies"]
    python, pip, section = dependencies
    assert python.split("=")[1] in ("3.10", "3.11", "3.12", "3.13") and pip == "pip"
    package, *pins = section["pip"]
    assert package == "-e ."
    locked = [str(requirement) for requirement, _, _ in lock_entries(LOCK)]
    hint = "renew environment.yml with the command at its top"
    assert [str(Requirement(pin)) for pin in pins] == locked, hint


def test_cpu_set_up_leaves_out_cuda_and_nothing_else():
    everything = {requirement.name for requirement, _, _ in lock_entries(LOCK)}
    kept_text = sourced('locked 0 "$torch_and_cuda"')
    kept_entries = lock_entries(kept_text)
    assert all(hashes for _, hashes, _ in kept_entries)
    kept = {requirement.name for requirement, _, _ in kept_entries}
    dropped = everything - kept
    assert {"torch", "torchvision", "triton"} <= dropped

    askers = {name: set() for name in everything}
    for requirement, _, names in lock_entries(LOCK):
        askers[requirement.name] |= names
    for name in dropped - {"torch", "torchvision"}:
        assert askers[name] <= dropped, f"{name} is dropped but {askers[name]} need it"
    # What only PyTorch asks for must be known to be needed without CUDA too.
    only_torch = {name for name in kept if askers[name] <= dropped}
    assert only_torch <= {"filelock", "fsspec", "networkx", "sympy"}


def test_cpu_set_up_takes_the_pinned_torch():
    pins = lock_entries(sourced('locked 1 "$torch_pins"'))
    assert {requirement.name for requirement, _, _ in pins} == {"torch", "torchvision"}


def test_script_syntax():
    for path in (SCRIPT, ROOT / ".ci" / "run", ROOT / ".binder" / "postBuild"):
        subprocess.run(["bash", "-n", str(path)], check=True)
        assert path.stat().st_mode & 0o100, f"chmod +x {path.name}"


def test_help_names_every_option(tmp_path):
    shutil.copy(SCRIPT, tmp_path)
    done = script("--help", path=tmp_path / SCRIPT.name)
    assert done.returncode == 0 and not done.stderr
    assert not (tmp_path / ".venv").exists()
    command = [sys.executable, "-m", "l2lkit", "run", "--help"]
    job = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    own = {"--setup", "--test"}
    assert set(OPTION.findall(done.stdout)) == set(OPTION.findall(job.stdout)) | own


@pytest.mark.parametrize(
    "arguments",
    [
        ["--nonsense"],
        ["--nonsense=1"],
        ["01"],
        ["--seed"],
        ["--profile", "fast"],
        ["--device=tpu"],
        ["--test", "--seed", "1"],
        ["--setup", "--test"],
    ],
)
def test_misuse_stops_before_any_install(tmp_path, arguments):
    shutil.copy(SCRIPT, tmp_path)
    done = script(*arguments, path=tmp_path / SCRIPT.name)
    assert done.returncode == 2
    assert done.stderr.startswith("run_all.sh: ") and done.stderr.count("\n") == 1
    assert not (tmp_path / ".venv").exists()


def test_unsuitable_python_is_named(tmp_path):
    shutil.copy(SCRIPT, tmp_path)
    environment = {"PATH": "/usr/bin:/bin", "PYTHON": "no-such-python"}
    done = script("--setup", path=tmp_path / SCRIPT.name, env=environment)
    assert done.returncode == 1
    assert "PYTHON=no-such-python" in done.stderr
    assert not (tmp_path / ".venv").exists()


def finished_venv(home, asked='printf "%s\\n" "$@"'):
    """The script with a .venv that looks finished, whose Python only prints what it is asked."""
    (home / ".venv" / "bin").mkdir(parents=True)
    shutil.copy(SCRIPT, home)
    python = home / ".venv" / "bin" / "python"
    python.write_text(f'#!/bin/sh\nif [ "$1" = - ]; then echo key; else {asked}; fi\n')
    python.chmod(0o755)
    (home / ".venv" / ".l2lkit-key").touch()


def test_options_reach_the_job(tmp_path):
    home, elsewhere = tmp_path / "home", tmp_path / "else where"
    elsewhere.mkdir()
    finished_venv(home)

    job = ["-m", "l2lkit", "run"]
    assert script(path=home / SCRIPT.name).stdout.split("\n")[:-1] == job
    given = ["--profile=smoke", "--only", "01,05", "--data", "my data.zip"]
    given += ["--publish", "--retrain", "--output", "/some/where", "--seed", "3"]
    done = script(*given, path=home / SCRIPT.name, cwd=elsewhere)
    expected = ["--profile", "smoke", "--only", "01,05", "--data", f"{elsewhere}/my data.zip"]
    expected += ["--publish", "--retrain", "--output", "/some/where", "--seed", "3"]
    assert done.stdout.split("\n")[:-1] == job + expected
    done = script("--data=~/x.zip", "--output", "~/out", path=home / SCRIPT.name)
    assert done.stdout.split("\n")[3:-1] == ["--data", "~/x.zip", "--output", "~/out"]


def test_binder_puts_the_packages_into_its_own_environment(tmp_path):
    """Into that of the first Python on the path, which the set-up takes for .venv."""
    (tmp_path / "prefix" / "bin").mkdir(parents=True)
    for path, says in (
        (tmp_path / "prefix" / "bin" / "python", f'echo "python $@" >&2; echo {tmp_path}/prefix'),
        (tmp_path / "run_all.sh", 'echo "set up $@ in $(readlink .venv)" >&2'),
    ):
        path.write_text(f"#!/bin/sh\n{says}\n")
        path.chmod(0o755)
    environment = os.environ | {"PATH": f"{tmp_path}/prefix/bin:{os.environ['PATH']}"}
    done = script(path=ROOT / ".binder" / "postBuild", cwd=tmp_path, env=environment)
    assert done.returncode == 0
    first, second, third = done.stderr.splitlines()
    assert "sys.prefix" in first and second == f"set up --setup in {tmp_path}/prefix"
    assert third == """python -c import l2lkit; l2lkit.load("digits")"""
    assert (tmp_path / ".venv").resolve() == tmp_path / "prefix"


def test_binder_and_dev_containers_have_a_python_that_the_package_takes():
    (python,) = yaml.safe_load((ROOT / ".binder" / "environment.yml").read_text())["dependencies"]
    container = json.loads((ROOT / ".devcontainer" / "devcontainer.json").read_text())
    for version in (python.partition("=")[2], container["image"].partition(":")[2]):
        assert version in SpecifierSet(PROJECT["requires-python"])
    assert container["postCreateCommand"] == "./run_all.sh --setup"


def test_the_script_goes_to_its_own_folder_and_keeps_the_users_settings_out(tmp_path):
    """Called by a relative path with CDPATH set, by a link, and from a folder with a dash."""
    mine, other = tmp_path / "mine" / "companion", tmp_path / "other" / "companion"
    variables = "CDPATH PYTHONPATH PYTHONHOME PIP_TARGET PIP_PREFIX PIP_USER PYTHONNOUSERSITE"
    shown = "; ".join(f'echo "{name}=${{{name}-}}"' for name in variables.split())
    finished_venv(mine, f"pwd; {shown}")
    (other / ".venv").mkdir(parents=True)  # another project, whose environment is to be left alone
    (other / ".venv" / "theirs").touch()
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "run").symlink_to("../mine/companion/run_all.sh")
    (tmp_path / "mine" / "-e").symlink_to("companion")
    environment = dict.fromkeys(variables.split(), str(tmp_path / "other")) | {
        "PATH": os.environ["PATH"]
    }
    for path, here in (
        ("companion/run_all.sh", tmp_path / "mine"),
        ("bin/run", tmp_path),
        ("./-e/run_all.sh", tmp_path / "mine"),
    ):
        done = script(path=path, cwd=here, env=environment)
        folder, *values = done.stdout.splitlines()
        assert folder == str(mine), done.stderr
        assert values == [f"{name}=" for name in variables.split()[:5]] + [
            "PIP_USER=no",
            "PYTHONNOUSERSITE=1",
        ]
    assert [p.name for p in (other / ".venv").iterdir()] == ["theirs"]


def _heeds_ctrl_c():
    """What a shell starts in the background, these tests among it, ignores Ctrl-C and hands that
    on."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_set_up_says_so_in_one_sentence(tmp_path, number):
    home = tmp_path / "home"
    finished_venv(home)
    (home / ".venv" / ".l2lkit-key").unlink()
    slow = tmp_path / "uv"
    slow.write_text(f"#!/bin/sh\ntouch {tmp_path}/begun\nexec sleep 20\n")
    slow.chmod(0o755)
    environment = os.environ | {"PATH": f"{tmp_path}:{os.environ['PATH']}"}
    process = subprocess.Popen(
        ["bash", str(home / SCRIPT.name), "--setup"], env=environment, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True,
        preexec_fn=_heeds_ctrl_c,
    )  # fmt: skip
    while not (tmp_path / "begun").exists():
        time.sleep(0.05)
    time.sleep(0.5)  # the file is there a moment before the shell goes to sleep
    os.killpg(process.pid, number)
    _, err = process.communicate(timeout=30)
    assert process.returncode == 128 + number
    assert len(err.strip().splitlines()) == 1 and "goes on from here" in err


def test_pip_set_to_install_for_the_user_does_not_stop_the_set_up(tmp_path):
    """pip refuses that in a virtual environment; it looks at the setting before it looks for
    packages."""
    (tmp_path / "pip.conf").write_text("[install]\nuser = true\n[global]\nno-index = true\n")
    subprocess.run([sys.executable, "-m", "venv", tmp_path / "venv"], check=True)
    command = [tmp_path / "venv" / "bin" / "python", "-m", "pip", "install", "no-such-package"]
    environment = {"PIP_CONFIG_FILE": str(tmp_path / "pip.conf"), "PATH": os.environ["PATH"]}
    for own, says in (({}, "'--user' install"), ({"PIP_USER": "no"}, "no-such-package")):
        done = subprocess.run(command, env=environment | own, capture_output=True, text=True)
        assert says in done.stderr and done.returncode == 1
