"""A cluster's own values in batch scripts: a site file, lines of set-up, types of GPUs."""

from __future__ import annotations

import pathlib
import re
import subprocess

import pytest

from hvd_async.__main__ import main
from hvd_async.cluster.topology import count_gpus
from hvd_async.errors import ConfigError, SetupError
from hvd_async.launcher.batch_script import SCRIPTS, Resources, Script, ScriptJob, render
from hvd_async.launcher.site_file import SiteConfig, read_site

SITE = "account: project1\nqueue: gpu\nsbatch: [--qos=high]\nsetup: [module purge, module load cuda/12.4]\n"


@pytest.fixture
def config(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> pathlib.Path:
    """A configuration in a folder that is also the place of the user's site file, which a test may write there."""
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    path = tmp_path / "run.yaml"
    path.write_text("output: run\ntask: {data: {folder: data}}\nstrategy: {kind: async}\ntraining: {epochs: 1}\n")
    return path


def script(capsys: pytest.CaptureFixture[str], *arguments: str) -> list[str]:
    assert main(["launch", *arguments]) == 0
    return capsys.readouterr().out.splitlines()


def options_of(lines: list[str]) -> list[str]:
    return [line.split("  ")[0].removeprefix("#SBATCH ") for line in lines if line.startswith("#SBATCH ")]


def test_a_site_file_applies_to_every_script_and_flags_follow_it(
    config: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = config.parent / "hvd_async" / "site.yaml"
    path.parent.mkdir()
    path.write_text(SITE)
    lines = script(capsys, str(config), "--slurm", "--setup", "export A=1", "--sbatch=--partition=big")
    assert options_of(lines)[-3:] == ["--partition=gpu", "--qos=high", "--partition=big"]
    assert "--account=project1" in options_of(lines)
    start = lines.index("module purge")
    assert lines[start - 1 : start + 4] == [
        "set -eo pipefail",
        "module purge",
        "module load cuda/12.4",
        "export A=1",
        "set -u",
    ]


def test_another_site_file_can_be_named(config: pathlib.Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = config.parent / "other.yaml"
    path.write_text("account: project2\n")
    both = script(capsys, str(config), "--slurm", "heterogeneous", "--site", str(path))
    assert options_of(both).count("--account=project2") == 2  # sbatch needs it for both components
    assert "--account" not in "".join(script(capsys, str(config), "--slurm", "train-requeue")).replace(
        "##SBATCH --account", ""
    )


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("acount: a\n", "acount: unknown key; did you mean 'account'?"),
        ("account: a b\n", "account: got 'a b'"),
        ("account: 'a\n#SBATCH --x'\n", "account: got"),
        ("setup: {a: b}\n", "setup: got {'a': 'b'}, expected: a list"),
        ("partition: a\n", "partition: unknown key; it is called 'queue' now"),
        ("[a]\n", "expected the keys of the site file"),
    ],
)
def test_a_site_file_is_checked(text: str, words: str, tmp_path: pathlib.Path) -> None:
    path = tmp_path / "site.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError) as raised:
        read_site(path, {})
    assert words in str(raised.value)


@pytest.mark.parametrize(
    ("system", "option"), [("slurm", "#SBATCH --partition=big"), ("pbs", "#PBS -q big"), ("lsf", "#BSUB -q big")]
)
def test_a_queue_counts_in_every_system(
    system: str, option: str, config: pathlib.Path, tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "own.yaml").write_text("queue: big\n")
    assert any(
        line.startswith(option) for line in script(capsys, str(config), f"--{system}", "--site", str(tmp_path / "own.yaml"))
    )


def test_single_values_need_no_list_and_an_account_may_be_a_number_in_quotes(tmp_path: pathlib.Path) -> None:
    (tmp_path / "site.yaml").write_text("account: '0123'\nsetup: module load x\nsbatch: --qos=high\nbinds: /scratch\n")
    site = read_site(tmp_path / "site.yaml", {})
    assert (site.account, site.setup, site.sbatch, site.binds) == (
        "0123",
        ("module load x",),
        ("--qos=high",),
        ("/scratch",),
    )


@pytest.mark.parametrize("number", ["0123", "1.10", "1e5"])
def test_a_number_is_not_read_as_another_account(tmp_path: pathlib.Path, number: str) -> None:
    (tmp_path / "site.yaml").write_text(f"account: {number}\n")
    with pytest.raises(
        ConfigError, match=r'site\.yaml: account: got a number, expected text; write it in quotes, such as "0123"'
    ):
        read_site(tmp_path / "site.yaml", {})


def test_without_a_site_file_nothing_is_added(tmp_path: pathlib.Path) -> None:
    assert read_site(None, {"XDG_CONFIG_HOME": str(tmp_path)}) == SiteConfig() == read_site(None, {"HOME": str(tmp_path)})
    with pytest.raises(ConfigError, match=r"none\.yaml: no such file; expected the YAML site file"):
        read_site(tmp_path / "none.yaml", {})


@pytest.mark.parametrize("name", SCRIPTS)
def test_a_script_with_all_values_is_valid_bash(name: Script) -> None:
    asked = Resources(gpus_per_node=4, gpu_type="a100", account="a", setup=("module load x", "source /opt/setup.sh"))
    text = render(ScriptJob(name, "run.yaml"), asked)
    subprocess.run(["bash", "-n"], input=text, text=True, check=True)
    assert "#SBATCH --gpus-per-node=a100:4\n" in text and "\nmodule load x\nsource /opt/setup.sh\nset -u\n" in text
    assert len(re.findall("^#SBATCH --account=a$", text, re.MULTILINE)) == (2 if name == "heterogeneous" else 1)


@pytest.mark.parametrize("line", ["", "  ", "a\nb"])
def test_a_line_of_set_up_is_one_line(line: str) -> None:
    with pytest.raises(ConfigError, match="--setup: got"):
        render(ScriptJob("train", "run.yaml"), Resources(setup=(line,)))


@pytest.mark.parametrize("gpus", ["0", "a100:0", "a100", "a100:", ":4", "-1", "4:a100", "2.5", "a 1:2", "a100:4\n"])
def test_an_invalid_number_of_gpus_is_refused(gpus: str, config: pathlib.Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["launch", str(config), "--slurm", f"--gpus-per-node={gpus}"]) == 2
    assert "--gpus-per-node: got" in capsys.readouterr().err


def test_types_of_gpus_go_into_the_script_and_their_number_into_the_layout(
    config: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = script(capsys, str(config), "--slurm", "--gpus-per-node", "nvidia_a100-80gb.x:3")
    assert {"--gpus-per-node=nvidia_a100-80gb.x:3", "--ntasks-per-node=3"} <= set(options_of(lines))
    assert main(["launch", str(config), "--dry-run", "--mpi", "openmpi", "--gpus-per-node", "a100:3"]) == 2
    assert "a100 without --slurm" in capsys.readouterr().err
    planned = script(capsys, str(config), "--dry-run", "--mpi", "openmpi", "--gpus-per-node", "3")
    assert any("-np 4" in line for line in planned)


@pytest.mark.parametrize(("key", "rank"), [("training.device", 1), ("store.device", 0)])
def test_a_gpu_that_this_machine_lacks_is_refused_before_ranks_start(
    key: str, rank: int, config: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = count_gpus()
    assert main(["launch", str(config), "--mpi", "openmpi", "--set", f"{key}=cuda:{found}"]) == SetupError.exit_status
    told = f"{key}: got cuda:{found}, but rank {rank} on this machine sees {found} GPUs"
    assert told in capsys.readouterr().err and not pathlib.Path("run").exists()


@pytest.mark.parametrize("kind", ["async", "single"])
def test_more_gpus_than_this_machine_has_are_refused_before_ranks_start(
    kind: str, config: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = count_gpus()
    words = ["launch", str(config), "--mpi", "openmpi", "--set", f"strategy.kind={kind}", f"--gpus-per-node={found + 1}"]
    assert main(words) == SetupError.exit_status
    told = capsys.readouterr().err
    assert (
        f"--gpus-per-node: got {found + 1}, but torch finds {found or 'no GPU'}" in told and not pathlib.Path("run").exists()
    )
    assert main([*words, "--dry-run"]) == 0 and main([*words, "--slurm"]) == 0, "plans for other machines"
