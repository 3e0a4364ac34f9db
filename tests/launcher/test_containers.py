"""Ranks in a container, and jobs in an environment of conda.

Neither Apptainer nor conda was at hand: programs of these names stand in for them. The first notes what it is asked to bind, and
executes the program with variables of its own, as an image has them. The second prints a function of the shell, as
conda does, whose `activate` sets CONDA_PREFIX.
"""

from __future__ import annotations

import os
import pathlib
import shutil
import subprocess
import sys

import pytest

from hvd_async.__main__ import main
from hvd_async.config import parse_config
from hvd_async.errors import ConfigError
from hvd_async.launcher import find_container, folders_to_bind
from hvd_async.tasks.translation.builtin.grammar import write_corpus
from tests.mpi.runs import summary_of, write_config
from tests.ranks import mpi_family, run_limited

ROOT = pathlib.Path(__file__).parents[2]
# Takes options, an image, and a program with its arguments, as the real one does.
APPTAINER = """#!/bin/bash
[[ $1 == exec ]] || exit 99
shift
noted=()
while [[ $1 == --* ]]; do
    case $1 in
        --nv) noted+=("$1"); shift ;;
        --bind) [[ -e ${2%%:*} ]] || { echo "stand-in: $2: no such folder" >&2; exit 98; }; noted+=("$2"); shift 2 ;;
        *) exit 97 ;;
    esac
done
[[ -f $1 ]] || exit 96
[[ -z ${OPAL_PREFIX-} ]] || exit 95
printf '%s\\n' "${noted[@]}" "$1" >"$STAND_IN_LOG/$$"
export PATH="$STAND_IN_PATH" OPAL_PREFIX="$STAND_IN_PREFIX"
unset LD_LIBRARY_PATH
exec "${@:2}"
"""
CONDA = """#!/bin/bash
[[ "$*" == 'shell.bash hook' ]] || exit 99
cat <<'TEXT'
conda() {
    [ "$1" = activate ] || return 1
    case $UNSET_BY_CONDA in esac  # the real function reads variables that are not set
    [ -d "$STAND_IN_ENVIRONMENTS/$2" ] || { echo "EnvironmentNameNotFound: $2" >&2; return 1; }
    export CONDA_PREFIX="$STAND_IN_ENVIRONMENTS/$2"
}
TEXT
"""

needs_mpi = pytest.mark.skipif(mpi_family() is None, reason="no mpirun in this environment; see launch/setup.sh")


def write_program(path: pathlib.Path, text: str) -> None:
    path.parent.mkdir(exist_ok=True)
    path.write_text(text)
    path.chmod(0o755)


@pytest.fixture
def desk(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> pathlib.Path:
    """A folder with a space in its name, a tiny run, its text, an image, and the stand-ins on PATH."""
    folder = tmp_path / "my work"
    (folder / "bin").mkdir(parents=True)
    (folder / "log").mkdir()
    write_program(folder / "bin" / "apptainer", APPTAINER)
    write_program(folder / "bin" / "conda", CONDA)
    (folder / "image 1.sif").write_text("an image")
    write_corpus(folder / "text", train=60, validation=8, test=8)
    write_config(
        folder, strategy={"kind": "async"}, training={"weight": None, "updates": 4, "threads": 1}, validation={"every": None}
    )
    monkeypatch.chdir(folder)
    monkeypatch.setenv("PATH", f"{folder / 'bin'}:{os.environ['PATH']}")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(folder))
    monkeypatch.setenv("STAND_IN_LOG", str(folder / "log"))
    monkeypatch.setenv("STAND_IN_PATH", f"{pathlib.Path(sys.executable).parent}:/usr/bin:/bin")
    monkeypatch.setenv("STAND_IN_PREFIX", sys.prefix)
    monkeypatch.delenv("CONDA_EXE", raising=False)
    return folder


def launch(*words: str, timeout: float = 120) -> subprocess.CompletedProcess[str]:
    environ = {name: value for name, value in os.environ.items() if not name.startswith("OMP_")}
    return run_limited((sys.executable, "-m", "hvd_async", "launch", *words), environ, timeout)  # type: ignore[return-value]


def calls_of(desk: pathlib.Path) -> list[list[str]]:
    """Return what each call of the stand-in was asked to bind, and its image."""
    return [path.read_text().splitlines() for path in (desk / "log").iterdir()]


@pytest.mark.mpi
@needs_mpi
def test_all_ranks_run_in_the_container_with_its_folders(desk: pathlib.Path, tmp_path: pathlib.Path) -> None:
    (tmp_path / "more").mkdir()
    done = launch("run.yaml", "--workers", "2", "--container", "image 1.sif", "--bind", f"{tmp_path}/more:/inside:ro")
    assert done.returncode == 0, done.stderr
    assert summary_of(desk / "run")["updates"] == 4
    expected = [str(desk), f"{tmp_path}/more:/inside:ro", str(desk / "image 1.sif")]
    assert calls_of(desk) == [expected] * 3  # the store and two workers


@pytest.mark.mpi
@needs_mpi
def test_a_script_of_a_user_runs_in_the_container(desk: pathlib.Path) -> None:
    (desk / "show.py").write_text("import os, sys; print('said', sys.argv[1:], os.environ['HVD_ASYNC_OVERRIDES'])")
    words = ("--set", "strategy.kind=ddp", "--workers", "2", "--container", "image 1.sif")
    done = launch(*words, "--", "python", "show.py", "it's", "a b")
    assert done.stdout.count('said ["it\'s", \'a b\'] ["strategy.kind=ddp"]') == 2, done.stderr
    assert len(calls_of(desk)) == 2


@pytest.mark.mpi
@needs_mpi
def test_a_generated_script_runs_in_the_environment_of_conda_and_the_image_of_the_site_file(
    desk: pathlib.Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (desk / "envs").mkdir()
    (desk / "envs" / "my env").symlink_to(sys.prefix)
    (desk / "hvd_async").mkdir()
    (desk / "hvd_async" / "site.yaml").write_text(f"conda: my env\ncontainer: image 1.sif\nbinds: ['{ROOT}']\n")
    assert main(["launch", "run.yaml", "--slurm", "--launcher", "mpirun", "--workers", "2"]) == 0
    (desk / "job.sh").write_text(capfd.readouterr().out)
    environ = {**os.environ, "STAND_IN_ENVIRONMENTS": str(desk / "envs")}
    done = run_limited(("bash", "job.sh", "run.yaml", "--set", "seed=2"), environ, 120)
    assert done.returncode == 0, done.stderr
    assert summary_of(desk / "run")["updates"] == 4
    assert calls_of(desk) == [[str(desk), str(ROOT), str(desk / "image 1.sif")]] * 3
    failed = run_limited(("bash", "job.sh"), {**environ, "STAND_IN_ENVIRONMENTS": "/none"}, 60)
    assert failed.returncode == 4 and "--conda my env: conda cannot activate it" in failed.stderr
    (desk / "bin" / "conda").unlink()
    if shutil.which("conda") is None:
        absent = run_limited(("bash", "job.sh"), environ, 60)
        assert (absent.returncode, absent.stdout) == (4, "")
        [line] = absent.stderr.splitlines()
        assert line.startswith("--conda my env: got no conda on PATH, expected one")


@pytest.mark.parametrize(
    ("words", "status", "message"),
    [
        (
            ["--container", "docker://debian"],
            2,
            "got docker://debian, which every rank would fetch; expected a file: apptainer pull",
        ),
        (["--container", "none.sif"], 2, "--container: none.sif: no such file"),
        (["--container", "image 1.sif", "--bind", "here"], 2, "--bind: got 'here', expected /PATH or"),
        (["--container", "image 1.sif", "--bind", "/a,/b"], 2, "--bind: got '/a,/b'"),
        (["--container", "image 1.sif", "--bind", "/not/here"], 2, "--bind: /not/here: no such file or folder"),
        (["--container", "image 1.sif", "--respawn", "1"], 2, "--respawn: got --container, expected none"),
        (
            ["--container", "image 1.sif", "--set", "output=/not-there/run"],
            2,
            "/not-there/run: not in any folder that could be bound",
        ),
        (["--bind", "/tmp"], 2, "--bind /tmp has no effect without --container"),
        (["--conda", "env"], 2, "--conda has no effect without --slurm"),
        (["--slurm", "--conda=-n"], 2, "--conda: got '-n', expected the name or the path"),
        (["--slurm", "--container", "x.sif", "--bind", "a"], 2, "--bind: got 'a'"),
        (["--slurm", "--bind", "/a"], 2, "--bind /a has no effect without --container"),
    ],
)
def test_what_could_not_run_in_a_container_is_refused(
    desk: pathlib.Path, capsys: pytest.CaptureFixture[str], words: list[str], status: int, message: str
) -> None:
    assert main(["launch", "run.yaml", "--mpi", "openmpi", *words]) == status
    captured = capsys.readouterr()
    assert message in captured.err and not captured.out


@pytest.mark.parametrize(
    ("words", "site", "message"),
    [
        (
            ["--launcher", "mpirun", "--respawn", "1"],
            "container: image 1.sif",
            "--respawn: got a container in the site file",
        ),
        (
            ["--launcher", "mpirun", "--respawn", "1", "--container", "x.sif"],
            "container: y.sif",
            "--respawn: got --container,",
        ),
        (["--bind", "/tmp"], "binds: [/usr]", "--bind /tmp has no effect without --container"),
        (["--bind", "tmp"], "container: image 1.sif", "--bind: got 'tmp'"),
    ],
)
def test_the_container_of_the_site_file_is_checked_like_that_of_the_flag(
    desk: pathlib.Path, capsys: pytest.CaptureFixture[str], words: list[str], site: str, message: str
) -> None:
    (desk / "site.yaml").write_text(f"{site}\n")
    assert main(["launch", "run.yaml", "--slurm", "--site", "site.yaml", *words]) == 2
    captured = capsys.readouterr()
    assert message in captured.err and not captured.out


def test_a_folder_is_bound_in_the_container_of_the_site_file(desk: pathlib.Path, capsys: pytest.CaptureFixture[str]) -> None:
    (desk / "site.yaml").write_text("container: image 1.sif\nbinds: [/usr]\n")
    assert main(["launch", "run.yaml", "--slurm", "--site", "site.yaml", "--bind", "/tmp"]) == 0
    assert "--container 'image 1.sif' --bind /usr --bind /tmp" in " ".join(capsys.readouterr().out.split())
    # A program is looked for in the image, wherever the image is named.
    program = ["launch", "--slurm", "--site", "site.yaml", "--set", "strategy.kind=ddp", "--", "only-in-the-image", "-x"]
    assert main(program) == 0
    assert "only-in-the-image -x" in capsys.readouterr().out


def test_without_a_runtime_the_error_is_one_line(
    desk: pathlib.Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PATH", str(desk))
    words = ["launch", "run.yaml", "--mpi", "openmpi", "--container", "image 1.sif"]
    assert main(words) == 4
    assert "got neither apptainer nor singularity on PATH" in capsys.readouterr().err
    assert main([*words, "--dry-run"]) == 0  # the command is for another machine
    assert " apptainer exec " in capsys.readouterr().out
    write_program(desk / "singularity", APPTAINER)
    command = find_container("image 1.sif", (), has_gpus=True).wrap(["x"])
    assert command[-5:] == (str(desk / "singularity"), "exec", "--nv", str(desk / "image 1.sif"), "x")


def test_the_folders_of_a_run_are_bound_once(desk: pathlib.Path, tmp_path: pathlib.Path) -> None:
    places = [tmp_path / name for name in ("data", "data2", "v1", "v2")]
    for place in places:
        place.mkdir()
    tree = {
        "output": str(tmp_path / "runs" / "new"),  # made in tmp_path
        "task": {
            "data": {"folder": str(tmp_path / "data")},
            "init_from": str(tmp_path / "data2" / "model"),
            "model": {"tie_embeddings": "none"},
            "vocabulary": {
                "shared": False,
                "source_file": str(tmp_path / "v1" / "s"),
                "target_file": str(tmp_path / "v2" / "t"),
            },
        },
        "strategy": {"kind": "async"},
        "training": {"epochs": 1},
    }
    assert folders_to_bind(parse_config(tree, "test"), "run.yaml", {}) == (str(tmp_path),)
    tree["output"] = "runs/x"
    apart = folders_to_bind(parse_config(tree, "test"), "run.yaml", {"TMPDIR": "/tmp/not-there"})
    alone = tuple(map(str, sorted([*places, desk])))
    assert apart == (("/tmp",) if str(tmp_path).startswith("/tmp/") else tuple(sorted([*alone, "/tmp"])))
    assert folders_to_bind(parse_config(tree, "test"), "run.yaml", {}) == tuple(map(str, sorted([*places, desk])))
    (desk / "a:b").mkdir()
    with pytest.raises(ConfigError, match="expected no colon and no comma in the name"):
        folders_to_bind(parse_config({**tree, "output": "a:b/x"}, "test"), "run.yaml", {})


def test_what_links_lead_to_is_bound(desk: pathlib.Path, tmp_path: pathlib.Path) -> None:
    scratch = tmp_path / "scratch"
    for name in ("data", "models", "runs", "spm"):
        (scratch / name).mkdir(parents=True)
    (scratch / "spm" / "v.model").write_text("a vocabulary")
    (desk / "data").symlink_to(scratch / "data")
    (desk / "models").symlink_to("data2")  # a link to a link
    (desk / "data2").symlink_to("../other/way")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "way").symlink_to(scratch / "models")
    (desk / "v.model").symlink_to(scratch / "spm" / "v.model")
    (desk / "runs").symlink_to(scratch / "runs")
    tree = {
        "output": "runs/new",
        "task": {"data": {"folder": "data"}, "init_from": "models/m", "vocabulary": {"file": "v.model"}},
        "strategy": {"kind": "async"},
        "training": {"epochs": 1},
    }
    found = folders_to_bind(parse_config(tree, "test"), "run.yaml", {})
    way = tmp_path / "other" / "way"
    assert found == tuple(str(path) for path in (desk, way, *(scratch / name for name in ("data", "models", "runs", "spm"))))
    (desk / "cfg.yaml").symlink_to(scratch / "data" / "cfg.yaml")
    tree["output"] = "unknown"
    del tree["task"]["init_from"]  # type: ignore[attr-defined]
    (scratch / "data" / "cfg.yaml").write_text("")
    (desk / "data").unlink()
    (desk / "data").mkdir()
    found = folders_to_bind(parse_config(tree, "test"), "cfg.yaml", {})
    assert found == (str(desk), str(scratch / "data"), str(scratch / "spm"))


def test_a_link_to_nowhere_is_left_to_the_ranks(desk: pathlib.Path) -> None:
    (desk / "lost").symlink_to("/not-there/x")
    (desk / "round").symlink_to("round")
    for name in ("lost", "round"):
        tree = {"output": "r", "task": {"data": {"folder": name}}, "training": {"epochs": 1}}
        assert folders_to_bind(parse_config(tree, "test"), "run.yaml", {}) == (str(desk),)


def test_a_suite_of_real_runs_names_the_container_itself(desk: pathlib.Path, capsys: pytest.CaptureFixture[str]) -> None:
    suite = "base: run.yaml\nworkers: 2\nbudget: {updates: 4}\nmeasure_every: 100\nbaseline: all\nvariants: {all: {}}\n"
    (desk / "tiny.yaml").write_text(suite)
    (desk / "site.yaml").write_text("container: image.sif\nconda: env\n")
    words = ["compare", "tiny.yaml", "--slurm", "--site", "site.yaml"]
    assert main(words) == 2
    assert (
        "expected it in tiny.yaml too, for the ranks of its runs: launch_arguments: [--container, image.sif]"
        in capsys.readouterr().err
    )
    (desk / "tiny.yaml").write_text(suite + "launch_arguments: [--container, image.sif]\n")
    assert main(words) == 0
    assert "\nconda=env  " in capsys.readouterr().out
    (desk / "tiny.yaml").write_text(suite + "launcher: simulate\n")
    assert main(words) == 0
    assert "the site file's container image.sif is not used" in capsys.readouterr().err
